//! Messages of clients, for back ends to read from a stream.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use crate::support::{
    PATIENCE,
    app::{Builder, Process, Replica},
    client::{Dial, Ws},
    jwt::token,
    redis::{RedisClient, RedisServer, Resp},
    until,
};

fn open() -> Builder {
    Builder::production().set("inbound.enabled", "true").set("limits.inbound_per_second", "0")
}

async fn on(redis: &RedisServer) -> Replica {
    open().redis(redis).spawn().await
}

async fn client(replica: &Replica, user: &str) -> Ws {
    Dial::to(replica).query(&token(user)).open().await
}

/// One entry: its id, and its fields as they are written.
type Entry = (String, Vec<(String, Vec<u8>)>);

fn bulk(resp: &Resp) -> Vec<u8> {
    match resp {
        Resp::Bulk(Some(bytes)) => bytes.clone(),
        other => panic!("no string: {other:?}"),
    }
}

fn text(resp: &Resp) -> String {
    String::from_utf8(bulk(resp)).expect("text")
}

fn list(resp: &Resp) -> &[Resp] {
    match resp {
        Resp::List(items) => items,
        other => panic!("no list: {other:?}"),
    }
}

fn entries(rows: &Resp) -> Vec<Entry> {
    let fields = |row: &Resp| {
        list(row).chunks(2).map(|pair| (text(&pair[0]), bulk(&pair[1]))).collect::<Vec<_>>()
    };
    list(rows).iter().map(|row| (text(&list(row)[0]), fields(&list(row)[1]))).collect()
}

/// All that is in the stream.
async fn all(client: &mut RedisClient) -> Vec<Entry> {
    entries(&client.words("XRANGE ws:inbound - +").await)
}

/// What this consumer of the group gets, and acknowledges.
async fn take(client: &mut RedisClient, consumer: &str, count: usize) -> Vec<Entry> {
    let command = format!("XREADGROUP GROUP shop {consumer} COUNT {count} STREAMS ws:inbound >");
    let answer = client.words(&command).await;
    // No list at all where nothing is left; of RESP 2 the null array, which reads as an empty one.
    let Resp::List(streams) = &answer else { return Vec::new() };
    let Some(stream) = streams.first() else { return Vec::new() };
    let taken = entries(&list(stream)[1]);
    for (id, _) in &taken {
        assert_eq!(client.words(&format!("XACK ws:inbound shop {id}")).await.int(), 1);
    }
    taken
}

async fn length(client: &mut RedisClient) -> i64 {
    client.words("XLEN ws:inbound").await.int()
}

async fn dropped(replica: &Replica, reason: &str) -> f64 {
    replica.metrics().await.get("messages_dropped_total", &[("reason", reason)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_by_default() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = client(&replica, "alice").await;
    ws.send(r#"{"type":"hello"}"#);
    ws.is_alive().await;
    assert!((dropped(&replica, "inbound_unread").await - 1.0).abs() < 0.1);
    assert_eq!(redis.client().await.words("EXISTS ws:inbound").await.int(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_it_is_a_fault() {
    let process = Process::spawn(open().command());
    let status = process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(2), "{}", process.output());
    assert!(process.output().contains("inbound.enabled"), "{}", process.output());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_comes_as_it_was_with_user_and_connection() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    let mut ws = client(&replica, "alice: ü").await;
    let id = ws.welcome["connection"].as_str().expect("an id").to_owned();
    let odd = "  {\"type\" : \"chat\",\n\"n\":12345678901234567890.10,\"t\":\"\\u00fc ü 🎉\"}";
    // What is Belfry's own, or none, is not among them.
    for other in [
        r#"{"type":"pong"}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"belfry.hello"}"#,
        r#"{"type":"belfry.token","token":"no"}"#,
        "[1]",
        "text",
        odd,
        "{}",
    ] {
        ws.send(other);
    }
    let mut client = redis.client().await;
    until("both are there", PATIENCE, async || (length(&mut client).await == 2).then_some(()))
        .await;
    let fields = |message: &str| {
        [("user", "alice: ü"), ("connection", &id), ("message", message)]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .to_vec()
    };
    let found: Vec<_> = all(&mut client).await.into_iter().map(|(_, fields)| fields).collect();
    assert_eq!(found, [fields(odd), fields("{}")]);
    replica.metric_is("messages_forwarded_total", 2.0, PATIENCE).await;
    assert!((dropped(&replica, "inbound_unread").await - 2.0).abs() < 0.1);
    assert!((dropped(&replica, "inbound_invalid").await - 2.0).abs() < 0.1);
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_of_a_group_share_what_two_replicas_write() {
    let redis = RedisServer::start().await;
    let (one, two) = (on(&redis).await, on(&redis).await);
    let mut consumer = redis.client().await;
    consumer.words("XGROUP CREATE ws:inbound shop $ MKSTREAM").await;
    let mut tabs = Vec::new();
    for (n, replica) in [&one, &two, &one, &two].into_iter().enumerate() {
        tabs.push(client(replica, &format!("user-{n}")).await);
    }
    for n in 0..250 {
        for tab in &tabs {
            tab.send(json!({"n": n}).to_string());
        }
    }
    let mut seen: Vec<Entry> = Vec::new();
    until("all are read", PATIENCE, async || {
        for name in ["first", "second"] {
            seen.extend(take(&mut consumer, name, 50).await);
        }
        (seen.len() >= 1000).then_some(())
    })
    .await;
    let ids: BTreeSet<&String> = seen.iter().map(|(id, _)| id).collect();
    assert_eq!((seen.len(), ids.len()), (1000, 1000));
    // Of each connection in the order in which it spoke, also over both consumers.
    seen.sort_by_key(|(id, _)| {
        let (ms, n) = id.split_once('-').expect("an id");
        (ms.parse::<u64>().expect("a number"), n.parse::<u64>().expect("a number"))
    });
    for n in 0..4 {
        let user = format!("user-{n}").into_bytes();
        let of_user = seen.iter().filter(|(_, fields)| fields[0].1 == user);
        let said: Vec<_> = of_user.map(|(_, fields)| fields[2].1.clone()).collect();
        let expected: Vec<_> = (0..250).map(|n| json!({"n": n}).to_string().into_bytes()).collect();
        assert_eq!(said, expected);
    }
    let pending = consumer.words("XPENDING ws:inbound shop").await;
    assert_eq!(list(&pending)[0].int(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_is_capped_and_the_oldest_go() {
    let redis = RedisServer::start().await;
    let replica = open().set("inbound.max_messages", "200").redis(&redis).spawn().await;
    let ws = client(&replica, "alice").await;
    for n in 0..2000 {
        ws.send(json!({"n": n}).to_string());
    }
    replica.metric_is("messages_forwarded_total", 2000.0, PATIENCE).await;
    let found = all(&mut redis.client().await).await;
    assert!((200..=400).contains(&found.len()), "{}", found.len());
    let numbers: Vec<_> = found.iter().map(|(_, fields)| fields[2].1.clone()).collect();
    let expected: Vec<_> =
        (2000 - found.len()..2000).map(|n| json!({"n": n}).to_string().into_bytes()).collect();
    assert_eq!(numbers, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_its_own_connection_and_no_more_gets_through() {
    let redis = RedisServer::start().await;
    let builder = open()
        .set("limits.inbound_per_second", "5")
        .set("limits.inbound_burst", "20")
        .redis(&redis);
    let replica = builder.spawn().await;
    let mut flood = client(&replica, "mallory").await;
    let mut calm = client(&replica, "alice").await;
    for n in 0..1000 {
        flood.send(json!({"n": n}).to_string());
    }
    assert_eq!(flood.end(PATIENCE).await.code, 4429);
    calm.send(r#"{"n":"calm"}"#);
    let mut client = redis.client().await;
    let found = until("the calm one is heard", PATIENCE, async || {
        let found = all(&mut client).await;
        found.iter().any(|(_, fields)| fields[0].1 == b"alice").then_some(found)
    })
    .await;
    assert!((20..100).contains(&found.len()), "{}", found.len());
    calm.is_alive().await;
}

/// Redis hangs, then is gone: nobody waits, nobody is closed, and all that is lost is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_messages_are_dropped_and_clients_stay() {
    let mut redis = RedisServer::start().await;
    let replica = open().set("public.workers", "1").redis(&redis).spawn().await;
    let mut tabs = Vec::new();
    for n in 0..5 {
        tabs.push(client(&replica, &format!("user-{n}")).await);
    }
    let pad = "x".repeat(8_000);
    let before = replica.process.rss();
    redis.freeze();
    for n in 0..2_000 {
        for tab in &tabs {
            tab.send(json!({"n": n, "pad": pad}).to_string());
        }
    }
    // The Ping waits behind all of them, and nothing else.
    for tab in &mut tabs {
        tab.is_alive().await;
    }
    let lost = async |replica: &Replica| {
        dropped(replica, "inbound_full").await + dropped(replica, "inbound_away").await
    };
    until("all are counted", PATIENCE, async || (lost(&replica).await > 9_999.5).then_some(()))
        .await;
    assert!(dropped(&replica, "inbound_full").await > 0.5, "80 MB did not fill the queue");
    assert!(dropped(&replica, "inbound_away").await > 0.5, "nobody tried to write");
    let grown = replica.process.rss() - before;
    assert!(grown < 48 * 1024, "80 MB of messages left {grown} KiB");
    assert!(replica.log().matches("messages of clients are dropped").count() < 20);
    redis.thaw();
    redis.kill();
    redis.restart().await;
    replica.becomes("/readyz", 200, PATIENCE).await;
    let mut client = redis.client().await;
    until("messages go through again", PATIENCE, async || {
        tabs[0].send(r#"{"n":"again"}"#);
        (length(&mut client).await > 0).then_some(())
    })
    .await;
    for tab in &mut tabs {
        tab.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_is_written_before_a_replica_leaves() {
    let redis = RedisServer::start().await;
    let replica = open().redis(&redis).spawn().await;
    let mut ws = client(&replica, "alice").await;
    for n in 0..500 {
        ws.send(json!({"n": n}).to_string());
    }
    // Answered after all of them were read.
    ws.is_alive().await;
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(replica.process.end(Duration::from_secs(10)).await.success());
    assert_eq!(length(&mut redis.client().await).await, 500);
}

//! What neighbours on the same Redis may do by mistake or by intent: publish what looks like Belfry's
//! own, or write into its streams. They can say things of their own, and they can spoil their own
//! channel; nobody is silenced without a word, and nobody else is harmed.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, Seen, Ws},
    jwt::token,
    proxy::Proxy,
    redis::RedisServer,
    tab::{Tab, for_all, for_group, for_user, put, quick},
    until,
};

fn dial(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).query(&token(user))
}

fn texts(ws: &mut Ws) -> Vec<String> {
    ws.drain()
        .into_iter()
        .filter_map(|seen| match seen {
            Seen::Text(text) => Some(text),
            _ => None,
        })
        .collect()
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.expect("a clock").as_millis()).expect("few")
}

fn forged(tag: &str, ms: u64) -> String {
    format!(
        r#"{{"belfry":{{"v":1}},"id":"{tag}~{ms}-0","prev":"{tag}~0-0","type":"forged","data":1}}"#
    )
}

/// A place a little ahead of the clock would make repeats of all that is published until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_made_up_in_the_near_future_silences_nobody() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut client = redis.client().await;
    // The last ones often meet the very id of an event.
    for (round, ahead) in [20_000, 2_000, 300, 51, 40, 41, 42].into_iter().enumerate() {
        let user = format!("round-{round}");
        let mut ws = dial(&replica, &user).open().await;
        put(&replica, &for_user(&user, "before")).await;
        ws.event("before").await;
        client.publish(&format!("ws:user:{user}"), forged("u", now() + ahead)).await;
        let mut sent = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(500) {
            let mk = format!("mk-{}", sent.len());
            put(&replica, &for_user(&user, &mk)).await;
            sent.push(mk);
            sleep(Duration::from_millis(20)).await;
        }
        let mut seen = Vec::new();
        until(
            &format!("everything has come, or is said to be lost ({ahead})"),
            PATIENCE,
            async || {
                seen.extend(texts(&mut ws));
                let all =
                    sent.iter().all(|mk| seen.iter().any(|text| text.contains(&format!("{mk}\""))));
                let told = seen.iter().any(|text| text.contains("belfry.resync"));
                (all || told).then_some(())
            },
        )
        .await;
        put(&replica, &for_user(&user, "after")).await;
        ws.through("after").await;
    }
}

/// A key of another kind in the place of one channel's history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_channel_that_cannot_be_read_harms_no_other() {
    let redis = RedisServer::start().await;
    let mut proxy = Proxy::start(redis.address()).await;
    let far = quick(Builder::production(), &redis).redis_at(&format!("redis://{}", proxy.address));
    let (far, near) = tokio::join!(far.spawn(), quick(Builder::production(), &redis).spawn());
    let mut alice = Tab::open(&dial(&far, "alice")).await;
    let mut mallory = dial(&far, "mallory").open().await;
    let _trudy = dial(&far, "trudy").open().await;
    proxy.refuse().await;
    proxy.cut();
    redis.cli(&["DEL", "ws:user:mallory"]);
    redis.cli(&["SET", "ws:user:mallory", "not a stream"]);
    redis.cli(&["SET", "ws:last:user:trudy", &format!("{}-0 1 1", "9".repeat(30))]);
    put(&near, &for_user("alice", "missed")).await;
    proxy.allow().await;
    assert_eq!(alice.next().await["data"]["mk"], "missed");
    mallory.word("belfry.resync", PATIENCE).await;
    put(&near, &for_user("alice", "live")).await;
    assert_eq!(alice.next().await["data"]["mk"], "live");
    // And who comes anew has the other channels.
    let mut again = Tab::resume(&dial(&near, "mallory"), &alice.leave()).await;
    again.has_lost(&["u"]);
    again.replay().await;
    put(&near, &for_all("for all")).await;
    assert_eq!(again.next().await["data"]["mk"], "for all");
    let mut client = redis.client().await;
    client
        .publish("ws:user:mallory", json!({"type": "raw", "data": {"mk": "raw"}}).to_string())
        .await;
    assert_eq!(again.next().await["data"]["mk"], "raw");
}

/// Somebody puts events into a stream again, with ids of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_in_a_stream_are_no_events() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let tab = Tab::open(&dial(&replica, "alice")).await;
    put(&replica, &for_all("one")).await;
    let copy = "local entry = redis.call('XRANGE', KEYS[1], '-', '+')[1]
for _ = 1, 400 do redis.call('XADD', KEYS[1], '*', unpack(entry[2])) end";
    redis.cli(&["EVAL", copy, "1", "ws:broadcast"]);
    let before = replica.process.rss();
    let mut back = Tab::resume(&dial(&replica, "alice"), &tab.leave()).await;
    back.is_whole();
    assert_eq!(back.replayed().await, ["one"]);
    assert!(replica.process.rss() - before < 20 * 1024, "it grows");
    put(&replica, &for_all("two")).await;
    assert_eq!(back.next().await["data"]["mk"], "two");
}

/// A stream takes no id below its highest, whoever wrote that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_in_the_future_stops_no_channel() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    for id in ["9999999999999-0", "18446744073709551615-18446744073709551615"] {
        let user = format!("user-{}", id.len());
        let mut ws = dial(&replica, &user).open().await;
        put(&replica, &for_user(&user, "before")).await;
        ws.event("before").await;
        redis.cli(&["XADD", &format!("ws:user:{user}"), id, "m", "garbage"]);
        for n in 0..3 {
            put(&replica, &for_user(&user, &format!("after {n}"))).await;
            ws.event(&format!("after {n}")).await;
        }
        // Where nothing else was before it.
        redis.cli(&["XADD", &format!("ws:user:new-{user}"), id, "m", "garbage"]);
        let user = format!("new-{user}");
        let mut ws = dial(&replica, &user).open().await;
        for n in 0..3 {
            put(&replica, &for_user(&user, &format!("after {n}"))).await;
        }
        ws.event("after 2").await;
    }
}

/// A replica that keeps nothing beside one that does: it has no history that could bear a place out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_kept_a_place_that_is_made_up_silences_nobody() {
    let redis = RedisServer::start().await;
    let keeps_none = quick(Builder::production(), &redis).set("history.events", "0");
    let (none, keeps) =
        tokio::join!(keeps_none.spawn(), quick(Builder::production(), &redis).spawn());
    let mut client = redis.client().await;
    let mut ws = dial(&none, "alice").open().await;
    put(&keeps, &for_user("alice", "before")).await;
    ws.event("before").await;
    client.publish("ws:user:alice", forged("u", now() + 20_000)).await;
    for mk in ["one", "two"] {
        put(&keeps, &for_user("alice", mk)).await;
        ws.event(mk).await;
    }
}

/// The channel on which everyone is, and at which every replica looks again and again. As nothing can
/// be kept on it, nothing is missed on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_channel_that_cannot_be_read_makes_nobody_reload() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut ws = dial(&replica, "alice").open().await;
    redis.cli(&["SET", "ws:broadcast", "not a stream"]);
    stays_calm(&replica, &mut ws).await;
    assert_eq!(warnings(&replica, "what a channel keeps cannot be read")[0]["kind"], "broadcast");
    assert_eq!(replica.get("/readyz").await.status, 200);
}

/// Nor does a Redis that may forget that channel's last id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_channel_of_which_nothing_can_be_known_makes_nobody_reload() {
    let redis = RedisServer::with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut ws = dial(&replica, "alice").open().await;
    stays_calm(&replica, &mut ws).await;
}

/// Nobody is told of a loss, for longer than it takes to doubt a channel.
async fn stays_calm(replica: &Replica, ws: &mut Ws) {
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        sleep(Duration::from_millis(100)).await;
        let seen = texts(ws);
        assert!(!seen.iter().any(|text| text.contains("belfry.resync")), "{seen:?}");
    }
    assert!(!replica.log().contains("told to reload"), "{}", replica.log());
    put(replica, &for_user("alice", "after")).await;
    ws.event("after").await;
}

/// The fields of the warnings that begin so.
fn warnings(replica: &Replica, begin: &str) -> Vec<Value> {
    let log = replica.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let warnings = lines.filter(|line| line["level"] == "WARN").map(|line| line["fields"].clone());
    let begins = |fields: &Value| fields["message"].as_str().is_some_and(|m| m.starts_with(begin));
    warnings.filter(begins).collect()
}

/// Publishing there is refused, which only an operator can mend: he is told, and not for each event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_of_a_key_where_a_channel_belongs() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    for (kind, keys, key, event) in [
        ("user", "ws:user:*", "ws:user:mallory", for_user("mallory", "1")),
        ("group", "ws:group:*", "ws:group:staff", for_group("staff", "1")),
        ("broadcast", "ws:broadcast", "ws:broadcast", for_all("1")),
    ] {
        redis.cli(&["SET", key, "not a stream"]);
        let begin = "an event was refused";
        let before = warnings(&replica, begin).len();
        let told = until("it is told", PATIENCE, async || {
            for _ in 0..10 {
                let answer = replica.post(event.to_string()).await;
                assert_eq!(answer.status, 503, "{answer:?}");
            }
            warnings(&replica, begin).into_iter().nth(before)
        })
        .await;
        assert_eq!((&told["kind"], &told["keys"]), (&json!(kind), &json!(keys)), "{told}");
        assert!(told["message"].as_str().is_some_and(|m| m.contains("delete or rename")), "{told}");
        assert!(!told.to_string().contains("mallory"), "{told}");
        // Mended as it says.
        redis.cli(&["DEL", key]);
        put(&replica, &event).await;
    }
    let told = warnings(&replica, "an event was refused");
    let held_back = told.iter().filter_map(|fields| fields["more_since_last_line"].as_u64());
    assert!(held_back.sum::<u64>() > 0, "{told:?}");
}

/// A last id that is none hides whether something was missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_id_that_is_none_proves_nothing() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    for (n, last) in ["hello", &format!("{}-0 1 1", "9".repeat(30))].into_iter().enumerate() {
        let user = format!("user-{n}");
        let quiet = Tab::open(&dial(&replica, &user)).await.leave();
        Tab::resume(&dial(&replica, &user), &quiet).await.is_whole();
        put(&replica, &for_user(&user, "missed")).await;
        redis.cli(&["DEL", &format!("ws:user:{user}")]);
        redis.cli(&["SET", &format!("ws:last:user:{user}"), last]);
        for road in [dial(&replica, &user), dial(&replica, &user).sse()] {
            Tab::resume(&road, &quiet).await.has_lost(&["u"]);
        }
    }
}

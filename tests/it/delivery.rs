//! That events arrive: all of them, once, in order, as they were written.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, Seen, Ws},
    jwt::{Jwt, token},
    redis::RedisServer,
};

async fn on(redis: &RedisServer) -> Replica {
    Builder::production().redis(redis).spawn().await
}

/// What follows id and prev in a kept event, byte for byte.
fn after_id(text: &str) -> &str {
    let id = |text: &str, name: &str| -> usize {
        let rest = text.strip_prefix(&format!(r#""{name}":"u~"#)).expect("a place");
        rest.find("\",").expect("an end") + text.len() - rest.len() + 2
    };
    let text = text.strip_prefix('{').expect("an object");
    let text = &text[id(text, "id")..];
    &text[id(text, "prev")..]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_act_as_one() {
    let redis = RedisServer::start().await;
    let (one, two, three) = tokio::join!(on(&redis), on(&redis), on(&redis));
    let tab = async |replica: &Replica, user: &str| {
        let jwt = Jwt::of(user).groups(&[&format!("of-{user}")]).sign();
        Dial::to(replica).query(&jwt).open().await
    };
    let mut alices = Vec::new();
    let mut strangers = Vec::new();
    for replica in [&two, &two, &three, &three] {
        alices.push(tab(replica, "alice").await);
        strangers.push(tab(replica, "bob").await);
    }
    strangers.push(tab(&one, "bob").await);
    let data = r#"{"b":1, "a" : 1.0,"n":12345678901234567890.123}"#;
    for to in [r#"{"user":"alice"}"#, r#"{"users":["alice","carol"]}"#, r#"{"group":"of-alice"}"#] {
        let body = format!(r#"{{"to":{to},"type":"certificate_processed","data":{data}}}"#);
        let answer = one.post(body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        one.to_all("last").await;
        let mut frames = Vec::new();
        for ws in &mut alices {
            let mut texts = ws.through("\"last\"").await;
            texts.pop();
            assert_eq!(texts.len(), 1, "{to}: {texts:?}");
            frames.append(&mut texts);
        }
        frames.dedup();
        assert_eq!(frames.len(), 1, "{frames:?}");
        let event = format!(r#","type":"certificate_processed","data":{data}}}"#);
        assert!(frames[0].ends_with(&event), "{frames:?}");
        for ws in &mut strangers {
            assert!(ws.markers_before("last").await.is_empty(), "{to}: a stranger got it");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_publish_arrives_byte_for_byte() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(on(&redis), on(&redis));
    let jwt = Jwt::of("alice").groups(&["staff"]).sign();
    let mut tabs =
        [Dial::to(&one).query(&jwt).open().await, Dial::to(&two).query(&jwt).open().await];
    let seed = r#"{"type":"x",  "data":{"b":1,"a":1.0}}"#;
    assert_eq!(redis.cli(&["PUBLISH", "ws:user:alice", seed]), "2");
    for ws in &mut tabs {
        assert_eq!(ws.text(PATIENCE).await.1, seed);
    }
    let mut client = redis.client().await;
    for payload in [
        "{}",
        " {\"type\" : \"x\" }\n",
        r#"{"data":{"b":1},"type":"x"}"#,
        r#"{"type":"x","data":12345678901234567890.123456789e-7}"#,
        r#"{"type":"x","data":"\u0041\ud83d\ude00\/"}"#,
        r#"{"type":"x","data":"\ud800"}"#,
        r#"{"type":"x","a":1,"a":2,"data":[1 , 2]}"#,
        r#"{"no":"type at all"}"#,
        r#"{"type":5,"data":null}"#,
        r#"{"type":"ü €","data":"🔔"}"#,
        "{\"type\":\"x\",\r\n\t\"data\":{\"\":\"\"}}",
        r#"{"belfry":1,"type":"x"}"#,
        r#"{"type":"x","belfry":{"v":1}}"#,
        &format!(r#"{{"type":"x","data":"{}"}}"#, "y".repeat(60_000)),
    ] {
        for channel in ["ws:user:alice", "ws:group:staff", "ws:broadcast"] {
            assert_eq!(client.publish(channel, payload).await, 2);
            for ws in &mut tabs {
                let text = ws.text(PATIENCE).await.1;
                assert_eq!(text, payload, "on {channel}");
            }
        }
    }
}

/// Data that a parser and a printer would change.
fn hard_data() -> Vec<String> {
    let mut all: Vec<String> = [
        "null",
        "true",
        "0",
        "-0",
        "-0.0",
        "1.0",
        "1e5",
        "1E+05",
        "1e400",
        "0.1000",
        "12345678901234567890.123",
        "123456789012345678901234567890",
        "9007199254740993",
        "18446744073709551616",
        "1e-400",
        r#""""#,
        r#""A""#,
        r#""\u0041""#,
        r#""\ud800""#,
        r#""\ud83d\ude00""#,
        r#""\/\b\f\n\r\t\"\\""#,
        r#""\u0000""#,
        r#""\u2028\u2029""#,
        "\"\u{2028}\u{2029}\"",
        r#""🔔 é é""#,
        "\"\u{feff}\"",
        r#""<script>&amp;'""#,
        "[]",
        "{}",
        "[ 1 ,2,  3 ]",
        "{ \"b\" : 1 ,\"a\":2 }",
        "{\"b\":1,\"a\":2,\"b\":3}",
        "[\n  1,\r\n\t2\n]",
        r#"{"":null," ":[[]]}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"belfry.goodbye","code":1}"#,
        r#"{"belfry":{"v":1}}"#,
        r#"[{"to":{"user":"x"}}]"#,
    ]
    .map(str::to_owned)
    .into();
    all.push(format!("{}1{}", "[".repeat(127), "]".repeat(127)));
    all.push(format!("\"{}\"", "é".repeat(10_000)));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_is_kept_as_written() {
    let redis = RedisServer::start().await;
    for replica in [Replica::start().await, on(&redis).await] {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        for data in hard_data() {
            let body = format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":{data}}}"#);
            let answer = replica.post(body).await;
            assert_eq!(answer.status, 202, "{data}: {answer:?}");
            let text = ws.text(PATIENCE).await.1;
            assert_eq!(after_id(&text), format!(r#""type":"t","data":{data}}}"#));
        }
        // Wherever the member stands, and with blanks around it.
        let body = "{ \"data\" :\n[1.0 ] \n, \"type\":\"t\" ,\"to\":{\"user\":\"alice\"}}";
        assert_eq!(replica.post(body).await.status, 202);
        let text = ws.text(PATIENCE).await.1;
        assert_eq!(after_id(&text), r#""type":"t","data":[1.0 ]}"#);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sender_type_and_transient() {
    let redis = RedisServer::start().await;
    for replica in [Replica::start().await, on(&redis).await] {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        for (kind, sender) in [
            ("t", Some("tab-1")),
            ("x", None),
            ("ünï 🔔 \"quoted\" \\ /", Some("\"\\ü\u{7f}🔔")),
            ("ping2", Some("ping")),
            ("belfry", None),
            ("belfryx", Some("s")),
            ("Ping", None),
            (&"é".repeat(128), Some(&"ü".repeat(64))),
        ] {
            let mut body = json!({"to": {"user": "alice"}, "type": kind, "data": {"n": 1}});
            if let Some(sender) = sender {
                body["sender"] = json!(sender);
            }
            for transient in [None, Some(true), Some(false)] {
                if let Some(transient) = transient {
                    body["transient"] = json!(transient);
                }
                replica.event(&body).await;
                let text = ws.text(PATIENCE).await.1;
                let mut wanted = json!({"type": kind, "data": {"n": 1}});
                if let Some(sender) = sender {
                    wanted["sender"] = json!(sender);
                }
                if transient != Some(true) {
                    let event: Value = serde_json::from_str(&text).expect("JSON");
                    wanted["id"] = event["id"].clone();
                    wanted["prev"] = event["prev"].clone();
                    assert!(after_id(&text).starts_with(r#""type":""#), "{text}");
                }
                assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), wanted);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l01_many_tabs_on_two_replicas() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(on(&redis), on(&redis));
    let mut tabs = Vec::new();
    for replica in [&one, &one, &one, &two, &two, &two] {
        tabs.push(Dial::to(replica).query(&token("alice")).open().await);
    }
    for n in 0..500 {
        [&one, &two][n % 2].to_user("alice", &n.to_string()).await;
    }
    one.to_user("alice", "last").await;
    let wanted: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    for (index, ws) in tabs.iter_mut().enumerate() {
        assert_eq!(ws.markers_before("last").await, wanted, "tab {index}");
    }
    // The page logs in as someone else: what was the old user's does not follow.
    for ws in tabs {
        ws.close().await;
    }
    let mut tabs = Vec::new();
    for replica in [&one, &two] {
        tabs.push(Dial::to(replica).query(&token("bob")).open().await);
    }
    for n in 0..20 {
        one.to_user("alice", &n.to_string()).await;
    }
    one.to_user("bob", "last").await;
    for ws in &mut tabs {
        assert!(ws.markers_before("last").await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l02_order_is_the_same_on_every_tab() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(on(&redis), on(&redis));
    let mut tabs = Vec::new();
    for replica in [&one, &one, &two, &two] {
        tabs.push(Dial::to(replica).query(&token("alice")).open().await);
    }
    for n in 0..1_000 {
        one.to_user("alice", &n.to_string()).await;
    }
    one.to_user("alice", "last").await;
    let wanted: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    for (index, ws) in tabs.iter_mut().enumerate() {
        assert_eq!(ws.markers_before("last").await, wanted, "tab {index}");
    }
}

/// What became of a burst.
#[derive(Debug, Default)]
struct Burst {
    numbers: Vec<u32>,
    /// The client was told that something is missing.
    resync: bool,
    /// Code and reason, where the connection was closed.
    closed: Option<String>,
}

/// Reads numbered events until `last`, or the end. Where some are missing, the word about it is
/// waited for as well: it may come a few seconds later, so that pages do not reload in step.
async fn read_burst(mut ws: Ws, last: u32) -> Burst {
    let mut burst = Burst::default();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let complete = burst.numbers.last() == Some(&last);
        let holes = burst.numbers.windows(2).any(|two| two[1] != two[0] + 1);
        if complete && (!holes || burst.resync) {
            return burst;
        }
        let text = match ws.next(deadline.saturating_duration_since(Instant::now())).await.1 {
            Seen::Text(text) => text,
            Seen::Close(code, reason) => {
                burst.closed = Some(format!("{code} {reason}"));
                return burst;
            }
            Seen::Gone(why) => panic!("gone without a word: {why}"),
            _ => continue,
        };
        let value: Value = serde_json::from_str(&text).expect("JSON");
        if value["type"] == "belfry.resync" {
            burst.resync = true;
        } else if value["type"] == "burst" {
            let number = value["data"]["n"].as_u64().expect("a number");
            burst.numbers.push(u32::try_from(number).expect("small"));
        }
    }
}

fn burst(n: u32) -> Vec<u8> {
    let pad = "x".repeat(160);
    format!(r#"{{"type":"burst","data":{{"n":{n},"pad":"{pad}"}}}}"#).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l03_a_burst_arrives_or_its_loss_is_told() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    let ws = Dial::to(&replica).query(&token("alice")).open().await;
    let mut bystander = Dial::to(&replica).query(&token("bob")).open().await;
    let reading = tokio::spawn(read_burst(ws, 19_999));
    let mut client = redis.client().await;
    for part in 0..20 {
        let numbers = part * 1_000..(part + 1) * 1_000;
        client.publish_all(numbers.map(|n| ("ws:user:alice", burst(n)))).await;
    }
    let burst = reading.await.expect("a hole that nobody was told of");
    let count = burst.numbers.len();
    println!("{count} of 20,000; resync: {}, closed: {:?}", burst.resync, burst.closed);
    assert!(burst.numbers.is_sorted_by(|one, next| one < next), "doubled or out of order");
    if count < 20_000 {
        let slow = burst.closed.as_deref().is_none_or(|closed| closed == "1013 slow_consumer");
        assert!(slow && (burst.resync || burst.closed.is_some()), "{:?}", burst.closed);
        let metrics = replica.metrics().await;
        let counted = metrics.get("closes_total", &[("cause", "slow_consumer")])
            + metrics.sum("redis_pubsub_gaps_total");
        assert!(counted >= 1.0, "told but not counted: {metrics:?}");
    }
    replica.to_user("bob", "untouched").await;
    bystander.event("untouched").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l03_one_event_each_for_five_thousand_users() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    let mut sockets = Vec::new();
    for index in (0..5_000).step_by(20) {
        let user = format!("user-{index}");
        sockets.push((index, Dial::to(&replica).query(&token(&user)).open().await));
    }
    let names: Vec<String> = (0..5_000).map(|index| format!("ws:user:user-{index}")).collect();
    let mut client = redis.client().await;
    client.publish_all((0..5_000).map(|n| (names[n as usize].as_str(), burst(n)))).await;
    for (index, ws) in sockets {
        assert_eq!(read_burst(ws, index).await.numbers, [index]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l13_no_deaf_window_after_the_101() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(on(&redis), on(&redis));
    let (one, two) = (Arc::new(one), Arc::new(two));
    let mut lanes = Vec::new();
    for lane in 0..4 {
        let (one, two) = (one.clone(), two.clone());
        lanes.push(tokio::spawn(async move {
            for run in 0..50 {
                let user = format!("user-{lane}-{run}");
                let jwt = Jwt::of(&user).groups(&[&user]).sign();
                // As far as the 101 only: the welcome is not waited for.
                let mut ws = Dial::to(&one).query(&jwt).connect().await;
                let from = if run % 2 == 0 { &one } else { &two };
                if run % 3 == 0 {
                    from.to_group(&user, "at-once").await;
                } else {
                    from.to_user(&user, "at-once").await;
                }
                ws.event("at-once").await;
            }
        }));
    }
    for lane in lanes {
        lane.await.expect("nothing lost");
    }
}

/// A body whose `data` is a string of exactly `bytes` bytes of JSON.
fn sized(bytes: usize) -> (String, String) {
    let data = format!("\"{}\"", "z".repeat(bytes - 2));
    (format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":{data}}}"#), data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l17_size_limits_end_to_end() {
    let limit = 64 * 1024;
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(on(&redis), on(&redis));
    let memory = Replica::start().await;
    for (post, receive) in [(&one, &two), (&one, &one), (&memory, &memory)] {
        let mut ws = Dial::to(receive).query(&token("alice")).open().await;
        for bytes in [limit - 1, limit] {
            let (body, data) = sized(bytes);
            assert_eq!(post.post(body).await.status, 202, "{bytes}");
            let text = ws.text(PATIENCE).await.1;
            assert_eq!(after_id(&text), format!(r#""type":"t","data":{data}}}"#));
        }
        for bytes in [limit + 1, limit * 2, limit * 7] {
            post.post(sized(bytes).0).await.is_problem(413);
        }
        post.to_user("alice", "last").await;
        assert!(ws.markers_before("last").await.is_empty(), "a refused event arrived");
    }
}

//! L10: history is bounded, in events, in bytes and in time, and a broadcast is kept once.

use serde_json::json;
use tokio::time::Duration;

use crate::support::{
    app::{Builder, Replica},
    client::Dial,
    jwt::token,
    redis::RedisServer,
    tab::{Kind, Tab, answer, for_all, for_user, put, quick},
    until,
};

/// All keys, and how long each of them has to live in milliseconds (-1: for ever).
async fn keys(redis: &RedisServer) -> Vec<(String, i64)> {
    let mut client = redis.client().await;
    let mut keys = Vec::new();
    for key in redis.cli(&["KEYS", "*"]).lines() {
        let left = client.command(&[b"PTTL", key.as_bytes()]).await.int();
        // -2: it went meanwhile.
        if left != -2 {
            keys.push((key.to_owned(), left));
        }
    }
    keys
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text:?}"))
}

/// Publishes so many; the last id.
async fn many(replica: &Replica, user: &str, count: usize, bytes: usize) -> String {
    let mut last = String::new();
    for n in 0..count {
        let data = json!({"mk": n.to_string(), "pad": "x".repeat(bytes)});
        last = put(replica, &json!({"to": {"user": user}, "type": "test", "data": data})).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_every_key_is_bounded_and_ends() {
    let redis = RedisServer::start().await;
    let builder = Builder::production().set("history.events", "100").set("history.ttl", "10m");
    let replica = quick(builder, &redis).spawn().await;
    let _tab = Tab::open(&Dial::to(&replica).query(&token("alice"))).await;
    many(&replica, "alice", 1_000, 10).await;
    for n in 0..300 {
        put(&replica, &for_all(&n.to_string())).await;
    }
    let once = replica.post_once(for_user("alice", "x").to_string(), "key-1").await;
    assert_eq!(once.status, 202, "{once:?}");
    // Trimmed by whole nodes, of 100 entries as Redis comes.
    for stream in ["ws:user:alice", "ws:broadcast"] {
        let length = number(&redis.cli(&["XLEN", stream]));
        assert!((100..=300).contains(&length), "{stream}: {length}");
    }
    // 10,000 users once.
    for thousand in 0..10 {
        let users: Vec<String> = (0..1_000).map(|n| format!("user-{thousand}-{n}")).collect();
        answer(&replica, &json!({"to": {"users": users}, "type": "t", "data": {"mk": "x"}})).await;
    }
    let all = keys(&redis).await;
    let streams = all.iter().filter(|(key, _)| key.starts_with("ws:user:")).count();
    assert_eq!(streams, 10_001);
    let broadcasts = all.iter().filter(|(key, _)| key.contains("broadcast")).count();
    assert!(broadcasts <= 2, "kept more than once: {broadcasts}");
    let month = 30 * 24 * 3_600 * 1_000 + 60_000;
    for (key, left) in &all {
        assert!((1..=month).contains(left), "{key} lives for {left} ms");
    }
    for (key, left) in all.iter().filter(|(key, _)| key.starts_with("ws:user:")) {
        assert!(*left <= 10 * 60 * 1_000, "{key} lives for {left} ms");
    }
    // Redis takes a page of 4 KiB (stream-node-max-bytes) for the first event of a stream.
    for (key, most) in [("ws:user:user-3-7", 6_144), ("ws:last:user:user-3-7", 256)] {
        let bytes = number(&redis.cli(&["MEMORY", "USAGE", key]));
        assert!(bytes < most, "{key}: {bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_a_mebibyte_of_large_events() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let last = many(&replica, "alice", 200, 65_000).await;
    let bytes = number(&redis.cli(&["MEMORY", "USAGE", "ws:user:alice", "SAMPLES", "0"]));
    assert!(bytes < 2 * 1024 * 1024, "{bytes} bytes of 13 MB are kept");
    // What is kept is still what was published, from some point on.
    let length = number(&redis.cli(&["XLEN", "ws:user:alice"]));
    assert!((8..=32).contains(&length), "{length} are kept");
    let dial = Dial::to(&replica).query(&token("alice"));
    let cursor = Tab::open_past(&dial, &last).await.leave();
    many(&replica, "alice", 8, 65_000).await;
    let mut tab = Tab::resume(&dial, &cursor).await;
    tab.is_whole();
    let wanted: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    assert_eq!(tab.replayed().await, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_in_memory_too() {
    let replica = Replica::start().await;
    many(&replica, "warm", 50, 65_000).await;
    let before = replica.process.rss();
    let mut last = String::new();
    for user in 0..20 {
        last = many(&replica, &format!("user-{user}"), 60, 65_000).await;
    }
    // 78 MB were published, 20 MiB may be kept.
    let grown = replica.process.rss() - before;
    assert!(grown < 45 * 1024, "grew by {grown} KiB");
    let dial = Dial::to(&replica).query(&token("user-19"));
    let cursor = Tab::open_past(&dial, &last).await.leave();
    many(&replica, "user-19", 8, 65_000).await;
    let mut tab = Tab::resume(&dial, &cursor).await;
    tab.is_whole();
    assert_eq!(tab.replay().await.len(), 8);
}

/// In memory as in Redis, what is over is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_users_who_are_gone_cost_nothing_for_long() {
    let builder = Builder::production().set("history.ttl", "1s");
    let place = Kind::Redis.start(builder).await;
    let redis = place.redis.as_ref().expect("on Redis");
    for thousand in 0..2 {
        let users: Vec<String> = (0..1_000).map(|n| format!("user-{thousand}-{n}")).collect();
        let event = json!({"to": {"users": users}, "type": "t", "data": {"mk": "x"}});
        answer(&place.replica, &event).await;
    }
    until("the streams are gone", Duration::from_secs(20), async || {
        let keys = keys(redis).await;
        (!keys.iter().any(|(key, _)| key.starts_with("ws:user:"))).then_some(())
    })
    .await;
}

//! Events that back ends write to a stream instead of sending requests.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{Builder, Process, Replica},
    client::{Dial, Ws},
    jwt::{Jwt, token},
    redis::{RedisClient, RedisServer, Resp},
    tally, until,
};

/// A lease that nobody gives back, and then some.
const TAKEOVER: Duration = Duration::from_secs(10);

fn reading() -> Builder {
    Builder::production().set("publish_stream.enabled", "true")
}

async fn on(redis: &RedisServer) -> Replica {
    reading().redis(redis).spawn().await
}

async fn client(replica: &Replica, user: &str) -> Ws {
    Dial::to(replica).query(&token(user)).open().await
}

fn event(user: &str, mark: impl std::fmt::Display) -> String {
    json!({"to": {"user": user}, "type": "t", "data": {"mk": mark.to_string()}}).to_string()
}

/// `XADD`, as a back end does it.
async fn add(client: &mut RedisClient, fields: &[&[u8]]) {
    let command: Vec<&[u8]> =
        [&b"XADD"[..], b"ws:publish", b"*"].into_iter().chain(fields.iter().copied()).collect();
    let answer = client.command(&command).await;
    assert!(matches!(answer, Resp::Bulk(Some(_))), "{answer:?}");
}

async fn add_event(client: &mut RedisClient, event: &str) {
    add(client, &[b"event", event.as_bytes()]).await;
}

/// So many at once: `{"mk":"0"}` and so on, for alice.
async fn add_numbers(client: &mut RedisClient, count: usize) {
    let script = b"for n = 0, ARGV[3] - 1 do
      redis.call('XADD', KEYS[1], '*', 'event', ARGV[1] .. n .. ARGV[2])
    end";
    let event = event("alice", "|");
    let (before, after) = event.split_once('|').expect("the mark");
    let count = count.to_string();
    let words: [&[u8]; 7] = [
        b"EVAL",
        script,
        b"1",
        b"ws:publish",
        before.as_bytes(),
        after.as_bytes(),
        count.as_bytes(),
    ];
    let answer = client.command(&words).await;
    assert_eq!(answer, Resp::Bulk(None));
}

/// Nothing waits any more, and nothing is under way.
async fn is_empty(redis: &RedisServer) {
    let mut client = redis.client().await;
    until("the stream is empty", PATIENCE, async || {
        (client.words("XLEN ws:publish").await.int() == 0).then_some(())
    })
    .await;
    let Resp::List(pending) = client.words("XPENDING ws:publish belfry").await else {
        panic!("no list")
    };
    assert_eq!(pending[0].int(), 0, "entries are pending");
}

/// Whether this replica has begun to read more often than it has stopped.
fn reads(replica: &Replica) -> bool {
    let log = replica.log();
    let count = |words: &str| {
        log.matches(&format!("\"this replica reads the publish stream{words}\"")).count()
    };
    count("") > count(" no more")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_by_default() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = client(&replica, "alice").await;
    let mut writer = redis.client().await;
    add_event(&mut writer, &event("alice", "unread")).await;
    assert_eq!(replica.post(event("alice", "last")).await.status, 202);
    assert!(ws.markers_before("last").await.is_empty());
    assert_eq!(writer.words("XLEN ws:publish").await.int(), 1);
    assert_eq!(writer.words("EXISTS ws:publish:owner").await.int(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_it_is_a_fault() {
    let process = Process::spawn(reading().command());
    let status = process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(2), "{}", process.output());
    assert!(process.output().contains("publish_stream.enabled"), "{}", process.output());
}

/// Also what was written before there was a replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_reach_users_groups_and_everyone_like_posts() {
    let redis = RedisServer::start().await;
    let mut writer = redis.client().await;
    add_event(&mut writer, &event("alice", "before")).await;
    let replica = on(&redis).await;
    is_empty(&redis).await;
    let staff = Jwt::of("alice").claim("groups", json!(["staff"])).sign();
    let mut ws = Dial::to(&replica).query(&staff).open().await;
    let data = r#"{"mk":"user","big":12345678901234567890.10,"t":"\u00fc"}"#;
    let body = format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":{data},"sender":"tab-1"}}"#);
    add_event(&mut writer, &body).await;
    let text = ws.event(r#""mk":"user""#).await;
    assert!(text.contains(data), "{text}");
    let frame: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&frame["type"], &frame["sender"]), (&json!("t"), &json!("tab-1")), "{text}");
    assert!(frame["id"].as_str().is_some_and(|id| id.starts_with("u~")), "{text}");
    for (to, mark) in [
        (json!({"users": ["bob", "alice"]}), "users"),
        (json!({"group": "staff"}), "group"),
        (json!({"broadcast": true}), "all"),
    ] {
        let body = json!({"to": to, "type": "t", "data": {"mk": mark}}).to_string();
        add_event(&mut writer, &body).await;
        ws.event(&format!(r#""mk":"{mark}""#)).await;
    }
    is_empty(&redis).await;
    // Kept like the rest: the first one is replayed.
    assert!(redis.client().await.words("XLEN ws:user:alice").await.int() >= 3);
    let metrics = replica.metrics().await;
    let accepted = |target| {
        metrics.get("events_published_total", &[("target", target), ("result", "accepted")])
    };
    let counts = ["user", "users", "group", "broadcast"].map(accepted);
    assert_eq!(counts.map(|count| count.to_string()), ["2", "1", "1", "1"]);
    assert!(replica.log().contains("by the publish stream"), "no audit line for a broadcast");
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    replica.process.end(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_repeated_entries_one() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    let mut ws = client(&replica, "alice").await;
    let mut writer = redis.client().await;
    for mark in ["one", "one", "two"] {
        let event = event("alice", mark);
        add(&mut writer, &[b"event", event.as_bytes(), b"idempotency_key", b"k"]).await;
    }
    // The same key is another one in the hands of an API key.
    is_empty(&redis).await;
    assert_eq!(replica.post_once(event("alice", "three"), "k").await.status, 202);
    add_event(&mut writer, &event("alice", "last")).await;
    assert_eq!(ws.markers_before("last").await, ["one", "three"]);
    let rejected = replica.metrics().await;
    let rejected = rejected.get("messages_dropped_total", &[("reason", "publish_invalid")]);
    assert!((rejected - 1.0).abs() < 0.1, "{rejected}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_entries_are_dropped_counted_and_hold_nothing_up() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    let mut ws = client(&replica, "alice").await;
    let mut writer = redis.client().await;
    writer.words("SET ws:user:broken string").await;
    let large = event("alice", "x".repeat(70_000));
    let huge = event("alice", "x".repeat(600_000));
    let good = event("alice", "unwanted");
    let broken = event("broken", "x");
    let bad: Vec<Vec<&[u8]>> = vec![
        vec![b"event", b"no json"],
        vec![b"event", b""],
        vec![b"event", b"\xff\xfe"],
        vec![b"event", b"[]"],
        vec![b"event", br#"{"to":{"user":""},"type":"t","data":1}"#],
        vec![b"event", br#"{"to":{"user":"alice"},"type":"belfry.welcome","data":1}"#],
        vec![b"event", br#"{"to":{"user":"alice"},"type":"t","data":1,"more":1}"#],
        vec![b"event", large.as_bytes()],
        vec![b"event", huge.as_bytes()],
        vec![b"even", good.as_bytes()],
        vec![b"event", good.as_bytes(), b"event", good.as_bytes()],
        vec![b"event", good.as_bytes(), b"idempotency-key", b"k"],
        vec![b"event", good.as_bytes(), b"idempotency_key", b""],
        vec![b"event", broken.as_bytes()],
    ];
    for round in 0..20 {
        for fields in &bad {
            add(&mut writer, fields).await;
        }
        add_event(&mut writer, &event("alice", round)).await;
    }
    add_event(&mut writer, &event("alice", "last")).await;
    let expected: Vec<String> = (0..20).map(|round| round.to_string()).collect();
    assert_eq!(ws.markers_before("last").await, expected);
    is_empty(&redis).await;
    let count = f64::from(u32::try_from(20 * bad.len()).expect("few"));
    let labels = [("reason", "publish_invalid")];
    replica
        .metric("messages_dropped_total", &labels, PATIENCE, |now| (now - count).abs() < 0.1)
        .await;
    let log = replica.log();
    let lines = log.matches("an entry of the publish stream is dropped").count();
    assert!((1..=20).contains(&lines), "{lines} lines");
    assert!(!log.contains("unwanted"), "a body is in the log");
}

/// The owner of the stream dies in the middle of 2,000 entries: the other goes on, and its user
/// gets each event once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_killed_costs_and_doubles_nothing() {
    let redis = RedisServer::start().await;
    let first = on(&redis).await;
    until("the first reads", PATIENCE, async || reads(&first).then_some(())).await;
    let second = on(&redis).await;
    let mut ws = client(&second, "alice").await;
    let mut writer = redis.client().await;
    add_numbers(&mut writer, 2000).await;
    let left = until("some are published", PATIENCE, async || {
        Some(writer.words("XLEN ws:publish").await.int()).filter(|left| *left < 1_500)
    })
    .await;
    first.process.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(left > 0, "it was too quick to be killed in the middle");
    add_event(&mut writer, &event("alice", "last")).await;
    assert!(!reads(&second), "the lease was not kept");
    until("the second reads", TAKEOVER, async || reads(&second).then_some(())).await;
    let expected: Vec<String> = (0..2000).map(|n| n.to_string()).collect();
    assert_eq!(ws.markers_before("last").await, expected);
    is_empty(&redis).await;
}

/// The owner hangs with a page in its hands, and comes back when another has taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_hangs_and_wakes_doubles_nothing() {
    let redis = RedisServer::start().await;
    let first = on(&redis).await;
    until("the first reads", PATIENCE, async || reads(&first).then_some(())).await;
    let second = on(&redis).await;
    let mut ws = client(&second, "alice").await;
    let mut writer = redis.client().await;
    for n in 0..1000 {
        add_event(&mut writer, &event("alice", n)).await;
        if n == 500 {
            first.process.signal(nix::sys::signal::Signal::SIGSTOP);
        }
    }
    until("the second reads", TAKEOVER, async || reads(&second).then_some(())).await;
    for n in 1000..1500 {
        add_event(&mut writer, &event("alice", n)).await;
        if n == 1100 {
            first.process.signal(nix::sys::signal::Signal::SIGCONT);
        }
    }
    add_event(&mut writer, &event("alice", "last")).await;
    let expected: Vec<String> = (0..1500).map(|n| n.to_string()).collect();
    assert_eq!(ws.markers_before("last").await, expected);
    is_empty(&redis).await;
    until("one of them reads", PATIENCE, async || (!reads(&first) && reads(&second)).then_some(()))
        .await;
}

/// A replica that leaves in order hands the stream over at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_readers_take_turns() {
    let redis = RedisServer::start().await;
    let (first, second) = (on(&redis).await, on(&redis).await);
    until("one reads", PATIENCE, async || (reads(&first) || reads(&second)).then_some(())).await;
    let (owner, other) = if reads(&first) { (first, second) } else { (second, first) };
    let mut ws = client(&other, "alice").await;
    let mut writer = redis.client().await;
    for n in 0..400 {
        add_event(&mut writer, &event("alice", n)).await;
        if n == 200 {
            owner.process.signal(nix::sys::signal::Signal::SIGTERM);
        }
    }
    owner.process.end(PATIENCE).await;
    until("the other reads", Duration::from_secs(3), async || reads(&other).then_some(())).await;
    add_event(&mut writer, &event("alice", "last")).await;
    let expected: Vec<String> = (0..400).map(|n| n.to_string()).collect();
    assert_eq!(ws.markers_before("last").await, expected);
    is_empty(&redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_dropped_from_the_old_end_and_counted() {
    let redis = RedisServer::start().await;
    let mut writer = redis.client().await;
    for n in 0..1000 {
        add_event(&mut writer, &event("alice", n)).await;
    }
    let replica = reading().set("publish_stream.max_messages", "100").redis(&redis).spawn().await;
    is_empty(&redis).await;
    let labels = [("reason", "publish_trimmed")];
    replica
        .metric("messages_dropped_total", &labels, PATIENCE, |now| (now - 900.0).abs() < 0.1)
        .await;
    let labels = [("target", "user"), ("result", "accepted")];
    replica
        .metric("events_published_total", &labels, PATIENCE, |now| (now - 100.0).abs() < 0.1)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgot_everything_is_read_again() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    let mut ws = client(&replica, "alice").await;
    let mut writer = redis.client().await;
    for mark in ["one", "two", "three"] {
        add_event(&mut writer, &event("alice", mark)).await;
        ws.event(mark).await;
        is_empty(&redis).await;
        writer.words("FLUSHALL").await;
    }
}

/// Redis hangs and wakes: what cannot be known is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_delays_and_doubles_nothing() {
    let redis = RedisServer::start().await;
    let replica = on(&redis).await;
    until("it reads", PATIENCE, async || reads(&replica).then_some(())).await;
    let mut ws = client(&replica, "alice").await;
    let mut writer = redis.client().await;
    for n in 0..3 {
        for m in 0..200 {
            add_event(&mut writer, &event("alice", n * 200 + m)).await;
        }
        redis.freeze();
        replica.metric("redis_up", &[("role", "publisher")], PATIENCE, |up| up < 0.5).await;
        redis.thaw();
        replica.becomes("/readyz", 200, PATIENCE).await;
    }
    add_event(&mut writer, &event("alice", "last")).await;
    is_empty(&redis).await;
    let got = ws.markers_before("last").await;
    assert!(tally(got.iter()).values().all(|count| *count == 1), "something came twice: {got:?}");
    let expected: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    assert_eq!(got, expected);
}

/// The rights that the README names for the streams are enough, beside those that all need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_in_the_readme_are_enough() {
    let readme = include_str!("../../README.md");
    let rule = readme.lines().find(|line| line.starts_with("ACL SETUSER")).expect("a rule");
    let more = readme.split('`').find(|text| text.starts_with("+xgroup|create")).expect("rights");
    let redis = RedisServer::start().await;
    let mut writer = redis.client().await;
    writer.words(&format!("{} {more}", rule.replace("PASSWORD", "hush"))).await;
    let builder = reading().set("inbound.enabled", "true");
    let builder = builder.redis_at(&format!("redis://belfry:hush@{}/0", redis.address()));
    let replica = builder.spawn().await;
    let mut ws = client(&replica, "alice").await;
    ws.send(r#"{"type":"hello"}"#);
    add_event(&mut writer, &event("alice", "one")).await;
    ws.event("one").await;
    is_empty(&redis).await;
    replica.metric_is("messages_forwarded_total", 1.0, PATIENCE).await;
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    replica.process.end(PATIENCE).await;
    assert_eq!(writer.words("EXISTS ws:publish:owner").await.int(), 0);
    let refused = redis.cli(&["ACL", "LOG"]);
    assert!(!refused.contains("publish") && !refused.contains("inbound"), "{refused}");
}

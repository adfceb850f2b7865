//! How streams end: with a goodbye, in time, and for readers that take nothing, at all.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::{
    sessions::{self, PAGE, set, with_sessions},
    support::{
        PATIENCE,
        app::{Builder, Replica},
        client::Dial,
        jwt::{Jwt, now, token},
        redis::RedisServer,
        sse::{Sse, SseEnd},
        tab::{Tab, answer, for_all, for_user, put, with},
        until,
    },
};

fn dial(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).sse().query(&token(user))
}

#[track_caller]
fn is_end(end: &SseEnd, code: u64, reason: &str) {
    assert!(end.whole, "cut off: {end:?}");
    assert_eq!((end.code(), end.reason()), (code, reason), "{end:?}");
    let goodbye = end.goodbye.as_ref().expect("a goodbye");
    assert!(goodbye.get("retry_after_ms").is_some(), "{goodbye}");
}

/// `null`: do not come back.
#[track_caller]
fn is_final(end: &SseEnd) {
    let goodbye = end.goodbye.as_ref().expect("a goodbye");
    assert!(goodbye["retry_after_ms"].is_null(), "{goodbye}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_sigterm_ends_streams_with_a_goodbye() {
    let replica =
        Builder::production().set("drain.delay", "300ms").set("drain.spread", "2s").spawn().await;
    let mut open = Vec::new();
    for n in 0..50 {
        open.push(Sse::open(&dial(&replica, &format!("user-{n}"))).await);
    }
    let start = Instant::now();
    replica.process.signal(Signal::SIGTERM);
    let mut waits = BTreeSet::new();
    let mut last = start;
    for sse in &mut open {
        let end = sse.end(PATIENCE).await;
        is_end(&end, 1012, "restart");
        let goodbye = end.goodbye.as_ref().expect("a goodbye");
        waits.insert(goodbye["retry_after_ms"].as_u64().expect("a time to come back"));
        last = last.max(end.at);
        // A browser without code of ours waits this long.
        assert!(sse.retry().is_some_and(|wait| wait >= 100), "{:?}", sse.retry());
    }
    assert!(waits.len() > 10, "everyone is sent back at the same moment: {waits:?}");
    let span = last - start;
    assert!(span >= Duration::from_millis(800), "not spread: {span:?}");
    assert!(span <= Duration::from_millis(4_300), "too late: {span:?}");
    let status = replica.process.end(Duration::from_secs(8)).await;
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_a_stalled_reader_is_cut_and_costs_only_itself() {
    let replica = Builder::production().set("limits.queue_bytes", "256KiB").spawn().await;
    let mut healthy = Tab::open(&dial(&replica, "healthy")).await;
    let mut stuck = Vec::new();
    for n in 0..20 {
        let sse = Sse::narrow(&dial(&replica, &format!("stuck-{n}")), 4_096).await;
        sse.reads(false);
        stuck.push(sse);
    }
    replica.metric_is("connections", 21.0, PATIENCE).await;
    let before = replica.process.rss();
    let mut highest = before;
    let event = with(for_all(&"x".repeat(60_000)), "transient", true);
    let mut sent = 0;
    let mut seen = 0;
    until("all of them are cut", Duration::from_secs(60), async || {
        for _ in 0..5 {
            answer(&replica, &event).await;
            sent += 1;
        }
        while seen < sent {
            healthy.text(PATIENCE).await;
            seen += 1;
        }
        highest = highest.max(replica.process.rss());
        let cut = replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
        (cut > 19.5).then_some(())
    })
    .await;
    let limit = 20 * 256 + 32 * 1024;
    assert!(highest - before <= limit, "grew by {} KiB", highest - before);
    replica.metric_is("connections", 1.0, PATIENCE).await;
    replica.metric_is("queue_bytes", 0.0, PATIENCE).await;
    put(&replica, &for_user("healthy", "last")).await;
    healthy.before("last").await;
    drop(stuck);
}

/// Who reads again is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_a_reader_that_comes_back_in_time_is_told() {
    let replica = Builder::production().set("limits.queue_bytes", "128KiB").spawn().await;
    let mut sse = Sse::narrow(&dial(&replica, "slow"), 4_096).await;
    sse.reads(false);
    let event = with(for_user("slow", &"x".repeat(60_000)), "transient", true);
    until("it is cut", Duration::from_secs(60), async || {
        answer(&replica, &event).await;
        let cut = replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
        (cut > 0.5).then_some(())
    })
    .await;
    sse.reads(true);
    let end = sse.end(PATIENCE).await;
    is_end(&end, 1013, "slow_consumer");
    let goodbye = end.goodbye.as_ref().expect("a goodbye");
    assert!(goodbye["retry_after_ms"].is_u64(), "{goodbye}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a18_a_token_ends_and_with_it_the_stream() {
    let replica = Builder::production().set("auth.jwt.leeway", "1s").spawn().await;
    let exp = now() + 3;
    let jwt = Jwt::of("alice").claim("exp", exp).sign();
    let roads = [Dial::to(&replica).sse().query(&jwt), Dial::to(&replica).sse().bearer(&jwt)];
    let mut open = Vec::new();
    for road in &roads {
        let mut sse = Sse::open(road).await;
        let word = sse.word("belfry.token_expiring", PATIENCE).await;
        let left = word["expires_in_ms"].as_u64().expect("a number");
        assert!((1..=4_100).contains(&left), "{word}");
        open.push(sse);
    }
    put(&replica, &for_user("alice", "in time")).await;
    for sse in &mut open {
        sse.through("in time").await;
        let end = sse.end(Duration::from_secs(10)).await;
        is_end(&end, 4401, "token_expired");
        assert!((exp..=exp + 4).contains(&now()), "ended {} s after exp", now() - exp);
    }
    replica.metric_is("connections", 0.0, PATIENCE).await;
    for road in &roads {
        let reply = Sse::try_connect(road).await.err().expect("the token is over");
        assert_eq!(reply.status, 401, "{reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_gone_ends_the_stream() {
    let redis = RedisServer::start().await;
    set(&redis, "good", &json!({"user_id": "alice"})).await;
    let builder = with_sessions(&redis).set("auth.session.recheck", "300ms");
    let replica = sessions::spawn(builder).await;
    let dial = Dial::to(&replica).sse().header("Cookie", "session_id=good").origin(PAGE);
    let mut sse = Sse::open(&dial).await;
    assert_eq!(redis.cli(&["DEL", "session:good"]), "1");
    let end = sse.end(Duration::from_secs(5)).await;
    is_end(&end, 4401, "session_ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_of_a_user_goes_whatever_its_road() {
    let replica = Builder::production().set("limits.connections_per_user", "2").spawn().await;
    let ws = || Dial::to(&replica).query(&token("alice"));
    let mut first = Sse::open(&ws().sse()).await;
    let mut second = ws().open().await;
    let mut third = Sse::open(&ws().sse()).await;
    let end = first.end(PATIENCE).await;
    is_end(&end, 4409, "replaced");
    is_final(&end);
    // A page without code of ours would come back and replace the next one.
    assert!(first.retry().is_some_and(|wait| wait >= 3_600_000), "{:?}", first.retry());
    let fourth = ws().open().await;
    let end = second.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (4409, "replaced"), "{end:?}");
    put(&replica, &for_user("alice", "still")).await;
    third.through("still").await;
    drop(fourth);
}

/// A client that goes is forgotten, also in the middle of a stream that says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h08_a_client_that_goes_is_forgotten() {
    let replica = Replica::start().await;
    let mut open = Vec::new();
    for n in 0..20 {
        open.push(Sse::open(&dial(&replica, &format!("user-{n}"))).await);
    }
    replica.metric_is("connections", 20.0, PATIENCE).await;
    let start = Instant::now();
    drop(open);
    replica.metric_is("connections", 0.0, PATIENCE).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

//! Consumers that read slowly or not at all: they cost a bounded amount, and only themselves.

use tokio::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, Ws},
    jwt::token,
    percentile,
    proxy::{Flow, Proxy},
    raw::{CLOSE, Raw, TEXT},
    until,
};

/// An event whose frame is about `bytes` long, with a number in it.
fn numbered(to: &Value, n: usize, bytes: usize) -> Value {
    json!({"to": to, "type": "bulk", "data": {"n": n, "pad": "x".repeat(bytes)}})
}

/// A client that never reads, whose kernel takes little in.
async fn stalled(replica: &Replica, user: &str) -> Raw {
    Raw::narrow(&Dial::to(replica).query(&token(user)), 4096).await.welcome().await
}

async fn slow_closes(replica: &Replica) -> f64 {
    replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s01_one_stalled_reader_and_many_healthy() {
    let replica = Replica::start().await;
    let mut healthy = Vec::new();
    for index in 0..50 {
        healthy.push(Dial::to(&replica).query(&token(&format!("user-{index}"))).open().await);
    }
    let mut stuck = stalled(&replica, "stuck").await;
    let events = 2_000;
    let reading: Vec<_> = healthy
        .into_iter()
        .map(|mut ws| {
            tokio::spawn(async move {
                let seen = ws.timed_through("\"n\":1999,").await;
                (seen.into_iter().map(|(at, _)| at).collect::<Vec<_>>(), ws)
            })
        })
        .collect();
    let mut sent = Vec::new();
    for n in 0..events {
        sent.push(Instant::now());
        replica.event(&numbered(&json!({"broadcast": true}), n, 4_096)).await;
    }
    let (mut latencies, mut open) = (Vec::new(), Vec::new());
    for task in reading {
        let (times, ws) = task.await.expect("all of them");
        open.push(ws);
        assert_eq!(times.len(), events, "a healthy reader missed some");
        latencies.extend(times.iter().zip(&sent).map(|(at, sent)| at.duration_since(*sent)));
    }
    let p99 = percentile(&mut latencies, 0.99);
    assert!(p99 < Duration::from_millis(500), "p99 {p99:?}");
    replica.metric_is("connections", 50.0, PATIENCE).await;
    assert!((slow_closes(&replica).await - 1.0).abs() < f64::EPSILON);
    // 8 MB were published; what the stalled one finds is a part without a hole.
    let end = stuck.reader.end(PATIENCE).await;
    assert!(end.texts.len() < events);
    for (n, text) in end.texts.iter().enumerate() {
        assert!(text.contains(&format!("\"n\":{n},")), "a hole before {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s02_memory_is_bounded_per_connection() {
    let replica = Builder::production().set("limits.queue_bytes", "256KiB").spawn().await;
    let readers = 100;
    let mut stuck = Vec::new();
    for index in 0..readers {
        stuck.push(stalled(&replica, &format!("stuck-{index}")).await);
    }
    replica.metric_is("connections", 100.0, PATIENCE).await;
    let before = replica.process.rss();
    let mut highest = before;
    // Each reader is owed 120 MB in the end; they are cut long before.
    for n in 0..500 {
        let event = numbered(&json!({"broadcast": true}), n, 60_000);
        tokio::join!(
            replica.event(&event),
            replica.event(&event),
            replica.event(&event),
            replica.event(&event),
        );
        if n % 5 == 0 {
            highest = highest.max(replica.process.rss());
        }
    }
    let limit = readers * 256 + 64 * 1024;
    assert!(highest - before <= limit, "grew from {before} to {highest} KiB, limit {limit}");
    replica.metric_is("connections", 0.0, PATIENCE).await;
    assert!((slow_closes(&replica).await - 100.0).abs() < f64::EPSILON);
    replica.metric_is("queue_bytes", 0.0, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s03_a_slow_but_steady_reader_is_not_cut_for_a_short_burst() {
    let replica = Builder::production().set("limits.queue_bytes", "1MiB").spawn().await;
    let proxy = Proxy::start(replica.public).await;
    let mut ws = Dial::at(proxy.address).query(&token("alice")).open().await;
    proxy.flow(Flow::Pass, Flow::Slow(100_000));
    for n in 0..60 {
        replica.event(&numbered(&json!({"user": "alice"}), n, 8_000)).await;
    }
    let events = ws.through("\"n\":59,").await;
    assert_eq!(events.len(), 60);
    assert!(slow_closes(&replica).await.abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_no_silent_drop() {
    let replica = Builder::production().set("limits.queue_bytes", "64KiB").spawn().await;
    let mut readers = Vec::new();
    for index in 0..5 {
        readers.push(stalled(&replica, &format!("slow-{index}")).await);
    }
    // Publish until every one of them was given up.
    let mut published = 0;
    until("all five are cut", Duration::from_secs(60), async || {
        for _ in 0..20 {
            replica.event(&numbered(&json!({"broadcast": true}), published, 16_000)).await;
            published += 1;
        }
        ((slow_closes(&replica).await - 5.0).abs() < f64::EPSILON).then_some(())
    })
    .await;
    let mut informed = 0;
    for mut raw in readers {
        let mut next = 0;
        let mut goodbye = None;
        let code = loop {
            match raw.reader.frame(PATIENCE).await {
                None => break None,
                Some(frame) if frame.opcode == CLOSE => break Some(frame.code()),
                Some(frame) if frame.opcode == TEXT => {
                    let text: Value = serde_json::from_str(&frame.text()).expect("JSON");
                    if text["type"] == "bulk" {
                        assert_eq!(text["data"]["n"], next, "a hole");
                        next += 1;
                    } else if text["type"] == "belfry.goodbye" {
                        goodbye = Some(text);
                    }
                }
                Some(_) => {}
            }
        };
        assert!(next < published, "nothing was dropped, so nothing was tested");
        if let Some(code) = code {
            assert_eq!(code, 1013);
            let goodbye = goodbye.expect("a goodbye before the Close");
            assert_eq!(goodbye["reason"], "slow_consumer");
            assert!(goodbye["retry_after_ms"].is_u64(), "{goodbye}");
            informed += 1;
        }
    }
    // They read again within the 5 s that the Close is given, so they are told.
    assert_eq!(informed, 5, "readers that came back were not told why");
    replica.metric_is("connections", 0.0, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_a_reader_that_never_comes_back_is_reset() {
    let replica = Builder::production().set("limits.queue_bytes", "64KiB").spawn().await;
    let mut ws: Ws = Dial::to(&replica).query(&token("other")).open().await;
    let raw = stalled(&replica, "gone").await;
    let mut n = 0;
    until("it is cut", Duration::from_secs(60), async || {
        for _ in 0..20 {
            replica.event(&numbered(&json!({"user": "gone"}), n, 60_000)).await;
            n += 1;
        }
        (slow_closes(&replica).await > 0.0).then_some(())
    })
    .await;
    replica.metric_is("connections", 1.0, Duration::from_secs(8)).await;
    replica.to_user("other", "fine").await;
    ws.event("fine").await;
    drop(raw);
}

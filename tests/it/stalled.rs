//! Readers that take nothing: what they cost others, how long they stay, and what they get when
//! they come back.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::token,
    percentile,
    raw::{CLOSE, Raw, TEXT},
    redis::RedisServer,
    sse::{Seen, Sse},
    tab::{Cursor, Step, Tab, member, quick},
    until,
};

/// By then a reader that takes nothing has to be gone, with its socket.
const GONE: Duration = Duration::from_secs(45);
/// Readers of each transport.
const HEALTHY: usize = 20;
const STUCK: usize = 10;
/// Broadcasts of each half, and between two of them.
const EVENTS: usize = 150;
const PAUSE: Duration = Duration::from_millis(20);
const BYTES: usize = 8 * 1024;

fn dial(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).query(&token(user))
}

fn numbered(n: usize) -> Value {
    let data = json!({"n": n, "pad": "x".repeat(BYTES)});
    json!({"to": {"broadcast": true}, "type": "bulk", "data": data})
}

fn number(text: &str) -> Option<usize> {
    let frame: Value = serde_json::from_str(text).expect("JSON");
    frame["data"]["n"].as_u64().and_then(|n| usize::try_from(n).ok())
}

/// Sockets that a process holds.
fn sockets(replica: &Replica) -> usize {
    let folder = format!("/proc/{}/fd", replica.process.pid());
    std::fs::read_dir(folder)
        .expect("a running process")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// How long events took to healthy readers, from the request to the receipt.
async fn half(replica: &Replica, readers: &mut [Tab], from: usize) -> Vec<Duration> {
    let mut sent = Vec::new();
    for n in from..from + EVENTS {
        sent.push(Instant::now());
        replica.event(&numbered(n)).await;
        sleep(PAUSE).await;
    }
    let mut samples = Vec::new();
    for tab in readers {
        let mut next = from;
        while next < from + EVENTS {
            let (at, text) = tab.timed(PATIENCE).await;
            assert_eq!(number(&text), Some(next), "{text:.80}");
            samples.push(at.duration_since(sent[next - from]));
            next += 1;
        }
    }
    samples
}

/// What a WebSocket found in its buffers after it was cut, up to its end.
async fn rest(raw: &mut Raw, cursor: &mut Cursor) -> usize {
    let mut count = 0;
    while let Some(frame) = raw.reader.frame(PATIENCE).await {
        if frame.opcode == CLOSE {
            assert_eq!(frame.code(), 1013);
            break;
        }
        if frame.opcode == TEXT {
            let value: Value = serde_json::from_str(&frame.text()).expect("JSON");
            count += usize::from(cursor.take(&value) == Step::Next);
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_cost_others_nothing_are_gone_in_time_and_resume() {
    let redis = RedisServer::start().await;
    let builder = Builder::production()
        .set("limits.queue_bytes", "128KiB")
        .set("history.events", "1000")
        .set("history.bytes", "32MiB");
    let replica = quick(builder, &redis).spawn().await;
    let mut readers = Vec::new();
    for n in 0..HEALTHY {
        readers.push(Tab::open(&dial(&replica, &format!("ws-{n}"))).await);
        readers.push(Tab::open(&dial(&replica, &format!("sse-{n}")).sse()).await);
    }
    let before = sockets(&replica);
    let mut without = half(&replica, &mut readers, 0).await;
    let mut raws = Vec::new();
    let mut streams = Vec::new();
    for n in 0..STUCK {
        let user = format!("stuck-{n}");
        raws.push(Raw::narrow(&dial(&replica, &user), 4_096).await.welcome().await);
        let sse = Sse::narrow(&dial(&replica, &user).sse(), 4_096).await;
        sse.reads(false);
        let begin = Cursor::parse(&sse.last_event_id());
        streams.push((sse, begin));
    }
    replica.metric_is("connections", (2 * (HEALTHY + STUCK)) as f64, PATIENCE).await;
    let stalled = Instant::now();
    let mut with = half(&replica, &mut readers, EVENTS).await;
    let (without, with) = (percentile(&mut without, 0.99), percentile(&mut with, 0.99));
    println!("p99 without stalled readers {without:?}, with {with:?}");
    assert!(with < without * 4 + Duration::from_millis(100), "{without:?} became {with:?}");
    // None of them reads, ever.
    let left = GONE.saturating_sub(stalled.elapsed());
    replica.metric_is("connections", (2 * HEALTHY) as f64, left).await;
    let slow = [("cause", "slow_consumer")];
    replica.metric("closes_total", &slow, PATIENCE, |n| n > (2 * STUCK) as f64 - 0.5).await;
    until("their sockets are gone", GONE.saturating_sub(stalled.elapsed()), async || {
        // One more for the requests of this test.
        (sockets(&replica) <= before + 1).then_some(())
    })
    .await;
    println!("gone after {:?}", stalled.elapsed());
    replica.metric_is("queue_bytes", 0.0, PATIENCE).await;
    // Everything, over either transport, from where they really are.
    for (n, (mut raw, (mut sse, mut cursor))) in raws.into_iter().zip(streams).enumerate() {
        let mut seen = [rest(&mut raw, &mut cursor).await, 0];
        sse.reads(true);
        while let Seen::Message(message) = sse.next(PATIENCE).await.1 {
            seen[1] += usize::from(member(&message.json(), "id").is_some());
        }
        let user = dial(&replica, &format!("stuck-{n}"));
        let last = sse.last_event_id();
        for (road, cursor, seen) in
            [(user.clone(), cursor.to_string(), seen[0]), (user.sse(), last, seen[1])]
        {
            assert!(seen < EVENTS, "nothing was missed, so nothing was tested");
            let mut tab = Tab::resume(&road, &cursor).await;
            tab.is_whole();
            let replay = tab.replay().await;
            let got: Vec<_> = replay.iter().map(|frame| frame["data"]["n"].as_u64()).collect();
            let wanted: Vec<_> =
                (EVENTS + seen..2 * EVENTS).map(|n| u64::try_from(n).ok()).collect();
            assert_eq!(got, wanted, "stuck-{n} after {seen}");
        }
    }
}

/// Nothing is queued for it, so no queue can be full: what ends it is that its socket takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stall_in_a_replay_are_gone_in_time_and_resume() {
    let redis = RedisServer::start().await;
    let builder = Builder::production().set("history.events", "1000").set("history.bytes", "32MiB");
    let replica = quick(builder, &redis).spawn().await;
    let road = dial(&replica, "alice");
    let begin = Tab::open(&road).await.cursor;
    for n in 0..EVENTS {
        let mut event = numbered(n);
        event["data"]["pad"] = json!("x".repeat(60_000));
        replica.event(&event).await;
    }
    replica.metric_is("connections", 0.0, PATIENCE).await;
    let before = sockets(&replica);
    let raw = Raw::narrow(&road.clone().since(&begin.to_string()), 4_096).await.welcome().await;
    let sse = Sse::narrow(&road.clone().sse().since(&begin.to_string()), 4_096).await;
    sse.reads(false);
    replica.metric_is("connections", 2.0, PATIENCE).await;
    replica.metric_is("connections", 0.0, GONE).await;
    until("their sockets are gone", PATIENCE, async || {
        (sockets(&replica) <= before + 1).then_some(())
    })
    .await;
    drop((raw, sse));
    for road in [road.clone(), road.sse()] {
        let mut tab = Tab::resume(&road, &begin.to_string()).await;
        tab.is_whole();
        let replay = tab.replay().await;
        let got: Vec<_> = replay.iter().map(|frame| frame["data"]["n"].as_u64()).collect();
        assert_eq!(got, (0..EVENTS).map(|n| u64::try_from(n).ok()).collect::<Vec<_>>());
    }
}

//! Replays that are larger than what may wait for a connection, and readers that were cut.

use serde_json::{Value, json};
use tokio::time::Duration;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::token,
    proxy::{Flow, Proxy},
    raw::{CLOSE, Raw, TEXT},
    sse::{Seen, Sse},
    tab::{Cursor, Kind, Step, Tab, answer, for_all, for_user, marker, member, put, split, with},
    until,
};

on_both!(
    a_replay_larger_than_the_queue_at_full_speed,
    a_replay_larger_than_the_queue_for_a_slow_reader,
    events_larger_than_the_queue,
    a_replay_that_stalls_half_way,
    s05_a_slow_consumer_that_was_cut_resumes_everything,
);

/// Little room for what waits: 16 KiB, 16 events.
fn tight() -> Builder {
    Builder::production().set("limits.queue_bytes", "16KiB").set("limits.queue_events", "16")
}

/// An event with a number, about so many bytes long.
fn numbered(to: &Value, n: usize, bytes: usize) -> Value {
    json!({"to": to, "type": "test", "data": {"mk": n.to_string(), "pad": "x".repeat(bytes)}})
}

fn numbers(to: usize) -> Vec<String> {
    (0..to).map(|n| n.to_string()).collect()
}

/// Keeps 120 events for alice and 60 for all; 720 KiB.
async fn fill(replica: &Replica) {
    let (alice, all) = (json!({"user": "alice"}), json!({"broadcast": true}));
    for n in 0..120 {
        put(replica, &numbered(&alice, n, 4_096)).await;
        if n < 60 {
            put(replica, &numbered(&all, n, 4_096)).await;
        }
    }
}

/// Reads everything up to these numbers; the markers of own and of everyone's.
async fn read(tab: &mut Tab, own: usize, all: usize) -> [Vec<String>; 2] {
    let mut got = [Vec::new(), Vec::new()];
    while got[0].len() < own || got[1].len() < all {
        let frame = tab.next().await;
        if let Some(id) = member(&frame, "id") {
            let channel = usize::from(split(id).0 == "b");
            got[channel].push(marker(&frame));
        }
    }
    got
}

async fn a_replay_larger_than_the_queue_at_full_speed(kind: Kind) {
    let place = kind.start(tight()).await;
    let dial = Dial::to(&place.replica).query(&token("alice"));
    let cursor = Tab::open(&dial).await.leave();
    fill(&place.replica).await;
    for dial in [dial.clone(), dial.sse()] {
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.is_whole();
        let replayed = tab.replay().await.len();
        assert_eq!(replayed, 180);
    }
    let cut = place.replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
    assert!(cut.abs() < f64::EPSILON, "{cut} were cut");
}

/// None of them fits beside another, nor into the half that a replay may take.
async fn events_larger_than_the_queue(kind: Kind) {
    for sse in [false, true] {
        let place = kind.start(tight()).await;
        let replica = &place.replica;
        let proxy = Proxy::start(replica.public).await;
        let cursor = Tab::open(&Dial::to(replica).query(&token("alice"))).await.leave();
        for n in 0..30 {
            put(replica, &numbered(&json!({"user": "alice"}), n, 20_000)).await;
        }
        proxy.flow(Flow::Pass, Flow::Slow(400_000));
        let dial = Dial::at(proxy.address).query(&token("alice"));
        let mut tab = Tab::resume(&if sse { dial.sse() } else { dial }, &cursor).await;
        tab.is_whole();
        let [own, _] = read(&mut tab, 30, 0).await;
        assert_eq!(own, numbers(30));
    }
}

async fn a_replay_larger_than_the_queue_for_a_slow_reader(kind: Kind) {
    for sse in [false, true] {
        let place = kind.start(tight()).await;
        let replica = &place.replica;
        let proxy = Proxy::start(replica.public).await;
        let cursor = Tab::open(&Dial::to(replica).query(&token("alice"))).await.leave();
        fill(replica).await;
        proxy.flow(Flow::Pass, Flow::Slow(400_000));
        let dial = Dial::at(proxy.address).query(&token("alice"));
        let mut tab = Tab::resume(&if sse { dial.sse() } else { dial }, &cursor).await;
        tab.is_whole();
        // Far more than may wait, while the replay goes on.
        let publishing = async {
            for n in 0..80 {
                put(replica, &numbered(&json!({"user": "alice"}), 120 + n, 2_000)).await;
                if n % 4 == 0 {
                    put(replica, &numbered(&json!({"broadcast": true}), 60 + n / 4, 2_000)).await;
                }
            }
        };
        let ([own, all], ()) = tokio::join!(read(&mut tab, 200, 80), publishing);
        assert_eq!(own, numbers(200));
        assert_eq!(all, numbers(80));
        let cut = replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
        assert!(cut.abs() < f64::EPSILON, "{cut} were cut");
    }
}

/// The texts of a raw connection up to its end, and the code of its Close.
async fn to_the_end(raw: &mut Raw) -> (Vec<Value>, Option<u16>) {
    let mut frames = Vec::new();
    loop {
        match raw.reader.frame(PATIENCE).await {
            None => return (frames, None),
            Some(frame) if frame.opcode == CLOSE => return (frames, Some(frame.code())),
            Some(frame) if frame.opcode == TEXT => {
                frames.push(serde_json::from_str(&frame.text()).expect("JSON"));
            }
            Some(_) => {}
        }
    }
}

/// A reader that takes nothing for a while is owed everything, and nothing is held for it.
async fn a_replay_that_stalls_half_way(kind: Kind) {
    let place = kind.start(tight()).await;
    let replica = &place.replica;
    let dial = Dial::to(replica).query(&token("alice"));
    let mut cursor = Tab::open(&dial).await.cursor;
    fill(replica).await;
    let mut raw = Raw::narrow(&dial.since(&cursor.to_string()), 4_096).await.welcome().await;
    for n in 120..200 {
        put(replica, &numbered(&json!({"user": "alice"}), n, 2_000)).await;
    }
    let (mut own, mut all) = (Vec::new(), 0);
    while own.len() < 200 || all < 60 {
        let frame = raw.reader.frame(PATIENCE).await.expect("no end");
        assert_ne!(frame.opcode, CLOSE, "closed with {} after {}", frame.code(), own.len());
        if frame.opcode != TEXT {
            continue;
        }
        let frame: Value = serde_json::from_str(&frame.text()).expect("JSON");
        if cursor.take(&frame) == Step::Next {
            if split(member(&frame, "id").expect("an id")).0 == "u" {
                own.push(marker(&frame));
            } else {
                all += 1;
            }
        }
    }
    assert_eq!(own, numbers(200));
}

async fn s05_a_slow_consumer_that_was_cut_resumes_everything(kind: Kind) {
    let place = kind.start(Builder::production().set("limits.queue_bytes", "256KiB")).await;
    let replica = &place.replica;
    let dial = Dial::to(replica).query(&token("alice"));
    let mut cursor = Tab::open(&dial).await.cursor;
    let mut raw = Raw::narrow(&dial, 4_096).await.welcome().await;
    let mut sse = Sse::narrow(&dial.clone().sse(), 4_096).await;
    let begin = Cursor::parse(&sse.last_event_id());
    assert_eq!(begin, cursor);
    sse.reads(false);
    // What is kept between large ones that are not, until both readers were given up.
    let filler = with(for_user("alice", &"x".repeat(60_000)), "transient", true);
    let mut kept = 0;
    until("both are cut", Duration::from_secs(60), async || {
        put(replica, &for_user("alice", &kept.to_string())).await;
        put(replica, &for_all(&kept.to_string())).await;
        kept += 1;
        for _ in 0..5 {
            answer(replica, &filler).await;
        }
        let cut = replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
        (cut > 1.5).then_some(())
    })
    .await;
    for n in kept..kept + 5 {
        put(replica, &for_user("alice", &n.to_string())).await;
        put(replica, &for_all(&n.to_string())).await;
    }
    kept += 5;
    assert!(kept < 290, "more than is remembered: {kept}");
    let (frames, code) = to_the_end(&mut raw).await;
    assert!(code.is_none_or(|code| code == 1013), "{code:?}");
    let mut got = [0, 0];
    for frame in frames {
        let step = cursor.take(&frame);
        assert!(matches!(step, Step::Next | Step::None), "{step:?}: {frame}");
        if step == Step::Next {
            let channel = usize::from(split(member(&frame, "id").expect("an id")).0 == "b");
            assert_eq!(marker(&frame), got[channel].to_string());
            got[channel] += 1;
        }
    }
    assert!(got[0] < kept, "nothing was missed, so nothing was tested");
    let mut tab = Tab::resume(&dial, &cursor.to_string()).await;
    tab.is_whole();
    let [own, all] = read(&mut tab, kept - got[0], kept - got[1]).await;
    assert_eq!(own, numbers(kept)[got[0]..]);
    assert_eq!(all, numbers(kept)[got[1]..]);
    // The other road: the position is the browser's.
    sse.reads(true);
    let mut last = String::new();
    let mut got = [0, 0];
    while let Seen::Message(message) = sse.next(PATIENCE).await.1 {
        if let Some(id) = member(&message.json(), "id") {
            got[usize::from(split(id).0 == "b")] += 1;
        }
        last = message.id;
    }
    let last = if last.is_empty() { begin.to_string() } else { last };
    let mut tab = Tab::resume(&dial.sse(), &last).await;
    tab.is_whole();
    let [own, all] = read(&mut tab, kept - got[0], kept - got[1]).await;
    assert_eq!(own, numbers(kept)[got[0]..]);
    assert_eq!(all, numbers(kept)[got[1]..]);
}

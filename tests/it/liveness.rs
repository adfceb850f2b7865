//! Who is still there: the dead are found, the quiet are kept.

use tokio::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    PATIENCE,
    app::{Builder, Process, Replica, belfry},
    client::{Dial, Seen},
    jwt::token,
    proxy::{Flow, Proxy},
    raw::{CLOSE, PING, PONG, Raw, TEXT},
};

const BEAT: Duration = Duration::from_secs(1);

async fn beating() -> Replica {
    Builder::production().set("limits.heartbeat", "1s").spawn().await
}

async fn raw(replica: &Replica) -> Raw {
    Dial::to(replica).query(&token("alice")).raw().await.welcome().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_silent_peers_are_told_and_closed() {
    let replica = beating().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        silent.push((start, raw(&replica).await));
    }
    for (start, mut raw) in silent {
        let (mut pings, mut asked, mut goodbye) = (0, 0, None);
        let code = loop {
            let frame = raw.reader.frame(Duration::from_secs(6)).await.expect("a Close first");
            match frame.opcode {
                PING => pings += 1,
                TEXT if frame.payload == br#"{"type":"ping"}"# => asked += 1,
                TEXT => goodbye = Some(frame.text()),
                CLOSE => break frame.code(),
                other => panic!("opcode {other}"),
            }
        };
        assert_eq!(code, 4408);
        assert!(pings >= 1 && asked >= 1, "closed without being asked: {pings} and {asked}");
        let goodbye: serde_json::Value =
            serde_json::from_str(&goodbye.expect("a goodbye")).expect("JSON");
        assert_eq!((&goodbye["code"], &goodbye["reason"]), (&4408.into(), &"no_pong".into()));
        assert!(start.elapsed() >= BEAT * 17 / 10, "{:?}", start.elapsed());
    }
    replica.metric_is("connections", 0.0, PATIENCE).await;
    replica.metric("closes_total", &[("cause", "no_pong")], PATIENCE, |n| n >= 20.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_half_open_peers_leave_the_registry() {
    let replica = beating().await;
    let proxy = Proxy::start(replica.public).await;
    // Behind a network that swallows everything, in processes that stand still, and plain
    // clients that do not read.
    let mut swallowed = Vec::new();
    for _ in 0..8 {
        swallowed.push(Dial::at(proxy.address).query(&token("alice")).open().await);
    }
    let mut unread = Vec::new();
    for _ in 0..8 {
        let ws = Dial::to(&replica).query(&token("alice")).open().await;
        unread.push(ws);
    }
    let mut stopped = Vec::new();
    for _ in 0..4 {
        let mut command = belfry();
        command.arg("listen").args(["--token", &token("alice")]);
        command.env("BELFRY_URL", format!("ws://{}", replica.public));
        stopped.push(Process::spawn(command));
    }
    let mut alive = Dial::to(&replica).query(&token("bob")).open().await;
    replica.metric_is("connections", 21.0, PATIENCE).await;
    // They live as long as they answer.
    tokio::time::sleep(BEAT * 3).await;
    replica.metric_is("connections", 21.0, Duration::ZERO).await;
    proxy.flow(Flow::Stall, Flow::Stall);
    for ws in &unread {
        ws.pause();
    }
    for process in &stopped {
        process.signal(Signal::SIGSTOP);
    }
    replica.metric_is("connections", 1.0, BEAT * 2 + Duration::from_secs(2)).await;
    replica.metric_is("users", 1.0, PATIENCE).await;
    alive.is_alive().await;
    drop(swallowed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h02_quiet_but_alive() {
    let replica = beating().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    assert_eq!(ws.welcome["heartbeat_ms"], 1_000);
    let start = Instant::now();
    let mut last = start;
    let (mut pings, mut words) = (0, 0);
    while start.elapsed() < BEAT * 8 {
        let (at, seen) = ws.next(BEAT * 2).await;
        assert!(at - last < BEAT + Duration::from_millis(900), "silent for {:?}", at - last);
        last = at;
        match seen {
            Seen::Ping => pings += 1,
            Seen::Text(text) if text == r#"{"type":"ping"}"# => words += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(pings >= 5 && words >= 5, "{pings} Pings and {words} pings in {:?}", start.elapsed());
    replica.to_user("alice", "still").await;
    ws.event("still").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_any_frame_counts_as_life() {
    let replica = beating().await;
    let frames: [(&str, u8, &[u8]); 6] = [
        ("text", 0x81, b"{\"hello\":1}"),
        ("text that is no JSON", 0x81, b"hm"),
        ("binary", 0x82, b"\x00\xff"),
        ("ping", 0x80 | PING, b"x"),
        ("unasked pong", 0x80 | PONG, b""),
        ("the word pong", 0x81, b"{\"type\":\"pong\"}"),
    ];
    let mut tasks = Vec::new();
    for (what, first, payload) in frames {
        let mut raw = raw(&replica).await;
        tasks.push(tokio::spawn(async move {
            let start = Instant::now();
            // Late by most of a heartbeat each time, and no Pong ever.
            while start.elapsed() < BEAT * 6 {
                raw.send(first, payload).await;
                tokio::time::sleep(BEAT * 7 / 10).await;
            }
            (what, raw)
        }));
    }
    // A long message in small pieces is life, too.
    let mut pieces = raw(&replica).await;
    tasks.push(tokio::spawn(async move {
        pieces.send(0x01, b"{\"a\":\"").await;
        let start = Instant::now();
        while start.elapsed() < BEAT * 6 {
            pieces.send(0x00, b"x").await;
            tokio::time::sleep(BEAT * 7 / 10).await;
        }
        pieces.send(0x80, b"\"}").await;
        ("pieces", pieces)
    }));
    for task in tasks {
        let (what, mut raw) = task.await.expect("no panic");
        println!("{what}");
        raw.is_alive().await;
    }
    replica.metric("closes_total", &[("cause", "no_pong")], PATIENCE, |n| n == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_data_makes_up_for_a_late_pong() {
    let replica = beating().await;
    let mut raw = raw(&replica).await;
    // Every Ping is answered more than one heartbeat late, but data comes before that is over.
    let start = Instant::now();
    let mut asked: Option<(Instant, Vec<u8>)> = None;
    let (mut sent, mut answered) = (false, 0);
    while start.elapsed() < BEAT * 8 {
        match raw.reader.try_frame(BEAT / 50).await {
            Ok(Some(frame)) if frame.opcode == PING => {
                asked.get_or_insert((Instant::now(), frame.payload));
            }
            Ok(Some(frame)) => assert_ne!(frame.opcode, CLOSE, "closed with {}", frame.code()),
            Ok(None) => panic!("gone"),
            Err(()) => {}
        }
        let Some((at, payload)) = &asked else { continue };
        if !sent && at.elapsed() >= BEAT * 6 / 10 {
            raw.send(0x81, b"{\"some\":\"data\"}").await;
            sent = true;
        }
        if at.elapsed() >= BEAT * 13 / 10 {
            raw.send(0x80 | PONG, payload).await;
            (asked, sent, answered) = (None, false, answered + 1);
        }
    }
    assert!(answered >= 3, "asked only {answered} times");
    raw.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h06_background_tabs_that_only_answer_pings() {
    let replica = beating().await;
    let mut tabs = Vec::new();
    for _ in 0..10 {
        tabs.push(Dial::to(&replica).query(&token("alice")).open().await);
    }
    // A page whose network layer does not pass protocol Pings on answers the word instead.
    let mut page = raw(&replica).await;
    let start = Instant::now();
    while start.elapsed() < BEAT * 7 {
        match page.reader.try_frame(BEAT).await {
            Ok(Some(frame)) if frame.opcode == TEXT => {
                page.send(0x81, b"{\"type\":\"pong\"}").await;
            }
            Ok(Some(frame)) => assert_eq!(frame.opcode, PING, "{frame:?}"),
            Ok(None) => panic!("gone"),
            Err(()) => {}
        }
    }
    page.is_alive().await;
    for ws in &mut tabs {
        ws.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h08_reset_and_end_of_file_are_seen_at_once() {
    let replica = Replica::start().await;
    let soon = Duration::from_secs(1);
    let open = async || {
        let mut raws = Vec::new();
        for _ in 0..10 {
            raws.push(raw(&replica).await);
        }
        replica.metric_is("connections", 10.0, PATIENCE).await;
        raws
    };
    for raw in open().await {
        raw.reset();
    }
    replica.metric_is("connections", 0.0, soon).await;
    drop(open().await);
    replica.metric_is("connections", 0.0, soon).await;
    let mut raws = open().await;
    for raw in &mut raws {
        raw.writer.shutdown().await.expect("open");
    }
    replica.metric_is("connections", 0.0, soon).await;
    drop(raws);
    // In the middle of a message, too.
    let mut raws = open().await;
    for raw in &mut raws {
        raw.write(&[0x81, 0x85, 1, 2]).await;
        raw.writer.shutdown().await.expect("open");
    }
    replica.metric_is("connections", 0.0, soon).await;
    drop(raws);
    // And a proper Close.
    for _ in 0..10 {
        let ws = Dial::to(&replica).query(&token("alice")).open().await;
        ws.send_message(Message::Ping("hm".into()));
        ws.close().await;
    }
    replica.metric_is("connections", 0.0, soon).await;
    replica.metric_is("users", 0.0, soon).await;
}

//! SIGTERM: not ready first, then a goodbye for everyone, then the exit.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::support::{PATIENCE, app::Builder, client::Dial, jwt::token, raw::Raw, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_sigterm_says_goodbye() {
    for (signal, delay) in [(Signal::SIGTERM, 1_000), (Signal::SIGINT, 0)] {
        let replica = Builder::production()
            .set("drain.delay", format!("{delay}ms"))
            .set("drain.spread", "2s")
            .spawn()
            .await;
        let mut tabs = Vec::new();
        for index in 0..100 {
            let user = format!("user-{index}");
            tabs.push(Dial::to(&replica).query(&token(&user)).open().await);
        }
        let start = Instant::now();
        replica.process.signal(signal);
        replica.becomes("/readyz", 503, Duration::from_millis(900)).await;
        assert_eq!(replica.get("/livez").await.status, 200);
        if delay > 0 {
            // Everything goes on until the router had time to notice.
            let mut late = Dial::to(&replica).query(&token("late")).open().await;
            replica.to_user("late", "in-time").await;
            late.event("in-time").await;
            tabs.push(late);
        }
        let refused = async {
            until("new connections are refused", PATIENCE, async || {
                match tokio::net::TcpStream::connect(replica.public).await {
                    Err(_) => Some(None),
                    Ok(probe) => {
                        drop(probe);
                        let dial = Dial::to(&replica).query(&token("later"));
                        dial.try_connect().await.err().map(Some)
                    }
                }
            })
            .await
        };
        let ends = async {
            let mut ends = Vec::new();
            for ws in &mut tabs {
                ends.push(ws.end(PATIENCE).await);
            }
            ends
        };
        let (refused, ends) = tokio::join!(refused, ends);
        if let Some(refusal) = refused {
            assert_eq!(refusal.status, 503, "{refusal:?}");
            assert!(refusal.retry_after.is_some(), "{refusal:?}");
        }
        let mut waits = BTreeSet::new();
        for end in &ends {
            assert_eq!((end.code, end.reason.as_str()), (1012, "restart"), "{end:?}");
            let goodbye = end.goodbye.as_ref().expect("a goodbye");
            waits.insert(goodbye["retry_after_ms"].as_u64().expect("a time to come back"));
        }
        assert!(waits.len() > 20, "everyone is sent back at the same moment: {waits:?}");
        let span = ends.iter().map(|end| end.at).max().expect("some").duration_since(start);
        assert!(span >= Duration::from_millis(delay + 500), "not spread: {span:?}");
        let status = replica.process.end(Duration::from_millis(delay + 2_000 + 8_000)).await;
        assert_eq!(status.code(), Some(0), "{status}");
        let took = start.elapsed();
        assert!(took < Duration::from_millis(delay + 2_000 + 4_000), "took {took:?}");
        // No second bears all of them.
        let mut per_half = [0; 16];
        for end in &ends {
            let at = end.at.duration_since(start);
            per_half[usize::try_from(at.as_millis() / 500).expect("small").min(15)] += 1;
        }
        assert!(per_half.iter().all(|count| *count <= 60), "{per_half:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_a_second_signal_exits_at_once() {
    let slow = || Builder::production().set("drain.delay", "60s").set("drain.spread", "60s");
    let replica = slow().spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    replica.process.signal(Signal::SIGTERM);
    replica.becomes("/readyz", 503, PATIENCE).await;
    ws.is_alive().await;
    let start = Instant::now();
    replica.process.signal(Signal::SIGTERM);
    replica.process.end(PATIENCE).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_with_nobody_connected_or_only_idle_connections() {
    let replica =
        Builder::production().set("drain.delay", "200ms").set("drain.spread", "20s").spawn().await;
    // Idle keep-alive connections, one that never spoke, and one peer that never reads.
    replica.get("/livez").await;
    let _idle = tokio::net::TcpStream::connect(replica.public).await.expect("accepted");
    let _idle = tokio::net::TcpStream::connect(replica.internal).await.expect("accepted");
    let start = Instant::now();
    replica.process.signal(Signal::SIGTERM);
    let status = replica.process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?} with nobody there", start.elapsed());
}

/// A machine that is busy elsewhere, which gives every task time to be overtaken.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let busy = Arc::new(AtomicBool::new(true));
        for _ in 0..4 {
            let busy = busy.clone();
            std::thread::spawn(move || while busy.load(Ordering::Relaxed) {});
        }
        Self(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_the_exit_does_not_cut_a_farewell() {
    for _ in 0..8 {
        // All leave at the same moment, and the process right after the last of them.
        let replica =
            Builder::production().set("drain.delay", "0s").set("drain.spread", "0s").spawn().await;
        let mut tabs = Vec::new();
        for index in 0..150 {
            tabs.push(Dial::to(&replica).query(&token(&format!("user-{index}"))).open().await);
        }
        for ws in &tabs {
            ws.send("{\"still\":\"sending\"}".repeat(20));
        }
        let busy = Busy::start();
        replica.process.signal(Signal::SIGTERM);
        let mut codes = Vec::new();
        for ws in &mut tabs {
            ws.send("{\"still\":\"sending\"}");
            codes.push(ws.end(PATIENCE).await.code);
        }
        drop(busy);
        let told = codes.iter().filter(|code| **code == 1012).count();
        assert_eq!(told, codes.len(), "only {told} of {} were told", codes.len());
        assert!(replica.process.end(PATIENCE).await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_a_peer_that_does_not_read_does_not_hold_the_exit() {
    let replica =
        Builder::production().set("drain.delay", "0s").set("drain.spread", "500ms").spawn().await;
    let dial = Dial::to(&replica).query(&token("stuck"));
    let stuck = Raw::narrow(&dial, 4096).await.welcome().await;
    for _ in 0..40 {
        let data = "x".repeat(5_000);
        replica.event(&json!({"to": {"user": "stuck"}, "type": "t", "data": data})).await;
    }
    let start = Instant::now();
    replica.process.signal(Signal::SIGTERM);
    let status = replica.process.end(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    drop(stuck);
}

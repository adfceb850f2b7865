//! Who comes in at what rate, and what a client may send.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica, api_key},
    client::{Dial, Refusal, Ws},
    jwt::token,
    percentile,
    raw::{PING, Raw, frame},
    tally, until,
};

/// A refusal by rate or number, for the caller to come back.
#[track_caller]
fn is_limit(refusal: &Refusal) {
    assert!(matches!(refusal.status, 429 | 503), "{refusal:?}");
    let after: u64 = refusal.retry_after.as_ref().expect("Retry-After").parse().expect("seconds");
    assert!((1..=60).contains(&after), "{refusal:?}");
}

fn forwarded(replica: &Replica, hops: &str) -> Dial {
    Dial::to(replica).query(&token("alice")).header("X-Forwarded-For", hops)
}

async fn refused(replica: &Replica, result: &str) -> f64 {
    replica.metrics().await.get("connects_total", &[("result", result)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c04_a_strangers_header_does_not_help_it() {
    let replica = Builder::production().set("limits.connections_per_address", "3").spawn().await;
    let mut open = Vec::new();
    for n in 0..3 {
        open.push(forwarded(&replica, &format!("203.0.113.{n}")).open().await);
    }
    for n in 3..20 {
        let refusal = forwarded(&replica, &format!("203.0.113.{n}")).try_connect().await;
        let refusal = refusal.err().expect("over the limit");
        assert_eq!(refusal.status, 429);
        is_limit(&refusal);
    }
    assert!((refused(&replica, "address").await - 17.0).abs() < f64::EPSILON);
    // A refusal is cheap: the credential was not even looked at.
    let bad = Dial::to(&replica).query("no.good.token").try_connect().await;
    assert_eq!(bad.err().map(|refusal| refusal.status), Some(429));
    for ws in &mut open {
        ws.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c04_behind_a_trusted_proxy_the_right_most_hop_counts() {
    let replica = Builder::production()
        .set("limits.connections_per_address", "2")
        .set("public.trusted_proxies", "127.0.0.0/8,10.0.0.0/8")
        .spawn()
        .await;
    let full = async |hops: &str| {
        forwarded(&replica, hops).try_connect().await.err().map(|refusal| refusal.status)
    };
    // Whatever a client writes on the left, the proxy writes its address on the right.
    let _one = forwarded(&replica, "1.1.1.1, 203.0.113.9").open().await;
    let two = forwarded(&replica, "2.2.2.2, 203.0.113.9, 10.1.2.3").open().await;
    for hops in ["203.0.113.9", "3.3.3.3,203.0.113.9", "203.0.113.9:4711, 10.9.9.9"] {
        assert_eq!(full(hops).await, Some(429), "{hops}");
    }
    // Others behind the same proxy are others.
    let _three = forwarded(&replica, "203.0.113.9, 203.0.113.10").open().await;
    // A household has 64 bits of IPv6.
    let _four = forwarded(&replica, "2001:db8::1").open().await;
    let _five = forwarded(&replica, "2001:db8::ffff:2").open().await;
    assert_eq!(full("2001:db8::3").await, Some(429));
    let _six = forwarded(&replica, "2001:db8:0:1::3").open().await;
    // What is malformed is the proxy's own.
    let _seven = forwarded(&replica, "203.0.113.9, nonsense").open().await;
    let _eight = Dial::to(&replica).query(&token("alice")).open().await;
    assert_eq!(full("unknown").await, Some(429));
    // A connection that ends makes room.
    drop(two);
    until("there is room again", PATIENCE, async || {
        forwarded(&replica, "203.0.113.9").try_connect().await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_has_room_again_however_its_connections_end() {
    let replica = Builder::production().set("limits.connections_per_address", "2").spawn().await;
    let dial = Dial::to(&replica).query(&token("alice"));
    let room = || until("there is room again", PATIENCE, async || dial.try_connect().await.ok());
    for _ in 0..3 {
        let (one, two) = (dial.open().await, dial.raw().await.welcome().await);
        assert!(dial.try_connect().await.is_err());
        one.close().await;
        let third = room().await;
        two.reset();
        let fourth = room().await;
        drop((third, fourth));
        replica.metric_is("connections", 0.0, PATIENCE).await;
        until("both are free", PATIENCE, async || {
            let both = (dial.try_connect().await.ok()?, dial.try_connect().await.ok()?);
            Some(both)
        })
        .await;
        replica.metric_is("connections", 0.0, PATIENCE).await;
    }
    // So has one whose credentials are bad, and whose connections are closed with 1008.
    for _ in 0..4 {
        let mut ws = until("there is room again", PATIENCE, async || {
            Dial::to(&replica).query("bad").try_connect().await.ok()
        })
        .await;
        assert_eq!(ws.end(PATIENCE).await.code, 1008);
    }
}

/// Publishes until told to stop; the latency of each event at a client that was there before.
async fn latencies(replica: Arc<Replica>, mut ws: Ws, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let marker = format!("n{}.", all.len());
        let sent = Instant::now();
        replica.to_user("witness", &marker).await;
        ws.event(&marker).await;
        all.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    all
}

/// 2,000 handshakes in a second while others listen; who came in, and how many did not by status.
async fn storm(replica: &Arc<Replica>) -> (Vec<Ws>, BTreeMap<u16, usize>) {
    let witness = Dial::to(replica).query(&token("witness")).open().await;
    let stop = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn(latencies(Arc::clone(replica), witness, Arc::clone(&stop)));
    let health = tokio::spawn({
        let (replica, stop) = (Arc::clone(replica), Arc::clone(&stop));
        async move {
            let mut slowest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                for path in ["/livez", "/readyz"] {
                    let answer = replica.get(path).await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                    slowest = slowest.max(answer.took);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            slowest
        }
    });
    let dial = Dial::to(replica).query(&token("alice"));
    let mut storm = Vec::new();
    for n in 0..2_000_u64 {
        let dial = dial.clone();
        storm.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(500 * n)).await;
            let begun = Instant::now();
            let outcome = dial.try_connect().await;
            (outcome, begun.elapsed())
        }));
    }
    let (mut open, mut statuses, mut slowest) = (Vec::new(), Vec::new(), Duration::ZERO);
    for task in storm {
        let (outcome, took) = task.await.expect("no panic");
        slowest = slowest.max(took);
        match outcome {
            Ok(ws) => open.push(ws),
            Err(refusal) => {
                is_limit(&refusal);
                statuses.push(refusal.status);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let statuses = tally(statuses);
    println!("{} in, {statuses:?} refused, slowest {slowest:?}", open.len());
    assert!(slowest <= Duration::from_secs(5), "the slowest took {slowest:?}");
    let mut seen = watching.await.expect("no panic");
    let p99 = percentile(&mut seen, 0.99);
    println!("p99 {p99:?} of {}", seen.len());
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?}");
    let health = health.await.expect("no panic");
    assert!(health < Duration::from_secs(1), "health took {health:?}");
    (open, statuses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x09_a_storm_of_handshakes() {
    // Many of one user, of whom none is to make room for another here.
    let replica = Builder::production().set("limits.connections_per_user", "0").spawn().await;
    let replica = Arc::new(replica);
    let (mut open, _) = storm(&replica).await;
    assert!(open.len() >= 1_000, "only {} came in", open.len());
    for ws in open.iter_mut().rev().take(5) {
        ws.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x09_what_the_queue_cannot_hold_is_told_to_come_back() {
    let replica = Arc::new(
        Builder::production()
            .set("limits.connections_per_user", "0")
            .set("limits.handshakes_per_second", "300")
            .set("limits.handshake_queue", "400")
            .spawn()
            .await,
    );
    let (mut open, statuses) = storm(&replica).await;
    assert!(open.len() >= 400, "only {} came in", open.len());
    let told = statuses.get(&429).copied().unwrap_or(0);
    assert!(told > 0, "the queue was never full, so nothing was tested");
    let counted = refused(&replica, "busy").await;
    assert!((counted - told as f64).abs() < f64::EPSILON, "{counted}, {statuses:?}");
    // Those who waited for their turn are connected like all others.
    for ws in open.iter_mut().rev().take(5) {
        ws.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_wait_for_their_turn() {
    let replica = Builder::production()
        .set("limits.handshakes_per_second", "10")
        .set("limits.handshake_queue", "100")
        .spawn()
        .await;
    let dial = Dial::to(&replica).query(&token("alice"));
    let begun = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..11 {
        let dial = dial.clone();
        waiting.push(tokio::spawn(async move { dial.open().await }));
    }
    for task in waiting {
        task.await.expect("all of them come in");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(950), "eleven at ten a second in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_a_client_that_sends_too_fast_is_closed() {
    let replica = Arc::new(Replica::start().await);
    let witness = Dial::to(&replica).query(&token("witness")).open().await;
    let stop = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn(latencies(Arc::clone(&replica), witness, Arc::clone(&stop)));
    let mut floods = Vec::new();
    for _ in 0..5 {
        let raw = Dial::to(&replica).query(&token("flood")).raw().await.welcome().await;
        floods.push(tokio::spawn(async move {
            let Raw { mut reader, mut writer, .. } = raw;
            let sending = tokio::spawn(async move {
                // 10,000 a second.
                let batch = frame(0x81, br#"{"type":"x"}"#).repeat(100);
                while writer.write_all(&batch).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            let end = reader.end(PATIENCE).await;
            sending.abort();
            end
        }));
    }
    for task in floods {
        assert_eq!(task.await.expect("no panic").code, Some(4429));
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = watching.await.expect("no panic");
    let p99 = percentile(&mut seen, 0.99);
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?}");
    let closes = replica.metrics().await.get("closes_total", &[("cause", "rate")]);
    assert!((closes - 5.0).abs() < f64::EPSILON, "{closes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_the_goodbye_says_when_to_come_back() {
    let replica = Builder::production()
        .set("limits.inbound_per_second", "1")
        .set("limits.inbound_burst", "5")
        .spawn()
        .await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    // The burst is free, and the answer to a heartbeat is a message like any other.
    for _ in 0..4 {
        ws.send(r#"{"type":"pong"}"#);
    }
    ws.is_alive().await;
    for _ in 0..5 {
        ws.send("{}");
    }
    let end = ws.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (4429, "rate"));
    let wait = end.goodbye.expect("a goodbye")["retry_after_ms"].as_u64().expect("a number");
    assert!((30_000..=90_000).contains(&wait), "{wait}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c08_who_keeps_to_the_rate_stays() {
    let replica = Builder::production()
        .set("limits.inbound_per_second", "20")
        .set("limits.inbound_burst", "5")
        .spawn()
        .await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    for _ in 0..40 {
        ws.send("{}");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    ws.is_alive().await;
    let unread =
        replica.metrics().await.get("messages_dropped_total", &[("reason", "inbound_unread")]);
    assert!((unread - 40.0).abs() < f64::EPSILON, "{unread}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_pings_have_an_allowance_of_their_own() {
    let replica = Builder::production()
        .set("limits.inbound_per_second", "1")
        .set("limits.inbound_burst", "20")
        .spawn()
        .await;
    // A tenth of a message each: some are free, and answered.
    let mut raw = Dial::to(&replica).query(&token("alice")).raw().await.welcome().await;
    for _ in 0..100 {
        raw.send(0x80 | PING, b"tick").await;
    }
    raw.is_alive().await;
    // A flood is not.
    raw.write(&frame(0x80 | PING, &[b'p'; 125]).repeat(1_000)).await;
    assert_eq!(raw.reader.end(PATIENCE).await.code, Some(4429));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_has_its_rate() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("keys");
    let limited = format!("{}:publish:4/m", api_key("limited", "limited-key"));
    let free = api_key("tests", API_KEY);
    std::fs::write(&path, format!("{limited}\n{free}\n")).expect("a file");
    let replica = Builder::production()
        .unset("api.keys")
        .set("api.keys_file", path.to_str().expect("UTF-8"))
        .spawn()
        .await;
    let body = json!({"to": {"user": "a"}, "type": "t", "data": 1}).to_string();
    let post = async || replica.post_with(body.clone(), "limited-key", "application/json").await;
    for _ in 0..4 {
        assert_eq!(post().await.status, 202);
    }
    let over = post().await;
    over.is_problem(429);
    let after: u64 = over.header("retry-after").expect("when").parse().expect("seconds");
    assert!((1..=15).contains(&after), "{over:?}");
    // Another key has its own.
    assert_eq!(replica.post(body.clone()).await.status, 202);
    // A rotation of other keys changes nothing for this one.
    let other = api_key("other", "other-key");
    std::fs::write(&path, format!("{limited}\n{free}\n{other}\n")).expect("a file");
    until("the new key is known", PATIENCE, async || {
        let answer = replica.post_with(body.clone(), "other-key", "application/json").await;
        (answer.status == 202).then_some(())
    })
    .await;
    post().await.is_problem(429);
    // A higher rate is one at once.
    std::fs::write(&path, format!("{}:publish:100/s\n{free}\n", api_key("limited", "limited-key")))
        .expect("a file");
    until("the new rate is in force", PATIENCE, async || {
        (post().await.status == 202).then_some(())
    })
    .await;
    let counted =
        replica.metrics().await.get("api_requests_total", &[("key", "limited"), ("code", "429")]);
    assert!(counted >= 2.0, "{counted}");
}

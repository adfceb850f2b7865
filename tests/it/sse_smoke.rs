//! Server-Sent Events at the level of bytes and sockets: what comes, who is gone, and what a peer can
//! do to a body that never ends.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    http::exchange,
    jwt::token,
    until,
};

const SSE: &[(&str, &str)] = &[("transport", "sse")];

fn request(replica: &Replica, user: &str, headers: &str) -> String {
    format!(
        "GET /sse/notifications?token={} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n",
        token(user),
        replica.public
    )
}

/// An open stream, as bytes.
struct Bytes {
    tcp: TcpStream,
    text: String,
}

impl Bytes {
    async fn ask(replica: &Replica, user: &str, headers: &str) -> Self {
        Self::send(replica, &request(replica, user, headers), None).await
    }

    /// `room`: what the client's kernel takes in that the client does not read.
    async fn send(replica: &Replica, request: &str, room: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(bytes) = room {
            socket.set_recv_buffer_size(bytes).expect("a legal size");
        }
        let mut tcp = socket.connect(replica.public).await.expect("the listener accepts");
        tcp.write_all(request.as_bytes()).await.expect("an open socket");
        Self { tcp, text: String::new() }
    }

    async fn open(replica: &Replica, user: &str) -> Self {
        let mut stream = Self::ask(replica, user, "").await;
        stream.through("belfry.welcome").await;
        stream.through("\n\n").await;
        stream
    }

    /// Reads on until this has come, and gives what came up to there.
    async fn through(&mut self, wanted: &str) -> String {
        let reading = async {
            while !self.text.contains(wanted) {
                assert!(self.more().await, "the end before {wanted:?}: {}", self.text);
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, reading).await;
        assert!(in_time.is_ok(), "no {wanted:?} in {}", self.text);
        let end = self.text.find(wanted).expect("just seen") + wanted.len();
        let rest = self.text.split_off(end);
        std::mem::replace(&mut self.text, rest)
    }

    /// Reads to the end; whether it was one with the last chunk, and what came.
    async fn end(mut self, within: Duration) -> (bool, String) {
        let reading = async { while self.more().await {} };
        let in_time = tokio::time::timeout(within, reading).await;
        assert!(in_time.is_ok(), "no end within {within:?}: {}", self.text);
        (self.text.ends_with("\r\n0\r\n\r\n"), self.text)
    }

    async fn more(&mut self) -> bool {
        let mut buffer = vec![0; 16 * 1024];
        let Ok(count @ 1..) = self.tcp.read(&mut buffer).await else { return false };
        self.text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        true
    }
}

/// The values of this field's lines.
fn field<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

/// The goodbye that it ends with, and the last time to come back.
fn farewell(text: &str) -> (Value, u64) {
    let goodbye = *field(text, "data").last().unwrap_or_else(|| panic!("no message: {text}"));
    let goodbye: Value = serde_json::from_str(goodbye).expect("JSON");
    assert_eq!(goodbye["type"], "belfry.goodbye", "{text}");
    let retry = field(text, "retry").last().expect("a time to come back").parse();
    (goodbye, retry.expect("a number"))
}

async fn publish(replica: &Replica, user: &str, data: &str) {
    let event = json!({"to": {"user": user}, "type": "t", "data": data});
    let answer = replica.post(event.to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

async fn open_streams(replica: &Replica, count: f64, within: Duration) {
    replica.metric("connections", SSE, within, |open| (open - count).abs() < f64::EPSILON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_and_what_was_missed_comes_later() {
    let replica = Replica::start().await;
    let mut stream = Bytes::open(&replica, "alice").await;
    open_streams(&replica, 1.0, PATIENCE).await;
    publish(&replica, "alice", "first").await;
    let text = stream.through("first").await;
    let id = (*field(&text, "id").last().expect("an id")).to_owned();
    drop(stream);
    open_streams(&replica, 0.0, PATIENCE).await;
    publish(&replica, "alice", "second").await;
    let again = format!("Last-Event-ID: {id}\r\n");
    let mut stream = Bytes::ask(&replica, "alice", &again).await;
    let text = stream.through("second").await;
    assert!(text.contains(r#""resumed":true"#) && !text.contains("first"), "{text}");
    publish(&replica, "alice", "third").await;
    stream.through("third").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_is_gone() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    for way in ["a close", "a half close", "a reset", "a close over unread bytes"] {
        let mut stream = Bytes::open(&replica, "alice").await;
        open_streams(&replica, 1.0, PATIENCE).await;
        let kept = match way {
            "a close" => {
                drop(stream);
                None
            }
            "a half close" => {
                stream.tcp.shutdown().await.expect("an open socket");
                Some(stream)
            }
            "a reset" => {
                let linger = SockRef::from(&stream.tcp).set_linger(Some(Duration::ZERO));
                linger.expect("an open socket");
                drop(stream);
                None
            }
            _ => {
                publish(&replica, "alice", "unread").await;
                ws.event("unread").await;
                drop(stream);
                None
            }
        };
        let start = Instant::now();
        open_streams(&replica, 0.0, PATIENCE).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{way}: {:?}", start.elapsed());
        drop(kept);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_a_stalled_reader_is_cut_and_costs_no_one_else() {
    let replica = Builder::production().set("limits.queue_bytes", "64KiB").spawn().await;
    let request = request(&replica, "stuck", "");
    let mut stuck = Bytes::send(&replica, &request, Some(4096)).await;
    stuck.through("belfry.welcome").await;
    let mut other = Bytes::open(&replica, "other").await;
    open_streams(&replica, 2.0, PATIENCE).await;
    until("it is given up", Duration::from_secs(30), async || {
        for _ in 0..10 {
            let data = "x".repeat(30_000);
            publish(&replica, "stuck", &data).await;
        }
        let closes = replica.metrics().await;
        (closes.get("closes_total", &[("cause", "slow_consumer")]) > 0.0).then_some(())
    })
    .await;
    open_streams(&replica, 1.0, PATIENCE).await;
    replica.metric_is("queue_bytes", 0.0, PATIENCE).await;
    publish(&replica, "other", "fine").await;
    other.through("fine").await;
    // It reads nothing for the 5 s that a farewell is given: its socket is reset, which the bytes
    // that its own kernel holds cannot hide.
    until("the socket is cut", Duration::from_secs(10), async || {
        stuck.tcp.write_all(b"x").await.is_err().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s04_a_slow_reader_that_comes_back_is_told() {
    let replica = Builder::production().set("limits.queue_bytes", "64KiB").spawn().await;
    let request = request(&replica, "slow", "");
    let mut slow = Bytes::send(&replica, &request, Some(4096)).await;
    slow.through("belfry.welcome").await;
    until("it is given up", Duration::from_secs(30), async || {
        for _ in 0..10 {
            let data = "x".repeat(30_000);
            publish(&replica, "slow", &data).await;
        }
        let closes = replica.metrics().await;
        (closes.get("closes_total", &[("cause", "slow_consumer")]) > 0.0).then_some(())
    })
    .await;
    let (whole, text) = slow.end(PATIENCE).await;
    assert!(whole);
    let (goodbye, retry) = farewell(&text);
    assert_eq!((&goodbye["code"], &goodbye["reason"]), (&1013.into(), &"slow_consumer".into()));
    assert_eq!(goodbye["retry_after_ms"], retry);
}

/// The queue never fills here: the kernel gives a peer up that takes nothing for 40 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_a_peer_that_takes_nothing_is_gone_within_a_minute() {
    let replica = Builder::production()
        .set("limits.queue_bytes", "4MiB")
        .set("limits.heartbeat", "5s")
        .spawn()
        .await;
    let request = request(&replica, "gone", "");
    let mut stream = Bytes::send(&replica, &request, Some(4096)).await;
    stream.through("belfry.welcome").await;
    for _ in 0..30 {
        let data = "x".repeat(50_000);
        publish(&replica, "gone", &data).await;
    }
    let start = Instant::now();
    open_streams(&replica, 0.0, Duration::from_secs(60)).await;
    assert!(start.elapsed() > Duration::from_secs(30), "cut at once, by something else");
    let metrics = replica.metrics().await;
    assert!(metrics.get("closes_total", &[("cause", "slow_consumer")]) < 1.0);
    replica.metric_is("queue_bytes", 0.0, PATIENCE).await;
}

/// Requests behind a request that is never done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_on_sending_is_cut() {
    let replica = Replica::start().await;
    let head = request(&replica, "alice", "");
    for reads in [true, false] {
        let mut stream = Bytes::send(&replica, &head, Some(4096)).await;
        stream.through("belfry.welcome").await;
        if !reads {
            // More than its kernel and the server's take, and less than its queue.
            for _ in 0..6 {
                publish(&replica, "alice", &"x".repeat(60_000)).await;
            }
        }
        let before = replica.process.cpu();
        // It may be cut before it has sent all of that.
        let (mut reader, mut writer) = stream.tcp.split();
        let mut rest = Vec::new();
        let more = head.repeat(2_000);
        let sending = writer.write_all(more.as_bytes());
        let reading = async { if reads { reader.read_to_end(&mut rest).await } else { Ok(0) } };
        let both = async { tokio::join!(sending, reading) };
        let flooding = tokio::time::timeout(PATIENCE, both);
        let gone = open_streams(&replica, 0.0, PATIENCE);
        let (_flood, ()) = tokio::join!(flooding, gone);
        let spent = replica.process.cpu().saturating_sub(before);
        assert!(spent < Duration::from_secs(3), "{spent:?} of a processor");
    }
    let mut fine = Bytes::open(&replica, "alice").await;
    publish(&replica, "alice", "fine").await;
    fine.through("fine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_a_drain_says_goodbye_on_streams_as_well() {
    let replica =
        Builder::production().set("drain.delay", "100ms").set("drain.spread", "1s").spawn().await;
    let mut streams = Vec::new();
    for n in 0..30 {
        streams.push(Bytes::open(&replica, &format!("user-{n}")).await);
    }
    let start = Instant::now();
    replica.process.signal(Signal::SIGTERM);
    let mut waits = std::collections::BTreeSet::new();
    for stream in streams {
        let (whole, text) = stream.end(PATIENCE).await;
        assert!(whole, "{text}");
        let (goodbye, retry) = farewell(&text);
        assert_eq!((&goodbye["code"], &goodbye["reason"]), (&1012.into(), &"restart".into()));
        assert_eq!(goodbye["retry_after_ms"], retry);
        waits.insert(retry);
    }
    assert!(waits.len() > 10, "everyone is sent back at the same moment: {waits:?}");
    assert_eq!(replica.process.end(PATIENCE).await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_streams_where_coming_back_may_help() {
    let replica = Builder::production()
        .set("limits.connections_per_user", "1")
        .set("limits.user_policy", "refuse")
        .set("limits.connections", "2")
        .spawn()
        .await;
    let first = Bytes::open(&replica, "alice").await;
    let refused = exchange(replica.public, request(&replica, "alice", "").as_bytes()).await;
    let (goodbye, retry) = farewell(&refused.body);
    assert_eq!((refused.status, &goodbye["code"], retry), (200, &4429.into(), 60_000));
    let second = Bytes::open(&replica, "bob").await;
    let refused = exchange(replica.public, request(&replica, "carol", "").as_bytes()).await;
    assert_eq!(refused.header("content-type"), Some("text/event-stream"));
    let (goodbye, retry) = farewell(&refused.body);
    assert_eq!((refused.status, &goodbye["code"]), (200, &1013.into()));
    assert!((2_000..10_000).contains(&retry), "{retry}");
    drop((first, second));
    open_streams(&replica, 0.0, PATIENCE).await;
    for (headers, status) in [
        ("Authorization: Bearer bad\r\n", 401),
        ("Origin: https://evil.example\r\n", 403),
        ("Content-Length: 1\r\n", 400),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", 400),
    ] {
        let reply = exchange(replica.public, request(&replica, "alice", headers).as_bytes()).await;
        assert_eq!(reply.status, status, "{headers}: {}", reply.text);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    }
}

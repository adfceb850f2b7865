//! What is particular about sockets that are taken from HTTP: requests that are refused by the
//! upgrade service, bytes that came with the head, and what an idle connection keeps.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    PATIENCE,
    app::Builder,
    client::Dial,
    http::exchange,
    jwt::Jwt,
    raw::{PING, PONG, Raw, TEXT, frame},
    until,
};

/// Whatever the other tests run over.
fn taking() -> Builder {
    Builder::production().set("public.transport", "direct")
}

fn upgrade(method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: belfry\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

#[tokio::test]
async fn upgrades_elsewhere_are_refused_as_any_request_is() {
    let replica = taking().set("public.base_path", "/notify").spawn().await;
    for (method, path, status) in [
        ("GET", "/notify/nowhere", 404),
        ("GET", "/ws/notifications", 404),
        ("GET", "/notify/ws/notifications/", 404),
        ("POST", "/notify/ws/notifications", 405),
        ("GET", "/notify/sse/notifications", 400),
        ("POST", "/notify/ws/tickets", 400),
    ] {
        let reply = exchange(replica.public, upgrade(method, path).as_bytes()).await;
        assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{path}");
        assert_eq!(reply.header("connection"), Some("close"), "{path}");
        assert_eq!(reply.json()["status"], json!(status), "{path}");
        assert_eq!(reply.header("allow"), (status == 405).then_some("GET"), "{path}");
    }
    let mut raw = Dial::to(&replica);
    raw.path = format!("/notify/ws/notifications?token={}", Jwt::of("alice").sign());
    raw.raw().await.welcome().await.is_alive().await;
}

#[tokio::test]
async fn what_was_asked_before_is_answered_before() {
    let replica = taking().spawn().await;
    let token = Jwt::of("alice").sign();
    let stream = format!("GET /sse/notifications?token={token} HTTP/1.1\r\nHost: belfry\r\n\r\n");
    for (request, statuses) in [
        (upgrade("GET", &format!("/ws/notifications?token={token}")), ["404", "101"]),
        (upgrade("GET", "/nowhere/else"), ["404", "404"]),
        (stream, ["404", "200"]),
    ] {
        let both = format!("GET /nowhere HTTP/1.1\r\nHost: belfry\r\n\r\n{request}");
        let mut socket = TcpStream::connect(replica.public).await.expect("it listens");
        socket.write_all(both.as_bytes()).await.expect("sent");
        let mut seen = Vec::new();
        let answers = until("two answers", PATIENCE, async || {
            socket.read_buf(&mut seen).await.expect("open");
            let text = String::from_utf8_lossy(&seen).into_owned();
            let answers = text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned());
            Some(answers.collect::<Vec<_>>()).filter(|answers| answers.len() == 2)
        });
        let answers = tokio::time::timeout(PATIENCE, answers).await.expect("two answers");
        assert_eq!(answers, statuses, "{request}");
    }
}

#[tokio::test]
async fn frames_that_come_with_the_head_are_read_once_and_in_order() {
    let replica = taking().spawn().await;
    let dial = Dial::to(&replica).query(&Jwt::of("alice").sign());
    let mut early = frame(0x80 | PING, b"one");
    let split = frame(0x80 | PING, b"two");
    let (half, rest) = split.split_at(4);
    early.extend_from_slice(half);
    let mut raw = Raw::handshake(&dial, None, &early).await.welcome().await;
    let answer = raw.reader.frame(PATIENCE).await.expect("open");
    assert_eq!((answer.opcode, &answer.payload[..]), (PONG, &b"one"[..]));
    raw.write(rest).await;
    let answer = raw.reader.frame(PATIENCE).await.expect("open");
    assert_eq!((answer.opcode, &answer.payload[..]), (PONG, &b"two"[..]));
}

#[tokio::test]
async fn what_comes_early_is_bounded_too() {
    let replica = taking().set("limits.inbound_bytes", "1KiB").spawn().await;
    let dial = Dial::to(&replica).query(&Jwt::of("alice").sign());
    let early = frame(0x80 | TEXT, &[b'x'; 1025]);
    let mut raw = Raw::handshake(&dial, None, &early).await.welcome().await;
    let end = raw.reader.end(PATIENCE).await;
    assert_eq!(end.code, Some(1009));
}

#[tokio::test]
async fn who_is_refused_and_does_not_stop_talking_is_not_listened_to() {
    let replica = taking().spawn().await;
    let mut stream = TcpStream::connect(replica.public).await.expect("it listens");
    let mut request = upgrade("GET", "/ws/notifications?token=bad").into_bytes();
    for _ in 0..2_000 {
        request.extend(frame(0x80 | PONG, b""));
    }
    stream.write_all(&request).await.expect("sent");
    // Whoever says nothing is reset in the end; this is an orderly one.
    let mut seen = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut seen)).await;
    end.expect("it closes").expect("no reset");
    assert!(seen.ends_with(b"unauthorized"), "{:?}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn who_leaves_before_the_answer_takes_nobodys_turn() {
    let replica = taking()
        .set("limits.handshakes_per_second", "1")
        .set("limits.handshake_queue", "100")
        .spawn()
        .await;
    let path = format!("/ws/notifications?token={}", Jwt::of("alice").sign());
    let mut left = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(replica.public).await.expect("it listens");
        stream.write_all(upgrade("GET", &path).as_bytes()).await.expect("sent");
        left.push(stream);
    }
    drop(left);
    // Twenty turns would take as many seconds.
    let start = tokio::time::Instant::now();
    Dial::to(&replica).query(&Jwt::of("alice").sign()).raw().await.welcome().await.is_alive().await;
    assert!(start.elapsed() < PATIENCE * 2 / 3, "{:?}", start.elapsed());
}

/// So many that what they keep stands out from what the process needs anyway.
const CROWD: usize = 1_500;
/// Bytes that one of them may keep: HTTP's buffers alone are twice that. (In a build for tests, where
/// everything is larger than in one for production.)
const KEEPS: i64 = 8 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_keeps_no_buffers_and_a_crowd_leaves_nothing() {
    let replica = taking().set("public.workers", "1").spawn().await;
    for path in ["/ws/notifications", "/sse/notifications"] {
        let before = replica.process.rss();
        let mut crowd = Vec::new();
        for n in 0..CROWD {
            let token = Jwt::of(&format!("user-{n}")).sign();
            let mut stream = TcpStream::connect(replica.public).await.expect("it listens");
            let request = match path {
                "/ws/notifications" => upgrade("GET", &format!("{path}?token={token}")),
                _ => format!("GET {path}?token={token} HTTP/1.1\r\nHost: belfry\r\n\r\n"),
            };
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains("belfry.welcome") {
                assert_ne!(stream.read_buf(&mut seen).await.expect("open"), 0, "{path}: closed");
            }
            crowd.push(stream);
        }
        let crowd_size = i64::try_from(CROWD).expect("it fits");
        let each = (replica.process.rss() - before) * 1024 / crowd_size;
        assert!(each < KEEPS, "{path}: {each} bytes for each");
        drop(crowd);
        replica.metric_is("connections", 0.0, PATIENCE).await;
        // The allocator gives back what was not used again for a while.
        until("the memory is given back", PATIENCE * 3, async || {
            let left = (replica.process.rss() - before) * 1024 / crowd_size;
            (left < KEEPS / 4).then_some(())
        })
        .await;
    }
}

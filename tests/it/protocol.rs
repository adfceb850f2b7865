//! RFC 6455, in both directions: what a hostile client may send, and what a server must not.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::{Jwt, now, token},
    raw::{CLOSE, PING, PONG, Raw, RawEnd, TEXT, frame},
};

const SOON: Duration = Duration::from_secs(5);

async fn welcomed(replica: &Replica, user: &str) -> Raw {
    Dial::to(replica).query(&token(user)).raw().await.welcome().await
}

/// Sends these frames on a fresh connection and reads to its end.
async fn after(replica: &Replica, frames: &[Vec<u8>]) -> RawEnd {
    let mut raw = welcomed(replica, "alice").await;
    for bytes in frames {
        raw.write(bytes).await;
    }
    raw.reader.end(SOON).await
}

#[track_caller]
fn assert_failed(what: &str, end: &RawEnd, codes: &[u16]) {
    // This client reads, so it must learn the code.
    assert!(end.code.is_some_and(|code| codes.contains(&code)), "{what}: {end:?}");
    assert!(end.texts.is_empty(), "{what}: a piece was handled as a message: {end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_data_frame_inside_a_fragmented_message() {
    let replica = Replica::start().await;
    // A renewal would be answered, so it shows whether a piece was taken for a message.
    let renewal = json!({"type": "belfry.token", "token": token("alice")}).to_string();
    let renewal = renewal.as_bytes();
    let cases: &[(&str, Vec<Vec<u8>>)] = &[
        ("text in text", vec![frame(0x01, b"abc"), frame(0x81, b"def")]),
        ("fragment in text", vec![frame(0x01, b"abc"), frame(0x01, b"def"), frame(0x80, b"")]),
        ("renewal in text", vec![frame(0x01, b"abc"), frame(0x81, renewal)]),
        ("renewal first", vec![frame(0x01, renewal), frame(0x81, b"def"), frame(0x80, b"")]),
        ("binary in text", vec![frame(0x01, b"abc"), frame(0x82, b"def")]),
        ("text in binary", vec![frame(0x02, b"abc"), frame(0x81, renewal)]),
        ("binary in binary", vec![frame(0x02, b"abc"), frame(0x02, b"def"), frame(0x80, b"")]),
        (
            "after a ping between",
            vec![frame(0x01, b"abc"), frame(0x00, b"def"), frame(0x89, b"p"), frame(0x81, renewal)],
        ),
    ];
    for (what, frames) in cases {
        assert_failed(what, &after(&replica, frames).await, &[1002]);
    }
    replica.metric_is("connections", 0.0, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_other_frames_that_the_protocol_forbids() {
    let replica = Replica::start().await;
    let unmasked = [&[0x81, 2][..], b"{}"].concat();
    let long_ping = frame(0x89, &[b'p'; 126]);
    let cases: &[(&str, Vec<Vec<u8>>)] = &[
        ("continuation of nothing", vec![frame(0x80, b"abc")]),
        (
            "continuation after the end",
            vec![frame(0x01, b"{"), frame(0x80, b"}"), frame(0x80, b"{}")],
        ),
        ("reserved opcode 3", vec![frame(0x83, b"{}")]),
        ("reserved opcode 7", vec![frame(0x87, b"{}")]),
        ("reserved opcode 11", vec![frame(0x8b, b"")]),
        ("reserved opcode 15", vec![frame(0x8f, b"")]),
        ("RSV1", vec![frame(0xc1, b"{}")]),
        ("RSV2", vec![frame(0xa1, b"{}")]),
        ("RSV3", vec![frame(0x91, b"{}")]),
        ("RSV1 on a ping", vec![frame(0xc9, b"")]),
        ("not masked", vec![unmasked]),
        ("fragmented ping", vec![frame(0x09, b"abc"), frame(0x80, b"def")]),
        ("ping of 126 bytes", vec![long_ping]),
    ];
    for (what, frames) in cases {
        assert_failed(what, &after(&replica, frames).await, &[1002]);
    }
    // RFC 6455 §7.4: these codes never stand in a frame, and one byte is no code.
    for payload in [
        &[0x03][..],
        &999u16.to_be_bytes(),
        &1004u16.to_be_bytes(),
        &1005u16.to_be_bytes(),
        &1006u16.to_be_bytes(),
        &1015u16.to_be_bytes(),
        &2999u16.to_be_bytes(),
        &5000u16.to_be_bytes(),
        &0u16.to_be_bytes(),
    ] {
        let end = after(&replica, &[frame(0x80 | CLOSE, payload)]).await;
        assert_failed(&format!("Close with {payload:?}"), &end, &[1002]);
    }
    let reason = [&1000u16.to_be_bytes()[..], &[0xff, 0xfe]].concat();
    let end = after(&replica, &[frame(0x80 | CLOSE, &reason)]).await;
    assert_failed("a reason that is not UTF-8", &end, &[1002, 1007]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p01_legal_interleavings_are_accepted() {
    let replica = Replica::start().await;
    let mut raw = welcomed(&replica, "alice").await;
    let renewal = json!({"type": "belfry.token", "token": token("alice")}).to_string();
    let (head, tail) = renewal.as_bytes().split_at(20);
    raw.send(0x01, head).await;
    raw.send(0x89, b"in between").await;
    let pong = raw.reader.frame(SOON).await.expect("still open");
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"in between"[..]));
    raw.send(0x00, b"").await;
    raw.send(0x80, tail).await;
    let answer = raw.reader.frame(SOON).await.expect("still open").text();
    assert!(answer.contains("belfry.renewed"), "{answer}");
    // The Close of a client is answered with its own code.
    for code in [1000u16, 1001, 3000, 4999] {
        let mut raw = welcomed(&replica, "alice").await;
        raw.send(0x80 | CLOSE, &[&code.to_be_bytes()[..], b"bye"].concat()).await;
        let end = raw.reader.end(SOON).await;
        assert!(matches!(end.code, Some(answer) if answer == code || answer == 1000), "{end:?}");
        assert_eq!(raw.reader.frame(SOON).await, None, "something after the Close");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p04_text_that_is_not_utf8() {
    let replica = Replica::start().await;
    let bad = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80\x65";
    let cases: &[(&str, Vec<Vec<u8>>)] = &[
        ("one frame", vec![frame(0x81, bad)]),
        (
            "three frames",
            vec![frame(0x01, &bad[..5]), frame(0x00, &bad[5..12]), frame(0x80, &bad[12..])],
        ),
        ("cut off at the end", vec![frame(0x81, b"abc\xc3")]),
        ("cut off at the end of fragments", vec![frame(0x01, b"abc"), frame(0x80, b"\xe2\x82")]),
        ("overlong", vec![frame(0x81, b"\xc0\x80")]),
        ("beyond U+10FFFF", vec![frame(0x81, b"\xf4\x90\x80\x80")]),
        ("a lone continuation byte", vec![frame(0x81, b"{\"a\":\"\x80\"}")]),
        ("0xff", vec![frame(0x81, b"\xff")]),
    ];
    for (what, frames) in cases {
        let end = after(&replica, frames).await;
        assert_eq!(end.code, Some(1007), "{what}: {end:?}");
        assert!(end.texts.is_empty(), "{what}: {end:?}");
    }
    let mut raw = welcomed(&replica, "alice").await;
    let euro = "{\"a\":\"€\"}".as_bytes();
    let at = euro.iter().position(|byte| *byte == 0xe2).expect("a euro") + 1;
    raw.send(0x01, &euro[..at]).await;
    raw.send(0x89, b"").await;
    raw.send(0x80, &euro[at..]).await;
    raw.is_alive().await;
    // Bytes are not text.
    raw.send(0x82, bad).await;
    raw.is_alive().await;
    assert_eq!(replica.get("/livez").await.status, 200);
}

fn header(first: u8, length: &[u8]) -> Vec<u8> {
    [&[first], length, &[1, 2, 3, 4]].concat()
}

fn lying_headers() -> Vec<(&'static str, Vec<u8>)> {
    let long = |length: u64| [&[0xff][..], &length.to_be_bytes()].concat();
    let medium = |length: u16| [&[0xfe][..], &length.to_be_bytes()].concat();
    vec![
        ("2^62", header(0x81, &long(1 << 62))),
        ("2^62 binary", header(0x82, &long(1 << 62))),
        ("the top bit", header(0x81, &long(1 << 63))),
        ("all bits", header(0x81, &long(u64::MAX))),
        ("1 GiB", header(0x81, &long(1 << 30))),
        ("limit + 1", header(0x81, &medium(16 * 1024 + 1))),
        ("65535", header(0x81, &medium(65_535))),
        ("fragment of 2^40", header(0x01, &long(1 << 40))),
        ("16-bit form of 5", header(0x81, &medium(5))),
        ("64-bit form of 5", header(0x81, &long(5))),
        ("64-bit form of 200", header(0x81, &long(200))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p07_lying_lengths() {
    let replica = Replica::start().await;
    for (what, bytes) in lying_headers() {
        let mut raw = welcomed(&replica, "alice").await;
        raw.write(&bytes).await;
        let end = raw.reader.end(Duration::from_secs(2)).await;
        assert!(matches!(end.code, Some(1002 | 1009)), "{what}: {end:?}");
        if what == "limit + 1" {
            assert_eq!(end.code, Some(1009));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p07_two_hundred_lying_lengths_cost_no_memory() {
    let replica = Builder::production().set("limits.connections_per_user", "0").spawn().await;
    let mut raws = Vec::new();
    for _ in 0..200 {
        raws.push(welcomed(&replica, "alice").await);
    }
    replica.metric_is("connections", 200.0, PATIENCE).await;
    let before = replica.process.rss();
    let lies = lying_headers();
    let mut highest = before;
    for (index, raw) in raws.iter_mut().enumerate() {
        raw.write(&lies[index % lies.len()].1).await;
        if index % 20 == 0 {
            highest = highest.max(replica.process.rss());
        }
    }
    for raw in &mut raws {
        let end = raw.reader.end(PATIENCE).await;
        assert!(matches!(end.code, Some(1002 | 1009)), "{end:?}");
        highest = highest.max(replica.process.rss());
    }
    assert!(highest - before < 20 * 1024, "grew from {before} to {highest} KiB");
    replica.metric_is("connections", 0.0, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_size_limit_counts_the_whole_message() {
    let limit = 16 * 1024;
    let replica = Replica::start().await;
    for size in [limit - 1, limit] {
        let mut raw = welcomed(&replica, "alice").await;
        raw.send(0x81, &vec![b'x'; size]).await;
        raw.is_alive().await;
        raw.send(0x01, &vec![b'x'; size - 1000]).await;
        raw.send(0x80, &vec![b'x'; 1000]).await;
        raw.is_alive().await;
    }
    let end = after(&replica, &[frame(0x81, &vec![b'x'; limit + 1])]).await;
    assert_eq!(end.code, Some(1009), "{end:?}");
    let end = after(&replica, &[frame(0x82, &vec![0; limit + 1])]).await;
    assert_eq!(end.code, Some(1009), "{end:?}");
    // 16 pieces of 1 KiB are the limit; one byte more is not waited for.
    let mut pieces = vec![frame(0x01, &[b'x'; 1024])];
    pieces.extend(std::iter::repeat_n(frame(0x00, &[b'x'; 1024]), 15));
    pieces.push(frame(0x00, b"x"));
    let end = after(&replica, &pieces).await;
    assert_eq!(end.code, Some(1009), "{end:?}");
}

/// Sends pieces one at a time, each confirmed by a Pong; how many were taken, and the close.
async fn pieces_taken(raw: &mut Raw, piece: &[u8], most: usize) -> (usize, Option<u16>) {
    for count in 0..most {
        raw.send(u8::from(count == 0), piece).await;
        raw.send(0x80 | PING, b"taken?").await;
        loop {
            match raw.reader.frame(SOON).await {
                None => return (count, None),
                Some(frame) if frame.opcode == CLOSE => return (count, Some(frame.code())),
                Some(frame) if frame.opcode == PONG => break,
                Some(_) => {}
            }
        }
    }
    (most, None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_an_endless_message_ends_at_the_limit() {
    let replica = Builder::production().set("limits.inbound_bytes", "256KiB").spawn().await;
    let mut raw = welcomed(&replica, "alice").await;
    let (taken, code) = pieces_taken(&mut raw, &vec![b'x'; 60 * 1024], 3_500).await;
    assert_eq!(code, Some(1009), "after {taken} pieces");
    assert_eq!(taken, 4, "4 pieces of 60 KiB are under 256 KiB, 5 are over");
    // Pieces that hold nothing still cost something each.
    let before = replica.process.rss();
    let mut raw = welcomed(&replica, "alice").await;
    raw.send(0x01, b"").await;
    let empty = frame(0x00, b"").repeat(1_000);
    let mut sent = 0;
    let end = loop {
        raw.write(&empty).await;
        sent += 1_000;
        if let Ok(frame) = raw.reader.try_frame(Duration::from_millis(1)).await {
            match frame {
                Some(frame) if frame.opcode == CLOSE => break Some(frame.code()),
                Some(_) => {}
                None => break None,
            }
        }
        assert!(sent < 2_000_000, "two million empty pieces of one message were taken");
    };
    assert!(end.is_none_or(|code| matches!(code, 1002 | 1008 | 1009 | 4429)), "{end:?}");
    let grown = replica.process.rss() - before;
    assert!(grown < 16 * 1024, "{sent} empty pieces cost {grown} KiB");
}

/// Sends 1 MiB of small messages whatever happens, reading all the while; the code of the close.
async fn code_while_sending(raw: Raw, first: &[u8]) -> Option<u16> {
    let Raw { mut reader, mut writer, .. } = raw;
    let first = first.to_vec();
    let sending = tokio::spawn(async move {
        let small = frame(0x81, &[b'x'; 100]).repeat(10);
        // Errors are expected once the server has closed; what it said first is the point.
        if writer.write_all(&first).await.is_err() {
            return writer;
        }
        for _ in 0..1_000 {
            if writer.write_all(&small).await.is_err() {
                return writer;
            }
        }
        writer
    });
    let end = reader.end(PATIENCE).await;
    sending.abort();
    end.code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_close_code_reaches_a_client_that_is_still_sending() {
    // Without the limit on messages, which such a client meets before anything else.
    let replica = Builder::production()
        .set("auth.jwt.leeway", "1s")
        .set("limits.inbound_per_second", "0")
        .spawn()
        .await;
    for run in 0..20 {
        let raw = welcomed(&replica, "alice").await;
        let code = code_while_sending(raw, &frame(0x81, &vec![b'x'; 20_000])).await;
        assert_eq!(code, Some(1009), "limit, run {run}");
    }
    let mut runs = Vec::new();
    for run in 0..20 {
        let jwt = Jwt::of("alice").claim("exp", now() + 1).sign();
        let raw = Dial::to(&replica).query(&jwt).raw().await.welcome().await;
        runs.push((run, tokio::spawn(sending_until_closed(raw))));
    }
    for (run, task) in runs {
        assert_eq!(task.await.expect("no panic"), Some(4401), "expiry, run {run}");
    }
    let mut runs = Vec::new();
    for run in 0..20 {
        runs.push((run, tokio::spawn(sending_until_closed(welcomed(&replica, "alice").await))));
    }
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    for (run, task) in runs {
        assert_eq!(task.await.expect("no panic"), Some(1012), "drain, run {run}");
    }
    assert!(replica.process.end(PATIENCE).await.success());
}

/// Sends small messages until the server closes, and goes on for a while after it did.
async fn sending_until_closed(raw: Raw) -> Option<u16> {
    let Raw { mut reader, mut writer, .. } = raw;
    let sending = tokio::spawn(async move {
        let small = frame(0x81, &[b'x'; 100]).repeat(10);
        while writer.write_all(&small).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let end = reader.end(PATIENCE).await;
    sending.abort();
    end.code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_compression_is_not_negotiated() {
    let replica = Replica::start().await;
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate",
    ] {
        let dial =
            Dial::to(&replica).query(&token("alice")).header("Sec-WebSocket-Extensions", offer);
        let mut raw = dial.raw().await.welcome().await;
        assert_eq!(raw.head.header("sec-websocket-extensions"), None, "{:?}", raw.head);
        // What was not negotiated is a protocol error.
        raw.send(0xc1, b"\xaa\x56\x2a\x01\x00").await;
        assert_eq!(raw.reader.end(SOON).await.code, Some(1002));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_ping_flood_by_a_client_that_does_not_read() {
    let replica = Replica::start().await;
    let mut other = Dial::to(&replica).query(&token("bob")).open().await;
    let before = replica.process.rss();
    let dial = Dial::to(&replica).query(&token("alice"));
    let raw = Raw::narrow(&dial, 4096).await;
    let Raw { reader, mut writer, .. } = raw;
    let pings = frame(0x80 | PING, &[b'p'; 125]).repeat(100);
    let flood = tokio::spawn(async move {
        // Blocked or cut: both are fine.
        let all = async {
            for _ in 0..5_000 {
                if writer.write_all(&pings).await.is_err() {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(8), all).await;
        drop(reader);
    });
    let mut slowest = Duration::ZERO;
    let mut highest = before;
    for run in 0.. {
        let marker = format!("during-{run}");
        let start = Instant::now();
        replica.to_all(&marker).await;
        other.event(&marker).await;
        slowest = slowest.max(start.elapsed());
        highest = highest.max(replica.process.rss());
        if flood.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(slowest < Duration::from_secs(1), "a broadcast took {slowest:?}");
    assert!(highest - before < 16 * 1024, "grew from {before} to {highest} KiB");
    replica.metric_is("connections", 1.0, PATIENCE).await;
}

/// A publisher's data as a string that makes the frame exactly `bytes` long.
fn data_for_frame_of(bytes: usize, overhead: usize) -> String {
    "x".repeat(bytes.saturating_sub(overhead))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p16_server_frames_are_sound() {
    let replica = Arc::new(
        Builder::production()
            .set("limits.heartbeat", "1s")
            .set("limits.queue_bytes", "8MiB")
            .spawn()
            .await,
    );
    let mut raws = Vec::new();
    for _ in 0..4 {
        raws.push(welcomed(&replica, "alice").await);
    }
    // The frame around an empty string tells how long data must be for a frame of a given size.
    // Ids have no fixed length, so those events are not kept.
    let event =
        |data: &str| json!({"to": {"user": "alice"}, "type": "t", "data": data, "transient": true});
    replica.event(&event("")).await;
    let mut overhead = 0;
    for raw in &mut raws {
        overhead = raw.reader.frame(SOON).await.expect("open").payload.len();
    }
    let sizes = [overhead, 125, 126, 127, 1_000, 65_535, 65_536];
    let runs = 350;
    let publishers = 4;
    let readers: Vec<_> = raws
        .into_iter()
        .map(|mut raw| {
            tokio::spawn(async move {
                let (mut texts, mut pings) = (0, 0);
                let mut lengths = std::collections::BTreeSet::new();
                loop {
                    let frame = raw.reader.frame(PATIENCE).await.expect("open");
                    match frame.opcode {
                        TEXT if frame.payload == br#"{"type":"ping"}"# => {}
                        TEXT => {
                            let text = frame.text();
                            let value: serde_json::Value =
                                serde_json::from_str(&text).expect("JSON");
                            if value["type"] == "last" {
                                break;
                            }
                            assert_eq!(value["type"], "t", "{text}");
                            texts += 1;
                            lengths.insert(text.len());
                        }
                        PING => {
                            pings += 1;
                            raw.send(0x80 | PONG, &frame.payload).await;
                        }
                        other => panic!("opcode {other}"),
                    }
                }
                (texts, pings, lengths)
            })
        })
        .collect();
    let mut posting = Vec::new();
    for _ in 0..publishers {
        let replica = replica.clone();
        posting.push(tokio::spawn(async move {
            for _ in 0..runs {
                for bytes in sizes {
                    let data = data_for_frame_of(bytes, overhead);
                    replica.event(&event(&data)).await;
                }
            }
        }));
    }
    for task in posting {
        task.await.expect("no panic");
    }
    replica.event(&json!({"to": {"user": "alice"}, "type": "last", "data": null})).await;
    for reader in readers {
        let (texts, pings, lengths) = reader.await.expect("no panic");
        assert_eq!(texts, runs * publishers * sizes.len());
        assert!(sizes.iter().all(|size| lengths.contains(size)), "{lengths:?}");
        assert!(pings > 0, "no protocol Ping among the events");
    }
}

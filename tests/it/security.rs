//! Whose pages may connect, what strange requests do, and what errors give away.

use tokio::time::Duration;

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica},
    client::Dial,
    http::{Reply, exchange, try_exchange},
    jwt::{SECRET, token},
    raw::{PING, PONG, Raw, frame},
    redis::RedisServer,
};

/// The status of a handshake with these headers and a good token.
async fn status(replica: &Replica, host: &str, origins: &[&str]) -> u16 {
    let mut dial = Dial::to(replica).query(&token("alice"));
    if !host.is_empty() {
        dial = dial.host(host);
    }
    for origin in origins {
        dial = dial.origin(origin);
    }
    let raw = Raw::handshake(&dial, None, &[]).await;
    if raw.head.status == 101 {
        // Admitted for good, and not closed with the next frame.
        raw.welcome().await.is_alive().await;
        return 101;
    }
    let kind = raw.head.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/problem+json"), "{:?}", raw.head);
    raw.head.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_origins() {
    let replica = Builder::production()
        .set("auth.origins", "https://app.example,https://*.wild.example,http://plain.example:3000")
        .spawn()
        .await;
    let own = format!("http://{}", replica.public);
    let other_port = format!("http://127.0.0.1:{}", replica.public.port() ^ 1);
    let localhost = format!("http://localhost:{}", replica.public.port());
    for (host, origin) in [
        ("", own.as_str()),
        ("belfry.example", "http://belfry.example"),
        ("belfry.example", "https://belfry.example"),
        ("belfry.example:8443", "https://belfry.example:8443"),
        ("BELFRY.example", "https://belfry.example"),
        ("", "https://app.example"),
        ("", "https://a.wild.example"),
        ("", "http://plain.example:3000"),
    ] {
        assert_eq!(status(&replica, host, &[origin]).await, 101, "{origin} at {host:?}");
    }
    // A program sends no Origin, and has its token.
    assert_eq!(status(&replica, "", &[]).await, 101);
    for (host, origin) in [
        ("", "http://evil.example"),
        ("", "null"),
        ("", ""),
        ("", "https://app.example.evil.com"),
        ("", "https://evilapp.example"),
        ("", "https://app.example@evil.com"),
        ("", "https://evil.com/https://app.example"),
        ("", "https://evil.com#https://app.example"),
        ("", "https://app.example:8443"),
        ("", "https://app.example."),
        ("", "http://app.example"),
        ("", "ws://app.example"),
        ("", "https://app.example/"),
        ("", "app.example"),
        ("", "https://wild.example.evil.com"),
        ("", "https://evilwild.example"),
        ("", "https://a.wild.example.evil.com"),
        ("", "http://a.wild.example"),
        ("", "https://a.wild.example:8443"),
        ("", "https://evil.com/.wild.example"),
        ("", "https://evil.com?.wild.example"),
        ("", "https://evil.com#.wild.example"),
        ("", "https://evil.com@.wild.example"),
        ("", "https://.wild.example"),
        ("", "https://*.wild.example"),
        ("", "http://plain.example"),
        ("", "http://plain.example:30000"),
        ("", other_port.as_str()),
        ("", localhost.as_str()),
        ("", "file://"),
        ("", "chrome-extension://abcdef"),
        ("belfry.example", "http://belfry.example:8080"),
        ("belfry.example:8443", "https://belfry.example"),
        ("belfry.example", "https://xbelfry.example"),
        ("belfry.example", "https://belfry.example.evil.com"),
        ("belfry.example", "https://belfry"),
    ] {
        let got = status(&replica, host, &[origin]).await;
        assert_eq!(got, 403, "{origin:?} at {host:?}");
    }
    for origins in [[own.as_str(), "http://evil.example"], ["http://evil.example", own.as_str()]] {
        let got = status(&replica, "", &origins).await;
        assert!(matches!(got, 400 | 403), "{origins:?}: {got}");
    }
    // The token does not change what the Origin decides, nor the other way round.
    let both = Dial::to(&replica).bearer("bad").origin("http://evil.example");
    assert_eq!(both.try_connect().await.err().map(|refusal| refusal.status), Some(403));
    Dial::to(&replica).bearer("bad").origin("https://app.example").is_refused("bad token").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_development_tells_what_to_change() {
    let replica = Builder::development().spawn().await;
    for origin in ["http://localhost:3000", "http://127.0.0.1:5173", "http://localhost"] {
        assert_eq!(status(&replica, "", &[origin]).await, 101, "{origin}");
    }
    for origin in
        ["http://evil.example", "https://localhost.evil.com", "http://localhost.evil.com:3000"]
    {
        let dial = Dial::to(&replica).query(&token("alice")).origin(origin);
        let end = dial.connect().await.end(PATIENCE).await;
        assert_eq!(end.code, 1008, "{origin}: {end:?}");
        assert!(end.texts.is_empty(), "{end:?}");
        let told = end.reason.to_lowercase();
        assert!(told.contains("auth.origins") || told.contains("auth__origins"), "{end:?}");
        assert!(end.reason.len() <= 123);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c07_data_with_the_upgrade() {
    let replica = Replica::start().await;
    let dial = Dial::to(&replica).query(&token("alice"));
    // Frames in the same segment as the handshake are read, each once.
    let early = [frame(0x80 | PING, b"one"), frame(0x80 | PING, b"two")].concat();
    let mut raw = Raw::handshake(&dial, None, &early).await;
    assert_eq!(raw.head.status, 101);
    // RFC 6455 §5.5.3: one Pong may answer both, the last.
    let mut pongs = Vec::new();
    while pongs.last().is_none_or(|last| last != b"two") {
        let frame = raw.reader.frame(PATIENCE).await.expect("open");
        if frame.opcode == PONG {
            pongs.push(frame.payload);
        }
    }
    assert!(pongs == [b"two"] || pongs == [b"one", b"two"], "{pongs:?}");
    raw.is_alive().await;
    drop(raw);
    // A frame that is cut by the segment goes on in the next.
    let whole = frame(0x80 | PING, b"split");
    let (head, tail) = whole.split_at(4);
    let mut raw = Raw::handshake(&dial, None, head).await;
    raw.write(tail).await;
    let mut raw = raw.welcome().await;
    assert_eq!(raw.reader.frame(PATIENCE).await.expect("open").payload, b"split");
    drop(raw);
    // A body is refused, or consumed: it is never taken for frames.
    let ping = frame(0x80 | PING, b"smuggled");
    for header in [
        ("Content-Length", ping.len().to_string()),
        ("Transfer-Encoding", "chunked".to_owned()),
        ("Content-Length", "5000".to_owned()),
    ] {
        let body = match header.0 {
            "Transfer-Encoding" => {
                [format!("{:x}\r\n", ping.len()).as_bytes(), &ping, b"\r\n0\r\n\r\n"].concat()
            }
            _ => ping.clone(),
        };
        let dial = dial.clone().header(header.0, header.1.clone());
        let mut raw = Raw::handshake(&dial, None, &body).await;
        if raw.head.status == 101 {
            raw.send(0x80 | PING, b"real").await;
            loop {
                let frame = raw.reader.frame(PATIENCE).await.expect("open");
                assert_ne!(frame.payload, b"smuggled", "{header:?}: a body was read as frames");
                if frame.payload == b"real" {
                    break;
                }
            }
        } else {
            assert!((400..500).contains(&raw.head.status), "{header:?}: {:?}", raw.head);
        }
    }
    replica.metric_is("connections", 0.0, PATIENCE).await;
    // A second request in the same segment is not a WebSocket frame, nor an answer to somebody.
    let smuggled = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut raw = Raw::handshake(&Dial::to(&replica).query(&token("alice")), None, smuggled).await;
    assert_eq!(raw.head.status, 101);
    let end = raw.reader.end(Duration::from_secs(5)).await;
    assert!(end.code.is_none_or(|code| code == 1002), "{end:?}");
}

/// Whatever is in an error must help the caller, and nobody else.
#[track_caller]
fn gives_nothing_away(what: &str, reply: &Reply) {
    let text = reply.text.to_lowercase();
    for word in [
        "actix",
        "tokio",
        "hyper",
        "serde",
        "jsonwebtoken",
        "fred",
        "redis://",
        "127.0.0.1:",
        "panicked",
        "/src/",
        ".rs",
        "/root",
        "/home",
        "/tmp",
        "cargo",
        "backtrace",
        "rust",
        env!("CARGO_PKG_VERSION"),
        API_KEY,
        SECRET,
        "x-powered-by",
    ] {
        assert!(!text.contains(&word.to_lowercase()), "{what}: {word:?} in {}", reply.text);
    }
    assert_eq!(reply.header("server"), None, "{what}: {}", reply.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c09_nothing_is_learnt_from_errors() {
    let mut redis = RedisServer::start().await;
    let replica = Builder::production()
        .redis(&redis)
        .set("auth.reject", "http")
        .set("ready.redis_grace", "1s")
        .spawn()
        .await;
    let key = format!("Authorization: Bearer {API_KEY}\r\n");
    let json = "Content-Type: application/json\r\n";
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let post_to = |path: &str, headers: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let post = |headers: &str, body: &str| post_to("/v1/events", headers, body);
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let get =
        |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let long = "x".repeat(70_000);
    let bad_jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.AAAA";
    let requests: Vec<(&str, String)> = vec![
        ("no key", post(json, "{}")),
        ("empty body", post(&format!("{key}{json}"), "")),
        ("not JSON", post(&format!("{key}{json}"), "{\"to\":")),
        ("wrong types", post(&format!("{key}{json}"), "{\"to\":5,\"type\":{},\"data\":1}")),
        ("bad numbers", post(&format!("{key}{json}"), "{\"to\":1e999,\"type\":-,\"data\":1}")),
        ("no media type", post(&key, "{}")),
        ("too big", post(&format!("{key}{json}"), &" ".repeat(600_000))),
        ("not found", get("/nope/../../etc/passwd", "")),
        ("not allowed", get("/v1/events", &key)),
        ("no upgrade", get("/ws/notifications", "")),
        ("no token", get("/ws/notifications", upgrade)),
        ("bad token", get(&format!("/ws/notifications?token={bad_jwt}"), upgrade)),
        ("no ticket for nobody", post_to("/ws/tickets", "", "")),
        ("no ticket for a stranger", post_to(&format!("/ws/tickets?token={bad_jwt}"), "", "")),
        ("no scope for tickets", post_to("/v1/tickets", &format!("{key}{json}"), "{}")),
        ("no subject", post_to("/v1/disconnect", &format!("{key}{json}"), "{\"x\":1}")),
        ("no key for orders", post_to("/v1/disconnect", json, "{}")),
        ("no logout token", post_to("/oidc/backchannel-logout", form, "logout_token=a.b.c")),
        ("bad origin", get("/ws/notifications", &format!("Origin: http://evil\r\n{upgrade}"))),
        ("bad version", get("/ws/notifications", &upgrade.replace("13", "7"))),
        ("bad percent", get("/ws/notifications?token=%zz%ff%00", upgrade)),
        ("long path", get(&format!("/{long}"), "")),
        ("long header", get("/", &format!("X-Long: {}\r\n", "x".repeat(200_000)))),
        ("many headers", get("/", &"X-Many: 1\r\n".repeat(500))),
        ("bad header", get("/", "No colon here\r\n")),
        ("no HTTP", "HELLO\r\n\r\n".into()),
        ("old HTTP", "GET / HTTP/0.9\r\n\r\n".into()),
        ("new HTTP", "GET / HTTP/3.7\r\nHost: x\r\n\r\n".into()),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}".to_owned() + "\r\n\r\n"),
        ("no host", "GET /nope HTTP/1.1\r\n\r\n".into()),
        ("connect", "CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n".into()),
        (
            "both lengths",
            format!(
                "POST /v1/events HTTP/1.1\r\nHost: x\r\n{key}{json}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "bad chunk",
            format!(
                "POST /v1/events HTTP/1.1\r\nHost: x\r\n{key}{json}Transfer-Encoding: chunked\r\n\r\nzz\r\n"
            ),
        ),
    ];
    let mut answered = 0;
    for address in [replica.public, replica.internal] {
        for (what, request) in &requests {
            let Some(reply) = try_exchange(address, request.as_bytes()).await else { continue };
            answered += 1;
            assert!(reply.status >= 400, "{what}: {}", reply.text);
            assert_ne!(reply.status, 500, "{what}: {}", reply.text);
            gives_nothing_away(what, &reply);
        }
    }
    assert!(answered > requests.len(), "only {answered} answers");
    redis.kill();
    replica.becomes("/readyz", 503, PATIENCE).await;
    let body = r#"{"to":{"user":"a"},"type":"t","data":1}"#;
    let away = exchange(replica.internal, post(&format!("{key}{json}"), body).as_bytes()).await;
    assert_eq!(away.status, 503, "{}", away.text);
    gives_nothing_away("Redis is away", &away);
    let away = exchange(
        replica.public,
        get(&format!("/ws/notifications?token={}", token("a")), upgrade).as_bytes(),
    )
    .await;
    assert_eq!(away.status, 503, "{}", away.text);
    gives_nothing_away("Redis is away", &away);
    assert!(!replica.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_slow_handshakes_do_not_stay() {
    let replica = Replica::start().await;
    // Half a request and silence: closed in the end, and nobody else waits for it.
    let mut halves = Vec::new();
    for _ in 0..50 {
        let stream = tokio::net::TcpStream::connect(replica.public).await.expect("accepted");
        let mut stream = stream;
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /ws/notifi").await.expect("open");
        halves.push(stream);
    }
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    replica.to_user("alice", "here").await;
    ws.event("here").await;
    for stream in &mut halves {
        let mut rest = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(stream, &mut rest);
        let end = tokio::time::timeout(Duration::from_secs(40), end).await;
        assert!(end.is_ok(), "half a request is kept for more than 40 s");
    }
}

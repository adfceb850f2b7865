//! TLS on both listeners: everything is as it is without, certificates change under way, and what
//! is no TLS harms nobody.

use std::path::PathBuf;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Process, Replica, belfry},
    client::Ws,
    http::exchange,
    jwt::token,
    tls::{Authority, Pair, dial},
    until,
};

/// The files of a listener.
struct Files {
    dir: TempDir,
    authority: Authority,
    pair: Pair,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("tests");
        let pair = authority.pair();
        let files = Self { dir, authority, pair };
        files.pair.write(&files.path("cert.pem"), &files.path("key.pem"));
        std::fs::write(files.path("ca.pem"), &files.authority.pem).expect("a file");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    fn on(&self, builder: Builder, section: &str) -> Builder {
        builder
            .set(&format!("{section}.tls.cert_file"), self.text("cert.pem"))
            .set(&format!("{section}.tls.key_file"), self.text("key.pem"))
    }

    /// On both listeners.
    fn both(&self) -> Builder {
        let builder = self.on(Builder::production(), "public");
        self.on(builder, "internal").internal_ca(&self.authority.pem)
    }

    /// On the public one.
    async fn public(&self) -> Replica {
        self.on(Builder::production(), "public").spawn().await
    }

    async fn open(&self, replica: &Replica, user: &str) -> Ws {
        let stream = self.authority.websocket(replica.public, &token(user), None).await;
        let mut ws = Ws::run(stream, None);
        ws.read_welcome().await;
        ws
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_from_https_to_wss() {
    let files = Files::new();
    let replica = files.both().spawn().await;
    let mut ws = files.open(&replica, "alice").await;
    for n in 0..20 {
        let marker = format!("n{n}.");
        replica.to_user("alice", &marker).await;
        ws.event(&marker).await;
    }
    // Larger than any buffer on the way.
    let big = json!({"to": {"user": "alice"}, "type": "big", "data": "x".repeat(60_000)});
    for _ in 0..10 {
        replica.event(&big).await;
    }
    replica.to_user("alice", "after").await;
    assert_eq!(ws.through("after").await.len(), 11);
    ws.is_alive().await;
    ws.close().await;
    replica.metric_is("connections", 0.0, PATIENCE).await;
    let log = replica.log();
    assert!(log.contains(r#""tls":true"#) && !log.contains(r#""tls":false"#), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_protocol_is_http_1_1_and_nothing_else() {
    let files = Files::new();
    let replica = files.public().await;
    let offer = async |names: &[&str]| {
        let client = files.authority.client(names, None);
        dial(&client, replica.public, None).await.map(|stream| {
            stream
                .get_ref()
                .1
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned())
        })
    };
    assert_eq!(offer(&["h2", "http/1.1"]).await.expect("TLS").as_deref(), Some("http/1.1"));
    assert_eq!(offer(&["http/1.1"]).await.expect("TLS").as_deref(), Some("http/1.1"));
    assert_eq!(offer(&[]).await.expect("TLS"), None);
    assert!(offer(&["h2"]).await.is_err());
    // A stranger's certificate is refused by the client, and nothing else happens.
    let stranger = Authority::new("stranger");
    assert!(stranger.connect(replica.public).await.is_err());
    files.open(&replica, "alice").await.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_speaks_tls() {
    let files = Files::new();
    let replica = files.both().spawn().await;
    let run = async |args: &[&str], env: &[(&str, &str)]| {
        let mut command = belfry();
        command.args(args).env("BELFRY_API_KEY", API_KEY).envs(env.iter().copied());
        let process = Process::spawn(command);
        let status = process.end(PATIENCE).await;
        (status.code(), process.output())
    };
    let internal = format!("https://{}", replica.internal);
    let public = format!("wss://{}", replica.public);
    let ca = files.text("ca.pem");
    let publish = ["publish", "--url", &internal, "--user", "alice", "{}"];
    let (code, said) = run(&publish, &[("BELFRY_CA_FILE", &ca)]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&publish, &[]).await;
    assert_eq!(code, Some(1), "an unknown authority was trusted: {said}");
    let (code, said) = run(&publish, &[("BELFRY_CA_FILE", "/nowhere")]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/nowhere"), "{said}");
    let health = ["healthcheck", "--url", &internal, "--ca-file", &ca];
    let (code, said) = run(&health, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    // By the configuration alone, as in a container: on loopback no name can be right.
    let env = [
        ("BELFRY__INTERNAL__BIND".to_owned(), replica.internal.to_string()),
        ("BELFRY__INTERNAL__TLS__CERT_FILE".to_owned(), files.text("cert.pem")),
        ("BELFRY__INTERNAL__TLS__KEY_FILE".to_owned(), files.text("key.pem")),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let (code, said) = run(&["healthcheck"], &env).await;
    assert_eq!(code, Some(0), "{said}");
    let jwt = token("alice");
    let listen = ["listen", "--url", &public, "--token", &jwt, "--count", "1", "--ca-file", &ca];
    let (listened, ()) = tokio::join!(run(&listen, &[]), async {
        replica.metric_is("connections", 1.0, PATIENCE).await;
        replica.to_user("alice", "by the command line").await;
    });
    assert_eq!(listened.0, Some(0), "{}", listened.1);
    assert!(listened.1.contains("by the command line"), "{}", listened.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_close_codes_reach_a_client_that_is_still_sending() {
    let files = Files::new();
    let replica = files.public().await;
    for (first, code) in [(20_000, 1009), (10, 4429)] {
        for run in 0..20 {
            let stream = files.authority.websocket(replica.public, &token("alice"), None).await;
            let (mut sink, mut stream) = stream.split();
            let sending = tokio::spawn(async move {
                let mut message = Message::binary(vec![0; first]);
                // Errors are expected once the server has closed; what it said is the point.
                for _ in 0..10_000 {
                    if sink.send(message).await.is_err() {
                        break;
                    }
                    message = Message::binary(vec![0; 100]);
                }
            });
            let closed =
                until("the connection ends", PATIENCE, async || match stream.next().await {
                    Some(Ok(Message::Close(frame))) => {
                        Some(frame.map(|frame| u16::from(frame.code)))
                    }
                    Some(Ok(_)) => None,
                    Some(Err(error)) => panic!("run {run}: {error}"),
                    None => Some(None),
                })
                .await;
            assert_eq!(closed, Some(code), "run {run}");
            sending.abort();
        }
    }
    replica.metric_is("connections", 0.0, PATIENCE).await;
}

fn bulk(n: usize) -> Value {
    json!({"to": {"user": "slow"}, "type": "bulk", "data": {"n": n, "pad": "x".repeat(16_000)}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s06_a_slow_consumer_is_told_and_one_that_never_reads_is_reset() {
    let files = Files::new();
    let builder = files.on(Builder::production(), "public").set("limits.queue_bytes", "64KiB");
    let replica = builder.spawn().await;
    let mut other = files.open(&replica, "other").await;
    for reads in [true, false] {
        let slow = files.authority.websocket(replica.public, &token("slow"), Some(4_096)).await;
        let before = replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
        let mut n = 0;
        until("it is cut", Duration::from_secs(60), async || {
            for _ in 0..20 {
                replica.event(&bulk(n)).await;
                n += 1;
            }
            let now = replica.metrics().await.get("closes_total", &[("cause", "slow_consumer")]);
            (now > before).then_some(())
        })
        .await;
        if reads {
            let mut ws = Ws::run(slow, None);
            let end = ws.end(PATIENCE).await;
            assert_eq!((end.code, end.reason.as_str()), (1013, "slow_consumer"));
            // What came is a part without a hole, after the welcome.
            for (n, text) in end.texts.iter().skip(1).enumerate() {
                assert!(text.contains(&format!("\"n\":{n},")), "a hole before {n}");
            }
            replica.metric_is("connections", 1.0, PATIENCE).await;
        } else {
            replica.metric_is("connections", 1.0, Duration::from_secs(8)).await;
            drop(slow);
        }
    }
    replica.to_user("other", "fine").await;
    other.event("fine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_is_answered_and_tls_ends_in_order() {
    let files = Files::new();
    let replica = files.public().await;
    for run in 0..20 {
        let mut stream = files.authority.websocket(replica.public, &token("alice"), None).await;
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        stream.send(Message::Close(Some(close))).await.expect("open");
        let mut code = None;
        // Anything but an answer and then an orderly end is an error here: a reset, or an end of
        // file without TLS's own farewell.
        while let Some(message) = stream.next().await {
            if let Message::Close(frame) = message.unwrap_or_else(|e| panic!("run {run}: {e}")) {
                code = frame.map(|frame| u16::from(frame.code));
            }
        }
        assert_eq!(code, Some(1000), "run {run}");
        let mut rest = [0];
        let end = stream.get_mut().read(&mut rest).await;
        assert!(matches!(end, Ok(0)), "run {run}: {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x01_a_drain_says_goodbye() {
    let files = Files::new();
    let replica = files.both().spawn().await;
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(files.open(&replica, &format!("u{n}")).await);
    }
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    for ws in &mut all {
        assert_eq!(ws.end(PATIENCE).await.code, 1012);
    }
    assert!(replica.process.end(PATIENCE).await.success());
}

/// The certificate that a server shows to one who believes it.
async fn shown(authority: &Authority, replica: &Replica) -> Option<Vec<u8>> {
    let stream = authority.connect(replica.public).await.ok()?;
    let shown = stream.get_ref().1.peer_certificates()?.first()?.to_vec();
    Some(shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_followed_and_nobody_is_dropped() {
    let files = Files::new();
    let replica = files.both().spawn().await;
    let mut ws = files.open(&replica, "alice").await;
    assert_eq!(shown(&files.authority, &replica).await, Some(files.pair.der().to_vec()));
    // Of the same authority.
    let next = files.authority.pair();
    next.write(&files.path("cert.pem"), &files.path("key.pem"));
    until("the new certificate is shown", PATIENCE, async || {
        (shown(&files.authority, &replica).await? == next.der().to_vec()).then_some(())
    })
    .await;
    // What cannot serve is told, and the present one stays.
    std::fs::write(files.path("cert.pem"), "no certificate").expect("a file");
    until("the fault is logged", PATIENCE, async || {
        let log = replica.log();
        (log.contains("holds no certificate in PEM") && log.contains("stays in force"))
            .then_some(())
    })
    .await;
    std::fs::write(files.path("cert.pem"), &files.pair.cert).expect("a file");
    until("the fault is logged", PATIENCE, async || {
        replica.log().contains("is not the key of the certificate").then_some(())
    })
    .await;
    assert_eq!(shown(&files.authority, &replica).await, Some(next.der().to_vec()));
    // Of another authority, the way Kubernetes does it: a link is swapped.
    let other = Authority::new("other");
    let last = other.pair();
    last.write(&files.path("cert.new"), &files.path("key.new"));
    for name in ["cert", "key"] {
        std::fs::rename(files.path(&format!("{name}.new")), files.path(&format!("{name}.pem")))
            .expect("a rename");
    }
    until("the last certificate is shown", PATIENCE, async || {
        (shown(&other, &replica).await? == last.der().to_vec()).then_some(())
    })
    .await;
    // Who was there from the beginning still is, and gets what is published.
    let mut command = belfry();
    std::fs::write(files.path("other.pem"), &other.pem).expect("a file");
    command
        .args(["publish", "--url", &format!("https://{}", replica.internal)])
        .args(["--user", "alice", "--ca-file", &files.text("other.pem"), r#""still here""#])
        .env("BELFRY_API_KEY", API_KEY);
    let publish = Process::spawn(command);
    let status = publish.end(PATIENCE).await;
    assert!(status.success(), "{}", publish.output());
    ws.event("still here").await;
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_ends_soon_and_harms_nobody() {
    let files = Files::new();
    let replica = files.both().spawn().await;
    let mut ws = files.open(&replica, "alice").await;
    for bytes in [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\0".repeat(100_000),
        // A record of 16 KiB that never ends, and a hello that is none.
        [&[0x16, 3, 1, 0x40, 0][..], &[1; 1_000]].concat(),
        [&[0x16, 3, 3, 0, 4, 1, 0, 0, 0][..]].concat(),
        Vec::new(),
    ] {
        for address in [replica.public, replica.internal] {
            let mut stream = TcpStream::connect(address).await.expect("accepted");
            // A server that closes while we write is right as well.
            let _ = stream.write_all(&bytes).await;
            let mut rest = Vec::new();
            let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            assert!(end.is_ok(), "{} bytes keep a connection", bytes.len());
            assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
        }
    }
    replica.to_user("alice", "fine").await;
    ws.event("fine").await;
    assert!(!replica.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handshakes_do_not_block_others() {
    let files = Files::new();
    let replica = files.public().await;
    let mut ws = files.open(&replica, "alice").await;
    let mut slow = Vec::new();
    for n in 0..400 {
        let mut stream = TcpStream::connect(replica.public).await.expect("accepted");
        if n % 2 == 0 {
            // The beginning of a hello.
            stream.write_all(&[0x16, 3, 1, 1, 0, 1, 0]).await.expect("open");
        }
        slow.push(stream);
    }
    // Some that say hello, and nothing after the server's answer.
    let hello = hello().await;
    for _ in 0..100 {
        let mut stream = TcpStream::connect(replica.public).await.expect("accepted");
        stream.write_all(&hello).await.expect("open");
        slow.push(stream);
    }
    for n in 0..10 {
        let begun = Instant::now();
        let mut bob = files.open(&replica, "bob").await;
        let marker = format!("n{n}.");
        replica.to_user("bob", &marker).await;
        bob.event(&marker).await;
        replica.to_user("alice", &marker).await;
        ws.event(&marker).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    for stream in &mut slow {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "a slow handshake is kept for more than {PATIENCE:?}");
    }
    ws.is_alive().await;
}

/// The first bytes of a client's handshake.
async fn hello() -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let authority = Authority::new("anyone");
    let client = tokio::spawn(async move { authority.connect(address).await.is_ok() });
    let (mut stream, _) = listener.accept().await.expect("a client");
    let mut bytes = vec![0; 4_096];
    let count = stream.read(&mut bytes).await.expect("a hello");
    bytes.truncate(count);
    client.abort();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_internal_listener_can_be_asked_for_certificates() {
    let files = Files::new();
    let replica =
        files.both().set("internal.tls.client_ca_file", files.text("ca.pem")).spawn().await;
    // Probes have none; Builder::spawn has seen both answer already.
    assert_eq!(replica.get("/livez").await.status, 200);
    assert_eq!(replica.get("/readyz").await.status, 200);
    let body = json!({"to": {"user": "a"}, "type": "t", "data": 1}).to_string();
    for path in ["/metrics", "/v1/stats", "/", "//livez", "/livez/", "/v1/../livez"] {
        let answer = replica.get(path).await;
        assert!(
            answer.status == 403 || path == "/v1/../livez" && answer.status == 200,
            "{path}: {answer:?}"
        );
    }
    replica.post(body.clone()).await.is_problem(403);
    // With one, the key decides.
    let own = files.authority.pair();
    let post = async |pair: &Pair, key: &str| {
        let client = files.authority.client(&[], Some(pair));
        let mut stream = dial(&client, replica.internal, None).await.ok()?;
        let request = format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Authorization: Bearer {key}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        // An end without TLS's own farewell is an end here.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).get(9..12)?.parse::<u16>().ok()
    };
    assert_eq!(post(&own, API_KEY).await, Some(202));
    assert_eq!(post(&own, "wrong").await, Some(401));
    // One of another authority is not better than none.
    let stranger = Authority::new("stranger").pair();
    assert_eq!(post(&stranger, API_KEY).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_tls_are_faults_of_the_configuration() {
    let files = Files::new();
    let other = Authority::new("other").pair();
    std::fs::write(files.path("other.key"), &other.key).expect("a file");
    std::fs::write(files.path("bad.pem"), "nothing in here").expect("a file");
    let config = async |set: &[(&str, &str)]| {
        let mut builder = Builder::production();
        for (key, file) in set {
            builder = builder.set(key, files.text(file));
        }
        let process = Process::spawn(builder.command());
        let status = process.end(PATIENCE).await;
        (status.code(), process.output())
    };
    for (set, says) in [
        (
            &[("public.tls.cert_file", "cert.pem"), ("internal.tls.key_file", "key.pem")][..],
            &["public.tls.key_file", "internal.tls.cert_file"][..],
        ),
        (
            &[("public.tls.cert_file", "bad.pem"), ("public.tls.key_file", "absent.pem")],
            &["bad.pem holds no certificate in PEM", "absent.pem cannot be read"],
        ),
        (
            &[("public.tls.cert_file", "cert.pem"), ("public.tls.key_file", "other.key")],
            &["public.tls.key_file", "is not the key of the certificate"],
        ),
        (
            &[("public.tls.cert_file", "cert.pem"), ("public.tls.key_file", "cert.pem")],
            &["cert.pem holds no private key in PEM"],
        ),
        (
            &[("internal.tls.client_ca_file", "ca.pem")],
            &["internal.tls.cert_file", "internal.tls.key_file"],
        ),
    ] {
        let (code, said) = config(set).await;
        assert_eq!(code, Some(2), "{set:?}: {said}");
        for word in says {
            assert!(said.contains(word), "{set:?}: {word:?} is not in {said}");
        }
        for secret in [&files.pair.key, &other.key] {
            let told = secret.lines().any(|line| !line.starts_with('-') && said.contains(line));
            assert!(!told, "a private key is in {said}");
        }
    }
    // Plain stays plain.
    let replica = Replica::start().await;
    let reply = exchange(replica.public, b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(reply.status, 404);
}

//! What operators rely on: logs, metrics, health, start and end.

use std::{collections::BTreeSet, net::TcpListener};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Process, Replica},
    client::{Dial, Seen},
    http::exchange,
    jwt::{Jwt, SECRET, token},
    raw::Raw,
    redis::RedisServer,
    until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o01_credentials_are_never_in_the_logs() {
    let redis = RedisServer::with(&["--requirepass", "redis-secret-5c1d"]).await;
    let url = format!("redis://:redis-secret-5c1d@{}", redis.address());
    for profile in [Builder::production(), Builder::development()] {
        let replica = profile.redis_at(&url).set("log.level", "trace").spawn().await;
        let mut secrets = vec![
            SECRET.to_owned(),
            API_KEY.to_owned(),
            "redis-secret-5c1d".to_owned(),
            URL_SAFE_NO_PAD.encode(SECRET),
        ];
        // Each use has a token of its own, so that each leak names its way.
        let mut fresh = |user: &str, bad: bool| {
            let jwt = Jwt::of(user).claim("jti", format!("id-{}", secrets.len()));
            let jwt = if bad { jwt.secret("another-secret-of-someone-else") } else { jwt }.sign();
            secrets.extend(jwt.split('.').skip(1).map(str::to_owned));
            jwt
        };
        for bad in [false, true] {
            for place in [Dial::query as fn(Dial, &str) -> Dial, Dial::bearer, Dial::subprotocol] {
                let mut ws = place(Dial::to(&replica), &fresh("alice", bad)).connect().await;
                if bad {
                    ws.end(PATIENCE).await;
                } else {
                    let renewal = json!({"type": "belfry.token", "token": fresh("alice", false)});
                    ws.send(renewal.to_string());
                    ws.word("belfry.renewed", PATIENCE).await;
                    let renewal = json!({"type": "belfry.token", "token": fresh("alice", true)});
                    ws.send(renewal.to_string());
                    ws.word("belfry.renewal_failed", PATIENCE).await;
                    ws.send(format!("a message that is no JSON, with {}", fresh("alice", false)));
                    ws.is_alive().await;
                }
            }
        }
        let mut bodies = String::new();
        let jwt = fresh("alice", false);
        for line in [
            format!("GET /ws/notifications?token={jwt}"),
            format!("GET /nope?token={jwt}"),
            format!("GET /ws/notifications/{jwt}"),
            format!("GET /ws/notifications?TOKEN={jwt}&token=%ff{jwt}"),
            format!("GET /ws/notifications?ticket={jwt}"),
            format!("GET //{jwt}?a=b"),
            format!("DELETE /ws/notifications?token={jwt}"),
        ] {
            for address in [replica.public, replica.internal] {
                for headers in [
                    format!("Authorization: Bearer {jwt}\r\n"),
                    format!("Authorization: {jwt}\r\n"),
                    format!("Cookie: session_id={jwt}\r\n"),
                    format!("Sec-WebSocket-Protocol: belfry.token.{jwt}\r\n"),
                    format!(
                        "Sec-WebSocket-Protocol: belfry.token.{jwt}\r\nOrigin: http://evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                    ),
                    format!("X-Broken {jwt}\r\n"),
                ] {
                    let request =
                        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
                    let reply = exchange(address, request.as_bytes()).await;
                    bodies.push_str(&reply.text);
                }
            }
        }
        for key in ["wrong-key-8d1f5f", API_KEY] {
            replica.post_with("{", key, "application/json").await;
            replica.post_with("{}", key, "text/plain").await;
        }
        secrets.push("wrong-key-8d1f5f".into());
        bodies.push_str(&replica.get("/metrics").await.text);
        bodies.push_str(&replica.get("/readyz").await.text);
        replica.process.signal(Signal::SIGTERM);
        replica.process.end(PATIENCE).await;
        let log = replica.log();
        assert!(log.lines().count() > 20, "trace says more than this: {log}");
        for secret in &secrets {
            for (what, text) in [("the log", &log), ("an answer", &bodies)] {
                if let Some(at) = text.find(secret.as_str()) {
                    let line = text.get(..at).and_then(|t| t.lines().last()).unwrap_or_default();
                    panic!("{secret} is in {what}, after {line:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o02_the_number_of_series_does_not_grow() {
    let replica = Replica::start().await;
    let run = async |round: u32| {
        for n in 0..60 {
            let id = format!("{round}-{n}");
            let jwt = Jwt::of(&format!("user-{id}")).groups(&[&format!("group-{id}")]).sign();
            let mut ws = Dial::to(&replica).query(&jwt).open().await;
            ws.send(format!("{{\"type\":\"kind-{id}\"}}"));
            let body = json!({
                "to": {"user": format!("user-{id}")}, "type": format!("type-{id}"), "data": {"mk": "x"}
            });
            replica.event(&body).await;
            ws.event("\"x\"").await;
            replica.to_group(&format!("group-{id}"), "g").await;
            ws.event("\"g\"").await;
            ws.close().await;
            let bad = Dial::to(&replica).query(&format!("bad.token.{id}"));
            bad.is_refused("a bad token").await;
            Dial::to(&replica)
                .bearer(&token("x"))
                .origin(&format!("http://{id}.evil"))
                .is_refused("origin")
                .await;
            for path in [format!("/nope-{id}"), format!("/v1/events-{id}"), format!("/?q={id}")] {
                replica.get(&path).await;
                let request = format!("GET {path} HTTP/1.1\r\nHost: {id}.example\r\n\r\n");
                exchange(replica.public, request.as_bytes()).await;
            }
            replica.post_with("{}", &format!("key-{id}"), "application/json").await;
            replica.post(format!("{{\"{id}\":1}}")).await;
            let strange = format!("X{} /v1/events HTTP/1.1\r\nHost: x\r\n\r\n", n % 9);
            exchange(replica.internal, strange.as_bytes()).await;
        }
    };
    let names = async || replica.metrics().await.0.into_keys().collect::<BTreeSet<_>>();
    run(1).await;
    let before = names().await;
    run(2).await;
    let after = names().await;
    assert_eq!(before, after, "new: {:?}", after.difference(&before).collect::<Vec<_>>());
    let belfrys = after.iter().filter(|name| name.starts_with("belfry_")).count();
    assert!((20..600).contains(&belfrys), "{belfrys} series");
    let leak = |name: &&String| {
        ["user-", "group-", "type-", "nope", "evil", "key-"].iter().any(|word| name.contains(word))
    };
    assert_eq!(after.iter().find(leak), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o03_the_names_of_the_contract() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    Dial::to(&replica).query("bad").is_refused("a bad token").await;
    replica.to_user("alice", "one").await;
    ws.event("one").await;
    ws.send("no JSON");
    ws.is_alive().await;
    let answer = replica.get("/metrics").await;
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/plain"), "{kind}");
    for (name, kind, label) in [
        ("connections", "gauge", "transport"),
        ("connections_limit", "gauge", ""),
        ("users", "gauge", ""),
        ("connects_total", "counter", "result"),
        ("connects_total", "counter", "auth"),
        ("connects_total", "counter", "transport"),
        ("closes_total", "counter", "cause"),
        ("events_published_total", "counter", "target"),
        ("events_published_total", "counter", "result"),
        ("events_received_total", "counter", "source"),
        ("deliveries_total", "counter", "result"),
        ("delivery_duration_seconds", "histogram", ""),
        ("publish_duration_seconds", "histogram", ""),
        ("queue_bytes", "gauge", ""),
        ("ready", "gauge", ""),
        ("redis_up", "gauge", "role"),
        ("redis_pubsub_gaps_total", "counter", "reason"),
        ("redis_probe_duration_seconds", "histogram", ""),
        ("messages_dropped_total", "counter", "reason"),
        ("auth_duration_seconds", "histogram", "method"),
        ("api_requests_total", "counter", "code"),
        ("api_requests_total", "counter", "key"),
        ("api_requests_total", "counter", "route"),
        ("drain_remaining_connections", "gauge", ""),
        ("worker_lag_seconds", "", ""),
        ("build_info", "gauge", "version"),
    ] {
        let line = format!("# TYPE belfry_{name} {kind}");
        assert!(answer.text.contains(&line), "no {line:?}");
        let labelled = |line: &str| {
            line.starts_with(&format!("belfry_{name}")) && line.contains(&format!("{label}=\""))
        };
        assert!(label.is_empty() || answer.text.lines().any(labelled), "{name} without {label}");
    }
    assert!(answer.text.contains("process_resident_memory_bytes"));
    let metrics = replica.metrics().await;
    assert!(
        (metrics.get("connections", &[("transport", "websocket")]) - 1.0).abs() < f64::EPSILON,
        "{metrics:?}"
    );
    for (name, least) in [
        ("users", 1.0),
        ("ready", 1.0),
        ("redis_up", 2.0),
        ("connects_total", 2.0),
        ("events_published_total", 1.0),
        ("deliveries_total", 1.0),
        ("messages_dropped_total", 1.0),
        ("connections_limit", 100.0),
        ("delivery_duration_seconds_count", 1.0),
        ("publish_duration_seconds_count", 1.0),
        ("redis_probe_duration_seconds_count", 1.0),
    ] {
        // Workers hand their counts over now and then, not with every event.
        replica.metric(name, &[], PATIENCE, |now| now >= least).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o04_metrics_are_not_public() {
    for replica in [Replica::start().await, Builder::development().spawn().await] {
        for path in
            ["/metrics", "/metrics/", "//metrics", "/readyz", "/v1/stats", "/belfry/metrics"]
        {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n"
            );
            let reply = exchange(replica.public, request.as_bytes()).await;
            assert!(matches!(reply.status, 401 | 403 | 404), "{path}: {}", reply.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o05_live_and_ready_differ() {
    let mut redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).set("ready.redis_grace", "3s").spawn().await;
    let checks = replica.get("/readyz").await.json()["checks"].clone();
    assert!(checks.as_object().is_some_and(|checks| checks.len() >= 2), "{checks}");
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    redis.kill();
    let start = Instant::now();
    let mut turned = None;
    while start.elapsed() < Duration::from_secs(10) {
        let live = replica.get("/livez").await;
        assert_eq!(live.status, 200, "{live:?}");
        assert!(live.took < Duration::from_secs(1), "{live:?}");
        let ready = replica.get("/readyz").await;
        assert!(ready.took < Duration::from_secs(1), "{ready:?}");
        if ready.status == 503 {
            turned.get_or_insert(start.elapsed());
            let bad = ready.json()["checks"]
                .as_object()
                .map(|checks| checks.iter().filter(|(_, check)| check["ok"] == false).count());
            assert_eq!(bad, Some(1), "{ready:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The grace: a short outage that all replicas share moves nobody.
    let turned = turned.expect("/readyz turns 503");
    assert!(turned >= Duration::from_millis(2_500), "after {turned:?}, within the grace");
    assert_eq!(replica.get("/readyz").await.status, 503);
    let metrics = replica.metrics().await;
    assert!(metrics.sum("ready").abs() < f64::EPSILON);
    assert!(metrics.sum("redis_up").abs() < f64::EPSILON);
    ws.is_alive().await;
    redis.restart().await;
    replica.becomes("/readyz", 200, Duration::from_secs(5)).await;
    // Within the grace it stays ready throughout.
    redis.kill();
    redis.restart().await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(replica.get("/readyz").await.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a confused or hostile neighbour may put on a channel.
fn poison() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "",
        " ",
        "nonsense",
        "5",
        "-1.5e3",
        "true",
        "null",
        "\"text\"",
        "[]",
        "[1,2]",
        "[{\"type\":\"x\"}]",
        "{",
        "}",
        "{}}",
        "{\"type\":\"x\"",
        "{\"type\":\"x\"}}",
        "{\"type\":\"x\"}{\"type\":\"y\"}",
        "{\"type\":\"x\",}",
        "{'type':'x'}",
        "{\"a\":01}",
        "{\"a\":\"\u{1}\"}",
        "{\"a\":NaN}",
        "\u{feff}{\"type\":\"x\"}",
        "{\"type\":\"x\"} x",
        "{\"belfry\":{\"v\":1",
        "{\"belfry\":{\"v\":1,",
        "{\"belfry\":{\"v\":1}",
        "{\"belfry\":{\"v\":1},",
        "{\"belfry\":{\"v\":1},garbage",
        "{\"belfry\":{\"v\":1,\"except\":[\"",
        "{\"belfry\":{\"v\":1,\"except\":\"alice\"},\"type\":",
        "{\"belfry\":{\"v\":1,\"except\":[1,2,{}]}}}",
        "{\"belfry\":{\"v\":1}}{\"type\":\"x\"}",
        "{\"belfry\":{\"v\":1},\"type\":\"x\"",
        "{\"belfry\":{\"v\":99999999999999999999}",
        "{\"belfry\":{\"v\":1,\"except\":[\"alice\"]},\"type\":\"x\",\"data\":[}",
        "{\"belfry\":",
        "{\"belfry",
        "{\"belfry\":{}},\"type\":\"x\"}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    all.push(b"\xff\xfe".to_vec());
    all.push(b"{\"type\":\"x\",\"data\":\"\xff\"}".to_vec());
    all.push(b"{\"type\":\"x\",\"data\":\"\xed\xa0\x80\"}".to_vec());
    all.push(b"{\"belfry\":{\"v\":1},\"type\":\"\xc3\"}".to_vec());
    all.push(vec![0; 100]);
    all.push("[".repeat(100_000).into_bytes());
    all.push(format!("{{\"a\":{}", "[".repeat(50_000)).into_bytes());
    all.push(format!("{{\"belfry\":{}", "{\"a\":".repeat(50_000)).into_bytes());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o08_poison_harms_nothing_and_does_not_flood_the_log() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let jwt = Jwt::of("alice").groups(&["staff"]).sign();
    let mut ws = Dial::to(&replica).query(&jwt).open().await;
    let before = replica.process.rss();
    let lines = replica.log().lines().count();
    let mut client = redis.client().await;
    let poison = poison();
    let channels = [
        "ws:user:alice",
        "ws:user:",
        "ws:user:nobody",
        "ws:user:a\nb",
        "ws:group:",
        "ws:group:staff",
        "ws:broadcast",
        "ws:control",
        "ws:user:\u{1}probe",
    ];
    let small: Vec<_> = poison.iter().filter(|payload| payload.len() < 1_000).collect();
    let messages =
        (0..10_000).map(|n| (channels[n % channels.len()], small[n % small.len()].clone()));
    client.publish_all(messages).await;
    for channel in channels {
        for payload in &poison {
            client.publish(channel, payload).await;
        }
    }
    // More than any event may have, and well formed.
    let huge = format!("{{\"type\":\"huge\",\"data\":\"{}\"}}", "x".repeat(8 << 20));
    client.publish("ws:user:alice", &huge).await;
    // Names that no UTF-8 makes.
    for name in [&b"ws:user:\xff"[..], b"ws:group:\xc3\x28", b"ws:user:\xed\xa0\x80"] {
        client.command(&[b"PUBLISH", name, b"{\"type\":\"x\"}"]).await;
    }
    let good = r#"{"type":"raw",  "data":{"mk":"good"}}"#;
    client.publish("ws:user:alice", good).await;
    let (_, text) = ws.text(PATIENCE).await;
    let shown: String = text.chars().take(200).collect();
    assert!(text == good, "poison was delivered: {shown}");
    replica.metric("messages_dropped_total", &[], PATIENCE, |n| n > 5_000.0).await;
    replica.to_all("after").await;
    ws.event("after").await;
    let said = replica.log().lines().count() - lines;
    assert!(said < 200, "{said} lines for 10,000 poison messages");
    assert!(!replica.log().contains("panicked"), "a panic");
    let grown = replica.process.rss() - before;
    assert!(grown < 64 * 1024, "grew by {grown} KiB");
    replica.metric_is("redis_pubsub_gaps_total", 0.0, PATIENCE).await;
    assert_eq!(replica.get("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o08_forged_probes_and_words_of_belfry() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    // What Belfry really writes to its neighbours, sent again by one of them.
    let mut heard = Vec::new();
    let mut client = redis.client().await;
    for text in [
        "{\"type\":\"belfry.probe\"}",
        "{\"type\":\"belfry.probe\",\"nonce\":\"x\"}",
        "{\"type\":\"belfry.goodbye\",\"code\":4403}",
        "{\"type\":\"ping\"}",
    ] {
        for channel in ["ws:user:alice", "ws:broadcast", "ws:control"] {
            client.publish(channel, text).await;
            heard.push(text);
        }
    }
    replica.to_user("alice", "last").await;
    ws.event("last").await;
    ws.is_alive().await;
    assert_eq!(replica.get("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o08_belfrys_own_messages_cut_and_garbled() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let mut listener = redis.client().await;
    listener.words("SUBSCRIBE ws:user:alice").await;
    listener.words("SUBSCRIBE ws:broadcast").await;
    let mut own = Vec::new();
    for body in [
        json!({"to": {"user": "alice"}, "type": "t", "data": {"n": 1}}),
        json!({"to": {"user": "alice"}, "type": "t", "data": 1, "sender": "s", "transient": true}),
        json!({"to": {"broadcast": true}, "type": "t", "data": "x", "except": {"users": ["a\"]}b"]}}),
    ] {
        replica.event(&body).await;
        let payload = listener.message().await;
        assert!(serde_json::from_slice::<Value>(&payload).is_ok_and(|value| value.is_object()));
        own.push(payload);
        ws.text(PATIENCE).await;
    }
    let mut client = redis.client().await;
    let mut published = 0;
    for payload in own {
        let mut variants: Vec<Vec<u8>> =
            (0..payload.len()).map(|end| payload[..end].to_vec()).collect();
        for at in 0..payload.len() {
            for bad in [0xff, b'}', b'"', 0] {
                let mut changed = payload.clone();
                changed[at] = bad;
                variants.push(changed);
            }
        }
        variants.push([&payload[..], b"}"].concat());
        variants.push([&payload[..], &payload[..]].concat());
        // What by chance is an object still may be delivered.
        for variant in variants {
            if serde_json::from_slice::<Value>(&variant).is_ok_and(|value| value.is_object()) {
                continue;
            }
            client.publish("ws:user:alice", variant).await;
            published += 1;
        }
    }
    assert!(published > 200);
    let good = r#"{"mk":"good"}"#;
    client.publish("ws:user:alice", good).await;
    let (_, text) = ws.text(PATIENCE).await;
    assert_eq!(text, good, "what is not JSON was delivered");
    replica.metric("messages_dropped_total", &[], PATIENCE, |n| n >= f64::from(published)).await;
    assert!(!replica.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o08_a_storm_of_refusals_does_not_flood_the_log() {
    let replica = Replica::start().await;
    let lines = replica.log().lines().count();
    for n in 0..600 {
        let bad = format!("bad.{n}.token");
        let mut ws = Dial::to(&replica).query(&bad).connect().await;
        ws.end(PATIENCE).await;
    }
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    for n in 0..3_000 {
        ws.send(format!("not JSON {n}"));
    }
    ws.is_alive().await;
    let said = replica.log().lines().count() - lines;
    assert!(said < 200, "{said} lines for 600 refusals and 3,000 bad messages");
}

/// `belfry serve` that must not come up.
async fn does_not_start(what: &str, builder: &Builder, names: &[&str]) -> String {
    let process = Process::spawn(builder.command());
    let status = process.end(PATIENCE).await;
    let output = process.output();
    assert!(!status.success(), "{what}: it ended well\n{output}");
    assert!(status.code().is_some(), "{what}: {status}");
    let lower = output.to_lowercase();
    for name in names {
        assert!(lower.contains(&name.to_lowercase()), "{what}: no {name:?} in\n{output}");
    }
    assert!(!output.contains("panicked"), "{what}: {output}");
    assert!(output.lines().count() < 40, "{what}: {output}");
    output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o09_bad_configuration() {
    let good = Builder::production;
    does_not_start("no secret", &good().unset("auth.jwt.secret"), &["auth.jwt.secret"]).await;
    let short = good().set("auth.jwt.secret", "too-short-4711");
    let output = does_not_start("short secret", &short, &["auth.jwt.secret"]).await;
    assert!(!output.contains("too-short-4711"), "{output}");
    does_not_start("no keys", &good().unset("api.keys"), &["api.keys"]).await;
    for bad in ["tests", "tests:zz", "tests:1234", ":", "tests:{hash}:fly", "a b:{hash}"] {
        let value = bad.replace("{hash}", &"ab".repeat(32));
        does_not_start(bad, &good().set("api.keys", value), &["api.keys"]).await;
    }
    let url = good().set("redis.url", "nonsense://user:hunter2-secret@nowhere");
    let output = does_not_start("bad URL", &url, &["redis.url"]).await;
    assert!(!output.contains("hunter2-secret"), "{output}");
    does_not_start("bad prefix", &good().set("redis.prefix", "a*"), &["redis.prefix"]).await;
    does_not_start("unknown key", &good().set("limits.hartbeat", "1s"), &["hartbeat"]).await;
    does_not_start("unknown section", &good().set("limit.heartbeat", "1s"), &["limit"]).await;
    does_not_start("no unit", &good().set("limits.heartbeat", "25"), &["limits.heartbeat"]).await;
    does_not_start("no duration", &good().set("limits.heartbeat", "soon"), &["limits.heartbeat"])
        .await;
    does_not_start("no size", &good().set("limits.queue_bytes", "big"), &["limits.queue_bytes"])
        .await;
    does_not_start("algorithm none", &good().set("auth.jwt.algorithms", "none"), &["algorithms"])
        .await;
    does_not_start("no algorithm", &good().set("auth.jwt.algorithms", ""), &["algorithms"]).await;
    does_not_start("bad origin", &good().set("auth.origins", "app.example"), &["auth.origins"])
        .await;
    does_not_start("bad address", &good().set("public.bind", "8080"), &["public.bind"]).await;
    let many = good().set("public.workers", "100000");
    does_not_start("too many workers", &many, &["public.workers"]).await;
    does_not_start("bad profile", &good().env("BELFRY_PROFILE", "prod"), &["profile"]).await;
    let both = good().set("limits.heartbeat", "x").unset("api.keys").set("nope.nope", "1");
    does_not_start("all at once", &both, &["limits.heartbeat", "api.keys", "nope"]).await;
    for listener in ["public", "internal"] {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound").to_string();
        let builder = good().set(&format!("{listener}.bind"), address.as_str());
        let output = does_not_start("port in use", &builder, &[&address]).await;
        assert!(!output.contains(SECRET), "{output}");
    }
    // The secret of development is known to everyone.
    let listed = Process::spawn({
        let mut command = Builder::development().unset("auth.jwt.secret").command();
        command.args(["--help"]);
        command
    });
    assert!(listed.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o09_secrets_from_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).expect("written");
    let builder = Builder::production().unset("auth.jwt.secret");
    let path = secret.to_str().expect("UTF-8");
    let replica = builder.set("auth.jwt.secret_file", path).spawn().await;
    Dial::to(&replica).query(&token("alice")).open().await;
    // Rotated in place: read again without a restart.
    let next = "another-secret-that-is-long-enough-9876543210-zyxwvutsrqponmlkjihgf";
    std::fs::write(&secret, next).expect("written");
    let jwt = Jwt::of("alice").secret(next).sign();
    until("the new secret holds", Duration::from_secs(40), async || {
        let mut ws = Dial::to(&replica).query(&jwt).connect().await;
        let (_, first) = ws.next(PATIENCE).await;
        matches!(first, Seen::Text(text) if text.contains("belfry.welcome")).then_some(())
    })
    .await;
    let missing = Builder::production().unset("auth.jwt.secret");
    let missing = missing.set("auth.jwt.secret_file", "/nonexistent/secret");
    does_not_start("no such file", &missing, &["/nonexistent/secret"]).await;
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_a_thousand_connects_leave_nothing_behind() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let round = async |count: usize| {
        for n in 0..count {
            let jwt = Jwt::of(&format!("user-{n}")).groups(&[&format!("group-{n}")]).sign();
            let dial = Dial::to(&replica).query(&jwt);
            match n % 3 {
                0 => dial.open().await.close().await,
                1 => drop(dial.open().await),
                _ => dial.raw().await.welcome().await.reset(),
            }
        }
        replica.metric_is("connections", 0.0, PATIENCE).await;
        replica.metric_is("users", 0.0, PATIENCE).await;
        replica.metric_is("queue_bytes", 0.0, PATIENCE).await;
    };
    round(300).await;
    let before = replica.process.rss();
    let files =
        || std::fs::read_dir(format!("/proc/{}/fd", replica.process.pid())).expect("ours").count();
    let open = files();
    round(1_000).await;
    let grown = replica.process.rss() - before;
    assert!(grown < 6 * 1024, "1,000 connects left {grown} KiB");
    assert!(files() <= open + 2, "{open} descriptors became {}", files());
    let metrics = replica.metrics().await;
    assert!((metrics.sum("connects_total") - 1_300.0).abs() < f64::EPSILON);
    assert!((metrics.sum("closes_total") - 1_300.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o06_production_logs_are_json_and_orders_are_audited() {
    let replica = Replica::start().await;
    replica.to_all("everyone").await;
    replica.post_with("{}", "wrong", "application/json").await;
    let lines: Vec<Value> = replica
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
    let audit: Vec<_> = lines.iter().filter(|line| line["target"] == "audit").collect();
    assert!(
        audit.iter().any(|line| line.to_string().contains("tests")),
        "no broadcast in {audit:?}"
    );
    assert!(audit.len() >= 2, "no refusal in {audit:?}");
}

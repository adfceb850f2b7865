//! What is logged, what never is, and that nobody can make it a flood.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica},
    client::Dial,
    http::exchange,
    jwt::{Jwt, SECRET, token},
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
    let replica = Builder::production().set("limits.inbound_per_second", "0").spawn().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o06_production_logs_are_json_and_orders_are_audited() {
    let replica = Replica::start().await;
    replica.to_all("everyone").await;
    replica.post_with("{}", "wrong", "application/json").await;
    // A thread of its own writes the log.
    until("the last line is written", PATIENCE, async || {
        replica.log().contains("\"refused\"").then_some(())
    })
    .await;
    let lines: Vec<Value> = replica
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
    let audit: Vec<_> = lines.iter().filter(|line| line["target"] == "audit").collect();
    let fields = |action: &str| {
        let line = audit.iter().find(|line| line["fields"]["action"] == action);
        line.map_or_else(|| panic!("no {action} in {audit:?}"), |line| line["fields"].clone())
    };
    assert_eq!(fields("broadcast")["key"], "tests");
    let refused = fields("refused");
    assert_eq!((&refused["key"], &refused["status"]), (&json!("none"), &json!(401)));
    assert_eq!(refused["route"], "/v1/events");
}

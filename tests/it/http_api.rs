//! The API for back ends: what it takes, what it refuses, and that it says so.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica, api_key},
    client::{Dial, mark},
    http::{self, exchange},
    jwt::{Jwt, token},
    percentile,
    redis::RedisServer,
    tally,
};

fn event(marker: &str) -> Value {
    json!({"to": {"broadcast": true}, "type": "test", "data": {"mk": marker}})
}

/// A request by hand with a JSON body and the right key.
fn request(line: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{line} HTTP/1.1\r\nHost: belfry.example\r\n");
    for (name, value) in headers {
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
        text.push_str("\r\n");
    }
    text.push_str("Content-Length: ");
    text.push_str(&body.len().to_string());
    text.push_str("\r\n\r\n");
    text.push_str(body);
    text.into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_internal_means_internal() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let bearer = format!("Bearer {API_KEY}");
    let body = event("leak").to_string();
    let paths = [
        "/v1/events",
        "//v1/events",
        "/v1/events/",
        "/v1//events",
        "/v1/./events",
        "/x/../v1/events",
        "/%76%31/events",
        "/v1%2fevents",
        "/v1/events%2f",
        "/v1/%65vents",
        "/ws/notifications/../../v1/events",
        "/ws/%2e%2e/v1/events",
        "/V1/EVENTS",
        "/v1/events;x=1",
        "/v1/events?x=1",
        "http://127.0.0.1/v1/events",
        "http://internal:8081/v1/events",
        "/internal/v1/events",
        "/v1/events/batch",
        "/v1/disconnect",
        "/v1/tickets",
        "/v1/presence",
        "/v1/stats",
        "/v1/users/alice",
        "/metrics",
        "//metrics",
        "/metrics/",
        "/readyz",
        "/livez",
        "/openapi.json",
        "/docs",
        "*",
    ];
    for path in paths {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"] {
            for key in [None, Some(bearer.as_str())] {
                let mut headers = vec![
                    ("Content-Type", "application/json"),
                    ("X-HTTP-Method-Override", "POST"),
                    ("X-Original-URL", "/v1/events"),
                    ("X-Forwarded-For", "127.0.0.1"),
                    ("Connection", "close"),
                ];
                if let Some(key) = key {
                    headers.push(("Authorization", key));
                }
                let what = format!("{method} {path}");
                let reply =
                    http::try_exchange(replica.public, &request(&what, &headers, &body)).await;
                let Some(reply) = reply else { panic!("no answer to {what}") };
                let known = matches!(reply.status, 400 | 401 | 403 | 404 | 405);
                assert!(known, "{what}: {}", reply.text);
                assert!(!reply.text.contains("belfry_connections"), "{what}: {}", reply.text);
            }
        }
    }
    replica.to_all("last").await;
    assert!(ws.markers_before("last").await.is_empty(), "published through the public listener");
    let host = "Host: belfry.example\r\n";
    let upgrade = format!(
        "GET /v1/events HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    );
    assert_eq!(exchange(replica.public, upgrade.as_bytes()).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_only_a_right_key_opens_the_api() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let body = event("leak").to_string();
    let hash = api_key("tests", API_KEY);
    let hash = hash.split(':').nth(1).expect("a hash");
    let long = "k".repeat(20_000);
    let wrong = [
        None,
        Some(String::new()),
        Some("Bearer".into()),
        Some("Bearer ".into()),
        Some("Bearer wrong".into()),
        Some(format!("Bearer {hash}")),
        Some(format!("Bearer {}", &API_KEY[..API_KEY.len() - 1])),
        Some(format!("Bearer {API_KEY}x")),
        Some(format!("Bearer {}", API_KEY.to_uppercase())),
        Some(format!("Bearer tests:{API_KEY}")),
        Some(format!("Bearer {}", token("alice"))),
        Some(format!("Bearer {long}")),
        Some(format!("Basic {API_KEY}")),
        Some(API_KEY.into()),
    ];
    for key in &wrong {
        let mut headers = vec![("Content-Type", "application/json")];
        if let Some(key) = key {
            headers.push(("Authorization", key));
        }
        let reply = exchange(replica.internal, &request("POST /v1/events", &headers, &body)).await;
        assert_eq!(reply.status, 401, "{key:?}: {}", reply.text);
        let challenge = reply.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer"), "{}", reply.text);
        let kind = reply.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "{}", reply.text);
        assert_eq!(reply.json()["status"], 401);
    }
    // A key in the address is no key.
    let query = format!("POST /v1/events?token={API_KEY}&api_key={API_KEY}");
    let headers = [("Content-Type", "application/json")];
    assert_eq!(exchange(replica.internal, &request(&query, &headers, &body)).await.status, 401);
    replica.to_all("last").await;
    assert!(ws.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_scopes() {
    let keys = [
        ("all", ""),
        ("users", ":publish"),
        ("everyone", ":broadcast"),
        ("both", ":publish+broadcast"),
        ("reader", ":read"),
        ("cutter", ":disconnect+tickets"),
    ];
    let secret = |name: &str| format!("{name}-key-000000000000000000000000");
    let lines: Vec<String> =
        keys.iter().map(|(name, scopes)| api_key(name, &secret(name)) + scopes).collect();
    let replica = Builder::production().set("api.keys", lines.join(",")).spawn().await;
    let targets = [
        json!({"user": "alice"}),
        json!({"users": ["alice"]}),
        json!({"group": "staff"}),
        json!({"broadcast": true}),
    ];
    let mut ws = Dial::to(&replica).query(&Jwt::of("alice").groups(&["staff"]).sign()).open().await;
    let mut allowed = 0;
    for (name, scopes) in keys {
        for (index, to) in targets.iter().enumerate() {
            let marker = format!("{name}-{index}");
            let body = json!({"to": to, "type": "t", "data": {"mk": marker}}).to_string();
            let answer = replica.post_with(body, &secret(name), "application/json").await;
            let needed = if index == 3 { "broadcast" } else { "publish" };
            if scopes.is_empty() || scopes.contains(needed) {
                assert_eq!(answer.status, 202, "{marker}: {answer:?}");
                ws.event(&format!("\"{marker}\"")).await;
                allowed += 1;
            } else {
                answer.is_problem(403);
            }
        }
    }
    assert_eq!(allowed, 4 + 3 + 1 + 4);
    let last = json!({"to": {"user": "alice"}, "type": "t", "data": {"mk": "last"}}).to_string();
    replica.post_with(last, &secret("all"), "application/json").await;
    assert!(ws.markers_before("last").await.is_empty(), "a refused event arrived");
}

fn padded(bytes: usize) -> String {
    let body = event("padded").to_string();
    format!("{body}{}", " ".repeat(bytes - body.len()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i02_body_limits_are_answered() {
    let limit = 512 * 1024;
    let replica = Replica::start().await;
    assert_eq!(replica.post(padded(limit - 1)).await.status, 202);
    assert_eq!(replica.post(padded(limit)).await.status, 202);
    replica.post(padded(limit + 1)).await.is_problem(413);
    replica.post(padded(limit * 4)).await.is_problem(413);
    let bearer = format!("Bearer {API_KEY}");
    let headers = [("Content-Type", "application/json"), ("Authorization", bearer.as_str())];
    let is_413 = |reply: &http::Reply| {
        assert_eq!(reply.status, 413, "{}", reply.text);
        assert_eq!(reply.json()["status"], 413, "{}", reply.text);
    };
    // Declared and never sent: the declaration is enough.
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\n\
         Content-Type: application/json\r\n"
    );
    let start = Instant::now();
    let declared = format!("{head}Content-Length: 104857600\r\n\r\n{{");
    is_413(&exchange(replica.internal, declared.as_bytes()).await);
    let expecting = format!("{head}Content-Length: 104857600\r\nExpect: 100-continue\r\n\r\n");
    is_413(&exchange(replica.internal, expecting.as_bytes()).await);
    assert!(start.elapsed() < Duration::from_secs(5), "waited for a body that is refused anyway");
    // Sent in full, all 100 MB of it.
    let before = replica.process.rss();
    let big = request("POST /v1/events", &headers, &" ".repeat(100 << 20));
    is_413(&exchange(replica.internal, &big).await);
    // In chunks, without a length.
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..200 {
        chunked.extend_from_slice(b"4000\r\n");
        chunked.extend_from_slice(&[b' '; 0x4000]);
        chunked.extend_from_slice(b"\r\n");
    }
    is_413(&exchange(replica.internal, &chunked).await);
    let grown = replica.process.rss() - before;
    assert!(grown < 32 * 1024, "grew by {grown} KiB");
    // Small and in chunks, or after a 100, is as good as any.
    let small = event("small").to_string();
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{small}\r\n0\r\n\r\n",
        small.len()
    );
    assert_eq!(exchange(replica.internal, chunked.as_bytes()).await.status, 202);
    let expecting =
        format!("{head}Content-Length: {}\r\nExpect: 100-continue\r\n\r\n{small}", small.len());
    assert_eq!(exchange(replica.internal, expecting.as_bytes()).await.status, 202);
    // Lengths that contradict each other are not guessed at.
    for twice in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: x\r\n",
    ] {
        let reply = exchange(replica.internal, format!("{head}{twice}\r\n{{}}  ").as_bytes()).await;
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i04_deep_nesting() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let body = |data: &str| format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":{data}}}"#);
    let lists = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let objects = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    for levels in [1, 64, 127, 128] {
        for data in [lists(levels), objects(levels)] {
            let answer = replica.post(body(&data)).await;
            assert_eq!(answer.status, 202, "{levels}: {answer:?}");
            let text = ws.text(PATIENCE).await.1;
            assert!(text.ends_with(&format!(r#","type":"t","data":{data}}}"#)), "{text}");
        }
    }
    let deep = 100_000;
    let mut bad = vec![
        "[".repeat(deep),
        "{\"a\":".repeat(deep),
        lists(deep),
        format!(r#"{{"to":{},"type":"t","data":1}}"#, lists(deep)),
        format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":1,"x":{}}}"#, lists(deep)),
        format!(r#"{{"to":{{"user":"alice"}},"type":{},"data":1}}"#, "[".repeat(deep)),
        format!(r#"{{"to":{{"user":"alice"}},"except":{},"type":"t","data":1}}"#, objects(20_000)),
    ];
    for levels in [129, 130, 1_000, 10_000, 30_000, deep] {
        bad.push(body(&lists(levels)));
        bad.push(body(&"[".repeat(levels)));
    }
    for levels in [129, 200, 5_000] {
        bad.push(body(&objects(levels)));
    }
    for body in bad {
        let answer = replica.post(body.clone()).await;
        let known = matches!(answer.status, 400 | 413 | 422);
        assert!(known, "{} bytes {:?}…: {answer:?}", body.len(), &body[..60]);
        answer.is_problem(answer.status);
    }
    assert_eq!(replica.get("/livez").await.status, 200);
    replica.to_user("alice", "last").await;
    assert!(ws.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i05_what_202_means() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(
        Builder::production().redis(&redis).spawn(),
        Builder::production().redis(&redis).spawn(),
    );
    let mut ws = Dial::to(&two).query(&token("alice")).open().await;
    let post = async |to: Value, transient: bool| {
        let body = json!({"to": to, "type": "t", "data": {"mk": "m"}, "transient": transient});
        let answer = one.post(body.to_string()).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/json"), "{answer:?}");
        answer.json()
    };
    // An id wherever it is kept, and whether they are there where it is about users: on any replica.
    let ids = |value: &Value, tag: &str| {
        value["id"].as_str().is_some_and(|id| id.starts_with(&format!("{tag}~")))
    };
    let told = post(json!({"user": "offline"}), false).await;
    assert!(ids(&told, "u") && told["online"] == false, "{told}");
    let told = post(json!({"user": "alice"}), false).await;
    assert!(ids(&told, "u") && told["online"] == true, "{told}");
    let id = told["id"].clone();
    let told = post(json!({"users": ["off", "alice"]}), false).await;
    let [off, alice] = told["events"].as_array().expect("a list").as_slice() else {
        panic!("{told}")
    };
    assert!(off["user"] == "off" && ids(off, "u") && off["online"] == false, "{told}");
    assert!(alice["user"] == "alice" && ids(alice, "u") && alice["online"] == true, "{told}");
    let told = post(json!({"group": "empty"}), false).await;
    assert!(ids(&told, "g=ZW1wdHk") && told.get("online").is_none(), "{told}");
    let told = post(json!({"broadcast": true}), false).await;
    assert!(ids(&told, "b") && told.get("online").is_none(), "{told}");
    assert_eq!(post(json!({"user": "alice"}), true).await, json!({"online": true}));
    assert_eq!(post(json!({"group": "empty"}), true).await, json!({}));
    // Nobody is left of those it is for.
    let body = json!({
        "to": {"user": "alice"}, "except": {"users": ["alice"]}, "type": "t", "data": {"mk": "no"},
    });
    assert_eq!(one.post(body.to_string()).await.json(), json!({}));
    one.to_user("alice", "last").await;
    let frames = ws.through("\"last\"").await;
    let first: Value = serde_json::from_str(&frames[0]).expect("JSON");
    assert_eq!(first["id"], id, "browsers get the id that the publisher was told");
    let marks: Vec<_> = frames.iter().map(|frame| mark(frame)).collect();
    assert_eq!(marks, ["m", "m", "m", "m", "last"]);
    // Only then: nobody who comes later and asks for nothing gets what was said before.
    let mut late = Dial::to(&one).query(&token("offline")).open().await;
    one.to_user("offline", "last").await;
    assert!(late.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i07_parallel_publishers() {
    let redis = RedisServer::start().await;
    let replica = Arc::new(
        Builder::production().redis(&redis).set("limits.queue_bytes", "8MiB").spawn().await,
    );
    let (publishers, each) = (100, 30);
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let mut lanes = Vec::new();
    for publisher in 0..publishers {
        let replica = replica.clone();
        lanes.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for n in 0..each {
                let data = json!({"mk": format!("{publisher}:{n}")});
                let body = json!({"to": {"user": "alice"}, "type": "t", "data": data});
                let answer = replica.post(body.to_string()).await;
                assert_eq!(answer.status, 202, "{answer:?}");
                times.push(answer.took);
            }
            times
        }));
    }
    let mut times = Vec::new();
    for lane in lanes {
        times.extend(lane.await.expect("no panic"));
    }
    println!("{publishers} publishers at once: p99 {:?}", percentile(&mut times, 0.99));
    replica.to_user("alice", "last").await;
    let got = ws.markers_before("last").await;
    assert_eq!(got.len(), publishers * each);
    assert_eq!(tally(&got).len(), publishers * each);
    let mut next = vec![0; publishers];
    for marker in &got {
        let (publisher, n) = marker.split_once(':').expect("two numbers");
        let (publisher, n): (usize, usize) =
            (publisher.parse().expect("a number"), n.parse().expect("a number"));
        assert_eq!(n, next[publisher], "publisher {publisher} out of order");
        next[publisher] += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i08_strict_members() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let good = || event("refused");
    let with = |member: &str, value: Value| {
        let mut body = good();
        body[member] = value;
        body
    };
    let without = |member: &str| {
        let mut body = good();
        body.as_object_mut().expect("an object").remove(member);
        body
    };
    let cases: Vec<(Value, &str)> = vec![
        (with("exclude", json!({"users": ["alice"]})), "/exclude"),
        (with("excpet", json!({"users": ["alice"]})), "/excpet"),
        (with("Except", json!({"users": ["alice"]})), "/Except"),
        (with("a/b~c", json!(1)), "/a~1b~0c"),
        (with("", json!(1)), "/"),
        (with("id", json!("u~1-0")), "/id"),
        (with("to", json!({"usr": "alice"})), "/to/usr"),
        (with("to", json!({"user": "alice", "usr": 1})), "/to/usr"),
        (with("to", json!({})), "/to"),
        (with("to", json!({"user": "alice", "broadcast": true})), "/to"),
        (with("to", json!({"user": "alice", "users": ["alice"]})), "/to"),
        (with("to", json!({"broadcast": false})), "/to/broadcast"),
        (with("to", json!({"broadcast": "true"})), "/to/broadcast"),
        (with("to", json!({"user": 5})), "/to/user"),
        (with("to", json!({"user": ["alice"]})), "/to/user"),
        (with("to", json!({"users": "alice"})), "/to/users"),
        (with("to", json!("alice")), "/to"),
        (with("to", json!(["alice"])), "/to"),
        (with("to", json!(null)), "/to"),
        (without("to"), "/to"),
        (without("type"), "/type"),
        (without("data"), "/data"),
        (with("type", json!("")), "/type"),
        (with("type", json!("x".repeat(129))), "/type"),
        (with("type", json!("é".repeat(129))), "/type"),
        (with("type", json!("x".repeat(10_000))), "/type"),
        (with("type", json!(5)), "/type"),
        (with("type", json!(null)), "/type"),
        (with("type", json!(["t"])), "/type"),
        (with("type", json!("ping")), "/type"),
        (with("type", json!("belfry.x")), "/type"),
        (with("type", json!("belfry.goodbye")), "/type"),
        (with("type", json!("belfry.")), "/type"),
        (with("sender", json!("s".repeat(65))), "/sender"),
        (with("sender", json!(5)), "/sender"),
        (with("transient", json!("yes")), "/transient"),
        (with("transient", json!(1)), "/transient"),
    ];
    for (body, pointer) in cases {
        let answer = replica.post(body.to_string()).await;
        println!("{body} -> {}", answer.text);
        answer.is_at_fault(pointer);
    }
    // Every fault at once, not one at a time.
    let body = json!({"to": {"user": ""}, "type": "ping", "data": 1, "nope": 1});
    let answer = replica.post(body.to_string()).await;
    for pointer in ["/to/user", "/type", "/nope"] {
        answer.is_at_fault(pointer);
    }
    // A line break in a type is refused, or arrives as itself.
    for kind in ["a\nb", "a\r\nevent: b", "\0"] {
        let answer = replica.post(with("type", json!(kind)).to_string()).await;
        if answer.status == 202 {
            let value: Value = serde_json::from_str(&ws.text(PATIENCE).await.1).expect("JSON");
            assert_eq!(value["type"], kind);
        } else {
            answer.is_at_fault("/type");
        }
    }
    replica.to_all("last").await;
    assert!(ws.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i08_bodies_that_are_not_json() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let good = event("refused").to_string();
    let cut = good.get(..good.len() - 1).expect("ASCII").to_owned();
    let not_json: Vec<Vec<u8>> = vec![
        vec![],
        b"{".to_vec(),
        b"nonsense".to_vec(),
        cut.into_bytes(),
        format!("{good}x").into_bytes(),
        format!("{good}{good}").into_bytes(),
        format!("\u{feff}{good}").into_bytes(),
        good.replace("\"test\"", "'test'").into_bytes(),
        good.replace("refused", "re\u{1}fused").into_bytes(),
        good.replace("true", "True").into_bytes(),
        good.replace("refused", "\\x41").into_bytes(),
        b"{\"to\":{\"broadcast\":true},\"type\":\"t\",\"data\":NaN}".to_vec(),
        b"{\"to\":{\"broadcast\":true},\"type\":\"t\",\"data\":01}".to_vec(),
        b"{\"to\":{\"broadcast\":true},\"type\":\"t\",\"data\":[1,]}".to_vec(),
        b"{\"to\":{\"broadcast\":true},\"type\":\"t\",\"data\":\"\xff\"}".to_vec(),
        b"{\"to\":{\"broadcast\":true},\"type\":\"t\",\"data\":\"\xed\xa0\x80\"}".to_vec(),
        b"{\"to\":{\"broadcast\":true},\"type\":\"\xc3\",\"data\":1}".to_vec(),
    ];
    for body in not_json {
        println!("{}", String::from_utf8_lossy(&body));
        replica.post(body).await.is_problem(400);
    }
    for body in ["[]", "5", "null", "\"x\"", "true"] {
        let answer = replica.post(body).await;
        assert!(matches!(answer.status, 400 | 422), "{body}: {answer:?}");
        answer.is_problem(answer.status);
    }
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/xml",
        "application/jsonp",
        "text/json2",
        "multipart/form-data; boundary=x",
        "",
    ] {
        replica.post_with(good.clone(), API_KEY, media).await.is_problem(415);
    }
    let bearer = format!("Bearer {API_KEY}");
    let bare = request("POST /v1/events", &[("Authorization", &bearer)], &good);
    assert_eq!(exchange(replica.internal, &bare).await.status, 415);
    for coding in ["gzip", "br", "identity, gzip", ""] {
        for (path, media) in [
            ("/v1/events", "application/json"),
            ("/v1/events/batch", "application/json"),
            ("/v1/events", "application/cloudevents+json"),
        ] {
            let headers = [("content-encoding", coding), ("content-type", media)];
            replica.api_with("POST", path, Some(good.clone()), &headers).await.is_problem(415);
        }
    }
    replica.to_all("last").await;
    assert!(ws.markers_before("last").await.is_empty());
    let headers = [("content-encoding", "Identity"), ("content-type", "application/json")];
    let plain = replica.api_with("POST", "/v1/events", Some(good.clone()), &headers).await;
    assert_eq!(plain.status, 202, "{plain:?}");
    assert_eq!(mark(&ws.event("refused").await), "refused");
    for media in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(replica.post_with(good.clone(), API_KEY, media).await.status, 202, "{media}");
        assert_eq!(mark(&ws.event("refused").await), "refused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i08_other_routes_and_methods() {
    let replica = Replica::start().await;
    let bearer = format!("Bearer {API_KEY}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let problem = |reply: &http::Reply, status: u16| {
        assert_eq!(reply.status, status, "{}", reply.text);
        let kind = reply.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "{}", reply.text);
        let body = reply.json();
        assert_eq!(body["status"], status, "{}", reply.text);
        assert!(body["type"].as_str().is_some_and(|t| t.starts_with("urn:belfry:problem:")));
    };
    for address in [replica.internal, replica.public] {
        for path in ["/", "/nope", "/v2/events", "/v1", "/v1/events/x/y", "/.env", "/%00"] {
            let reply = exchange(address, &request(&format!("POST {path}"), &headers, "{}")).await;
            problem(&reply, 404);
        }
    }
    for (address, path, methods) in [
        (replica.internal, "/v1/events", ["GET", "PUT", "DELETE", "PATCH"]),
        (replica.internal, "/metrics", ["POST", "PUT", "DELETE", "PATCH"]),
        (replica.internal, "/livez", ["POST", "PUT", "DELETE", "PATCH"]),
        (replica.public, "/ws/notifications", ["POST", "PUT", "DELETE", "PATCH"]),
    ] {
        for method in methods {
            let reply =
                exchange(address, &request(&format!("{method} {path}"), &headers, "{}")).await;
            problem(&reply, 405);
            // RFC 9110 §15.5.6
            assert!(reply.header("allow").is_some_and(|allow| !allow.is_empty()), "{}", reply.text);
        }
    }
    // Without a key a stranger learns no more than that he needs one, or that nothing is here.
    for path in ["/v1/events", "/v1/nope"] {
        let reply =
            exchange(replica.internal, &request(&format!("POST {path}"), &headers[1..], "{}"))
                .await;
        assert!(matches!(reply.status, 401 | 404), "{}", reply.text);
    }
    // Not an upgrade at all.
    let plain =
        exchange(replica.public, b"GET /ws/notifications HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(matches!(plain.status, 400 | 426), "{}", plain.text);
    for broken in [
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
    ] {
        let path = format!("GET /ws/notifications?token={}", token("alice"));
        let reply = exchange(
            replica.public,
            format!("{path} HTTP/1.1\r\nHost: x\r\n{broken}\r\n").as_bytes(),
        )
        .await;
        assert!(matches!(reply.status, 400 | 426), "{broken}: {}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i09_long_lists_do_not_starve_others() {
    let redis = RedisServer::start().await;
    let replica = Arc::new(Builder::production().redis(&redis).spawn().await);
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let users = |count: usize| (0..count).map(|index| format!("user-{index}")).collect::<Vec<_>>();
    let thousand = json!({"to": {"users": users(1_000)}, "type": "t", "data": 1}).to_string();
    let too_many = json!({"to": {"users": users(10_000)}, "type": "t", "data": 1}).to_string();
    let mut lanes = Vec::new();
    for lane in 0..4 {
        let (replica, thousand, too_many) = (replica.clone(), thousand.clone(), too_many.clone());
        lanes.push(tokio::spawn(async move {
            for n in 0..15 {
                if (n + lane) % 3 == 0 {
                    replica.post(too_many.clone()).await.is_at_fault("/to/users");
                } else {
                    assert_eq!(replica.post(thousand.clone()).await.status, 202);
                }
            }
        }));
    }
    let mut latencies = Vec::new();
    while lanes.iter().any(|lane| !lane.is_finished()) {
        let start = Instant::now();
        replica.to_user("alice", "mine").await;
        ws.event("mine").await;
        latencies.push(start.elapsed());
    }
    for lane in lanes {
        lane.await.expect("no panic");
    }
    let p99 = percentile(&mut latencies, 0.99);
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?} of {}", latencies.len());
}

//! What operators rely on: metrics, health, and a start that says what is wrong.

use std::{collections::BTreeSet, net::TcpListener};

use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Process, Replica},
    client::{Dial, Seen},
    http::exchange,
    jwt::{Jwt, SECRET, token},
    redis::RedisServer,
    until,
};

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

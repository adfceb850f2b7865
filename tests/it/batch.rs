//! Many events with one request: each for itself, and in order.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Answer, Builder, Replica, api_key, both},
    client::Dial,
    jwt::{Jwt, token},
    percentile,
    redis::RedisServer,
    until,
};

const BATCH: &str = "/v1/events/batch";

fn event(to: Value, marker: &str) -> Value {
    let mut event = json!({"type": "t", "data": {"mk": marker}});
    event["to"] = to;
    event
}

fn to_alice(marker: &str) -> Value {
    event(json!({"user": "alice"}), marker)
}

async fn batch(replica: &Replica, events: &[Value]) -> Answer {
    replica.api("POST", BATCH, Some(&json!({"events": events}))).await
}

/// The status of each.
#[track_caller]
fn statuses(answer: &Answer) -> Vec<u64> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].as_array().cloned().expect("results");
    results.iter().map(|result| result["status"].as_u64().expect("a status")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gets_its_answer_in_order_and_a_bad_one_harms_no_other() {
    for (bus, replica, _redis) in both().await {
        let jwt = Jwt::of("alice").groups(&["staff"]).sign();
        let mut ws = Dial::to(&replica).query(&jwt).open().await;
        let large = json!("x".repeat(65 * 1024));
        let answer = batch(
            &replica,
            &[
                to_alice("one"),
                event(json!({"user": ""}), "bad"),
                event(json!({"users": ["alice", "bob", "alice"]}), "two"),
                json!(7),
                event(json!({"group": "staff"}), "three"),
                json!({"to": {"user": "alice"}, "type": "t", "data": large}),
                event(json!({"broadcast": true}), "four"),
                json!({"to": {"user": "alice"}, "type": "t", "data": {"mk": "five"}, "transient": true}),
                json!({"to": {"user": "alice"}, "type": "ping", "data": 1, "nope": 1}),
                event(json!({"user": "bob"}), "six"),
            ],
        )
        .await;
        assert_eq!(
            statuses(&answer),
            [202, 422, 202, 422, 202, 413, 202, 202, 422, 202],
            "{bus}: {answer:?}"
        );
        let results = &answer.json()["results"];
        let id =
            |value: &Value, tag: &str| value["id"].as_str().is_some_and(|id| id.starts_with(tag));
        assert!(id(&results[0], "u~") && results[0]["online"] == true, "{answer:?}");
        assert_eq!(results[1]["problem"]["type"], "urn:belfry:problem:invalid");
        assert_eq!(results[1]["problem"]["errors"][0]["pointer"], "/to/user");
        let events = results[2]["events"].as_array().expect("a list");
        let users: Vec<_> = events.iter().map(|event| (&event["user"], &event["online"])).collect();
        assert_eq!(users, [(&json!("alice"), &json!(true)), (&json!("bob"), &json!(false))]);
        assert!(events.iter().all(|event| id(event, "u~")), "{answer:?}");
        assert_eq!(results[3]["problem"]["errors"][0]["pointer"], "");
        assert!(id(&results[4], "g=") && results[4].get("online").is_none(), "{answer:?}");
        assert_eq!(results[5]["problem"]["status"], 413);
        assert!(id(&results[6], "b~"), "{answer:?}");
        assert_eq!(results[7], json!({"status": 202, "online": true}));
        let errors = results[8]["problem"]["errors"].as_array().expect("a list");
        assert_eq!(errors.len(), 2, "{answer:?}");
        assert_eq!(results[9]["online"], false);
        replica.to_user("alice", "last").await;
        let mut got = ws.markers_before("last").await;
        // Between channels there is no order.
        got.sort();
        assert_eq!(got, ["five", "four", "one", "three", "two"], "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keep_their_order() {
    for (bus, replica, _redis) in both().await {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let events: Vec<_> = (0..1_000).map(|n| to_alice(&n.to_string())).collect();
        let answer = batch(&replica, &events).await;
        println!("{bus}: 1,000 events in {:?}", answer.took);
        assert!(statuses(&answer).iter().all(|status| *status == 202), "{bus}");
        replica.to_user("alice", "last").await;
        let got = ws.markers_before("last").await;
        assert_eq!(got, (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>(), "{bus}");
        // And one of nearly 4 MiB.
        let large = json!("x".repeat(60 * 1024));
        let large = json!({"to": {"user": "nobody"}, "type": "t", "data": large});
        let answer = batch(&replica, &vec![large; 68]).await;
        println!("{bus}: 4 MiB in {:?}", answer.took);
        assert!(statuses(&answer).iter().all(|status| *status == 202), "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_and_bodies_that_are_none() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    batch(&replica, &vec![to_alice("bad"); 1_001]).await.is_at_fault("/events");
    batch(&replica, &vec![json!(1); 100_000]).await.is_at_fault("/events");
    for (body, pointer) in [
        (json!({}), "/events"),
        (json!({"events": {}}), "/events"),
        (json!({"events": null}), "/events"),
        (json!({"events": [], "event": 1}), "/event"),
        (json!([to_alice("bad")]), ""),
        (json!(null), ""),
    ] {
        replica.api("POST", BATCH, Some(&body)).await.is_at_fault(pointer);
    }
    let send = async |body: String| replica.api_with("POST", BATCH, Some(body), &[]).await;
    send(r#"{"events":[],"events":[]}"#.into()).await.is_at_fault("");
    for broken in [
        "",
        "{",
        r#"{"events":[{"to":{"user":"alice"},"type":"t","data":}]}"#,
        r#"{"events":[{"to":{"user":"alice"},"type":"t","data":1]}"#,
        r#"{"events":[1,]}"#,
    ] {
        send(broken.into()).await.is_problem(400);
    }
    send("[".repeat(100_000)).await.is_problem(400);
    let good = json!({"events": [to_alice("bad")]}).to_string();
    for media in ["text/plain", "application/cloudevents+json", "application/x-ndjson", ""] {
        let headers = [("content-type", media)];
        replica.api_with("POST", BATCH, Some(good.clone()), &headers).await.is_problem(415);
    }
    let over = format!("{good}{}", " ".repeat((4 << 20) + 1 - good.len()));
    send(over).await.is_problem(413);
    for method in ["GET", "PUT", "DELETE"] {
        replica.api(method, BATCH, None).await.is_problem(405);
    }
    assert_eq!(statuses(&batch(&replica, &[]).await), [0_u64; 0]);
    replica.to_user("alice", "last").await;
    assert!(ws.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_nested_or_doubled_stays_with_its_event() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deepest = format!("{}{}", "[".repeat(128), "]".repeat(128));
    let items = [
        to_alice("one").to_string(),
        deep.clone(),
        format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":1,"x":{deep}}}"#),
        format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":[{deepest}]}}"#),
        format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":{deepest}}}"#),
        r#"{"to":{"user":"alice"},"to":{"user":"bob"},"type":"t","data":1}"#.to_owned(),
        r#"{"to":{"user":"alice","user":"bob"},"type":"t","data":1}"#.to_owned(),
        to_alice("two").to_string(),
    ];
    let body = format!(r#"{{"events":[{}]}}"#, items.join(","));
    let answer = replica.api_with("POST", BATCH, Some(body), &[]).await;
    assert_eq!(statuses(&answer), [202, 422, 422, 422, 202, 422, 422, 202], "{answer:?}");
    replica.to_user("alice", "last").await;
    let texts = ws.through("\"last\"").await;
    assert!(texts.iter().any(|text| text.contains(&deepest)), "{texts:?}");
    assert_eq!(texts.len(), 4, "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_are_asked_for_each_event_and_orders_leave_a_line() {
    let keys = [("users", ":publish"), ("everyone", ":broadcast"), ("reader", ":read")];
    let secret = |name: &str| format!("{name}-key-000000000000000000000000");
    let lines: Vec<_> =
        keys.iter().map(|(name, scopes)| api_key(name, &secret(name)) + scopes).collect();
    let replica = Builder::production().set("api.keys", lines.join(",")).spawn().await;
    let events = [to_alice("one"), event(json!({"broadcast": true}), "two")];
    let body = json!({"events": events}).to_string();
    let send = async |name: &str| {
        let bearer = format!("Bearer {}", secret(name));
        let headers = [("authorization", bearer.as_str())];
        replica.api_with("POST", BATCH, Some(body.clone()), &headers).await
    };
    let answer = send("users").await;
    assert_eq!(statuses(&answer), [202, 403], "{answer:?}");
    assert_eq!(answer.json()["results"][1]["problem"]["type"], "urn:belfry:problem:forbidden");
    assert_eq!(statuses(&send("everyone").await), [403, 202]);
    send("reader").await.is_problem(403);
    let nobody = [("authorization", "Bearer nobody")];
    replica.api_with("POST", BATCH, Some(body.clone()), &nobody).await.is_problem(401);
    let wanted = [
        ("broadcast", "everyone", 1),
        ("broadcast", "users", 0),
        ("refused", "users", 1),
        ("refused", "everyone", 1),
        ("refused", "reader", 1),
        ("refused", "none", 1),
    ];
    until("every order and refusal has one line", PATIENCE, async || {
        let log = replica.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let audit: Vec<Value> = lines.filter(|line| line["target"] == "audit").collect();
        let all = wanted.iter().all(|(action, key, count)| {
            let same = |line: &&Value| {
                line["fields"]["action"] == *action && line["fields"]["key"] == *key
            };
            audit.iter().filter(same).count() == *count
        });
        all.then_some(())
    })
    .await;
    let of = |key| vec![("route", BATCH), ("key", key), ("code", "200")];
    let metrics = replica.metrics().await;
    assert!((metrics.get("api_requests_total", &of("users")) - 1.0).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_done_once_under_its_key() {
    for (bus, replica, _redis) in both().await {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let events = [
            to_alice("one"),
            event(json!({"user": ""}), "bad"),
            event(json!({"users": ["alice", "bob"]}), "two"),
            to_alice("one"),
        ];
        let body = json!({"events": events}).to_string();
        let send = async |body: &str, key: &str| {
            let headers = [("idempotency-key", key)];
            replica.api_with("POST", BATCH, Some(body.to_owned()), &headers).await
        };
        let first = send(&body, "k").await;
        assert_eq!(statuses(&first), [202, 422, 202, 202], "{bus}: {first:?}");
        for _ in 0..3 {
            let again = send(&body, "k").await;
            assert_eq!((again.status, &again.text), (200, &first.text), "{bus}");
        }
        // Another body is refused as a whole, in whatever order it names the same.
        let [one, bad, two, three] = &events;
        for other in [vec![two, bad, one, three], vec![one], vec![one, bad, two, three, one]] {
            let other = json!({"events": other}).to_string();
            send(&other, "k").await.is_problem(422);
        }
        // The single route has keys of its own.
        let single = replica.post_once(to_alice("three").to_string(), "k").await;
        assert_eq!(single.status, 202, "{bus}: {single:?}");
        send(&body, &"k".repeat(129)).await.is_problem(400);
        replica.to_user("alice", "last").await;
        assert_eq!(ws.markers_before("last").await, ["one", "two", "one", "three"], "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_done_is_503_and_a_repetition_does_it() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let body = json!({"events": [to_alice("one"), to_alice("two"), json!(7)]}).to_string();
    let send = async || {
        let headers = [("idempotency-key", "k")];
        replica.api_with("POST", BATCH, Some(body.clone()), &headers).await
    };
    redis.freeze();
    let lost = send().await;
    lost.is_problem(503);
    assert!(lost.header("retry-after").is_some(), "{lost:?}");
    assert!(lost.took < Duration::from_millis(2_500), "{lost:?}");
    redis.thaw();
    replica.becomes("/readyz", 200, PATIENCE).await;
    let done = until("it is done", PATIENCE, async || {
        let answer = send().await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(statuses(&done), [202, 202, 422]);
    replica.to_user("alice", "last").await;
    assert_eq!(ws.markers_before("last").await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_is_503_for_itself() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    redis.cli(&["SET", "ws:user:bob", "not a stream"]);
    let events = [
        to_alice("one"),
        event(json!({"user": "bob"}), "lost"),
        event(json!({"users": ["alice", "bob"]}), "two"),
        to_alice("three"),
    ];
    let answer = batch(&replica, &events).await;
    assert_eq!(statuses(&answer), [202, 503, 503, 202], "{answer:?}");
    assert_eq!(answer.json()["results"][1]["problem"]["type"], "urn:belfry:problem:unavailable");
    batch(&replica, &events[1..2]).await.is_problem(503);
    replica.to_user("alice", "last").await;
    assert_eq!(ws.markers_before("last").await, ["one", "two", "three"]);
}

/// Lists in a batch multiply: what is a small body may be more than Redis does in the time that one
/// call has, and more than `redis.inflight`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i09_many_long_lists_are_all_done_and_starve_no_one() {
    let redis = RedisServer::start().await;
    let replica = Arc::new(Builder::production().redis(&redis).spawn().await);
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let users: Vec<_> = (0..1_000).map(|n| format!("u{n}")).collect();
    let events = vec![event(json!({"users": users}), "m"); 30];
    let large = {
        let replica = Arc::clone(&replica);
        tokio::spawn(async move { batch(&replica, &events).await })
    };
    let mut latencies = Vec::new();
    while !large.is_finished() {
        let start = Instant::now();
        replica.to_user("alice", "mine").await;
        ws.event("mine").await;
        latencies.push(start.elapsed());
    }
    let answer = large.await.expect("no panic");
    assert_eq!(statuses(&answer), [202; 30]);
    for user in ["u0", "u999"] {
        assert_eq!(redis.cli(&["XLEN", &format!("ws:user:{user}")]), "30");
    }
    let p99 = percentile(&mut latencies, 0.99);
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?} of {}", latencies.len());
    assert_eq!(replica.get("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_too_large_is_answered() {
    let replica = Replica::start().await;
    let long = "k".repeat(100_000);
    let body = json!({"events": []}).to_string();
    let head = format!(
        "POST {BATCH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nIdempotency-Key: ",
        body.len()
    );
    for (key, statuses) in [(&long[..129], [400].as_slice()), (&long[..60_000], &[400, 431])] {
        let request = format!("{head}{key}\r\n\r\n{body}");
        let reply = crate::support::http::exchange(replica.internal, request.as_bytes()).await;
        assert!(statuses.contains(&reply.status), "{}: {}", key.len(), reply.status);
    }
    assert_eq!(replica.api("POST", BATCH, Some(&json!({"events": []}))).await.status, 200);
}

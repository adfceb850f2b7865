//! What is kept for a user: read, and erased.

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, Builder, Replica, both},
    client::Dial,
    http::exchange,
    jwt::token,
    until,
};

async fn kept(replica: &Replica, path: &str) -> Value {
    let answer = replica.api("GET", path, None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn marks(kept: &Value) -> Vec<&str> {
    let events = kept["events"].as_array().expect("a list");
    events.iter().map(|event| event["data"]["mk"].as_str().expect("a mark")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_read_as_browsers_get_them_and_erased() {
    for (bus, replica, _redis) in both().await {
        let nothing = kept(&replica, "/v1/users/alice/events").await;
        assert_eq!(nothing, json!({"user": "alice", "events": []}), "{bus}");
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let mut ids = Vec::new();
        for n in 0..150 {
            let body = json!({
                "to": {"users": ["alice", "bob"]}, "type": "t", "data": {"mk": n.to_string()},
                "sender": "tab", "except": {"users": ["bob"]},
            });
            let answer = replica.post(body.to_string()).await;
            let events = answer.json()["events"].clone();
            assert_eq!(events.as_array().map(Vec::len), Some(1), "{answer:?}");
            ids.push(events[0]["id"].clone());
        }
        let transient =
            json!({"to": {"user": "alice"}, "type": "t", "data": {"mk": "x"}, "transient": true});
        replica.event(&transient).await;
        replica.to_all("everyone").await;
        replica.to_user("alice", "last").await;
        let frames = ws.through("\"last\"").await;
        let found = kept(&replica, "/v1/users/alice/events").await;
        let wanted: Vec<_> = (0..150).map(|n| n.to_string()).chain(["last".into()]).collect();
        assert_eq!(marks(&found), wanted, "{bus}");
        let events = found["events"].as_array().expect("a list");
        for (n, event) in events.iter().take(150).enumerate() {
            assert_eq!(event["id"], ids[n], "{bus}");
            let same =
                |frame: &String| serde_json::from_str::<Value>(frame).expect("JSON") == *event;
            assert!(frames.iter().any(same), "{event}");
        }
        assert_eq!(found["last"], events[150]["id"], "{bus}");
        assert!(!found.to_string().contains("except"), "{bus}");
        let after = format!("/v1/users/alice/events?after={}", ids[147].as_str().expect("an id"));
        assert_eq!(marks(&kept(&replica, &after).await), ["148", "149", "last"], "{bus}");
        assert_eq!(kept(&replica, "/v1/users/bob/events").await["events"], json!([]), "{bus}");

        let erased = replica.api("DELETE", "/v1/users/alice/events", None).await;
        assert_eq!((erased.status, erased.text.as_str()), (204, ""), "{bus}: {erased:?}");
        let left = kept(&replica, "/v1/users/alice/events").await;
        assert_eq!(left["events"], json!([]), "{bus}");
        assert_eq!(left["last"], found["last"], "{bus}: the place is remembered");
        let again = replica.api("DELETE", "/v1/users/alice/events", None).await;
        assert_eq!(again.status, 204, "{bus}");
        replica.to_user("alice", "new").await;
        assert_eq!(marks(&kept(&replica, "/v1/users/alice/events").await), ["new"], "{bus}");
        let line = until("an audit line", std::time::Duration::from_secs(5), async || {
            replica.log().lines().find(|line| line.contains("\"erase\"")).map(str::to_owned)
        })
        .await;
        assert!(line.contains("\"alice\"") && line.contains("\"tests\""), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_is_not_shown() {
    for (bus, replica, _redis) in both().await {
        let event = |mark: &str, ttl: u64| json!({"to": {"user": "alice"}, "type": "t", "data": {"mk": mark}, "ttl_seconds": ttl});
        replica.event(&event("short", 1)).await;
        replica.event(&event("long", 3_600)).await;
        replica.post(event("never", 3_601).to_string()).await.is_at_fault("/ttl_seconds");
        until("the short one is over", std::time::Duration::from_secs(5), async || {
            let found = kept(&replica, "/v1/users/alice/events").await;
            (marks(&found) == ["long"]).then_some(())
        })
        .await;
        println!("{bus}: over");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_where_nothing_is_to_be() {
    let replica = Builder::production().set("history.events", "0").spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let post = async |to: Value| {
        let body = json!({"to": to, "type": "t", "data": {"mk": "m"}});
        replica.post(body.to_string()).await.json()
    };
    assert_eq!(post(json!({"user": "alice"})).await, json!({"online": true}));
    assert_eq!(
        post(json!({"users": ["alice", "bob"]})).await,
        json!({"events": [{"user": "alice", "online": true}, {"user": "bob", "online": false}]})
    );
    assert_eq!(post(json!({"broadcast": true})).await, json!({}));
    assert_eq!(ws.event("m").await, r#"{"type":"t","data":{"mk":"m"}}"#);
    let found = kept(&replica, "/v1/users/alice/events").await;
    assert_eq!(found, json!({"user": "alice", "events": []}));
    let erased = replica.api("DELETE", "/v1/users/alice/events", None).await;
    assert_eq!(erased.status, 204, "{erased:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_user_can_be_named() {
    let replica = Replica::start().await;
    let users = [
        "alice",
        "events",
        ".",
        "..",
        "a/b",
        "/",
        "a%2Fb",
        "%",
        "a?b",
        "a#b",
        "a+b",
        "a b",
        "ä",
        "🔔",
        "tenant:42",
        "*",
        "{user}",
        "users",
        "a//b",
        "%%341",
    ];
    for user in users {
        replica.to_user(user, user).await;
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let ask = async |method: &str, path: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
            crate::support::app::API_KEY
        );
        exchange(replica.internal, request.as_bytes()).await
    };
    for user in users {
        let escaped: String =
            user.bytes()
                .map(|byte| {
                    if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
                })
                .collect();
        for path in [format!("/v1/users/{escaped}"), format!("/v1/users?user={escaped}")] {
            let reply = ask("GET", &path).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text);
            assert_eq!(reply.json()["user"], user, "{path}");
            assert!(reply.json().get("events").is_none(), "{path}");
        }
        for path in
            [format!("/v1/users/{escaped}/events"), format!("/v1/users/events?user={escaped}")]
        {
            let reply = ask("GET", &path).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text);
            assert_eq!(reply.json()["user"], user, "{path}");
            assert_eq!(marks(&reply.json()), [user], "{path}");
        }
    }
    // `events` alone is a user, and what is erased is what was named.
    assert_eq!(ask("DELETE", "/v1/users/events").await.status, 405);
    assert_eq!(ask("DELETE", "/v1/users/events/events").await.status, 204);
    assert_eq!(marks(&kept(&replica, "/v1/users/alice/events").await), ["alice"]);
    assert_eq!(ask("DELETE", "/v1/users/events?user=..").await.status, 204);
    let reply = ask("GET", "/v1/users/events?user=..").await;
    assert_eq!(reply.json()["events"], json!([]));
    for (path, status) in [
        ("/v1/users", 400),
        ("/v1/users?user=a&user=b", 400),
        ("/v1/users/alice?user=bob", 400),
        ("/v1/users/alice/events?user=bob", 400),
        ("/v1/users?user=", 422),
        ("/v1/users/%00", 422),
        ("/v1/users/%ff", 422),
        ("/v1/users/alice/events?after=x", 422),
        ("/v1/users/alice/events?after=b~1-0", 422),
        ("/v1/users/", 404),
        ("/v1/users/alice/", 404),
        ("/v1/users/a/b", 404),
    ] {
        let reply = ask("GET", path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text);
        let kind = reply.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "{path}: {}", reply.text);
    }
    let long = "x".repeat(257);
    assert_eq!(ask("GET", &format!("/v1/users/{long}")).await.status, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods() {
    let replica = Replica::start().await;
    for (path, methods) in [
        ("/v1/users/alice", ["POST", "PUT", "DELETE", "PATCH"]),
        ("/v1/users?user=alice", ["POST", "PUT", "DELETE", "PATCH"]),
        ("/v1/users/alice/events", ["POST", "PUT", "OPTIONS", "PATCH"]),
        ("/v1/users/events?user=alice", ["POST", "PUT", "OPTIONS", "PATCH"]),
    ] {
        let head: Answer = replica.api("HEAD", path, None).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        for method in methods {
            let answer = replica.api(method, path, None).await;
            answer.is_problem(405);
            let allow = answer.header("allow").unwrap_or_default();
            assert!(allow.contains("GET") && allow.contains("HEAD"), "{method} {path}: {allow}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_is_read_in_parts() {
    let replica = Builder::production()
        .set("history.events", "2000")
        .set("history.bytes", "32MiB")
        .spawn()
        .await;
    let pad = "x".repeat(60_000);
    for n in 0..200 {
        let data = json!({"mk": n.to_string(), "pad": pad});
        replica.event(&json!({"to": {"user": "alice"}, "type": "t", "data": data})).await;
    }
    let mut found = Vec::new();
    let mut path = "/v1/users/alice/events".to_owned();
    let mut parts = 0;
    loop {
        let part = kept(&replica, &path).await;
        found.extend(marks(&part).into_iter().map(str::to_owned));
        parts += 1;
        if part.get("more").is_none() {
            break;
        }
        let last = part["events"].as_array().and_then(|events| events.last()?["id"].as_str());
        path = format!("/v1/users/alice/events?after={}", last.expect("an id"));
    }
    assert_eq!(found, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(parts > 1, "in one part");
}

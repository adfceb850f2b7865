//! CloudEvents 1.0 on `POST /v1/events`: structured, binary and in batches.

use serde_json::{Value, json};

use crate::support::{
    app::{API_KEY, Answer, Builder, Replica, api_key, both},
    client::Dial,
    http::exchange,
    jwt::{Jwt, token},
};

const EVENTS: &str = "/v1/events";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn event(id: &str, marker: &str) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/orders", "type": "com.example.order",
        "time": "2024-11-24T00:00:00Z", "subject": "7", "datacontenttype": "application/json",
        "user": "alice", "data": {"mk": marker},
    })
}

async fn send(replica: &Replica, media: &str, body: impl Into<String>) -> Answer {
    replica.api_with("POST", EVENTS, Some(body.into()), &[("content-type", media)]).await
}

async fn binary(replica: &Replica, headers: &[(&str, &str)], body: &str) -> Answer {
    let own = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b-1"),
        ("ce-source", "/orders"),
        ("ce-type", "com.example.order"),
    ];
    let all: Vec<_> = own.iter().chain(headers).copied().collect();
    replica.api_with("POST", EVENTS, Some(body.to_owned()), &all).await
}

#[track_caller]
fn is_accepted(answer: &Answer) {
    assert_eq!((answer.status, answer.text.as_str()), (202, ""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_modes_arrive() {
    for (bus, replica, _redis) in both().await {
        let jwt = Jwt::of("alice").groups(&["staff"]).sign();
        let mut ws = Dial::to(&replica).query(&jwt).open().await;
        is_accepted(&send(&replica, STRUCTURED, event("1", "structured").to_string()).await);
        let text = ws.event("structured").await;
        let frame: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(frame["type"], "com.example.order", "{bus}");
        assert_eq!(frame["data"], json!({"mk": "structured"}));
        assert!(frame["id"].as_str().is_some_and(|id| id.starts_with("u~")), "{text}");
        // Nothing of the envelope but type and data goes to browsers.
        assert_eq!(frame.as_object().map(serde_json::Map::len), Some(4), "{text}");

        let media = format!("{STRUCTURED}; charset=utf-8");
        let exact = r#"{"mk": "exact",  "n":12345678901234567890.10, "a":"\u0041"}"#;
        let document = event("2", "x").to_string().replace(r#"{"mk":"x"}"#, exact);
        is_accepted(&send(&replica, &media, document).await);
        assert!(ws.event("exact").await.contains(exact), "{bus}");

        is_accepted(&binary(&replica, &[("ce-user", "alice")], r#"{"mk":"binary"}"#).await);
        ws.event("binary").await;
        let group = [("ce-id", "b-2"), ("ce-group", "st%61ff"), ("content-type", "text/json")];
        is_accepted(&binary(&replica, &group, r#"{"mk":"group"}"#).await);
        ws.event("group").await;

        let mut everyone = event("3", "everyone");
        everyone.as_object_mut().expect("an object").remove("user");
        everyone["broadcast"] = json!(true);
        let batch = json!([everyone, event("4", "last-of-batch")]);
        is_accepted(&send(&replica, BATCH, batch.to_string()).await);
        let texts = ws.through("last-of-batch").await.join("\n")
            + &replica.api("GET", "/v1/stats", None).await.text;
        if !texts.contains("everyone") {
            ws.event("everyone").await;
        }
        is_accepted(&send(&replica, BATCH, "[]").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_source_and_id_are_one_event_in_any_mode() {
    for (bus, replica, _redis) in both().await {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let mut first = event("b-1", "one");
        is_accepted(&send(&replica, STRUCTURED, first.to_string()).await);
        first["time"] = json!("2024-11-24T00:00:09Z");
        is_accepted(&send(&replica, STRUCTURED, first.to_string()).await);
        is_accepted(&send(&replica, BATCH, json!([first, first]).to_string()).await);
        is_accepted(&binary(&replica, &[("ce-user", "alice")], r#"{"mk":"one"}"#).await);
        // The same for another target, or of another source, is another.
        is_accepted(&binary(&replica, &[("ce-user", "bob")], r#"{"mk":"one"}"#).await);
        let other = [("ce-user", "alice"), ("ce-source", "/other")];
        is_accepted(&binary(&replica, &other, r#"{"mk":"two"}"#).await);
        // Another event under the same id is refused, and named.
        let wrong = event("b-1", "wrong");
        send(&replica, STRUCTURED, wrong.to_string()).await.is_at_fault("");
        let batch = json!([event("b-3", "three"), wrong]);
        send(&replica, BATCH, batch.to_string()).await.is_at_fault("/1");
        replica.to_user("alice", "last").await;
        assert_eq!(ws.markers_before("last").await, ["one", "two", "three"], "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_hold_is_refused_whole() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let with = |name: &str, value: Value| {
        let mut event = event("1", "refused");
        event[name] = value;
        event
    };
    let cases = [
        (with("specversion", json!("0.3")), "/specversion"),
        (with("specversion", json!(1.0)), "/specversion"),
        (with("id", json!("")), "/id"),
        (with("source", json!(null)), "/source"),
        (with("type", json!("belfry.x")), "/type"),
        (with("type", json!("x".repeat(129))), "/type"),
        (with("user", json!("")), "/user"),
        (with("user", json!(["alice"])), "/user"),
        (with("user", json!(null)), ""),
        (with("group", json!("staff")), ""),
        (with("broadcast", json!(true)), ""),
        (with("datacontenttype", json!("text/plain")), "/datacontenttype"),
        (with("data_base64", json!("AA==")), "/data_base64"),
        (with("User", json!("alice")), "/User"),
    ];
    for (event, pointer) in &cases {
        send(&replica, STRUCTURED, event.to_string()).await.is_at_fault(pointer);
        let batch = json!([self::event("2", "refused"), event]);
        let answer = send(&replica, BATCH, batch.to_string()).await;
        answer.is_at_fault(&format!("/1{pointer}"));
    }
    send(&replica, BATCH, json!(vec![event("1", "refused"); 1_001]).to_string())
        .await
        .is_at_fault("");
    send(&replica, BATCH, event("1", "refused").to_string()).await.is_at_fault("");
    send(&replica, STRUCTURED, json!([event("1", "refused")]).to_string()).await.is_at_fault("");
    for broken in ["", "{", "nonsense"] {
        send(&replica, STRUCTURED, broken).await.is_problem(400);
        send(&replica, BATCH, broken).await.is_problem(400);
    }
    let large = with("data", json!("x".repeat(65 * 1024)));
    send(&replica, STRUCTURED, large.to_string()).await.is_problem(413);
    send(&replica, STRUCTURED, " ".repeat((512 << 10) + 1)).await.is_problem(413);
    send(&replica, BATCH, " ".repeat((4 << 20) + 1)).await.is_problem(413);
    for media in ["application/cloudevents+avro", "application/cloudevents", "text/plain"] {
        send(&replica, media, event("1", "refused").to_string()).await.is_problem(415);
    }
    // An ordinary body in a CloudEvents type is none.
    let plain = json!({"to": {"user": "alice"}, "type": "t", "data": {"mk": "refused"}});
    send(&replica, STRUCTURED, plain.to_string()).await.is_problem(422);
    replica.to_user("alice", "last").await;
    assert!(ws.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_binary_mode_are_checked_and_decoded() {
    let replica = Replica::start().await;
    let odd = "tenant:ä €%41 \"x\"";
    let mut ws = Dial::to(&replica).query(&token(odd)).open().await;
    let user = [("ce-user", "tenant:%C3%A4%20%E2%82%AC%2541%20%22x%22")];
    is_accepted(&binary(&replica, &user, r#"{"mk":"one"}"#).await);
    assert_eq!(ws.event("one").await.matches("one").count(), 1);
    let data = r#"{"mk":"refused"}"#;
    for (headers, body, pointer) in [
        (vec![("ce-user", odd_none())], data, "/user"),
        (vec![("ce-user", "%ff")], data, "/user"),
        (vec![], data, ""),
        (vec![("ce-user", "a"), ("ce-group", "b")], data, ""),
        (vec![("ce-broadcast", "yes")], data, "/broadcast"),
        (vec![("ce-user", "a"), ("ce-specversion", "2.0")], data, "/specversion"),
        (vec![("ce-user", "a"), ("ce-type", "ping")], data, "/type"),
        (vec![("ce-user", "a"), ("ce-x-y", "1")], data, "/x-y"),
        (vec![("ce-user", "a"), ("content-type", "text/plain")], data, "/datacontenttype"),
        (vec![("ce-user", "a"), ("content-type", "application/xml")], "<a/>", "/datacontenttype"),
        (vec![("ce-user", "a")], "hello", "/data"),
        (vec![("ce-user", "a")], "{", "/data"),
    ] {
        let answer = binary(&replica, &headers, body).await;
        println!("{headers:?}: {}", answer.text);
        answer.is_at_fault(pointer);
    }
    // Twice, or one missing, by hand.
    for (more, pointer) in [
        ("ce-specversion: 1.0\r\nce-id: 1\r\nce-id: 2\r\nce-source: s\r\nce-type: t\r\n", "/id"),
        ("ce-id: 1\r\nce-source: s\r\nce-type: t\r\n", "/specversion"),
        ("ce-specversion: 1.0\r\nce-id: 1\r\nce-type: t\r\n", "/source"),
    ] {
        let request = format!(
            "POST {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\
             Content-Type: application/json\r\nce-user: a\r\n{more}Content-Length: 1\r\n\r\n1"
        );
        let reply = exchange(replica.internal, request.as_bytes()).await;
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert_eq!(reply.json()["errors"][0]["pointer"], pointer, "{}", reply.text);
    }
    replica.to_user(odd, "last").await;
    assert!(ws.markers_before("last").await.is_empty());
}

/// No user.
fn odd_none() -> &'static str {
    "%0A"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_hold_for_cloudevents_too() {
    let secret = "users-key-0000000000000000000000000000";
    let keys = api_key("users", secret) + ":publish";
    let replica = Builder::production().set("api.keys", keys).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let bearer = format!("Bearer {secret}");
    let send = async |media: &str, body: &Value| {
        let headers = [("authorization", bearer.as_str()), ("content-type", media)];
        replica.api_with("POST", EVENTS, Some(body.to_string()), &headers).await
    };
    let mut everyone = event("1", "refused");
    everyone.as_object_mut().expect("an object").remove("user");
    everyone["broadcast"] = json!("true");
    send(STRUCTURED, &everyone).await.is_problem(403);
    send(BATCH, &json!([event("2", "refused"), everyone])).await.is_problem(403);
    is_accepted(&send(BATCH, &json!([event("3", "last")])).await);
    assert!(ws.markers_before("last").await.is_empty());
    let nobody = [("authorization", "Bearer x"), ("content-type", STRUCTURED)];
    let body = Some(event("4", "refused").to_string());
    replica.api_with("POST", EVENTS, body, &nobody).await.is_problem(401);
}

//! A publisher that does not know what became of its request repeats it, and has it done once.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica, api_key, both},
    client::Dial,
    http::exchange,
    jwt::token,
    redis::RedisServer,
    until,
};

fn body(user: &str, mark: &str) -> String {
    json!({"to": {"user": user}, "type": "t", "data": {"mk": mark}}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_a_repetition_gets_the_same_answer_and_no_second_delivery() {
    for (bus, replica, _redis) in both().await {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let first = replica.post_once(body("alice", "one"), "key-1").await;
        assert_eq!(first.status, 202, "{bus}: {first:?}");
        for _ in 0..5 {
            let again = replica.post_once(body("alice", "one"), "key-1").await;
            assert_eq!((again.status, &again.text), (202, &first.text), "{bus}");
        }
        replica.to_user("alice", "last").await;
        assert_eq!(ws.markers_before("last").await, ["one"], "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_many_at_once_are_one() {
    for (bus, replica, _redis) in both().await {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let posts = (0..40).map(|_| replica.post_once(body("alice", "one"), "key-1"));
        for answer in futures_util::future::join_all(posts).await {
            assert!([202, 503].contains(&answer.status), "{bus}: {answer:?}");
        }
        assert_eq!(replica.post_once(body("alice", "one"), "key-1").await.status, 202, "{bus}");
        replica.to_user("alice", "last").await;
        assert_eq!(ws.markers_before("last").await, ["one"], "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_a_key_belongs_to_its_body_and_target() {
    for (bus, replica, _redis) in both().await {
        let mut alice = Dial::to(&replica).query(&token("alice")).open().await;
        let mut bob = Dial::to(&replica).query(&token("bob")).open().await;
        assert_eq!(replica.post_once(body("alice", "one"), "key-1").await.status, 202);
        let other = replica.post_once(body("alice", "two"), "key-1").await;
        assert_eq!(other.status, 422, "{bus}: {other:?}");
        // Another target has keys of its own, and so has no key at all.
        assert_eq!(replica.post_once(body("bob", "three"), "key-1").await.status, 202);
        assert_eq!(replica.post(body("bob", "four")).await.status, 202);
        replica.to_user("alice", "last").await;
        replica.to_user("bob", "last").await;
        assert_eq!(alice.markers_before("last").await, ["one"], "{bus}");
        assert_eq!(bob.markers_before("last").await, ["three", "four"], "{bus}");
    }
}

/// What was true first is told again, also where it is true no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_the_answer_is_that_of_the_first_time() {
    for (bus, replica, _redis) in both().await {
        let ws = Dial::to(&replica).query(&token("alice")).open().await;
        let list = json!({"to": {"users": ["alice", "bob"]}, "type": "t", "data": 1}).to_string();
        for body in [body("alice", "one"), list] {
            let first = replica.post_once(body.clone(), "key-1").await;
            assert!(first.text.contains("\"id\":\"u~"), "{bus}: {first:?}");
            assert!(first.text.contains("\"online\":true"), "{bus}: {first:?}");
            let again = replica.post_once(body, "key-1").await;
            assert_eq!((again.status, &again.text), (202, &first.text), "{bus}");
        }
        let first = replica.post_once(body("alice", "one"), "key-1").await;
        ws.close().await;
        until("alice is gone", PATIENCE, async || {
            let alice = replica.api("GET", "/v1/users/alice", None).await;
            (alice.json()["online"] == false).then_some(())
        })
        .await;
        let again = replica.post_once(body("alice", "one"), "key-1").await;
        assert_eq!(again.text, first.text, "{bus}");
        let anew = replica.post_once(body("alice", "one"), "key-2").await;
        assert!(anew.text.contains("\"online\":false"), "{bus}: {anew:?}");
    }
}

/// A list is one request: under a key of another none of it is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_a_list_is_refused_as_a_whole() {
    for (bus, replica, _redis) in both().await {
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        let list = |users: &[&str], mark: &str| {
            json!({"to": {"users": users}, "type": "t", "data": {"mk": mark}}).to_string()
        };
        let users = ["bob", "alice", "carol"];
        for _ in 0..3 {
            assert_eq!(replica.post_once(list(&users, "one"), "k").await.status, 202, "{bus}");
        }
        replica.post_once(list(&users, "two"), "k").await.is_problem(422);
        // The same users in another order are the same target, and the body another.
        replica.post_once(list(&["carol", "bob", "alice"], "one"), "k").await.is_problem(422);
        // Other users are another target.
        assert_eq!(replica.post_once(list(&["alice"], "three"), "k").await.status, 202, "{bus}");
        replica.to_user("alice", "last").await;
        assert_eq!(ws.markers_before("last").await, ["one", "three"], "{bus}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_keys_are_the_callers_own() {
    let secret = |name: &str| format!("{name}-key-000000000000000000000000");
    let keys = ["one", "two"].map(|name| api_key(name, &secret(name)));
    let replica = Builder::production().set("api.keys", keys.join(",")).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let send = async |name: &str, mark: &str| {
        let bearer = format!("Bearer {}", secret(name));
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k")];
        replica.api_with("POST", "/v1/events", Some(body("alice", mark)), &headers).await.status
    };
    assert_eq!(send("one", "first").await, 202);
    assert_eq!(send("two", "second").await, 202);
    assert_eq!(send("two", "third").await, 422);
    assert_eq!(send("one", "last").await, 422);
    assert_eq!(send("one", "first").await, 202);
    let last = body("alice", "last");
    replica.post_with(last, &secret("one"), "application/json").await;
    assert_eq!(ws.markers_before("last").await, ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_keys_that_are_none_are_refused() {
    let replica = Replica::start().await;
    for key in ["", &"k".repeat(129), "schlüssel"] {
        let answer = replica.post_once(body("alice", "x"), key).await;
        assert_eq!(answer.status, 400, "{key}: {answer:?}");
    }
    assert_eq!(replica.post_once(body("alice", "x"), &"k".repeat(128)).await.status, 202);
    let body = body("alice", "x");
    let twice = format!(
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\
         Content-Type: application/json\r\nIdempotency-Key: a\r\nIdempotency-Key: a\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(exchange(replica.internal, twice.as_bytes()).await.status, 400);
}

/// Redis hangs with the request in its hands: nobody can know whether it was done, and the
/// repetition has it done once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_what_cannot_be_known_is_done_once() {
    for round in 0..3 {
        let redis = RedisServer::start().await;
        let replica = Builder::production().redis(&redis).spawn().await;
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        redis.freeze();
        let lost = replica.post_once(body("alice", "one"), "key-1").await;
        assert_eq!(lost.status, 503, "{lost:?}");
        redis.thaw();
        let mut tries = 0;
        while replica.post_once(body("alice", "one"), "key-1").await.status != 202 {
            tries += 1;
            assert!(tries < 100, "round {round}: never accepted again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // What was published before the subscription stood again may be lost; twice is not allowed.
        replica.becomes("/readyz", 200, Duration::from_secs(10)).await;
        while replica.post(body("alice", "last")).await.status != 202 {}
        let got = ws.markers_before("last").await;
        assert!(got.len() <= 1, "round {round}: {got:?}");
    }
}

/// One channel of a list cannot be written: 503, and the repetition completes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_a_list_that_was_done_in_part_is_completed() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    redis.cli(&["SET", "ws:user:bob", "not a stream"]);
    let users = ["alice", "bob", "carol"];
    let list = json!({"to": {"users": users}, "type": "t", "data": {"mk": "one"}}).to_string();
    for _ in 0..3 {
        let answer = replica.post_once(list.clone(), "k").await;
        answer.is_problem(503);
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    redis.cli(&["DEL", "ws:user:bob"]);
    let done = replica.post_once(list.clone(), "k").await;
    assert_eq!(done.status, 202, "{done:?}");
    let events = done.json()["events"].as_array().cloned().expect("a list");
    assert_eq!(events.iter().map(|event| event["user"].clone()).collect::<Vec<_>>(), users);
    assert_eq!(replica.post_once(list, "k").await.text, done.text);
    for user in users {
        let kept = replica.api("GET", &format!("/v1/users/{user}/events"), None).await.json();
        assert_eq!(kept["events"].as_array().map(Vec::len), Some(1), "{user}: {kept}");
    }
    replica.to_user("alice", "last").await;
    assert_eq!(ws.markers_before("last").await, ["one"]);
}

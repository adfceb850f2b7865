//! A publisher that does not know what became of its request repeats it, and has it done once.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    app::{Builder, Replica, both},
    client::Dial,
    jwt::token,
    redis::RedisServer,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_keys_that_are_none_are_refused() {
    let replica = Replica::start().await;
    for key in ["", &"k".repeat(129), "schlüssel"] {
        let answer = replica.post_once(body("alice", "x"), key).await;
        assert_eq!(answer.status, 400, "{key}: {answer:?}");
    }
    assert_eq!(replica.post_once(body("alice", "x"), &"k".repeat(128)).await.status, 202);
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

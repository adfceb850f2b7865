//! A Redis that gives too few rights, and one that is three.

use serde_json::{Value, json};
use tokio::time::Duration;

use crate::support::{
    PATIENCE,
    app::{Answer, Builder, Replica},
    client::Dial,
    cluster::Cluster,
    jwt::token,
    redis::RedisServer,
    tab::{for_user, quick},
    until,
};

/// The named check of `/readyz`.
async fn check(replica: &Replica, name: &str) -> Value {
    replica.get("/readyz").await.json()["checks"][name].clone()
}

/// Polls until the check fails for this reason; what it says.
async fn fails(replica: &Replica, name: &str, why: &str) -> String {
    until(&format!("{name} fails for {why}"), PATIENCE, async || {
        let detail = check(replica, name).await["detail"].as_str().map(str::to_owned)?;
        detail.contains(why).then_some(detail)
    })
    .await
}

fn is_away(answer: &Answer) {
    answer.is_problem(503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert!(answer.took < Duration::from_millis(2_300), "{answer:?}");
}

/// The right to write what is kept is missing from the start: no publish is taken for kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_to_keep_shows_at_the_start() {
    for missing in ["-xadd", "-publish", "-set", "-xdel"] {
        let redis = RedisServer::start().await;
        let mut client = redis.client().await;
        let rule = format!("ACL SETUSER belfry on >hush ~* &* +@all {missing}");
        client.words(&rule).await;
        let url = format!("redis://belfry:hush@{}", redis.address());
        let replica = quick(Builder::production(), &redis).redis_at(&url).not_ready().spawn().await;
        let detail = fails(&replica, "bus", "user executing the script").await;
        assert!(detail.contains("+xadd") && detail.contains("&ws:user:*"), "{detail}");
        assert_eq!(replica.get("/readyz").await.status, 503, "{missing}");
        until("the log says what it takes", PATIENCE, async || {
            replica.log().contains("+xadd").then_some(())
        })
        .await;
        client.words(&format!("ACL SETUSER belfry +{}", &missing[1..])).await;
        replica.becomes("/readyz", 200, PATIENCE).await;
        assert_eq!(replica.post(for_user("alice", "x").to_string()).await.status, 202);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_carries_lists_of_users_over_all_slots() {
    let cluster = Cluster::start().await;
    let builder = || Builder::production().redis_at(&cluster.url());
    let (one, two) = tokio::join!(builder().spawn(), builder().spawn());
    let users: Vec<String> = (0..30).map(|n| format!("user-{{{n}}}")).collect();
    let mut sockets = Vec::new();
    for (user, replica) in users.iter().zip([&one, &two].into_iter().cycle()) {
        sockets.push(Dial::to(replica).query(&token(user)).open().await);
    }
    let list = json!({"to": {"users": users}, "type": "test", "data": {"mk": "list"}}).to_string();
    let first = one.post_once(list.clone(), "key").await;
    assert_eq!(first.status, 202, "{first:?}");
    let events = first.json()["events"].as_array().expect("an answer for each").clone();
    assert_eq!(events.len(), users.len());
    assert!(events.iter().all(|event| event["online"] == true), "{events:?}");
    // By another replica too, it is the same request.
    let again = two.post_once(list, "key").await;
    assert_eq!(again.text, first.text);
    two.to_all("all").await;
    one.to_group("nobody", "group").await;
    for (ws, event) in sockets.iter_mut().zip(&events) {
        // A broadcast may overtake what goes another way through the cluster.
        let mut markers = Vec::new();
        while markers.len() < 2 {
            let frame: Value = serde_json::from_str(&ws.text(PATIENCE).await.1).expect("JSON");
            if let Some(marker) = frame["data"]["mk"].as_str() {
                if marker == "list" {
                    assert_eq!(frame["id"], event["id"]);
                }
                markers.push(marker.to_owned());
            }
        }
        markers.sort();
        assert_eq!(markers, ["all", "list"]);
    }
    // Every node has its part of what is kept, and each key lies where it must: or the scripts
    // would have been refused.
    for node in &cluster.nodes {
        let streams = node.cli(&["--scan", "--pattern", "ws:user:user-*"]).lines().count();
        assert!(streams > 0, "a node without events");
        let mut client = node.client().await;
        assert!(client.words("DBSIZE").await.int() > 0);
    }
    for user in [&users[0], &users[29]] {
        let path = format!("/v1/users?user={}", user.replace('{', "%7B").replace('}', "%7D"));
        let presence = two.api("GET", &path, None).await;
        assert_eq!(presence.json()["online"], true, "{presence:?}");
    }
    for ws in &mut sockets {
        ws.is_alive().await;
    }
}

/// A master of the cluster is gone: its users' publishes fail cleanly, and come back with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_survives_a_master_that_restarts() {
    let mut cluster = Cluster::start().await;
    let replica = Builder::production()
        .redis_at(&cluster.url())
        .set("redis.probe_interval", "500ms")
        .set("redis.probe_timeout", "1s")
        .spawn()
        .await;
    let users: Vec<String> = (0..12).map(|n| format!("user-{n}")).collect();
    cluster.nodes[1].kill();
    until("somebody's publish fails", PATIENCE, async || {
        for user in &users {
            let answer = replica.post(for_user(user, "x").to_string()).await;
            if answer.status != 202 {
                is_away(&answer);
                return Some(());
            }
        }
        None
    })
    .await;
    cluster.nodes[1].restart().await;
    for user in &users {
        until("it is accepted again", PATIENCE, async || {
            let answer = replica.post(for_user(user, "y").to_string()).await;
            (answer.status == 202).then_some(())
        })
        .await;
    }
    let dial = Dial::to(&replica).query(&token("user-3"));
    let mut ws =
        until("it takes connections again", PATIENCE, async || dial.try_connect().await.ok()).await;
    replica.to_user("user-3", "live").await;
    ws.event("live").await;
}

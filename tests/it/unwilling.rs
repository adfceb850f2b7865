//! A Redis that answers, and does not keep: full, read-only, unable to save, or dropping keys to
//! make room.

use serde_json::Value;
use tokio::time::{Duration, sleep};

use crate::support::{
    PATIENCE,
    app::{Answer, Builder, Replica},
    client::Dial,
    jwt::token,
    redis::RedisServer,
    tab::{Tab, answer, for_all, for_user, marker, put, quick, with},
    until,
};

fn alice(replica: &Replica) -> Dial {
    Dial::to(replica).query(&token("alice"))
}

/// 503, soon, with word of when to come back.
#[track_caller]
fn is_away(answer: &Answer) {
    answer.is_problem(503);
    let retry = answer.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(retry.is_some_and(|seconds| seconds <= 120), "{answer:?}");
    assert!(answer.took < Duration::from_millis(2_300), "503 took {:?}", answer.took);
}

/// How Redis refuses writes.
struct Way {
    begin: &'static [&'static str],
    end: &'static [&'static str],
    /// What it says.
    says: &'static str,
}

const FULL: Way = Way {
    begin: &["CONFIG", "SET", "maxmemory", "1"],
    end: &["CONFIG", "SET", "maxmemory", "0"],
    says: "OOM",
};
/// As after a failover that Belfry has not heard of.
const READ_ONLY: Way = Way {
    begin: &["REPLICAOF", "127.0.0.1", "1"],
    end: &["REPLICAOF", "NO", "ONE"],
    says: "READONLY",
};
/// As long as the replicas that it has to write to are missing.
const ALONE: Way = Way {
    begin: &["CONFIG", "SET", "min-replicas-to-write", "1"],
    end: &["CONFIG", "SET", "min-replicas-to-write", "0"],
    says: "NOREPLICAS",
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_refuses_events_and_nothing_else_happens() {
    refuses_for_a_while(FULL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_redis_refuses_events_and_nothing_else_happens() {
    refuses_for_a_while(READ_ONLY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_its_replicas_refuses_events_and_nothing_else_happens() {
    refuses_for_a_while(ALONE).await;
}

async fn refuses_for_a_while(Way { begin, end, says }: Way) {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut tabs = [Tab::open(&alice(&replica)).await, Tab::open(&alice(&replica).sse()).await];
    put(&replica, &for_user("alice", "before")).await;
    for tab in &mut tabs {
        assert_eq!(marker(&tab.next().await), "before");
    }
    let cursor = tabs[0].cursor.to_string();
    let kept = || redis.cli(&["XLEN", "ws:user:alice"]);
    let before = (kept(), redis.cli(&["GET", "ws:last:user:alice"]));
    assert_eq!(redis.cli(begin), "OK");
    let refused = for_user("alice", "refused").to_string();
    for n in 0..10 {
        is_away(&replica.post_once(refused.clone(), "once").await);
        is_away(&replica.post(for_all(&format!("refused {n}")).to_string()).await);
        let transient = with(for_user("alice", "refused"), "transient", true);
        // Nothing has to be written for it. But if it is refused, then as a whole.
        let answer = replica.post(transient.to_string()).await;
        if answer.status == 202 {
            for tab in &mut tabs {
                assert_eq!(marker(&tab.next().await), "refused");
            }
        } else {
            is_away(&answer);
        }
        // Past the moment at which it is found out.
        sleep(Duration::from_millis(50)).await;
    }
    let batch = format!(r#"{{"events":[{refused},{}]}}"#, for_all("refused"));
    let results = replica.api_with("POST", "/v1/events/batch", Some(batch), &[]).await;
    match results.status {
        200 => {
            let results = results.json()["results"].clone();
            let all = results.as_array().expect("a list");
            assert!(all.iter().all(|result| result["status"] == 503), "{results}");
        }
        _ => is_away(&results),
    }
    until("/readyz says why", PATIENCE, async || {
        let ready = replica.get("/readyz").await;
        (ready.status == 503 && ready.text.contains(says)).then_some(())
    })
    .await;
    assert_eq!(replica.get("/livez").await.status, 200);
    assert_eq!((kept(), redis.cli(&["GET", "ws:last:user:alice"])), before, "half done");
    assert_eq!(redis.cli(&["KEYS", "ws:idempotency:*"]), "", "a key stands for nothing");
    assert_eq!(redis.cli(&["XLEN", "ws:broadcast"]), "0");

    assert_eq!(redis.cli(end), "OK");
    replica.becomes("/readyz", 200, PATIENCE).await;
    until("publishing works by itself", PATIENCE, async || {
        let answer = replica.post_once(refused.clone(), "once").await;
        assert!(matches!(answer.status, 202 | 503), "{answer:?}");
        (answer.status == 202).then_some(())
    })
    .await;
    assert_eq!(replica.post_once(refused.clone(), "once").await.status, 202);
    put(&replica, &for_user("alice", "after")).await;
    put(&replica, &for_all("after all")).await;
    for tab in &mut tabs {
        // The very next, with no repeat, no hole and no word of a loss.
        for wanted in ["refused", "after", "after all"] {
            assert_eq!(marker(&tab.next().await), wanted);
        }
    }
    let mut back = Tab::resume(&alice(&replica), &cursor).await;
    back.is_whole();
    assert_eq!(back.replayed().await, ["refused", "after", "after all"]);
}

/// What was dropped to make room is not taken for what never was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_evicts_proves_nothing_by_silence() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let redis = RedisServer::with(&["--maxmemory-policy", policy]).await;
        let replica = quick(Builder::production(), &redis).spawn().await;
        let warning = replica.log();
        assert!(warning.contains("maxmemory-policy") && warning.contains(policy), "{warning}");
        let ready = replica.get("/readyz").await;
        assert_eq!(ready.status, 200, "{ready:?}");
        assert!(ready.text.contains("maxmemory-policy"), "{ready:?}");
        let quiet = Tab::open(&alice(&replica)).await.leave();
        put(&replica, &for_user("alice", "dropped")).await;
        assert_eq!(redis.cli(&["DEL", "ws:user:alice", "ws:last:user:alice"]), "2");
        for road in [alice(&replica), alice(&replica).sse()] {
            let tab = Tab::resume(&road, &quiet).await;
            let (resumed, lost) = tab.resumed();
            assert_eq!(resumed, Some(false), "{}", tab.welcome);
            assert!(lost.contains(&"u"), "{}", tab.welcome);
        }
        // What is there is proof all the same.
        let mut tab = Tab::open(&alice(&replica)).await;
        let first = put(&replica, &for_user("alice", "first")).await;
        put(&replica, &for_user("alice", "second")).await;
        assert_eq!([marker(&tab.next().await), marker(&tab.next().await)], ["first", "second"]);
        let mut back = Tab::resume(&alice(&replica), &first).await;
        let (_, lost) = back.resumed();
        assert!(!lost.contains(&"u"), "{}", back.welcome);
        assert_eq!(back.replayed().await, ["second"]);
    }
}

/// And where the policy is as it should be, silence is silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_is_changed_is_noticed() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let quiet = Tab::open(&alice(&replica)).await.leave();
    Tab::resume(&alice(&replica), &quiet).await.is_whole();
    assert!(!replica.get("/readyz").await.text.contains("maxmemory-policy"));
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("the warning is there", PATIENCE, async || {
        replica.get("/readyz").await.text.contains("maxmemory-policy").then_some(())
    })
    .await;
    let tab = Tab::resume(&alice(&replica), &quiet).await;
    assert_eq!(tab.resumed().0, Some(false), "{}", tab.welcome);
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("the warning is gone", PATIENCE, async || {
        (!replica.get("/readyz").await.text.contains("maxmemory-policy")).then_some(())
    })
    .await;
    replica.becomes("/readyz", 200, PATIENCE).await;
    let word: Value = answer(&replica, &for_user("alice", "works")).await;
    assert!(word["id"].is_string(), "{word}");
}

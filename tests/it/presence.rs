//! Who is connected, on any replica, and how the replicas do.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica, both},
    client::{Dial, Ws},
    jwt::token,
    redis::RedisServer,
    until,
};

async fn presence(replica: &Replica, users: &[&str]) -> Value {
    let answer = replica.api("POST", "/v1/presence", Some(&json!({"users": users}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["users"].clone()
}

async fn connections(replica: &Replica, user: &str) -> u64 {
    presence(replica, &[user]).await[user]["connections"].as_u64().expect("a number")
}

async fn becomes(replica: &Replica, user: &str, count: u64, within: Duration) -> Duration {
    let begun = Instant::now();
    until(&format!("{user} has {count} connections"), within, async || {
        (connections(replica, user).await == count).then_some(())
    })
    .await;
    begun.elapsed()
}

async fn online(replica: &Replica, user: &str) -> bool {
    let body = json!({"to": {"user": user}, "type": "t", "data": 1, "transient": true});
    let answer = replica.post(body.to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["online"].as_bool().expect("online")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_counted_with_a_limit_and_without() {
    for limit in ["32", "0"] {
        let redis = RedisServer::start().await;
        let builder = || Builder::production().set("limits.connections_per_user", limit);
        let memory = builder().spawn().await;
        let shared = builder().redis(&redis).spawn().await;
        for (bus, replica) in [("memory", &memory), ("redis", &shared)] {
            assert_eq!(connections(replica, "alice").await, 0, "{bus}");
            let open = async || Dial::to(replica).query(&token("alice")).open().await;
            let tabs = [open().await, open().await, open().await];
            let seen = presence(replica, &["alice", "bob", "alice"]).await;
            let wanted = json!({
                "alice": {"online": true, "connections": 3},
                "bob": {"online": false, "connections": 0},
            });
            assert_eq!(seen, wanted, "{bus}, limit {limit}");
            let answer = replica.api("GET", "/v1/users/alice", None).await;
            let wanted = json!({"user": "alice", "online": true, "connections": 3});
            assert_eq!(answer.json(), wanted, "{bus}, limit {limit}");
            assert!(online(replica, "alice").await && !online(replica, "bob").await, "{bus}");
            for tab in tabs {
                tab.close().await;
            }
            let took = becomes(replica, "alice", 0, PATIENCE).await;
            println!("{bus}: offline {took:?} after the close");
            assert!(took < Duration::from_secs(1), "{bus}: {took:?}");
            assert!(!online(replica, "alice").await, "{bus}");
        }
    }
}

/// A stream of Server-Sent Events is a connection like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_count_too() {
    for (bus, replica, _redis) in both().await {
        let mut stream = TcpStream::connect(replica.public).await.expect("it accepts");
        let bearer = token("alice");
        let request = format!(
            "GET /sse/notifications HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {bearer}\r\n\r\n",
            replica.public
        );
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("belfry.welcome") {
            assert_ne!(stream.read_buf(&mut seen).await.expect("an answer"), 0, "{bus}");
        }
        assert_eq!(connections(&replica, "alice").await, 1, "{bus}");
        let stats = replica.api("GET", "/v1/stats", None).await.json();
        assert_eq!((&stats["connections"], &stats["users"]), (&json!(1), &json!(1)), "{bus}");
        drop(stream);
        becomes(&replica, "alice", 0, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_checked() {
    let replica = Replica::start().await;
    let post = async |body: Value| replica.api("POST", "/v1/presence", Some(&body)).await;
    let users = |count: usize| (0..count).map(|n| format!("u{n}")).collect::<Vec<_>>();
    let all = post(json!({"users": users(1_000)})).await;
    assert_eq!(all.json()["users"].as_object().map(serde_json::Map::len), Some(1_000));
    assert_eq!(post(json!({"users": []})).await.json(), json!({"users": {}}));
    post(json!({"users": users(1_001)})).await.is_at_fault("/users");
    post(json!({"users": users(10_000)})).await.is_at_fault("/users");
    post(json!({"users": ["a", ""]})).await.is_at_fault("/users/1");
    post(json!({"users": "a"})).await.is_at_fault("/users");
    post(json!({"users": [], "user": "a"})).await.is_at_fault("/user");
    post(json!({})).await.is_at_fault("/users");
    let raw = async |body: &str| {
        replica.api_with("POST", "/v1/presence", Some(body.to_owned()), &[]).await
    };
    raw("{").await.is_problem(400);
    raw(r#"{"users":[],"users":[]}"#).await.is_problem(422);
    raw(&"[".repeat(100_000)).await.is_problem(400);
    replica.api("GET", "/v1/presence", None).await.is_problem(405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_holds_nobody_for_long_and_a_flush_is_made_good() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(
        Builder::production().redis(&redis).spawn(),
        Builder::production().redis(&redis).spawn(),
    );
    let open = async |replica: &Replica, user: &str| -> Ws {
        Dial::to(replica).query(&token(user)).open().await
    };
    let mut stay = open(&one, "alice").await;
    let _lost = [open(&two, "alice").await, open(&two, "bob").await];
    assert_eq!(connections(&one, "alice").await, 2);
    assert_eq!(connections(&two, "bob").await, 1);
    assert!(online(&one, "bob").await);
    // A replica that joins is counted at once.
    let three = Builder::production().redis(&redis).spawn().await;
    let tab = open(&three, "carol").await;
    assert_eq!(connections(&one, "carol").await, 1);
    assert!(online(&one, "carol").await);
    tab.close().await;
    becomes(&one, "carol", 0, Duration::from_secs(1)).await;

    two.process.signal(Signal::SIGKILL);
    let took = becomes(&one, "bob", 0, Duration::from_secs(60)).await;
    println!("offline {took:?} after kill -9");
    assert_eq!(connections(&one, "alice").await, 1);
    until("publishers are told", Duration::from_secs(10), async || {
        (!online(&one, "bob").await).then_some(())
    })
    .await;

    redis.cli(&["FLUSHALL"]);
    let took = becomes(&three, "alice", 1, PATIENCE).await;
    println!("back {took:?} after FLUSHALL");
    stay.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_nobody_guesses() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    redis.freeze();
    for path in ["/v1/users/alice", "/v1/users/alice/events", "/v1/stats"] {
        let answer = replica.api("GET", path, None).await;
        answer.is_problem(503);
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        assert!(answer.took < Duration::from_millis(2_500), "{answer:?}");
    }
    let users = json!({"users": ["alice", "bob"]});
    replica.api("POST", "/v1/presence", Some(&users)).await.is_problem(503);
    redis.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_are_those_of_all_replicas() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(
        Builder::production().redis(&redis).spawn(),
        Builder::production().redis(&redis).spawn(),
    );
    let mut tabs = Vec::new();
    for (replica, user) in [(&one, "alice"), (&two, "alice"), (&two, "bob"), (&two, "bob")] {
        tabs.push(Dial::to(replica).query(&token(user)).open().await);
    }
    for n in 0..40 {
        one.to_user("alice", &n.to_string()).await;
    }
    let stats = async |replica: &Replica| {
        let answer = replica.api("GET", "/v1/stats", None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    // The other's numbers are those of its last beat.
    for replica in [&one, &two] {
        let seen = until("all are counted", Duration::from_secs(10), async || {
            let stats = stats(replica).await;
            (stats["connections"] == 4 && stats["users"] == 3).then_some(stats)
        })
        .await;
        let replicas = seen["replicas"].as_array().expect("a list");
        assert_eq!(replicas.len(), 2, "{seen}");
        for one in replicas {
            assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
            assert!(one["since_ms"].as_u64().is_some_and(|since| since > 1_700_000_000_000));
            assert!(one["name"].is_string() && one["ready"].is_boolean(), "{seen}");
        }
    }
    let rates = stats(&one).await["rates"].clone();
    for name in ["published", "received", "delivered"] {
        assert!(rates[name].as_f64().is_some_and(|rate| rate > 0.5), "{rates}");
    }
    // A replica that leaves is gone at once.
    two.process.signal(Signal::SIGTERM);
    until("one is left", PATIENCE, async || {
        let seen = stats(&one).await;
        (seen["replicas"].as_array().is_some_and(|all| all.len() == 1)).then_some(())
    })
    .await;
    assert_eq!(stats(&one).await["connections"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_of_one_replica_in_memory() {
    let replica = Replica::start().await;
    let _tab = Dial::to(&replica).query(&token("alice")).open().await;
    let stats = replica.api("GET", "/v1/stats", None).await;
    assert_eq!(stats.status, 200, "{stats:?}");
    assert_eq!(stats.header("cache-control"), Some("no-store"));
    let stats = stats.json();
    assert_eq!((&stats["connections"], &stats["users"]), (&json!(1), &json!(1)));
    assert_eq!(stats["replicas"][0]["ready"], true);
    let head = replica.api("HEAD", "/v1/stats", None).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    replica.api("POST", "/v1/stats", None).await.is_problem(405);
}

/// What a replica asks of Redis while 2,000 of its users sit still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_users_cost_little() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).set("public.workers", "1").spawn().await;
    let mut tabs = Vec::new();
    for n in 0..2_000 {
        tabs.push(Dial::to(&replica).query(&token(&format!("u{n}"))).open().await);
    }
    let users: Vec<_> = (0..1_000).map(|n| format!("u{n}")).collect();
    let asked = replica.api("POST", "/v1/presence", Some(&json!({"users": users}))).await;
    let all = asked.json()["users"].as_object().cloned().expect("users");
    assert_eq!(all.len(), 1_000);
    assert!(all.values().all(|user| user["online"] == true));
    println!("presence of 1,000 users in {:?}", asked.took);
    assert!(asked.took < Duration::from_secs(2), "{asked:?}");
    // A whole round, in which every seat is entered again.
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(61)).await;
    let stats = redis.cli(&["INFO", "commandstats"]);
    let seconds = begun.elapsed().as_secs_f64();
    let field = |line: &str, name: &str| -> f64 {
        let at = line.find(name).map(|at| at + name.len()).expect("a field");
        let end = line[at..].find([',', '\r', '\n']).map_or(line.len(), |end| at + end);
        line[at..end].parse().expect("a number")
    };
    // A script's own commands are counted beside it.
    let calls: f64 = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval") || line.starts_with("cmdstat_publish"))
        .map(|line| field(line, "calls="))
        .sum();
    let busy: f64 = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval"))
        .map(|line| field(line, "usec="))
        .sum();
    println!(
        "{:.1} scripts a second, {:.3} % of Redis\n{stats}",
        calls / seconds,
        busy / seconds / 1e4
    );
    assert!(calls / seconds < 60.0, "{} scripts a second", calls / seconds);
    let sizes = replica.metrics().await;
    assert!((sizes.sum("connections") - 2_000.0).abs() < 0.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_needs_its_scope() {
    let secret = |name: &str| format!("{name}-key-000000000000000000000000");
    let keys = ["read", "publish"]
        .map(|scope| format!("{}:{scope}", crate::support::app::api_key(scope, &secret(scope))));
    let replica = Builder::production().set("api.keys", keys.join(",")).spawn().await;
    let ask = async |method: &str, path: &str, key: &str, body: Option<&str>| {
        let bearer = format!("Bearer {}", secret(key));
        let headers = [("authorization", bearer.as_str())];
        replica.api_with(method, path, body.map(str::to_owned), &headers).await.status
    };
    for (method, path, body, scope, good) in [
        ("GET", "/v1/users/a", None, "read", 200),
        ("GET", "/v1/users?user=a", None, "read", 200),
        ("GET", "/v1/users/a/events", None, "read", 200),
        ("POST", "/v1/presence", Some(r#"{"users":["a"]}"#), "read", 200),
        ("GET", "/v1/stats", None, "read", 200),
        ("DELETE", "/v1/users/a/events", None, "publish", 204),
    ] {
        let other = if scope == "read" { "publish" } else { "read" };
        assert_eq!(ask(method, path, scope, body).await, good, "{method} {path}");
        assert_eq!(ask(method, path, other, body).await, 403, "{method} {path}");
        assert_eq!(ask(method, path, "nobody", body).await, 401, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_buses_agree_about_nobody() {
    for (bus, replica, _redis) in both().await {
        assert_eq!(
            presence(&replica, &["a", ".", "..", "a/b", "{a}", "events"])
                .await
                .as_object()
                .map(serde_json::Map::len),
            Some(6),
            "{bus}"
        );
    }
}

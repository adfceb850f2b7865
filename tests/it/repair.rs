//! Gaps are filled by the replica itself, in order and once; and those that cannot be are announced.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::token,
    proxy::Proxy,
    redis::RedisServer,
    tab::{Tab, for_all, for_user, marker, put, quick},
    until,
};

fn dial(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).query(&token(user))
}

/// A replica that reaches Redis over a proxy, and one beside it that reaches it directly.
async fn pair(redis: &RedisServer, builder: Builder) -> (Replica, Proxy, Replica) {
    let proxy = Proxy::start(redis.address()).await;
    let far = quick(builder.clone(), redis).redis_at(&format!("redis://{}", proxy.address));
    let (far, near) = tokio::join!(far.spawn(), quick(builder, redis).spawn());
    (far, proxy, near)
}

/// Everything to everyone in as few requests as may be.
async fn put_all(replica: &Replica, events: Vec<Value>) {
    for part in events.chunks(1_000) {
        let url = format!("http://{}/v1/events/batch", replica.internal);
        let request = replica
            .http
            .post(url)
            .header("authorization", format!("Bearer {}", crate::support::app::API_KEY))
            .json(&json!({"events": part}));
        let answer: Value =
            request.send().await.expect("an answer").json().await.expect("an answer in JSON");
        let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
        assert!(results.iter().all(|result| result["status"] == 202), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_brings_what_it_missed() {
    let redis = RedisServer::start().await;
    let (far, mut proxy, near) = pair(&redis, Builder::production()).await;
    let mut tabs = Vec::new();
    for user in ["alice", "bob"] {
        tabs.push(Tab::open(&dial(&far, user)).await);
        tabs.push(Tab::open(&dial(&far, user).sse()).await);
        tabs.push(Tab::open(&dial(&near, user)).await);
    }
    for round in 0..3 {
        proxy.refuse().await;
        proxy.cut();
        for n in 0..50 {
            for user in ["alice", "bob"] {
                put(&near, &for_user(user, &format!("{round}-{n}"))).await;
            }
            put(&near, &for_all(&format!("all {round}-{n}"))).await;
        }
        proxy.allow().await;
        for user in ["alice", "bob"] {
            put(&near, &for_user(user, "live")).await;
        }
        put(&near, &for_all("live for all")).await;
        for tab in &mut tabs {
            // A tab fails on a repeat, a hole and a word of a loss.
            let mut got = Vec::new();
            while got.len() < 102 {
                got.push(marker(&tab.next().await));
            }
            for (last, prefix) in [("live", ""), ("live for all", "all ")] {
                let own: Vec<_> =
                    got.iter().filter(|mk| mk.starts_with(&format!("{prefix}{round}-"))).collect();
                let wanted: Vec<_> = (0..50).map(|n| format!("{prefix}{round}-{n}")).collect();
                assert!(own.iter().copied().eq(&wanted), "{own:?}");
                assert!(got.iter().any(|mk| mk == last), "{got:?}");
            }
        }
    }
}

/// Many users miss an event each: they are asked for together, and not one after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_thousand_users_missed_comes_in_few_round_trips() {
    const USERS: usize = 1_000;
    let redis = RedisServer::start().await;
    let (far, mut proxy, near) = pair(&redis, Builder::production()).await;
    let users: Vec<String> = (0..USERS).map(|n| format!("user-{n}")).collect();
    let mut sockets = Vec::new();
    for user in &users {
        sockets.push(dial(&far, user).open().await);
    }
    proxy.refuse().await;
    proxy.cut();
    put_all(&near, users.iter().map(|user| for_user(user, "missed")).collect()).await;
    let count = |what: &str| -> i64 {
        let info = redis.cli(&["INFO", "stats"]);
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("{what}:")));
        line.expect("a number").trim().parse().expect("a number")
    };
    let (commands, reads) = (count("total_commands_processed"), count("total_reads_processed"));
    let back = Instant::now();
    proxy.allow().await;
    for ws in &mut sockets {
        ws.event("missed").await;
    }
    let took = back.elapsed();
    let commands = count("total_commands_processed") - commands;
    let reads = count("total_reads_processed") - reads;
    println!("{USERS} users: {took:?}, {commands} commands in {reads} reads of Redis");
    assert!(reads < 400, "{reads} reads: they are asked for one by one");
    put_all(&near, users.iter().map(|user| for_user(user, "last")).collect()).await;
    for ws in &mut sockets {
        let more = ws.through("\"last\"").await;
        assert_eq!(more.len(), 1, "{more:?}");
    }
    far.metric("redis_pubsub_gaps_total", &[], PATIENCE, |gaps| gaps >= 1.0).await;
}

/// More is missed than is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_that_cannot_be_filled_is_announced_to_whom_it_concerns() {
    let redis = RedisServer::start().await;
    let (far, mut proxy, near) =
        pair(&redis, Builder::production().set("history.events", "5")).await;
    let mut busy = Vec::new();
    for n in 0..20 {
        let dial = dial(&far, "busy");
        busy.push(Tab::open(&if n < 5 { dial.sse() } else { dial }).await);
    }
    let mut quiet = Tab::open(&dial(&far, "quiet")).await;
    proxy.refuse().await;
    proxy.cut();
    // Redis drops whole pages of up to a hundred events.
    put_all(&near, (0..600).map(|n| for_user("busy", &n.to_string())).collect()).await;
    proxy.allow().await;
    let mut told = Vec::new();
    for tab in &mut busy {
        // When it came, and not when it was this tab's turn to be looked at.
        let (when, text) = tab.timed(PATIENCE).await;
        let word: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(word["type"], "belfry.resync", "{word}");
        assert_eq!(word["lost"], json!(["u"]), "{word}");
        assert_eq!(word["reason"], "reconnected", "{word}");
        told.push(when);
    }
    let spread = told.iter().max().expect("some").duration_since(*told.iter().min().expect("some"));
    assert!(spread > Duration::from_millis(200), "all at once: {spread:?}");
    put(&near, &for_user("busy", "after")).await;
    put(&near, &for_user("quiet", "after")).await;
    for tab in &mut busy {
        assert_eq!(marker(&tab.next().await), "after");
    }
    // A tab fails on a word that nobody asked for.
    assert_eq!(marker(&quiet.next().await), "after");
    let cursor = busy.pop().expect("some").leave();
    put(&near, &for_user("busy", "later")).await;
    let mut again = Tab::resume(&dial(&near, "busy"), &cursor).await;
    again.is_whole();
    assert_eq!(again.replayed().await, ["later"]);
    let reason = &[("reason", "reconnected")];
    far.metric("redis_pubsub_gaps_total", reason, PATIENCE, |gaps| gaps >= 1.0).await;
}

/// What comes while a replica stands still floods it when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stood_still_brings_everything() {
    use nix::sys::signal::Signal;
    const USERS: usize = 100;
    let redis = RedisServer::start().await;
    let (far, _proxy, near) = pair(&redis, Builder::production()).await;
    let mut tabs = Vec::new();
    for n in 0..USERS {
        tabs.push(Tab::open(&dial(&far, &format!("user-{n}"))).await);
    }
    far.process.signal(Signal::SIGSTOP);
    for round in 0..200 {
        let events = (0..USERS).map(|n| for_user(&format!("user-{n}"), &round.to_string()));
        put_all(&near, events.collect()).await;
    }
    far.process.signal(Signal::SIGCONT);
    for tab in &mut tabs {
        for round in 0..200 {
            assert_eq!(marker(&tab.next().await), round.to_string());
        }
    }
    println!("{:?}", far.metrics().await.get("redis_pubsub_gaps_total", &[("reason", "lagged")]));
}

/// Who may publish raw may say anything, but not silence a channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_made_up_silences_nobody() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut ws = dial(&replica, "alice").open().await;
    put(&replica, &for_user("alice", "before")).await;
    let mut client = redis.client().await;
    for (channel, tag) in [("ws:user:alice", "u"), ("ws:broadcast", "b")] {
        for id in ["9999999999999-0", "18446744073709551615-18446744073709551615"] {
            let forged = format!(
                r#"{{"belfry":{{"v":1}},"id":"{tag}~{id}","prev":"{tag}~0-0","type":"forged","data":1}}"#
            );
            client.publish(channel, forged).await;
        }
    }
    // A stranger's entries in the stream itself are his own fault, and nobody else's.
    redis.cli(&["XADD", "ws:user:bob", "*", "m", "garbage"]);
    let mut bob = dial(&replica, "bob").open().await;
    for n in 0..5 {
        put(&replica, &for_user("alice", &format!("mine {n}"))).await;
        put(&replica, &for_user("bob", &format!("his {n}"))).await;
        put(&replica, &for_all(&format!("all {n}"))).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for n in 0..5 {
        bob.event(&format!("his {n}")).await;
    }
    until("both channels go on", PATIENCE, async || {
        put(&replica, &for_user("alice", "goes on")).await;
        put(&replica, &for_all("goes on for all")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let seen = format!("{:?}", ws.drain());
        assert!(!seen.contains("forged"), "{seen}");
        (seen.contains("goes on\\") && seen.contains("goes on for all")).then_some(())
    })
    .await;
}

/// Another server takes over that has not got the last writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_without_the_last_writes_gets_them_back() {
    let mut first = RedisServer::start().await;
    let second = RedisServer::start().await;
    let mut between = Proxy::start(first.address()).await;
    let port = between.address.port().to_string();
    second.cli(&["REPLICAOF", "127.0.0.1", &port]);
    until("it follows", PATIENCE, async || {
        second.cli(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
    })
    .await;
    let front = Proxy::start(first.address()).await;
    let one = quick(Builder::production(), &first).redis_at(&format!("redis://{}", front.address));
    let two = quick(Builder::production(), &first).redis_at(&format!("redis://{}", front.address));
    let (one, two) = tokio::join!(one.spawn(), two.spawn());
    let mut here = Tab::open(&dial(&two, "alice")).await;
    put(&one, &for_user("alice", "before")).await;
    put(&one, &for_all("before all")).await;
    let away = Tab::open(&dial(&two, "alice")).await.leave();
    until("it has what was before", PATIENCE, async || {
        (second.cli(&["EXISTS", "ws:user:alice", "ws:broadcast"]) == "2").then_some(())
    })
    .await;
    between.refuse().await;
    between.cut();
    let mut wanted = Vec::new();
    for n in 0..20 {
        let replica = if n % 2 == 0 { &one } else { &two };
        put(replica, &for_user("alice", &n.to_string())).await;
        wanted.push(n.to_string());
    }
    put(&one, &for_all("last all")).await;
    first.kill();
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    front.redirect(second.address());
    front.cut();
    for replica in [&one, &two] {
        replica.becomes("/readyz", 200, PATIENCE).await;
    }
    until("publishing works again", PATIENCE, async || {
        let answer = one.post(for_user("alice", "after").to_string()).await;
        (answer.status == 202).then_some(())
    })
    .await;
    wanted.push("after".to_owned());
    // Whoever was connected has everything once; so has whoever comes back.
    let mut got = Vec::new();
    while got.last().is_none_or(|mk| mk != "after") {
        got.push(marker(&here.next().await));
    }
    got.retain(|mk| !mk.contains("all") && mk != "before");
    assert_eq!(got, wanted);
    let mut back = Tab::resume(&dial(&one, "alice"), &away).await;
    back.is_whole();
    let mut replayed = back.replayed().await;
    assert!(replayed.contains(&"last all".to_owned()), "{replayed:?}");
    replayed.retain(|mk| !mk.contains("all"));
    assert_eq!(replayed, wanted);
}

/// Messages so large that Redis cuts the subscription for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r09_messages_near_the_output_limit() {
    let redis = RedisServer::with(&["--client-output-buffer-limit", "pubsub 8mb 4mb 5"]).await;
    let (one, two) = tokio::join!(
        quick(Builder::production(), &redis).spawn(),
        quick(Builder::production(), &redis).spawn()
    );
    let mut ws = dial(&one, "alice").open().await;
    let mut client = redis.client().await;
    let large = json!({"type": "raw", "data": "x".repeat(5 * 1024 * 1024)}).to_string();
    for n in 0..8 {
        client.publish("ws:user:alice", &large).await;
        put(&two, &for_user("alice", &n.to_string())).await;
    }
    // The large ones are over the limit and dropped; what is kept arrives in any case.
    for n in 0..8 {
        ws.event(&n.to_string()).await;
    }
    ws.is_alive().await;
    let too_big = &[("reason", "bus_too_big")];
    one.metric("messages_dropped_total", too_big, PATIENCE, |count| count >= 1.0).await;
    one.post(json!({"to": {"user": "alice"}, "type": "t", "data": "x".repeat(70_000)}).to_string())
        .await
        .is_problem(413);
}

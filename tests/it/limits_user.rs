//! C05: how many connections a user may have over all replicas, and who goes beyond that.

use tokio::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, Ws},
    jwt::{Jwt, now, token},
    proxy::Proxy,
    raw::Raw,
    redis::RedisServer,
    until,
};

fn limited(limit: &str, policy: &str) -> Builder {
    Builder::production()
        .set("redis.probe_interval", "500ms")
        .set("redis.probe_timeout", "1s")
        .set("limits.connections_per_user", limit)
        .set("limits.user_policy", policy)
}

async fn two(redis: &RedisServer, limit: &str, policy: &str) -> [Replica; 2] {
    [
        limited(limit, policy).redis(redis).spawn().await,
        limited(limit, policy).redis(redis).spawn().await,
    ]
}

/// What Redis counts for this user.
async fn seats(redis: &RedisServer, user: &str) -> i64 {
    redis.client().await.words(&format!("ZCARD ws:seats:{user}")).await.int()
}

async fn seats_become(redis: &RedisServer, user: &str, count: i64, within: Duration) {
    until(&format!("{count} seats of {user}"), within, async || {
        (seats(redis, user).await == count).then_some(())
    })
    .await;
}

async fn is_replaced(ws: &mut Ws) {
    let end = ws.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (4409, "replaced"), "{end:?}");
}

/// Refused with 4429 after the upgrade, and without a welcome.
async fn is_one_too_many(dial: &Dial) {
    let end = dial.connect().await.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (4429, "too_many"), "{end:?}");
    assert!(end.texts.is_empty(), "{end:?}");
    let retry = end.goodbye.as_ref().and_then(|goodbye| goodbye["retry_after_ms"].as_u64());
    assert!(retry.is_some_and(|ms| (30_000..=90_000).contains(&ms)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_the_oldest_go() {
    let redis = RedisServer::start().await;
    let replicas = two(&redis, "4", "oldest").await;
    let mut others = Vec::new();
    for replica in &replicas {
        others.push(Dial::to(replica).query(&token("bob")).open().await);
    }
    let mut all = Vec::new();
    for n in 0..9 {
        all.push(Dial::to(&replicas[n % 2]).query(&token("alice")).open().await);
    }
    let mut stay = all.split_off(5);
    for ws in &mut all {
        is_replaced(ws).await;
    }
    for ws in stay.iter_mut().chain(&mut others) {
        ws.is_alive().await;
    }
    seats_become(&redis, "alice", 4, PATIENCE).await;
    seats_become(&redis, "bob", 2, PATIENCE).await;
    let sum = replicas[0].metrics().await.get("closes_total", &[("cause", "replaced")])
        + replicas[1].metrics().await.get("closes_total", &[("cause", "replaced")]);
    assert!((sum - 5.0).abs() < 0.1, "{sum} were replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_the_newest_is_refused() {
    let redis = RedisServer::start().await;
    let replicas = two(&redis, "4", "refuse").await;
    let mut stay = Vec::new();
    for n in 0..4 {
        stay.push(Dial::to(&replicas[n % 2]).query(&token("alice")).open().await);
    }
    for n in 0..5 {
        is_one_too_many(&Dial::to(&replicas[n % 2]).query(&token("alice"))).await;
    }
    Dial::to(&replicas[0]).query(&token("bob")).open().await.close().await;
    for ws in &mut stay {
        ws.is_alive().await;
    }
    // One leaves, one comes: on the other replica, and with a moment for the word to get round.
    stay.pop().expect("four").close().await;
    seats_become(&redis, "alice", 3, PATIENCE).await;
    stay.push(Dial::to(&replicas[0]).query(&token("alice")).open().await);
    is_one_too_many(&Dial::to(&replicas[1]).query(&token("alice"))).await;
    let refused = [("result", "too_many")];
    replicas[1].metric("connects_total", &refused, PATIENCE, |n| n >= 3.0).await;
    drop(stay);
    seats_become(&redis, "alice", 0, PATIENCE).await;
}

/// A page that does not answer the Close keeps its socket for a while, but not its seat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_are_silent_when_replaced_are_not_counted() {
    let redis = RedisServer::start().await;
    let replicas = two(&redis, "2", "oldest").await;
    let mut silent = Vec::new();
    for replica in &replicas {
        let dial = Dial::to(replica).query(&token("alice"));
        silent.push(Raw::connect(&dial, None).await.welcome().await);
    }
    let mut stay = Vec::new();
    for replica in &replicas {
        stay.push(Dial::to(replica).query(&token("alice")).open().await);
    }
    assert_eq!(seats(&redis, "alice").await, 2);
    for replica in &replicas {
        replica.metric("closes_total", &[("cause", "replaced")], PATIENCE, |n| n >= 1.0).await;
    }
    // The replica says what it holds of this user: not the seat of the silent one.
    stay.pop().expect("two").close().await;
    seats_become(&redis, "alice", 1, Duration::from_secs(2)).await;
    stay.push(Dial::to(&replicas[0]).query(&token("alice")).open().await);
    for ws in &mut stay {
        ws.is_alive().await;
    }
    assert_eq!(seats(&redis, "alice").await, 2);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_in_memory_it_is_the_same() {
    let replica = limited("3", "oldest").spawn().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(Dial::to(&replica).query(&token("alice")).open().await);
    }
    let mut stay = all.split_off(2);
    for ws in &mut all {
        is_replaced(ws).await;
    }
    for ws in &mut stay {
        ws.is_alive().await;
    }
    let replica = limited("3", "refuse").spawn().await;
    for _ in 0..3 {
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(Dial::to(&replica).query(&token("alice")).open().await);
        }
        is_one_too_many(&Dial::to(&replica).query(&token("alice"))).await;
        for ws in all {
            ws.close().await;
        }
        replica.metric_is("connections", 0.0, PATIENCE).await;
        until("the seats are free again", PATIENCE, async || {
            let mut ws = Dial::to(&replica).query(&token("alice")).connect().await;
            let first = ws.next(PATIENCE).await.1;
            let free = format!("{first:?}").contains("belfry.welcome");
            drop(ws);
            free.then_some(())
        })
        .await;
        replica.metric_is("connections", 0.0, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_counts_are_right_after_churn() {
    let redis = RedisServer::start().await;
    let replicas = two(&redis, "8", "oldest").await;
    let mut lanes = Vec::new();
    for lane in 0..10_usize {
        let dials: Vec<Dial> =
            replicas.iter().map(|r| Dial::to(r).query(&token("alice"))).collect();
        lanes.push(tokio::spawn(async move {
            for n in 0..20 {
                let ws = dials[(lane + n) % 2].connect().await;
                // Half say goodbye, half vanish.
                if n % 2 == 0 {
                    ws.send_message(tokio_tungstenite::tungstenite::Message::Close(None));
                }
                drop(ws);
            }
        }));
    }
    for lane in lanes {
        lane.await.expect("no panic");
    }
    seats_become(&redis, "alice", 0, PATIENCE).await;
    for replica in &replicas {
        replica.metric_is("connections", 0.0, PATIENCE).await;
    }
    let mut stay = Vec::new();
    for n in 0..8 {
        stay.push(Dial::to(&replicas[n % 2]).query(&token("alice")).open().await);
    }
    for ws in &mut stay {
        ws.is_alive().await;
    }
    assert_eq!(seats(&redis, "alice").await, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_of_a_killed_replica_are_free_with_its_lease_and_at_once_where_the_oldest_go() {
    for policy in ["oldest", "refuse"] {
        let redis = RedisServer::start().await;
        let [killed, lives] = two(&redis, "3", policy).await;
        let mut lost = Vec::new();
        for _ in 0..3 {
            lost.push(Dial::to(&killed).query(&token("alice")).open().await);
        }
        killed.process.signal(Signal::SIGKILL);
        let killed_at = Instant::now();
        let dial = Dial::to(&lives).query(&token("alice"));
        let mut stay = Vec::new();
        if policy == "refuse" {
            let ws = until("a seat is free", Duration::from_secs(18), async || {
                let mut ws = dial.connect().await;
                let first = format!("{:?}", ws.next(PATIENCE).await.1);
                first.contains("belfry.welcome").then_some(ws)
            })
            .await;
            println!("free {:?} after the kill", killed_at.elapsed());
            stay.push(ws);
            stay.push(dial.open().await);
            stay.push(dial.open().await);
            is_one_too_many(&dial).await;
        } else {
            for _ in 0..3 {
                stay.push(dial.open().await);
            }
            assert!(killed_at.elapsed() < Duration::from_secs(5), "{:?}", killed_at.elapsed());
        }
        for ws in &mut stay {
            ws.is_alive().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgot_everything_learns_it_again() {
    let redis = RedisServer::start().await;
    let replicas = two(&redis, "4", "refuse").await;
    let mut stay = Vec::new();
    for n in 0..4 {
        stay.push(Dial::to(&replicas[n % 2]).query(&token("alice")).open().await);
    }
    redis.client().await.words("FLUSHALL").await;
    seats_become(&redis, "alice", 4, Duration::from_secs(8)).await;
    is_one_too_many(&Dial::to(&replicas[0]).query(&token("alice"))).await;
    // A seat that nobody holds is no seat: it ends with the next word about its user.
    let mut client = redis.client().await;
    let ghosts = client.words("ZRANGE ws:seats:alice 0 0").await;
    let ghost = format!("{ghosts:?}");
    assert!(ghost.contains("Bulk"), "{ghost}");
    for ws in &mut stay {
        ws.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_during_an_outage_are_not_forgotten() {
    let redis = RedisServer::start().await;
    let mut proxy = Proxy::start(redis.address()).await;
    let url = format!("redis://{}", proxy.address);
    let replica = limited("2", "refuse").redis_at(&url).spawn().await;
    let first = Dial::to(&replica).query(&token("alice")).open().await;
    let mut second = Dial::to(&replica).query(&token("alice")).open().await;
    proxy.refuse().await;
    proxy.cut();
    first.close().await;
    replica.metric_is("connections", 1.0, PATIENCE).await;
    until("a handshake is refused with 503", PATIENCE, async || {
        let refused = Dial::to(&replica).query(&token("alice")).try_connect().await.err();
        refused.filter(|refusal| refusal.status == 503).map(|refusal| {
            assert!(refusal.retry_after.is_some(), "{refusal:?}");
        })
    })
    .await;
    assert_eq!(seats(&redis, "alice").await, 2);
    proxy.allow().await;
    seats_become(&redis, "alice", 1, PATIENCE).await;
    replica.becomes("/readyz", 200, PATIENCE).await;
    until("there is room again", PATIENCE, async || {
        Dial::to(&replica).query(&token("alice")).try_connect().await.ok()
    })
    .await;
    second.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_is_no_limit() {
    let redis = RedisServer::start().await;
    let replica = limited("0", "refuse").redis(&redis).spawn().await;
    let mut all = Vec::new();
    for _ in 0..40 {
        all.push(Dial::to(&replica).query(&token("alice")).open().await);
    }
    for ws in &mut all {
        ws.is_alive().await;
    }
    // They are counted all the same: presence is read from seats.
    assert_eq!(seats(&redis, "alice").await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_leaves_nothing_behind() {
    let redis = RedisServer::start().await;
    let [stops, _lives] = two(&redis, "4", "refuse").await;
    let mut ws = Dial::to(&stops).query(&token("alice")).open().await;
    let mut client = redis.client().await;
    until("both have a lease", PATIENCE, async || {
        (client.words("ZCARD ws:replicas").await.int() == 2).then_some(())
    })
    .await;
    stops.process.signal(Signal::SIGTERM);
    assert_eq!(ws.end(PATIENCE).await.code, 1012);
    drop(ws);
    assert!(stops.process.end(PATIENCE).await.success());
    assert_eq!(client.words("ZCARD ws:replicas").await.int(), 1);
    assert_eq!(seats(&redis, "alice").await, 0);
}

/// A credential that was revoked drives nobody out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_credential_takes_nobodys_seat() {
    let redis = RedisServer::start().await;
    let replica = limited("2", "oldest").redis(&redis).spawn().await;
    let good = Jwt::of("alice").claim("sid", "good").claim("iat", now()).sign();
    let bad = Jwt::of("alice").claim("sid", "bad").claim("iat", now()).sign();
    let mut stay = Vec::new();
    for _ in 0..2 {
        stay.push(Dial::to(&replica).query(&good).open().await);
    }
    let key = "ws:revoked:session:sha256:";
    let hash = {
        use sha2::{Digest, Sha256};
        format!("{:x}", Sha256::digest(b"bad"))
    };
    redis.client().await.words(&format!("SET {key}{hash} 1 PX 60000")).await;
    for _ in 0..5 {
        Dial::to(&replica).query(&bad).is_refused("a revoked session").await;
    }
    for ws in &mut stay {
        ws.is_alive().await;
    }
    seats_become(&redis, "alice", 2, PATIENCE).await;
}

//! A Redis that dies, hangs, comes late, refuses or floods.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use serde_json::json;

use crate::{
    sessions::{self, PAGE, cookie, set},
    support::{
        PATIENCE,
        app::{API_KEY, Answer, Builder, Replica},
        client::{Dial, Seen, Ws},
        jwt::{Jwt, token},
        percentile,
        proxy::{Flow, Proxy},
        redis::RedisServer,
        tally, until,
    },
};

/// How soon after its return everything must work again.
const RECOVERY: Duration = Duration::from_secs(5);

/// Notices an outage quickly, so that a test need not wait for the grace of production.
fn quick() -> Builder {
    Builder::production()
        .set("ready.redis_grace", "2s")
        .set("redis.probe_interval", "500ms")
        .set("redis.probe_timeout", "1s")
}

fn body(user: &str, marker: &str) -> String {
    json!({"to": {"user": user}, "type": "test", "data": {"mk": marker}}).to_string()
}

#[track_caller]
fn is_away(answer: &Answer) {
    answer.is_problem(503);
    let retry = answer.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(retry.is_some_and(|seconds| seconds <= 120), "{answer:?}");
    assert!(answer.took < Duration::from_millis(2_300), "503 took {:?}", answer.took);
}

/// Publishes until it is accepted; the marker of the one that was.
async fn accepted_again(replica: &Replica, within: Duration) -> String {
    let mut run = 0;
    until("a publish is accepted again", within, async || {
        run += 1;
        let marker = format!("again-{run}");
        let answer = replica
            .post(
                json!({"to": {"broadcast": true}, "type": "test", "data": {"mk": marker}})
                    .to_string(),
            )
            .await;
        if answer.status == 202 {
            return Some(marker);
        }
        is_away(&answer);
        None
    })
    .await
}

/// Publishes to everyone until one of the events arrives. What was accepted while the subscription
/// was not back yet is lost, and announced as such.
async fn delivers_again(replica: &Replica, ws: &mut Ws, within: Duration) {
    let start = Instant::now();
    let mut run = 0;
    until("an event arrives again", within, async || {
        run += 1;
        accepted_again(replica, within.saturating_sub(start.elapsed())).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let arrived = ws.drain().into_iter().any(|seen| {
            assert!(!matches!(seen, Seen::Close(..) | Seen::Gone(_)), "closed: {seen:?}");
            matches!(seen, Seen::Text(text) if text.contains("\"again-"))
        });
        arrived.then_some(())
    })
    .await;
    println!("delivery was back after {:?} and {run} tries", start.elapsed());
}

/// A connection is refused with 503 and a word when to come back.
async fn newcomers_are_refused(replica: &Replica, within: Duration) {
    until("a new connection is refused with 503", within, async || {
        match Dial::to(replica).query(&token("newcomer")).try_connect().await {
            Ok(_) => None,
            Err(refusal) => {
                assert_eq!(refusal.status, 503, "{refusal:?}");
                let retry = refusal.retry_after.as_deref().and_then(|s| s.parse::<u64>().ok());
                assert!(retry.is_some_and(|seconds| seconds <= 120), "{refusal:?}");
                Some(())
            }
        }
    })
    .await;
}

/// A hundred connected clients of 50 users.
async fn hundred(replica: &Replica) -> Vec<Ws> {
    let mut sockets = Vec::new();
    for index in 0..100 {
        let user = format!("user-{}", index / 2);
        let jwt = Jwt::of(&user).groups(&["staff"]).sign();
        sockets.push(Dial::to(replica).query(&jwt).open().await);
    }
    sockets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_redis_is_killed_and_restarts_under_a_hundred_clients() {
    let mut redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut sockets = hundred(&replica).await;
    replica.to_all("before").await;
    for ws in &mut sockets {
        ws.event("before").await;
    }
    redis.kill();
    is_away(&replica.post(body("user-1", "during")).await);
    newcomers_are_refused(&replica, Duration::from_secs(3)).await;
    replica.becomes("/readyz", 503, Duration::from_secs(8)).await;
    assert_eq!(replica.get("/livez").await.status, 200);
    replica.metric("redis_up", &[], PATIENCE, |up| up < 2.0).await;
    redis.restart().await;
    let back = Instant::now();
    delivers_again(&replica, &mut sockets[0], RECOVERY).await;
    replica.to_all("again-for-all").await;
    for ws in &mut sockets {
        ws.event("again-for-all").await;
    }
    assert!(back.elapsed() < RECOVERY + Duration::from_secs(1), "{:?}", back.elapsed());
    replica.becomes("/readyz", 200, RECOVERY).await;
    // Each is told that the data is gone, at its own moment, and goes on from there.
    replica.to_group("staff", "settled").await;
    for ws in &mut sockets {
        ws.event("settled").await;
    }
    replica.to_user("user-7", "settled").await;
    for ws in &mut sockets[14..16] {
        ws.event("settled").await;
    }
    // Exactly one copy of everything from here on, by every way.
    replica.to_user("user-7", "to-7").await;
    replica.to_group("staff", "to-staff").await;
    replica.to_all("to-all").await;
    let raw = json!({"type": "raw", "data": {"mk": "raw"}}).to_string();
    assert_eq!(redis.client().await.publish("ws:user:user-7", raw).await, 1);
    replica.to_all("last").await;
    for (index, ws) in sockets.iter_mut().enumerate() {
        let mut got = ws.markers_before("last").await;
        got.retain(|marker| !marker.starts_with("again") && marker != "settled");
        let wanted: &[&str] = if index / 2 == 7 {
            &["to-7", "to-staff", "to-all", "raw"]
        } else {
            &["to-staff", "to-all"]
        };
        assert_eq!(got, wanted, "client {index}");
    }
    replica.metric_is("connections", 100.0, PATIENCE).await;
    Dial::to(&replica).query(&token("newcomer")).open().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_again_and_again() {
    let mut redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    for _ in 0..4 {
        redis.kill();
        redis.restart().await;
        delivers_again(&replica, &mut ws, RECOVERY).await;
        ws.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_events_lost_in_the_gap_are_announced() {
    let mut redis = RedisServer::start().await;
    let (one, two) = tokio::join!(quick().redis(&redis).spawn(), quick().redis(&redis).spawn());
    let mut sockets = Vec::new();
    for index in 0..100 {
        let replica = if index % 2 == 0 { &one } else { &two };
        let jwt = Jwt::of(&format!("user-{index}")).groups(&["staff"]).sign();
        sockets.push(Dial::to(replica).query(&jwt).open().await);
    }
    redis.kill();
    redis.restart().await;
    let reading: Vec<_> = sockets
        .into_iter()
        .map(|mut ws| {
            tokio::spawn(async move {
                let word = ws.word("belfry.resync", PATIENCE).await;
                (Instant::now(), word, ws)
            })
        })
        .collect();
    let mut times = Vec::new();
    let mut sockets = Vec::new();
    for task in reading {
        let (at, word, ws) = task.await.expect("each is told");
        let lost = word["lost"].as_array().expect("a list");
        // The channels that a gap touches: the user's own, everyone's, and the group's.
        for tag in ["u", "b", "g=c3RhZmY"] {
            assert!(lost.contains(&json!(tag)), "{tag} is not in {word}");
        }
        assert!(word["cursor"].is_string(), "{word}");
        assert!(word["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{word}");
        times.push(at);
        sockets.push(ws);
    }
    // Spread, so that a hundred pages do not reload at the same moment.
    let first = times.iter().min().expect("some");
    let last = times.iter().max().expect("some");
    assert!(last.duration_since(*first) > Duration::from_millis(200), "all at once");
    for replica in [&one, &two] {
        replica.metric("redis_pubsub_gaps_total", &[], PATIENCE, |gaps| gaps >= 1.0).await;
        replica.becomes("/readyz", 200, RECOVERY).await;
    }
    one.to_all("live").await;
    for ws in &mut sockets {
        ws.event("live").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_no_alarm_without_a_gap() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    for n in 0..30 {
        replica.to_user("alice", &n.to_string()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    replica.to_user("alice", "last").await;
    let mut words = 0;
    loop {
        let (_, text) = ws.text(PATIENCE).await;
        words += usize::from(text.contains("belfry."));
        if text.contains("last") {
            break;
        }
    }
    assert_eq!(words, 0);
    replica.metric_is("redis_pubsub_gaps_total", 0.0, PATIENCE).await;
}

/// What must hold while Redis does not answer, and what after it does again.
async fn hangs_and_recovers(
    replica: &Replica,
    hang: impl AsyncFn(),
    recover: impl AsyncFn(),
    outage: Duration,
) {
    let mut ws = Dial::to(replica).query(&token("alice")).open().await;
    hang().await;
    let start = Instant::now();
    while start.elapsed() < outage {
        is_away(&replica.post(body("alice", "refused")).await);
        assert_eq!(replica.get("/livez").await.status, 200);
    }
    newcomers_are_refused(replica, Duration::from_secs(5)).await;
    let ready = replica.becomes("/readyz", 503, Duration::from_secs(15)).await;
    assert!(ready.text.contains("\"ok\":false"), "{ready:?}");
    recover().await;
    delivers_again(replica, &mut ws, RECOVERY).await;
    replica.becomes("/readyz", 200, RECOVERY).await;
    replica.to_user("alice", "live").await;
    ws.event("live").await;
    Dial::to(replica).query(&token("newcomer")).open().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_redis_hangs() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let outage = Duration::from_secs(6);
    hangs_and_recovers(&replica, async || redis.freeze(), async || redis.thaw(), outage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_the_network_swallows_everything() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let replica = quick().redis_at(&format!("redis://{}", proxy.address)).spawn().await;
    let outage = Duration::from_secs(6);
    let stall = async || proxy.flow(Flow::Stall, Flow::Stall);
    let pass = async || proxy.flow(Flow::Pass, Flow::Pass);
    hangs_and_recovers(&replica, stall, pass, outage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_the_network_cuts_and_refuses() {
    let redis = RedisServer::start().await;
    let proxy = tokio::sync::Mutex::new(Proxy::start(redis.address()).await);
    let url = format!("redis://{}", proxy.lock().await.address);
    let replica = quick().redis_at(&url).spawn().await;
    let cut = async || {
        let mut proxy = proxy.lock().await;
        proxy.refuse().await;
        proxy.cut();
    };
    let mend = async || proxy.lock().await.allow().await;
    hangs_and_recovers(&replica, cut, mend, Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_connections_that_never_speak_again_are_replaced() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let replica = quick().redis_at(&format!("redis://{}", proxy.address)).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    // New connections work, those that stand are black holes in one direction or in both.
    for flows in [(Flow::Stall, Flow::Stall), (Flow::Pass, Flow::Stall), (Flow::Stall, Flow::Pass)]
    {
        proxy.flow_of_standing(flows.0, flows.1);
        until(&format!("delivery after {flows:?}"), PATIENCE, async || {
            let answer = replica.post(body("alice", "through")).await;
            assert!(matches!(answer.status, 202 | 503), "{answer:?}");
            let seen = ws.drain();
            let through = seen.iter().any(|s| matches!(s, Seen::Text(t) if t.contains("through")));
            tokio::time::sleep(Duration::from_millis(50)).await;
            through.then_some(())
        })
        .await;
        ws.is_alive().await;
    }
    replica.metric("redis_pubsub_gaps_total", &[], PATIENCE, |gaps| gaps >= 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r02_its_subscriptions_are_killed() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let mut client = redis.client().await;
    for round in 1..=3 {
        let killed = client.words("CLIENT KILL TYPE pubsub").await.int();
        assert!(killed >= 1, "no subscription to kill");
        // The connection for commands stands, so it is kept and published meanwhile.
        for n in 0..20 {
            replica.to_user("alice", &format!("{round}-{n}")).await;
        }
        replica.to_user("alice", &format!("last-{round}")).await;
        let wanted: Vec<_> = (0..20).map(|n| format!("{round}-{n}")).collect();
        assert_eq!(ws.markers_before(&format!("last-{round}")).await, wanted);
        let enough = f64::from(round);
        replica.metric("redis_pubsub_gaps_total", &[], PATIENCE, |gaps| gaps >= enough).await;
    }
    // What neighbours publish raw is not kept: once some has come, more may be missing.
    let raw = json!({"type": "raw", "data": {"mk": "raw"}}).to_string();
    client.publish("ws:user:alice", raw).await;
    ws.event("raw").await;
    client.words("CLIENT KILL TYPE pubsub").await;
    let word = ws.word("belfry.resync", PATIENCE).await;
    assert!(word["lost"].as_array().is_some_and(|lost| lost.contains(&json!("u"))), "{word}");
    // Every connection at once, that of the commands too.
    client.words("CLIENT KILL TYPE normal SKIPME yes").await;
    client.words("CLIENT KILL TYPE pubsub").await;
    delivers_again(&replica, &mut ws, RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_the_gateway_starts_before_redis() {
    let mut redis = RedisServer::absent(&[]);
    let replica = quick().redis(&redis).not_ready().spawn().await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        assert_eq!(replica.get("/livez").await.status, 200);
        assert_eq!(replica.get("/readyz").await.status, 503);
        is_away(&replica.post(body("alice", "early")).await);
        newcomers_are_refused(&replica, Duration::ZERO).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(replica.process.exited().is_none());
    redis.restart().await;
    replica.becomes("/readyz", 200, RECOVERY).await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    replica.to_user("alice", "live").await;
    assert!(ws.event("live").await.contains("live"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r07_a_redis_that_turned_into_a_replica() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let mut client = redis.client().await;
    client.words("REPLICAOF 127.0.0.1 1").await;
    let start = Instant::now();
    loop {
        // A 202 means that it was delivered at least where Redis still reaches.
        let marker = format!("n{}", start.elapsed().as_millis());
        let answer = replica.post(body("alice", &marker)).await;
        match answer.status {
            202 => drop(ws.event(&format!("\"{marker}\"")).await),
            _ => is_away(&answer),
        }
        if answer.status == 503 || replica.get("/readyz").await.status == 503 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nobody noticed the change of role");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.words("REPLICAOF NO ONE").await;
    accepted_again(&replica, RECOVERY).await;
    replica.becomes("/readyz", 200, RECOVERY).await;
    replica.to_user("alice", "live").await;
    ws.event("live").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_no_right_on_the_channels() {
    let acl = "on >redis-password-71f3 ~* +@all resetchannels";
    for grant in ["", " &ws:broadcast", " &ws:user:*"] {
        let redis = RedisServer::start().await;
        let mut client = redis.client().await;
        client.words(&format!("ACL SETUSER belfry {acl}{grant}")).await;
        let url = format!("redis://belfry:redis-password-71f3@{}", redis.address());
        let replica = quick().redis_at(&url).not_ready().spawn().await;
        until("a log line names the missing right", PATIENCE, async || {
            let log = replica.log().to_lowercase();
            (log.contains("noperm") || log.contains("permission")).then_some(())
        })
        .await;
        let (cpu, lines) = (replica.process.cpu(), replica.log().lines().count());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            assert_eq!(replica.get("/readyz").await.status, 503, "with{grant}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let spent = replica.process.cpu().saturating_sub(cpu);
        assert!(spent < start.elapsed() / 10, "spins: {spent:?} in {:?}", start.elapsed());
        let said = replica.log().lines().count() - lines;
        assert!(said < 30, "{said} log lines in {:?}", start.elapsed());
        assert!(!replica.log().contains("redis-password-71f3"));
        assert!(replica.process.exited().is_none());
        // Redis compares the pattern of a PSUBSCRIBE with those of the rule letter by letter, so
        // `&ws:*` would not do; the log line names what does.
        let rights = "&ws:user:* &ws:group:* &ws:broadcast &ws:control";
        assert!(replica.log().contains(rights));
        client.words(&format!("ACL SETUSER belfry {rights}")).await;
        replica.becomes("/readyz", 200, Duration::from_secs(8)).await;
        let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
        replica.to_user("alice", "live").await;
        ws.event("live").await;
    }
}

/// The rule that the README gives to operators is enough, command by command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_the_rights_in_the_readme_are_enough() {
    let readme = include_str!("../../README.md");
    let rule = readme.lines().find(|line| line.starts_with("ACL SETUSER")).expect("a rule");
    let redis = RedisServer::with(&["--notify-keyspace-events", "Kgx"]).await;
    let mut client = redis.client().await;
    client.words(&rule.replace("PASSWORD", "hush")).await;
    let builder = quick()
        .redis_at(&format!("redis://belfry:hush@{}/0", redis.address()))
        .set("auth.origins", PAGE)
        .set("limits.connections_per_user", "1");
    let replica = sessions::spawn(builder).await;
    set(&redis, "s", &json!({"user_id": "bob"})).await;
    client.words("HSET session:h user_id carol").await;
    // Sessions as strings and as hashes, and word of their end.
    for id in ["s", "h"] {
        let mut ws = cookie(&replica, id).open().await;
        client.words(&format!("DEL session:{id}")).await;
        assert_eq!(ws.end(PATIENCE).await.code, 4401, "{id}");
    }
    // Seats, of which the second takes the first's; events, and such that are done once.
    let token = Jwt::of("alice").claim("sid", "sid").sign();
    let mut first = Dial::to(&replica).query(&token).open().await;
    let mut second = Dial::to(&replica).query(&token).open().await;
    assert_eq!(first.end(PATIENCE).await.code, 4409);
    let body = json!({"to": {"user": "alice"}, "type": "t", "data": {"mk": "once"}}).to_string();
    for _ in 0..2 {
        assert_eq!(replica.post_once(body.clone(), "key").await.status, 202);
    }
    second.event("once").await;
    // Tickets, orders and revocations.
    let post = |url: String, key: String, body: &'static str| {
        let request = replica.http.post(url).header("authorization", format!("Bearer {key}"));
        request.header("content-type", "application/json").body(body).send()
    };
    let url = format!("http://{}/ws/tickets", replica.public);
    let answer = post(url, token, "").await.expect("an answer");
    let text = answer.text().await.expect("a whole answer");
    let ticket: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut dial = Dial::to(&replica);
    dial.path = format!("{}?ticket={}", dial.path, ticket["ticket"].as_str().expect("a ticket"));
    let mut third = dial.open().await;
    for body in [
        r#"{"session":"sid","revoke":true}"#,
        r#"{"user":"alice","revoke":true,"except_session":"other"}"#,
    ] {
        let url = format!("http://{}/v1/disconnect", replica.internal);
        let answer = post(url, API_KEY.to_owned(), body).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{body}");
    }
    assert_eq!(third.end(PATIENCE).await.code, 4403);
    // Missed orders are read again, and a replica leaves in order.
    client.words("CLIENT KILL TYPE pubsub").await;
    until("it hears again", PATIENCE, async || {
        (replica.log().matches("\"subscribed\"").count() > 1).then_some(())
    })
    .await;
    replica.becomes("/readyz", 200, PATIENCE).await;
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    replica.process.end(PATIENCE).await;
    // Redis keeps what it refused. A name for the connection is a nicety.
    let refused = redis.cli(&["ACL", "LOG"]);
    assert!(refused.is_empty(), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_an_outage_does_not_pile_up() {
    let redis = RedisServer::start().await;
    let replica = Arc::new(quick().redis(&redis).spawn().await);
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    redis.freeze();
    let before = replica.process.rss();
    let mut lanes = Vec::new();
    for lane in 0..50 {
        let replica = replica.clone();
        lanes.push(tokio::spawn(async move {
            let pad = "x".repeat(8_000);
            let mut slowest = Duration::ZERO;
            for n in 0..60 {
                let data = json!({"mk": format!("refused-{lane}-{n}"), "pad": pad});
                let body = json!({"to": {"user": "alice"}, "type": "t", "data": data});
                let answer = replica.post(body.to_string()).await;
                assert_eq!(answer.status, 503, "{answer:?}");
                slowest = slowest.max(answer.took);
            }
            slowest
        }));
    }
    for lane in lanes {
        let slowest = lane.await.expect("no panic");
        assert!(slowest < Duration::from_millis(2_500), "a 503 took {slowest:?}");
    }
    let grown = replica.process.rss() - before;
    assert!(grown < 32 * 1024, "3,000 refused publishes of 8 KB left {grown} KiB");
    redis.thaw();
    replica.becomes("/readyz", 200, PATIENCE).await;
    accepted_again(&replica, RECOVERY).await;
    replica.to_user("alice", "last").await;
    let got = ws.markers_before("last").await;
    // Those that were on their way when Redis stopped cannot be taken back; those that came after
    // it was known to be away were never sent.
    let late = got.iter().filter(|marker| marker.starts_with("refused")).count();
    assert!(late < 300, "{late} of 3,000 refused events arrived after all");
    let copies = tally(got);
    assert!(copies.values().all(|count| *count == 1), "{copies:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_traffic_for_users_elsewhere() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let mut client = redis.client().await;
    let channels: Vec<String> =
        (0..500).map(|index| format!("ws:user:elsewhere-{index}")).collect();
    let event = json!({"type": "t", "data": "x".repeat(200)}).to_string().into_bytes();
    let flood = tokio::spawn(async move {
        let start = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while start.elapsed() < Duration::from_secs(4) {
            ticks.tick().await;
            let part = channels.iter().map(|channel| (channel.as_str(), event.clone()));
            client.publish_all(part).await;
        }
    });
    let cpu = replica.process.cpu();
    let start = Instant::now();
    let mut latencies = Vec::new();
    while !flood.is_finished() {
        let sent = Instant::now();
        replica.to_user("alice", "mine").await;
        ws.event("mine").await;
        latencies.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    flood.await.expect("no panic");
    let spent = replica.process.cpu().saturating_sub(cpu);
    println!("5,000 messages a second for others: {spent:?} of CPU in {:?}", start.elapsed());
    let p99 = percentile(&mut latencies, 0.99);
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?}");
    replica.metric_is("redis_pubsub_gaps_total", 0.0, PATIENCE).await;
}

/// The address, and with it the password, comes from a file that changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r13_a_rotated_password_is_followed() {
    let redis = RedisServer::start().await;
    let mut admin = redis.client().await;
    let rights = "~* +@all allchannels";
    admin.words(&format!("ACL SETUSER belfry on >first-71f3 {rights}")).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("redis-url");
    let write = |password: &str| {
        let url = format!("redis://belfry:{password}@{}", redis.address());
        std::fs::write(&file, url).expect("a file");
    };
    write("first-71f3");
    let replica = quick().set("redis.url_file", file.to_str().expect("a path")).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    replica.to_user("alice", "before").await;
    ws.event("before").await;

    admin.words("ACL SETUSER belfry resetpass >second-71f3").await;
    write("second-71f3");
    until("the new address is taken", PATIENCE, async || {
        replica.log().contains("\"rotated\"").then_some(())
    })
    .await;
    admin.words("CLIENT KILL USER belfry").await;
    accepted_again(&replica, RECOVERY).await;
    replica.becomes("/readyz", 200, PATIENCE).await;
    until("events arrive again", PATIENCE, async || {
        replica.to_user("alice", "after").await;
        let got = tokio::time::timeout(Duration::from_millis(500), ws.event("after")).await;
        got.is_ok().then_some(())
    })
    .await;
    assert!(!replica.log().contains("-71f3"), "a password is in the log");
}

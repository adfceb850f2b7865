//! Orders: `POST /v1/disconnect` closes connections wherever they are, at once or as soon as a
//! replica can hear again, and a revocation keeps them out.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Answer, Builder, Replica, api_key},
    client::{Dial, End, Seen, Ws},
    jwt::{Jwt, now, token},
    proxy::{Flow, Proxy},
    redis::RedisServer,
    until,
};

/// `POST /v1/disconnect` with the tests' key.
async fn order(replica: &Replica, body: &Value) -> Answer {
    order_with(replica, body, API_KEY).await
}

async fn order_with(replica: &Replica, body: &Value, key: &str) -> Answer {
    let start = Instant::now();
    let response = replica
        .http
        .post(format!("http://{}/v1/disconnect", replica.internal))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .expect("an answer to POST /v1/disconnect");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a whole answer");
    Answer { status, headers, text, took: start.elapsed() }
}

/// The order is carried out by all of `replicas`.
#[track_caller]
fn is_done(answer: &Answer, closed: u64, replicas: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = json!({"closed": closed, "replicas": replicas, "acknowledged": replicas});
    assert_eq!(answer.json(), expected, "{answer:?}");
}

#[track_caller]
fn is_revoked(end: &End) {
    assert_eq!((end.code, end.reason.as_str()), (4403, "revoked"), "{end:?}");
    let goodbye = end.goodbye.as_ref().expect("a goodbye");
    assert!(goodbye["retry_after_ms"].is_null(), "{end:?}");
}

fn quick() -> Builder {
    Builder::production()
        .set("redis.probe_interval", "500ms")
        .set("redis.probe_timeout", "1s")
        .set("ready.redis_grace", "2s")
}

async fn three(redis: &RedisServer) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(quick().redis(redis).spawn().await);
    }
    have_leases(redis, 3).await;
    replicas
}

/// Orders wait for those that are known to be alive.
async fn have_leases(redis: &RedisServer, count: i64) {
    let mut client = redis.client().await;
    until("every replica has its lease", PATIENCE, async || {
        (client.words("ZCARD ws:replicas").await.int() == count).then_some(())
    })
    .await;
}

fn in_session(user: &str, session: &str) -> String {
    Jwt::of(user).claim("sid", session).claim("iat", now() - 5).sign()
}

/// As the API names a session that it does not want to say.
fn hash(session: &str) -> String {
    format!("sha256:{:x}", Sha256::digest(session.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sessions_tabs_on_three_replicas_are_closed_within_a_second() {
    let redis = RedisServer::start().await;
    let replicas = three(&redis).await;
    let mut gone = Vec::new();
    let mut others = Vec::new();
    for replica in &replicas {
        for _ in 0..3 {
            gone.push(Dial::to(replica).query(&in_session("alice", "s-1")).open().await);
        }
        others.push(Dial::to(replica).query(&in_session("alice", "s-2")).open().await);
        others.push(Dial::to(replica).query(&token("alice")).open().await);
        others.push(Dial::to(replica).query(&in_session("bob", "s-3")).open().await);
    }
    let begun = Instant::now();
    let answer = order(&replicas[1], &json!({"session": "s-1"})).await;
    for ws in &mut gone {
        let end = ws.end(PATIENCE).await;
        is_revoked(&end);
        let took = end.at.duration_since(begun);
        assert!(took < Duration::from_secs(1), "closed after {took:?}");
    }
    is_done(&answer, 9, 3);
    assert!(answer.took < Duration::from_secs(1), "{answer:?}");
    for ws in &mut others {
        ws.is_alive().await;
    }
    // Again, by the hash: harmless.
    is_done(&order(&replicas[2], &json!({"session": hash("s-1")})).await, 0, 3);
    // Nothing was revoked.
    Dial::to(&replicas[0]).query(&in_session("alice", "s-1")).open().await.is_alive().await;
    let by = [("by", "session")];
    replicas[1].metric("revocations_total", &by, PATIENCE, |n| (n - 1.0).abs() < 0.1).await;
    let log = replicas[1].log();
    let line = log.lines().find(|line| line.contains("\"audit\"")).expect("an audit line");
    assert!(line.contains("disconnect") && line.contains(&hash("s-1")), "{line}");
    assert!(line.contains("\"tests\""), "{line}");
    // Everything that Belfry writes has an end.
    let mut client = redis.client().await;
    for key in redis.cli(&["KEYS", "*"]).lines() {
        assert!(client.words(&format!("PTTL {key}")).await.int() > 0, "{key} has no end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exceptions_stay() {
    let redis = RedisServer::start().await;
    let replicas = three(&redis).await;
    let [one, two, three] = &replicas[..] else { panic!("three") };
    let mut kept = Dial::to(one).query(&in_session("alice", "a")).open().await;
    let mut session = Dial::to(two).query(&in_session("alice", "b")).open().await;
    let mut gone = Dial::to(three).query(&in_session("alice", "c")).open().await;
    let id = kept.welcome["connection"].clone();
    let body = json!({"user": "alice", "except_connection": id, "except_session": "b"});
    is_done(&order(three, &body).await, 1, 3);
    is_revoked(&gone.end(PATIENCE).await);
    kept.is_alive().await;
    session.is_alive().await;
    // One connection by its id, and nothing else.
    is_done(&order(two, &json!({"connection": id})).await, 1, 3);
    is_revoked(&kept.end(PATIENCE).await);
    session.is_alive().await;
    is_done(&order(one, &json!({"user": "nobody"})).await, 0, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_it_is_the_same() {
    let replica = Replica::start().await;
    let mut first = Dial::to(&replica).query(&in_session("alice", "s")).open().await;
    let mut second = Dial::to(&replica).query(&token("alice")).open().await;
    is_done(&order(&replica, &json!({"session": "s", "revoke": true})).await, 1, 1);
    is_revoked(&first.end(PATIENCE).await);
    second.is_alive().await;
    Dial::to(&replica).query(&in_session("alice", "s")).is_refused("a revoked session").await;
    is_done(&order(&replica, &json!({"user": "alice", "revoke": true})).await, 1, 1);
    is_revoked(&second.end(PATIENCE).await);
    Dial::to(&replica).query(&token("alice")).is_refused("a revoked user").await;
    let later = Jwt::of("alice").claim("iat", now() + 2).sign();
    until("the order is not about newcomers", PATIENCE, async || {
        let mut ws = Dial::to(&replica).query(&later).connect().await;
        matches!(ws.next(PATIENCE).await, (_, Seen::Text(text)) if text.contains("belfry.welcome"))
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_session_neither_returns_nor_renews() {
    let redis = RedisServer::start().await;
    let replicas = three(&redis).await;
    let revoked = in_session("alice", "stolen");
    let mut bystander = Dial::to(&replicas[2]).query(&in_session("alice", "good")).open().await;
    let mut tab = Dial::to(&replicas[0]).query(&revoked).open().await;
    is_done(&order(&replicas[1], &json!({"session": "stolen", "revoke": true})).await, 1, 3);
    is_revoked(&tab.end(PATIENCE).await);
    for replica in &replicas {
        Dial::to(replica).query(&revoked).is_refused("a revoked session").await;
        // However new the token is: it is the session that has ended.
        let new = Jwt::of("alice").claim("sid", "stolen").claim("iat", now() + 5).sign();
        Dial::to(replica).bearer(&new).is_refused("a new token of a revoked session").await;
        Dial::to(replica).query(&in_session("alice", "good")).open().await.is_alive().await;
    }
    bystander.send(json!({"type": "belfry.token", "token": revoked}).to_string());
    let word = bystander.word("belfry.renewal_failed", PATIENCE).await;
    assert_eq!(word["reason"], "revoked", "{word}");
    bystander.is_alive().await;
    bystander.send(json!({"type": "belfry.token", "token": token("alice")}).to_string());
    bystander.word("belfry.renewed", PATIENCE).await;
    let command = format!("PTTL ws:revoked:session:{}", hash("stolen"));
    let ttl = redis.client().await.words(&command).await.int();
    assert!((86_000_000..=86_400_000).contains(&ttl), "{ttl}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_user_needs_a_new_credential() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).set("auth.revocation_ttl", "1m").spawn().await;
    let old = Jwt::of("alice").claim("iat", now() - 60);
    let mut tab = Dial::to(&replica).query(&old.sign()).open().await;
    let body = json!({"user": "alice", "revoke": true, "except_session": "mine"});
    is_done(&order(&replica, &body).await, 1, 1);
    is_revoked(&tab.end(PATIENCE).await);
    for (what, jwt) in [
        ("an old token", old.clone()),
        ("a token that does not say how old it is", Jwt::of("alice")),
        ("a token of that very second", Jwt::of("alice").claim("iat", now() - 1)),
    ] {
        Dial::to(&replica).query(&jwt.sign()).is_refused(what).await;
    }
    let excepted = old.clone().claim("sid", "mine").sign();
    Dial::to(&replica).query(&excepted).open().await.is_alive().await;
    Dial::to(&replica).query(&token("bob")).open().await.is_alive().await;
    let new = Jwt::of("alice").claim("iat", now() + 5).sign();
    until("a newer token is taken", PATIENCE, async || {
        let mut ws = Dial::to(&replica).query(&new).connect().await;
        let (_, seen) = ws.next(PATIENCE).await;
        let welcome = matches!(&seen, Seen::Text(text) if text.contains("belfry.welcome"));
        welcome.then_some(())
    })
    .await;
    // Without the exception, everything up to now.
    let answer = order(&replica, &json!({"user": "alice", "revoke": true})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    Dial::to(&replica).query(&excepted).is_refused("no exception any more").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_carries_it_out_when_it_is_back() {
    let redis = RedisServer::start().await;
    let mut proxy = Proxy::start(redis.address()).await;
    let near = quick().redis(&redis).spawn().await;
    let far = quick().redis_at(&format!("redis://{}", proxy.address)).spawn().await;
    have_leases(&redis, 2).await;
    // One order before, so that the repair has a place to begin at; the other way is tested too.
    for first in [false, true] {
        if first {
            is_done(&order(&near, &json!({"user": "nobody"})).await, 0, 2);
        }
        let mut tab = Dial::to(&far).query(&in_session("alice", "s-1")).open().await;
        let mut other = Dial::to(&far).query(&in_session("alice", "s-2")).open().await;
        proxy.refuse().await;
        proxy.cut();
        let answer = order(&near, &json!({"session": "s-1"})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let missing = json!({"closed": 0, "replicas": 2, "acknowledged": 1});
        assert_eq!(answer.json(), missing, "the one that is cut off does not answer: {answer:?}");
        far.becomes("/readyz", 503, PATIENCE).await;
        tab.is_alive().await;
        proxy.allow().await;
        let back = Instant::now();
        is_revoked(&tab.end(PATIENCE).await);
        println!("carried out {:?} after the link was back", back.elapsed());
        other.is_alive().await;
        far.becomes("/readyz", 200, PATIENCE).await;
        // Who came after it is none of its business.
        until("a newcomer is let in", PATIENCE, async || {
            let ws = Dial::to(&far).query(&in_session("alice", "s-1")).try_connect().await;
            ws.ok()?.next(PATIENCE).await.1.is_welcome().then_some(())
        })
        .await;
    }
}

impl Seen {
    fn is_welcome(&self) -> bool {
        matches!(self, Self::Text(text) if text.contains("belfry.welcome"))
    }
}

/// The link looks healthy and delivers nothing: that too is noticed, and repaired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_behind_a_dead_link_carries_it_out_when_it_is_back() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let near = quick().redis(&redis).spawn().await;
    let far = quick().redis_at(&format!("redis://{}", proxy.address)).spawn().await;
    let mut tab = Dial::to(&far).query(&in_session("alice", "s-1")).open().await;
    let mut other = Dial::to(&far).query(&in_session("alice", "s-2")).open().await;
    // Only what comes back is swallowed, and only on connections that stand.
    proxy.flow_of_standing(Flow::Pass, Flow::Stall);
    let answer = order(&near, &json!({"session": "s-1", "revoke": true})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["acknowledged"], 1, "{answer:?}");
    is_revoked(&tab.end(PATIENCE).await);
    other.is_alive().await;
}

/// More than one page of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_missed_orders_are_all_carried_out() {
    let redis = RedisServer::start().await;
    let mut proxy = Proxy::start(redis.address()).await;
    let near = Arc::new(quick().redis(&redis).spawn().await);
    let far = quick().redis_at(&format!("redis://{}", proxy.address)).spawn().await;
    let mut tabs = Vec::new();
    for n in [0, 255, 256, 599] {
        tabs.push(Dial::to(&far).query(&token(&format!("user-{n}"))).open().await);
    }
    let mut stays = Dial::to(&far).query(&token("user-600")).open().await;
    proxy.refuse().await;
    proxy.cut();
    let lanes: Vec<_> = (0..60)
        .map(|lane| {
            let near = near.clone();
            tokio::spawn(async move {
                for n in 0..10 {
                    let body = json!({"user": format!("user-{}", lane * 10 + n)});
                    assert_eq!(order(&near, &body).await.status, 200);
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.expect("no panic");
    }
    proxy.allow().await;
    for ws in &mut tabs {
        is_revoked(&ws.end(PATIENCE).await);
    }
    stays.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_handshakes_race_with_a_revocation_and_nobody_stays() {
    let redis = RedisServer::start().await;
    let builder = quick().set("limits.connections_per_user", "0");
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(Arc::new(builder.clone().redis(&redis).spawn().await));
    }
    for limit in ["0", "1000"] {
        if limit == "1000" {
            replicas.clear();
            let builder = quick().set("limits.connections_per_user", limit);
            for _ in 0..2 {
                replicas.push(Arc::new(builder.clone().redis(&redis).spawn().await));
            }
        }
        let session = format!("s-{limit}");
        let jwt = in_session("alice", &session);
        let dialling: Vec<_> = (0..200)
            .map(|n| {
                let dial = Dial::to(&replicas[n % 2]).query(&jwt);
                tokio::spawn(async move { dial.connect().await })
            })
            .collect();
        until("some have connected", PATIENCE, async || {
            let metrics = replicas[0].metrics().await;
            (metrics.sum("connections") >= 5.0).then_some(())
        })
        .await;
        let answer = order(&replicas[1], &json!({"session": session, "revoke": true})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut codes = std::collections::BTreeMap::new();
        for dialled in dialling {
            let mut ws: Ws = dialled.await.expect("a 101");
            let end = ws.end(PATIENCE).await;
            assert!(matches!(end.code, 4403 | 1008), "{end:?}");
            *codes.entry(end.code).or_insert(0) += 1;
        }
        println!("ends of 200 handshakes: {codes:?}");
        for replica in &replicas {
            replica.metric_is("connections", 0.0, PATIENCE).await;
        }
    }
}

/// The same, held at the narrowest place: Redis has said that nothing was revoked, the answers are
/// still on their way when the order is given, and both arrive together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_meets_handshakes_under_way_catches_them_all() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let near = Arc::new(quick().redis(&redis).spawn().await);
    let far = Builder::production()
        .set("limits.connections_per_user", "1000")
        .set("redis.probe_timeout", "8s")
        .set("redis.command_timeout", "1900ms")
        .redis_at(&format!("redis://{}", proxy.address))
        .spawn()
        .await;
    let mut client = redis.client().await;
    let mut total = 0;
    let mut run = 0;
    // A run in which the machine was too slow for Redis's timeout shows nothing, and harms nothing.
    while total < 150 {
        run += 1;
        // Handshakes go to Redis together, so few are at this place at once.
        assert!(run <= 80, "only {total} handshakes were under way in {run} runs");
        let session = format!("s-{run}");
        let jwt = in_session("alice", &session);
        proxy.flow_of_standing(Flow::Pass, Flow::Stall);
        let dialling: Vec<_> = (0..50)
            .map(|_| {
                let dial = Dial::to(&far).query(&jwt);
                tokio::spawn(async move { dial.try_connect().await })
            })
            .collect();
        let begun = Instant::now();
        while client.words("ZCARD ws:seats:alice").await.int() < 50
            && begun.elapsed() < Duration::from_secs(1)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let giving = near.clone();
        let body = json!({"session": session, "revoke": true});
        let given = tokio::spawn(async move { order(&giving, &body).await });
        until("the order is kept", PATIENCE, async || {
            (client.words("XLEN ws:control").await.int() == run).then_some(())
        })
        .await;
        proxy.flow_of_standing(Flow::Pass, Flow::Pass);
        let mut caught = 0;
        for dialled in dialling {
            // One that waited too long was told that Redis is away.
            let Ok(mut ws) = dialled.await.expect("no panic") else { continue };
            let end = ws.end(PATIENCE).await;
            // One that began too late was refused by the revocation.
            assert!(matches!(end.code, 4403 | 1008), "{end:?}");
            caught += usize::from(end.code == 4403);
        }
        let answer = given.await.expect("no panic");
        println!("{caught} of 50 were let in and caught: {}", answer.text);
        total += caught;
        far.metric_is("connections", 0.0, PATIENCE).await;
        until("the seats are free", PATIENCE, async || {
            (client.words("ZCARD ws:seats:alice").await.int() == 0).then_some(())
        })
        .await;
        until("handshakes are taken", PATIENCE, async || {
            let ws = Dial::to(&far).query(&token("bob")).try_connect().await.ok()?;
            ws.close().await;
            Some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l16_an_event_is_seen_before_the_disconnect_that_follows_it() {
    let redis = RedisServer::start().await;
    let replicas = three(&redis).await;
    for run in 0..50 {
        let (from, to, by) = (run % 3, (run / 3) % 3, (run / 9) % 3);
        let session = format!("s-{run}");
        let mut ws = Dial::to(&replicas[to]).query(&in_session("alice", &session)).open().await;
        let marker = format!("last-{run}");
        replicas[from].to_user("alice", &marker).await;
        let answer = order(&replicas[by], &json!({"session": session})).await;
        is_done(&answer, 1, 3);
        let end = ws.end(PATIENCE).await;
        is_revoked(&end);
        assert_eq!(end.texts.len(), 1, "run {run}: {end:?}");
        assert!(end.texts[0].contains(&marker), "run {run}: {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_key_with_the_scope_gives_orders() {
    let keys = [
        api_key("tests", API_KEY),
        format!("{}:publish+broadcast+read+tickets", api_key("rest", "the-other-key-1f0c")),
        format!("{}:disconnect", api_key("kicks", "the-third-key-9a2b")),
    ];
    let replica = Builder::production().set("api.keys", keys.join(",")).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let body = json!({"user": "alice", "revoke": true});
    order_with(&replica, &body, "the-other-key-1f0c").await.is_problem(403);
    order_with(&replica, &body, "wrong").await.is_problem(401);
    ws.is_alive().await;
    Dial::to(&replica).query(&token("alice")).open().await.is_alive().await;
    let answer = order_with(&replica, &body, "the-third-key-9a2b").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    is_revoked(&ws.end(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_at_fault_are_named_and_nothing_happens() {
    let replica = Replica::start().await;
    let mut ws = Dial::to(&replica).query(&in_session("alice", "s")).open().await;
    for (body, pointer) in [
        (json!({}), ""),
        (json!({"user": "alice", "session": "s"}), ""),
        (json!({"user": ""}), "/user"),
        (json!({"user": "alice", "excpt_session": "s"}), "/excpt_session"),
        (json!({"user": "alice", "except_connection": "x"}), "/except_connection"),
        (json!({"session": "sha256:abc"}), "/session"),
        (
            json!({"user": "alice", "except_connection": "0198c0ffee0070008000000000000000", "revoke": true}),
            "/except_connection",
        ),
        (json!({"user": "alice", "revoke": "yes"}), "/revoke"),
    ] {
        order(&replica, &body).await.is_at_fault(pointer);
    }
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_it_says_so() {
    let mut redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    redis.kill();
    for revoke in [false, true] {
        let answer = order(&replica, &json!({"user": "alice", "revoke": revoke})).await;
        let problem = answer.is_problem(503);
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("nothing may have happened"), "{problem}");
        assert!(answer.took < Duration::from_millis(2_300), "{answer:?}");
    }
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_and_garbled_orders_are_counted_and_dropped() {
    let redis = RedisServer::start().await;
    let replica = quick().redis(&redis).spawn().await;
    let mut ws = Dial::to(&replica).query(&in_session("alice", "s")).open().await;
    let mut client = redis.client().await;
    let good = r#"{"user":"alice","cause":"revoked","given":99999999999999}"#;
    let head =
        |order: &str| format!(r#"{{"belfry":{{"v":1,"order":{order}}},"type":"belfry.order"}}"#);
    // Whole, but not where orders are given.
    for channel in ["ws:user:alice", "ws:broadcast", "ws:group:g"] {
        client.publish(channel, head(good)).await;
    }
    let garbled = [
        head("{}"),
        head("7"),
        head(r#"{"user":"alice","cause":"whim","given":1}"#),
        head(r#"{"user":"alice","session":"s","cause":"revoked","given":1}"#),
        head(r#"{"user":"alice","cause":"revoked","given":99999999999999,"but":"s"}"#),
        r#"{"type":"belfry.order","user":"alice"}"#.to_owned(),
        "order".to_owned(),
    ];
    for payload in &garbled {
        client.publish("ws:control", payload).await;
    }
    let dropped = [("reason", "bus_invalid")];
    let all = 3.0 + 7.0;
    replica.metric("messages_dropped_total", &dropped, PATIENCE, |n| (n - all).abs() < 0.1).await;
    replica.to_user("alice", "after").await;
    // Nothing of it reached the browser.
    assert_eq!(ws.through("after").await.len(), 1);
    // In the right place the same order is one.
    client.publish("ws:control", head(good)).await;
    is_revoked(&ws.end(PATIENCE).await);
}

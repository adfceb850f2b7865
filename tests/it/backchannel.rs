//! OpenID Connect Back-Channel Logout 1.0: an issuer ends a session, or all of a user.

use std::net::SocketAddr;

use tokio::{io::AsyncWriteExt, net::TcpStream, time::Duration};

use serde_json::json;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    http::{Reply, exchange},
    jwt::{Jwt, now},
    proxy::{Flow, Proxy},
    redis::RedisServer,
    until,
};

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

fn issued() -> Builder {
    Builder::production()
        .set("auth.jwt.issuer", "https://id.example")
        .set("auth.jwt.audience", "belfry")
        .set("redis.probe_interval", "500ms")
}

/// A credential of this session.
fn credential(user: &str, session: &str) -> Jwt {
    Jwt::of(user)
        .claim("sid", session)
        .claim("iss", "https://id.example")
        .claim("aud", "belfry")
        .claim("iat", now() - 5)
}

/// A good logout token.
fn logout(session: &str, id: &str) -> Jwt {
    Jwt::of("alice")
        .without("sub")
        .header("typ", "logout+jwt")
        .claim("sid", session)
        .claim("iss", "https://id.example")
        .claim("aud", json!(["belfry", "other"]))
        .claim("iat", now())
        .claim("exp", now() + 120)
        .claim("jti", id)
        .claim("events", json!({EVENT: {}}))
}

fn request(body: &str, media: &str) -> String {
    format!(
        "POST /oidc/backchannel-logout HTTP/1.1\r\nHost: belfry\r\nContent-Type: {media}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len(),
    )
}

async fn send_to(address: SocketAddr, body: &str, media: &str) -> Reply {
    exchange(address, request(body, media).as_bytes()).await
}

async fn send(address: SocketAddr, token: &str) -> Reply {
    let body = format!("logout_token={token}");
    send_to(address, &body, "application/x-www-form-urlencoded").await
}

#[track_caller]
fn is_done(reply: &Reply) {
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{}", reply.text);
}

#[track_caller]
fn is_refused(reply: &Reply, what: &str) {
    assert_eq!(reply.status, 400, "{what}: {}", reply.text);
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{what}: {}", reply.text);
    assert_eq!(reply.json(), json!({"error": "invalid_request"}), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_everywhere_and_stays_ended() {
    let redis = RedisServer::start().await;
    let replicas = [issued().redis(&redis).spawn().await, issued().redis(&redis).spawn().await];
    let (gone, stays) = (credential("alice", "s-1").sign(), credential("alice", "s-2").sign());
    let mut tabs = Vec::new();
    let mut others = Vec::new();
    for replica in &replicas {
        tabs.push(Dial::to(replica).query(&gone).open().await);
        others.push(Dial::to(replica).query(&stays).open().await);
    }
    let first = logout("s-1", "one").sign();
    is_done(&send(replicas[0].internal, &first).await);
    // Remembered for as long as it is taken.
    let key = redis.cli(&["KEYS", "ws:idempotency:logout:*"]);
    let left: i64 = redis.cli(&["PTTL", &key]).parse().expect("a number");
    assert!((120_000..=211_000).contains(&left), "{left} ms");
    for ws in &mut tabs {
        let end = ws.end(Duration::from_secs(2)).await;
        assert_eq!((end.code, end.reason.as_str()), (4403, "revoked"), "{end:?}");
    }
    for ws in &mut others {
        ws.is_alive().await;
    }
    for replica in &replicas {
        Dial::to(replica).query(&gone).is_refused("a session that logged out").await;
    }
    // The same token again, on the other replica: the issuer has had no answer. It is not done again.
    is_done(&send(replicas[1].internal, &first).await);
    let another = logout("s-2", "one").sign();
    is_refused(&send(replicas[1].internal, &another).await, "another token of the same `jti`");
    others[1].is_alive().await;
    let orders = redis.cli(&["XLEN", "ws:control"]);
    assert_eq!(orders, "1", "a repeated token is carried out once");
    is_done(&send(replicas[1].internal, &logout("s-1", "two").sign()).await);
    let log = replicas[0].log();
    let line = log.lines().find(|l| l.contains("\"audit\"") && l.contains("disconnect"));
    assert!(line.is_some_and(|line| line.contains("backchannel")), "no audit line");
    assert!(!log.contains("s-1"), "the session's id stands in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_session_it_is_all_of_the_user() {
    let replica = issued().spawn().await;
    let mut first = Dial::to(&replica).query(&credential("alice", "a").sign()).open().await;
    let mut second = Dial::to(&replica).query(&credential("alice", "b").sign()).open().await;
    let mut other = Dial::to(&replica).query(&credential("bob", "c").sign()).open().await;
    let token = logout("", "one").without("sid").claim("sub", "alice").sign();
    is_done(&send(replica.internal, &token).await);
    for ws in [&mut first, &mut second] {
        assert_eq!(ws.end(PATIENCE).await.code, 4403);
    }
    other.is_alive().await;
    let old = credential("alice", "d").sign();
    Dial::to(&replica).query(&old).is_refused("older than the logout").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_of_the_specification_is_kept() {
    let replica = issued().spawn().await;
    let mut ws = Dial::to(&replica).query(&credential("alice", "s-1").sign()).open().await;
    let good = || logout("s-1", "id");
    for (what, token) in [
        ("an access token", credential("alice", "s-1").sign()),
        ("another secret", good().secret("x".repeat(64)).sign()),
        ("no signature", format!("{}.", good().header("alg", "none").unsigned())),
        ("another issuer", good().claim("iss", "https://evil.example").sign()),
        ("no issuer", good().without("iss").sign()),
        ("another audience", good().claim("aud", "other").sign()),
        ("no audience", good().without("aud").sign()),
        ("expired", good().claim("exp", now() - 120).sign()),
        ("good for two hours", good().claim("exp", now() + 7200).sign()),
        ("no end", good().without("exp").sign()),
        ("no iat", good().without("iat").sign()),
        ("no jti", good().without("jti").sign()),
        ("no events", good().without("events").sign()),
        ("another event", good().claim("events", json!({"https://x.example/e": {}})).sign()),
        ("an event that is no object", good().claim("events", json!({EVENT: 1})).sign()),
        ("a nonce", good().claim("nonce", "n").sign()),
        ("neither sid nor sub", good().without("sid").sign()),
        ("not a token", "nonsense".to_owned()),
        ("nothing", String::new()),
    ] {
        is_refused(&send(replica.internal, &token).await, what);
    }
    let form = "application/x-www-form-urlencoded";
    let token = good().sign();
    for (what, body, media) in [
        ("another media type", format!("logout_token={token}"), "application/json"),
        ("no field", format!("token={token}"), form),
        ("twice", format!("logout_token={token}&logout_token={token}"), form),
        ("too long", format!("logout_token={}", "x".repeat(20_000)), form),
    ] {
        is_refused(&send_to(replica.internal, &body, media).await, what);
    }
    ws.is_alive().await;
    // Nothing of it used the token up.
    is_done(&send(replica.internal, &token).await);
    assert_eq!(ws.end(PATIENCE).await.code, 4403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_on_the_public_listener_only_if_asked_for() {
    let closed = issued().spawn().await;
    for method in ["POST", "GET"] {
        let request = format!(
            "{method} /oidc/backchannel-logout HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        );
        let reply = exchange(closed.public, request.as_bytes()).await;
        assert_eq!(reply.status, 404, "{}", reply.text);
    }
    let open = issued().set("auth.backchannel.public", "true").spawn().await;
    let mut ws = Dial::to(&open).query(&credential("alice", "s-1").sign()).open().await;
    is_refused(&send(open.public, "nonsense").await, "nonsense");
    is_done(&send(open.public, &logout("s-1", "one").sign()).await);
    assert_eq!(ws.end(PATIENCE).await.code, 4403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_the_issuer_may_try_again() {
    let mut redis = RedisServer::start().await;
    let replica: Replica = issued().redis(&redis).spawn().await;
    redis.kill();
    let token_of_logout = logout("s-1", "one").sign();
    let reply = send(replica.internal, &token_of_logout).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert!(reply.header("retry-after").is_some());
    redis.restart().await;
    let reply = until("the issuer is heard", PATIENCE, async || {
        let reply = send(replica.internal, &token_of_logout).await;
        (reply.status != 503).then_some(reply)
    })
    .await;
    is_done(&reply);
}

/// Redis took the claim, and its answer is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_does_not_lose_the_logout() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let replica = issued().redis_at(&format!("redis://{}", proxy.address)).spawn().await;
    let mut ws = Dial::to(&replica).query(&credential("alice", "s-1").sign()).open().await;
    let token = logout("s-1", "one").sign();
    proxy.flow_of_standing(Flow::Pass, Flow::Stall);
    let reply = send(replica.internal, &token).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert_ne!(redis.cli(&["KEYS", "ws:idempotency:logout:*"]), "", "the claim got there");
    let reply = until("the issuer is heard", PATIENCE, async || {
        let reply = send(replica.internal, &token).await;
        if reply.status == 503 {
            assert!(reply.header("retry-after").is_some(), "{}", reply.text);
            return None;
        }
        Some(reply)
    })
    .await;
    is_done(&reply);
    assert_eq!(ws.end(PATIENCE).await.code, 4403);
}

/// Between the claim and the order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_leaves_does_not_stop_its_logout() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let replica = issued()
        .set("auth.backchannel.public", "true")
        .set("redis.command_timeout", "1900ms")
        .redis_at(&format!("redis://{}", proxy.address))
        .spawn()
        .await;
    let mut ws = Dial::to(&replica).query(&credential("alice", "s-1").sign()).open().await;
    let mut issuer = TcpStream::connect(replica.public).await.expect("the listener accepts");
    let body = format!("logout_token={}", logout("s-1", "one").sign());
    let request = request(&body, "application/x-www-form-urlencoded");
    proxy.flow_of_standing(Flow::Pass, Flow::Stall);
    issuer.write_all(request.as_bytes()).await.expect("the replica reads");
    until("the token is claimed", PATIENCE, async || {
        (!redis.cli(&["KEYS", "ws:idempotency:logout:*"]).is_empty()).then_some(())
    })
    .await;
    drop(issuer);
    // Time for the replica to notice; nothing shows when it has.
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.flow_of_standing(Flow::Pass, Flow::Pass);
    assert_eq!(ws.end(PATIENCE).await.code, 4403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_come_through_the_gate_and_do_not_fill_the_log() {
    let replica = issued()
        .set("auth.backchannel.public", "true")
        .set("limits.handshakes_per_second", "10")
        .set("limits.handshake_queue", "0")
        .spawn()
        .await;
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(send(replica.public, "nonsense").await.status);
    }
    assert!(statuses.contains(&400) && statuses.contains(&429), "{statuses:?}");
    let counted = replica.metrics().await;
    for code in ["400", "429"] {
        let times = statuses.iter().filter(|status| status.to_string() == code).count();
        let labels = [("key", "none"), ("route", "/oidc/backchannel-logout"), ("code", code)];
        #[allow(clippy::cast_precision_loss, reason = "30 at most")]
        let expected = times as f64;
        assert!((counted.get("api_requests_total", &labels) - expected).abs() < 0.5, "{code}");
    }

    let begun = tokio::time::Instant::now();
    for _ in 0..100 {
        is_refused(&send(replica.internal, "nonsense").await, "nonsense");
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("short");
    let log = replica.log();
    let lines = log.lines().filter(|line| line.contains("refused") && line.contains("audit"));
    let (lines, most) = (lines.count(), 2 * (seconds + 6));
    assert!((1..=most.min(50)).contains(&lines), "{lines} lines");
}

//! One-time tickets: who sells them, to whom, and what they are good for.

use tokio::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    sessions::{PAGE, around, cookie, set, spawn, with_sessions},
    support::{
        PATIENCE,
        app::{API_KEY, Answer, Builder, Replica, api_key},
        client::{Dial, Seen, Ws},
        http::exchange,
        jwt::{Jwt, now, token},
        redis::RedisServer,
        tally, until,
    },
};

/// The API key that may sell tickets.
const SELLER: &str = "sellers-api-key-9d0e4b7a1c";

/// Knows both keys.
fn keys() -> String {
    format!("{},{}:tickets", api_key("tests", API_KEY), api_key("seller", SELLER))
}

/// A request to the public listener's `/ws/tickets`.
async fn ask(replica: &Replica, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let url = format!("http://{}{path}", replica.public);
    let mut request = replica.http.request(method.parse().expect("a method"), url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let start = Instant::now();
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a whole answer");
    Answer { status, headers, text, took: start.elapsed() }
}

async fn buy(replica: &Replica, headers: &[(&str, &str)]) -> Answer {
    ask(replica, "POST", "/ws/tickets", headers).await
}

/// The ticket in an answer, which must be one.
#[track_caller]
fn ticket(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    let body = answer.json();
    assert_eq!(body["expires_in_ms"], 30_000, "{answer:?}");
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(2), "{answer:?}");
    let ticket = body["ticket"].as_str().expect("a text").to_owned();
    assert_eq!(ticket.len(), 43, "32 bytes as base64url: {answer:?}");
    ticket
}

async fn bought(replica: &Replica, jwt: &str) -> String {
    ticket(&buy(replica, &[("authorization", &format!("Bearer {jwt}"))]).await)
}

/// `POST /v1/tickets`
async fn order(replica: &Replica, key: &str, body: &str) -> Answer {
    let request = replica
        .http
        .post(format!("http://{}/v1/tickets", replica.internal))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(body.to_owned());
    let start = Instant::now();
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a whole answer");
    Answer { status, headers, text, took: start.elapsed() }
}

fn with(replica: &Replica, ticket: &str) -> Dial {
    let mut dial = Dial::to(replica);
    let sign = if dial.path.contains('?') { '&' } else { '?' };
    dial.path = format!("{}{sign}ticket={ticket}", dial.path);
    dial
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a21_a_ticket_stands_for_the_token_that_bought_it() {
    let redis = RedisServer::start().await;
    for builder in [Builder::production(), Builder::production().redis(&redis)] {
        let builder = builder.set("auth.jwt.leeway", "1s");
        let replica = builder.spawn().await;
        let exp = now() + 4;
        let jwt = Jwt::of("tenant:42").groups(&["staff"]).claim("exp", exp).sign();
        let by_query = ask(&replica, "POST", &format!("/ws/tickets?token={jwt}"), &[]).await;
        let mut open = Vec::new();
        for ticket in [bought(&replica, &jwt).await, ticket(&by_query)] {
            let mut ws = with(&replica, &ticket).open().await;
            assert_eq!(ws.welcome["user"], "tenant:42");
            assert_eq!(ws.welcome["groups"], json!(["staff"]));
            replica.to_group("staff", "for-staff").await;
            ws.event("for-staff").await;
            // Once.
            let end = with(&replica, &ticket).connect().await.end(PATIENCE).await;
            assert_eq!((end.code, end.reason.as_str()), (1008, "unauthorized"), "{end:?}");
            open.push(ws);
        }
        let unused = bought(&replica, &jwt).await;
        // Each ends when the token does.
        for mut ws in open {
            let end = ws.end(PATIENCE).await;
            assert_eq!((end.code, end.reason.as_str()), (4401, "token_expired"), "{end:?}");
            assert!((exp..=exp + 4).contains(&now()), "ended {} s after exp", now() - exp);
        }
        // And so does a ticket that nobody used.
        with(&replica, &unused).is_refused("the token behind it is over").await;
        for (what, dial) in [
            ("never sold", with(&replica, &"A".repeat(43))),
            ("empty", with(&replica, "")),
            ("odd", with(&replica, "*")),
            ("long", with(&replica, &"x".repeat(9_000))),
            ("a token", with(&replica, &token("alice"))),
        ] {
            dial.is_refused(what).await;
        }
        let metrics = replica.metrics().await;
        let connects =
            |result: &str| metrics.get("connects_total", &[("auth", "ticket"), ("result", result)]);
        assert!(connects("accepted") >= 2.0 && connects("unauthorized") >= 8.0);
        assert!(metrics.get("auth_duration_seconds_count", &[("method", "ticket")]) >= 10.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a21_a_ticket_stands_for_the_session_that_bought_it() {
    let redis = RedisServer::with(&["--notify-keyspace-events", "Egx"]).await;
    let replica = spawn(with_sessions(&redis).set("auth.session.recheck", "500ms")).await;
    set(&redis, "s", &json!({"user_id": "alice", "groups": ["staff"]})).await;
    let page = [("cookie", "session_id=s"), ("origin", PAGE)];
    let (used, kept) = (ticket(&buy(&replica, &page).await), ticket(&buy(&replica, &page).await));
    // The ticket needs neither cookie nor Origin.
    let mut ws = with(&replica, &used).open().await;
    assert_eq!((&ws.welcome["user"], &ws.welcome["groups"]), (&json!("alice"), &json!(["staff"])));
    // And is held to the session.
    set(&redis, "s", &json!({"user_id": "alice", "groups": ["other"]})).await;
    let mut run = 0;
    until("the groups of now are adopted", PATIENCE, async || {
        run += 1;
        replica.to_group("other", &format!("other-{run}")).await;
        replica.to_user("alice", &format!("mark-{run}")).await;
        (!ws.markers_before(&format!("mark-{run}")).await.is_empty()).then_some(())
    })
    .await;
    redis.client().await.words("DEL session:s").await;
    let end = ws.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (4401, "session_ended"), "{end:?}");
    with(&replica, &kept).is_refused("the session behind it is gone").await;
    // A session that is another's by now is no way in either.
    set(&redis, "t", &json!({"user_id": "alice"})).await;
    let late = ticket(&buy(&replica, &[("cookie", "session_id=t"), ("origin", PAGE)]).await);
    set(&redis, "t", &json!({"user_id": "bob"})).await;
    // What was seen a moment ago is forgotten within two seconds.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    with(&replica, &late).is_refused("the session is another's").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a21_a_ticket_is_good_once_over_all_replicas() {
    let redis = RedisServer::start().await;
    let replicas = [
        Builder::production().redis(&redis).spawn().await,
        Builder::production().redis(&redis).spawn().await,
    ];
    for _ in 0..20 {
        let ticket = bought(&replicas[0], &token("alice")).await;
        let mut tries = tokio::task::JoinSet::new();
        for n in 0..6 {
            let dial = with(&replicas[n % 2], &ticket);
            tries.spawn(async move {
                let mut ws = dial.connect().await;
                match ws.next(PATIENCE).await.1 {
                    Seen::Text(text) if text.contains("belfry.welcome") => "welcome",
                    _ => {
                        assert_eq!(ws.end(PATIENCE).await.code, 1008);
                        "refused"
                    }
                }
            });
        }
        let outcomes = tally(tries.join_all().await);
        assert_eq!(outcomes.get("welcome"), Some(&1), "{outcomes:?}");
        assert_eq!(outcomes.get("refused"), Some(&5), "{outcomes:?}");
    }
    // What lies in Redis is no ticket, has an end, and goes when it is used.
    let ticket = bought(&replicas[0], &token("alice")).await;
    let keys = redis.cli(&["KEYS", "ws:ticket:*"]);
    assert!(!keys.contains(&ticket), "{keys}");
    let key = keys.lines().next().expect("a key");
    assert!(key.strip_prefix("ws:ticket:").is_some_and(|hash| hash.len() == 64), "{key}");
    let ttl: i64 = redis.cli(&["PTTL", key]).parse().expect("a number");
    assert!((20_000..=30_000).contains(&ttl), "{ttl}");
    assert!(!redis.cli(&["GET", key]).contains(&ticket));
    with(&replicas[1], &key["ws:ticket:".len()..]).is_refused("its name").await;
    // When its time is over, it is none.
    assert_eq!(redis.cli(&["PEXPIRE", key, "1"]), "1");
    until("it is gone", PATIENCE, async || {
        redis.cli(&["KEYS", "ws:ticket:*"]).is_empty().then_some(())
    })
    .await;
    with(&replicas[0], &ticket).is_refused("after its time").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a11_a_ticket_among_other_credentials() {
    let replica = Replica::start().await;
    let (a, b) = (token("a"), token("b"));
    let bad = Jwt::of("b").secret("x").sign();
    let fresh = async || bought(&replica, &a).await;
    for (what, dial, user) in [
        ("ticket before query", with(&replica, &fresh().await).query(&b), "a"),
        ("bearer before ticket", with(&replica, &fresh().await).bearer(&b), "b"),
        ("subprotocol before ticket", with(&replica, &fresh().await).subprotocol(&b), "b"),
    ] {
        assert_eq!(dial.open().await.welcome["user"], user, "{what}");
    }
    let twice = fresh().await;
    for (what, dial) in [
        ("a bad ticket is not skipped", with(&replica, "x").query(&a)),
        ("an empty ticket is not skipped", with(&replica, "").query(&a)),
        ("a bad bearer is not skipped", with(&replica, &fresh().await).bearer(&bad)),
        ("two tickets", {
            let mut dial = with(&replica, &twice);
            dial.path = format!("{}&ticket={}", dial.path, fresh().await);
            dial
        }),
    ] {
        dial.is_refused(what).await;
    }
    // Neither was used up by a request that was refused for other reasons.
    with(&replica, &twice).open().await;
    let off = Builder::production().set("auth.methods", "bearer,query").spawn().await;
    let answer = buy(&off, &[("authorization", &format!("Bearer {a}"))]).await;
    answer.is_problem(404);
    with(&off, &twice).is_refused("tickets are switched off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a21_who_may_buy() {
    let redis = RedisServer::start().await;
    let replica = spawn(with_sessions(&redis)).await;
    set(&redis, "s", &json!({"user_id": "alice"})).await;
    let bearer = format!("Bearer {}", token("alice"));
    let good = ("authorization", bearer.as_str());
    let over = format!("Bearer {}", Jwt::of("alice").expires_in(-600).sign());
    let session = ("cookie", "session_id=s");
    let jwt = token("alice");
    let subprotocol = format!("belfry.v1, belfry.token.{jwt}");
    for (headers, status) in [
        (&[good][..], 200),
        (&[good, ("origin", PAGE)], 200),
        (&[session, ("origin", PAGE)], 200),
        (&[good, ("origin", "https://evil.example")], 403),
        (&[session, ("origin", "https://evil.example")], 403),
        (&[session, ("origin", "null")], 403),
        (&[session], 403),
        (&[], 401),
        (&[("origin", PAGE)], 401),
        (&[("authorization", &over)], 401),
        (&[("authorization", "Basic YTpi")], 401),
        (&[("authorization", "Bearer x"), session, ("origin", PAGE)], 401),
        (&[("cookie", "session_id=gone"), ("origin", PAGE)], 401),
        (&[("cookie", "session_id=s; session_id=s"), ("origin", PAGE)], 401),
        (&[("sec-websocket-protocol", &subprotocol)], 401),
    ] {
        let answer = buy(&replica, headers).await;
        if status == 200 {
            ticket(&answer);
        } else {
            answer.is_problem(status);
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{answer:?}");
            assert!(!answer.text.contains(&jwt));
        }
    }
    let first = bought(&replica, &jwt).await;
    let by_ticket = ask(&replica, "POST", &format!("/ws/tickets?ticket={first}"), &[]).await;
    by_ticket.is_problem(401);
    with(&replica, &first).open().await;
    for method in ["GET", "PUT", "DELETE"] {
        ask(&replica, method, "/ws/tickets", &[good]).await.is_problem(405);
    }
    // Internal routes are not here.
    ask(&replica, "POST", "/v1/tickets", &[good]).await.is_problem(404);
    let below = Builder::production().set("public.base_path", "/notify").spawn().await;
    ticket(&ask(&below, "POST", "/notify/ws/tickets", &[good]).await);
    ask(&below, "POST", "/ws/tickets", &[good]).await.is_problem(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e08_cors_for_pages_on_the_list_and_no_one_else() {
    let replica = Builder::production()
        .set("auth.origins", "https://app.example,https://*.wild.example")
        .spawn()
        .await;
    let bearer = format!("Bearer {}", token("alice"));
    let own = format!("http://{}", replica.public);
    let vary = |answer: &Answer| {
        answer.headers.get_all("vary").iter().any(|value| value.as_bytes() == b"Origin")
    };
    for (origin, allowed) in [
        ("https://app.example", true),
        ("https://a.wild.example", true),
        (own.as_str(), true),
        ("https://wild.example", false),
        ("https://evil.example", false),
        ("http://app.example", false),
        ("https://app.example.evil.com", false),
        ("null", false),
        ("*", false),
    ] {
        let asked = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization"),
        ];
        let preflight = ask(&replica, "OPTIONS", "/ws/tickets", &asked).await;
        let good = [("origin", origin), ("authorization", bearer.as_str())];
        let bad = [("origin", origin), ("authorization", "Bearer x")];
        let (bought, refused) = (buy(&replica, &good).await, buy(&replica, &bad).await);
        for answer in [&preflight, &bought, &refused] {
            let shown = answer.header("access-control-allow-origin");
            assert_eq!(shown, allowed.then_some(origin), "{answer:?}");
            let credentials = answer.header("access-control-allow-credentials");
            assert_eq!(credentials, allowed.then_some("true"), "{answer:?}");
            assert!(vary(answer), "{answer:?}");
        }
        let statuses = [preflight.status, bought.status, refused.status];
        assert_eq!(statuses, if allowed { [204, 200, 401] } else { [403, 403, 403] }, "{origin}");
        if allowed {
            assert_eq!(preflight.header("access-control-allow-methods"), Some("POST, OPTIONS"));
            let headers = preflight.header("access-control-allow-headers").unwrap_or_default();
            assert!(headers.to_ascii_lowercase().contains("authorization"), "{preflight:?}");
            assert!(preflight.text.is_empty());
        } else {
            assert_eq!(preflight.header("access-control-allow-methods"), None);
        }
    }
    // No page: nothing to allow.
    let plain = buy(&replica, &[("authorization", &bearer)]).await;
    assert_eq!(plain.header("access-control-allow-origin"), None);
    assert!(vary(&plain));
    let two = format!(
        "POST /ws/tickets HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\n\
         Origin: https://app.example\r\nOrigin: https://evil.example\r\nContent-Length: 0\r\n\r\n"
    );
    let reply = exchange(replica.public, two.as_bytes()).await;
    assert_eq!(reply.status, 403, "{}", reply.text);
    assert_eq!(reply.header("access-control-allow-origin"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_back_end_sells_tickets_in_a_users_name() {
    let replica = Builder::production()
        .set("api.keys", keys())
        .set("auth.groups.allow", "team:*")
        .set("auth.jwt.leeway", "1s")
        .spawn()
        .await;
    let body = json!({"user": "a:b", "groups": ["team:x", "admins"], "session": "s-1"}).to_string();
    let ws = with(&replica, &ticket(&order(&replica, SELLER, &body).await)).open().await;
    assert_eq!(ws.welcome["user"], "a:b");
    assert_eq!(ws.welcome["groups"], json!(["team:x"]));
    let short = json!({"user": "alice", "expires_in_seconds": 1}).to_string();
    let mut ws = with(&replica, &ticket(&order(&replica, SELLER, &short).await)).open().await;
    assert_eq!(ws.end(PATIENCE).await.reason, "token_expired");
    // The scope is given to no key by itself.
    order(&replica, API_KEY, &body).await.is_problem(403);
    order(&replica, "wrong", &body).await.is_problem(401);
    order(&replica, API_KEY, "{").await.is_problem(403);
    order(&replica, SELLER, "{").await.is_problem(400);
    for (body, pointer) in [
        (json!({}), "/user"),
        (json!({"user": "a", "grups": []}), "/grups"),
        (json!({"user": ""}), "/user"),
        (json!({"user": ["a"]}), "/user"),
        (json!({"user": "a", "groups": ["team:x", 7]}), "/groups/1"),
        (json!({"user": "a", "groups": null}), "/groups"),
        (json!({"user": "a", "session": 1}), "/session"),
        (json!({"user": "a", "expires_in_seconds": 0}), "/expires_in_seconds"),
        (json!({"user": "a", "expires_in_seconds": "60"}), "/expires_in_seconds"),
        (json!({"user": "a", "expires_in_seconds": null}), "/expires_in_seconds"),
        (json!(["a"]), ""),
    ] {
        order(&replica, SELLER, &body.to_string()).await.is_at_fault(pointer);
    }
    let many: Vec<String> = (0..33).map(|n| format!("team:{n}")).collect();
    let many = json!({"user": "a", "groups": many}).to_string();
    order(&replica, SELLER, &many).await.is_at_fault("/groups");
    order(&replica, SELLER, &" ".repeat(70_000)).await.is_problem(413);
    // Each sale is audited, with the key's name and without the ticket.
    let sold: Vec<Value> = replica
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["target"] == "audit" && line["fields"]["action"] == "ticket")
        .collect();
    assert_eq!(sold.len(), 2, "{sold:?}");
    assert_eq!(sold[0]["fields"]["key"], "seller");
    assert_eq!(sold[0]["fields"]["user"], "a:b");
    let metrics = replica.metrics().await;
    let count = |code: &str| {
        let labels = [("key", "seller"), ("route", "/v1/tickets"), ("code", code)];
        metrics.get("api_requests_total", &labels)
    };
    assert!((count("200") - 2.0).abs() < f64::EPSILON && count("422") >= 11.0);
}

#[track_caller]
fn is_away(answer: &Answer) {
    answer.is_problem(503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert!(answer.took < Duration::from_millis(3_500), "503 took {:?}", answer.took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a15_redis_is_away_and_tickets_with_it() {
    let mut redis = RedisServer::start().await;
    let builder = with_sessions(&redis).set("api.keys", keys());
    let replica = spawn(builder).await;
    let bearer = format!("Bearer {}", token("alice"));
    let kept = bought(&replica, &token("alice")).await;
    redis.kill();
    until("the outage is noticed", PATIENCE, async || {
        let answer = buy(&replica, &[("authorization", &bearer)]).await;
        (answer.status == 503).then_some(())
    })
    .await;
    is_away(&buy(&replica, &[("authorization", &bearer), ("origin", PAGE)]).await);
    is_away(&buy(&replica, &[("cookie", "session_id=other"), ("origin", PAGE)]).await);
    is_away(&order(&replica, SELLER, r#"{"user":"a"}"#).await);
    let refusal = with(&replica, &kept).try_connect().await.err().expect("no 101");
    assert_eq!(refusal.status, 503);
    assert!(refusal.retry_after.is_some());
    // A bad credential is bad all the same.
    buy(&replica, &[("authorization", "Bearer x")]).await.is_problem(401);
    redis.restart().await;
    let again = until("tickets are sold again", Duration::from_secs(10), async || {
        let answer = buy(&replica, &[("authorization", &bearer)]).await;
        (answer.status == 200).then(|| ticket(&answer))
    })
    .await;
    until("and taken", Duration::from_secs(10), async || {
        match with(&replica, &again).try_connect().await {
            Ok(ws) => Some(ws),
            Err(refusal) => {
                assert_eq!(refusal.status, 503);
                None
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a15_a_deaf_replica_leaves_the_ticket_good() {
    let redis = RedisServer::start().await;
    // It may use every key and hear nothing.
    redis.client().await.words("ACL SETUSER deaf on >hush ~* +@all resetchannels").await;
    let url = format!("redis://deaf:hush@{}", redis.address());
    let deaf = Builder::production().redis_at(&url).not_ready().spawn().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let ticket = bought(&replica, &token("alice")).await;
    let away = |auth| [("auth", auth), ("result", "away")];
    for _ in 0..3 {
        let refusal = with(&deaf, &ticket).try_connect().await.err().map(|refusal| refusal.status);
        assert_eq!(refusal, Some(503), "a deaf socket");
    }
    deaf.metric("connects_total", &away("ticket"), PATIENCE, |n| n >= 3.0).await;
    let mut ws = with(&replica, &ticket).open().await;
    assert_eq!(ws.welcome["user"], "alice");
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x02_a_replica_that_leaves_sells_none() {
    let replica =
        Builder::production().set("drain.delay", "500ms").set("drain.spread", "30s").spawn().await;
    // Someone is there, so that the drain takes its time.
    let mut tabs: Vec<Ws> = Vec::new();
    for _ in 0..8 {
        tabs.push(Dial::to(&replica).query(&token("alice")).open().await);
    }
    let bearer = format!("Bearer {}", token("alice"));
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    replica.becomes("/readyz", 503, PATIENCE).await;
    let mut served = 0;
    until("no more tickets are sold", PATIENCE, async || {
        let answer = buy(&replica, &[("authorization", &bearer)]).await;
        if answer.status == 200 {
            served += 1;
            return None;
        }
        is_away(&answer);
        Some(())
    })
    .await;
    assert!(served > 0, "while the router still sends, everything goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o01_tickets_are_never_in_the_logs() {
    let redis = RedisServer::start().await;
    for builder in [Builder::production(), Builder::development()] {
        let builder = builder.redis(&redis).set("auth.origins", PAGE).set("api.keys", keys());
        let replica = spawn(builder.set("log.level", "trace")).await;
        set(&redis, "planted-7f3a9c", &json!({"user_id": "alice"})).await;
        let jwt = token("alice");
        let mut secrets = vec!["planted-7f3a9c".to_owned(), SELLER.to_owned(), jwt.clone()];
        let mut bodies = String::new();
        let session = [("cookie", "session_id=planted-7f3a9c"), ("origin", PAGE)];
        let sold = [
            bought(&replica, &jwt).await,
            ticket(&buy(&replica, &session).await),
            ticket(&order(&replica, SELLER, r#"{"user":"a","session":"planted-7f3a9c"}"#).await),
            ticket(&ask(&replica, "POST", &format!("/ws/tickets?token={jwt}"), &[]).await),
        ];
        for ticket in &sold {
            with(&replica, ticket).open().await;
            with(&replica, ticket).is_refused("used").await;
        }
        secrets.extend(sold.iter().cloned());
        for path in [
            format!("/ws/tickets/{}", sold[0]),
            format!("/ws/tickets?ticket={}", sold[0]),
            format!("/ws/tickets?token={}", sold[0]),
            format!("/nope?ticket={}", sold[0]),
        ] {
            for method in ["POST", "GET", "OPTIONS"] {
                bodies += &ask(&replica, method, &path, &session).await.text;
            }
        }
        let bad = format!(r#"{{"user":"","session":"planted-7f3a9c","x":"{}"}}"#, sold[0]);
        bodies += &order(&replica, SELLER, &bad).await.text;
        bodies += &order(&replica, SELLER, &bad[..bad.len() - 1]).await.text;
        cookie(&replica, &sold[0]).is_refused("a ticket as a cookie").await;
        bodies += &replica.get("/metrics").await.text;
        replica.process.signal(nix::sys::signal::Signal::SIGTERM);
        replica.process.end(PATIENCE).await;
        let log = replica.log();
        assert!(log.contains("TRACE"), "nothing at trace level");
        for secret in &secrets {
            for text in [&log, &bodies] {
                assert!(!text.contains(secret.as_str()), "{secret}: {}", around(text, secret));
            }
        }
    }
}

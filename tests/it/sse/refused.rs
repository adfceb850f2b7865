//! E07, E08, A18: who gets no stream, and how a browser is told. What should be tried again comes
//! as a stream that ends, because an `EventSource` never comes back from anything else.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Duration;

use crate::{
    sessions::{self, PAGE, set, with_sessions},
    support::{
        PATIENCE,
        app::{Builder, Replica},
        client::{Dial, escaped},
        http::{Reply, exchange},
        jwt::{Jwt, SECRET, now, token},
        redis::RedisServer,
        sse::{Sse, SseEnd},
        tab::quick,
        until,
    },
};

fn bare(replica: &Replica) -> Dial {
    Dial::to(replica).sse()
}

/// A problem of this status, whole, and of no use to a cache.
#[track_caller]
fn is_problem(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    let kind = reply.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/problem+json"), "{reply:?}");
    let problem = reply.json();
    let urn = problem["type"].as_str().unwrap_or_default();
    assert!(urn.starts_with("urn:belfry:problem:"), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
}

/// No stream but this problem.
async fn refusal(dial: &Dial, status: u16, what: &str) -> Reply {
    match Sse::try_connect(dial).await {
        Ok(mut sse) => panic!("{what}: a stream: {:?}", sse.next(PATIENCE).await),
        Err(reply) => {
            println!("{what}: {} {}", reply.status, reply.body);
            is_problem(&reply, status);
            reply
        }
    }
}

/// `200 text/event-stream` with `retry:`, one goodbye that asks to come back, and the end.
async fn come_back_later(dial: &Dial) -> SseEnd {
    let mut sse = Sse::connect(dial).await;
    let end = sse.end(PATIENCE).await;
    is_come_back_later(&sse, &end);
    end
}

#[track_caller]
fn is_come_back_later(sse: &Sse, end: &SseEnd) {
    assert!(end.whole, "{end:?}");
    assert!(end.texts.is_empty(), "more than a goodbye: {end:?}");
    let goodbye = end.goodbye.as_ref().unwrap_or_else(|| panic!("no goodbye: {end:?}"));
    assert!(goodbye["retry_after_ms"].as_u64().is_some_and(|wait| wait >= 100), "{goodbye}");
    assert!(sse.retry().is_some_and(|wait| wait >= 100), "{:?}", sse.retry());
    let body = String::from_utf8(sse.body()).expect("UTF-8");
    // An empty id would take the browser's position away.
    assert!(!body.lines().any(|line| line.trim_end() == "id:" || line == "id"), "{body:?}");
}

/// Waits until newcomers are sent away; how.
async fn sent_away(dial: &Dial, within: Duration) -> SseEnd {
    until("newcomers are sent away", within, async || {
        let mut sse = Sse::connect(dial).await;
        let (_, first) = sse.message(PATIENCE).await;
        if first.json()["type"] == "belfry.welcome" {
            return None;
        }
        drop(sse);
        Some(come_back_later(dial).await)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_a_bad_credential_is_a_401_that_ends() {
    for reject in ["close", "http"] {
        let replica = Builder::production().set("auth.reject", reject).spawn().await;
        let none = refusal(&bare(&replica), 401, "none").await;
        assert!(!none.body.contains("eyJ"), "{none:?}");
        for (what, dial) in [
            ("words", bare(&replica).query("let-me-in")),
            ("bearer", bare(&replica).bearer("let-me-in")),
            ("empty", bare(&replica).query("")),
            ("over", bare(&replica).query(&Jwt::of("alice").expires_in(-600).sign())),
        ] {
            let reply = refusal(&dial, 401, what).await;
            let wait = reply.header("retry-after");
            assert_eq!(wait, None, "logging in again is not a matter of time: {reply:?}");
        }
        let refused = [("transport", "sse"), ("result", "unauthorized")];
        replica.metric("connects_total", &refused, PATIENCE, |count| count > 4.5).await;
        Sse::open(&bare(&replica).query(&token("alice"))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_a_foreign_origin_is_a_403() {
    let replica = Builder::production().set("auth.origins", PAGE).spawn().await;
    let dial = || bare(&replica).query(&token("alice"));
    for origin in
        ["https://evil.example", "https://app.example.evil.com", "http://app.example", "null", "x"]
    {
        refusal(&dial().origin(origin), 403, origin).await;
    }
    for dial in [dial().origin(PAGE), dial()] {
        Sse::open(&dial).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_full() {
    let replica = Builder::production().set("limits.connections", "2").spawn().await;
    let dial = bare(&replica).query(&token("alice"));
    let one = Sse::open(&dial).await;
    let two = Dial::to(&replica).query(&token("bob")).open().await;
    for _ in 0..3 {
        let end = come_back_later(&dial).await;
        assert_eq!((end.code(), end.reason()), (1013, "overloaded"), "{end:?}");
    }
    // A place is free again, also of those who were sent away.
    drop((one, two));
    until("there is room", PATIENCE, async || {
        let mut sse = Sse::connect(&dial).await;
        (sse.message(PATIENCE).await.1.json()["type"] == "belfry.welcome").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_too_many_from_one_address() {
    let replica = Builder::production().set("limits.connections_per_address", "2").spawn().await;
    let dial = bare(&replica).query(&token("alice"));
    let _open = (Sse::open(&dial).await, Sse::open(&dial).await);
    let end = come_back_later(&dial).await;
    assert!([1013, 4429].contains(&end.code()), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_too_many_of_one_user() {
    let replica = Builder::production()
        .set("limits.connections_per_user", "2")
        .set("limits.user_policy", "refuse")
        .spawn()
        .await;
    let dial = bare(&replica).query(&token("alice"));
    let _open = (Sse::open(&dial).await, Dial::to(&replica).query(&token("alice")).open().await);
    let end = come_back_later(&dial).await;
    assert_eq!((end.code(), end.reason()), (4429, "too_many"), "{end:?}");
    let wait = end.goodbye.as_ref().and_then(|goodbye| goodbye["retry_after_ms"].as_u64());
    assert!(wait.is_some_and(|ms| (30_000..=90_000).contains(&ms)), "{end:?}");
    Sse::open(&bare(&replica).query(&token("bob"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_draining() {
    let replica =
        Builder::production().set("drain.delay", "1s").set("drain.spread", "20s").spawn().await;
    let dial = |user: &str| bare(&replica).query(&token(user));
    let mut open = Vec::new();
    for n in 0..20 {
        open.push(Sse::open(&dial(&format!("user-{n}"))).await);
    }
    replica.process.signal(Signal::SIGTERM);
    replica.becomes("/readyz", 503, PATIENCE).await;
    // The router needs its time: newcomers are taken.
    Sse::open(&dial("late")).await;
    let end = sent_away(&dial("later"), Duration::from_secs(10)).await;
    assert!([1012, 1013].contains(&end.code()), "{end:?}");
    // Those who are there stay until their moment, and a bad credential is still one.
    drop(open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e07_redis_is_away() {
    let mut redis = RedisServer::start().await;
    set(&redis, "good", &json!({"user_id": "alice"})).await;
    let replica = sessions::spawn(quick(with_sessions(&redis), &redis)).await;
    let cookie = bare(&replica).header("Cookie", "session_id=good").origin(PAGE);
    let by_token = bare(&replica).query(&token("alice"));
    for dial in [&cookie, &by_token] {
        Sse::open(dial).await;
    }
    redis.kill();
    for dial in [&by_token, &cookie] {
        // Not 401: the page would log its user out.
        let end = sent_away(dial, Duration::from_secs(10)).await;
        assert!([1011, 1012, 1013].contains(&end.code()), "{end:?}");
    }
    redis.restart().await;
    set(&redis, "good", &json!({"user_id": "alice"})).await;
    for dial in [&cookie, &by_token] {
        until("they are let in again", PATIENCE, async || {
            let mut sse = Sse::connect(dial).await;
            (sse.message(PATIENCE).await.1.json()["type"] == "belfry.welcome").then_some(())
        })
        .await;
    }
}

/// CORS with credentials for our pages, and for nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e08_cors() {
    let redis = RedisServer::start().await;
    set(&redis, "good", &json!({"user_id": "alice"})).await;
    let builder = with_sessions(&redis).set("auth.origins", format!("{PAGE},https://*.example"));
    let replica = sessions::spawn(builder).await;
    let page = |dial: Dial, origin: Option<&str>| match origin {
        Some(origin) => dial.origin(origin),
        None => dial,
    };
    let own = format!("http://{}", replica.public);
    for (origin, allowed) in [
        (Some(PAGE), true),
        (Some("https://other.example"), true),
        (Some(own.as_str()), true),
        (Some("https://evil.com"), false),
        (Some("https://evilapp.example.com"), false),
        (Some("http://app.example"), false),
        (Some("null"), false),
        (Some("*"), false),
        (None, false),
    ] {
        let cookie = bare(&replica).header("Cookie", "session_id=good");
        let bad = bare(&replica).header("Cookie", "session_id=bad");
        let heads = [
            match Sse::try_connect(&page(cookie, origin)).await {
                Ok(sse) => sse.head.clone(),
                Err(reply) => reply,
            },
            // A page can read that it has to log in.
            Sse::try_connect(&page(bad, origin)).await.err().expect("no such session"),
        ];
        for head in &heads {
            let shown = head.header("access-control-allow-origin");
            assert_eq!(shown, origin.filter(|_| allowed), "{origin:?}: {head:?}");
            let credentials = head.header("access-control-allow-credentials");
            assert_eq!(credentials, allowed.then_some("true"), "{origin:?}: {head:?}");
            let varies = head.headers.iter().any(|(name, value)| {
                name == "vary" && value.to_ascii_lowercase().contains("origin")
            });
            assert!(varies, "{origin:?}: {head:?}");
        }
        let statuses = [heads[0].status, heads[1].status];
        match (origin, allowed) {
            (_, true) => assert_eq!(statuses, [200, 401], "{origin:?}"),
            (Some(_), false) => assert_eq!(statuses, [403, 403], "{origin:?}"),
            // A cookie without an Origin is nobody's page.
            (None, _) => assert!(matches!(statuses, [401 | 403, 401 | 403]), "{statuses:?}"),
        }
    }
    // Being sent away is readable as well.
    let full = Builder::production()
        .set("auth.origins", PAGE)
        .set("limits.connections", "1")
        .spawn()
        .await;
    let dial = bare(&full).query(&token("alice")).origin(PAGE);
    let _open = Sse::open(&dial).await;
    let sse = Sse::connect(&dial).await;
    assert_eq!(sse.head.header("access-control-allow-origin"), Some(PAGE), "{:?}", sse.head);
    // A page that reads the stream by fetch asks first: the headers of its own are allowed.
    for (origin, allowed) in [(PAGE, true), ("https://evil.com", false)] {
        let request = format!(
            "OPTIONS /sse/notifications HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: authorization, last-event-id\r\n\r\n",
            replica.public
        );
        let reply = exchange(replica.public, request.as_bytes()).await;
        let shown = reply.header("access-control-allow-origin");
        assert_eq!(shown, allowed.then_some(origin), "{}", reply.text);
        assert_eq!(reply.status, if allowed { 204 } else { 403 }, "{}", reply.text);
        if allowed {
            let headers = reply.header("access-control-allow-headers").unwrap_or_default();
            let headers = headers.to_ascii_lowercase();
            assert!(headers.contains("authorization"), "{}", reply.text);
            assert!(headers.contains("last-event-id"), "{}", reply.text);
            let methods = reply.header("access-control-allow-methods").unwrap_or_default();
            assert!(methods.contains("GET"), "{}", reply.text);
        }
    }
}

/// Tokens that are refused on WebSocket, whatever is wrong with them.
fn bad_tokens() -> Vec<(&'static str, String)> {
    let good = || Jwt::of("alice");
    let signed = good().sign();
    let (text, _) = signed.rsplit_once('.').expect("a signature");
    vec![
        ("nbf a day ahead", good().claim("nbf", now() + 86_400).sign()),
        ("nbf a text", good().claim("nbf", "soon").sign()),
        ("iat a day ahead", good().claim("iat", now() + 86_400).sign()),
        ("alg none", format!("{}.", good().header("alg", "none").unsigned())),
        ("alg none with our MAC", good().header("alg", "none").sign()),
        ("HS384", good().header("alg", "HS384").sign_384()),
        ("RS256 over an HMAC", good().header("alg", "RS256").sign()),
        ("an empty key", good().secret("").sign()),
        ("a prefix of the key", good().secret(&SECRET[..32]).sign()),
        ("crit", good().header("crit", json!(["exp"])).sign()),
        ("no signature", format!("{text}.")),
        ("four parts", format!("{signed}.x")),
        ("only dots", "..".into()),
        ("no exp", good().without("exp").sign()),
        ("exp a text", good().claim("exp", "4102444800").sign()),
        ("exp null", good().claim("exp", Value::Null).sign()),
        ("no sub", good().without("sub").sign()),
        ("sub empty", good().claim("sub", "").sign()),
        ("sub of 257 bytes", Jwt::of(&"x".repeat(257)).sign()),
        ("sub with a line break", Jwt::of("a\nid: b").sign()),
        (
            "33 groups",
            good()
                .claim(
                    "groups",
                    json!(
                        vec!["g"; 33]
                            .iter()
                            .enumerate()
                            .map(|(n, g)| format!("{g}{n}"))
                            .collect::<Vec<_>>()
                    ),
                )
                .sign(),
        ),
        ("90 s past", good().expires_in(-90).sign()),
        ("31 s past", good().expires_in(-32).sign()),
        ("larger than a token may be", Jwt::sized("alice", 12 * 1024 + 1)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a18_a_bad_token_is_refused_alike() {
    let replica = Replica::start().await;
    for (what, jwt) in bad_tokens() {
        for (place, dial) in
            [("query", Dial::to(&replica).query(&jwt)), ("bearer", Dial::to(&replica).bearer(&jwt))]
        {
            dial.is_refused(&format!("{what}, {place}")).await;
            let reply = Sse::try_connect(&dial.sse()).await.err();
            let reply = reply.unwrap_or_else(|| panic!("{what}, {place}: a stream"));
            // A request line or head that is too long may be refused before it is understood.
            if jwt.len() > 8_000 && matches!(reply.status, 414 | 431) {
                continue;
            }
            is_problem(&reply, 401);
            assert!(!reply.body.contains(&jwt), "{what}, {place}: {reply:?}");
        }
    }
    for good in [
        Jwt::of("alice").claim("nbf", now() + 10),
        Jwt::of("alice").expires_in(-5),
        Jwt::of("a:b*c?d[e]f/g{h} i"),
    ] {
        let jwt = good.sign();
        for dial in [Dial::to(&replica).query(&jwt), Dial::to(&replica).bearer(&jwt)] {
            let (ws, sse) = (dial.open().await, Sse::open(&dial.clone().sse()).await);
            assert_eq!(ws.welcome["user"], sse.welcome["user"]);
        }
    }
    Sse::open(&Dial::to(&replica).bearer(&Jwt::sized("alice", 4_500)).sse()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a18_cookies_and_tickets_alike() {
    let redis = RedisServer::start().await;
    set(&redis, "good", &json!({"user_id": "alice", "groups": ["staff"]})).await;
    set(&redis, "nobody", &json!({"csrf": "x"})).await;
    let replica = sessions::spawn(with_sessions(&redis)).await;
    let dial = |id: &str| bare(&replica).header("Cookie", format!("a=b; session_id={id}"));
    let sse = Sse::open(&dial("good").origin(PAGE)).await;
    assert_eq!(
        (&sse.welcome["user"], &sse.welcome["groups"]),
        (&json!("alice"), &json!(["staff"]))
    );
    for (what, dial) in [
        ("no such session", dial("bad").origin(PAGE)),
        ("a session without a user", dial("nobody").origin(PAGE)),
        // A credential that is named is the one that counts.
        ("a bad token beside a good cookie", dial("good").origin(PAGE).query("x")),
        ("a bad bearer beside a good cookie", dial("good").origin(PAGE).bearer("x")),
        ("no cookie", bare(&replica).origin(PAGE)),
    ] {
        refusal(&dial, 401, what).await;
    }
    let reply = Sse::try_connect(&dial("good")).await.err().expect("no Origin");
    assert!(matches!(reply.status, 401 | 403), "{reply:?}");
    let answer = replica
        .http
        .post(format!("http://{}/ws/tickets", replica.public))
        .header("authorization", format!("Bearer {}", token("bob")));
    let answer: Value = answer.send().await.expect("an answer").json().await.expect("JSON");
    let ticket = escaped(answer["ticket"].as_str().expect("a ticket"));
    let mut by_ticket = bare(&replica);
    by_ticket.path = format!("{}?ticket={ticket}", by_ticket.path);
    assert_eq!(Sse::open(&by_ticket).await.welcome["user"], "bob");
    refusal(&by_ticket, 401, "a ticket that was used").await;
    let mut other = Dial::to(&replica);
    other.path = format!("{}?ticket={ticket}", other.path);
    other.is_refused("a ticket that was used, on WebSocket").await;
}

//! Session cookies: whose session it is, from whose pages, and for how long.

use tokio::{
    io::AsyncReadExt,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, End, Seen, Ws},
    jwt::{Jwt, token},
    raw::Raw,
    redis::{RedisServer, Resp},
    until,
};

/// A page that may connect.
pub const PAGE: &str = "https://app.example";

/// A replica that accepts cookies from [`PAGE`].
pub fn with_sessions(redis: &RedisServer) -> Builder {
    Builder::production().redis(redis).set("auth.origins", PAGE)
}

/// Connects with a session cookie, from our page.
pub fn cookie(replica: &Replica, id: &str) -> Dial {
    without_origin(replica, id).origin(PAGE)
}

fn without_origin(replica: &Replica, id: &str) -> Dial {
    Dial::to(replica).header("Cookie", format!("theme=dark; session_id={id}; lang=en"))
}

/// Starts it, and waits until it looks sessions up.
pub async fn spawn(builder: Builder) -> Replica {
    let replica = builder.spawn().await;
    until("sessions are looked up", PATIENCE, async || {
        match cookie(&replica, "nobody").try_connect().await {
            Ok(_) => Some(()),
            Err(refusal) => (refusal.status != 503).then_some(()),
        }
    })
    .await;
    replica
}

pub async fn set(redis: &RedisServer, id: &str, session: &Value) {
    let (key, text) = (format!("session:{id}"), session.to_string());
    let mut client = redis.client().await;
    let answer = client.command(&[b"SET", key.as_bytes(), text.as_bytes()]).await;
    assert_eq!(answer, Resp::Simple("OK".into()));
}

async fn hset(redis: &RedisServer, id: &str, fields: &[(&str, &str)]) {
    let key = format!("session:{id}");
    let mut args: Vec<&[u8]> = vec![b"HSET", key.as_bytes()];
    for (name, value) in fields {
        args.extend([name.as_bytes(), value.as_bytes()]);
    }
    assert!(redis.client().await.command(&args).await.int() > 0);
}

/// Runs words as one command; its key is `session:<id>`.
async fn run(redis: &RedisServer, command: &str) {
    redis.client().await.words(command).await;
}

#[track_caller]
fn is_session_ended(end: &End) {
    assert_eq!((end.code, end.reason.as_str()), (4401, "session_ended"), "{end:?}");
    assert!(end.goodbye.is_some(), "{end:?}");
}

async fn refused_status(dial: &Dial) -> (u16, Option<String>) {
    match dial.try_connect().await {
        Ok(_) => (101, None),
        Err(refusal) => (refusal.status, refusal.retry_after),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a20_sessions_as_strings_and_as_hashes() {
    let redis = RedisServer::start().await;
    let replica = spawn(with_sessions(&redis)).await;
    set(&redis, "json", &json!({"user_id": "alice", "groups": ["staff", "b:c"]})).await;
    set(&redis, "number", &json!({"user_id": 42, "csrf": "x", "groups": null})).await;
    set(&redis, "colon:id/+=", &json!({"user_id": "tenant:42"})).await;
    hset(&redis, "hash", &[("user_id", "bob"), ("groups", r#"["staff"]"#), ("x", "y")]).await;
    hset(&redis, "hash-number", &[("user_id", "7"), ("groups", "a, b")]).await;
    hset(&redis, "hash-small", &[("user_id", "carol")]).await;
    // Twice, and in turn, so that both are found whatever was found before.
    for _ in 0..2 {
        for (id, user, groups) in [
            ("json", "alice", json!(["staff", "b:c"])),
            ("hash", "bob", json!(["staff"])),
            ("number", "42", json!([])),
            ("hash-number", "7", json!(["a", "b"])),
            ("colon:id/+=", "tenant:42", json!([])),
            ("hash-small", "carol", json!([])),
            ("\"json\"", "alice", json!(["staff", "b:c"])),
        ] {
            let ws = cookie(&replica, id).open().await;
            assert_eq!(
                (&ws.welcome["user"], &ws.welcome["groups"]),
                (&json!(user), &groups),
                "{id}"
            );
        }
    }
    let mut ws = cookie(&replica, "hash").open().await;
    replica.to_group("staff", "for-staff").await;
    replica.to_user("bob", "for-bob").await;
    assert_eq!(ws.markers_before("for-bob").await, ["for-staff"]);

    set(&redis, "anonymous", &json!({"csrf": "x"})).await;
    set(&redis, "null", &json!({"user_id": null})).await;
    set(&redis, "empty", &json!({"user_id": ""})).await;
    set(&redis, "float", &json!({"user_id": 1.5})).await;
    set(&redis, "list", &json!(["alice"])).await;
    set(&redis, "groups", &json!({"user_id": "a", "groups": "staff"})).await;
    set(&redis, "control", &json!({"user_id": "a\n"})).await;
    let many: Vec<String> = (0..33).map(|n| format!("g{n}")).collect();
    set(&redis, "many", &json!({"user_id": "a", "groups": many})).await;
    run(&redis, "SET session:text alice").await;
    run(&redis, "RPUSH session:rpush alice").await;
    run(&redis, "SADD session:sadd alice").await;
    hset(&redis, "other-fields", &[("name", "alice")]).await;
    // What is none of the sessions' cannot be reached by a cookie.
    run(&redis, "SET other {\"user_id\":\"mallory\"}").await;
    for id in [
        "anonymous",
        "null",
        "empty",
        "float",
        "list",
        "groups",
        "control",
        "many",
        "text",
        "rpush",
        "sadd",
        "other-fields",
        "gone",
        "../other",
        "*",
        "json*",
        "JSON",
        "",
        "\"\"",
        &"x".repeat(513),
        &"x".repeat(4_500),
        &"x".repeat(16_000),
        &"x".repeat(40_000),
    ] {
        cookie(&replica, id).is_refused(id).await;
    }
    // The operator is told once, and not what is in it.
    let log = replica.log();
    assert_eq!(log.matches("compare it with auth.session").count(), 1, "{log}");
    let metrics = replica.metrics().await;
    let accepted = [("auth", "cookie"), ("result", "accepted")];
    assert!(metrics.get("connects_total", &accepted) >= 15.0);
    assert!(
        metrics.get("connects_total", &[("auth", "cookie"), ("result", "unauthorized")]) >= 20.0
    );
    assert!(metrics.get("auth_duration_seconds_count", &[("method", "cookie")]) >= 35.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a20_names_and_places_are_configurable() {
    let redis = RedisServer::start().await;
    let builder = |format: &str| {
        with_sessions(&redis)
            .set("auth.session.cookie", "__Host-sid")
            .set("auth.session.key_prefix", "bff:{s}:")
            .set("auth.session.format", format)
            .set("auth.session.user_field", "/data/user/id")
            .set("auth.session.groups_field", "/data/roles")
            .set("auth.session.issued_field", "")
    };
    let data = json!({"user": {"id": 7}, "roles": ["staff"]});
    let mut client = redis.client().await;
    let text = json!({"data": data, "issued_at": "never"}).to_string();
    client.command(&[b"SET", b"bff:{s}:string", text.as_bytes()]).await;
    client.command(&[b"HSET", b"bff:{s}:hash", b"data", data.to_string().as_bytes()]).await;
    for (format, good) in
        [("auto", &["string", "hash"][..]), ("json", &["string"]), ("hash", &["hash"])]
    {
        let replica = spawn(builder(format)).await;
        let dial =
            |id: &str| Dial::to(&replica).header("Cookie", format!("__Host-sid={id}")).origin(PAGE);
        until("sessions are looked up", PATIENCE, async || {
            (refused_status(&dial("nobody")).await.0 != 503).then_some(())
        })
        .await;
        for id in ["string", "hash"] {
            if good.contains(&id) {
                let ws = dial(id).open().await;
                assert_eq!(ws.welcome["user"], "7", "{format} {id}");
                assert_eq!(ws.welcome["groups"], json!(["staff"]), "{format} {id}");
            } else {
                dial(id).is_refused(&format!("{format} {id}")).await;
            }
        }
        // Another name is no credential.
        cookie(&replica, "string").is_refused("the default name").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a20_sessions_in_a_redis_of_their_own() {
    let (ours, theirs) = (RedisServer::start().await, RedisServer::start().await);
    // Read only: a user who may look at sessions and do nothing else.
    run(&theirs, "ACL SETUSER belfry on >hush ~session:* +get +hmget +ping +select").await;
    let url = format!("redis://belfry:hush@{}/3", theirs.address());
    for builder in [with_sessions(&ours), Builder::production().set("auth.origins", PAGE)] {
        let replica = spawn(builder.set("auth.session.redis_url", &url)).await;
        let mut client = theirs.client().await;
        client.words("SELECT 3").await;
        client.command(&[b"SET", b"session:a", br#"{"user_id":"alice"}"#]).await;
        client.command(&[b"HSET", b"session:b", b"user_id", b"bob"]).await;
        set(&ours, "c", &json!({"user_id": "carol"})).await;
        for (id, user) in [("a", "alice"), ("b", "bob")] {
            assert_eq!(cookie(&replica, id).open().await.welcome["user"], user);
        }
        cookie(&replica, "c").is_refused("a session in the wrong Redis").await;
        assert!(!replica.log().contains("hush"), "{}", replica.log());
        until("the operator is told what is not allowed", PATIENCE, async || {
            replica.log().contains("Redis does not let us hear").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a20_without_a_redis_a_cookie_is_no_credential() {
    let replica = Builder::production().set("auth.origins", PAGE).spawn().await;
    cookie(&replica, "x").is_refused("a cookie without sessions").await;
    cookie(&replica, "x").query(&token("alice")).open().await;
    let bare = Builder::production().set("auth.methods", "cookie");
    let process = crate::support::app::Process::spawn(bare.command());
    assert_eq!(process.end(PATIENCE).await.code(), Some(2));
    let output = process.output();
    assert!(
        output.contains("auth.methods") && output.contains("auth.session.redis_url"),
        "{output}"
    );
}

/// Looks every half a second, give or take a quarter.
fn looks_often(redis: &RedisServer) -> Builder {
    with_sessions(redis).set("auth.session.recheck", "500ms")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a_session_that_ends_ends_its_connections() {
    let redis = RedisServer::start().await;
    let replica = spawn(looks_often(&redis)).await;
    set(&redis, "s", &json!({"user_id": "alice"})).await;
    set(&redis, "other", &json!({"user_id": "alice"})).await;
    let mut ws = cookie(&replica, "s").open().await;
    let mut stays = cookie(&replica, "other").open().await;
    replica.to_user("alice", "before").await;
    ws.event("before").await;
    let deleted = Instant::now();
    run(&redis, "DEL session:s").await;
    let end = ws.end(PATIENCE).await;
    is_session_ended(&end);
    assert!(end.at - deleted < Duration::from_secs(2), "after {:?}", end.at - deleted);
    replica.to_user("alice", "after").await;
    stays.event("after").await;
    assert!(ws.drain().iter().all(|seen| !matches!(seen, Seen::Text(_))));
    // The same id lets nobody in any more, also not out of a memory of ours.
    cookie(&replica, "s").is_refused("an ended session").await;
    // A login without rotation: the key is there, and another's.
    set(&redis, "other", &json!({"user_id": "bob"})).await;
    is_session_ended(&stays.end(PATIENCE).await);
    // A logout that leaves an anonymous session.
    set(&redis, "t", &json!({"user_id": "alice"})).await;
    let mut ws = cookie(&replica, "t").open().await;
    set(&redis, "t", &json!({"csrf": "x"})).await;
    is_session_ended(&ws.end(PATIENCE).await);
    replica.metric("closes_total", &[("cause", "session_ended")], PATIENCE, |n| n >= 3.0).await;
    // An id that was rotated at a login: the page comes back with the new cookie.
    set(&redis, "old", &json!({"user_id": "alice"})).await;
    let mut ws = cookie(&replica, "old").open().await;
    run(&redis, "RENAME session:old session:new").await;
    is_session_ended(&ws.end(PATIENCE).await);
    assert_eq!(cookie(&replica, "new").open().await.welcome["user"], "alice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a_session_that_is_renewed_goes_on() {
    let redis = RedisServer::start().await;
    let replica = spawn(looks_often(&redis)).await;
    set(&redis, "s", &json!({"user_id": "alice", "groups": ["old", "both"]})).await;
    run(&redis, "PEXPIRE session:s 2500").await;
    let mut ws = cookie(&replica, "s").open().await;
    // Renewed past the end that it had when it was seen first.
    run(&redis, "PERSIST session:s").await;
    let mut client = redis.client().await;
    let mut looks = 0;
    while looks < 8 {
        let before = gets(&redis);
        until("the session is looked at again", PATIENCE, async || {
            (gets(&redis) > before).then_some(())
        })
        .await;
        looks += 1;
    }
    assert_eq!(client.words("EXISTS session:s").await.int(), 1);
    ws.is_alive().await;
    // Its groups are those of now.
    set(&redis, "s", &json!({"user_id": "alice", "groups": ["new", "both"]})).await;
    let mut run = 0;
    until("the new group is adopted", PATIENCE, async || {
        run += 1;
        replica.to_group("new", &format!("new-{run}")).await;
        replica.to_user("alice", &format!("mark-{run}")).await;
        let seen = ws.markers_before(&format!("mark-{run}")).await;
        (!seen.is_empty()).then_some(())
    })
    .await;
    replica.to_group("old", "for-old").await;
    replica.to_group("both", "for-both").await;
    replica.to_group("new", "last").await;
    assert_eq!(ws.markers_before("last").await, ["for-both"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a_cookie_can_be_replaced_by_a_token_in_place() {
    let redis = RedisServer::start().await;
    let replica = spawn(looks_often(&redis).set("auth.jwt.leeway", "1s")).await;
    set(&redis, "s", &json!({"user_id": "alice", "groups": ["old"]})).await;
    let mut ws = cookie(&replica, "s").open().await;
    let renew = |jwt: Jwt| json!({"type": "belfry.token", "token": jwt.sign()}).to_string();
    ws.send(renew(Jwt::of("bob")));
    assert_eq!(ws.word("belfry.renewal_failed", PATIENCE).await["reason"], "other_user");
    let exp = crate::support::jwt::now() + 4;
    ws.send(renew(Jwt::of("alice").groups(&["new"]).claim("exp", exp)));
    assert_eq!(ws.word("belfry.renewed", PATIENCE).await["groups"], json!(["new"]));
    // It stands on the token now: the session may go, and the token's end is its own.
    run(&redis, "DEL session:s").await;
    let end = ws.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (4401, "token_expired"), "{end:?}");
    assert!(crate::support::jwt::now() >= exp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_failed_renewals_do_not_put_off_the_next_look() {
    let redis = RedisServer::start().await;
    let replica = spawn(with_sessions(&redis).set("auth.session.recheck", "2s")).await;
    set(&redis, "s", &json!({"user_id": "alice"})).await;
    let mut ws = cookie(&replica, "s").open().await;
    run(&redis, "DEL session:s").await;
    let bad = json!({"type": "belfry.token", "token": "none"}).to_string();
    let begun = Instant::now();
    let end = loop {
        assert!(begun.elapsed() < Duration::from_secs(8), "the session is not looked up");
        ws.send(bad.as_str());
        // Answers come until the end does.
        match ws.next(Duration::from_secs(1)).await.1 {
            Seen::Text(text) if text.contains("belfry.renewal_failed") => {}
            Seen::Text(text) => break text,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(end.contains("belfry.goodbye") && end.contains("session_ended"), "{end}");
    assert_eq!(ws.end(PATIENCE).await.code, 4401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_where_tokens_are_not_accepted_they_renew_nothing() {
    let redis = RedisServer::start().await;
    let renewal = json!({"type": "belfry.token", "token": token("alice")}).to_string();
    set(&redis, "s", &json!({"user_id": "alice"})).await;
    let cookies_only = with_sessions(&redis).set("auth.methods", "cookie,ticket");
    let replica = spawn(cookies_only).await;
    let mut ws = cookie(&replica, "s").open().await;
    ws.send(renewal.as_str());
    let failed = ws.word("belfry.renewal_failed", PATIENCE).await;
    assert_eq!(failed["reason"], "not_accepted", "{failed}");
    ws.is_alive().await;
    // Any place that a token may stand in will do.
    let replica = spawn(with_sessions(&redis).set("auth.methods", "cookie,query")).await;
    let mut ws = cookie(&replica, "s").open().await;
    ws.send(renewal.as_str());
    ws.word("belfry.renewed", PATIENCE).await;
}

/// How many `GET` and `HMGET` the server has carried out.
fn gets(redis: &RedisServer) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let calls = |name: &str| -> u64 {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix("calls=")?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    };
    calls("cmdstat_get:") + calls("cmdstat_hmget:")
}

/// Waits until `replicas` hear of keys that go.
async fn hear(redis: &RedisServer, replicas: usize) {
    until("the replicas hear of sessions that end", PATIENCE, async || {
        let list = redis.cli(&["CLIENT", "LIST"]);
        let hearing = list
            .lines()
            .filter(|line| line.contains("name=belfry-session-events") && line.contains("psub=5"));
        (hearing.count() == replicas).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_word_of_an_end_acts_at_once() {
    for flags in ["Kgx", "Egx", "KEA"] {
        let redis = RedisServer::with(&["--notify-keyspace-events", flags]).await;
        let replica = spawn(with_sessions(&redis).set("auth.session.recheck", "1h")).await;
        hear(&redis, 1).await;
        set(&redis, "stays", &json!({"user_id": "alice"})).await;
        let mut stays = cookie(&replica, "stays").open().await;
        for (n, command) in [
            "DEL session:{}",
            "UNLINK session:{}",
            "PEXPIRE session:{} 50",
            "RENAME session:{} x",
            "FLUSH",
        ]
        .iter()
        .enumerate()
        {
            let id = format!("s{n}");
            set(&redis, &id, &json!({"user_id": "alice"})).await;
            let mut ws = cookie(&replica, &id).open().await;
            if *command == "FLUSH" {
                // A key that is gone and there again before we look is the same session.
                let key = format!("session:{id}");
                let session = json!({"user_id": "alice"}).to_string();
                let mut client = redis.client().await;
                client.words("MULTI").await;
                client.command(&[b"DEL", key.as_bytes()]).await;
                client.command(&[b"SET", key.as_bytes(), session.as_bytes()]).await;
                client.words("EXEC").await;
                replica.to_user("alice", "kept").await;
                ws.event("kept").await;
                ws.is_alive().await;
                continue;
            }
            let begun = Instant::now();
            run(&redis, &command.replace("{}", &id)).await;
            let end = ws.end(PATIENCE).await;
            is_session_ended(&end);
            let took = end.at - begun;
            assert!(took < Duration::from_secs(1), "{flags} {command}: after {took:?}");
            cookie(&replica, &id).is_refused(command).await;
        }
        // Renewals of every kind are no ends.
        run(&redis, "EXPIRE session:stays 100").await;
        set(&redis, "stays", &json!({"user_id": "alice", "seen": 1})).await;
        run(&redis, "PERSIST session:stays").await;
        replica.to_user("alice", "end").await;
        stays.event("end").await;
        stays.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_an_end_closes_all_tabs_on_three_replicas() {
    for (flags, recheck, within) in [("", "1s", 3_000), ("Egx", "1h", 1_000)] {
        let redis = RedisServer::with(&["--notify-keyspace-events", flags]).await;
        let mut replicas = Vec::new();
        for _ in 0..3 {
            let builder = with_sessions(&redis).set("auth.session.recheck", recheck);
            replicas.push(spawn(builder).await);
        }
        hear(&redis, 3).await;
        set(&redis, "s", &json!({"user_id": "alice"})).await;
        set(&redis, "t", &json!({"user_id": "alice"})).await;
        let (mut tabs, mut others): (Vec<Ws>, Vec<Ws>) = (Vec::new(), Vec::new());
        for replica in &replicas {
            for _ in 0..3 {
                tabs.push(cookie(replica, "s").open().await);
            }
            others.push(cookie(replica, "t").open().await);
        }
        let deleted = Instant::now();
        run(&redis, "DEL session:s").await;
        for tab in &mut tabs {
            let end = tab.end(PATIENCE).await;
            is_session_ended(&end);
            let took = end.at - deleted;
            assert!(took < Duration::from_millis(within), "{flags}: after {took:?}");
        }
        for other in &mut others {
            other.is_alive().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a11_a_cookie_among_other_credentials() {
    let redis = RedisServer::start().await;
    let replica = spawn(with_sessions(&redis)).await;
    set(&redis, "b", &json!({"user_id": "b"})).await;
    let a = token("a");
    let bad = Jwt::of("a").secret("x").sign();
    let b = || cookie(&replica, "b");
    for (what, dial) in [
        ("query before the cookie", b().query(&a)),
        ("bearer before the cookie", b().bearer(&a)),
        ("subprotocol before the cookie", b().subprotocol(&a)),
        ("a bad cookie after it", cookie(&replica, "gone").query(&a)),
        ("two cookies after it", b().header("Cookie", "session_id=c").query(&a)),
        ("a cookie without an Origin after it", without_origin(&replica, "b").bearer(&a)),
    ] {
        let mut ws = dial.open().await;
        assert_eq!(ws.welcome["user"], "a", "{what}");
        replica.to_user("b", "for-b").await;
        replica.to_user("a", "for-a").await;
        assert!(ws.markers_before("for-a").await.is_empty(), "{what}: events of the other");
    }
    for (what, dial) in [
        ("a bad query is not skipped for the cookie", b().query(&bad)),
        ("a bad bearer is not skipped for the cookie", b().bearer(&bad)),
        ("an empty bearer", b().bearer("")),
        ("a bad subprotocol is not skipped for the cookie", b().subprotocol(&bad)),
        ("two cookies", b().header("Cookie", "session_id=c")),
        ("two cookies in one line", cookie(&replica, "b; session_id=c")),
        ("the same cookie twice", cookie(&replica, "b; session_id=b")),
        ("a bad one first", cookie(&replica, "c; session_id=b")),
        ("an empty one first", cookie(&replica, "; session_id=b")),
    ] {
        dial.is_refused(what).await;
    }
    assert_eq!(b().open().await.welcome["user"], "b");
    let off = with_sessions(&redis).set("auth.methods", "bearer,query").spawn().await;
    cookie(&off, "b").is_refused("cookies are switched off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a15_redis_is_away_during_a_login_with_a_cookie() {
    let mut redis = RedisServer::start().await;
    let (ours, mut theirs) = (RedisServer::start().await, RedisServer::start().await);
    let shared = spawn(looks_often(&redis)).await;
    let apart = spawn(looks_often(&ours).set("auth.session.redis_url", theirs.url())).await;
    set(&redis, "s", &json!({"user_id": "alice"})).await;
    set(&theirs, "s", &json!({"user_id": "alice"})).await;
    let mut open = [cookie(&shared, "s").open().await, cookie(&apart, "s").open().await];
    redis.kill();
    theirs.kill();
    for replica in [&shared, &apart] {
        for id in ["s", "never"] {
            until("a login is refused with 503", PATIENCE, async || {
                let begun = Instant::now();
                let (status, retry) = refused_status(&cookie(replica, id)).await;
                assert!(begun.elapsed() < Duration::from_secs(4), "after {:?}", begun.elapsed());
                // What was seen a moment ago may still let somebody in, and no one is logged out.
                let away = status == 503 && retry.is_some_and(|s| s.parse::<u64>().is_ok());
                away.then_some(())
            })
            .await;
        }
    }
    // Where only the sessions are away, a token is as good as ever.
    Dial::to(&apart).query(&token("bob")).open().await;
    apart
        .metric("connects_total", &[("auth", "cookie"), ("result", "away")], PATIENCE, |n| n >= 2.0)
        .await;
    // Several looks have failed by now, and failed looks end nothing.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for ws in &mut open {
        ws.is_alive().await;
    }
    redis.restart().await;
    theirs.restart().await;
    set(&redis, "t", &json!({"user_id": "bob"})).await;
    set(&theirs, "t", &json!({"user_id": "bob"})).await;
    for replica in [&shared, &apart] {
        until("a login works again", Duration::from_secs(10), async || {
            match cookie(replica, "t").try_connect().await {
                Ok(_) => Some(()),
                Err(refusal) => {
                    assert_eq!(refusal.status, 503);
                    None
                }
            }
        })
        .await;
        assert_eq!(cookie(replica, "t").open().await.welcome["user"], "bob");
    }
    // The servers came back empty: these sessions are gone for good.
    for ws in &mut open {
        is_session_ended(&ws.end(PATIENCE).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a15_a_redis_that_hangs_is_away_too() {
    let (ours, theirs) = (RedisServer::start().await, RedisServer::start().await);
    let replica = spawn(looks_often(&ours).set("auth.session.redis_url", theirs.url())).await;
    set(&theirs, "s", &json!({"user_id": "alice"})).await;
    let mut ws = cookie(&replica, "s").open().await;
    theirs.freeze();
    for id in ["u", "v"] {
        let begun = Instant::now();
        let (status, retry) = refused_status(&cookie(&replica, id)).await;
        assert_eq!(status, 503);
        assert!(retry.is_some());
        assert!(begun.elapsed() < Duration::from_millis(3_500), "after {:?}", begun.elapsed());
    }
    ws.is_alive().await;
    theirs.thaw();
    until("a login works again", Duration::from_secs(10), async || {
        cookie(&replica, "s").try_connect().await.ok().map(|_| ())
    })
    .await;
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_a_cookie_needs_an_origin_from_the_list() {
    let redis = RedisServer::start().await;
    let builder = with_sessions(&redis).set(
        "auth.origins",
        "https://app.example,https://*.wild.example,http://plain.example:3000",
    );
    let replica = spawn(builder).await;
    set(&redis, "s", &json!({"user_id": "alice"})).await;
    let own = format!("http://{}", replica.public);
    let other_port = format!("http://127.0.0.1:{}", replica.public.port() ^ 1);
    let with = |origin: &str| without_origin(&replica, "s").origin(origin);
    for origin in [
        own.as_str(),
        "https://app.example",
        "https://a.wild.example",
        "https://a.b.wild.example",
        "http://plain.example:3000",
    ] {
        assert_eq!(with(origin).open().await.welcome["user"], "alice", "{origin}");
    }
    let own_host = without_origin(&replica, "s").host("gw.example").origin("https://gw.example");
    assert_eq!(own_host.open().await.welcome["user"], "alice");
    for origin in [
        "https://evil.example",
        "null",
        "",
        "https://app.example.evil.com",
        "https://evilapp.example",
        "http://app.example",
        "https://app.example:8443",
        "https://wild.example",
        "https://a.wild.example.evil.com",
        "http://plain.example",
        other_port.as_str(),
        "https://app.example/",
        "https://app.example https://evil.example",
    ] {
        let raw = Raw::handshake(&with(origin), None, &[]).await;
        assert_eq!(raw.head.status, 403, "{origin:?}: {:?}", raw.head);
    }
    // None: not a page, or one that hides. A token needs none.
    let raw = Raw::handshake(&without_origin(&replica, "s"), None, &[]).await;
    assert_eq!(raw.head.status, 403, "{:?}", raw.head);
    let two = with("https://app.example").origin("https://evil.example");
    let raw = Raw::handshake(&two, None, &[]).await;
    assert!(matches!(raw.head.status, 400 | 403), "{:?}", raw.head);
    let missing = [("auth", "cookie"), ("result", "origin")];
    replica.metric("connects_total", &missing, PATIENCE, |n| n >= 1.0).await;
    Dial::to(&replica).bearer(&token("alice")).open().await;

    // Development says what is missing.
    let replica = Builder::development().redis(&redis).spawn().await;
    let dial = without_origin(&replica, "s");
    let mut ws = dial.connect().await;
    let end = ws.end(PATIENCE).await;
    assert_eq!(end.code, 1008, "{end:?}");
    assert!(end.reason.contains("Origin") && end.reason.contains("auth.origins"), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_a_refused_upgrade_closes_its_connection() {
    let redis = RedisServer::start().await;
    let replica = spawn(with_sessions(&redis).set("auth.reject", "http")).await;
    for (status, dial) in [
        (403, without_origin(&replica, "s")),
        (403, cookie(&replica, "s").origin("https://evil.example")),
        (403, Dial::to(&replica).bearer(&token("a")).origin("null")),
        (401, cookie(&replica, "gone")),
        (401, Dial::to(&replica)),
        (400, Dial::to(&replica).header("Content-Length", "4")),
    ] {
        // Something follows at once, as from a client that does not wait for its answer.
        let raw = Raw::handshake(&dial, None, b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(raw.head.status, status, "{:?}", raw.head);
        let close = raw.head.header("connection").unwrap_or_default().to_ascii_lowercase();
        assert_eq!(close, "close", "{:?}", raw.head);
        let mut stream = raw.reader.into_stream(raw.writer);
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        let end = tokio::time::timeout(Duration::from_secs(5), read).await;
        assert!(end.is_ok(), "{status}: the connection stays open");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(!rest.contains("HTTP/1.1"), "{status}: a second answer: {rest}");
    }
}

/// Logout as the documentation advises: the key is deleted, and the order given. The cookie does not
/// come back by what a cache remembers of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_an_order_ends_what_the_cache_remembers() {
    let redis = RedisServer::start().await;
    let replica = spawn(with_sessions(&redis)).await;
    for n in 0..5 {
        let id = format!("s{n}");
        set(&redis, &id, &json!({"user_id": "alice"})).await;
        let mut ws = cookie(&replica, &id).open().await;
        redis.cli(&["DEL", &format!("session:{id}")]);
        let order = replica
            .http
            .post(format!("http://{}/v1/disconnect", replica.internal))
            .bearer_auth(crate::support::app::API_KEY)
            .json(&json!({"session": id}));
        assert_eq!(order.send().await.expect("an answer").status(), 200);
        assert_eq!(ws.end(PATIENCE).await.code, 4403);
        let mut again = cookie(&replica, &id).connect().await;
        assert_eq!(again.end(PATIENCE).await.code, 1008, "round {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x09_a_wave_of_cookies_is_kind_to_redis() {
    // The sessions have a Redis of their own, so that its counters count nothing else.
    let (bus, redis) = (RedisServer::start().await, RedisServer::start().await);
    let url = format!("redis://{}", redis.address());
    let replica = spawn(with_sessions(&bus).set("auth.session.redis_url", &url)).await;
    for n in 0..100 {
        set(&redis, &format!("s{n}"), &json!({"user_id": format!("user-{n}")})).await;
    }
    let wave = async |ids: Vec<String>| -> (Vec<Ws>, u64) {
        redis.cli(&["CONFIG", "RESETSTAT"]);
        let mut dials = tokio::task::JoinSet::new();
        for id in ids {
            let dial = cookie(&replica, &id);
            dials.spawn(async move { dial.open().await });
        }
        (dials.join_all().await, gets(&redis))
    };
    // Five tabs of each session, all at once.
    let (tabs, asked) = wave((0..500).map(|n| format!("s{}", n % 100)).collect()).await;
    assert_eq!(tabs.len(), 500);
    println!("500 tabs of 100 sessions: {asked} look-ups");
    assert!(asked <= 250, "{asked} look-ups for 100 sessions");
    drop(tabs);
    // One session, as from a page that is out of its mind.
    let (tabs, asked) = wave(vec!["s7".to_owned(); 30]).await;
    println!("30 tabs of one session: {asked} look-ups");
    assert!(asked <= 10, "{asked} look-ups for one session");
    drop(tabs);
    // Ids that nobody sold are not asked for again and again either.
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let mut refused = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let dial = cookie(&replica, "guess");
        refused.spawn(async move { dial.connect().await.end(PATIENCE).await.code });
    }
    assert!(refused.join_all().await.iter().all(|code| *code == 1008));
    assert!(gets(&redis) <= 60, "{} look-ups for one guess", gets(&redis));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o01_session_ids_are_never_in_the_logs() {
    let redis = RedisServer::with(&["--notify-keyspace-events", "KEA"]).await;
    for builder in [Builder::production(), Builder::development()] {
        let builder = builder.redis(&redis).set("auth.origins", PAGE);
        let builder = builder.set("log.level", "trace").set("auth.session.recheck", "200ms");
        let replica = spawn(builder).await;
        hear(&redis, 1).await;
        let secret = |n: usize| format!("planted-session-{n}-7f3a9c");
        let mut open = Vec::new();
        for n in 0..4 {
            set(&redis, &secret(n), &json!({"user_id": "alice", "note": "planted-in-session"}))
                .await;
            open.push(cookie(&replica, &secret(n)).open().await);
        }
        run(&redis, &format!("DEL session:{}", secret(0))).await;
        is_session_ended(&open[0].end(PATIENCE).await);
        run(&redis, &format!("SET session:{} planted-in-session", secret(1))).await;
        is_session_ended(&open[1].end(PATIENCE).await);
        for dial in [
            cookie(&replica, &secret(5)),
            without_origin(&replica, &secret(2)),
            cookie(&replica, &secret(2)).origin("https://evil.example"),
            cookie(&replica, &format!("{}; session_id={}", secret(2), secret(3))),
            cookie(&replica, &format!("{}\u{1}", secret(2))),
            Dial::to(&replica).header("Cookie", secret(6)),
            Dial::to(&replica)
                .header("Cookie", format!("session_id={}=;;=", secret(6)))
                .origin(PAGE),
            Dial::to(&replica).header("X-Other", secret(6)),
        ] {
            // A client that refuses to send a control character sends nothing at all.
            if dial.headers.iter().any(|(_, value)| value.contains('\u{1}')) {
                Raw::handshake(&dial, None, &[]).await;
                continue;
            }
            if let Ok(mut ws) = dial.try_connect().await {
                ws.end(PATIENCE).await;
            }
        }
        // A look at it went wrong.
        let metrics = replica.get("/metrics").await.text + &replica.get("/readyz").await.text;
        replica.process.signal(nix::sys::signal::Signal::SIGTERM);
        replica.process.end(PATIENCE).await;
        let log = replica.log();
        assert!(log.contains("\"TRACE\"") || log.contains("TRACE"), "nothing at trace level");
        for text in [&log, &metrics] {
            assert!(!text.contains("planted-"), "{}", around(text, "planted-"));
        }
    }
}

/// What stands around a secret that leaked.
pub fn around(text: &str, secret: &str) -> String {
    let at = text.find(secret).unwrap_or(0);
    let bytes = &text.as_bytes()[at.saturating_sub(200)..(at + 100).min(text.len())];
    String::from_utf8_lossy(bytes).into_owned()
}

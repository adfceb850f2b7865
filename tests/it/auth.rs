//! Who gets in, who does not, and when a credential ends.

use tokio::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, Seen, Ws},
    http,
    jwt::{Jwt, SECRET, now, token},
    raw::Raw,
    until,
};

/// Connects with the token in the query.
fn dial(replica: &Replica, jwt: &str) -> Dial {
    Dial::to(replica).query(jwt)
}

async fn accepted(replica: &Replica, jwt: &str) -> Ws {
    dial(replica, jwt).open().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a01_nbf_and_iat() {
    let replica = Replica::start().await;
    for (what, nbf) in [
        ("a day ahead", json!(now() + 86_400)),
        ("a minute past the leeway", json!(now() + 90)),
        ("a text", json!("soon")),
        ("a number in a text", json!((now() - 10).to_string())),
        ("an object", json!({"at": now() - 10})),
        ("a boolean", json!(true)),
    ] {
        let jwt = Jwt::of("alice").claim("nbf", nbf).sign();
        dial(&replica, &jwt).is_refused(&format!("nbf {what}")).await;
    }
    // A token from the future would outlive an order that ends all tokens issued until now.
    for (what, iat) in [
        ("a day ahead", json!(now() + 86_400)),
        ("a minute past the leeway", json!(now() + 90)),
        ("a text", json!("now")),
        ("a number in a text", json!(now().to_string())),
        ("null", Value::Null),
    ] {
        let jwt = Jwt::of("alice").claim("iat", iat).sign();
        dial(&replica, &jwt).is_refused(&format!("iat {what}")).await;
    }
    for (what, claim, value) in [
        ("nbf inside the leeway", "nbf", now() + 10),
        ("nbf past", "nbf", now() - 10),
        ("iat past", "iat", now() - 10),
        ("iat inside the leeway", "iat", now() + 10),
    ] {
        let ws = accepted(&replica, &Jwt::of("alice").claim(claim, value).sign()).await;
        assert_eq!(ws.welcome["user"], "alice", "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a04_forged_tokens() {
    let replica = Replica::start().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/keys", elsewhere.local_addr().expect("bound"));
    let good = Jwt::of("alice");
    let signed = good.sign();
    let (text, signature) = signed.rsplit_once('.').expect("a signature");
    let (header, claims) = text.split_once('.').expect("two parts");
    let other = Jwt::of("mallory").sign();
    let other_claims = other.split('.').nth(1).expect("claims");
    let attacker = "attackers-own-secret-that-is-long-enough-0123456789";

    let mut forged: Vec<(String, String)> = Vec::new();
    for alg in ["none", "None", "nOnE", "NONE", ""] {
        let jwt = good.clone().header("alg", alg);
        forged.push((format!("alg {alg:?} and no signature"), format!("{}.", jwt.unsigned())));
        forged.push((format!("alg {alg:?} and no dot"), jwt.unsigned()));
        forged.push((format!("alg {alg:?} and our MAC"), jwt.sign()));
        forged.push((
            format!("alg {alg:?}, a MAC of the header above"),
            format!("{}.{signature}", jwt.unsigned()),
        ));
    }
    for alg in [
        "HS384", "HS512", "RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "hs256", "HS256 ",
        "A128KW", "dir",
    ] {
        let jwt = good.clone().header("alg", alg);
        forged.push((format!("alg {alg:?} over an HMAC-SHA-256"), jwt.sign()));
    }
    forged.push(("HS384, not allowed".into(), good.clone().header("alg", "HS384").sign_384()));
    forged.push(("HS512, not allowed".into(), good.clone().header("alg", "HS512").sign_512()));
    forged.push(("alg is a list".into(), good.clone().header("alg", json!(["HS256"])).sign()));
    forged.push(("alg is null".into(), good.clone().header("alg", Value::Null).sign()));
    forged.push(("an empty key".into(), good.clone().secret("").sign()));
    forged.push(("another key".into(), good.clone().secret(attacker).sign()));
    forged.push(("a prefix of the key".into(), good.clone().secret(&SECRET[..32]).sign()));
    forged.push(("the key and NUL".into(), good.clone().secret(format!("{SECRET}\0x")).sign()));
    for kid in ["../../dev/null", "/dev/null", "' OR '1'='1' --", "\0", &"k".repeat(7_000)] {
        let jwt = good.clone().header("kid", kid);
        let what = &kid[..kid.len().min(20)];
        forged.push((format!("kid {what:?} and an empty key"), jwt.clone().secret("").sign()));
        forged.push((format!("kid {what:?} and another key"), jwt.secret(attacker).sign()));
    }
    let jwk = json!({"kty": "oct", "alg": "HS256", "k": "YXR0YWNrZXJzLW93bi1zZWNyZXQ"});
    let jwk = good.clone().secret("attackers-own-secret").header("jwk", jwk);
    forged.push(("an embedded key".into(), jwk.sign()));
    for name in ["jku", "x5u"] {
        let jwt = good.clone().secret(attacker).header(name, url.as_str()).header("kid", "1");
        forged.push((format!("{name} elsewhere"), jwt.sign()));
    }
    for crit in [json!(["exp"]), json!(["b64"]), json!([]), json!("x"), json!(["x-unknown"])] {
        let jwt = good.clone().header("crit", crit.clone()).header("b64", true);
        forged.push((format!("crit {crit}, well signed"), jwt.sign()));
    }
    forged.push(("another's claims".into(), format!("{header}.{other_claims}.{signature}")));
    forged.push(("no signature".into(), format!("{text}.")));
    forged.push(("half a signature".into(), format!("{text}.{}", &signature[..20])));
    forged.push(("a longer signature".into(), format!("{signed}AAAA")));
    forged.push(("a padded signature".into(), format!("{signed}=")));
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    let near = format!("{text}.{first}{}", &signature[1..]);
    forged.push(("a signature changed".into(), near));
    forged.push(("four parts".into(), format!("{signed}.{signature}")));
    forged.push(("five parts".into(), format!("{signed}.{signature}.{signature}")));
    forged.push(("only dots".into(), "..".into()));
    forged.push(("claims missing".into(), format!("{header}..{signature}")));
    forged.push(("header missing".into(), format!(".{claims}.{signature}")));
    forged.push(("not base64".into(), format!("{header}.%25%25.{signature}")));
    forged.push(("words".into(), "let-me-in".into()));
    forged.push(("empty".into(), String::new()));
    assert!(forged.iter().all(|(_, jwt)| *jwt != signed));

    for (what, jwt) in &forged {
        dial(&replica, jwt).is_refused(what).await;
        // Values that no header can bear are refused by the client already.
        if jwt.bytes().all(|byte| byte.is_ascii_graphic()) {
            Dial::to(&replica).bearer(jwt).is_refused(&format!("{what}, as bearer")).await;
            if !jwt.contains(['=', '%']) && !jwt.is_empty() {
                let raw = Dial::to(&replica).subprotocol(jwt);
                let mut raw = Raw::handshake(&raw, None, &[]).await;
                if raw.head.status == 101 {
                    let end = raw.reader.end(PATIENCE).await;
                    assert_eq!(end.code, Some(1008), "{what}, as subprotocol: {end:?}");
                    assert!(end.texts.is_empty(), "{what}, as subprotocol: {end:?}");
                } else {
                    assert!(matches!(raw.head.status, 400 | 401 | 403), "{what}: {:?}", raw.head);
                }
            }
        }
    }
    accepted(&replica, &signed).await;
    let asked = tokio::time::timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(asked.is_err(), "a token made the gateway ask an address of its choice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a05_required_claims() {
    let replica = Replica::start().await;
    let alice = || Jwt::of("alice");
    let mut refused = vec![
        ("no exp".to_owned(), alice().without("exp")),
        ("no sub".into(), alice().without("sub")),
        ("sub empty".into(), alice().claim("sub", "")),
        ("sub of 257 bytes".into(), Jwt::of(&"x".repeat(257))),
        ("sub of 129 é".into(), Jwt::of(&"é".repeat(129))),
        ("sub null".into(), alice().claim("sub", Value::Null)),
        ("sub a list".into(), alice().claim("sub", json!(["alice"]))),
        ("sub an object".into(), alice().claim("sub", json!({"id": "alice"}))),
        ("sub true".into(), alice().claim("sub", true)),
    ];
    for control in ["a\0", "a\nb", "\r", "a\u{1b}[0m", "\u{7f}", "\u{85}"] {
        refused.push((format!("sub {control:?}"), Jwt::of(control)));
    }
    for exp in [
        json!("4102444800"),
        json!(null),
        json!(true),
        json!({}),
        json!([4_102_444_800_i64]),
        json!(0),
        json!(1),
        json!(29),
        json!(-1),
        json!(-4_102_444_800_i64),
        json!(i64::MIN),
    ] {
        refused.push((format!("exp {exp}"), alice().claim("exp", exp)));
    }
    let groups: Vec<String> = (0..33).map(|index| format!("g{index}")).collect();
    refused.push(("33 groups".into(), alice().claim("groups", json!(groups))));
    refused.push(("groups is a number".into(), alice().claim("groups", 5)));
    refused.push(("groups holds a number".into(), alice().claim("groups", json!(["a", 5]))));
    for (what, jwt) in refused {
        dial(&replica, &jwt.sign()).is_refused(&what).await;
    }
    for user in ["x".repeat(256), "é".repeat(128), "a:b*c?d[e]f/g{h} i".into()] {
        let ws = accepted(&replica, &token(&user)).await;
        assert_eq!(ws.welcome["user"], user.as_str());
    }
    let groups: Vec<String> = (0..32).map(|index| format!("g{index}")).collect();
    let ws = accepted(&replica, &alice().claim("groups", json!(groups)).sign()).await;
    assert_eq!(ws.welcome["groups"].as_array().map(Vec::len), Some(32));
    assert_eq!(replica.get("/livez").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a05_issuer_and_audience() {
    let replica = Builder::production()
        .set("auth.jwt.issuer", "https://id.example")
        .set("auth.jwt.audience", "belfry")
        .spawn()
        .await;
    let alice = || Jwt::of("alice").claim("iss", "https://id.example").claim("aud", "belfry");
    for (what, jwt) in [
        ("no iss", alice().without("iss")),
        ("another iss", alice().claim("iss", "https://id.example.evil")),
        ("iss and a slash", alice().claim("iss", "https://id.example/")),
        ("iss is a number", alice().claim("iss", 1)),
        ("iss null", alice().claim("iss", Value::Null)),
        ("no aud", alice().without("aud")),
        ("another aud", alice().claim("aud", "other")),
        ("aud null", alice().claim("aud", Value::Null)),
        ("aud is a number", alice().claim("aud", 1)),
        ("aud without ours", alice().claim("aud", json!(["other", "belfry2"]))),
        ("aud empty", alice().claim("aud", json!([]))),
        ("neither", Jwt::of("alice")),
    ] {
        dial(&replica, &jwt.sign()).is_refused(what).await;
    }
    accepted(&replica, &alice().sign()).await;
    accepted(&replica, &alice().claim("aud", json!(["other", "belfry"])).sign()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a06_one_leeway_for_exp_and_nbf() {
    let replica = Replica::start().await;
    let wide = Builder::production().set("auth.jwt.leeway", "60s").spawn().await;
    for (replica, inside, outside) in [(&replica, [5, 20], [40, 90]), (&wide, [5, 45], [75, 120])] {
        for seconds in inside {
            accepted(replica, &Jwt::of("alice").expires_in(-seconds).sign()).await;
            let early = Jwt::of("alice").claim("nbf", now() + seconds);
            accepted(replica, &early.sign()).await;
        }
        for seconds in outside {
            let late = Jwt::of("alice").expires_in(-seconds).sign();
            dial(replica, &late).is_refused(&format!("exp {seconds} s ago")).await;
            let early = Jwt::of("alice").claim("nbf", now() + seconds).sign();
            dial(replica, &early).is_refused(&format!("nbf in {seconds} s")).await;
        }
    }
}

/// One second of leeway, so that ends come soon.
async fn short_leeway() -> Replica {
    Builder::production().set("auth.jwt.leeway", "1s").spawn().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_token_expires_while_connected() {
    let replica = short_leeway().await;
    let exp = now() + 3;
    let mut ws = accepted(&replica, &Jwt::of("alice").claim("exp", exp).sign()).await;
    let word = ws.word("belfry.token_expiring", PATIENCE).await;
    let left = word["expires_in_ms"].as_u64().expect("a number");
    assert!((1..=4_100).contains(&left), "{word}");
    let mut published = 0;
    let end = loop {
        replica.to_user("alice", &format!("n{published}")).await;
        published += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if now() > exp {
            break ws.end(Duration::from_secs(5)).await;
        }
        assert!(now() <= exp + 2);
    };
    assert_eq!((end.code, end.reason.as_str()), (4401, "token_expired"), "{end:?}");
    assert!(end.goodbye.is_some(), "{end:?}");
    assert!(end.texts.len() >= 5, "events came while the token was good: {end:?}");
    assert!(end.texts.len() <= published);
    // Whatever comes now has nobody to go to.
    replica.to_user("alice", "after").await;
    assert!(ws.drain().iter().all(|seen| !matches!(seen, Seen::Text(_))));
    replica.metric_is("connections", 0.0, PATIENCE).await;
    replica.metric("closes_total", &[("cause", "token_expired")], PATIENCE, |n| n >= 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_the_end_is_neither_early_nor_late() {
    let replica = short_leeway().await;
    for exp_in in [2_i64, 3] {
        let exp = now() + exp_in;
        let mut ws = accepted(&replica, &Jwt::of("alice").claim("exp", exp).sign()).await;
        let end = ws.end(Duration::from_secs(10)).await;
        assert_eq!(end.code, 4401);
        let at = now();
        assert!(at >= exp, "closed {} s before exp", exp - at);
        assert!(at <= exp + 1 + 3, "closed {} s after exp", at - exp);
    }
    // A token that is over, but within the leeway, gets what is left of it.
    let replica = Builder::production().set("auth.jwt.leeway", "4s").spawn().await;
    let mut ws = accepted(&replica, &Jwt::of("alice").expires_in(-2).sign()).await;
    assert_eq!(ws.end(Duration::from_secs(6)).await.code, 4401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_warned_a_minute_before_the_end() {
    let replica = short_leeway().await;
    let start = Instant::now();
    let mut ws = accepted(&replica, &Jwt::of("alice").expires_in(63).sign()).await;
    let word = ws.word("belfry.token_expiring", Duration::from_secs(10)).await;
    assert!(start.elapsed() >= Duration::from_millis(1_900), "after {:?}", start.elapsed());
    let left = word["expires_in_ms"].as_u64().expect("a number");
    assert!((56_000..=61_500).contains(&left), "{word}");
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_renewal_in_place() {
    let replica = short_leeway().await;
    let old = Jwt::of("alice").groups(&["old", "both"]).expires_in(4);
    let start = Instant::now();
    let mut ws = accepted(&replica, &old.sign()).await;
    ws.word("belfry.token_expiring", PATIENCE).await;
    let new = Jwt::of("alice").groups(&["new", "both"]).expires_in(600).sign();
    ws.send(json!({"type": "belfry.token", "token": new}).to_string());
    let word = ws.word("belfry.renewed", PATIENCE).await;
    let left = word["expires_in_ms"].as_u64().expect("a number");
    assert!((590_000..=601_500).contains(&left), "{word}");
    let mut groups: Vec<_> =
        word["groups"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["both", "new"]);
    replica.to_group("old", "to-old").await;
    replica.to_group("both", "to-both").await;
    replica.to_group("new", "to-new").await;
    replica.to_user("alice", "to-alice").await;
    let mut markers = ws.markers_before("to-alice").await;
    markers.sort_unstable();
    assert_eq!(markers, ["to-both", "to-new"]);
    // The old end passes and changes nothing.
    tokio::time::sleep_until(start + Duration::from_secs(7)).await;
    replica.to_user("alice", "later").await;
    ws.event("later").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a_failed_renewal_leaves_the_old_credential_to_its_end() {
    let replica = short_leeway().await;
    let exp = now() + 4;
    let mut ws =
        accepted(&replica, &Jwt::of("alice").groups(&["g"]).claim("exp", exp).sign()).await;
    let stranger = token("mallory");
    let over = Jwt::of("alice").expires_in(-600).sign();
    let forged = Jwt::of("alice").secret("x").sign();
    for message in [
        json!({"type": "belfry.token", "token": stranger}),
        json!({"type": "belfry.token", "token": over}),
        json!({"type": "belfry.token", "token": forged}),
        json!({"type": "belfry.token", "token": ""}),
    ] {
        ws.send(message.to_string());
        let word = ws.word("belfry.renewal_failed", PATIENCE).await;
        let reason = word["reason"].as_str().expect("a text");
        assert!(!reason.is_empty(), "{word}");
        assert!(!reason.contains("eyJ") && !reason.contains("mallory"), "{word}");
    }
    replica.to_group("g", "still").await;
    ws.event("still").await;
    let end = ws.end(Duration::from_secs(10)).await;
    assert_eq!(end.code, 4401);
    assert!(now() <= exp + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_renewals_are_few() {
    let replica = Replica::start().await;
    let mut ws = accepted(&replica, &token("alice")).await;
    let renewal = json!({"type": "belfry.token", "token": token("alice")}).to_string();
    let start = Instant::now();
    let mut renewed = 0;
    let held = loop {
        ws.send(renewal.as_str());
        let (_, text) = ws.text(PATIENCE).await;
        if text.contains("belfry.renewed") {
            renewed += 1;
        } else if text.contains("belfry.renewal_failed") {
            break text;
        }
    };
    assert!(held.contains("too_often"), "{held}");
    assert!(renewed <= 3 + start.elapsed().as_secs(), "{renewed} in {:?}", start.elapsed());
    // The connection stays, and has its turn again.
    until("a renewal is taken again", PATIENCE, async || {
        ws.send(renewal.as_str());
        ws.text(PATIENCE).await.1.contains("belfry.renewed").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a_renewal_without_a_token_is_answered_too() {
    let replica = Replica::start().await;
    let mut ws = accepted(&replica, &token("alice")).await;
    for renewal in [
        json!({"type": "belfry.token", "token": 5}),
        json!({"type": "belfry.token", "token": null}),
        json!({"type": "belfry.token", "token": {"jwt": token("alice")}}),
        json!({"type": "belfry.token"}),
    ] {
        ws.send(renewal.to_string());
        ws.word("belfry.renewal_failed", Duration::from_secs(5)).await;
    }
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a10_token_in_the_subprotocol() {
    let replica = Replica::start().await;
    let jwt = token("alice");
    let name = format!("belfry.token.{jwt}");
    let protocols = |head: &http::Reply| -> Vec<String> {
        let all = head.headers.iter().filter(|(name, _)| name == "sec-websocket-protocol");
        all.map(|(_, value)| value.clone()).collect()
    };
    for offers in [
        vec![format!("belfry.v1, {name}")],
        vec![format!("{name}, belfry.v1")],
        vec![format!("belfry.v1,{name}")],
        vec![format!("  belfry.v1  ,  {name}  ")],
        vec!["belfry.v1".into(), name.clone()],
        vec![name.clone(), "belfry.v1".into()],
        vec![format!("chat, belfry.v1, {name}, soap")],
    ] {
        let mut dial = Dial::to(&replica);
        for offer in &offers {
            dial = dial.header("Sec-WebSocket-Protocol", offer);
        }
        let raw = dial.raw().await.welcome().await;
        assert_eq!(protocols(&raw.head), ["belfry.v1"], "{offers:?}");
    }
    // Offers without our name are not answered with one, and never with the secret.
    for offers in [name.as_str(), "chat, soap", "bearer, x", "belfry.v2", "BELFRY.V1"] {
        let mut dial = Dial::to(&replica).header("Sec-WebSocket-Protocol", offers);
        if !offers.contains(&jwt) {
            dial = dial.query(&jwt);
        }
        let raw = Raw::handshake(&dial, None, &[]).await;
        let code = raw.head.status;
        assert!(code == 101 || (400..500).contains(&code), "{offers}: {:?}", raw.head);
        assert!(protocols(&raw.head).is_empty(), "{offers}: {:?}", raw.head);
    }
    // The name alone brings no credential; the query may.
    let dial = Dial::to(&replica).header("Sec-WebSocket-Protocol", "belfry.v1");
    dial.is_refused("the name alone").await;
    let ws = dial.query(&jwt).open().await;
    assert_eq!(ws.protocol.as_deref(), Some("belfry.v1"));
    assert_eq!(ws.welcome["user"], "alice");
    // Refusals choose the name too, else a browser would only see a failed handshake.
    let bad = Jwt::of("alice").secret("x").sign();
    let mut raw = Raw::handshake(&Dial::to(&replica).subprotocol(&bad), None, &[]).await;
    assert_eq!((raw.head.status, protocols(&raw.head)), (101, vec!["belfry.v1".to_owned()]));
    assert_eq!(raw.reader.end(PATIENCE).await.code, Some(1008));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a11_several_credentials_at_once() {
    let replica = Replica::start().await;
    let (a, b) = (token("a"), token("b"));
    let bad = Jwt::of("b").secret("x").sign();
    let to = || Dial::to(&replica);
    for (what, dial) in [
        ("subprotocol, bearer, query", to().subprotocol(&a).bearer(&b).query(&b)),
        ("subprotocol before bearer", to().bearer(&b).subprotocol(&a)),
        ("subprotocol before query", to().query(&b).subprotocol(&a)),
        ("bearer before query", to().query(&b).bearer(&a)),
        ("a worse one after it", to().bearer(&a).query(&bad)),
    ] {
        let mut ws = dial.open().await;
        assert_eq!(ws.welcome["user"], "a", "{what}");
        replica.to_user("b", "for-b").await;
        replica.to_user("a", "for-a").await;
        assert!(ws.markers_before("for-a").await.is_empty(), "{what}: events of the other");
    }
    for (what, dial) in [
        ("a bad subprotocol is not skipped", to().subprotocol(&bad).bearer(&a)),
        ("a bad subprotocol is not skipped for the query", to().subprotocol(&bad).query(&a)),
        ("a bad bearer is not skipped", to().bearer(&bad).query(&a)),
        ("an empty bearer is not skipped", to().bearer("").query(&a)),
        ("twice in the query", to().query(&a).query(&b)),
        ("twice in the query, bad first", to().query(&bad).query(&a)),
        ("twice in the query, bad last", to().query(&a).query(&bad)),
        (
            "two tokens in the subprotocols",
            to().header(
                "Sec-WebSocket-Protocol",
                format!("belfry.v1, belfry.token.{a}, belfry.token.{b}"),
            ),
        ),
        ("two Authorization headers", to().bearer(&a).bearer(&b)),
        ("none", to()),
        ("an empty query", to().query("")),
    ] {
        dial.is_refused(what).await;
    }
    // A kind that is switched off is no credential.
    let replica = Builder::production().set("auth.methods", "bearer").spawn().await;
    Dial::to(&replica).query(&a).is_refused("query, switched off").await;
    Dial::to(&replica).subprotocol(&a).is_refused("subprotocol, switched off").await;
    Dial::to(&replica).bearer(&a).open().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a12_long_tokens() {
    let replica = Replica::start().await;
    let places = [Dial::query as fn(Dial, &str) -> Dial, Dial::bearer, Dial::subprotocol];
    for size in [1_000, 4_500, 8_700, 12 * 1024] {
        let jwt = Jwt::sized("alice", size);
        assert_eq!(jwt.len(), size);
        for place in places {
            let ws = place(Dial::to(&replica), &jwt).open().await;
            assert_eq!(ws.welcome["user"], "alice", "{size}");
        }
    }
    for size in [12 * 1024 + 1, 16_000, 40_000, 63_000] {
        let jwt = Jwt::sized("alice", size);
        for place in places {
            place(Dial::to(&replica), &jwt).is_refused(&format!("{size} bytes")).await;
        }
    }
    // More than any server reads: an answer, not a reset.
    let huge = "x".repeat(300_000);
    for request in [
        format!("GET /ws/notifications?token={huge} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!(
            "GET /ws/notifications HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {huge}\r\n\r\n"
        ),
    ] {
        let reply = http::try_exchange(replica.public, request.as_bytes()).await;
        let status = reply.as_ref().map(|reply| reply.status);
        assert!(matches!(status, Some(400 | 413 | 414 | 431)), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a16_log_in_again_or_try_again() {
    let replica =
        Builder::production().set("auth.jwt.leeway", "1s").set("drain.delay", "0s").spawn().await;
    let bad = Jwt::of("alice").secret("x").sign();
    let over = Jwt::of("alice").expires_in(-600).sign();
    for (what, dial) in [
        ("bad", Dial::to(&replica).query(&bad)),
        ("expired", Dial::to(&replica).query(&over)),
        ("missing", Dial::to(&replica)),
    ] {
        let end = dial.connect().await.end(PATIENCE).await;
        assert_eq!((end.code, end.reason.as_str()), (1008, "unauthorized"), "{what}: {end:?}");
        assert!(end.goodbye.is_some(), "{what}: {end:?}");
    }
    let mut ws = accepted(&replica, &Jwt::of("alice").expires_in(1).sign()).await;
    assert_eq!(ws.end(PATIENCE).await.code, 4401);
    let mut stays = accepted(&replica, &token("alice")).await;
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    let end = stays.end(PATIENCE).await;
    assert_eq!((end.code, end.reason.as_str()), (1012, "restart"), "{end:?}");
    let retry = &end.goodbye.expect("a goodbye")["retry_after_ms"];
    assert!(retry.as_u64().is_some_and(|ms| ms <= 60_000), "{retry}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a16_refusals_by_http_where_configured() {
    let replica = Builder::production().set("auth.reject", "http").spawn().await;
    let bad = Jwt::of("alice").secret("x").sign();
    for dial in
        [Dial::to(&replica).query(&bad), Dial::to(&replica).bearer(&bad), Dial::to(&replica)]
    {
        let raw = Raw::handshake(&dial, None, &[]).await;
        assert_eq!(raw.head.status, 401, "{:?}", raw.head);
        let challenge = raw.head.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer"), "{:?}", raw.head);
        let kind = raw.head.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "{:?}", raw.head);
    }
    accepted(&replica, &token("alice")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a19_the_welcome_says_what_the_contract_says() {
    let replica = Builder::production().set("limits.heartbeat", "7s").spawn().await;
    let jwt = Jwt::of("alice").groups(&["staff", "müller:*"]).sign();
    let first = accepted(&replica, &jwt).await;
    let second = accepted(&replica, &jwt).await;
    let welcome = &first.welcome;
    assert_eq!(welcome["user"], "alice");
    assert_eq!(welcome["groups"], json!(["staff", "müller:*"]));
    assert_eq!(welcome["heartbeat_ms"], 7_000);
    let cursor = welcome["cursor"].as_str().expect("text");
    let tags: Vec<_> =
        cursor.split(',').map(|at| at.split_once('~').expect("a position").0).collect();
    assert_eq!(tags, ["u", "b", "g=c3RhZmY", "g=bcO8bGxlcjoq"], "{cursor}");
    assert_eq!(welcome["resumed"], Value::Null);
    assert!(welcome["connection"].as_str().is_some_and(|id| !id.is_empty()), "{welcome}");
    assert_ne!(welcome["connection"], second.welcome["connection"]);
    drop((first, second));
    until("both are forgotten", PATIENCE, async || {
        (replica.metrics().await.sum("users") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a05_only_groups_that_match_the_patterns_are_taken() {
    let replica = Builder::production().set("auth.groups.allow", "team:*,all").spawn().await;
    let jwt = Jwt::of("alice").groups(&["team:a", "admins", "all", "allies"]).sign();
    let mut ws = accepted(&replica, &jwt).await;
    assert_eq!(ws.welcome["groups"], json!(["team:a", "all"]));
    for (group, marker) in [("admins", "no"), ("allies", "no-2"), ("team:a", "yes"), ("all", "end")]
    {
        replica.to_group(group, marker).await;
    }
    assert_eq!(ws.markers_before("end").await, ["yes"]);
}

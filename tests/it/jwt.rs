//! Tokens of every algorithm, from several issuers, whose keys come from files or a URL and change.

use std::{collections::BTreeMap, process::Command};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Duration, Instant, timeout},
};

use crate::support::{
    PATIENCE,
    app::{Builder, Process, Replica},
    client::Dial,
    free_port,
    jwks::{Answer, JwksServer},
    jwt::{Jwt, SECRET, now, token},
    openssl::{ALGORITHMS, KeyPair, Kind},
    until,
};

const EVERY: &str = "HS256,HS384,HS512,RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,EdDSA";

const OLD: &str = "the-old-secret-of-an-issuer-0123456789abcdef";
const NEXT: &str = "the-next-secret-of-an-issuer-0123456789abcdef";
const OTHER: &str = "the-secret-of-a-third-issuer-which-is-long-enough";

/// One key pair of each kind.
fn pairs() -> [KeyPair; 4] {
    [Kind::Rsa, Kind::P256, Kind::P384, Kind::Ed25519].map(KeyPair::new)
}

fn of(pairs: &[KeyPair], kind: Kind) -> &KeyPair {
    pairs.iter().find(|pair| pair.kind == kind).expect("one of each kind")
}

/// What becomes of a token: `open`, a close code, or a status.
async fn outcome(replica: &Replica, jwt: &str) -> String {
    outcome_of(&Dial::to(replica).query(jwt)).await
}

async fn outcome_of(dial: &Dial) -> String {
    match dial.try_connect().await {
        Err(refusal) => {
            if refusal.status == 503 {
                assert!(refusal.retry_after.is_some(), "503 without Retry-After");
            }
            refusal.status.to_string()
        }
        Ok(mut ws) => {
            let first = ws.next(PATIENCE).await.1;
            if format!("{first:?}").contains("belfry.welcome") {
                return "open".to_owned();
            }
            let text = format!("{first:?}");
            if text.starts_with("Close(") {
                text[6..10].to_owned()
            } else {
                ws.end(PATIENCE).await.code.to_string()
            }
        }
    }
}

/// Development, because the issuers of these tests speak plain HTTP.
fn with_jwks(server: &JwksServer) -> Builder {
    Builder::development()
        .set("auth.jwt.jwks_url", server.url())
        .set("auth.jwt.algorithms", "RS256,ES256,ES384,EdDSA")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_algorithm_with_keys_from_files() {
    let pairs = pairs();
    let others = self::pairs();
    let dir = tempfile::tempdir().expect("a folder");
    let several = dir.path().join("several.pem");
    let text = format!("first\n{}\nsecond\n{}", pairs[0].public_pem(), pairs[1].public_pem());
    std::fs::write(&several, text).expect("written");
    let files =
        [several.to_str().expect("UTF-8"), &pairs[2].public_file(), &pairs[3].public_file()];
    let replica = Builder::production()
        .set("auth.jwt.algorithms", EVERY)
        .set("auth.jwt.public_key_files", files.join(","))
        .spawn()
        .await;
    let alice = Jwt::of("alice");
    for jwt in [
        alice.sign(),
        alice.clone().header("alg", "HS384").sign_384(),
        alice.clone().header("alg", "HS512").sign_512(),
    ] {
        assert_eq!(outcome(&replica, &jwt).await, "open");
    }
    for (algorithm, kind) in ALGORITHMS {
        let good = of(&pairs, kind).sign(algorithm, &alice);
        assert_eq!(outcome(&replica, &good).await, "open", "{algorithm}");
        let named = of(&pairs, kind).sign(algorithm, &alice.clone().header("kid", "any"));
        assert_eq!(outcome(&replica, &named).await, "open", "{algorithm} with a kid");
        let forged = of(&others, kind).sign(algorithm, &alice);
        assert_eq!(outcome(&replica, &forged).await, "1008", "{algorithm} by another key");
        // The same signature under every other name of an algorithm.
        for other in EVERY.split(',').filter(|other| *other != algorithm) {
            let text = of(&pairs, kind).sign_as(algorithm, &alice.clone().header("alg", other));
            assert_eq!(outcome(&replica, &text).await, "1008", "{algorithm} as {other}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_algorithm_with_published_keys() {
    let pairs = pairs();
    // `alg` is left out, so one RSA key serves six algorithms; and `kid` by half of them.
    let keys: Vec<Value> = pairs
        .iter()
        .enumerate()
        .map(|(i, pair)| if i % 2 == 0 { pair.jwk(&format!("k{i}")) } else { pair.bare_jwk() })
        .collect();
    let server = JwksServer::start(keys).await;
    let replica = with_jwks(&server).set("auth.jwt.algorithms", EVERY).spawn().await;
    for (algorithm, kind) in ALGORITHMS {
        let pair = of(&pairs, kind);
        let jwt = pair.sign(algorithm, &Jwt::of("alice"));
        assert_eq!(outcome(&replica, &jwt).await, "open", "{algorithm}");
        let kid = pairs.iter().position(|pair| pair.kind == kind).expect("one of each");
        let jwt = pair.sign(algorithm, &Jwt::of("alice").header("kid", format!("k{kid}")));
        assert_eq!(outcome(&replica, &jwt).await, "open", "{algorithm} by kid");
    }
    assert_eq!(server.requests(), 1, "known keys cause no look");
    replica.metric("jwks_refreshes_total", &[("result", "ok")], PATIENCE, |n| n > 0.5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_configured_algorithms_are_accepted() {
    let pairs = pairs();
    let server = JwksServer::start(pairs.iter().map(KeyPair::bare_jwk).collect()).await;
    let replica = with_jwks(&server).set("auth.jwt.algorithms", "PS384,EdDSA").spawn().await;
    for (algorithm, kind) in ALGORITHMS {
        let jwt = of(&pairs, kind).sign(algorithm, &Jwt::of("alice"));
        let expected = if ["PS384", "EdDSA"].contains(&algorithm) { "open" } else { "1008" };
        assert_eq!(outcome(&replica, &jwt).await, expected, "{algorithm}");
    }
    assert_eq!(outcome(&replica, &token("alice")).await, "1008", "HS256");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_key_serves_only_what_it_is_for() {
    let pairs = pairs();
    let rsa = of(&pairs, Kind::Rsa);
    let with = |members: Value| {
        let mut jwk = rsa.bare_jwk();
        for (name, value) in members.as_object().expect("an object") {
            jwk[name] = value.clone();
        }
        jwk
    };
    let secret = URL_SAFE_NO_PAD.encode("a-published-secret-is-no-secret-at-all-0123456789");
    let server = JwksServer::start(vec![
        with(json!({"kid": "enc", "use": "enc"})),
        with(json!({"kid": "ops", "key_ops": ["wrapKey"]})),
        with(json!({"kid": "oaep", "alg": "RSA-OAEP"})),
        with(json!({"kid": "ps", "alg": "PS256"})),
        with(json!({"kid": "good", "key_ops": ["verify"], "alg": "RS256", "x5c": ["MIIB"]})),
        json!({"kty": "oct", "kid": "oct", "k": secret, "alg": "HS256"}),
        json!({"kty": "AKP", "kid": "new", "alg": "ML-DSA-65", "pub": "AAAA"}),
        KeyPair::short().jwk("short"),
        json!("nonsense"),
    ])
    .await;
    let algorithms = "HS256,RS256,PS256";
    let replica = with_jwks(&server).set("auth.jwt.algorithms", algorithms).spawn().await;
    let token =
        |kid: &str, algorithm: &str| rsa.sign(algorithm, &Jwt::of("alice").header("kid", kid));
    assert_eq!(outcome(&replica, &token("good", "RS256")).await, "open");
    assert_eq!(outcome(&replica, &token("good", "PS256")).await, "1008", "alg is RS256");
    assert_eq!(outcome(&replica, &token("ps", "PS256")).await, "open");
    let oct = Jwt::of("alice").secret("a-published-secret-is-no-secret-at-all-0123456789");
    for jwt in [oct.clone().header("kid", "oct").sign(), oct.sign()] {
        assert_eq!(outcome(&replica, &jwt).await, "1008", "an oct key");
    }
    // These names are not known, so the issuer is asked once more, and then they are not there.
    for kid in ["enc", "ops", "oaep"] {
        let verdict = outcome(&replica, &token(kid, "RS256")).await;
        assert!(["1008", "503"].contains(&verdict.as_str()), "{kid}: {verdict}");
    }
    assert_eq!(outcome(&replica, &rsa.sign("RS256", &Jwt::of("alice"))).await, "open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a04_forged_tokens_where_keys_are_public() {
    let pairs = pairs();
    let rsa = of(&pairs, Kind::Rsa);
    let attacker = KeyPair::new(Kind::Rsa);
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/keys", elsewhere.local_addr().expect("bound"));
    let server = JwksServer::start(vec![rsa.jwk("1")]).await;
    let alice = Jwt::of("alice");
    let mut forged: Vec<(String, String)> = Vec::new();
    // The public key is public; whoever takes it for a secret lets everyone in.
    let jwk = rsa.jwk("1").to_string();
    let pem = rsa.public_pem();
    for (what, key) in [
        ("PEM", pem.as_bytes().to_vec()),
        ("PEM without line end", pem.trim_end().as_bytes().to_vec()),
        ("DER", rsa.public_der()),
        ("JWK", jwk.into_bytes()),
        ("n", rsa.bare_jwk()["n"].as_str().expect("text").as_bytes().to_vec()),
        ("nothing", Vec::new()),
    ] {
        let jwt = alice.clone().secret(&key);
        for kid in [None, Some("1")] {
            let jwt = kid.map_or(jwt.clone(), |kid| jwt.clone().header("kid", kid));
            forged.push((format!("HS256 with {what} {kid:?}"), jwt.sign()));
            let as_rs256 = jwt.clone().header("alg", "RS256");
            forged.push((format!("RS256 that is a MAC with {what} {kid:?}"), as_rs256.sign()));
            forged.push((
                format!("HS384 with {what}"),
                jwt.clone().header("alg", "HS384").sign_384(),
            ));
            forged.push((format!("HS512 with {what}"), jwt.header("alg", "HS512").sign_512()));
        }
    }
    for alg in ["none", "None", "nOnE", "NONE", "", "RS256 ", "rs256"] {
        let jwt = alice.clone().header("alg", alg).header("kid", "1");
        forged.push((format!("alg {alg:?} and no signature"), format!("{}.", jwt.unsigned())));
        forged.push((format!("alg {alg:?}, well signed"), rsa.sign_as("RS256", &jwt)));
    }
    for (what, value) in [
        ("jwk", attacker.jwk("1")),
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("x5c", json!(["MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A"])),
    ] {
        for kid in [None, Some("1")] {
            let jwt = alice.clone().header(what, value.clone());
            let jwt = kid.map_or(jwt.clone(), |kid| jwt.header("kid", kid));
            forged.push((format!("{what}, {kid:?}"), attacker.sign("RS256", &jwt)));
        }
    }
    for crit in [json!(["exp"]), json!([]), json!(["b64"])] {
        let jwt = alice.clone().header("crit", crit.clone()).header("kid", "1");
        forged.push((format!("crit {crit}, well signed"), rsa.sign("RS256", &jwt)));
    }
    for kid in [json!("k".repeat(7_000)), json!(1), json!(null), json!(["1"]), json!({"kid": 1})] {
        let jwt = alice.clone().header("kid", kid.clone());
        let what = kid.to_string();
        let what = &what[..what.len().min(20)];
        forged.push((format!("kid {what}"), rsa.sign("RS256", &jwt)));
    }
    // With and without a secret beside the public keys, and in both kinds of configuration.
    let file = Builder::production().set("auth.jwt.public_key_files", rsa.public_file());
    for builder in [
        with_jwks(&server).set("auth.jwt.algorithms", "RS256"),
        with_jwks(&server).set("auth.jwt.algorithms", "HS256,RS256"),
        file.clone().set("auth.jwt.algorithms", "HS256,RS256"),
        file.unset("auth.jwt.secret").set("auth.jwt.algorithms", "RS256"),
    ] {
        let replica = builder.spawn().await;
        let good = rsa.sign("RS256", &alice.clone().header("kid", "1"));
        assert_eq!(outcome(&replica, &good).await, "open");
        for (what, jwt) in &forged {
            assert_eq!(outcome(&replica, jwt).await, "1008", "{what}");
        }
        // Names that no key has are not there, or, where the issuer was asked a moment ago, not
        // known to be: both let no one in.
        for kid in ["../../dev/null", "/dev/null", "' OR '1'='1' --", "\0", "2"] {
            for pair in [&attacker, rsa] {
                let jwt = alice.clone().header("kid", kid);
                let verdict = outcome(&replica, &pair.sign("RS256", &jwt)).await;
                let by_file = verdict == "open" && std::ptr::eq(pair, rsa);
                assert!(["1008", "503"].contains(&verdict.as_str()) || by_file, "{kid}: {verdict}");
            }
            let mac = alice.clone().header("kid", kid).secret("");
            assert_eq!(outcome(&replica, &mac.sign()).await, "1008", "{kid} and an empty key");
        }
        assert_eq!(outcome(&replica, &good).await, "open");
    }
    let asked = timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(asked.is_err(), "a token made the gateway ask an address of its choice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_no_good_stop_the_start() {
    let rsa = KeyPair::new(Kind::Rsa);
    let pem = rsa.public_pem();
    let private = std::fs::read_to_string(rsa.private_file()).expect("written");
    let good = Builder::production;
    let asymmetric = || good().unset("auth.jwt.secret").set("auth.jwt.algorithms", "RS256");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("secret");
    std::fs::write(&file, &pem).expect("written");
    let file = file.to_str().expect("UTF-8");
    let short = KeyPair::short();
    for (what, builder, says) in [
        ("a PEM as the secret", good().set("auth.jwt.secret", &pem), "PEM"),
        ("a private PEM as the secret", good().set("auth.jwt.secret", &private), "PEM"),
        (
            "a PEM as the secret's file",
            good().unset("auth.jwt.secret").set("auth.jwt.secret_file", file),
            "PEM",
        ),
        ("a PEM as the previous secret", good().set("auth.jwt.secret_previous", &pem), "PEM"),
        ("a short secret", good().set("auth.jwt.secret", "x".repeat(31)), "31 bytes"),
        ("a short previous", good().set("auth.jwt.secret_previous", "x".repeat(31)), "31 bytes"),
        (
            "a private key as a public one",
            asymmetric().set("auth.jwt.public_key_files", rsa.private_file()),
            "PRIVATE KEY",
        ),
        (
            "RSA of 1024 bits",
            asymmetric().set("auth.jwt.public_key_files", short.public_file()),
            "2048",
        ),
        (
            "a key of another kind",
            asymmetric().set("auth.jwt.public_key_files", KeyPair::new(Kind::P256).public_file()),
            "RS256 has no key",
        ),
        ("no key", asymmetric(), "auth.jwt.secret"),
        (
            "plain HTTP in production",
            asymmetric().set("auth.jwt.jwks_url", "http://127.0.0.1:9/keys"),
            "https",
        ),
        ("a misspelt key", good().set("auth.issuers.kc.isuer", "x"), "ISSUER"),
    ] {
        let process = Process::spawn(builder.command());
        let status = process.end(PATIENCE).await;
        let output = process.output();
        assert_eq!(status.code(), Some(2), "{what}: {output}");
        assert!(output.contains(says), "{what}: {output}");
        let body = pem.lines().nth(2).expect("a body");
        assert!(!output.contains(body), "{what} is repeated: {output}");
    }
    // In development a short secret will do, and a PEM not even there.
    let mut short = Builder::development().set("auth.jwt.secret", "short").command();
    short.arg("--help");
    assert!(Process::spawn(short).end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_refuses_no_valid_token_though_the_issuer_is_slow() {
    let [first, second, third] = [(); 3].map(|()| KeyPair::new(Kind::P256));
    let server = JwksServer::start(vec![first.jwk("1")]).await;
    let replica = with_jwks(&server).spawn().await;
    let jwt = |pair: &KeyPair, kid: &str, user: &str| {
        pair.sign("ES256", &Jwt::of(user).header("kid", kid))
    };
    assert_eq!(outcome(&replica, &jwt(&first, "1", "alice")).await, "open");
    server.asked(1).await;

    server.delay(Duration::from_millis(900));
    server.rotate(vec![first.jwk("1"), second.jwk("2")]);
    let tokens: Vec<String> = (0..12).map(|i| jwt(&second, "2", &format!("u{i}"))).collect();
    let begun = Instant::now();
    let outcomes = futures_util::future::join_all(tokens.iter().map(|jwt| outcome(&replica, jwt)));
    assert_eq!(outcomes.await, vec!["open"; 12]);
    assert!(begun.elapsed() >= Duration::from_millis(800), "nobody could know the key before");
    assert_eq!(server.requests(), 2, "twelve tokens, one look");
    let begun = Instant::now();
    assert_eq!(outcome(&replica, &jwt(&first, "1", "alice")).await, "open");
    assert_eq!(outcome(&replica, &jwt(&second, "2", "alice")).await, "open");
    assert!(begun.elapsed() < Duration::from_millis(700), "known keys wait for nothing");

    // Once more before the floor allows another look: not refused either, but told to come back.
    server.rotate(vec![third.jwk("3")]);
    let newest = jwt(&third, "3", "alice");
    assert_eq!(outcome(&replica, &newest).await, "503");
    until("the newest key is known", Duration::from_secs(30), async || {
        let verdict = outcome(&replica, &newest).await;
        assert_ne!(verdict, "1008", "a valid token was refused");
        (verdict == "open").then_some(())
    })
    .await;
    // Keys that were taken back are keys no longer.
    let verdict = outcome(&replica, &jwt(&first, "1", "alice")).await;
    assert!(["1008", "503"].contains(&verdict.as_str()), "{verdict}");
    assert_eq!(server.most(), 1, "looks never overlap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_in_the_middle_of_a_look_refuses_nobody() {
    let [first, second] = [(); 2].map(|()| KeyPair::new(Kind::P256));
    let server = JwksServer::start(vec![first.jwk("1")]).await;
    server.delay(Duration::from_millis(600));
    let replica = with_jwks(&server).spawn().await;
    server.asked(1).await;
    // The answer under way still has the first key only.
    server.rotate(vec![second.jwk("2")]);
    let jwt = second.sign("ES256", &Jwt::of("alice").header("kid", "2"));
    assert_eq!(outcome(&replica, &jwt).await, "open");
    assert_eq!((server.requests(), server.most()), (2, 1));
}

/// A key without a name may be meant by any token, and so says nothing about the one that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_a_name_does_not_stand_for_the_one_to_come() {
    let [nameless, next] = [(); 2].map(|()| KeyPair::new(Kind::P256));
    let mut jwk = nameless.jwk("x");
    jwk.as_object_mut().expect("an object").remove("kid");
    let server = JwksServer::start(vec![jwk.clone()]).await;
    let replica = with_jwks(&server).set("auth.jwks.floor", "300ms").spawn().await;
    let old = nameless.sign("ES256", &Jwt::of("alice").header("kid", "old"));
    assert_eq!(outcome(&replica, &old).await, "open");
    server.rotate(vec![jwk, next.jwk("2")]);
    let new = next.sign("ES256", &Jwt::of("alice").header("kid", "2"));
    until("the new key is known", PATIENCE, async || {
        let verdict = outcome(&replica, &new).await;
        assert_ne!(verdict, "1008", "a valid token was refused");
        (verdict == "open").then_some(())
    })
    .await;
}

/// Somebody asks for a key before it is published; later, while the look that finds it is under
/// way, nobody who has it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_asked_for_too_early_is_not_refused_later() {
    let [first, second] = [(); 2].map(|()| KeyPair::new(Kind::P256));
    let server = JwksServer::start(vec![first.jwk("1")]).await;
    let replica = with_jwks(&server).set("auth.jwks.floor", "500ms").spawn().await;
    let jwt = second.sign("ES256", &Jwt::of("alice").header("kid", "2"));
    until("the key is known to be missing", PATIENCE, async || {
        (outcome(&replica, &jwt).await == "1008").then_some(())
    })
    .await;
    server.rotate(vec![first.jwk("1"), second.jwk("2")]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.delay(Duration::from_millis(500));
    let verdicts = (0..8).map(|_| outcome(&replica, &jwt));
    assert_eq!(futures_util::future::join_all(verdicts).await, vec!["open"; 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_looked_at_again_in_the_background() {
    let [first, second] = [(); 2].map(|()| KeyPair::new(Kind::Ed25519));
    let server = JwksServer::start(vec![first.jwk("1")]).await;
    let replica = with_jwks(&server).set("auth.jwks.refresh", "1s").spawn().await;
    let old = first.sign("EdDSA", &Jwt::of("alice").header("kid", "1"));
    assert_eq!(outcome(&replica, &old).await, "open");
    server.rotate(vec![second.jwk("2")]);
    until("a key that was taken back is refused", PATIENCE, async || {
        (outcome(&replica, &old).await != "open").then_some(())
    })
    .await;
    let new = second.sign("EdDSA", &Jwt::of("alice").header("kid", "2"));
    assert_eq!(outcome(&replica, &new).await, "open");
    let seen = server.requests();
    server.asked(seen + 2).await;
    let times = server.times();
    let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().any(|gap| *gap >= Duration::from_millis(850)), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_away_logs_nobody_out() {
    let [pair, next] = [(); 2].map(|()| KeyPair::new(Kind::P256));
    let jwt = pair.sign("ES256", &Jwt::of("alice").header("kid", "1"));
    let port = free_port();
    // The start does not wait for the issuer.
    let replica = Builder::development()
        .set("auth.jwt.jwks_url", format!("http://127.0.0.1:{port}/keys"))
        .set("auth.jwt.algorithms", "ES256,HS256")
        .set("auth.jwks.floor", "500ms")
        .spawn()
        .await;
    assert_eq!(outcome(&replica, &jwt).await, "503", "nothing is known of it");
    assert_eq!(outcome(&replica, &token("bob")).await, "open", "another key needs no issuer");
    let expired = pair.sign("ES256", &Jwt::of("alice").expires_in(-900));
    assert_eq!(outcome(&replica, &expired).await, "503");
    assert_eq!(outcome(&replica, "nonsense").await, "1008");
    let failed = [("result", "failed")];
    replica.metric("jwks_refreshes_total", &failed, PATIENCE, |n| n >= 1.0).await;

    let server = JwksServer::at(port, vec![pair.jwk("1")]).await;
    until("the issuer is found", PATIENCE, async || {
        let verdict = outcome(&replica, &jwt).await;
        assert_ne!(verdict, "1008", "a valid token was refused");
        (verdict == "open").then_some(())
    })
    .await;
    assert_eq!(outcome(&replica, &expired).await, "1008");

    // Away again, in every way: what is known stays in use, what is not is not refused.
    let target = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let elsewhere = format!("http://{}/", target.local_addr().expect("bound"));
    let filler = format!("{{\"keys\":[{}],\"x\":\"{}\"}}", next.jwk("2"), "x".repeat(256 * 1024));
    let new = next.sign("ES256", &Jwt::of("alice").header("kid", "2"));
    let invalid = [("result", "invalid")];
    for (what, answer, labels) in [
        ("silence", Answer::Nothing, &failed),
        ("500", Answer::Raw(500, String::new()), &failed),
        ("404 with keys", Answer::Raw(404, json!({"keys": [next.jwk("2")]}).to_string()), &failed),
        ("elsewhere", Answer::Redirect(elsewhere), &failed),
        ("too much", Answer::Raw(200, filler), &invalid),
        ("a page", Answer::Raw(200, "<html>".into()), &invalid),
        ("half of it", Answer::Raw(200, "{\"keys\":[".into()), &invalid),
        ("no keys", Answer::Keys(Vec::new()), &invalid),
        ("only a secret", Answer::Keys(vec![json!({"kty": "oct", "k": "AAAA"})]), &invalid),
    ] {
        let before = replica.metrics().await.get("jwks_refreshes_total", labels);
        server.answer(answer);
        assert_eq!(outcome(&replica, &new).await, "503", "{what}");
        replica.metric("jwks_refreshes_total", labels, PATIENCE, |n| n > before).await;
        assert_eq!(outcome(&replica, &jwt).await, "open", "{what}");
    }
    let asked = timeout(Duration::from_millis(200), target.accept()).await;
    assert!(asked.is_err(), "a redirect was followed");
    server.rotate(vec![next.jwk("2")]);
    until("the issuer is back", PATIENCE, async || {
        (outcome(&replica, &new).await == "open").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_cannot_be_checked_leaves_the_old_credential() {
    let pair = KeyPair::new(Kind::P256);
    let port = free_port();
    let replica = Builder::development()
        .set("auth.jwt.jwks_url", format!("http://127.0.0.1:{port}/keys"))
        .set("auth.jwt.algorithms", "HS256,ES256")
        .spawn()
        .await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let jwt = pair.sign("ES256", &Jwt::of("alice"));
    ws.send(json!({"type": "belfry.token", "token": jwt}).to_string());
    let failed = ws.word("belfry.renewal_failed", PATIENCE).await;
    assert_eq!(failed["reason"], "unavailable");
    ws.is_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_keys_is_one_look_per_floor() {
    let pair = KeyPair::new(Kind::P256);
    let server = JwksServer::start(vec![pair.jwk("1")]).await;
    let floor = Duration::from_secs(3);
    let replica = with_jwks(&server).set("auth.jwks.floor", "3s").spawn().await;
    server.asked(1).await;
    let signed = pair.sign("ES256", &Jwt::of("mallory").header("kid", "0"));
    let (_, rest) = signed.split_once('.').expect("three parts");
    let begun = Instant::now();
    let mut verdicts = BTreeMap::new();
    let mut sent = 0;
    while begun.elapsed() < 2 * floor + Duration::from_secs(1) {
        let flood: Vec<String> = (0..8)
            .map(|i| {
                let header = json!({"alg": "ES256", "kid": format!("flood-{sent}-{i}")});
                format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
            })
            .collect();
        sent += 1;
        let outcomes = flood.iter().map(|jwt| outcome(&replica, jwt));
        for verdict in futures_util::future::join_all(outcomes).await {
            *verdicts.entry(verdict).or_insert(0) += 1;
        }
        let good = pair.sign("ES256", &Jwt::of("alice").header("kid", "1"));
        assert_eq!(outcome(&replica, &good).await, "open");
    }
    println!("{sent} × 8 tokens: {verdicts:?}, {} looks", server.requests());
    assert!(verdicts.keys().all(|verdict| ["1008", "503"].contains(&verdict.as_str())));
    assert!(verdicts.values().sum::<i32>() > 50, "{verdicts:?}");
    let times = server.times();
    assert!((3..=5).contains(&times.len()), "{} looks", times.len());
    // The first look is the start's own; from then on each leaves the floor to the next.
    for pair in times[1..].windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap + Duration::from_millis(50) >= floor, "{gap:?}");
    }
    assert_eq!(server.most(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_there_is_asked_for_once_per_floor() {
    let pair = KeyPair::new(Kind::P256);
    let server = JwksServer::start(vec![pair.jwk("1")]).await;
    let replica = with_jwks(&server).set("auth.jwks.floor", "4s").spawn().await;
    server.asked(1).await;
    let jwt = pair.sign("ES256", &Jwt::of("alice").header("kid", "gone"));
    for _ in 0..20 {
        assert_eq!(outcome(&replica, &jwt).await, "1008");
    }
    assert_eq!(server.requests(), 2);
    // It may still come.
    server.rotate(vec![pair.jwk("1"), pair.jwk("gone")]);
    until("the key is looked for again", PATIENCE, async || {
        (outcome(&replica, &jwt).await == "open").then_some(())
    })
    .await;
    assert_eq!(server.requests(), 3);
    // A wrong signature under a known name is no reason to look at all.
    let forged = KeyPair::new(Kind::P256).sign("ES256", &Jwt::of("alice").header("kid", "1"));
    assert_eq!(outcome(&replica, &forged).await, "1008");
    assert_eq!(server.requests(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_side_by_side_vouch_for_their_own_only() {
    let [a, b] = [(); 2].map(|()| KeyPair::new(Kind::P256));
    let server = JwksServer::start(vec![b.jwk("1")]).await;
    let replica = Builder::development()
        .set("auth.issuers.a.issuer", "https://a.example")
        .set("auth.issuers.a.algorithms", "ES256")
        .set("auth.issuers.a.public_key_files", a.public_file())
        .set("auth.issuers.a.audience", "belfry,web")
        .set("auth.issuers.b.issuer", "https://b.example")
        .set("auth.issuers.b.algorithms", "ES256")
        .set("auth.issuers.b.jwks_url", server.url())
        .set("auth.issuers.b.user_claim", "uid")
        .set("auth.issuers.c.issuer", "https://c.example")
        .set("auth.issuers.c.algorithms", "HS256")
        .set("auth.issuers.c.secret", OTHER)
        .spawn()
        .await;
    let of = |issuer: &str| {
        Jwt::of("alice").claim("iss", format!("https://{issuer}.example")).claim("uid", "bob")
    };
    let for_a = |issuer: &str| of(issuer).claim("aud", "web");
    let ws = Dial::to(&replica).query(&a.sign("ES256", &for_a("a"))).open().await;
    assert_eq!(ws.welcome["user"], "alice");
    let ws = Dial::to(&replica).query(&b.sign("ES256", &of("b").header("kid", "1"))).open().await;
    assert_eq!(ws.welcome["user"], "bob");
    for (what, jwt, expected) in [
        ("c by c", of("c").secret(OTHER).sign(), "open"),
        ("nobody by the default", token("alice"), "open"),
        ("an unknown one by the default", of("x").sign(), "open"),
        ("a by b", b.sign("ES256", &for_a("a").header("kid", "1")), "1008"),
        ("b by a", a.sign("ES256", &of("b")), "1008"),
        ("b by a, named", a.sign("ES256", &of("b").header("kid", "1")), "1008"),
        ("a by c", for_a("a").secret(OTHER).sign(), "1008"),
        ("a by the default", for_a("a").sign(), "1008"),
        ("c by the default", of("c").sign(), "1008"),
        ("nobody by c", Jwt::of("alice").secret(OTHER).sign(), "1008"),
        ("nobody by a", a.sign("ES256", &Jwt::of("alice").claim("aud", "web")), "1008"),
        ("an unknown one by b", b.sign("ES256", &of("x").header("kid", "1")), "1008"),
        ("c by a's public key", of("c").secret(a.public_pem()).sign(), "1008"),
        ("a without aud", a.sign("ES256", &of("a")), "1008"),
        ("a for others", a.sign("ES256", &of("a").claim("aud", "other")), "1008"),
        ("a and a slash", a.sign("ES256", &for_a("a").claim("iss", "https://a.example/")), "1008"),
        (
            "iss in a list",
            a.sign("ES256", &for_a("a").claim("iss", json!(["https://a.example"]))),
            "1008",
        ),
    ] {
        assert_eq!(outcome(&replica, &jwt).await, expected, "{what}");
    }
    // Without a default, a token must name an issuer that is known.
    let replica = Builder::production()
        .unset("auth.jwt.secret")
        .set("auth.issuers.c.issuer", "https://c.example")
        .set("auth.issuers.c.algorithms", "HS256")
        .set("auth.issuers.c.secret", OTHER)
        .spawn()
        .await;
    for (jwt, expected) in [
        (of("c").secret(OTHER).sign(), "open"),
        (of("x").secret(OTHER).sign(), "1008"),
        (Jwt::of("alice").secret(OTHER).sign(), "1008"),
        (Jwt::of("alice").secret("").sign(), "1008"),
    ] {
        assert_eq!(outcome(&replica, &jwt).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_without_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let [a, b] = [(); 2].map(|()| KeyPair::new(Kind::P256));
    let published = KeyPair::new(Kind::Ed25519);
    let server = JwksServer::start(vec![published.jwk("1")]).await;
    std::fs::write(path("secret"), SECRET).expect("written");
    std::fs::write(path("previous"), OLD).expect("written");
    std::fs::write(path("pem"), a.public_pem()).expect("written");
    let replica = Builder::development()
        .unset("auth.jwt.secret")
        .set("auth.jwt.secret_file", path("secret"))
        .set("auth.jwt.secret_previous_file", path("previous"))
        .set("auth.jwt.algorithms", "HS256,EdDSA")
        .set("auth.jwt.jwks_url", server.url())
        .set("auth.issuers.a.issuer", "a")
        .set("auth.issuers.a.algorithms", "ES256")
        .set("auth.issuers.a.public_key_files", path("pem"))
        .spawn()
        .await;
    let by = |secret: &str| Jwt::of("alice").secret(secret).sign();
    let of_a = |pair: &KeyPair| pair.sign("ES256", &Jwt::of("alice").claim("iss", "a"));
    let (old, new) = (of_a(&a), of_a(&b));
    assert_eq!(outcome(&replica, &by(SECRET)).await, "open");
    assert_eq!(outcome(&replica, &by(OLD)).await, "open", "the previous secret");
    assert_eq!(outcome(&replica, &old).await, "open");
    assert_eq!(outcome(&replica, &new).await, "1008");
    assert_eq!(outcome(&replica, &by(NEXT)).await, "1008");

    std::fs::write(path("previous"), SECRET).expect("written");
    std::fs::write(path("secret"), NEXT).expect("written");
    std::fs::write(path("pem"), b.public_pem()).expect("written");
    until("the new keys hold", PATIENCE, async || {
        let verdicts = [outcome(&replica, &by(NEXT)).await, outcome(&replica, &new).await];
        (verdicts == ["open", "open"]).then_some(())
    })
    .await;
    assert_eq!(outcome(&replica, &by(SECRET)).await, "open", "now the previous one");
    until("the oldest is forgotten", PATIENCE, async || {
        let verdicts = [outcome(&replica, &by(OLD)).await, outcome(&replica, &old).await];
        (verdicts == ["1008", "1008"]).then_some(())
    })
    .await;
    // Emptying its file withdraws the previous one.
    std::fs::write(path("previous"), "").expect("written");
    until("the previous secret is withdrawn", PATIENCE, async || {
        (outcome(&replica, &by(SECRET)).await == "1008").then_some(())
    })
    .await;
    assert!(!replica.log().contains("a secret file is no good"), "{}", replica.log());
    // What is no key does not replace one, and is said.
    std::fs::write(path("secret"), a.public_pem()).expect("written");
    std::fs::write(path("pem"), "nonsense").expect("written");
    until("the fault is logged", PATIENCE, async || {
        replica.log().contains("a secret file is no good").then_some(())
    })
    .await;
    assert_eq!(outcome(&replica, &by(NEXT)).await, "open");
    assert_eq!(outcome(&replica, &new).await, "open");
    assert_eq!(outcome(&replica, &by(&a.public_pem())).await, "1008");
    // A key set outlives all that.
    let jwt = published.sign("EdDSA", &Jwt::of("alice").header("kid", "1"));
    assert_eq!(outcome(&replica, &jwt).await, "open");
    assert_eq!(server.requests(), 1);
}

/// Padded so that it is this long once signed: RS256 with 2048 bits adds a dot and 342 characters.
fn sized(jwt: &Jwt, bytes: usize) -> Jwt {
    let padded = |head: usize, body: usize| {
        let jwt = jwt.clone().header("alg", "RS256").header("x", "h".repeat(head));
        jwt.claim("pad", "p".repeat(body))
    };
    let mut sizes = (0..4).flat_map(|head| (8_000..9_000).map(move |body| (head, body)));
    let found = sizes.find(|(head, body)| padded(*head, *body).unsigned().len() + 343 == bytes);
    let (head, body) = found.expect("a token of every size");
    padded(head, body)
}

/// Every fault that a token can have, and what becomes of it in each place that takes one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_has_its_outcome() {
    let [pair, other] = [(); 2].map(|()| KeyPair::new(Kind::Rsa));
    let server = JwksServer::start(vec![pair.jwk("1")]).await;
    let replica = with_jwks(&server)
        .set("auth.jwt.algorithms", "RS256")
        .set("auth.jwt.issuer", "https://id.example")
        .set("auth.jwt.audience", "belfry")
        .set("auth.issuers.away.issuer", "https://away.example")
        .set("auth.issuers.away.jwks_url", format!("http://127.0.0.1:{}/keys", free_port()))
        .set("auth.issuers.away.algorithms", "RS256")
        .spawn()
        .await;
    server.asked(1).await;
    let good = Jwt::of("alice")
        .claim("iss", "https://id.example")
        .claim("aud", "belfry")
        .header("kid", "1");
    let sign = |jwt: &Jwt| pair.sign("RS256", jwt);
    let with = |claim: &str, value: Value| sign(&good.clone().claim(claim, value));
    let groups: Vec<String> = (0..33).map(|i| format!("g{i}")).collect();
    let logout = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
    let text = sign(&good);
    let (message, _) = text.rsplit_once('.').expect("three parts");
    let rows: Vec<(&str, String, &str)> = vec![
        ("nothing wrong", sign(&good), "open"),
        ("aud in a list", with("aud", json!(["x", "belfry"])), "open"),
        ("exp 20 s ago, in the leeway", with("exp", json!(now() - 20)), "open"),
        ("nbf in 20 s, in the leeway", with("nbf", json!(now() + 20)), "open"),
        ("iat in 20 s, in the leeway", with("iat", json!(now() + 20)), "open"),
        ("empty", String::new(), "1008"),
        ("not a token", "nonsense".into(), "1008"),
        ("no signature", format!("{message}."), "1008"),
        ("two parts", message.into(), "1008"),
        ("four parts", format!("{text}.x"), "1008"),
        ("12,288 bytes", sign(&sized(&good, 12_288)), "open"),
        ("12,289 bytes", sign(&sized(&good, 12_289)), "1008"),
        ("alg none", format!("{}.", good.clone().header("alg", "none").unsigned()), "1008"),
        ("alg not accepted", pair.sign("RS384", &good), "1008"),
        ("alg HS256 with the PEM", good.clone().secret(pair.public_pem()).sign(), "1008"),
        ("crit", sign(&good.clone().header("crit", json!(["exp"]))), "1008"),
        ("another key", other.sign("RS256", &good), "1008"),
        (
            "another key, embedded",
            other.sign("RS256", &good.clone().header("jwk", other.jwk("1"))),
            "1008",
        ),
        ("kid unknown", sign(&good.clone().header("kid", "2")), "1008"),
        ("kid a number", sign(&good.clone().header("kid", 1)), "1008"),
        ("kid of 7 kB", sign(&good.clone().header("kid", "k".repeat(7_000))), "1008"),
        ("issuer away", sign(&good.clone().claim("iss", "https://away.example")), "503"),
        ("exp missing", sign(&good.clone().without("exp")), "1008"),
        ("exp a text", with("exp", json!((now() + 900).to_string())), "1008"),
        ("exp null", with("exp", Value::Null), "1008"),
        ("exp 40 s ago", with("exp", json!(now() - 40)), "1008"),
        ("nbf a text", with("nbf", json!("0")), "1008"),
        ("nbf in 40 s", with("nbf", json!(now() + 40)), "1008"),
        ("iat a text", with("iat", json!("0")), "1008"),
        ("iat in 40 s", with("iat", json!(now() + 40)), "1008"),
        ("iss missing", sign(&good.clone().without("iss")), "1008"),
        ("iss another", with("iss", json!("https://evil.example")), "1008"),
        ("iss a number", with("iss", json!(5)), "1008"),
        ("aud missing", sign(&good.clone().without("aud")), "1008"),
        ("aud another", with("aud", json!("other")), "1008"),
        ("aud a number", with("aud", json!(5)), "1008"),
        ("aud a list with a number", with("aud", json!(["belfry", 5])), "1008"),
        ("aud empty", with("aud", json!([])), "1008"),
        ("sub missing", sign(&good.clone().without("sub")), "1008"),
        ("sub empty", with("sub", json!("")), "1008"),
        ("sub a number", with("sub", json!(5)), "1008"),
        ("sub with a control character", with("sub", json!("a\nb")), "1008"),
        ("sub of 257 bytes", with("sub", json!("x".repeat(257))), "1008"),
        ("sid a number", with("sid", json!(5)), "1008"),
        ("groups a text", with("groups", json!("admins")), "1008"),
        ("groups with a number", with("groups", json!(["a", 5])), "1008"),
        ("33 groups", with("groups", json!(groups)), "1008"),
        ("a logout token", with("events", logout), "1008"),
    ];
    println!("| token | subprotocol | bearer | query |\n|---|---|---|---|");
    let mut wrong = Vec::new();
    for (what, jwt, expected) in &rows {
        let dial = || Dial::to(&replica);
        let seen = [
            outcome_of(&dial().subprotocol(jwt)).await,
            outcome_of(&dial().bearer(jwt)).await,
            outcome_of(&dial().query(jwt)).await,
        ];
        println!("| {what} | {} |", seen.join(" | "));
        if seen.iter().any(|seen| seen != expected) {
            wrong.push(format!("{what}: {seen:?} and not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // No client learns more, and no log line repeats a token.
    let log = replica.log();
    for (what, jwt, _) in rows.iter().filter(|(_, jwt, _)| jwt.len() > 100) {
        for part in jwt.split('.').filter(|part| part.len() > 40) {
            assert!(!log.contains(part), "{what} is in the log");
        }
    }
}

async fn check(settings: &[(&str, &str)], jwt: &str) -> (Option<i32>, String) {
    let mut builder = Builder::development();
    for (key, value) in settings {
        builder = builder.set(key, *value);
    }
    // The same environment, another command.
    let serve = builder.command();
    let mut command = Command::new(serve.get_program());
    command.env_clear().args(["token", "check", jwt]);
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let process = Process::spawn(command);
    let status = process.end(PATIENCE).await;
    (status.code(), process.output())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_check_names_the_rule_for_every_issuer() {
    let pair = KeyPair::new(Kind::P256);
    let server = JwksServer::start(vec![pair.jwk("1")]).await;
    let url = server.url();
    let nobody = format!("http://127.0.0.1:{}/keys", free_port());
    let settings = [
        ("auth.issuers.a.issuer", "a"),
        ("auth.issuers.a.algorithms", "ES256"),
        ("auth.issuers.a.jwks_url", url.as_str()),
        ("auth.issuers.b.issuer", "b"),
        ("auth.issuers.b.algorithms", "ES256"),
        ("auth.issuers.b.jwks_url", nobody.as_str()),
    ];
    let of = |issuer: &str, kid: &str| Jwt::of("alice").claim("iss", issuer).header("kid", kid);
    for (jwt, code, says) in [
        (pair.sign("ES256", &of("a", "1")), 0, "accepted by auth.issuers.a: user \"alice\""),
        (token("alice"), 0, "accepted by auth.jwt: user \"alice\""),
        (
            pair.sign("ES256", &of("a", "2")),
            1,
            "refused by auth.issuers.a: the issuer has no such key",
        ),
        (pair.sign("ES256", &of("a", "1").expires_in(-900)), 1, "(`exp`)"),
        (pair.sign("ES256", &of("a", "1").claim("iat", now() + 900)), 1, "(`iat`)"),
        (KeyPair::new(Kind::P256).sign("ES256", &of("a", "1")), 1, "the signature does not match"),
        (of("a", "1").sign(), 1, "the algorithm is not one of"),
        (pair.sign("ES256", &of("b", "1")), 1, "cannot be checked by auth.issuers.b"),
    ] {
        let (status, output) = check(&settings, &jwt).await;
        assert_eq!(status, Some(code), "{says}: {output}");
        assert!(output.contains(says), "{says}: {output}");
    }
}

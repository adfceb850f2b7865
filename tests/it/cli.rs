//! The command line, as a person or a script uses it.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Process, Replica, belfry},
    client::Dial,
    jwt::{Jwt, SECRET, token},
    until,
};

struct Ran {
    code: Option<i32>,
    stdout: String,
    all: String,
}

async fn run(mut command: Command, args: &[&str]) -> Ran {
    command.args(args);
    let dir = tempfile::tempdir().expect("a folder");
    command.current_dir(dir.path());
    let process = Process::spawn(command);
    let status = process.end(PATIENCE).await;
    Ran { code: status.code(), stdout: process.stdout(), all: process.output() }
}

/// With the secret of the replicas under test.
fn configured() -> Command {
    let mut command = belfry();
    command.env("BELFRY__AUTH__JWT__SECRET", SECRET);
    command
}

/// The first word that looks like a JWT.
fn jwt_in(text: &str) -> String {
    text.split_whitespace()
        .map(|word| word.trim_matches(['"', '\'', ',']))
        .find(|word| word.starts_with("eyJ") && word.split('.').count() == 3)
        .unwrap_or_else(|| panic!("no token in {text}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn help_and_mistakes() {
    let help = run(belfry(), &["--help"]).await;
    assert_eq!(help.code, Some(0), "{}", help.all);
    for command in ["serve", "token", "key", "publish", "listen", "bench", "config", "healthcheck"]
    {
        assert!(help.stdout.contains(command), "{command} is not in {}", help.stdout);
        let help = run(belfry(), &[command, "--help"]).await;
        assert_eq!(help.code, Some(0), "{command}: {}", help.all);
        assert!(help.stdout.len() > 80, "{command}: {}", help.stdout);
    }
    assert_eq!(run(belfry(), &["--version"]).await.code, Some(0));
    for wrong in [&["ring"][..], &["serve", "--nope"], &["token"], &["publish", "--user"], &["key"]]
    {
        let ran = run(belfry(), wrong).await;
        assert_eq!(ran.code, Some(2), "{wrong:?}: {}", ran.all);
        assert!(!ran.all.contains("panicked"), "{wrong:?}: {}", ran.all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_names_every_fault_at_once() {
    let mut command = belfry();
    command.envs([
        ("BELFRY_PROFILE", "production"),
        ("BELFRY__AUTH__JWT__SECRET", "short-4711"),
        ("BELFRY__LIMITS__HEARTBEAT", "25"),
        ("BELFRY__LIMITS__QUEUE_BYTES", "many"),
        ("BELFRY__PUBLIC__BIND", "nowhere"),
        ("BELFRY__NOPE", "1"),
        ("BELFRY__DRAIN__DELLAY", "1s"),
        ("BELFRY__AUTH__ORIGINS", "app.example"),
        ("BELFRY__REDIS__PREFIX", "a b*"),
    ]);
    let ran = run(command, &["config"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.all);
    let lower = ran.all.to_lowercase();
    for name in [
        "auth.jwt.secret",
        "limits.heartbeat",
        "limits.queue_bytes",
        "public.bind",
        "nope",
        "drain.dellay",
        "auth.origins",
        "redis.prefix",
        "api.keys",
    ] {
        assert!(lower.contains(name), "{name} is not named in\n{}", ran.all);
    }
    assert!(!ran.all.contains("short-4711"), "{}", ran.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_prints_what_is_in_force_without_secrets() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("belfry.toml");
    std::fs::write(&file, "[limits]\nheartbeat = \"11s\"\nqueue_bytes = \"77KiB\"\n")
        .expect("written");
    let mut command = Builder::production().command();
    // `serve` is the first argument there; this is the same environment.
    let envs: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    command = belfry();
    command.envs(envs.into_iter().filter_map(|(key, value)| Some((key, value?))));
    command.env("BELFRY__LIMITS__HEARTBEAT", "12s");
    command.env("BELFRY__REDIS__URL", "redis://user:redis-pass-99@127.0.0.1:1/0");
    let path = file.to_str().expect("UTF-8");
    let ran = run(command, &["config", "--config", path]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all);
    // The environment goes before the file, the file before the defaults.
    assert!(ran.stdout.contains("12s"), "{}", ran.stdout);
    assert!(ran.stdout.contains("77KiB"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("heartbeat") && ran.stdout.contains("inbound_bytes"),
        "{}",
        ran.stdout
    );
    for secret in [SECRET, "redis-pass-99"] {
        assert!(!ran.all.contains(secret), "{}", ran.all);
    }
    std::fs::write(&file, "[limits]\nhartbeat = \"11s\"\n").expect("written");
    let ran = run(belfry(), &["config", "--config", path]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.all);
    assert!(ran.all.contains("hartbeat"), "{}", ran.all);
    let ran = run(belfry(), &["config", "--config", "/nonexistent/belfry.toml"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.all);
    assert!(ran.all.contains("/nonexistent/belfry.toml"), "{}", ran.all);
    // With nothing set at all, development holds.
    let ran = run(belfry(), &["config"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_opens_a_connection() {
    let replica = Replica::start().await;
    let args = ["token", "--user", "a:b ü", "--group", "g1", "--group", "g 2", "--ttl", "10m"];
    let ran = run(configured(), &args).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all);
    let jwt = jwt_in(&ran.stdout);
    let ws = Dial::to(&replica).query(&jwt).open().await;
    assert_eq!(ws.welcome["user"], "a:b ü");
    assert_eq!(ws.welcome["groups"], json!(["g1", "g 2"]));
    for bad in [&["--user", ""][..], &["--user", "a", "--ttl", "soon"], &["--user", "a\nb"]] {
        let ran = run(configured(), &[&["token"], bad].concat()).await;
        assert!(ran.code.is_some_and(|code| code != 0), "{bad:?}: {}", ran.all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_check_names_the_rule() {
    let good = run(configured(), &["token", "check", &token("alice")]).await;
    assert_eq!(good.code, Some(0), "{}", good.all);
    assert!(good.stdout.contains("alice"), "{}", good.stdout);
    let mut issuer = configured();
    issuer.env("BELFRY__AUTH__JWT__ISSUER", "https://id.example");
    let wrong = run(issuer, &["token", "check", &token("alice")]).await;
    assert!(wrong.code.is_some_and(|code| code != 0) && wrong.all.contains("iss"), "{}", wrong.all);
    for (jwt, rule) in [
        (Jwt::of("alice").expires_in(-600).sign(), "exp"),
        (Jwt::of("alice").without("exp").sign(), "exp"),
        (Jwt::of("alice").claim("exp", "soon").sign(), "exp"),
        (Jwt::of("alice").claim("nbf", 99_999_999_999_i64).sign(), "nbf"),
        (Jwt::of("alice").without("sub").sign(), "sub"),
        (Jwt::of("").sign(), "user"),
        (Jwt::of("alice").secret("x").sign(), "signature"),
        (Jwt::of("alice").header("alg", "none").sign(), "alg"),
        (Jwt::of("alice").header("alg", "HS512").sign_512(), "alg"),
        (Jwt::of("alice").header("crit", json!(["x"])).sign(), "crit"),
        (Jwt::sized("alice", 13_000), "bytes"),
        ("no.token".into(), ""),
        ("nonsense".into(), ""),
    ] {
        let ran = run(configured(), &["token", "check", &jwt]).await;
        assert!(ran.code.is_some_and(|code| code != 0), "{rule}: {}", ran.all);
        let lower = ran.all.to_lowercase();
        assert!(lower.contains(rule), "{rule:?} is not named: {}", ran.all);
        assert!(!lower.contains("panicked") && !ran.all.contains(SECRET), "{}", ran.all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_prints_a_key_and_its_line() {
    let ran = run(belfry(), &["key", "--name", "billing", "--scope", "publish"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all);
    let words: Vec<_> = ran.all.split([' ', '\n', '=', '"', '\'']).collect();
    let line = *words
        .iter()
        .find(|word| word.starts_with("billing:"))
        .unwrap_or_else(|| panic!("no line for the configuration: {}", ran.all));
    let parts: Vec<_> = line.split(':').collect();
    assert_eq!((parts.len(), parts[1].len(), parts[2]), (3, 64, "publish"), "{line}");
    // The key is the word whose hash is in the line.
    let key = *words
        .iter()
        .find(|word| {
            word.len() >= 16
                && crate::support::app::api_key("billing", word) == format!("billing:{}", parts[1])
        })
        .unwrap_or_else(|| panic!("no key for {line}: {}", ran.all));
    let replica = Builder::production().set("api.keys", line).spawn().await;
    let body = json!({"to": {"user": "alice"}, "type": "t", "data": 1}).to_string();
    assert_eq!(replica.post_with(body, key, "application/json").await.status, 202);
    let body = json!({"to": {"broadcast": true}, "type": "t", "data": 1}).to_string();
    replica.post_with(body, key, "application/json").await.is_problem(403);
    let again = run(belfry(), &["key", "--name", "billing"]).await;
    assert!(!again.all.contains(key), "the same key twice");
    let ran = run(belfry(), &["key", "--name", "billing", "--scope", "fly"]).await;
    assert!(ran.code.is_some_and(|code| code != 0), "{}", ran.all);
}

/// `belfry listen` as `user`, once it is connected.
async fn listen(replica: &Replica, jwt: &str) -> Process {
    let mut command = belfry();
    command.args(["listen", "--token", jwt]);
    command.env("BELFRY_URL", format!("ws://{}", replica.public));
    let before = replica.metrics().await.sum("connections");
    let process = Process::spawn(command);
    replica.metric("connections", &[], PATIENCE, |now| now > before).await;
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_and_listen_end_to_end() {
    let replica = Replica::start().await;
    let alice = listen(&replica, &Jwt::of("alice").groups(&["staff"]).sign()).await;
    let bob = listen(&replica, &token("bob")).await;
    let publisher = || {
        let mut command = belfry();
        command.env("BELFRY_URL", format!("http://{}", replica.internal));
        command.env("BELFRY_API_KEY", API_KEY);
        command
    };
    let data = r#"{"b":1, "a":1.0,"n":12345678901234567890.123}"#;
    let ran = run(publisher(), &["publish", "--user", "alice", "--type", "kind", data]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all);
    // The id and whether she is there; and the same id arrives.
    let told: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let id = told["id"].as_str().expect("an id");
    assert_eq!(told["online"], true, "{}", ran.all);
    let once = ["publish", "--user", "bob", "--ttl", "10m", "--idempotency-key", "k", "1"];
    let (first, again) = (run(publisher(), &once).await, run(publisher(), &once).await);
    assert!(first.stdout.contains("\"id\""), "{}", first.all);
    assert_eq!(again.stdout, first.stdout, "{}", again.all);
    let frame = format!(r#"{{"id":"{id}","prev":"u~0-0","type":"kind","data":{data}}}"#);
    until("listen prints the event as it came", PATIENCE, async || {
        alice.stdout().contains(&frame).then_some(())
    })
    .await;
    for args in [["--group", "staff"].as_slice(), &["--broadcast"]] {
        let marker = args.join("");
        let data = json!({"mk": marker}).to_string();
        let ran =
            run(publisher(), &[&["publish"], args, &["--type", "kind", &data]].concat()).await;
        assert_eq!(ran.code, Some(0), "{}", ran.all);
        until("it arrives", PATIENCE, async || alice.stdout().contains(&marker).then_some(()))
            .await;
    }
    until("bob has the broadcast", PATIENCE, async || {
        bob.stdout().contains("--broadcast").then_some(())
    })
    .await;
    assert!(!bob.stdout().contains("12345678901234567890") && !bob.stdout().contains("--group"));
    // What is wrong is told, and the code says so.
    for args in [
        &["publish", "--user", "alice", "--type", "belfry.x", "{}"][..],
        &["publish", "--user", "alice", "--type", "t", "{nonsense"],
        &["publish", "--user", "", "--type", "t", "{}"],
    ] {
        let ran = run(publisher(), args).await;
        assert!(ran.code.is_some_and(|code| code != 0), "{args:?}: {}", ran.all);
        assert!(!ran.all.contains("panicked") && !ran.all.contains(API_KEY), "{}", ran.all);
    }
    let mut wrong = publisher();
    wrong.env("BELFRY_API_KEY", "wrong-key-123456");
    let ran = run(wrong, &["publish", "--user", "alice", "--type", "t", "{}"]).await;
    assert!(
        ran.code.is_some_and(|code| code != 0) && !ran.all.contains("wrong-key-123456"),
        "{}",
        ran.all
    );
    let mut nobody = publisher();
    nobody.env("BELFRY_URL", "http://127.0.0.1:1");
    let ran = run(nobody, &["publish", "--user", "alice", "--type", "t", "{}"]).await;
    assert!(ran.code.is_some_and(|code| code != 0), "{}", ran.all);
    // Told to stay away, it does not hammer.
    let mut refused = belfry();
    refused.env("BELFRY_URL", format!("ws://{}", replica.public));
    let bad = Jwt::of("alice").secret("x").sign();
    let ran = run(refused, &["listen", "--token", &bad]).await;
    assert!(ran.code.is_some_and(|code| code != 0), "{}", ran.all);
    assert!(ran.all.contains("1008") || ran.all.contains("unauthorized"), "{}", ran.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_says_why_it_ended() {
    let replica = Replica::start().await;
    let listener = listen(&replica, &token("alice")).await;
    replica.process.signal(nix::sys::signal::Signal::SIGTERM);
    let status = listener.end(PATIENCE).await;
    assert!(status.code().is_some_and(|code| code != 0), "{status}: a script must see it");
    assert!(listener.output().contains("1012"), "{}", listener.output());
    assert!(replica.process.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthcheck() {
    let replica = Replica::start().await;
    let check = |address: String| {
        let mut command = belfry();
        command.env("BELFRY__INTERNAL__BIND", &address);
        command.env("BELFRY_URL", format!("http://{address}"));
        command
    };
    let ran = run(check(replica.internal.to_string()), &["healthcheck"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all);
    let ran =
        run(check(format!("127.0.0.1:{}", crate::support::free_port())), &["healthcheck"]).await;
    assert!(ran.code.is_some_and(|code| code != 0), "{}", ran.all);
    assert!(!ran.all.contains("panicked"), "{}", ran.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn development_prints_what_to_try() {
    let mut command = belfry();
    command.args(["serve"]);
    command.env("BELFRY__PUBLIC__BIND", "127.0.0.1:0").env("BELFRY__INTERNAL__BIND", "127.0.0.1:0");
    let dir = tempfile::tempdir().expect("a folder");
    command.current_dir(dir.path());
    let process = Process::spawn(command);
    // A ready token and a curl line that work as they are printed.
    let output = until("a curl line and a token", PATIENCE, async || {
        let output = process.output();
        (output.contains("curl") && output.contains("eyJ")).then_some(output)
    })
    .await;
    let jwt = jwt_in(&output);
    let claims: Value = {
        use base64::Engine as _;
        let part = jwt.split('.').nth(1).expect("claims");
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    assert!(claims["exp"].is_u64() && claims["sub"].is_string(), "{claims}");
    assert!(output.contains("/ws/notifications") && output.contains("/v1/events"), "{output}");
}

//! The layers and the faults, on environments and files made by hand.

use std::{collections::BTreeSet, fs, path::Path};

use config::{FileFormat, Format as _};
use jsonwebtoken::Algorithm;
use secrecy::ExposeSecret as _;

use super::*;
use crate::config::{Flag, layers::DEFAULT_TOML, show::show};

const SECRET: &str = "a-secret-of-32-bytes-and-no-less";

fn sources(env: &[(&str, &str)]) -> Sources {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    Sources { env, ..Sources::default() }
}

/// Production with what it asks for.
fn production(more: &[(&str, &str)]) -> Sources {
    let key = format!("billing:{}", "ab".repeat(32));
    let mut sources = sources(&[
        ("BELFRY_PROFILE", "production"),
        ("BELFRY__AUTH__JWT__SECRET", SECRET),
        ("BELFRY__API__KEYS", &key),
    ]);
    for (name, value) in more {
        sources.env.insert((*name).to_owned(), value.into());
    }
    sources
}

fn with_file(dir: &Path, toml: &str, mut sources: Sources) -> Sources {
    let path = dir.join("belfry.toml");
    fs::write(&path, toml).unwrap();
    sources.file = Some(path);
    sources
}

fn flag(name: &'static str, key: &str, value: &str) -> Flag {
    Flag { name, key: key.to_owned(), value: value.to_owned() }
}

fn faults(sources: &Sources) -> Vec<String> {
    load(sources).unwrap_err().0.iter().map(ToString::to_string).collect()
}

fn setting(loaded: &Loaded, key: &str) -> (String, String) {
    let found = loaded.settings.iter().find(|setting| setting.key == key).unwrap();
    (found.value.clone(), found.origin.clone())
}

#[test]
fn development_needs_nothing() {
    let config = load(&Sources::default()).unwrap();
    assert_eq!(config.profile, Profile::Development);
    assert_eq!(config.public.bind.to_string(), "127.0.0.1:8080");
    assert_eq!(config.internal.bind.to_string(), "127.0.0.1:8081");
    assert!(config.redis.is_none());
    let secret = config.auth.jwt.secret.as_ref().unwrap();
    assert_eq!(secret.expose_secret(), secrets::DEVELOPMENT_SECRET);
    assert_eq!(config.api.keys[0].hash, secrets::hash(secrets::DEVELOPMENT_KEY));
    assert_eq!(config.api.keys[0].scopes, Scope::DEFAULT);
    assert_eq!(config.auth.origins, ["http://localhost:*", "http://127.0.0.1:*"]);
    assert_eq!(config.auth.methods, Method::ALL);
    assert_eq!(config.auth.token_bytes, 12_288);
    assert_eq!(config.drain.delay, Duration::ZERO);
    assert_eq!(config.drain.spread, Duration::from_secs(1));
    assert_eq!(config.log.format, LogFormat::Pretty);
    assert!(config.public.workers >= 1);
    assert_eq!(config.internal.workers, 1);
    assert_eq!(config.limits.heartbeat, Duration::from_secs(25));
}

#[test]
fn production_with_its_secrets_loads() {
    let config = load(&production(&[])).unwrap();
    assert_eq!(config.profile, Profile::Production);
    assert_eq!(config.public.bind.to_string(), "0.0.0.0:8080");
    assert_eq!(config.internal.bind.to_string(), "0.0.0.0:8081");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.level, "info");
    assert!(config.auth.origins.is_empty());
    assert_eq!(config.drain.delay, Duration::from_secs(10));
}

#[test]
fn production_refuses_what_is_missing_short_or_well_known() {
    let both = faults(&sources(&[("BELFRY_PROFILE", "production")]));
    assert_eq!(both.len(), 2, "{both:#?}");
    assert!(both[0].starts_with("auth.jwt.secret (default): is not set"));
    assert!(both[1].starts_with("api.keys (default): is empty"));

    let development_key = format!("x:{}", secrets::hex(&secrets::hash(secrets::DEVELOPMENT_KEY)));
    for (name, value, says) in [
        ("BELFRY__AUTH__JWT__SECRET", "short-secret", "is 12 bytes long"),
        ("BELFRY__AUTH__JWT__SECRET", secrets::DEVELOPMENT_SECRET, "is the development secret"),
        ("BELFRY__API__KEYS", development_key.as_str(), "is the development key"),
    ] {
        let found = faults(&production(&[(name, value)]));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(says) && found[0].contains(name), "{found:#?}");
        assert!(!found[0].contains(value), "{found:#?}");
    }
}

#[test]
fn each_layer_lies_over_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let key = "drain.spread";
    let look = |sources: &Sources| setting(&load_with_origins(sources).unwrap(), key);
    let say = |value: &str, origin: &str| (format!("\"{value}\""), origin.to_owned());

    assert_eq!(look(&production(&[])), say("30s", "default"));
    let mut sources = Sources::default();
    assert_eq!(look(&sources), say("1s", "profile development"));
    sources = with_file(dir.path(), "[drain]\nspread = \"2s\"", sources);
    let file = format!("file {}", dir.path().join("belfry.toml").display());
    assert_eq!(look(&sources), say("2s", &file));
    sources.env.insert("BELFRY__DRAIN__SPREAD".to_owned(), "3s".into());
    assert_eq!(look(&sources), say("3s", "environment BELFRY__DRAIN__SPREAD"));
    sources.flags.push(flag("--set", key, "4s"));
    assert_eq!(look(&sources), say("4s", "flag --set"));
    sources.flags.push(flag("--spread", key, "5s"));
    assert_eq!(look(&sources), say("5s", "flag --spread"));
}

#[test]
fn a_layer_replaces_only_what_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "[auth]\norigins = [\"https://app.example\"]\n[limits]\nqueue_bytes = 2048";
    let config = load(&with_file(dir.path(), toml, Sources::default())).unwrap();
    assert_eq!(config.auth.origins, ["https://app.example"]);
    assert_eq!(config.limits.queue_bytes, 2048);
    assert_eq!(config.limits.queue_events, 4096);
}

#[test]
fn lists_are_arrays_or_text_with_commas() {
    let dir = tempfile::tempdir().unwrap();
    for toml in ["[\"bearer\", \"query\"]", "\"bearer, query\"", "\" bearer ,query \""] {
        let toml = format!("[auth]\nmethods = {toml}");
        let config = load(&with_file(dir.path(), &toml, Sources::default())).unwrap();
        assert_eq!(config.auth.methods, [Method::Bearer, Method::Query]);
    }
    let config = load(&sources(&[("BELFRY__AUTH__ORIGINS", " ")])).unwrap();
    assert!(config.auth.origins.is_empty());
}

#[test]
fn names_that_scripts_use_are_read() {
    let config = load(&production(&[
        ("BELFRY__PUBLIC__BIND", "127.0.0.1:0"),
        ("BELFRY__PUBLIC__WORKERS", "3"),
        ("BELFRY__INTERNAL__BIND", "127.0.0.1:0"),
        ("BELFRY__REDIS__URL", "redis://:p%40ss@127.0.0.1:6379/1"),
        ("BELFRY__REDIS__PREFIX", "t1:"),
        ("BELFRY__AUTH__JWT__ALGORITHMS", "HS384,HS512"),
        ("BELFRY__AUTH__ORIGINS", "https://app.example,https://*.example"),
        ("BELFRY__AUTH__SESSION__RECHECK", "2s"),
        ("BELFRY__LIMITS__HEARTBEAT", "250ms"),
        ("BELFRY__LIMITS__QUEUE_BYTES", "256KiB"),
        ("BELFRY__LIMITS__CONNECTIONS_PER_USER", "12"),
        ("BELFRY__DRAIN__DELAY", "0s"),
        ("BELFRY__DRAIN__SPREAD", "500ms"),
        ("BELFRY__HISTORY__EVENTS", "0"),
        ("BELFRY__HISTORY__TTL", "10m"),
        // None of Belfry's.
        ("BELFRY_SERVICE_HOST", "10.0.0.1"),
        ("BELFRY_PORT", "tcp://10.0.0.1:8080"),
        ("PATH", "/bin"),
    ]))
    .unwrap();
    assert_eq!(config.public.workers, 3);
    let redis = config.redis.unwrap();
    assert_eq!(redis.url.expose_secret(), "redis://:p%40ss@127.0.0.1:6379/1");
    assert_eq!(redis.prefix, "t1:");
    assert_eq!(redis.command_timeout, Duration::from_millis(1500));
    assert_eq!(config.auth.jwt.algorithms, [Algorithm::HS384, Algorithm::HS512]);
    assert_eq!(config.auth.origins, ["https://app.example", "https://*.example"]);
    assert_eq!(config.limits.heartbeat, Duration::from_millis(250));
    assert_eq!(config.limits.queue_bytes, 262_144);
    assert_eq!(config.auth.session.recheck, Duration::from_secs(2));
    assert_eq!(config.limits.connections_per_user, 12);
    assert_eq!(config.history.events, 0);
    assert_eq!(config.history.ttl, Duration::from_secs(600));
}

#[test]
fn every_bad_value_is_named_with_its_place() {
    for (name, value, says) in [
        ("PUBLIC__BIND", "localhost:8080", "is not an IP address with a port"),
        ("PUBLIC__BIND", "127.0.0.1", "is not an IP address with a port"),
        ("PUBLIC__WORKERS", "-1", "is not a whole number"),
        ("PUBLIC__WORKERS", "2000", "is too large"),
        ("PUBLIC__BASE_PATH", "push", "is not a path"),
        ("PUBLIC__BASE_PATH", "/push/", "is not a path"),
        ("PUBLIC__BASE_PATH", "/a//b", "is not a path"),
        ("PUBLIC__BASE_PATH", "/{a}", "is not a path"),
        ("PUBLIC__BASE_PATH", "/..", "is not a path"),
        ("PUBLIC__BACKLOG", "0", "is too small"),
        ("INTERNAL__BIND", "127.0.0.1:8080", "is also public.bind"),
        ("INTERNAL__BIND", "0.0.0.0:8080", "is also public.bind"),
        ("REDIS__URL", "localhost:6379", "is not a URL"),
        ("REDIS__URL", "http://localhost", "unknown scheme"),
        ("REDIS__URL", "redis://", "names no host"),
        ("REDIS__URL", "redis://user:pw@:6379", "names no host"),
        ("REDIS__URL", "redis://h:99999", "has a bad port"),
        ("REDIS__URL", "redis://h:0", "has a bad port"),
        ("REDIS__URL", "redis://user:p/w@h", "after the host"),
        ("REDIS__URL", "redis://h h", "has a space"),
        ("REDIS__PREFIX", "", "must not be empty"),
        ("REDIS__PREFIX", "ws*", "has a character"),
        ("REDIS__PREFIX", "w s:", "has a character"),
        ("REDIS__PREFIX", "ws\u{7}", "has a character"),
        ("REDIS__COMMAND_TIMEOUT", "2s", "is too large"),
        ("REDIS__COMMAND_TIMEOUT", "0s", "is too small"),
        ("REDIS__CONNECT_TIMEOUT", "5", "has no unit"),
        ("REDIS__INFLIGHT", "0", "is too small"),
        ("AUTH__METHODS", "bearer,basic", "\"basic\" is not a kind of credential"),
        ("AUTH__METHODS", "bearer,cookie", "there is no Redis to look sessions up in"),
        ("AUTH__SESSION__REDIS_URL", "mysql://h", "has an unknown scheme"),
        ("AUTH__SESSION__COOKIE", "session id", "is no name of a cookie"),
        ("AUTH__SESSION__COOKIE", "", "is no name of a cookie"),
        ("AUTH__SESSION__KEY_PREFIX", "", "must not be empty"),
        ("AUTH__SESSION__KEY_PREFIX", "a*", "has a character"),
        ("AUTH__SESSION__FORMAT", "pickle", "is not known"),
        ("AUTH__SESSION__USER_FIELD", "", "names no field"),
        ("AUTH__SESSION__USER_FIELD", "/", "is no JSON Pointer"),
        ("AUTH__SESSION__GROUPS_FIELD", "/a~2", "is no JSON Pointer"),
        ("AUTH__SESSION__ISSUED_FIELD", "a\n", "names no field"),
        ("AUTH__SESSION__RECHECK", "50ms", "is too small"),
        ("AUTH__METHODS", "", "is empty, so nobody could connect"),
        ("AUTH__REJECT", "ignore", "is not known"),
        ("AUTH__ORIGINS", "*", "every site"),
        ("AUTH__ORIGINS", "app.example", "has no scheme"),
        ("AUTH__ORIGINS", "ws://app.example", "is neither"),
        ("AUTH__ORIGINS", "https://app.example/", "has a path"),
        ("AUTH__ORIGINS", "https://", "names no host"),
        ("AUTH__ORIGINS", "https://a.*.example", "names no host"),
        ("AUTH__ORIGINS", "https://app.example:0", "has a bad port"),
        ("AUTH__ORIGINS", "https://bücher.example", "beyond ASCII"),
        ("AUTH__ORIGINS", "https://a.example,", "has no scheme"),
        ("AUTH__ORIGINS", "null", "has no scheme"),
        ("AUTH__TOKEN_BYTES", "1", "is too small"),
        ("AUTH__GROUPS__ALLOW", "a,,b", "can match no group"),
        ("AUTH__JWT__ALGORITHMS", "RS256", "RS256 has no key"),
        ("AUTH__JWT__ALGORITHMS", "none", "is not an algorithm that is accepted"),
        ("AUTH__JWT__ALGORITHMS", "", "is empty, so no token could be accepted"),
        ("AUTH__JWT__LEEWAY", "1h", "is too large"),
        ("AUTH__JWT__USER_CLAIM", "", "names no claim"),
        ("AUTH__JWT__GROUPS_CLAIM", "sub", "says something else already"),
        ("AUTH__JWT__USER_CLAIM", "exp", "says something else already"),
        ("AUTH__JWT__SECRET_FILE", "/nonexistent/secret", "/nonexistent/secret cannot be read"),
        ("AUTH__SESSION__RECHECK", "0s", "is too small"),
        ("API__KEYS", "billing", "entry 1 is not name:hash"),
        ("API__KEYS_FILE", "/nonexistent/keys", "/nonexistent/keys cannot be read"),
        ("LIMITS__CONNECTIONS", "0", "is too small"),
        ("LIMITS__CONNECTIONS", "many", "is not a whole number"),
        ("LIMITS__HEARTBEAT", "99ms", "is too small"),
        ("LIMITS__HEARTBEAT", "-25s", "is not whole numbers with units"),
        ("LIMITS__HEARTBEAT", "", "is empty"),
        ("LIMITS__QUEUE_BYTES", "1023", "is too small"),
        ("LIMITS__QUEUE_BYTES", "1M", "has an unknown unit"),
        ("LIMITS__BODY_BYTES", "32KiB", "is below limits.data_bytes"),
        ("LIMITS__CONNECTIONS_PER_USER", "x", "is not a whole number"),
        ("HISTORY__EVENTS", "100001", "is too large"),
        ("HISTORY__TTL", "0s", "is too small"),
        ("READY__REDIS_GRACE", "20", "has no unit"),
        ("DRAIN__DELAY", "2h", "is too large"),
        ("LOG__FORMAT", "xml", "is not known"),
        ("LOG__LEVEL", "verbose", "\"verbose\" is not a level"),
        ("LOG__LEVEL", "belfry=loud", "is not a filter"),
        ("LIMITS__HARTBEAT", "25s", "did you mean BELFRY__LIMITS__HEARTBEAT?"),
        ("FOO__BAR", "1", "is not a known key"),
        ("LIMITS", "1", "is a section, not a key"),
    ] {
        let name = format!("BELFRY__{name}");
        let found = faults(&sources(&[(&name, value)]));
        assert_eq!(found.len(), 1, "{name}={value:?}: {found:#?}");
        let place = format!("(environment {name}): ");
        assert!(
            found[0].contains(&place) && found[0].contains(says),
            "{name}={value:?}: {found:?}"
        );
    }
}

#[test]
fn good_values_at_the_edges_are_taken() {
    for (name, value) in [
        ("PUBLIC__BIND", "[::1]:8080"),
        ("PUBLIC__BASE_PATH", "/a/b-c_d.e~f"),
        ("PUBLIC__WORKERS", "0"),
        ("REDIS__URL", "rediss-sentinel://u:p@h:26379/0?sentinelServiceName=m&node=i:1"),
        ("REDIS__URL", "redis-cluster://[::1]:7000"),
        ("REDIS__URL", "redis://h"),
        ("REDIS__COMMAND_TIMEOUT", "1999ms"),
        ("AUTH__ORIGINS", "https://[::1]:8443,http://localhost:*,https://a_b.example"),
        ("AUTH__GROUPS__ALLOW", "team-*,été"),
        ("AUTH__SESSION__COOKIE", "__Host-session.id"),
        ("AUTH__SESSION__USER_FIELD", "/user/a~1b~0c"),
        ("AUTH__SESSION__USER_FIELD", "user id"),
        ("AUTH__SESSION__GROUPS_FIELD", ""),
        ("LIMITS__HEARTBEAT", "100ms"),
        ("LIMITS__QUEUE_BYTES", "1KiB"),
        ("LOG__LEVEL", "warn,belfry=debug,belfry::bus=trace"),
        ("LOG__LEVEL", "off"),
    ] {
        let name = format!("BELFRY__{name}");
        assert!(load(&sources(&[(&name, value)])).is_ok(), "{name}={value:?}");
    }
}

#[test]
fn sessions_are_in_their_own_redis_or_in_ours() {
    let own = ("BELFRY__AUTH__SESSION__REDIS_URL", "redis://:hush@sessions:6379/2");
    let ours = ("BELFRY__REDIS__URL", "redis://ours");
    let url = |env: &[(&str, &str)]| {
        let redis = load(&sources(env)).unwrap().auth.session.redis?;
        Some(redis.url.expose_secret().to_owned())
    };
    assert_eq!(url(&[]), None);
    assert_eq!(url(&[ours]).as_deref(), Some(ours.1));
    assert_eq!(url(&[own]).as_deref(), Some(own.1));
    assert_eq!(url(&[ours, own]).as_deref(), Some(own.1));
    assert!(load(&sources(&[own, ("BELFRY__AUTH__METHODS", "cookie")])).is_ok());
    let shown = show(&load_with_origins(&sources(&[own])).unwrap());
    assert!(shown.contains("<redacted>@sessions:6379/2") && !shown.contains("hush"), "{shown}");
    // A cookie must not name a key of ours.
    for prefix in ["ws:", "ws:session:", "w"] {
        let prefix = ("BELFRY__AUTH__SESSION__KEY_PREFIX", prefix);
        let found = faults(&sources(&[ours, prefix]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("overlaps with redis.prefix"), "{found:?}");
        assert!(load(&sources(&[ours, own, prefix])).is_ok());
        // Where no cookie is taken, nobody reads.
        assert!(load(&sources(&[ours, prefix, ("BELFRY__AUTH__METHODS", "query,ticket")])).is_ok());
        let methods = ("BELFRY__AUTH__METHODS", "query,cookie");
        assert_eq!(faults(&sources(&[ours, prefix, methods])).len(), 1);
    }
}

#[test]
fn a_previous_secret_that_was_withdrawn_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("previous");
    let env = [("BELFRY__AUTH__JWT__SECRET_PREVIOUS_FILE", path.to_str().unwrap())];
    for empty in ["", "\n"] {
        fs::write(&path, empty).unwrap();
        let jwt = load(&production(&env)).unwrap().auth.jwt;
        assert!(jwt.secret_previous.is_none());
        // It is looked at again.
        assert_eq!(jwt.secret_previous_file.as_ref(), Some(&path));
    }
    fs::remove_file(&path).unwrap();
    assert!(faults(&production(&env))[0].contains("cannot be read"));
}

#[test]
fn one_redis_under_two_urls_is_one_redis() {
    let cluster = "redis-cluster://c1:7000?node=c2:7000";
    let sentinel = "redis-sentinel://s1:26379/0?sentinelServiceName=main&node=s2:26379";
    for (ours, theirs, same) in [
        ("redis://r", "redis://r", true),
        ("redis://r", "redis://user:hush@R:6379/0", true),
        ("redis://r/0", "redis://r/", true),
        ("redis://r/2", "redis://r/2", true),
        ("redis://[::1]", "redis://[::1]:6379", true),
        (cluster, "redis-cluster://c3:7000?node=c2:7000", true),
        (sentinel, "redis-sentinel://s2?sentinelServiceName=main", true),
        (sentinel, "redis-sentinel://s2?sentinelServiceName=other", false),
        (cluster, "redis-cluster://c3:7000", false),
        ("redis://r", "redis://r/3", false),
        ("redis://r", "redis://r:6380", false),
        ("redis://r", "redis://s", false),
    ] {
        for (ours, theirs) in [(ours, theirs), (theirs, ours)] {
            let env = [
                ("BELFRY__REDIS__URL", ours),
                ("BELFRY__AUTH__SESSION__REDIS_URL", theirs),
                ("BELFRY__AUTH__SESSION__KEY_PREFIX", "ws:session:"),
            ];
            let loaded = load(&sources(&env));
            assert_eq!(loaded.is_err(), same, "{ours} and {theirs}: {:?}", loaded.err());
            if same {
                let found = faults(&sources(&env)).join("\n");
                assert!(found.contains("overlaps with redis.prefix"), "{found}");
                assert!(!found.contains("hush"), "{found}");
            }
        }
    }
}

#[test]
fn a_public_back_channel_has_an_issuer() {
    let public = ("BELFRY__AUTH__BACKCHANNEL__PUBLIC", "true");
    let none = |more: &[(&str, &str)]| {
        let mut sources = production(&[("BELFRY__AUTH__METHODS", "ticket"), public]);
        sources.env.remove("BELFRY__AUTH__JWT__SECRET");
        for (name, value) in more {
            sources.env.insert((*name).to_owned(), value.into());
        }
        sources
    };
    let found = faults(&none(&[]));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("auth.backchannel.public"), "{found:?}");
    assert!(load(&none(&[(public.0, "false")])).is_ok());
    assert!(load(&none(&[("BELFRY__AUTH__JWT__SECRET", SECRET)])).is_ok());
    let issuer = [
        ("BELFRY__AUTH__ISSUERS__A__ISSUER", "a"),
        ("BELFRY__AUTH__ISSUERS__A__ALGORITHMS", "HS256"),
        ("BELFRY__AUTH__ISSUERS__A__SECRET", SECRET),
    ];
    assert!(load(&none(&issuer)).is_ok());
    // One that cannot be read is told once.
    let found = faults(&none(&[("BELFRY__AUTH__JWT__SECRET_FILE", "/nowhere/secret")]));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn origins_are_kept_as_browsers_send_them() {
    let origins = "https://App.Example:443,http://x.example:80,https://x.example:8443";
    let config = load(&sources(&[("BELFRY__AUTH__ORIGINS", origins)])).unwrap();
    assert_eq!(
        config.auth.origins,
        ["https://app.example", "http://x.example", "https://x.example:8443"]
    );
}

#[test]
fn all_faults_of_all_layers_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "[limits]\nheartbeat = 25\nhart = 1\n[log]\nlevel = [\"a\"]\n[[redis.x]]\ny = 1";
    let mut sources = with_file(
        dir.path(),
        toml,
        sources(&[("BELFRY_PROFILE", "prod"), ("BELFRY__DRAIN__DELAY", "soon")]),
    );
    sources.flags = vec![flag("--bind", "public.bind", "nowhere"), flag("--set", "a.b", "c")];
    let found = faults(&sources);
    for says in [
        "BELFRY_PROFILE (environment BELFRY_PROFILE): \"prod\" is not a profile",
        "limits.heartbeat (file",
        "limits.hart (file",
        "log.level (file",
        "redis.x (file",
        "drain.delay (environment BELFRY__DRAIN__DELAY)",
        "public.bind (flag --bind)",
        "a.b (flag --set)",
    ] {
        let hits = found.iter().filter(|fault| fault.starts_with(says)).count();
        assert_eq!(hits, 1, "{says}: {found:#?}");
    }
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn a_bad_profile_is_never_development_by_accident() {
    for name in ["", "Production", "production ", "prod"] {
        assert_eq!(faults(&sources(&[("BELFRY_PROFILE", name)])).len(), 1, "{name:?}");
    }
}

#[test]
fn a_bad_file_is_named_and_its_lines_are_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "[auth.jwt]\nsecret = \"hush-hush";
    let found = faults(&with_file(dir.path(), toml, Sources::default()));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("belfry.toml") && found[0].contains("line 2"), "{found:#?}");
    assert!(!found[0].contains("hush"), "{found:#?}");

    let sources = Sources { file: Some("/nonexistent.toml".into()), ..Sources::default() };
    assert!(faults(&sources)[0].starts_with("--config (file /nonexistent.toml): cannot be read"));
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_unicode_is_a_fault() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut sources = Sources::default();
    let value = std::ffi::OsString::from_vec(vec![0xff]);
    sources.env.insert("BELFRY__AUTH__JWT__SECRET".to_owned(), value);
    assert!(faults(&sources)[0].contains("is not Unicode"));
}

#[test]
fn secrets_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let secret = write("secret", &format!("{SECRET}\n"));
    let keys = write("keys", &format!("# one\nbilling:{}:publish\n", "ab".repeat(32)));
    let url = write("url", "redis://:pw@h:6379\n");
    let env = [
        ("BELFRY_PROFILE", "production"),
        ("BELFRY__AUTH__JWT__SECRET_FILE", secret.as_str()),
        ("BELFRY__API__KEYS_FILE", keys.as_str()),
        ("BELFRY__REDIS__URL_FILE", url.as_str()),
    ];
    let loaded = load_with_origins(&sources(&env)).unwrap();
    let config = &loaded.config;
    assert_eq!(config.auth.jwt.secret.as_ref().unwrap().expose_secret(), SECRET);
    assert_eq!(config.auth.jwt.secret_file.as_deref(), Some(Path::new(&secret)));
    assert_eq!(config.api.keys[0].scopes, [Scope::Publish]);
    assert_eq!(config.api.keys_file.as_deref(), Some(Path::new(&keys)));
    assert_eq!(config.redis.as_ref().unwrap().url.expose_secret(), "redis://:pw@h:6379");
    let text = show(&loaded);
    assert!(!text.contains(SECRET) && !text.contains(":pw@"), "{text}");
}

#[test]
fn a_secret_and_its_file_compete_by_layer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "from-the-file").unwrap();
    let path = path.display().to_string();
    let secret = |sources: &Sources| {
        load(sources).unwrap().auth.jwt.secret.unwrap().expose_secret().to_owned()
    };
    let toml = format!("[auth.jwt]\nsecret_file = \"{path}\"");

    // The file beats the profile's secret, the environment's secret beats the file.
    let sources = with_file(dir.path(), &toml, Sources::default());
    assert_eq!(secret(&sources), "from-the-file");
    let mut over = sources.clone();
    over.env.insert("BELFRY__AUTH__JWT__SECRET".to_owned(), "0123".into());
    assert_eq!(secret(&over), "0123");
    assert_eq!(load(&over).unwrap().auth.jwt.secret_file, None);

    // In one layer there is no order.
    over.env.insert("BELFRY__AUTH__JWT__SECRET_FILE".to_owned(), path.into());
    let found = faults(&over);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("given too, by environment BELFRY__AUTH__JWT__SECRET;"), "{found:?}");
}

#[test]
fn secrets_stay_text() {
    for secret in ["0123", "1e5", "true", "a,b", " x "] {
        let config = load(&sources(&[("BELFRY__AUTH__JWT__SECRET", secret)])).unwrap();
        assert_eq!(config.auth.jwt.secret.unwrap().expose_secret(), secret);
    }
}

#[test]
fn every_documented_key_is_read_and_shown_once() {
    let loaded = load_with_origins(&Sources::default()).unwrap();
    let shown: Vec<&str> = loaded.settings.iter().map(|setting| setting.key.as_str()).collect();
    let once: BTreeSet<&str> = shown.iter().copied().collect();
    assert_eq!(shown.len(), once.len(), "{shown:?}");

    let mut section = "";
    let mut documented = BTreeSet::new();
    for line in DEFAULT_TOML.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, _)) = line.split_once(" = ") {
            documented.insert(format!("{section}.{name}"));
        }
    }
    assert_eq!(once, documented.iter().map(String::as_str).collect());
}

#[test]
fn what_is_shown_is_toml_with_origins_and_without_secrets() {
    let toml = "redis://user:p%40ss@h:6379/2?sentinelPassword=hush&node=a:1";
    let mut sources = production(&[
        ("BELFRY__LIMITS__HEARTBEAT", "90s"),
        ("BELFRY__REDIS__URL", toml),
        ("BELFRY__AUTH__JWT__ISSUER", "quote \" and \\ and \n"),
    ]);
    sources.flags = vec![flag("--bind", "public.bind", "127.0.0.1:9")];
    let loaded = load_with_origins(&sources).unwrap();
    let text = show(&loaded);
    for secret in [SECRET, "p%40ss", "hush", &"ab".repeat(32)] {
        assert!(!text.contains(secret), "{text}");
    }
    let line = |start: &str| {
        let found = text.lines().find(|line| line.starts_with(start)).unwrap();
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("heartbeat"), "heartbeat = \"1m30s\" # environment BELFRY__LIMITS__HEARTBEAT");
    assert_eq!(line("bind"), "bind = \"127.0.0.1:9\" # flag --bind");
    assert_eq!(line("secret "), "secret = \"<redacted>\" # environment BELFRY__AUTH__JWT__SECRET");
    assert!(
        line("url ").starts_with(
            "url = \"redis://<redacted>@h:6379/2?sentinelPassword=<redacted>&node=a:1\""
        )
    );
    assert!(
        line("keys ")
            .starts_with("keys = [\"billing:<redacted>:publish+broadcast+read+disconnect\"]")
    );

    let parsed = FileFormat::Toml.parse(None, &text).unwrap();
    let issuer = &parsed["auth"].clone().into_table().unwrap()["jwt"];
    let issuer = issuer.clone().into_table().unwrap()["issuer"].clone().into_string().unwrap();
    assert_eq!(issuer, "quote \" and \\ and \n");
    assert!(!format!("{:?}", loaded.config).contains(SECRET));
}

const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PUBLIC KEY-----\n";

#[test]
fn issuers_stand_side_by_side_from_file_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("key.pem");
    fs::write(&pem, PEM).unwrap();
    let toml = format!(
        "[auth.issuers.my-idp]\nissuer = \"https://id.example\"\nalgorithms = [\"EdDSA\"]\n\
         public_key_files = [\"{0}\", \"{0}\"]\nuser_claim = \"uid\"\n",
        pem.display()
    );
    let mut sources = with_file(dir.path(), &toml, production(&[]));
    for (name, value) in [
        ("BELFRY__AUTH__ISSUERS__B__ISSUER", "https://b.example"),
        ("BELFRY__AUTH__ISSUERS__B__JWKS_URL", "https://b.example/keys"),
        ("BELFRY__AUTH__ISSUERS__B__ALGORITHMS", "RS256,ES256"),
        ("BELFRY__AUTH__ISSUERS__B__AUDIENCE", "x,y"),
        ("BELFRY__AUTH__JWT__LEEWAY", "7s"),
    ] {
        sources.env.insert(name.to_owned(), value.into());
    }
    let loaded = load_with_origins(&sources).unwrap();
    let [b, mine] = &loaded.config.auth.issuers[..] else { panic!("{loaded:?}") };
    assert_eq!((b.name.as_str(), mine.name.as_str()), ("b", "my-idp"));
    assert_eq!(b.jwt.algorithms, [Algorithm::RS256, Algorithm::ES256]);
    assert_eq!(b.jwt.audience, ["x", "y"]);
    assert_eq!(b.jwt.user_claim, "sub");
    assert_eq!(mine.jwt.user_claim, "uid");
    assert_eq!(mine.jwt.public_keys.len(), 2);
    assert_eq!(b.jwt.leeway, Duration::from_secs(7));
    let text = show(&loaded);
    assert!(text.contains("[auth.issuers.my-idp]") && text.contains("jwks_url = \"https://b.ex"));
}

#[test]
fn a_table_of_an_issuer_is_whole_and_spelt_right() {
    const B: [(&str, &str); 3] = [
        ("BELFRY__AUTH__ISSUERS__B__ISSUER", "b"),
        ("BELFRY__AUTH__ISSUERS__B__SECRET", SECRET),
        ("BELFRY__AUTH__ISSUERS__B__ALGORITHMS", "HS256"),
    ];
    assert!(load(&production(&B)).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let many = dir.path().join("many.pem");
    fs::write(&many, PEM.repeat(17)).unwrap();
    let many = many.display().to_string();
    for (name, value, says) in [
        ("ISSUERS__B__JWKS_URI", "https://x", "did you mean BELFRY__AUTH__ISSUERS__B__JWKS_URL?"),
        ("ISSUERS__B__LEEWAY", "1s", "is not a known key"),
        ("ISSUERS__B", "x", "is a section, not a key"),
        ("ISSUERS__B__SECRET__X", "x", "is a key, not a section"),
        ("ISSUERS__B__ISSUER", "", "auth.issuers.b.issuer (environment"),
        ("ISSUERS__B__ALGORITHMS", "", "auth.issuers.b.algorithms (environment"),
        ("ISSUERS__B__ALGORITHMS", "HS256,RS256", "RS256 has no key"),
        ("ISSUERS__B__SECRET", "", "auth.issuers.b (default): has neither secret nor"),
        ("ISSUERS__B__SECRET", "short", "is 5 bytes long"),
        ("ISSUERS__B__SECRET", PEM, "is a key in PEM"),
        ("ISSUERS__B__SECRET_PREVIOUS", "short", "is 5 bytes long"),
        ("ISSUERS__B__SECRET_PREVIOUS_FILE", "/nonexistent", "/nonexistent cannot be read"),
        ("ISSUERS__B__PUBLIC_KEY_FILES", "/nonexistent", "/nonexistent cannot be read"),
        ("ISSUERS__B__PUBLIC_KEY_FILES", many.as_str(), "these are more than 16 keys"),
        ("ISSUERS__B__JWKS_URL", "https://b/keys", "no algorithm in algorithms uses"),
        ("JWT__ISSUER", "b", "is the issuer of another table too"),
        ("JWT__SECRET", PEM, "is a key in PEM"),
        ("JWT__JWKS_URL", "http://id.example/keys", "is not https"),
        ("JWT__JWKS_URL", "https://u:hunter2@id.example/keys", "has a user or a password"),
        ("JWT__JWKS_URL", "id.example", "is not a URL"),
        ("JWT__JWKS_URL", "ftp://id.example", "is neither"),
        ("JWT__JWKS_URL", "https:///keys", "names no host"),
    ] {
        let name = format!("BELFRY__AUTH__{name}");
        let mut sources = production(&B);
        sources.env.insert(name.clone(), value.into());
        let found = faults(&sources);
        assert_eq!(found.len(), 1, "{name}={value}: {found:#?}");
        assert!(found[0].contains(says), "{name}={value}: {found:#?}");
        assert!(!found[0].contains("hunter2") && !found[0].contains("MCow"), "{found:#?}");
    }
    let plain = [
        ("BELFRY__AUTH__JWT__JWKS_URL", "http://127.0.0.1:1/keys"),
        ("BELFRY__AUTH__JWT__ALGORITHMS", "RS256"),
    ];
    assert!(load(&sources(&plain)).is_ok(), "development may use plain HTTP");
}

#[test]
fn production_needs_keys_of_one_kind_and_not_of_all() {
    let key = format!("billing:{}", "ab".repeat(32));
    let env = [
        ("BELFRY_PROFILE", "production"),
        ("BELFRY__API__KEYS", key.as_str()),
        ("BELFRY__AUTH__ISSUERS__B__ISSUER", "b"),
        ("BELFRY__AUTH__ISSUERS__B__JWKS_URL", "https://b/keys"),
        ("BELFRY__AUTH__ISSUERS__B__ALGORITHMS", "RS256"),
    ];
    assert!(load(&sources(&env)).is_ok());
    let found = faults(&sources(&env[..2]));
    assert!(found.len() == 1 && found[0].starts_with("auth.jwt.secret"), "{found:#?}");
}

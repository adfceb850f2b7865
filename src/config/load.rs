//! From the layers to [`Config`]: every key of `config/default.toml` is read here.

use std::{num::NonZero, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Api, ApiKey, Auth, Config, Drain, Faults, History, Internal, Jwks, Limits, Log, LogFormat,
    Method, Profile, Public, Ready, Redis, Reject, Scope, Session, SessionFormat, Sources,
    UserPolicy, WebSockets,
    fault::Problem,
    gate, layers,
    reader::{Reader, quoted, quoted_list},
    rules, secrets, streams, tls,
};

pub use super::reader::Setting;

mod jwt;

/// The configuration, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the rest of the crate works with.
    pub config: Config,
    /// The same as text, secrets redacted, in the order of reading.
    pub settings: Vec<Setting>,
}

/// Builds the configuration from its layers.
///
/// # Errors
/// All faults at once; secrets are never in them.
pub fn load(sources: &Sources) -> Result<Config, Faults> {
    load_with_origins(sources).map(|loaded| loaded.config)
}

/// [`load`], with the origin of every value.
///
/// # Errors
/// As [`load`].
pub fn load_with_origins(sources: &Sources) -> Result<Loaded, Faults> {
    let mut faults = Vec::new();
    let profile = match sources.profile() {
        Ok(profile) => profile,
        Err(fault) => {
            faults.push(fault);
            // Its demands are the lesser: what is found is a fault in either profile.
            Profile::Development
        }
    };
    let values = layers::merge(sources, profile, &mut faults);
    let mut reader = Reader::new(values, faults);
    let (public, internal) = (public(&mut reader), internal(&mut reader));
    let (redis, has_redis) = redis(&mut reader);
    let config = Config {
        profile,
        public,
        internal,
        auth: auth(&mut reader, profile, &redis, has_redis),
        redis: has_redis.then_some(redis),
        api: api(&mut reader, profile),
        limits: limits(&mut reader),
        ready: Ready { redis_grace: reader.duration("ready.redis_grace", ZERO..=HOUR) },
        drain: Drain {
            delay: reader.duration("drain.delay", ZERO..=HOUR),
            spread: reader.duration("drain.spread", ZERO..=HOUR),
        },
        log: log(&mut reader),
        history: history(&mut reader),
        gate: gate::read(&mut reader),
        inbound: streams::read(&mut reader, "inbound", has_redis),
        publish_stream: streams::read(&mut reader, "publish_stream", has_redis),
    };
    across(&config, &mut reader);
    if reader.faults.is_empty() {
        Ok(Loaded { config, settings: reader.settings })
    } else {
        Err(Faults(reader.faults))
    }
}

const ZERO: Duration = Duration::ZERO;
const MIN_WAIT: Duration = Duration::from_millis(10);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const MIB: usize = 1 << 20;

/// Placeholder where the address cannot be read; see [`Reader::value`].
const NOWHERE: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn public(reader: &mut Reader) -> Public {
    Public {
        bind: address(reader, "public.bind"),
        workers: workers(reader, "public.workers"),
        base_path: reader.string("public.base_path", rules::base_path),
        // The range fits.
        backlog: u32::try_from(reader.count("public.backlog", 1..=65_535)).unwrap_or(65_535),
        transport: reader.choice(
            "public.transport",
            &[("direct", WebSockets::Direct), ("actix-ws", WebSockets::ActixWs)],
            WebSockets::Direct,
        ),
        tls: tls::read(reader, "public.tls", false),
    }
}

fn internal(reader: &mut Reader) -> Internal {
    Internal {
        bind: address(reader, "internal.bind"),
        workers: workers(reader, "internal.workers"),
        tls: tls::read(reader, "internal.tls", true),
    }
}

fn address(reader: &mut Reader, key: &str) -> std::net::SocketAddr {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let what = format!("{text:?} is not an IP address with a port");
            Problem::new(what, "write 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080")
        })
    };
    reader.value(key, NOWHERE, parse, |address| quoted(&address.to_string()))
}

/// 0 stands for the number of cores that this process may use.
fn workers(reader: &mut Reader, key: &str) -> usize {
    let count = reader.count(key, 0..=1024);
    if count > 0 {
        return count;
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    if let Some(setting) = reader.settings.last_mut().filter(|setting| setting.key == key) {
        setting.value = cores.to_string();
    }
    cores
}

/// The URL of a Redis, where one is set.
fn redis_url(reader: &mut Reader, key: &str) -> Option<(String, Option<PathBuf>)> {
    let found = secret(reader, key);
    let shown = match found.as_ref().map(|(url, _)| rules::redis_url(url)) {
        None => String::new(),
        Some(Ok(parts)) => parts.redacted(),
        Some(Err(problem)) => {
            reader.fault(key, problem);
            String::new()
        }
    };
    reader.note(key, quoted(&shown));
    note_file(reader, &format!("{key}_file"));
    found
}

/// The section, and whether it names a Redis at all.
fn redis(reader: &mut Reader) -> (Redis, bool) {
    let found = redis_url(reader, "redis.url");
    let has_redis = found.is_some();
    let (url, url_file) = found.unwrap_or_default();
    let redis = Redis {
        url: SecretString::from(url),
        url_file,
        prefix: reader.string("redis.prefix", rules::redis_prefix),
        connect_timeout: reader.duration("redis.connect_timeout", MIN_WAIT..=MINUTE),
        // The API answers within 2 s whatever Redis does (contract §5).
        command_timeout: reader
            .duration("redis.command_timeout", MIN_WAIT..=Duration::from_millis(1999)),
        inflight: reader.count("redis.inflight", 1..=1_000_000),
        probe_interval: reader.duration("redis.probe_interval", MIN_WAIT..=MINUTE),
        probe_timeout: reader.duration("redis.probe_timeout", MIN_WAIT..=MINUTE),
    };
    (redis, has_redis)
}

fn auth(reader: &mut Reader, profile: Profile, redis: &Redis, has_redis: bool) -> Auth {
    let method = |text: &str| {
        Method::ALL.into_iter().find(|method| method.label() == text).ok_or_else(|| {
            let names = Method::ALL.map(Method::label);
            let advice = format!("write {}", super::reader::any_of(&names));
            Problem::new(format!("{text:?} is not a kind of credential"), advice)
        })
    };
    let own = jwt::own(reader, profile);
    let methods = reader.list("auth.methods", method, |method| method.label().to_owned());
    let cookies = methods.contains(&Method::Cookie);
    let auth = Auth {
        methods,
        reject: reader.choice(
            "auth.reject",
            &[("close", Reject::Close), ("http", Reject::Http)],
            Reject::Close,
        ),
        origins: reader.list("auth.origins", rules::origin, String::clone),
        token_bytes: reader.size("auth.token_bytes", 256..=65_536),
        groups_allow: reader.list("auth.groups.allow", rules::group_pattern, String::clone),
        issuers: jwt::issuers(reader, profile, &own),
        jwt: own,
        jwks: Jwks {
            refresh: reader.duration("auth.jwks.refresh", Duration::from_secs(1)..=DAY),
            floor: reader.duration("auth.jwks.floor", Duration::from_millis(100)..=HOUR),
            timeout: reader.duration("auth.jwks.timeout", MIN_WAIT..=MINUTE),
        },
        session: session(reader, redis, has_redis, cookies),
        revocation_ttl: reader.duration("auth.revocation_ttl", MINUTE..=30 * DAY),
        backchannel_public: reader.choice(
            "auth.backchannel.public",
            &[("true", true), ("false", false)],
            false,
        ),
    };
    jwt::some_key(reader, profile, &auth);
    jwt::back_channel(reader, &auth);
    if auth.methods.is_empty() {
        needs_one(reader, "auth.methods", "so nobody could connect", "subprotocol");
    }
    // All kinds are the default; only who asks for cookies by name has to say where sessions are.
    let asked = reader.origin("auth.methods") != "default";
    let sessions = auth.session.redis.is_some();
    if asked && cookies && !sessions && reader.is_good("redis.url") {
        let what = "names cookie, and there is no Redis to look sessions up in";
        let advice = "set auth.session.redis_url or redis.url, or leave cookie out";
        reader.fault("auth.methods", Problem::new(what, advice));
    }
    auth
}

fn session(reader: &mut Reader, redis: &Redis, has_redis: bool, cookies: bool) -> Session {
    const FORMATS: [(&str, SessionFormat); 3] = [
        ("auto", SessionFormat::Auto),
        ("json", SessionFormat::Json),
        ("hash", SessionFormat::Hash),
    ];
    let optional = |text: String| if text.is_empty() { None } else { Some(text) };
    let own = redis_url(reader, "auth.session.redis_url");
    let session = Session {
        redis: match &own {
            Some((url, file)) => Some(Redis {
                url: SecretString::from(url.clone()),
                url_file: file.clone(),
                ..redis.clone()
            }),
            None => has_redis.then(|| redis.clone()),
        },
        cookie: reader.string("auth.session.cookie", rules::cookie_name),
        key_prefix: reader.string("auth.session.key_prefix", rules::redis_prefix),
        format: reader.choice("auth.session.format", &FORMATS, SessionFormat::Auto),
        user_field: reader.string("auth.session.user_field", rules::field),
        groups_field: optional(reader.string("auth.session.groups_field", rules::optional_field)),
        issued_field: optional(reader.string("auth.session.issued_field", rules::optional_field)),
        recheck: reader.duration("auth.session.recheck", Duration::from_millis(100)..=DAY),
    };
    // On one Redis a session's key must not be one of ours: whoever sends a cookie chooses what
    // is read.
    let shared = has_redis
        && match &own {
            None => true,
            Some((theirs, _)) => {
                let urls = (rules::redis_url(redis.url.expose_secret()), rules::redis_url(theirs));
                matches!(urls, (Ok(ours), Ok(theirs)) if ours.shares_keys_with(&theirs))
            }
        };
    let (ours, theirs) = (&redis.prefix, &session.key_prefix);
    let overlap = theirs.starts_with(ours.as_str()) || ours.starts_with(theirs.as_str());
    let keys = ["auth.session.key_prefix", "redis.prefix"];
    if cookies && shared && overlap && keys.iter().all(|key| reader.is_good(key)) {
        let what = format!("{theirs:?} overlaps with redis.prefix");
        reader.fault(keys[0], Problem::new(what, "give one of them another beginning"));
    }
    session
}

fn needs_one(reader: &mut Reader, key: &str, consequence: &str, example: &str) {
    if reader.is_good(key) {
        let what = format!("is empty, {consequence}");
        reader.fault(key, Problem::new(what, format!("name at least one, such as {example}")));
    }
}

fn api(reader: &mut Reader, profile: Profile) -> Api {
    let key = "api.keys";
    let faults = reader.faults.len();
    let file = file_of(reader, key);
    let entries = match &file {
        None => reader.texts(key),
        Some(path) => match secrets::read(path) {
            Ok(text) => secrets::entries(&text),
            Err(problem) => {
                reader.fault("api.keys_file", problem);
                Vec::new()
            }
        },
    };
    let mut keys = Vec::new();
    if faults == reader.faults.len() {
        match secrets::parse_api_keys(&entries, profile) {
            Ok(parsed) => keys = parsed,
            Err(problems) => {
                let key = if file.is_some() { "api.keys_file" } else { key };
                for problem in problems {
                    reader.fault(key, problem);
                }
            }
        }
    }
    reader.note(key, quoted_list(keys.iter().map(show_api_key)));
    note_file(reader, "api.keys_file");
    Api { keys, keys_file: file }
}

fn show_api_key(key: &ApiKey) -> String {
    let scopes: Vec<&str> = key.scopes.iter().copied().map(Scope::label).collect();
    let rate = key.rate.map(|rate| format!(":{rate}")).unwrap_or_default();
    format!("{}:<redacted>:{}{rate}", key.name, scopes.join("+"))
}

fn limits(reader: &mut Reader) -> Limits {
    Limits {
        connections: reader.count("limits.connections", 1..=10_000_000),
        heartbeat: reader.duration("limits.heartbeat", Duration::from_millis(100)..=HOUR),
        inbound_bytes: reader.size("limits.inbound_bytes", 64..=16 * MIB),
        queue_bytes: reader.size("limits.queue_bytes", 1024..=1024 * MIB),
        queue_events: reader.count("limits.queue_events", 1..=1_000_000),
        groups: reader.count("limits.groups", 1..=1024),
        data_bytes: reader.size("limits.data_bytes", 64..=16 * MIB),
        body_bytes: reader.size("limits.body_bytes", 1024..=64 * MIB),
        batch_bytes: reader.size("limits.batch_bytes", 1024..=64 * MIB),
        connections_per_user: reader.count("limits.connections_per_user", 0..=1_000_000),
        user_policy: reader.choice(
            "limits.user_policy",
            &[("oldest", UserPolicy::Oldest), ("refuse", UserPolicy::Refuse)],
            UserPolicy::Oldest,
        ),
    }
}

fn log(reader: &mut Reader) -> Log {
    let formats = [("pretty", LogFormat::Pretty), ("json", LogFormat::Json)];
    Log {
        format: reader.choice("log.format", &formats, LogFormat::Pretty),
        level: reader.string("log.level", rules::log_level),
    }
}

fn history(reader: &mut Reader) -> History {
    History {
        events: reader.count("history.events", 0..=100_000),
        bytes: reader.size("history.bytes", 1024..=1024 * MIB),
        ttl: reader.duration("history.ttl", Duration::from_secs(1)..=30 * DAY),
        meta_ttl: reader.duration("history.meta_ttl", Duration::from_secs(1)..=365 * DAY),
    }
}

/// Rules that no key breaks alone. A placeholder must break none of them.
fn across(config: &Config, reader: &mut Reader) {
    let (public, internal) = (config.public.bind, config.internal.bind);
    let same_ip = public.ip() == internal.ip()
        || public.ip().is_unspecified()
        || internal.ip().is_unspecified();
    if public.port() != 0 && public.port() == internal.port() && same_ip {
        let what = format!("{internal} is also public.bind");
        let advice = "give each listener its own port: the internal one is not for browsers";
        reader.fault("internal.bind", Problem::new(what, advice));
    }
    let bodies = [
        ("limits.body_bytes", config.limits.body_bytes),
        ("limits.batch_bytes", config.limits.batch_bytes),
    ];
    for (key, bytes) in bodies {
        let good = [key, "limits.data_bytes"].iter().all(|key| reader.is_good(key));
        if good && bytes < config.limits.data_bytes {
            let what = "is below limits.data_bytes, which a body must hold";
            reader.fault(key, Problem::new(what, "raise it, or lower the other"));
        }
    }
    let times = ["history.ttl", "history.meta_ttl"];
    if config.history.meta_ttl < config.history.ttl && times.iter().all(|key| reader.is_good(key)) {
        let what = "is below history.ttl, the time events are kept";
        reader.fault("history.meta_ttl", Problem::new(what, "raise it, or lower the other"));
    }
}

/// The path that the twin of a secret names.
fn file_of(reader: &mut Reader, key: &str) -> Option<PathBuf> {
    let path = reader.text(&format!("{key}_file"))?;
    if path.is_empty() { None } else { Some(PathBuf::from(path)) }
}

/// A secret from its layer or its file, and that file. A file that cannot be read is a fault.
fn secret(reader: &mut Reader, key: &str) -> Option<(String, Option<PathBuf>)> {
    let Some(path) = file_of(reader, key) else {
        return reader.text(key).filter(|text| !text.is_empty()).map(|text| (text, None));
    };
    match secrets::read(&path) {
        Ok(text) => Some((text, Some(path))),
        Err(problem) => {
            reader.fault(&format!("{key}_file"), problem);
            None
        }
    }
}

fn note_file(reader: &mut Reader, key: &str) {
    if let Some(path) = reader.text(key) {
        reader.note(key, quoted(&path));
    }
}

fn redacted(set: bool) -> String {
    quoted(if set { "<redacted>" } else { "" })
}

#[cfg(test)]
mod tests;

//! What the values of single keys must look like. A rule about a secret never repeats the value.

use jsonwebtoken::Algorithm;
use tracing_subscriber::EnvFilter;

use super::{ApiKey, Profile, Scope, fault::Problem, gate::Rate, reader::any_of};
use crate::event::NAME_BYTES;

/// Schemes of `redis.url`.
const REDIS_SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];

/// Longest `redis.prefix`, in bytes.
const PREFIX_BYTES: usize = 128;

/// Longest name of an API key, in characters: it is a metric label.
const KEY_NAME_CHARS: usize = 64;

/// `public.base_path`: empty, or segments of RFC 3986 unreserved characters.
pub fn base_path(text: &str) -> Result<(), Problem> {
    let unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let segment = |s: &str| !matches!(s, "" | "." | "..") && s.chars().all(unreserved);
    let good =
        text.is_empty() || text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment));
    if good {
        return Ok(());
    }
    Err(Problem::new(
        format!("{text:?} is not a path"),
        "leave it empty, or write /name or /a/b, without a slash at the end",
    ))
}

/// `redis.prefix`: it stands before patterns, so it must not look like one.
pub fn redis_prefix(text: &str) -> Result<(), Problem> {
    let bad = |c: char| "*?[]\\".contains(c) || c.is_whitespace() || c.is_control();
    let what = if text.is_empty() {
        "must not be empty".to_owned()
    } else if text.len() > PREFIX_BYTES {
        format!("is over {PREFIX_BYTES} bytes")
    } else if text.contains(bad) {
        format!("{text:?} has a character that patterns, spaces or controls use")
    } else {
        return Ok(());
    };
    Err(Problem::new(what, "write a short name with a colon at the end, such as ws:"))
}

/// The parts of a Redis URL that may be told.
pub struct RedisUrl<'a> {
    scheme: &'a str,
    has_credentials: bool,
    /// Host and port.
    address: &'a str,
    database: Option<&'a str>,
    query: Option<&'a str>,
}

/// Splits at the first `separator`, which may be missing.
fn cut(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// `redis.url`, where it is not empty.
pub fn redis_url(text: &str) -> Result<RedisUrl<'_>, Problem> {
    let advice = "write redis://[user:password@]host[:port][/database], and percent-encode \
                  special characters in the password";
    let bad = |what: &str| Problem::new(what, advice);
    let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("is not a URL"))?;
    if !REDIS_SCHEMES.contains(&scheme) {
        let advice = format!("write one of {}", REDIS_SCHEMES.join(", "));
        return Err(Problem::new("has an unknown scheme", advice));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(bad("has a space, a control character or a #"));
    }
    let (rest, query) = cut(rest, '?');
    let (authority, database) = cut(rest, '/');
    // A slash in a password ends the authority early: what follows is then no database.
    if database.is_some_and(|number| !number.chars().all(|c| c.is_ascii_digit())) {
        return Err(bad("has no number of a database after the host"));
    }
    let (credentials, address) = match authority.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, authority),
    };
    let (host, port) = host_and_port(address);
    if host.is_empty() {
        return Err(bad("names no host"));
    }
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err(bad("has a bad port"));
    }
    Ok(RedisUrl { scheme, has_credentials: credentials.is_some(), address, database, query })
}

impl RedisUrl<'_> {
    /// Whether both name the same keys: a node in common, and the same database. What another name
    /// of a host hides cannot be seen here.
    pub fn shares_keys_with(&self, other: &Self) -> bool {
        let nodes = self.nodes();
        let service = |url: &Self| {
            url.parameters("sentinelServiceName").next().unwrap_or("mymaster").to_owned()
        };
        other.nodes().iter().any(|node| nodes.contains(node))
            && self.database_number() == other.database_number()
            && (!self.is_sentinel() || !other.is_sentinel() || service(self) == service(other))
    }

    /// Hosts in lower case, with their ports.
    fn nodes(&self) -> Vec<(String, u16)> {
        let default = if self.is_sentinel() { 26_379 } else { 6379 };
        let node = |address: &str| {
            let (host, port) = host_and_port(address);
            let port = port.and_then(|port| port.parse().ok()).unwrap_or(default);
            (host.to_ascii_lowercase(), port)
        };
        std::iter::once(self.address).chain(self.parameters("node")).map(node).collect()
    }

    fn is_sentinel(&self) -> bool {
        self.scheme.ends_with("-sentinel")
    }

    fn database_number(&self) -> &str {
        self.database.unwrap_or_default().trim_start_matches('0')
    }

    fn parameters(&self, wanted: &'static str) -> impl Iterator<Item = &str> {
        let parameters = self.query.into_iter().flat_map(|query| query.split('&'));
        parameters.filter_map(move |parameter| {
            parameter.strip_prefix(wanted).and_then(|rest| rest.strip_prefix('='))
        })
    }

    /// The URL without what it must not tell: user, password, and parameters other than the
    /// names of a Sentinel service and of nodes.
    pub fn redacted(&self) -> String {
        let credentials = if self.has_credentials { "<redacted>@" } else { "" };
        let database = self.database.map(|number| format!("/{number}")).unwrap_or_default();
        let parameter = |parameter: &str| match cut(parameter, '=').0 {
            "node" | "sentinelServiceName" => parameter.to_owned(),
            name => format!("{name}=<redacted>"),
        };
        let query = self.query.map(|query| {
            format!("?{}", query.split('&').map(parameter).collect::<Vec<_>>().join("&"))
        });
        let query = query.unwrap_or_default();
        format!("{}://{credentials}{}{database}{query}", self.scheme, self.address)
    }
}

/// Splits `host:port`; an IPv6 address stands in brackets.
fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// `auth.origins`: scheme, host and port as RFC 6454 §6.2 writes them; the host may start with
/// `*.`, the port may be `*`. Returned as browsers send it: lower case, no default port.
pub fn origin(text: &str) -> Result<String, Problem> {
    let bad = |what: &str| {
        Problem::new(
            format!("{text:?} {what}"),
            "write https://app.example, https://*.app.example or http://localhost:*",
        )
    };
    if text == "*" {
        return Err(bad("would let every site on the web in"));
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    let default_port = match scheme {
        "https" => "443",
        "http" => "80",
        _ => return Err(bad("is neither https:// nor http://")),
    };
    if authority.contains(['/', '?', '#']) {
        return Err(bad("has a path; an origin ends after host and port"));
    }
    let (host, port) = host_and_port(authority);
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    let address = || {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    };
    if !host.is_ascii() {
        return Err(bad("has letters beyond ASCII; browsers send such a host as xn--…"));
    }
    if !name.split('.').all(label) && !address() {
        return Err(bad("names no host"));
    }
    match port {
        None => Ok(format!("{scheme}://{host}")),
        Some(port) if port == default_port => Ok(format!("{scheme}://{host}")),
        Some("*") => Ok(lower.clone()),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(lower.clone()),
        Some(_) => Err(bad("has a bad port")),
    }
}

/// `auth.jwt.algorithms`: names of RFC 7518 §3.1.
pub fn algorithm(text: &str) -> Result<Algorithm, Problem> {
    match text {
        "HS256" => Ok(Algorithm::HS256),
        "HS384" => Ok(Algorithm::HS384),
        "HS512" => Ok(Algorithm::HS512),
        "RS256" => Ok(Algorithm::RS256),
        "RS384" => Ok(Algorithm::RS384),
        "RS512" => Ok(Algorithm::RS512),
        "PS256" => Ok(Algorithm::PS256),
        "PS384" => Ok(Algorithm::PS384),
        "PS512" => Ok(Algorithm::PS512),
        "ES256" => Ok(Algorithm::ES256),
        "ES384" => Ok(Algorithm::ES384),
        "EdDSA" => Ok(Algorithm::EdDSA),
        _ => Err(Problem::new(
            format!("{text:?} is not an algorithm that is accepted"),
            "write HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or \
             EdDSA",
        )),
    }
}

/// `auth.jwt.jwks_url`, where it is not empty. Over plain HTTP anyone on the way could put keys of
/// their own in.
pub fn jwks_url(text: &str, profile: Profile) -> Result<(), Problem> {
    let bad = |what: &str| {
        Problem::new(what, "write https://id.example/path, as the issuer's `jwks_uri` has it")
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("is not a URL"))?;
    match (scheme, profile) {
        ("https", _) | ("http", Profile::Development) => {}
        ("http", Profile::Production) => {
            return Err(bad("is not https, which production asks for"));
        }
        _ => return Err(bad("is neither https:// nor http://")),
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(bad("has a space, a control character or a #"));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(bad("has a user or a password in it"));
    }
    let (host, port) = host_and_port(authority);
    if host.is_empty() || port.is_some_and(|port| port.parse::<u16>().map_or(true, |p| p == 0)) {
        return Err(bad("names no host, or a bad port"));
    }
    Ok(())
}

/// `auth.groups.allow`: a group name in which `*` stands for anything.
pub fn group_pattern(text: &str) -> Result<String, Problem> {
    if text.is_empty() || text.len() > NAME_BYTES || text.chars().any(char::is_control) {
        return Err(Problem::new(
            format!("{text:?} can match no group"),
            format!("write 1 to {NAME_BYTES} bytes without control characters, such as team-*"),
        ));
    }
    Ok(text.to_owned())
}

/// The name of a claim.
pub fn claim(text: &str) -> Result<(), Problem> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Problem::new("names no claim", "write the claim's name, such as sub"));
    }
    Ok(())
}

/// `auth.session.cookie`: a token of RFC 6265 §4.1.1.
pub fn cookie_name(text: &str) -> Result<(), Problem> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if text.is_empty() || !text.chars().all(token) {
        return Err(Problem::new(
            format!("{text:?} is no name of a cookie"),
            "write letters, digits and - _ . such as session_id or __Host-session",
        ));
    }
    Ok(())
}

/// A field of a session: a name, or a JSON Pointer (RFC 6901), which begins with a slash.
pub fn field(text: &str) -> Result<(), Problem> {
    let advice = "write a name such as user_id, or a JSON Pointer such as /user/id";
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Problem::new("names no field", advice));
    }
    let mut escapes = text.split('~').skip(1);
    if text == "/" || text.starts_with('/') && !escapes.all(|e| e.starts_with(['0', '1'])) {
        return Err(Problem::new(format!("{text:?} is no JSON Pointer"), advice));
    }
    Ok(())
}

/// The same, or nothing.
pub fn optional_field(text: &str) -> Result<(), Problem> {
    if text.is_empty() { Ok(()) } else { field(text) }
}

/// `log.level`
pub fn log_level(text: &str) -> Result<(), Problem> {
    let advice = "write error, warn, info, debug, trace, or a list such as info,belfry=debug";
    // EnvFilter takes a lone word for a target, and a misspelt level would silence all the rest.
    let level = |d: &str| {
        d.contains(['=', '[']) || d.parse::<tracing::level_filters::LevelFilter>().is_ok()
    };
    if let Some(word) = text.split(',').map(str::trim).find(|directive| !level(directive)) {
        return Err(Problem::new(format!("{word:?} is not a level"), advice));
    }
    EnvFilter::try_new(text)
        .map(|_| ())
        .map_err(|error| Problem::new(format!("{text:?} is not a filter: {error}"), advice))
}

/// One entry of `api.keys`. The entry itself is never repeated: someone may have put the key
/// there in place of its hash.
pub fn api_key(text: &str) -> Result<ApiKey, Problem> {
    let how = "write name:<sha256 hex>[:scope+scope][:rate], the rate as 100/s or 30/m; `belfry \
               key --name billing` makes one";
    let bad = |what: String| Problem::new(what, how);
    let mut parts = text.split(':');
    let (Some(name), Some(hash)) = (parts.next(), parts.next()) else {
        return Err(bad("is not name:hash".to_owned()));
    };
    let hash = sha256_hex(hash)
        .ok_or_else(|| bad("has no SHA-256 in 64 hexadecimal digits after the name".to_owned()))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > KEY_NAME_CHARS || !name.chars().all(legal) {
        return Err(bad(format!(
            "has a bad name {name:?}: 1 to {KEY_NAME_CHARS} of A-Z a-z 0-9 _ . - are allowed"
        )));
    }
    // No scope has a slash in its name, and every rate has one.
    let is_rate = |part: &&str| part.contains('/');
    let (scopes, rate) = match (parts.next(), parts.next()) {
        (Some(rate), None) if is_rate(&rate) => (None, Some(rate)),
        (scopes, rate) => (scopes, rate),
    };
    let scopes = match scopes {
        None => Scope::DEFAULT.to_vec(),
        Some(scopes) => scopes.split('+').map(|s| scope(name, s)).collect::<Result<Vec<_>, _>>()?,
    };
    let rate = match rate {
        None => None,
        Some(text) => Some(
            Rate::parse(text).ok_or_else(|| bad(format!("{name:?} has a bad rate {text:?}")))?,
        ),
    };
    if parts.next().is_some() {
        return Err(bad(format!("{name:?} has a part after its rate")));
    }
    let mut once = Vec::new();
    for scope in scopes {
        if !once.contains(&scope) {
            once.push(scope);
        }
    }
    Ok(ApiKey { name: name.to_owned(), hash, scopes: once, rate })
}

/// A scope of contract §5, of the key with this name.
fn scope(name: &str, text: &str) -> Result<Scope, Problem> {
    Scope::ALL.into_iter().find(|scope| scope.label() == text).ok_or_else(|| {
        Problem::new(
            format!("{name:?} has an unknown scope {text:?}"),
            format!("write {}", any_of(&Scope::ALL.map(Scope::label))),
        )
    })
}

fn sha256_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let high = char::from(digits[0]).to_digit(16)?;
        let low = char::from(digits[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(hash)
}

//! Typed settings. [`load`](load::load) builds them from the layers of contract §7 and names every
//! fault at once; the rest of the crate sees only these types and never a string that still has
//! to be parsed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;

mod fault;
pub mod gate;
mod issuers;
mod layers;
pub mod load;
pub mod network;
mod pem;
mod reader;
pub(crate) mod rules;
pub mod secrets;
pub mod show;
pub mod streams;
pub mod tls;
pub mod units;
mod unknown;

pub use fault::{Fault, Faults};
pub use layers::{Flag, Sources};
pub use pem::{KeyKind, PUBLIC_KEYS, PublicKey};

/// Which set of defaults is in force, by `BELFRY_PROFILE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Loopback, memory, a development secret; people are told more.
    Development,
    /// JSON logs; refuses missing keys and short or well-known secrets.
    Production,
}

/// Everything that can be set. `config/default.toml` documents each key.
#[derive(Clone, Debug)]
pub struct Config {
    /// The profile these settings were built for.
    pub profile: Profile,
    /// The listener for browsers.
    pub public: Public,
    /// The listener for back ends and operators.
    pub internal: Internal,
    /// `None`: one replica, in memory.
    pub redis: Option<Redis>,
    /// Who may connect.
    pub auth: Auth,
    /// Who may publish.
    pub api: Api,
    /// Bounds on what one connection, client or request may cost.
    pub limits: Limits,
    /// Readiness.
    pub ready: Ready,
    /// Leaving.
    pub drain: Drain,
    /// Log lines.
    pub log: Log,
    /// What is kept of each channel.
    pub history: History,
    /// How fast and how often clients may come.
    pub gate: gate::Gate,
    /// `[inbound]`: where messages of clients go. `None`: nowhere.
    pub inbound: Option<streams::Stream>,
    /// `[publish_stream]`: where back ends may write events. `None`: nowhere.
    pub publish_stream: Option<streams::Stream>,
}

/// `[public]`
#[derive(Clone, Debug)]
pub struct Public {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// HTTP workers, each a thread with its own connections; at least 1.
    pub workers: usize,
    /// Goes before every public route; empty, or `/…` without a trailing slash.
    pub base_path: String,
    /// Connections that may wait in the kernel to be accepted.
    pub backlog: u32,
    /// What bears `WebSocket`, where there is no TLS.
    pub transport: WebSockets,
    /// `None`: plain HTTP.
    pub tls: Option<tls::Tls>,
}

/// `public.transport`: what bears `WebSocket` on a listener without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebSockets {
    /// The socket is taken over from HTTP at the upgrade: the least memory and CPU.
    Direct,
    /// The socket stays with HTTP, as it always does where TLS ends in the process.
    ActixWs,
}

/// `[internal]`
#[derive(Clone, Debug)]
pub struct Internal {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// HTTP workers, at least 1.
    pub workers: usize,
    /// `None`: plain HTTP.
    pub tls: Option<tls::Tls>,
}

/// `[redis]`
#[derive(Clone, Debug)]
pub struct Redis {
    /// `redis://`, `rediss://`, `redis-sentinel://` or `redis-cluster://`; may bear a password.
    pub url: SecretString,
    /// The file that `url` came from, which is read again when it changes.
    pub url_file: Option<PathBuf>,
    /// Goes before every channel and key; free of `*`, `?`, `[`, `]`, `\` and spaces.
    pub prefix: String,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the answer to a command; below the 2 s within which the API answers.
    pub command_timeout: Duration,
    /// Publishes that may be under way at once; more wait, and are refused after the timeout.
    pub inflight: usize,
    /// Time between two probes of the subscription.
    pub probe_interval: Duration,
    /// A probe that is not back after this means that the subscription is deaf.
    pub probe_timeout: Duration,
}

/// `[auth]`
#[derive(Clone, Debug)]
pub struct Auth {
    /// The kinds of credential that are accepted at all.
    pub methods: Vec<Method>,
    /// What becomes of a request with a bad credential.
    pub reject: Reject,
    /// Origins whose pages may connect, beside the request's own host.
    pub origins: Vec<String>,
    /// Longest token, in bytes.
    pub token_bytes: usize,
    /// JSON Web Tokens.
    pub jwt: Jwt,
    /// Patterns (`*` stands for anything) of the groups that are taken from credentials.
    pub groups_allow: Vec<String>,
    /// More issuers, beside the one of `jwt`.
    pub issuers: Vec<Issuer>,
    /// How key sets are fetched, for all issuers.
    pub jwks: Jwks,
    /// Session cookies.
    pub session: Session,
    /// How long a revocation is remembered: no credential may live longer.
    pub revocation_ttl: Duration,
    /// Whether the public listener takes back-channel logouts too, as issuers outside need.
    pub backchannel_public: bool,
}

/// `limits.user_policy`: who goes when a user has too many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserPolicy {
    /// The oldest, with 4409.
    Oldest,
    /// The newest, with 4429.
    Refuse,
}

/// A kind of credential, in the order in which they are looked for (contract §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `Sec-WebSocket-Protocol: belfry.v1, belfry.token.<JWT>`
    Subprotocol,
    /// `Authorization: Bearer <JWT>`
    Bearer,
    /// `?ticket=<ticket>`
    Ticket,
    /// `?token=<JWT>`
    Query,
    /// The session cookie, `auth.session.cookie`
    Cookie,
}

impl Method {
    /// Every kind that this version knows.
    pub const ALL: [Self; 5] =
        [Self::Subprotocol, Self::Bearer, Self::Ticket, Self::Query, Self::Cookie];

    /// Whether it is a JSON Web Token.
    #[must_use]
    pub fn is_token(self) -> bool {
        matches!(self, Self::Subprotocol | Self::Bearer | Self::Query)
    }

    /// The name in the configuration and in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Subprotocol => "subprotocol",
            Self::Bearer => "bearer",
            Self::Ticket => "ticket",
            Self::Query => "query",
            Self::Cookie => "cookie",
        }
    }
}

/// `auth.reject`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Complete the upgrade and close with 1008: a browser can tell it from an outage.
    Close,
    /// Answer 401.
    Http,
}

/// `[auth.jwt]`, and each `[auth.issuers.<name>]`: the keys of one issuer and the rules for its
/// tokens. Without any key, none of its tokens is accepted.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// Key of the HMAC algorithms.
    pub secret: Option<SecretString>,
    /// The file that `secret` came from, which is read again when it changes.
    pub secret_file: Option<PathBuf>,
    /// The key before, still accepted while it is rotated.
    pub secret_previous: Option<SecretString>,
    /// The file that `secret_previous` came from, which is read again when it changes.
    pub secret_previous_file: Option<PathBuf>,
    /// PEM files with public keys, which are read again when they change.
    pub public_key_files: Vec<PathBuf>,
    /// What is in them.
    pub public_keys: Vec<PublicKey>,
    /// Where the issuer publishes its keys (RFC 7517 §5).
    pub jwks_url: Option<String>,
    /// Accepted algorithms, never taken from the token.
    pub algorithms: Vec<jsonwebtoken::Algorithm>,
    /// Required `iss`, where set.
    pub issuer: Option<String>,
    /// One of these is required in `aud`, where there are any.
    pub audience: Vec<String>,
    /// Clocks may differ by this much; one number for all issuers, for `exp`, `nbf`, `iat` and the
    /// end of a connection.
    pub leeway: Duration,
    /// The claim that names the user.
    pub user_claim: String,
    /// The claim that names the session.
    pub session_claim: String,
    /// The claim that lists the groups.
    pub groups_claim: String,
}

impl Jwt {
    /// Whether there is anything to check a signature with.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.secret.is_some()
            || self.secret_previous.is_some()
            || !self.public_keys.is_empty()
            || self.jwks_url.is_some()
    }
}

/// `[auth.issuers.<name>]`
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The name of the table; for people only.
    pub name: String,
    /// Its keys and rules; `issuer` is always set.
    pub jwt: Jwt,
}

/// `[auth.jwks]`
#[derive(Clone, Debug)]
pub struct Jwks {
    /// Time between two looks at a key set.
    pub refresh: Duration,
    /// Least time between two looks that unknown keys cause.
    pub floor: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// `[auth.session]`
#[derive(Clone, Debug)]
pub struct Session {
    /// The Redis that holds the sessions: one of their own, or that of `[redis]`. `None`: there
    /// is neither, and no cookie is accepted.
    pub redis: Option<Redis>,
    /// Name of the cookie that bears a session's id.
    pub cookie: String,
    /// Goes before the id and makes the key; never empty.
    pub key_prefix: String,
    /// How a session is kept.
    pub format: SessionFormat,
    /// Where the user's id stands: a name, or a JSON Pointer (RFC 6901).
    pub user_field: String,
    /// Where the groups stand, likewise; `None`: sessions have none.
    pub groups_field: Option<String>,
    /// Where the time of the login stands (seconds since 1970), likewise; `None`: nowhere.
    pub issued_field: Option<String>,
    /// How often the session of an open connection is looked up again.
    pub recheck: Duration,
}

/// `auth.session.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionFormat {
    /// Whatever the key holds.
    Auto,
    /// A string that is a JSON object.
    Json,
    /// A hash.
    Hash,
}

/// `[api]`
#[derive(Clone, Debug)]
pub struct Api {
    /// `name:<sha256 hex>[:scope+scope][:rate]`
    pub keys: Vec<ApiKey>,
    /// The file that `keys` came from, which is read again when it changes.
    pub keys_file: Option<PathBuf>,
}

/// One back end's key: only its hash is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Who it belongs to; appears in the audit log and in metrics.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// How often it may call each replica; `None`: as often as it likes.
    pub rate: Option<gate::Rate>,
}

/// What an API key may do (contract §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Publish to users and groups.
    Publish,
    /// Publish to everyone.
    Broadcast,
    /// Ask who is there, and what is kept.
    Read,
    /// Sell one-time tickets in a user's name.
    Tickets,
    /// Close connections.
    Disconnect,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] =
        [Self::Publish, Self::Broadcast, Self::Read, Self::Tickets, Self::Disconnect];

    /// What a key without a list may do: everything but speaking in a user's name.
    pub const DEFAULT: [Self; 4] = [Self::Publish, Self::Broadcast, Self::Read, Self::Disconnect];

    /// The name in the configuration.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Broadcast => "broadcast",
            Self::Read => "read",
            Self::Tickets => "tickets",
            Self::Disconnect => "disconnect",
        }
    }
}

/// `[limits]`
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of this process.
    pub connections: usize,
    /// Silence after which a client is pinged; twice this and it is closed.
    pub heartbeat: Duration,
    /// Longest message from a client, in bytes.
    pub inbound_bytes: usize,
    /// Bytes that may wait for one connection.
    pub queue_bytes: usize,
    /// Events that may wait for one connection.
    pub queue_events: usize,
    /// Groups that one credential may name.
    pub groups: usize,
    /// Longest `data` of an event, in bytes.
    pub data_bytes: usize,
    /// Longest body of a request to the API, in bytes.
    pub body_bytes: usize,
    /// Longest body of a request with many events, in bytes.
    pub batch_bytes: usize,
    /// Connections of one user over all replicas; 0 means no limit of its own.
    pub connections_per_user: usize,
    /// What happens beyond that.
    pub user_policy: UserPolicy,
}

/// `[ready]`
#[derive(Clone, Debug)]
pub struct Ready {
    /// How long the proof of delivery may fail before `/readyz` turns 503.
    pub redis_grace: Duration,
}

/// `[drain]`
#[derive(Clone, Debug)]
pub struct Drain {
    /// Not ready, but everything goes on: the time a router needs to notice.
    pub delay: Duration,
    /// Over how long the closes are spread.
    pub spread: Duration,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// A filter as `tracing_subscriber::EnvFilter` reads it: `info`, `belfry=debug,warn`.
    pub level: String,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines: one JSON object a line.
    Json,
}

/// `[history]`: what is kept of each channel.
#[derive(Clone, Debug)]
pub struct History {
    /// Events; 0 keeps nothing.
    pub events: usize,
    /// Bytes.
    pub bytes: usize,
    /// Time.
    pub ttl: Duration,
    /// How long a channel's last id is remembered; not shorter than `ttl`.
    pub meta_ttl: Duration,
}

//! Typed settings. [`load`](load::load) builds them from the layers of contract §7 and names every
//! fault at once; the rest of the crate sees only these types and never a string that still has
//! to be parsed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;

mod fault;
mod layers;
pub mod load;
mod reader;
pub(crate) mod rules;
pub mod secrets;
pub mod show;
pub mod units;
mod unknown;

pub use fault::{Fault, Faults};
pub use layers::{Flag, Sources};

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
    /// Checked, and without effect in this version.
    pub reserved: Reserved,
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
}

/// `[internal]`
#[derive(Clone, Debug)]
pub struct Internal {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// HTTP workers, at least 1.
    pub workers: usize,
}

/// `[redis]`
#[derive(Clone, Debug)]
pub struct Redis {
    /// `redis://`, `rediss://`, `redis-sentinel://` or `redis-cluster://`; may bear a password.
    pub url: SecretString,
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
    /// `?token=<JWT>`
    Query,
}

impl Method {
    /// Every kind that this version knows.
    pub const ALL: [Self; 3] = [Self::Subprotocol, Self::Bearer, Self::Query];

    /// The name in the configuration and in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Subprotocol => "subprotocol",
            Self::Bearer => "bearer",
            Self::Query => "query",
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

/// `[auth.jwt]`
#[derive(Clone, Debug)]
pub struct Jwt {
    /// Key of the HMAC algorithms; `None`: no token is accepted.
    pub secret: Option<SecretString>,
    /// The file that `secret` came from, which is read again when it changes.
    pub secret_file: Option<PathBuf>,
    /// Accepted algorithms, never taken from the token.
    pub algorithms: Vec<jsonwebtoken::Algorithm>,
    /// Required `iss`, where set.
    pub issuer: Option<String>,
    /// Required `aud`, where set.
    pub audience: Option<String>,
    /// Clocks may differ by this much; one number for `exp`, `nbf` and the end of a connection.
    pub leeway: Duration,
    /// The claim that names the user.
    pub user_claim: String,
    /// The claim that names the session.
    pub session_claim: String,
    /// The claim that lists the groups.
    pub groups_claim: String,
}

/// `[api]`
#[derive(Clone, Debug)]
pub struct Api {
    /// `name:<sha256 hex>[:scope+scope]`
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
    /// Longest body of `POST /v1/events`, in bytes.
    pub body_bytes: usize,
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

/// Keys that deployments may set already, although what they govern is not built yet: they are
/// parsed and checked, so that a value that is good today stays good.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// `history.events`: events to keep per channel.
    pub history_events: usize,
    /// `history.ttl`: how long to keep them.
    pub history_ttl: Duration,
    /// `auth.session.recheck`: time between two looks at a session.
    pub session_recheck: Duration,
}

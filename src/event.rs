//! The words of the domain, pure: who an event is for, what it says, and why a connection ends.
//!
//! Nothing here touches a socket, a clock or Redis, so everything here is tested without them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

mod position;

pub use position::{Cursor, NotAPosition, Position, Tag, parse_id};

/// Longest user id or group name, in bytes (contract §2).
pub const NAME_BYTES: usize = 256;
/// Longest event type, in characters (contract §5).
pub const TYPE_CHARS: usize = 128;
/// Longest `sender`, in characters (contract §5).
pub const SENDER_CHARS: usize = 64;

/// Why a string is not a user id or a group name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The empty string names nobody.
    #[error("must not be empty")]
    Empty,
    /// More than [`NAME_BYTES`] bytes of UTF-8.
    #[error("must be at most {NAME_BYTES} bytes of UTF-8")]
    TooLong,
    /// A control character (Unicode category Cc) stands in it.
    #[error("must not contain control characters")]
    Control,
}

fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        Err(NameError::Empty)
    } else if name.len() > NAME_BYTES {
        Err(NameError::TooLong)
    } else if name.chars().any(char::is_control) {
        Err(NameError::Control)
    } else {
        Ok(())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the rule of contract §2: any non-empty UTF-8 string of at most
            /// [`NAME_BYTES`] bytes without control characters.
            ///
            /// # Errors
            /// Says which part of the rule is broken.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name(name)?;
                Ok(Self(name.into()))
            }

            /// The name as it was given; it is never normalised, trimmed or folded.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// Whom a connection belongs to. Compared byte by byte; `:` `*` `?` `[` `/` `{`, spaces and
    /// every script are ordinary characters in it.
    UserId
}
name! {
    /// A set of users that a back end can address as one. Same rule as [`UserId`].
    Group
}

/// Where an event goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Every connection of one user.
    User(UserId),
    /// Every connection whose credential names this group.
    Group(Group),
    /// Every connection.
    Broadcast,
}

/// A session at its issuer, by which connections can be closed: the SHA-256 of its id, so that the
/// id itself, which may be a cookie, is kept nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// How a key is written where an id might stand instead.
    const PREFIX: &str = "sha256:";

    /// The key of this session id.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self(Sha256::digest(id.as_bytes()).into())
    }

    /// Reads what [`Display`](fmt::Display) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?.as_bytes();
        let mut key = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(key))
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of one connection, unique over all replicas and time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        // Uuid's own asks the kernel for randomness each time; these need not be secret.
        Self(uuid::Builder::from_unix_timestamp_millis(ms, &rand::random()).into_uuid())
    }

    /// Reads what [`Display`](fmt::Display) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().filter(|_| text.len() == 32).map(Self)
    }
}

impl Default for ConnectionId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.as_simple(), f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who a connection belongs to, as its credential says.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Whose events it gets.
    pub user: UserId,
    /// The session at the issuer.
    pub session: Option<SessionKey>,
    /// Groups whose events it gets as well; each once.
    pub groups: Vec<Group>,
    /// The credential's end.
    pub expires: Option<SystemTime>,
    /// When the credential was issued, where it says so: a revocation of the user's credentials
    /// "issued before now" goes by it, and takes one that does not say for an older one.
    pub issued: Option<SystemTime>,
    /// The session cookie that the connection stands on, to be looked up again and again; `None`
    /// for tokens.
    pub cookie: Option<SecretString>,
}

/// Which connections an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// All of a user.
    User(UserId),
    /// All of a session.
    Session(SessionKey),
    /// One.
    Connection(ConnectionId),
}

/// An order to close connections, on whichever replica they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which.
    pub subject: Subject,
    /// But not this one.
    pub except_connection: Option<ConnectionId>,
    /// And none of this session.
    pub except_session: Option<SessionKey>,
    /// What their clients are told.
    pub cause: CloseCause,
    /// When it was given.
    pub given: SystemTime,
}

impl Order {
    /// Clocks of replicas may differ by this much.
    const SKEW: Duration = Duration::from_secs(1);

    /// Whether it is about this connection.
    #[must_use]
    pub fn concerns(&self, id: ConnectionId, user: &UserId, session: Option<SessionKey>) -> bool {
        let subject = match &self.subject {
            Subject::User(subject) => subject == user,
            Subject::Session(subject) => session == Some(*subject),
            Subject::Connection(subject) => *subject == id,
        };
        let excepted = self.except_connection == Some(id)
            || self.except_session.is_some() && self.except_session == session;
        subject && !excepted
    }

    /// Whether a connection made at this time is old enough for it: an order is also read late, by
    /// a replica that was cut off or while a handshake is under way, and is not about those who
    /// came after it.
    #[must_use]
    pub fn reaches(&self, made: SystemTime) -> bool {
        made <= self.reach()
    }

    /// When the last connection was made that is old enough.
    #[must_use]
    pub fn reach(&self) -> SystemTime {
        self.given.checked_add(Self::SKEW).unwrap_or(self.given)
    }
}

/// Why the server ends a connection: the close code, its reason and what the client should do
/// are one table (contract §3), and this is it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// The client closed first, or there is nothing left to say.
    Normal,
    /// The peer vanished without a close: reset, end of file, an I/O error.
    Gone,
    /// RFC 6455 §7.4.1: a frame that the protocol forbids.
    Protocol,
    /// RFC 6455 §8.1: text that is not UTF-8.
    Encoding,
    /// A message over `limits.inbound_bytes`.
    TooBig,
    /// No credential, or one that does not hold.
    Unauthorized,
    /// A fault on our side.
    Internal,
    /// This replica drains, or the connection reached its maximum age.
    Restart,
    /// The process is full.
    Overloaded,
    /// The peer reads too slowly: its outbox is full.
    SlowConsumer,
    /// The credential reached its end.
    TokenExpired,
    /// The session is gone: it ended, or its id was replaced at a login.
    SessionEnded,
    /// An order by the API.
    Revoked,
    /// The user has a newer connection too many (`limits.user_policy = "oldest"`).
    Replaced,
    /// The user has too many connections (`limits.user_policy = "refuse"`).
    TooMany,
    /// The client sends too fast.
    Rate,
    /// Nothing came for two heartbeats.
    NoPong,
}

/// What a client should do after a close; a client library acts on it without reading the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Come back after this long (spread by jitter), and resume.
    Return(Duration),
    /// Come back with a new credential.
    Renew,
    /// Stay away.
    Stay,
}

impl CloseCause {
    /// Every cause, in the order of the table; a closed set, so it may be a metric label.
    pub const ALL: [Self; 17] = [
        Self::Normal,
        Self::Gone,
        Self::Protocol,
        Self::Encoding,
        Self::TooBig,
        Self::Unauthorized,
        Self::Internal,
        Self::Restart,
        Self::Overloaded,
        Self::SlowConsumer,
        Self::TokenExpired,
        Self::SessionEnded,
        Self::Revoked,
        Self::Replaced,
        Self::TooMany,
        Self::Rate,
        Self::NoPong,
    ];

    /// The WebSocket close code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Gone => 1006,
            Self::Protocol => 1002,
            Self::Encoding => 1007,
            Self::TooBig => 1009,
            Self::Unauthorized => 1008,
            Self::Internal => 1011,
            Self::Restart => 1012,
            Self::Overloaded | Self::SlowConsumer => 1013,
            Self::TokenExpired | Self::SessionEnded => 4401,
            Self::Revoked => 4403,
            Self::NoPong => 4408,
            Self::Replaced => 4409,
            Self::TooMany | Self::Rate => 4429,
        }
    }

    /// The reason on the wire and the label in metrics: lower case, never user input, always
    /// under the 123 bytes that RFC 6455 §5.5 leaves for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Gone => "gone",
            Self::Protocol => "protocol",
            Self::Encoding => "encoding",
            Self::TooBig => "too_big",
            Self::Unauthorized => "unauthorized",
            Self::Internal => "internal",
            Self::Restart => "restart",
            Self::Overloaded => "overloaded",
            Self::SlowConsumer => "slow_consumer",
            Self::TokenExpired => "token_expired",
            Self::SessionEnded => "session_ended",
            Self::Revoked => "revoked",
            Self::Replaced => "replaced",
            Self::TooMany => "too_many",
            Self::Rate => "rate",
            Self::NoPong => "no_pong",
        }
    }

    /// What the client should do. [`Advice::Return`] carries the middle of a range that the
    /// sender spreads, so that clients closed together do not return together.
    #[must_use]
    pub fn advice(self) -> Advice {
        match self {
            Self::Normal
            | Self::Protocol
            | Self::Encoding
            | Self::TooBig
            | Self::Revoked
            | Self::Replaced => Advice::Stay,
            Self::Unauthorized | Self::TokenExpired | Self::SessionEnded => Advice::Renew,
            Self::TooMany | Self::Rate => Advice::Return(Duration::from_secs(60)),
            Self::NoPong | Self::Gone => Advice::Return(Duration::from_secs(1)),
            Self::Internal | Self::Restart | Self::SlowConsumer => {
                Advice::Return(Duration::from_secs(2))
            }
            Self::Overloaded => Advice::Return(Duration::from_secs(10)),
        }
    }
}

/// Why a replica may have missed messages; a closed set, so it may be a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The subscription's connection was lost and is back.
    Reconnected,
    /// Messages came faster than they were read, and some were dropped.
    Lagged,
    /// A probe did not come back in time: the link looked healthy and delivered nothing.
    ProbeLost,
    /// A worker's mailbox was full.
    WorkerLagged,
    /// An event came that does not follow the one before it.
    ChainBroken,
    /// The broker has lost what it had accepted.
    BrokerLost,
}

impl GapReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Reconnected,
        Self::Lagged,
        Self::ProbeLost,
        Self::WorkerLagged,
        Self::ChainBroken,
        Self::BrokerLost,
    ];

    /// The name in metrics, logs and the `belfry.resync` frame.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Reconnected => "reconnected",
            Self::Lagged => "lagged",
            Self::ProbeLost => "probe_lost",
            Self::WorkerLagged => "worker_lagged",
            Self::ChainBroken => "chain_broken",
            Self::BrokerLost => "broker_lost",
        }
    }
}

#[cfg(test)]
mod tests;

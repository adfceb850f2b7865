//! The words of the domain, pure: who an event is for, what it says, and why a connection ends.
//!
//! Nothing here touches a socket, a clock or Redis, so everything here is tested without them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

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

/// Who a connection belongs to, as its credential says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose events it gets.
    pub user: UserId,
    /// The session at the issuer, by which it can be closed.
    pub session: Option<String>,
    /// Groups whose events it gets as well; each once.
    pub groups: Vec<Group>,
    /// The credential's end.
    pub expires: Option<SystemTime>,
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
    pub const ALL: [Self; 12] = [
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
            Self::TokenExpired => 4401,
            Self::NoPong => 4408,
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
            Self::NoPong => "no_pong",
        }
    }

    /// What the client should do. [`Advice::Return`] carries the middle of a range that the
    /// sender spreads, so that clients closed together do not return together.
    #[must_use]
    pub fn advice(self) -> Advice {
        match self {
            Self::Normal | Self::Protocol | Self::Encoding | Self::TooBig => Advice::Stay,
            Self::Unauthorized | Self::TokenExpired => Advice::Renew,
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
}

impl GapReason {
    /// Every reason.
    pub const ALL: [Self; 4] =
        [Self::Reconnected, Self::Lagged, Self::ProbeLost, Self::WorkerLagged];

    /// The name in metrics, logs and the `belfry.resync` frame.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Reconnected => "reconnected",
            Self::Lagged => "lagged",
            Self::ProbeLost => "probe_lost",
            Self::WorkerLagged => "worker_lagged",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_every_legal_character() {
        for name in [
            "a",
            ":",
            "tenant:42",
            "a:b:c",
            ":x",
            "x:",
            "*",
            "a?b[c]/{d}",
            " ",
            "josé",
            "🔔",
            "Bob ",
            "a\u{200d}b",
        ] {
            assert_eq!(UserId::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_outside_the_rule_are_refused() {
        assert_eq!(UserId::new(""), Err(NameError::Empty));
        assert_eq!(UserId::new(&"x".repeat(257)), Err(NameError::TooLong));
        assert_eq!(UserId::new(&"é".repeat(129)), Err(NameError::TooLong));
        assert!(UserId::new(&"é".repeat(128)).is_ok());
        for bad in ["a\0", "\n", "a\u{7f}", "\u{85}"] {
            assert_eq!(UserId::new(bad), Err(NameError::Control), "{bad:?}");
        }
    }

    #[test]
    fn every_cause_has_a_legal_code_and_a_short_reason() {
        for cause in CloseCause::ALL {
            assert!(cause.label().len() <= 123);
            let code = cause.code();
            assert!(matches!(code, 1000..=1013 | 4000..=4999), "{code}");
        }
    }
}

//! What must not be.

use std::{collections::BTreeMap, fmt};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An accepted event that a client neither got nor was told about.
    Lost,
    /// An id that a client got twice.
    Duplicated,
    /// One publish that a client got under two ids.
    Doubled,
    /// An id at or below the position that the client did not get before.
    OutOfOrder,
    /// A `prev` above the client's position, and no announcement.
    Hole,
    /// An event that nobody published to this channel.
    Stray,
    /// An event for those in its `except`.
    Excepted,
    /// Later in the channel than an event that was published after its 202.
    Overtaken,
    /// A gap that was announced where none may be.
    Announced,
    /// A cursor that is not where the client is.
    Cursor,
    /// A frame or an answer that the contract does not have.
    Protocol,
    /// A close that tells a client to stay away, though it did nothing wrong.
    SentAway,
    /// An open connection on which nothing came, not even a heartbeat.
    Silent,
    /// A replica that did not come back, or did not leave in peace.
    Replica,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Lost,
        Self::Duplicated,
        Self::Doubled,
        Self::OutOfOrder,
        Self::Hole,
        Self::Stray,
        Self::Excepted,
        Self::Overtaken,
        Self::Announced,
        Self::Cursor,
        Self::Protocol,
        Self::SentAway,
        Self::Silent,
        Self::Replica,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Doubled => "doubled under another id",
            Self::OutOfOrder => "out of order",
            Self::Hole => "holes in the chain",
            Self::Stray => "strays",
            Self::Excepted => "sent to the excepted",
            Self::Overtaken => "overtaken",
            Self::Announced => "gaps where none may be",
            Self::Cursor => "wrong cursors",
            Self::Protocol => "against the protocol",
            Self::SentAway => "sent away",
            Self::Silent => "silent connections",
            Self::Replica => "replicas that failed",
        })
    }
}

/// All that was found: every one counted, the first ones told.
#[derive(Clone, Debug, Default)]
pub struct Breaches {
    pub counts: BTreeMap<Kind, u64>,
    pub told: Vec<(Kind, String)>,
}

/// How many of one kind are told.
const TOLD: u64 = 20;
/// And over all clients.
const TOLD_IN_ALL: usize = 60;

impl Breaches {
    pub fn add(&mut self, kind: Kind, what: impl Into<String>) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= TOLD {
            self.told.push((kind, what.into()));
        }
    }

    pub fn absorb(&mut self, other: &Self) {
        for (kind, count) in &other.counts {
            *self.counts.entry(*kind).or_default() += count;
        }
        for (kind, what) in &other.told {
            if self.told.iter().filter(|(told, _)| told == kind).count() < TOLD_IN_ALL {
                self.told.push((*kind, what.clone()));
            }
        }
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

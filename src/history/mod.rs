//! What is kept of a channel, and the proof that nothing is missing in it (contract §4). Pure: who
//! keeps it, in memory or in Redis, is the bus's affair.
//!
//! An event bears the place of the one before it, so a row of events that begins at a position and
//! ends at the channel's last id is whole, however old. Where no last id is remembered, silence is
//! proven from the moment on since when the broker would remember.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::{
    event::{Channel, Position, UserId},
    frame::Frame,
};

mod stream;

pub use stream::{Bounds, Stream};

/// Positions of channels without a last id are set back so far, so that a broker's clock may be
/// set back as far and an event still come after them.
const QUIET_BACK: u64 = 24 * 60 * 60 * 1000;

/// One event that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its place.
    pub at: Position,
    /// The place before it, [`Position::ZERO`] if none is remembered.
    pub prev: Position,
    /// Who does not get it.
    pub except: Arc<[UserId]>,
    /// After this moment, in milliseconds since 1970, it is not replayed.
    pub until: Option<u64>,
    /// It is no event but word of a loss in this channel: what was published before it may be gone.
    pub loss: bool,
    /// What browsers get.
    pub frame: Frame,
}

impl Kept {
    /// What this user gets in a replay at this moment (milliseconds since 1970).
    #[must_use]
    pub fn replayed(&self, user: &UserId, now: u64) -> Frame {
        let over = self.until.is_some_and(|until| until <= now);
        if over || self.except.contains(user) { self.skip() } else { self.frame.clone() }
    }

    /// What stands in its place for those who do not get it.
    #[must_use]
    pub fn skip(&self) -> Frame {
        match self.frame.mark() {
            Some(mark) => Frame::skip(&mark.tag, self.at, self.prev),
            None => self.frame.clone(),
        }
    }
}

/// What was read of a channel.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Events after the position that was asked for, oldest first, at most as many as were asked
    /// for.
    pub kept: Vec<Kept>,
    /// There are more after these.
    pub more: bool,
    /// The channel's last id, whether or not that event is still kept.
    pub last: Option<Position>,
    /// When the broker's data began, in milliseconds since 1970: what was before it may be lost.
    pub epoch: u64,
    /// A channel without a last id was silent since this moment; `u64::MAX`: a missing id proves
    /// nothing.
    pub silent_since: u64,
    /// The broker's clock.
    pub now: u64,
}

/// A position, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A client named it: it may be made up, or another user's.
    Client(Position),
    /// This replica has handed out everything up to it.
    Own(Position),
    /// A moment in time; what came before it is not asked for.
    Moment(Position),
}

impl Claim {
    /// The position.
    #[must_use]
    pub fn at(self) -> Position {
        let (Self::Client(at) | Self::Own(at) | Self::Moment(at)) = self;
        at
    }
}

/// What a reading proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All of it follows the claim without a hole, and with it the client has everything up to the
    /// last id, or up to where more is to be read.
    Whole,
    /// So many of its events follow; then something is missing, or cannot be known to be there.
    Lost(usize),
}

impl Reading {
    /// Whether what was read after `claim` is everything.
    #[must_use]
    pub fn proof(&self, channel: &Channel, claim: Claim) -> Proof {
        if !self.connects(channel, claim) {
            return Proof::Lost(0);
        }
        let mut at = match self.kept.first() {
            // Whether the first one follows is proven.
            Some(first) => first.prev,
            None => return Proof::Whole,
        };
        for (n, event) in self.kept.iter().enumerate() {
            if event.prev > at || event.at <= at {
                return Proof::Lost(n);
            }
            at = event.at;
        }
        if !self.more && self.last.is_some_and(|last| last > at) {
            return Proof::Lost(self.kept.len());
        }
        Proof::Whole
    }

    /// Whether nothing is missing between the claim and the first event that was read.
    fn connects(&self, channel: &Channel, claim: Claim) -> bool {
        let at = claim.at();
        if at.ms < self.epoch {
            return false;
        }
        let silent = at.ms >= self.silent_since;
        let quiet = silent && at.ms <= self.now && at.n == quiet_mark(channel);
        match (self.last, self.kept.first(), claim) {
            (None, None, Claim::Client(_) | Claim::Own(_)) => quiet,
            (None, None, Claim::Moment(_)) => silent,
            (Some(last), None, Claim::Moment(_)) => last <= at,
            (Some(last), None, _) => last == at,
            (_, Some(first), Claim::Client(_)) => {
                first.prev == at || quiet && first.prev == Position::ZERO
            }
            // Nothing is remembered before it, so what was there may be forgotten.
            (_, Some(first), _) if first.prev == Position::ZERO => silent,
            (_, Some(first), _) => first.prev <= at,
        }
    }

    /// Whether it shows neither that something is missing nor that nothing is: it has no events, no
    /// last id, and without that proves nothing.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.kept.is_empty() && self.last.is_none() && self.silent_since == u64::MAX
    }

    /// The place before the first event that was read, or after everything where there is none.
    #[must_use]
    pub fn begin(&self, channel: &Channel) -> Position {
        match self.kept.first() {
            Some(first) if first.prev == Position::ZERO => self.quiet(channel),
            Some(first) => first.prev,
            None => self.position(channel),
        }
    }

    /// A position that a client can begin with: after everything that was published.
    #[must_use]
    pub fn position(&self, channel: &Channel) -> Position {
        self.last.unwrap_or_else(|| self.quiet(channel))
    }

    /// The position of a channel without a last id.
    fn quiet(&self, channel: &Channel) -> Position {
        let mut ms = self.epoch.max(self.now.saturating_sub(QUIET_BACK));
        if self.silent_since > self.epoch && self.silent_since < self.now {
            // What proves silence moves on with the clock, and must not pass it by at once.
            ms = ms.max(self.silent_since + (self.now - self.silent_since) / 2);
        }
        Position::new(ms, quiet_mark(channel))
    }
}

/// Tells a position that was given out for this channel while it had no last id from one that is
/// made up, or was given out for another.
fn quiet_mark(channel: &Channel) -> u64 {
    let (kind, name) = match channel {
        Channel::User(user) => ("u", user.as_str()),
        Channel::Group(group) => ("g", group.as_str()),
        Channel::Broadcast => ("b", ""),
    };
    let digest = Sha256::new().chain_update(kind).chain_update(name).finalize();
    let number = digest.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte));
    number | 1 << 32
}

#[cfg(test)]
mod tests;

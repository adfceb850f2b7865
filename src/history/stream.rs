//! The events of one channel, in memory, within bounds.

use std::{collections::VecDeque, time::Duration};

use super::Kept;
use crate::event::Position;

/// How much is kept of a channel.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Events; 0 keeps nothing.
    pub events: usize,
    /// Bytes of their frames.
    pub bytes: usize,
    /// Time.
    pub ttl: Duration,
    /// How long a channel's last id is remembered; not shorter than `ttl`.
    pub meta_ttl: Duration,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    kept: VecDeque<Kept>,
    bytes: usize,
    last: Option<Position>,
}

impl Stream {
    /// A channel with this last id, and no event yet.
    #[must_use]
    pub fn after(last: Option<Position>) -> Self {
        Self { last, ..Self::default() }
    }

    /// The place of an event that is published at this moment (milliseconds since 1970), and the
    /// place before it. Where the clock stands behind the last event, the place is made from that.
    #[must_use]
    pub fn next(&self, now: u64) -> (Position, Position) {
        match self.last {
            Some(last) if last.ms >= now => (Position::new(last.ms, last.n + 1), last),
            Some(last) => (Position::new(now, 0), last),
            None => (Position::new(now, 0), Position::ZERO),
        }
    }

    /// Appends an event, and drops what is over the bounds.
    pub fn push(&mut self, kept: Kept, bounds: &Bounds, now: u64) {
        self.last = self.last.max(Some(kept.at));
        self.bytes += kept.frame.len();
        self.kept.push_back(kept);
        self.trim(bounds, now);
    }

    /// Drops what is over the bounds at this moment.
    pub fn trim(&mut self, bounds: &Bounds, now: u64) {
        let ttl = u64::try_from(bounds.ttl.as_millis()).unwrap_or(u64::MAX);
        while let Some(oldest) = self.kept.front() {
            let old = oldest.at.ms.saturating_add(ttl) < now;
            if !old && self.kept.len() <= bounds.events && self.bytes <= bounds.bytes {
                break;
            }
            self.bytes -= oldest.frame.len();
            self.kept.pop_front();
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// At most `most` events after this place, and whether there are more.
    #[must_use]
    pub fn read(&self, after: Position, most: usize) -> (Vec<Kept>, bool) {
        let begin = self.kept.partition_point(|kept| kept.at <= after);
        let found = self.kept.range(begin..);
        let more = found.len() > most;
        (found.take(most).cloned().collect(), more)
    }

    /// The last id, whether or not its event is still kept.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// The place before the oldest event that is kept, or the last id where none is: from here on
    /// everything is there.
    #[must_use]
    pub fn begin(&self) -> Option<Position> {
        self.kept.front().map(|oldest| oldest.prev).or(self.last)
    }

    /// Bytes of what is kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no event is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Drops the events; the last id stays.
    pub fn erase(&mut self) {
        self.kept = VecDeque::new();
        self.bytes = 0;
    }
}

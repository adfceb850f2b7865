//! What the bus in memory keeps.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use crate::{
    bus::Ask,
    event::{Channel, Position},
    history::{Bounds, Kept, Reading, Stream},
};

/// Channels whose last ids are remembered without an event, about 150 bytes each. Of more, those
/// that were silent longest are forgotten.
const QUIET: usize = 100_000;
/// Events after which old ones of all channels are looked for.
const SWEEP: usize = 4_096;

/// The streams of all channels.
#[derive(Debug)]
pub(super) struct Streams {
    bounds: Bounds,
    /// When this process began.
    epoch: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<Channel, Stream, ahash::RandomState>,
    /// Channels were forgotten whose last event is not newer than this.
    forgotten: u64,
    /// Events until the next sweep.
    until_sweep: usize,
}

impl Streams {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, epoch: now() - 1, state: Mutex::default() }
    }

    pub(super) fn keeps(&self) -> bool {
        self.bounds.events > 0
    }

    /// Gives an event its place, keeps what `make` makes of it, and hands its message to `send`,
    /// all in the order of the places. `None` if nothing is kept.
    pub(super) fn append(
        &self,
        channel: &Channel,
        make: impl FnOnce(Position, Position, u64) -> Option<(Kept, Bytes)>,
        send: impl FnOnce(Bytes),
    ) -> Option<Position> {
        let mut state = self.state();
        let now = now();
        let stream = state.channels.entry(channel.clone()).or_default();
        let (at, prev) = stream.next(now);
        let (kept, message) = make(at, prev, now)?;
        stream.push(kept, &self.bounds, now);
        send(message);
        state.until_sweep = state.until_sweep.saturating_sub(1);
        if state.until_sweep == 0 {
            state.until_sweep = SWEEP;
            state.sweep(&self.bounds, now);
        }
        Some(at)
    }

    pub(super) fn read(&self, ask: &Ask) -> Reading {
        let mut state = self.state();
        let now = now();
        let forgotten = state.forgotten;
        let stream = state.channels.get_mut(&ask.channel);
        let (kept, more, last) = match stream {
            Some(stream) => {
                stream.trim(&self.bounds, now);
                let (kept, more) = match ask.after {
                    Some(after) => stream.read(after, ask.most),
                    None => (Vec::new(), false),
                };
                (kept, more, stream.last())
            }
            None => (Vec::new(), false, None),
        };
        let remembered = now.saturating_sub(millis(self.bounds.meta_ttl));
        let silent_since = self.epoch.max(remembered).max(forgotten + 1);
        Reading { kept, more, last, epoch: self.epoch, silent_since, now }
    }

    pub(super) fn erase(&self, channel: &Channel) {
        if let Some(stream) = self.state().channels.get_mut(channel) {
            stream.erase();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops events that are too old, and forgets channels that were silent too long.
    fn sweep(&mut self, bounds: &Bounds, now: u64) {
        let oldest = now.saturating_sub(millis(bounds.meta_ttl));
        self.channels.retain(|_, stream| {
            stream.trim(bounds, now);
            stream.last().is_some_and(|last| last.ms >= oldest)
        });
        let mut quiet: Vec<u64> = self
            .channels
            .values()
            .filter(|stream| stream.is_empty())
            .filter_map(|stream| stream.last().map(|last| last.ms))
            .collect();
        if quiet.len() > QUIET {
            let excess = quiet.len() - QUIET;
            let (_, border, _) = quiet.select_nth_unstable(excess);
            let border = *border;
            self.forgotten = self.forgotten.max(border);
            self.channels.retain(|_, stream| {
                !stream.is_empty() || stream.last().is_some_and(|last| last.ms > border)
            });
        }
        if self.channels.capacity() > 1_024 && self.channels.len() * 4 < self.channels.capacity() {
            self.channels.shrink_to_fit();
        }
    }
}

fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

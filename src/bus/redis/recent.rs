//! What Redis acknowledged lately. Redis may lose it again (an append-only file that is written once
//! a second, a replica that was promoted before it had everything), after the publisher was told
//! that it is kept. So it is remembered here for a little longer than that, to be put back.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    bus::envelope::Parts,
    event::{Channel, Position, Tag},
};

/// Redis loses about two seconds at most with `appendfsync everysec` (redis.io, persistence).
const TIME: Duration = Duration::from_secs(5);
/// Bytes of messages that are remembered. Of older ones only the place is, so that their loss can
/// still be told.
const BYTES: usize = 64 * 1024 * 1024;
/// Places, about 200 bytes each.
const PLACES: usize = 262_144;

/// An event that Redis has acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) channel: Channel,
    pub(super) at: Position,
    pub(super) prev: Position,
    /// `None`: too many came after it.
    pub(super) event: Option<Event>,
}

/// What an event's message is put together from: only where Redis has lost it is that done again.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) parts: Parts,
    /// When it is over, in milliseconds since 1970.
    pub(super) until: Option<u64>,
}

impl Event {
    fn len(&self) -> usize {
        self.parts.head.len() + self.parts.members.len()
    }
}

impl Entry {
    /// The message as it was published.
    pub(super) fn message(&self) -> Option<Bytes> {
        let Event { parts, until } = self.event.as_ref()?;
        Some(parts.kept(&Tag::of(&self.channel), self.at, self.prev, *until))
    }
}

/// The events of the last seconds before the last acknowledgement, in its order.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<(Instant, Entry)>,
    /// Of all messages.
    bytes: usize,
    /// The first so many have no message any more.
    bare: usize,
    /// Events were forgotten before their time.
    forgotten: u64,
}

/// What is to be looked after.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) entries: Vec<Entry>,
    /// So many more were forgotten since the last snapshot.
    pub(super) forgotten: u64,
}

impl Recent {
    /// Remembers an event, and forgets what is old enough to be safe.
    pub(super) fn add(&self, entry: Entry) {
        let mut state = self.state();
        state.bytes += entry.event.as_ref().map_or(0, Event::len);
        state.entries.push_back((Instant::now(), entry));
        state.forget_old();
        state.shrink(BYTES, PLACES);
    }

    /// Redis has just answered: what is old enough is safe.
    pub(super) fn tidy(&self) {
        self.state().forget_old();
    }

    /// All of it; it stays, since the next Redis may lose it as well.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut state = self.state();
        let entries = state.entries.iter().map(|(_, entry)| entry.clone()).collect();
        Snapshot { entries, forgotten: std::mem::take(&mut state.forgotten) }
    }

    /// Redis was given them back just now, and may lose them as well: they are as young as what it
    /// acknowledges now.
    pub(super) fn renew(&self) {
        let now = Instant::now();
        for (since, _) in &mut self.state().entries {
            *since = now;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_old(&mut self) {
        while self.entries.front().is_some_and(|(since, _)| since.elapsed() > TIME) {
            self.pop();
        }
        if self.entries.is_empty() {
            // Nothing forgotten before is young any more.
            *self = Self::default();
        }
    }

    fn shrink(&mut self, bytes: usize, places: usize) {
        while self.bytes > bytes {
            let Some((_, entry)) = self.entries.get_mut(self.bare) else { break };
            self.bytes -= entry.event.take().map_or(0, |event| event.len());
            self.bare += 1;
        }
        while self.entries.len() > places {
            self.pop();
            self.forgotten += 1;
        }
    }

    fn pop(&mut self) {
        if let Some((_, entry)) = self.entries.pop_front() {
            self.bytes -= entry.event.map_or(0, |event| event.len());
            self.bare = self.bare.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        Entry {
            channel: Channel::Broadcast,
            at: Position::new(n, 0),
            prev: Position::ZERO,
            event: Some(Event {
                parts: Parts { head: Bytes::new(), members: Bytes::from_static(b"0123456789") },
                until: None,
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_forgets_after_its_time() {
        let recent = Recent::default();
        for n in 0..10 {
            recent.add(entry(n));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let kept = recent.snapshot().entries;
        assert_eq!(kept.iter().map(|entry| entry.at.ms).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
        // Redis is away, and nothing is acknowledged: nothing is forgotten.
        tokio::time::advance(TIME * 10).await;
        assert_eq!(recent.snapshot().entries.len(), 6);
        recent.renew();
        tokio::time::advance(TIME).await;
        recent.tidy();
        assert_eq!(recent.snapshot().entries.len(), 6);
        tokio::time::advance(TIME).await;
        recent.tidy();
        assert!(recent.snapshot().entries.is_empty());
        assert_eq!(recent.state().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_the_places_stay_and_then_the_count() {
        let mut state = State::default();
        for n in 0..10 {
            state.bytes += 10;
            state.entries.push_back((Instant::now(), entry(n)));
            state.shrink(50, 8);
        }
        let with: Vec<bool> = state.entries.iter().map(|(_, e)| e.event.is_some()).collect();
        assert_eq!(with, [false, false, false, true, true, true, true, true]);
        assert_eq!((state.bytes, state.bare, state.forgotten), (50, 3, 2));
        tokio::time::advance(TIME * 2).await;
        state.forget_old();
        assert_eq!((state.bytes, state.bare, state.forgotten), (0, 0, 0));
    }
}

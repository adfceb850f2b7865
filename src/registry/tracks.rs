//! How far each channel has been handed out on this replica.
//!
//! There is a track for every channel that somebody here listens to. The subscriber moves it, event
//! by event, and only along the chain: so what shards get of a channel is without a hole and without
//! a repeat. Handshakes and replays look at it to know up to where they have to read.
//!
//! The table is shared and its locks are short: none is held across an await, and each part has
//! its own.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;

use crate::{
    event::{Channel, Position},
    history::{Bounds, Kept, Stream},
};

/// Spread by hash, so that workers and the subscriber seldom meet.
const PARTS: usize = 32;
/// Bytes that the rings of all channels may take, about; no ring is begun beyond that.
const RING_BYTES: usize = 64 * 1024 * 1024;
/// An event that is further in the future is only believed when the history has it: taken at its
/// word, it would make repeats of all that come before its time. (The broker's clock may be ahead;
/// then everything goes this way.)
const AHEAD: u64 = 30_000;
/// Places of one channel that are looked up at once because they may be made up.
const DOUBTS: usize = 64;

/// What an event means to its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody here listens.
    Unwatched,
    /// It was handed out before.
    Repeat,
    /// It is the next one.
    Next,
    /// Something is missing before it; it will come out of the history, in order.
    Broken,
}

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The subscription, to which any neighbour may publish.
    Live,
    /// What is kept.
    History,
}

/// Where an event says that it stands: its id, and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub at: Position,
    /// The one before it. Whoever makes an id up may hit one that is given out later, but hardly both.
    pub prev: Position,
}

/// See the module.
#[derive(Debug)]
pub struct Tracks {
    parts: [Mutex<Part>; PARTS],
    hasher: ahash::RandomState,
    bounds: Bounds,
    /// Channels whose chain broke since they were taken last.
    broken: Mutex<Vec<Channel>>,
    /// Places that may be made up, since they were taken last.
    doubted: Mutex<Vec<(Channel, Place)>>,
    /// When the broker's data began, as far as it is known here (milliseconds since 1970).
    epoch: AtomicU64,
    /// Rung when one is added.
    breaks: Notify,
    rings: AtomicUsize,
}

type Part = HashMap<Channel, Track, ahash::RandomState>;

#[derive(Debug)]
struct Track {
    holders: u32,
    state: State,
    /// Up to here the history has borne out what was handed out: what comes again is a repeat.
    proven: Position,
    /// What the event that was handed out last named as the one before it.
    prev: Position,
    /// One that was handed out, and that the history does not have where it should be.
    suspect: Option<Place>,
    /// Places beyond it that are being looked up. One that somebody made up, a little ahead of the
    /// clock, makes repeats of events that were never handed out.
    doubts: Vec<Place>,
    /// What replays read, where many ask for the same: broadcast and groups. Apart, since nearly all
    /// channels are users' and have none.
    ring: Option<Box<Ring>>,
}

/// The history of a channel, as far as it was read once and handed out since.
#[derive(Debug)]
struct Ring {
    stream: Stream,
    before: Before,
}

/// What a reading says of the time before its first event, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    /// When the broker's data began.
    pub epoch: u64,
    /// The channel was silent since this moment.
    pub silent_since: u64,
}

/// What a ring holds after some place.
#[derive(Debug)]
pub struct Held {
    /// Events.
    pub kept: Vec<Kept>,
    /// There are more after these.
    pub more: bool,
    /// The channel's last id.
    pub last: Option<Position>,
    /// What is known of the time before the first event.
    pub before: Before,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Where it stands is not known yet; the newest event that came meanwhile.
    Starting(Position),
    /// Everything up to here was handed out.
    Standing(Position),
    /// Everything up to `at`; and one at `seen` has come that does not follow.
    Broken { at: Position, seen: Position },
}

/// Keeps a channel's track as long as it lives.
#[derive(Debug)]
pub struct Hold {
    tracks: Arc<Tracks>,
    channel: Channel,
}

impl Tracks {
    /// A table without tracks; `bounds` are those of rings.
    #[must_use]
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            parts: std::array::from_fn(|_| Mutex::default()),
            hasher: ahash::RandomState::new(),
            bounds,
            broken: Mutex::default(),
            doubted: Mutex::default(),
            epoch: AtomicU64::new(0),
            breaks: Notify::new(),
            rings: AtomicUsize::new(0),
        })
    }

    /// Whether events are kept at all, and tracks mean something.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.bounds.events > 0
    }

    /// Begins to listen to a channel: from now on events on it are remembered, and where the track
    /// stands is asked with [`Hold::position`] and answered with [`Hold::start`].
    #[must_use]
    pub fn hold(self: &Arc<Self>, channel: &Channel) -> Hold {
        let mut part = self.part(channel);
        let track = part.entry(channel.clone()).or_insert(Track {
            holders: 0,
            state: State::Starting(Position::ZERO),
            proven: Position::ZERO,
            prev: Position::ZERO,
            suspect: None,
            doubts: Vec::new(),
            ring: None,
        });
        track.holders += 1;
        Hold { tracks: Arc::clone(self), channel: channel.clone() }
    }

    /// Whether somebody listens, or is about to.
    #[must_use]
    pub fn is_held(&self, channel: &Channel) -> bool {
        self.part(channel).contains_key(channel)
    }

    /// Up to where this channel was handed out; `None` if nobody listens, or it is not known yet.
    #[must_use]
    pub fn position(&self, channel: &Channel) -> Option<Position> {
        self.part(channel).get(channel)?.at()
    }

    /// The newest event that came on a channel whose chain is broken.
    #[must_use]
    pub fn seen(&self, channel: &Channel) -> Option<Position> {
        match self.part(channel).get(channel)?.state {
            State::Broken { seen, .. } => Some(seen),
            State::Starting(_) | State::Standing(_) => None,
        }
    }

    /// The broker's data began at this moment: what stands before it proves nothing any more.
    pub fn learn_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Where a client can begin without asking the broker: up to where the channel was handed out,
    /// unless that is older than the broker's data.
    #[must_use]
    pub fn beginning(&self, channel: &Channel) -> Option<Position> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.position(channel).filter(|at| at.ms >= epoch)
    }

    /// Everything up to here was handed out, which the broker's data began after: nothing was
    /// missed, but a position from before it is of no use to anyone.
    pub fn renew(&self, channel: &Channel, to: Position) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let mut part = self.part(channel);
        if let Some(track) = part.get_mut(channel)
            && let State::Standing(at) = track.state
            && at.ms < epoch
            && at < to
        {
            track.state = State::Standing(to);
            track.rest(to);
            self.drop_ring(track);
        }
    }

    /// Every channel that somebody listens to, and up to where it was handed out.
    #[must_use]
    pub fn all(&self) -> Vec<(Channel, Position)> {
        let mut all = Vec::new();
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(part.iter().filter_map(|(name, track)| Some((name.clone(), track.at()?))));
        }
        all
    }

    /// An event has come, live or out of the history. [`Step::Next`]: it is to be handed out now.
    pub fn advance(&self, channel: &Channel, kept: &Kept, from: Source) -> Step {
        let mut part = self.part(channel);
        let Some(track) = part.get_mut(channel) else { return Step::Unwatched };
        match track.state {
            State::Starting(seen) => {
                track.state = State::Starting(seen.max(kept.at));
                Step::Broken
            }
            State::Standing(at) | State::Broken { at, .. } if kept.at <= at => {
                let here = Place { at, prev: track.prev };
                let same = kept.at == at && kept.prev == here.prev;
                let handed_out = same || kept.at <= track.proven;
                if from == Source::Live && !handed_out {
                    let suspects = [Some(here), track.suspect.take()];
                    let new = suspects.into_iter().flatten().filter(|place| track.doubt(*place));
                    let new: Vec<Place> = new.collect();
                    drop(part);
                    self.tell_doubts(channel, new);
                }
                Step::Repeat
            }
            State::Standing(at) | State::Broken { at, .. }
                if kept.prev <= at && (from == Source::History || !is_ahead(kept.at)) =>
            {
                track.state = match track.state {
                    State::Broken { seen, .. } if seen > kept.at => {
                        State::Broken { at: kept.at, seen }
                    }
                    _ => State::Standing(kept.at),
                };
                if let Some(Ring { stream: ring, .. }) = track.ring.as_deref_mut() {
                    let before = ring.bytes();
                    ring.push(kept.clone(), &self.bounds, kept.at.ms);
                    self.rings.fetch_add(ring.bytes(), Ordering::Relaxed);
                    self.rings.fetch_sub(before, Ordering::Relaxed);
                }
                let before = Place { at, prev: std::mem::replace(&mut track.prev, kept.prev) };
                if kept.loss {
                    // It is said; there is nothing to look up before it.
                    track.rest(kept.at);
                } else if from == Source::History {
                    if kept.prev <= track.proven || kept.prev == at {
                        track.proven = kept.at;
                    } else {
                        track.suspect = Some(before);
                    }
                }
                Step::Next
            }
            State::Standing(at) => {
                track.state = State::Broken { at, seen: kept.at };
                drop(part);
                self.tell_broken(channel);
                Step::Broken
            }
            State::Broken { at, seen } => {
                track.state = State::Broken { at, seen: seen.max(kept.at) };
                Step::Broken
            }
        }
    }

    /// Goes on from here: what is missing before it cannot be had, or, where `to` is lower than
    /// what was handed out, the broker has forgotten it.
    pub fn jump(&self, channel: &Channel, to: Position) {
        let mut part = self.part(channel);
        if let Some(track) = part.get_mut(channel) {
            track.state = State::Standing(to);
            track.rest(to);
            self.drop_ring(track);
        }
    }

    /// The history has this place, and everything up to it was handed out.
    pub fn prove(&self, channel: &Channel, place: Position) {
        if let Some(track) = self.part(channel).get_mut(channel)
            && track.suspect.is_none()
        {
            track.proven = track.proven.max(place);
        }
    }

    /// Whether this place is still to be looked up.
    #[must_use]
    pub fn is_doubted(&self, channel: &Channel, place: Place) -> bool {
        self.part(channel).get(channel).is_some_and(|track| track.doubts.contains(&place))
    }

    /// A place that was doubted has been looked up.
    pub fn settle(&self, channel: &Channel, place: Place) {
        if let Some(track) = self.part(channel).get_mut(channel) {
            track.doubts.retain(|doubt| *doubt != place);
        }
    }

    /// The places that may be made up, since this was asked last.
    #[must_use]
    pub fn take_doubts(&self) -> Vec<(Channel, Place)> {
        std::mem::take(&mut *self.doubted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The channels whose chain broke since this was asked last.
    #[must_use]
    pub fn take_broken(&self) -> Vec<Channel> {
        std::mem::take(&mut *self.broken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a chain has broken, or a place is doubted.
    pub async fn breaks(&self) {
        self.breaks.notified().await;
    }

    /// At most `most` events after this place out of the channel's ring, without those that are too
    /// old at this moment (milliseconds since 1970); `None` if the ring does not have them all, or
    /// there is none.
    #[must_use]
    pub fn ring(&self, channel: &Channel, after: Position, most: usize, now: u64) -> Option<Held> {
        let mut part = self.part(channel);
        let Ring { stream, before } = part.get_mut(channel)?.ring.as_deref_mut()?;
        if before.epoch < self.epoch.load(Ordering::Relaxed) {
            return None;
        }
        let bytes = stream.bytes();
        stream.trim(&self.bounds, now);
        self.rings.fetch_sub(bytes - stream.bytes(), Ordering::Relaxed);
        let beyond = stream.begin().is_some_and(|begin| after < begin)
            || stream.last().is_some_and(|last| after > last);
        if beyond {
            return None;
        }
        let (kept, more) = stream.read(after, most);
        Some(Held { kept, more, last: stream.last(), before: *before })
    }

    /// Whether a ring for this channel is worth reading its whole history.
    #[must_use]
    pub fn wants_ring(&self, channel: &Channel) -> bool {
        !matches!(channel, Channel::User(_))
            && self.rings.load(Ordering::Relaxed) < RING_BYTES
            && self.part(channel).get(channel).is_some_and(|track| track.ring.is_none())
    }

    /// Begins a ring with the whole history of a channel, unless something was handed out since
    /// that is not in it. `last`: the channel's last id; `at`: up to where it was handed out when the
    /// reading began.
    pub fn set_ring(
        &self,
        channel: &Channel,
        history: Vec<Kept>,
        last: Option<Position>,
        at: Position,
        before: Before,
    ) {
        let mut part = self.part(channel);
        let Some(track) = part.get_mut(channel) else { return };
        if track.at() != Some(last.unwrap_or(at)) || track.ring.is_some() {
            return;
        }
        let mut stream = Stream::after(last);
        for kept in history {
            let now = kept.at.ms;
            stream.push(kept, &self.bounds, now);
        }
        self.rings.fetch_add(stream.bytes(), Ordering::Relaxed);
        track.ring = Some(Box::new(Ring { stream, before }));
    }

    fn tell_broken(&self, channel: &Channel) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).push(channel.clone());
        self.breaks.notify_one();
    }

    fn tell_doubts(&self, channel: &Channel, places: Vec<Place>) {
        if !places.is_empty() {
            let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
            doubted.extend(places.into_iter().map(|place| (channel.clone(), place)));
            self.breaks.notify_one();
        }
    }

    fn drop_ring(&self, track: &mut Track) {
        if let Some(ring) = track.ring.take() {
            self.rings.fetch_sub(ring.stream.bytes(), Ordering::Relaxed);
        }
    }

    /// Nobody can look at the channel meanwhile.
    #[cfg(test)]
    pub(super) fn locked<T>(&self, channel: &Channel, f: impl FnOnce() -> T) -> T {
        let _part = self.part(channel);
        f()
    }

    fn part(&self, channel: &Channel) -> MutexGuard<'_, Part> {
        let index = usize::try_from(self.hasher.hash_one(channel) >> 48).unwrap_or(0) % PARTS;
        // Every change is whole, so a poisoned lock is as good as new.
        self.parts[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_ahead(at: Position) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u128::from(at.ms) > now.as_millis() + u128::from(AHEAD)
}

impl Track {
    /// What was before this place is of no matter any more.
    fn rest(&mut self, at: Position) {
        self.proven = at;
        self.suspect = None;
        self.doubts.retain(|doubt| doubt.at > at);
    }

    /// Whether this place is to be looked up, and is not yet.
    fn doubt(&mut self, place: Place) -> bool {
        let new = self.doubts.len() < DOUBTS && !self.doubts.contains(&place);
        if new {
            self.doubts.push(place);
        }
        new
    }

    fn at(&self) -> Option<Position> {
        match self.state {
            State::Starting(_) => None,
            State::Standing(at) | State::Broken { at, .. } => Some(at),
        }
    }
}

impl Hold {
    /// Which channel.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// See [`Tracks::beginning`].
    #[must_use]
    pub fn beginning(&self) -> Option<Position> {
        self.tracks.beginning(&self.channel)
    }

    /// Up to where the channel was handed out; `None`: it is not known yet.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.tracks.position(&self.channel)
    }

    /// The track stands here, which was read after the hold was taken. Nothing happens if it is
    /// known already. What came meanwhile and is newer is read again.
    pub fn start(&self, at: Position) {
        let mut part = self.tracks.part(&self.channel);
        let Some(track) = part.get_mut(&self.channel) else { return };
        let State::Starting(seen) = track.state else { return };
        track.proven = at;
        if seen > at {
            track.state = State::Broken { at, seen };
            drop(part);
            self.tracks.tell_broken(&self.channel);
        } else {
            track.state = State::Standing(at);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut part = self.tracks.part(&self.channel);
        let Some(track) = part.get_mut(&self.channel) else { return };
        track.holders -= 1;
        if track.holders == 0 {
            self.tracks.drop_ring(track);
            part.remove(&self.channel);
            if part.capacity() > 64 && part.len() * 4 < part.capacity() {
                part.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests;

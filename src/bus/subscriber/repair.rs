//! Fills gaps out of the history: after every loss of the subscription, and whenever an event does
//! not follow the one before it.
//!
//! Each channel that somebody here listens to is read again from where it was handed out, many in
//! one round trip. What is read goes the way of live events, along the chain, so that nothing goes
//! out twice or in another order, and live events need not be held up meanwhile. What cannot be
//! proven whole is announced.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::{
    bus::{Ask, BusError, History},
    event::{Channel, GapReason, Position},
    history::{Claim, Kept, Proof, Reading},
    registry::{
        Delivery, Registry,
        tracks::{Hold, Place, Source, Step, Tracks},
    },
    telemetry::Metrics,
    throttle::Throttle,
};

/// Channels that are read in one round trip.
const BATCH: usize = 1_024;
/// Events of each that are read at once: after an outage most have missed few or none.
const EVENTS: usize = 16;
/// Between two tries while the broker is away.
const RETRY: Duration = Duration::from_millis(300);
/// What the broker does not know (any more), although it came from there, is looked for so often:
/// after a loss of its last writes, the replicas that had published them put them back.
const TRIES: u32 = 10;

/// A channel that is to be read.
struct Due {
    channel: Channel,
    /// Why something may be missing; `None`: nothing should be.
    reason: Option<GapReason>,
    /// Only whether the history has this place.
    doubt: Option<Place>,
    at: Instant,
    tries: u32,
}

/// A reading that is under way: what is read, and from where.
type Batch = Vec<(Due, Position)>;
type Read = (Batch, Result<Vec<Reading>, BusError>);

/// See the module.
pub(super) struct Repair {
    history: Arc<dyn History>,
    registry: Registry,
    tracks: Arc<Tracks>,
    /// Everyone listens to it, so that it is always known.
    broadcast: Hold,
    metrics: Metrics,
    due: VecDeque<Due>,
    reading: Option<BoxFuture<'static, Read>>,
    /// Why the last reading failed.
    why: Option<String>,
    /// Events handed out since everything was last read.
    filled: u64,
    told: Throttle,
    /// For proving that tests can fail.
    off: bool,
}

impl Repair {
    pub(super) fn new(history: Arc<dyn History>, registry: Registry, metrics: Metrics) -> Self {
        let tracks = Arc::clone(registry.tracks());
        Self {
            broadcast: tracks.hold(&Channel::Broadcast),
            history,
            registry,
            tracks,
            metrics,
            due: VecDeque::new(),
            reading: None,
            why: None,
            filled: 0,
            told: Throttle::default(),
            off: cfg!(debug_assertions) && std::env::var_os("BELFRY_TEST_NO_REPAIR").is_some(),
        }
    }

    /// Whether it is known where the broadcast channel stands: before that, nobody can be told
    /// where to begin.
    pub(super) fn started(&self) -> bool {
        !self.history.keeps() || self.broadcast.position().is_some()
    }

    /// Why it is not.
    pub(super) fn why(&self) -> String {
        self.why.clone().unwrap_or_else(|| "what is kept has not been read yet".to_owned())
    }

    /// Finds out where the broadcast channel stands.
    pub(super) fn start(&mut self) {
        if !self.started() && self.due.is_empty() && self.reading.is_none() {
            self.push(Channel::Broadcast, Some(GapReason::Reconnected));
        }
    }

    /// Looks at the broadcast channel, though nothing should be missing: so the replica learns that
    /// the broker's data is gone, and of what slipped through without a sign.
    pub(super) fn look(&mut self) {
        if self.started() && self.history.keeps() && self.due.is_empty() && self.reading.is_none() {
            self.push(Channel::Broadcast, None);
        }
    }

    /// Everything may have missed something.
    pub(super) fn all(&mut self, reason: GapReason) {
        if self.off || !self.history.keeps() {
            return;
        }
        self.due.retain(|due| due.doubt.is_some());
        for (channel, _) in self.tracks.all() {
            self.push(channel, Some(reason));
        }
    }

    /// Hands an event to whoever listens, if it is the next one.
    pub(super) fn take(&self, to: &Channel, kept: &Kept) {
        if !self.tracks.keeps() && !kept.loss {
            // Others keep it. Without a track, a place that is made up must not be believed.
            return self.registry.deliver(Delivery { place: None, ..delivery(to, kept) });
        }
        if !self.tracks.keeps() {
            return hand_out(&self.registry, to, kept);
        }
        let step = self.tracks.advance(to, kept, Source::Live);
        if self.off && step == Step::Broken {
            self.tracks.jump(to, kept.at);
            return hand_out(&self.registry, to, kept);
        }
        if step == Step::Next {
            hand_out(&self.registry, to, kept);
        }
    }

    fn push(&mut self, channel: Channel, reason: Option<GapReason>) {
        let at = Instant::now();
        self.due.push_back(Due { channel, reason, doubt: None, at, tries: 0 });
    }

    /// Does the next thing there is to do. Cancel safe: what is under way lives in `self`.
    pub(super) async fn step(&mut self) {
        let next = self.due.iter().map(|due| due.at).min();
        tokio::select! {
            read = poll(&mut self.reading), if self.reading.is_some() => {
                self.reading = None;
                self.apply(read);
            }
            () = self.tracks.breaks() => {
                for channel in self.tracks.take_broken() {
                    self.metrics.gap(GapReason::ChainBroken);
                    self.push(channel, Some(GapReason::ChainBroken));
                }
                for (channel, place) in self.tracks.take_doubts() {
                    let (at, reason) = (Instant::now(), Some(GapReason::ChainBroken));
                    self.due.push_back(Due { channel, reason, doubt: Some(place), at, tries: 0 });
                }
            }
            () = until(next), if self.reading.is_none() && next.is_some() => self.begin(),
        }
    }

    fn begin(&mut self) {
        let now = Instant::now();
        let mut batch: Batch = Vec::new();
        let mut asks = Vec::new();
        let mut later = VecDeque::new();
        while let Some(due) = self.due.pop_front() {
            if due.at > now || batch.len() >= BATCH {
                later.push_back(due);
                continue;
            }
            let at = self.tracks.position(&due.channel);
            // Nobody listens any more, or the handshake that is under way finds out by itself.
            if at.is_none() && due.channel != Channel::Broadcast {
                continue;
            }
            asks.push(match due.doubt {
                Some(place) => {
                    Ask { channel: due.channel.clone(), after: Some(place.at.before()), most: 1 }
                }
                None => Ask { channel: due.channel.clone(), after: at, most: EVENTS },
            });
            batch.push((due, at.unwrap_or_default()));
        }
        self.due = later;
        if !asks.is_empty() {
            let history = Arc::clone(&self.history);
            self.reading = Some(Box::pin(async move { (batch, history.read(asks).await) }));
        }
    }

    fn apply(&mut self, (batch, readings): Read) {
        match readings {
            Ok(readings) => {
                self.why = None;
                for ((due, after), reading) in batch.into_iter().zip(readings) {
                    self.judge(due, after, &reading);
                }
                if self.due.is_empty() && self.filled > 0 {
                    let events = std::mem::take(&mut self.filled);
                    tracing::info!(events, "what was missed was read and handed out");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a gap waits for the broker");
                self.why = Some(error.to_string());
                let at = Instant::now() + RETRY;
                self.due.extend(batch.into_iter().map(|(due, _)| Due { at, ..due }));
            }
        }
    }

    fn judge(&mut self, due: Due, after: Position, reading: &Reading) {
        let Some(at) = self.tracks.position(&due.channel) else {
            if due.channel == Channel::Broadcast {
                self.broadcast.start(reading.position(&Channel::Broadcast));
            }
            return;
        };
        self.tracks.learn_epoch(reading.epoch);
        if let Some(place) = due.doubt {
            return self.look_up(due, place, at, reading);
        }
        if due.reason.is_none() && after.ms < reading.epoch {
            return self.tracks.renew(&due.channel, reading.position(&due.channel));
        }
        // Nothing should be missing, and this does not say otherwise. It would be doubted, and
        // everyone told to reload, at every look.
        if due.reason.is_none() && reading.is_blind() {
            return;
        }
        let proof = reading.proof(&due.channel, Claim::Own(after));
        let follow = match proof {
            Proof::Whole => reading.kept.len(),
            Proof::Lost(follow) => follow,
        };
        for kept in reading.kept.iter().take(follow) {
            if self.tracks.advance(&due.channel, kept, Source::History) == Step::Next {
                // Without a gap it is only quicker than the subscription.
                self.filled += u64::from(due.reason.is_some());
                hand_out(&self.registry, &due.channel, kept);
            }
        }
        if proof == Proof::Whole && !reading.more && self.tracks.seen(&due.channel).is_none() {
            if let Some(last) = reading.last.filter(|last| *last == at) {
                self.tracks.prove(&due.channel, last);
            }
            return;
        }
        // Something moved it on meanwhile, or there is more: what was read is not the last word.
        let moved = at != after || follow > 0;
        if reading.more && proof == Proof::Whole || moved {
            let at = Instant::now();
            return self.due.push_back(Due { at, tries: 0, ..due });
        }
        let unknown = proof == Proof::Whole || reading.last.is_none_or(|last| last < after);
        if unknown && due.tries < TRIES && after.ms >= reading.epoch {
            let at = Instant::now() + RETRY;
            return self.due.push_back(Due { at, tries: due.tries + 1, ..due });
        }
        // Not to what was seen and is not kept: whoever published that may have made it up.
        let to = reading.position(&due.channel);
        self.lose(&due.channel, due.reason.unwrap_or(GapReason::ChainBroken), to);
    }

    /// A place went out that came live, and after it an event with a lower one. If the history has
    /// it, that event was a repeat. If not, somebody made it up, or the broker has lost it: either
    /// way events have gone by that nobody got.
    fn look_up(&mut self, due: Due, place: Place, at: Position, reading: &Reading) {
        if !self.tracks.is_doubted(&due.channel, place) {
            return;
        }
        let real = match reading.kept.first() {
            Some(first) if first.at == place.at => first.prev == place.prev,
            // It is kept no more.
            Some(first) => first.prev == place.at,
            None => reading.last == Some(place.at),
        };
        if !real && due.tries < TRIES {
            let at = Instant::now() + RETRY;
            return self.due.push_back(Due { at, tries: due.tries + 1, ..due });
        }
        self.tracks.settle(&due.channel, place);
        if real {
            return self.tracks.prove(&due.channel, place.at);
        }
        let last = reading.position(&due.channel);
        let to = if at > place.at { last.max(at) } else { last };
        self.lose(&due.channel, GapReason::ChainBroken, to);
    }

    fn lose(&mut self, channel: &Channel, reason: GapReason, to: Position) {
        self.tracks.jump(channel, to);
        self.registry.lose(channel, to, reason);
        if let Some(more) = self.told.check() {
            tracing::warn!(
                reason = reason.label(),
                more_since_last_line = more,
                "what was missed on a channel is not kept any more; its clients are told to reload"
            );
        }
    }
}

/// Hands a kept event to the connections here.
fn hand_out(registry: &Registry, to: &Channel, kept: &Kept) {
    if kept.loss {
        return registry.lose(to, kept.at, GapReason::BrokerLost);
    }
    registry.deliver(delivery(to, kept));
}

fn delivery(to: &Channel, kept: &Kept) -> Delivery {
    Delivery {
        to: to.clone(),
        except: Arc::clone(&kept.except),
        frame: match kept.frame.received() {
            Some(_) => kept.frame.clone(),
            None => kept.frame.clone().arrived(),
        },
        place: Some(kept.at),
        skip: (!kept.except.is_empty()).then(|| kept.skip()),
    }
}

async fn poll(reading: &mut Option<BoxFuture<'static, Read>>) -> Read {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

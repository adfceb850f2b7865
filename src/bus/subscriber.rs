//! The actor that owns this replica's subscription: it reads eagerly, never awaits a socket or the
//! broker, and hands what it reads to the registry.
//!
//! A subscription can look healthy and deliver nothing, so this replica believes only what comes
//! back to it: it publishes probes to itself, on a channel of every kind after each (re)subscribe
//! and on the control channel from then on. The proof decides whether new connections are taken
//! (no one sits on a deaf socket) and, with a grace, whether the replica is ready.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use tokio::time::{Instant, MissedTickBehavior, interval};

mod health;
mod repair;

pub use health::Health;

use repair::Repair;

use super::{
    BusError, Destination, Feed, History, Incoming, Message, Publisher,
    envelope::{self, Decoded, Poison},
    orders::{Ear, Heard},
};
use crate::{
    event::{Channel, GapReason, Tag},
    frame::{Frame, Mark},
    history::Kept,
    registry::{Delivery, Registry},
    telemetry::{DropReason, Metrics, Role},
    throttle::Throttle,
};

/// While the proof fails, the log says why this often.
const REMIND: Duration = Duration::from_secs(30);
/// Without a proof, the next attempt comes this soon.
const RETRY: Duration = Duration::from_millis(250);
/// After messages that are not kept have come, more of them are expected for this long: raw ones of
/// a neighbour, or events of a replica that keeps none.
const UNKEPT: Duration = Duration::from_secs(60 * 60);

/// Times and bounds of the subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two probes.
    pub probe_interval: Duration,
    /// A probe that is not back after this is lost.
    pub probe_timeout: Duration,
    /// Longest message that is delivered, in bytes.
    pub message_bytes: usize,
}

/// The seams to the broker.
pub struct Bus {
    /// The subscription.
    pub feed: Box<dyn Feed>,
    /// Publishes probes.
    pub publisher: Arc<dyn Publisher>,
    /// What is kept, to fill gaps from.
    pub history: Arc<dyn History>,
}

/// See the module.
pub struct Subscriber {
    feed: Box<dyn Feed>,
    publisher: Arc<dyn Publisher>,
    registry: Registry,
    health: Arc<Health>,
    /// Takes what concerns orders.
    ear: Ear,
    metrics: Metrics,
    settings: Settings,
    /// Distinguishes this replica's probes from others'.
    replica: String,
    subscribed: bool,
    probe: Option<Probe>,
    count: u64,
    /// A gap that is to be filled once the proof holds again.
    gap: Option<GapReason>,
    repair: Repair,
    /// Whether anything is kept.
    keeps: bool,
    /// When something last came that is not kept and that its publisher did not call transient.
    unkept: Option<Instant>,
    /// The next probe covers every kind of channel.
    all_kinds: bool,
    poison: Throttle,
    started: Instant,
    /// The last complaint in the log.
    said: Option<Instant>,
}

struct Probe {
    id: String,
    sent: Instant,
    /// When the broker had taken all of it. Only from then on is it the subscription that is slow,
    /// and not the publishing connection.
    acknowledged: Option<Instant>,
    missing: HashSet<Destination>,
}

type Publishing<'a> = Option<BoxFuture<'a, Result<(), BusError>>>;

impl Subscriber {
    /// An actor that reads `feed` once [`run`](Self::run) is called.
    #[must_use]
    pub fn new(
        bus: Bus,
        registry: Registry,
        health: Arc<Health>,
        ear: Ear,
        metrics: Metrics,
        settings: Settings,
    ) -> Self {
        health.failed("the subscription is not proved yet");
        let Bus { feed, publisher, history } = bus;
        let keeps = history.keeps();
        let repair = Repair::new(history, registry.clone(), metrics.clone());
        Self {
            feed,
            publisher,
            registry,
            health,
            ear,
            metrics,
            settings,
            replica: uuid::Uuid::now_v7().simple().to_string(),
            subscribed: false,
            probe: None,
            count: 0,
            gap: None,
            keeps,
            repair,
            unkept: None,
            all_kinds: true,
            poison: Throttle::default(),
            started: Instant::now(),
            said: None,
        }
    }

    /// Runs until the bus shuts down.
    pub async fn run(mut self) {
        let publisher = Arc::clone(&self.publisher);
        let mut publishing: Publishing<'_> = None;
        let mut tick = interval(RETRY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Not biased: a flood of messages must not keep the probe from being checked.
            tokio::select! {
                incoming = self.feed.next() => match incoming {
                    Some(incoming) => self.incoming(incoming),
                    None => return,
                },
                () = self.repair.step() => {}
                result = poll(&mut publishing) => {
                    publishing = None;
                    match (result, &mut self.probe) {
                        (Ok(()), Some(probe)) if !probe.missing.is_empty() => {
                            probe.acknowledged = Some(Instant::now());
                        }
                        (Ok(()), _) => {}
                        (Err(error), _) => {
                            self.probe = None;
                            self.fail(&error.to_string());
                        }
                    }
                }
                _ = tick.tick() => {
                    self.metrics.redis_up(Role::Publisher, publisher.is_up());
                    if self.overdue() {
                        self.lost("a probe did not come back: the subscription is deaf");
                        self.feed.restart().await;
                    } else if self.subscribed && !self.repair.started() {
                        self.repair.start();
                        self.fail(&self.repair.why());
                    } else if publishing.is_none() && self.probe_is_due() {
                        publishing = self.start_probe(&*publisher);
                    }
                }
            }
        }
    }

    fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Message { from, payload } => self.message(from, &payload),
            Incoming::Unaddressed => self.drop(DropReason::BusUnaddressed),
            Incoming::Subscribed { again } => {
                self.subscribed = true;
                self.repair.start();
                self.all_kinds = true;
                self.probe = None;
                if again {
                    self.ear.hear(Heard::Gap);
                    self.gap.get_or_insert(GapReason::Reconnected);
                }
            }
            Incoming::Lost(why) => {
                self.subscribed = false;
                self.probe = None;
                self.fail(&why);
            }
            Incoming::Lagged(count) => {
                tracing::warn!(
                    count,
                    "messages were dropped: they came faster than they were read"
                );
                self.ear.hear(Heard::Gap);
                self.announce(GapReason::Lagged);
            }
        }
    }

    fn message(&mut self, from: Destination, payload: &Bytes) {
        let received = Instant::now();
        if payload.len() > self.settings.message_bytes {
            return self.drop(DropReason::BusTooBig);
        }
        let decoded = match envelope::decode(payload) {
            Ok(Decoded::Probe(id)) => return self.probed(&id, &from),
            // Orders stand on the control channel, which is for replicas alone, and nowhere else.
            Ok(Decoded::Order(given)) if from == Destination::Control => {
                return self.ear.hear(Heard::Order(*given));
            }
            Ok(Decoded::Ack(ack)) if from == Destination::Control => {
                return self.ear.hear(Heard::Ack(ack));
            }
            Err(Poison::Version(_)) => return self.drop(DropReason::BusVersion),
            Err(Poison::Invalid) | Ok(Decoded::Order(_) | Decoded::Ack(_)) => {
                return self.drop(DropReason::BusInvalid);
            }
            Ok(Decoded::Raw(_)) if from == Destination::Control => {
                return self.drop(DropReason::BusInvalid);
            }
            Ok(decoded) => decoded,
        };
        let Destination::Events(to) = from else { return self.drop(DropReason::BusInvalid) };
        let own = matches!(decoded, Decoded::Event { .. });
        self.metrics.received(own);
        if !matches!(
            decoded,
            Decoded::Event { place: Some(_), .. } | Decoded::Event { transient: true, .. }
        ) {
            self.unkept = Some(received);
        }
        // Most traffic of a big fleet is for users elsewhere; it is checked, counted, and no frame
        // is made for it.
        if !self.registry.wants(&to) {
            return;
        }
        let (except, frame) = match decoded {
            Decoded::Event {
                place: Some((tag, at, prev)), except, until, loss, members, ..
            } => {
                if tag != Tag::of(&to) {
                    return self.drop(DropReason::BusInvalid);
                }
                let frame = Frame::event(&format!("{{{members}"), received).at(Mark { tag, at });
                let kept = Kept { at, prev, except: except.into(), until, loss, frame };
                return self.repair.take(&to, &kept);
            }
            Decoded::Event { except, members, .. } => {
                (except, Frame::event(&format!("{{{members}"), received))
            }
            Decoded::Raw(json) => (Vec::new(), Frame::event(json, received)),
            Decoded::Probe(_) | Decoded::Order(_) | Decoded::Ack(_) => return,
        };
        self.registry.deliver(Delivery {
            to,
            except: except.into(),
            frame,
            place: None,
            skip: None,
        });
    }

    fn drop(&self, reason: DropReason) {
        self.metrics.dropped(reason, 1);
        if let Some(more) = self.poison.check() {
            tracing::warn!(
                ?reason,
                more_since_last_line = more,
                "a message on the bus cannot be delivered and is dropped"
            );
        }
    }

    fn overdue(&self) -> bool {
        let lost = |acknowledged: Instant| acknowledged.elapsed() > self.settings.probe_timeout;
        self.probe.as_ref().and_then(|probe| probe.acknowledged).is_some_and(lost)
    }

    fn probe_is_due(&self) -> bool {
        if !self.subscribed || !self.repair.started() {
            return false;
        }
        match &self.probe {
            None => true,
            Some(probe) => {
                probe.missing.is_empty() && probe.sent.elapsed() >= self.settings.probe_interval
            }
        }
    }

    fn start_probe<'a>(&mut self, publisher: &'a dyn Publisher) -> Publishing<'a> {
        self.count += 1;
        let id = format!("{}:{}", self.replica, self.count);
        let payload = match envelope::encode_probe(&id) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, "a probe could not be written");
                return None;
            }
        };
        let kinds: &[Destination] = if self.all_kinds {
            &[
                Destination::Control,
                Destination::UserProbe,
                Destination::GroupProbe,
                Destination::Events(Channel::Broadcast),
            ]
        } else {
            &[Destination::Control]
        };
        self.probe = Some(Probe {
            id,
            sent: Instant::now(),
            acknowledged: None,
            missing: kinds.iter().cloned().collect(),
        });
        let messages: Vec<Message> =
            kinds.iter().map(|to| Message { to: to.clone(), payload: payload.clone() }).collect();
        Some(Box::pin(async move {
            try_join_all(messages.into_iter().map(|message| publisher.probe(message)))
                .await
                .map(drop)
        }))
    }

    fn probed(&mut self, id: &str, from: &Destination) {
        let Some(probe) = &mut self.probe else { return };
        if probe.id != id || !probe.missing.remove(from) || !probe.missing.is_empty() {
            return;
        }
        probe.acknowledged = None;
        self.metrics.probe(probe.sent.elapsed());
        self.all_kinds = false;
        if !self.health.delivers() {
            tracing::info!("what is published reaches this replica");
            self.said = None;
        }
        self.health.proved();
        self.repair.look();
        self.up(true);
        if let Some(reason) = self.gap.take() {
            self.announce(reason);
        }
    }

    /// The proof failed although the subscription looked healthy.
    fn lost(&mut self, why: &str) {
        self.probe = None;
        self.subscribed = false;
        self.gap = Some(GapReason::ProbeLost);
        self.fail(why);
    }

    fn fail(&mut self, why: &str) {
        let news = self.health.delivers();
        self.health.failed(why);
        // Right after the start, a connection that is still being made is no news.
        let due = self.said.is_none_or(|said| said.elapsed() > REMIND);
        if news || due && self.started.elapsed() > RETRY * 4 {
            tracing::warn!(why, "what is published may not reach this replica");
            self.said = Some(Instant::now());
        }
        self.up(false);
    }

    /// What is kept is read again. What is not kept can only be told of; where nothing of that kind
    /// came lately, there is nothing to tell.
    fn announce(&mut self, reason: GapReason) {
        self.metrics.gap(reason);
        self.repair.all(reason);
        if !self.keeps || self.unkept.is_some_and(|at| at.elapsed() < UNKEPT) {
            self.registry.resync(reason);
        }
    }

    fn up(&self, subscriber: bool) {
        self.metrics.redis_up(Role::Subscriber, subscriber);
    }
}

async fn poll(publishing: &mut Publishing<'_>) -> Result<(), BusError> {
    match publishing {
        Some(publishing) => publishing.await,
        None => std::future::pending().await,
    }
}

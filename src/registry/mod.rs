//! Who is connected here, and handing events to them.
//!
//! One [`Shard`] per HTTP worker owns that worker's connections and never leaves its thread, so
//! delivering crosses threads once per worker, takes no lock and never awaits. [`Registry`] is
//! the handle that the rest of the process holds.

use std::{
    collections::HashSet,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
    },
    time::timeout,
};

use crate::{
    event::{Channel, GapReason, Order, Position, SessionKey, UserId},
    frame::Frame,
    lifecycle::{Guard, Vital},
    telemetry::{DropReason, Metrics},
};

mod endings;
mod interest;
mod lanes;
mod notices;
mod registration;
mod shard;
pub mod tracks;
mod users;

pub use lanes::Start;
pub use registration::Registration;
pub use shard::{Member, Shard};

use interest::Interest;
use tracks::Tracks;
use users::Users;

/// Messages that may wait for one worker.
const MAILBOX_MESSAGES: usize = 8192;
/// Bytes that may wait for one worker.
const MAILBOX_BYTES: usize = 64 * 1024 * 1024;

/// How long workers may take to say how many connections an order closed; nobody waits longer.
const COUNTING: Duration = Duration::from_secs(2);

/// One event for connections.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Whose.
    pub to: Channel,
    /// Users that do not get it.
    pub except: Arc<[UserId]>,
    /// What.
    pub frame: Frame,
    /// Its place, if it is kept: connections that are past it do not get it.
    pub place: Option<Position>,
    /// What those get that it is not for, so that their chain holds.
    pub skip: Option<Frame>,
}

/// What a shard is told.
#[derive(Clone, Debug)]
enum ToShard {
    Deliver(Delivery),
    /// Tell every connection that it may have missed events that are not kept.
    Resync(GapReason),
    /// Tell the connections of a channel that something is missing in it.
    Lose(Channel, GapReason),
    /// Close the connections that an order is about; how many there were goes back.
    Order {
        order: Arc<Order>,
        late: bool,
        closed: mpsc::Sender<usize>,
    },
    /// Look these sessions up again: their keys are gone.
    Recheck(Arc<HashSet<SessionKey>>),
    /// Close every connection, each at its own moment within this time.
    Leave(Duration),
}

struct ShardHandle {
    mailbox: mpsc::Sender<ToShard>,
    shared: Arc<Shared>,
}

/// What a shard and the handle both see.
struct Shared {
    interest: Interest,
    /// Bytes in the mailbox.
    waiting: AtomicUsize,
    /// Something that is kept did not fit into the mailbox.
    lagged: AtomicBool,
    /// Something that is not kept did not.
    lagged_unkept: AtomicBool,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    shards: ArcSwap<Vec<Arc<ShardHandle>>>,
    /// One hasher for all, so that a name falls into the same slot everywhere.
    hasher: ahash::RandomState,
    users: Users,
    tracks: Arc<Tracks>,
    connections: AtomicUsize,
    limit: usize,
    /// Woken whenever a connection ends, for whoever waits until none is left.
    ended: Notify,
    metrics: Metrics,
    vital: Vital,
}

/// The right to hold one of the process's connections; dropping it gives it back.
pub struct Permit(Registry);

impl Registry {
    /// A registry without shards, for at most `limit` connections. `vital` learns when a task
    /// that a worker cannot do without has ended.
    #[must_use]
    pub fn new(limit: usize, tracks: Arc<Tracks>, metrics: Metrics, vital: Vital) -> Self {
        Self(Arc::new(Inner {
            shards: ArcSwap::default(),
            hasher: ahash::RandomState::new(),
            users: Users::default(),
            tracks,
            connections: AtomicUsize::new(0),
            limit,
            ended: Notify::new(),
            metrics,
            vital,
        }))
    }

    /// Makes the shard of the worker on whose thread this is called, and runs its mailbox there.
    /// The mailbox ends with the worker.
    #[must_use]
    pub fn attach(&self) -> Rc<Shard> {
        let (mailbox, inbox) = mpsc::channel(MAILBOX_MESSAGES);
        let shared = Arc::new(Shared {
            interest: Interest::new(),
            waiting: AtomicUsize::new(0),
            lagged: AtomicBool::new(false),
            lagged_unkept: AtomicBool::new(false),
        });
        let handle = Arc::new(ShardHandle { mailbox, shared: Arc::clone(&shared) });
        self.0.shards.rcu(|shards| {
            let mut shards = Vec::clone(shards);
            shards.retain(|shard| !shard.mailbox.is_closed());
            shards.push(Arc::clone(&handle));
            shards
        });
        Shard::spawn(self.clone(), shared, inbox)
    }

    /// Whether someone here may want what is published there. May say yes in vain.
    #[must_use]
    pub fn wants(&self, channel: &Channel) -> bool {
        match self.slot(channel) {
            Some(slot) => {
                self.0.shards.load().iter().any(|shard| shard.shared.interest.any(slot))
                    || self.0.tracks.is_held(channel)
            }
            // The track is to stay where the channel is, for whoever comes next.
            None => self.0.tracks.keeps() || self.connections() > 0,
        }
    }

    /// Hands an event to the workers that may have someone for it. Never waits: a worker whose
    /// mailbox is full announces a gap to its connections instead.
    pub fn deliver(&self, delivery: &Delivery) {
        let slot = self.slot(&delivery.to);
        for shard in self.0.shards.load().iter() {
            if slot.is_none_or(|slot| shard.shared.interest.any(slot)) {
                self.send(shard, ToShard::Deliver(delivery.clone()), delivery.frame.len());
            }
        }
    }

    /// How far each channel has been handed out here.
    #[must_use]
    pub fn tracks(&self) -> &Arc<Tracks> {
        &self.0.tracks
    }

    /// Tells the connections of a channel that something is missing in it. In the order of what is
    /// delivered.
    pub fn lose(&self, channel: &Channel, reason: GapReason) {
        for shard in self.0.shards.load().iter() {
            self.send(shard, ToShard::Lose(channel.clone(), reason), 0);
        }
    }

    /// Tells every connection that it may have missed events that are not kept.
    pub fn resync(&self, reason: GapReason) {
        for shard in self.0.shards.load().iter() {
            self.send(shard, ToShard::Resync(reason), 0);
        }
    }

    /// Carries out an order on this replica; resolves with the number of connections that were
    /// closed, or `None` if a worker has not said it in time. `late`: it was given a while ago, and
    /// is not about connections made since.
    pub async fn order(&self, order: Order, late: bool) -> Option<usize> {
        let order = Arc::new(order);
        let shards = self.0.shards.load_full();
        let (closed, mut counts) = mpsc::channel(shards.len().max(1));
        // As in `leave`: it must not get lost, and goes to all at once.
        let orders = shards.iter().map(|shard| {
            let (order, closed) = (Arc::clone(&order), closed.clone());
            shard.mailbox.send(ToShard::Order { order, late, closed })
        });
        for sent in join_all(orders).await {
            if sent.is_err() {
                tracing::debug!("a worker has ended before an order");
            }
        }
        drop(closed);
        let sum = async {
            let mut sum = 0;
            while let Some(count) = counts.recv().await {
                sum += count;
            }
            sum
        };
        timeout(COUNTING, sum).await.ok()
    }

    /// Has the connections of these sessions look them up: their keys are gone from the sessions'
    /// store. Waits where workers are busy, so that a mass of endings crowds out no events.
    pub async fn recheck(&self, sessions: impl IntoIterator<Item = SessionKey>) {
        let sessions: Arc<HashSet<SessionKey>> = Arc::new(sessions.into_iter().collect());
        let shards = self.0.shards.load_full();
        for shard in shards.iter() {
            if shard.mailbox.send(ToShard::Recheck(Arc::clone(&sessions))).await.is_err() {
                tracing::debug!("a worker has ended before it heard of sessions that did");
            }
        }
    }

    /// Closes every connection with 1012, each at its own moment within `spread`, and those that
    /// register from now on as well.
    pub async fn leave(&self, spread: Duration) {
        let shards = self.0.shards.load_full();
        // An order may wait for room, other than an event: it must not get lost. All at once, so
        // that one busy worker does not keep it from the others.
        let orders = shards.iter().map(|shard| shard.mailbox.send(ToShard::Leave(spread)));
        for sent in join_all(orders).await {
            if sent.is_err() {
                tracing::debug!("a worker has ended before the drain");
            }
        }
    }

    /// To be held by a task that a worker cannot do without; panics are told from the worker's own
    /// end.
    #[must_use]
    pub fn vital(&self, what: &'static str) -> Guard {
        self.0.vital.guard(what)
    }

    /// Room for one more connection, or `None` when the process is full.
    #[must_use]
    pub fn admit(&self) -> Option<Permit> {
        self.0
            .connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < self.0.limit).then_some(n + 1)
            })
            .ok()
            .map(|_| Permit(self.clone()))
    }

    /// Connections that are open or being opened.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Waits until no connection is left.
    pub async fn emptied(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.connections() == 0 {
                return;
            }
            ended.await;
        }
    }

    fn send(&self, shard: &ShardHandle, message: ToShard, bytes: usize) {
        let Shared { waiting, lagged, lagged_unkept, .. } = &*shard.shared;
        // Counted before it is sent, so that it cannot be taken out before it is counted.
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let sent = if before + bytes <= MAILBOX_BYTES {
            shard.mailbox.try_send(message)
        } else {
            Err(TrySendError::Full(message))
        };
        if let Err(error) = sent {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
            // A closed mailbox is a worker that has ended, and its connections with it.
            if let TrySendError::Full(message) = error {
                self.0.metrics.dropped(DropReason::WorkerLagged, 1);
                let kept = match message {
                    ToShard::Deliver(delivery) => delivery.place.is_some(),
                    ToShard::Resync(_) => false,
                    _ => true,
                };
                let what = if kept { lagged } else { lagged_unkept };
                what.store(true, Ordering::Release);
            }
        }
    }

    fn slot(&self, channel: &Channel) -> Option<usize> {
        match channel {
            Channel::User(user) => {
                Some(Interest::slot(self.0.hasher.hash_one((0_u8, user.as_str()))))
            }
            Channel::Group(group) => {
                Some(Interest::slot(self.0.hasher.hash_one((1_u8, group.as_str()))))
            }
            Channel::Broadcast => None,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.0.ended.notify_waiters();
    }
}

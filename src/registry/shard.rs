//! The connections of one worker, and its mailbox.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use rand::Rng as _;
use slab::Slab;
use smallvec::SmallVec;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Delivery, Interest, Registration, Registry, Shared, Start, ToShard,
    endings::Endings,
    lanes::{Lanes, Way},
    notices::{self, Notices},
};
use crate::{
    event::{
        Channel, CloseCause, ConnectionId, GapReason, Group, Order, Position, SessionKey, Subject,
        Tag, UserId,
    },
    frame::Notice,
    lifecycle::Guard,
    outbox::{Flushed, Outbox, Push},
    telemetry::{Transport, WorkerMetrics},
    throttle::Throttle,
};

/// Messages, and their bytes, that are handed out before the sockets get their turn. So a burst is
/// joined into few writes, and yet no queue fills only because nobody was let write: its bound
/// (`limits.queue_bytes`) is in bytes as well.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;

/// Connections that are written to in a row, before others of this worker have a turn: a fan-out to
/// thousands takes tens of milliseconds.
const BREATH: usize = 256;
/// Connections that a turn usually writes to at most.
const ROOM: usize = 4096;

/// How often a worker reports its counters and how late it is.
const REPORT: Duration = Duration::from_millis(500);

/// Orders are remembered this long for handshakes that were under way when they came, which last
/// seconds at most.
const REMEMBER: Duration = Duration::from_secs(60);
/// So many orders are remembered at most; the oldest goes.
const ORDERS: usize = 1024;
/// And beside them so many about connections whose users have newer ones too many: anyone can give
/// rise to those, and they must not push real orders out.
const REPLACED: usize = 256;

pub(super) type Keys = SmallVec<[usize; 2]>;

/// What the registry knows of a connection.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: ConnectionId,
    /// Whose it is.
    pub user: UserId,
    /// The session it stands on.
    pub session: Option<SessionKey>,
    /// When its handshake began.
    pub made: SystemTime,
    /// How it came.
    pub transport: Transport,
}

/// See [the module](super). Lives on one thread, in an `Rc`.
pub struct Shard {
    pub(super) registry: Registry,
    shared: Arc<Shared>,
    metrics: Rc<WorkerMetrics>,
    pub(super) state: RefCell<State>,
    leaving: Cell<Option<Duration>>,
    pub(super) orders: RefCell<VecDeque<Remembered>>,
    replaced: RefCell<VecDeque<Remembered>>,
    pub(super) notices: Notices,
    ended: RefCell<Endings>,
    /// What this turn has queued for and not written yet.
    unwritten: RefCell<Vec<Rc<Outbox>>>,
    slow: Throttle,
}

/// An order, for handshakes that were under way when it came.
pub(super) struct Remembered {
    pub(super) at: Instant,
    /// It is about connections whose handshake began up to here. Both times are of this replica's
    /// own clock, unless the order came late.
    until: SystemTime,
    pub(super) order: Arc<Order>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) connections: Slab<Entry>,
    pub(super) users: HashMap<UserId, Keys, ahash::RandomState>,
    pub(super) ids: HashMap<ConnectionId, usize, ahash::RandomState>,
    pub(super) sessions: HashMap<SessionKey, Keys, ahash::RandomState>,
    pub(super) groups: HashMap<Group, HashSet<usize, ahash::RandomState>, ahash::RandomState>,
}

pub(super) struct Entry {
    pub(super) outbox: Rc<Outbox>,
    pub(super) member: Member,
    pub(super) groups: Box<[Group]>,
    pub(super) lanes: Lanes,
    /// The word of a loss that is still to be said.
    pub(super) word: Cell<Option<Word>>,
}

/// Why a connection is told of a loss.
#[derive(Clone, Copy)]
pub(super) struct Word {
    pub(super) reason: GapReason,
    /// It concerns every channel: what is not kept may be lost as well.
    pub(super) all: bool,
}

impl Shard {
    pub(super) fn spawn(
        registry: Registry,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<ToShard>,
    ) -> Rc<Self> {
        let metrics = Rc::new(registry.0.metrics.worker());
        let shard = Rc::new(Self {
            registry,
            shared,
            metrics,
            state: RefCell::default(),
            leaving: Cell::new(None),
            orders: RefCell::default(),
            replaced: RefCell::default(),
            notices: Notices::default(),
            ended: RefCell::default(),
            unwritten: RefCell::default(),
            slow: Throttle::default(),
        });
        let guard = shard.registry.vital("mailbox of a worker");
        actix_rt::spawn(run(Rc::downgrade(&shard), inbox, guard));
        actix_rt::spawn(report(Rc::downgrade(&shard)));
        actix_rt::spawn(notices::run(Rc::downgrade(&shard), shard.notices.bell()));
        shard
    }

    /// The counters of this worker.
    #[must_use]
    pub fn metrics(&self) -> &Rc<WorkerMetrics> {
        &self.metrics
    }

    /// Enters a connection: from now on it gets what is delivered, as far as it follows where the
    /// connection starts (see [`Registration::behind`]). Dropping the registration takes it out
    /// again.
    #[must_use]
    pub fn register(
        self: &Rc<Self>,
        member: Member,
        groups: Box<[Group]>,
        starts: Vec<Start>,
        outbox: Rc<Outbox>,
    ) -> Registration {
        if let Some(spread) = self.leaving.get() {
            outbox.request_leave(Instant::now() + random(spread));
        }
        let (orders, replaced) = (self.orders.borrow(), self.replaced.borrow());
        for Remembered { until, order, .. } in orders.iter().chain(replaced.iter()) {
            if order.concerns(member.id, &member.user, member.session) && member.made <= *until {
                outbox.request_close(order.cause);
            }
        }
        if let Some(session) = &member.session
            && self.ended.borrow_mut().may_have(session)
        {
            outbox.request_recheck();
        }
        let user = member.user.clone();
        let interest = self.registry.slot(&Channel::User(user.clone()));
        self.count(interest, true);
        let mut state = self.state.borrow_mut();
        let Member { id, session, transport, .. } = member;
        let key = state.connections.insert(Entry {
            outbox,
            member,
            groups: Box::default(),
            lanes: Lanes::default(),
            word: Cell::default(),
        });
        state.users.entry(user.clone()).or_default().push(key);
        state.ids.insert(id, key);
        if let Some(session) = session {
            state.sessions.entry(session).or_default().push(key);
        }
        drop(state);
        if self.registry.0.users.add(self.hash(&user)) {
            self.registry.0.metrics.users(1);
        }
        self.registry.0.metrics.connections(transport, 1);
        let registration = Registration::new(Rc::clone(self), key);
        registration.enter(groups, starts);
        registration
    }

    pub(super) fn hash(&self, user: &UserId) -> u64 {
        self.registry.0.hasher.hash_one(user.as_str())
    }

    pub(super) fn count(&self, slot: Option<usize>, up: bool) {
        let interest: &Interest = &self.shared.interest;
        match slot {
            Some(slot) if up => interest.add(slot),
            Some(slot) => interest.remove(slot),
            None => {}
        }
    }

    fn handle(self: &Rc<Self>, message: ToShard) {
        match message {
            ToShard::Deliver(delivery) => {
                self.shared.waiting.fetch_sub(delivery.frame.len(), Ordering::Relaxed);
                self.deliver(&delivery);
            }
            ToShard::Order { order, late, closed } => {
                let count = self.order(order, late);
                // Whoever gave the order may have stopped waiting for the count.
                if closed.try_send(count).is_err() {
                    tracing::debug!(count, "nobody waits for the outcome of an order");
                }
            }
            ToShard::Recheck(sessions) => self.recheck(&sessions),
            ToShard::Resync(reason) => self.resync(reason),
            ToShard::Lose(channel, to, reason) => self.lose(&channel, to, reason),
            ToShard::Leave(spread) => self.leave(spread),
        }
    }

    fn deliver(&self, delivery: &Delivery) {
        let state = self.state.borrow();
        let excluded = excluded(&state, delivery);
        state.on(&delivery.to, |key, entry| {
            let excluded = excluded.as_ref().is_some_and(|keys| keys.contains(&key));
            self.push(entry, delivery, excluded);
        });
    }

    fn push(&self, entry: &Entry, delivery: &Delivery, excluded: bool) {
        let goes_out = match delivery.place {
            Some(at) => entry.lanes.of(&delivery.to).is_some_and(|lane| lane.take(at)),
            None => true,
        };
        let frame = if excluded { delivery.skip.as_ref() } else { Some(&delivery.frame) };
        if let Some(frame) = frame.filter(|_| goes_out)
            && let Push::Overflow(dropped) =
                entry.outbox.post(frame, &mut self.unwritten.borrow_mut())
            && let Some(quiet) = self.slow.check()
        {
            tracing::warn!(
                dropped,
                more_since_last_line = quiet,
                "a client reads too slowly and is closed with 1013"
            );
        }
    }

    /// Writes what this turn has queued, everything for a connection at once.
    async fn flush(&self) {
        let mut unwritten = self.unwritten.take();
        for (n, outbox) in unwritten.drain(..).enumerate() {
            if n % BREATH == BREATH - 1 {
                tokio::task::yield_now().await;
            }
            if let Flushed::Broken(error) = outbox.flush() {
                tracing::debug!(%error, "a socket cannot be written to");
            }
        }
        // The next turn uses its room again, unless it was a crowd's.
        if unwritten.capacity() <= ROOM {
            *self.unwritten.borrow_mut() = unwritten;
        }
    }

    /// What is missing in a channel up to here cannot be had: its connections are told. Those that
    /// are behind will find it themselves.
    fn lose(&self, channel: &Channel, to: Position, reason: GapReason) {
        let state = self.state.borrow();
        // Who is past a word that is kept has heard it, on another replica.
        let heard = |at: Position| reason == GapReason::BrokerLost && at >= to;
        state.on(channel, |key, entry| {
            let lane = entry.lanes.of(channel).filter(|lane| lane.way.get() == Way::Live);
            if let Some(lane) = lane.filter(|lane| !heard(lane.at.get())) {
                lane.lose(to);
                self.plan(key, entry, Word { reason, all: false });
            }
        });
    }

    /// Tells every connection that it may have missed what is not kept.
    fn resync(&self, reason: GapReason) {
        for (key, entry) in &self.state.borrow().connections {
            self.plan(key, entry, Word { reason, all: true });
        }
    }

    /// Some of what was for this worker did not fit into its mailbox: every connection reads on
    /// from where it is.
    fn fall_behind(&self) {
        for (_, entry) in &self.state.borrow().connections {
            for lane in &entry.lanes.0 {
                if lane.way.get() == Way::Live {
                    lane.way.set(Way::Behind);
                }
            }
            entry.outbox.request_catch_up();
        }
    }

    pub(super) fn plan(&self, key: usize, entry: &Entry, word: Word) {
        if let Some(known) = entry.word.get() {
            entry.word.set(Some(Word { all: known.all || word.all, ..known }));
        } else {
            entry.word.set(Some(word));
            self.notices.plan(key);
        }
    }

    /// Says the word of a loss that is planned for this connection, if it is still there.
    pub(super) fn tell(&self, key: usize) {
        let state = self.state.borrow();
        let Some(entry) = state.connections.get(key) else { return };
        let Some(word) = entry.word.take() else { return };
        let mut lost = Vec::new();
        let mut behind = false;
        for lane in &entry.lanes.0 {
            let here = lane.way.get() == Way::Lost;
            if here {
                lane.way.set(Way::Behind);
                behind |= !lane.join();
            }
            if here || word.all {
                lost.push(Tag::of(lane.channel()).to_string());
            }
        }
        let cursor = entry.lanes.cursor();
        let text = cursor.to_string();
        let notice = Notice::Resync { lost: &lost, cursor: &text, reason: word.reason.label() };
        entry.outbox.deliver(&notice.frame().resets(cursor));
        if behind {
            entry.outbox.request_catch_up();
        }
    }

    fn order(&self, order: Arc<Order>, late: bool) -> usize {
        let mut count = 0;
        let state = self.state.borrow();
        for entry in state.named(&order.subject) {
            let Member { id, user, session, made, .. } = &entry.member;
            if order.concerns(*id, user, *session) && (!late || order.reaches(*made)) {
                entry.outbox.request_close(order.cause);
                count += 1;
            }
        }
        let (orders, most) = match order.cause {
            // It was about that one connection, which has heard of it.
            CloseCause::Replaced if count > 0 => return count,
            CloseCause::Replaced => (&self.replaced, REPLACED),
            _ => (&self.orders, ORDERS),
        };
        let mut orders = orders.borrow_mut();
        let now = Instant::now();
        while orders.front().is_some_and(|oldest| oldest.at.elapsed() > REMEMBER)
            || orders.len() >= most
        {
            orders.pop_front();
        }
        let until = if late { order.reach() } else { SystemTime::now() };
        orders.push_back(Remembered { at: now, until, order });
        count
    }

    fn recheck(&self, sessions: &HashSet<SessionKey>) {
        let state = self.state.borrow();
        for session in sessions {
            for entry in state.named(&Subject::Session(*session)) {
                entry.outbox.request_recheck();
            }
        }
        self.ended.borrow_mut().add(sessions);
    }

    /// Evenly spaced moments in a random order: no second has more than its share of closes.
    fn leave(&self, spread: Duration) {
        self.leaving.set(Some(spread));
        let now = Instant::now();
        let state = self.state.borrow();
        let mut outboxes: Vec<&Rc<Outbox>> =
            state.connections.iter().map(|(_, entry)| &entry.outbox).collect();
        rand::seq::SliceRandom::shuffle(&mut *outboxes, &mut rand::rng());
        let count = u32::try_from(outboxes.len()).unwrap_or(u32::MAX).max(1);
        for (n, outbox) in (0..).zip(outboxes) {
            outbox.request_leave(now + spread / count * n);
        }
    }
}

impl State {
    /// Calls `each` for the connections that listen to a channel.
    fn on(&self, channel: &Channel, mut each: impl FnMut(usize, &Entry)) {
        let mut one = |key: usize| {
            if let Some(entry) = self.connections.get(key) {
                each(key, entry);
            }
        };
        match channel {
            Channel::User(user) => {
                self.users.get(user).into_iter().flatten().copied().for_each(&mut one);
            }
            Channel::Group(group) => {
                self.groups.get(group).into_iter().flatten().copied().for_each(&mut one);
            }
            Channel::Broadcast => self.connections.iter().for_each(|(key, _)| one(key)),
        }
    }

    /// The connections that an order of this subject may be about, found without looking at the
    /// others: an order comes to every worker of every replica.
    fn named(&self, subject: &Subject) -> impl Iterator<Item = &Entry> {
        let keys: &[usize] = match subject {
            Subject::User(user) => self.users.get(user).map_or(&[], |keys| keys),
            Subject::Session(session) => self.sessions.get(session).map_or(&[], |keys| keys),
            Subject::Connection(id) => self.ids.get(id).map_or(&[], std::slice::from_ref),
        };
        keys.iter().filter_map(|key| self.connections.get(*key))
    }
}

/// The connections that an event is not for; `None`, as nearly always: it is for all.
fn excluded(state: &State, delivery: &Delivery) -> Option<HashSet<usize>> {
    (!delivery.except.is_empty()).then(|| {
        let connected = delivery.except.iter().filter_map(|user| state.users.get(user));
        connected.flat_map(|keys| keys.iter().copied()).collect()
    })
}

async fn run(shard: Weak<Shard>, mut inbox: mpsc::Receiver<ToShard>, _guard: Guard) {
    let mut batch = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        let Some(shard) = shard.upgrade() else { return };
        let mut bytes = 0;
        for message in batch.drain(..) {
            if let ToShard::Deliver(delivery) = &message {
                bytes += delivery.frame.len();
            }
            shard.handle(message);
            if bytes >= BATCH_BYTES {
                bytes = 0;
                shard.flush().await;
                tokio::task::yield_now().await;
            }
        }
        shard.flush().await;
        if shard.shared.lagged.swap(false, Ordering::AcqRel) {
            shard.registry.0.metrics.gap(GapReason::WorkerLagged);
            shard.fall_behind();
        }
        if shard.shared.lagged_unkept.swap(false, Ordering::AcqRel) {
            shard.resync(GapReason::WorkerLagged);
        }
        tokio::task::yield_now().await;
    }
}

async fn report(shard: Weak<Shard>) {
    loop {
        let due = Instant::now() + REPORT;
        tokio::time::sleep_until(due).await;
        let Some(shard) = shard.upgrade() else { return };
        shard.metrics.flush(due.elapsed());
    }
}

fn random(within: Duration) -> Duration {
    within.mul_f64(rand::rng().random())
}

#[cfg(test)]
mod tests;

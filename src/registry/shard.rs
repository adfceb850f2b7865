//! The connections of one worker, and its mailbox.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    hash::Hash,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use rand::Rng as _;
use slab::Slab;
use smallvec::SmallVec;
use tokio::{sync::mpsc, time::Instant};

use super::{Delivery, Interest, Registry, Shared, ToShard, endings::Endings};
use crate::{
    event::{
        Channel, CloseCause, ConnectionId, GapReason, Group, Order, SessionKey, Subject, UserId,
    },
    frame::{self, Notice},
    lifecycle::Guard,
    outbox::{Outbox, Push},
    telemetry::WorkerMetrics,
    throttle::Throttle,
};

/// Messages, and their bytes, that are handed out before the sockets get their turn. So a burst is
/// joined into few writes, and yet no queue fills only because nobody was let write: its bound
/// (`limits.queue_bytes`) is in bytes as well.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;

/// Reloads after a gap come from every page at once; they are spread over this long.
const RESYNC_SPREAD: Duration = Duration::from_secs(2);

/// How often a worker reports its counters and how late it is.
const REPORT: Duration = Duration::from_millis(500);

/// Orders are remembered this long for handshakes that were under way when they came, which last
/// seconds at most.
const REMEMBER: Duration = Duration::from_secs(60);
/// A renewal under way takes seconds at most; an order that came meanwhile counts for the session
/// that it leads to.
const RENEWAL: Duration = Duration::from_secs(5);
/// So many orders are remembered at most; the oldest goes.
const ORDERS: usize = 1024;
/// And beside them so many about connections whose users have newer ones too many: anyone can give
/// rise to those, and they must not push real orders out.
const REPLACED: usize = 256;

type Keys = SmallVec<[usize; 2]>;

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
}

/// See [the module](super). Lives on one thread, in an `Rc`.
pub struct Shard {
    registry: Registry,
    shared: Arc<Shared>,
    metrics: Rc<WorkerMetrics>,
    state: RefCell<State>,
    leaving: Cell<Option<Duration>>,
    orders: RefCell<VecDeque<Remembered>>,
    replaced: RefCell<VecDeque<Remembered>>,
    resync: Cell<Resync>,
    ended: RefCell<Endings>,
    slow: Throttle,
}

/// Whether connections are being told of a gap. Gaps that come meanwhile are one more round, not
/// one each: an overloaded worker must not be buried under its own apologies.
#[derive(Clone, Copy)]
enum Resync {
    Idle,
    Telling,
    /// And once more after that, for this reason.
    Again(GapReason),
}

/// An order, for handshakes that were under way when it came.
struct Remembered {
    at: Instant,
    /// It is about connections whose handshake began up to here. Both times are of this replica's
    /// own clock, unless the order came late.
    until: SystemTime,
    order: Arc<Order>,
}

#[derive(Default)]
struct State {
    connections: Slab<Entry>,
    users: HashMap<UserId, Keys, ahash::RandomState>,
    ids: HashMap<ConnectionId, usize, ahash::RandomState>,
    sessions: HashMap<SessionKey, Keys, ahash::RandomState>,
    groups: HashMap<Group, HashSet<usize, ahash::RandomState>, ahash::RandomState>,
}

struct Entry {
    outbox: Rc<Outbox>,
    member: Member,
    groups: Box<[Group]>,
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
            resync: Cell::new(Resync::Idle),
            ended: RefCell::default(),
            slow: Throttle::default(),
        });
        let guard = shard.registry.vital("mailbox of a worker");
        actix_rt::spawn(run(Rc::downgrade(&shard), inbox, guard));
        actix_rt::spawn(report(Rc::downgrade(&shard)));
        shard
    }

    /// The counters of this worker.
    #[must_use]
    pub fn metrics(&self) -> &Rc<WorkerMetrics> {
        &self.metrics
    }

    /// Enters a connection: from now on it gets what is delivered. Dropping the registration
    /// takes it out again.
    #[must_use]
    pub fn register(
        self: &Rc<Self>,
        member: Member,
        groups: Box<[Group]>,
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
        let Member { id, session, .. } = member;
        let key = state.connections.insert(Entry { outbox, member, groups: Box::default() });
        state.users.entry(user.clone()).or_default().push(key);
        state.ids.insert(id, key);
        if let Some(session) = session {
            state.sessions.entry(session).or_default().push(key);
        }
        drop(state);
        if self.registry.0.users.add(self.hash(&user)) {
            self.registry.0.metrics.users(1);
        }
        self.registry.0.metrics.connections(1);
        let registration = Registration { shard: Rc::clone(self), key };
        registration.set_groups(groups);
        registration
    }

    fn hash(&self, user: &UserId) -> u64 {
        self.registry.0.hasher.hash_one(user.as_str())
    }

    fn count(&self, slot: Option<usize>, up: bool) {
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
            ToShard::Resync(reason) => resync(self, reason),
            ToShard::Leave(spread) => self.leave(spread),
        }
    }

    fn deliver(&self, delivery: &Delivery) {
        let state = self.state.borrow();
        let excluded = excluded(&state, delivery);
        let hand_over = |key: usize| {
            if let Some(entry) = state.connections.get(key)
                && !excluded.as_ref().is_some_and(|keys| keys.contains(&key))
            {
                self.push(entry, delivery);
            }
        };
        match &delivery.to {
            Channel::User(user) => {
                state.users.get(user).into_iter().flatten().copied().for_each(hand_over);
            }
            Channel::Group(group) => {
                state.groups.get(group).into_iter().flatten().copied().for_each(hand_over);
            }
            Channel::Broadcast => state.connections.iter().for_each(|(key, _)| hand_over(key)),
        }
    }

    fn push(&self, entry: &Entry, delivery: &Delivery) {
        if let Push::Overflow(dropped) = entry.outbox.deliver(&delivery.frame)
            && let Some(quiet) = self.slow.check()
        {
            tracing::warn!(
                dropped,
                more_since_last_line = quiet,
                "a client reads too slowly and is closed with 1013"
            );
        }
    }

    /// Who is to be told of a gap, and when.
    fn plan(&self) -> Vec<(Instant, Weak<Outbox>, Box<[Group]>)> {
        let now = Instant::now();
        let state = self.state.borrow();
        let mut plan: Vec<_> = state
            .connections
            .iter()
            .map(|(_, entry)| {
                let at = now + random(RESYNC_SPREAD);
                (at, Rc::downgrade(&entry.outbox), entry.groups.clone())
            })
            .collect();
        plan.sort_unstable_by_key(|(at, ..)| *at);
        plan
    }

    fn order(&self, order: Arc<Order>, late: bool) -> usize {
        let mut count = 0;
        let state = self.state.borrow();
        for entry in state.named(&order.subject) {
            let Member { id, user, session, made } = &entry.member;
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

/// A connection's place in the registry.
pub struct Registration {
    shard: Rc<Shard>,
    key: usize,
}

impl Registration {
    /// The connection that it is of; `None` once it was taken out.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.shard.state.borrow().connections.get(self.key).map(|entry| entry.member.id)
    }

    /// Replaces session and groups of this connection, at a renewal.
    pub fn update(&self, session: Option<SessionKey>, groups: Box<[Group]>) {
        let mut state = self.shard.state.borrow_mut();
        let State { connections, sessions, .. } = &mut *state;
        if let Some(entry) = connections.get_mut(self.key)
            && entry.member.session != session
        {
            let Entry { outbox, member, .. } = entry;
            if let Some(old) = std::mem::replace(&mut member.session, session) {
                unlist(sessions, &old, self.key);
            }
            if let Some(new) = session {
                sessions.entry(new).or_default().push(self.key);
            }
            for Remembered { at, order, .. } in self.shard.orders.borrow().iter() {
                if at.elapsed() < RENEWAL && order.concerns(member.id, &member.user, session) {
                    outbox.request_close(order.cause);
                }
            }
        }
        drop(state);
        self.set_groups(groups);
    }

    fn set_groups(&self, groups: Box<[Group]>) {
        let shard = &self.shard;
        let mut state = shard.state.borrow_mut();
        let State { connections, groups: by_group, .. } = &mut *state;
        let Some(entry) = connections.get_mut(self.key) else { return };
        let old = std::mem::replace(&mut entry.groups, groups);
        for group in &entry.groups {
            shard.count(shard.registry.slot(&Channel::Group(group.clone())), true);
            by_group.entry(group.clone()).or_default().insert(self.key);
        }
        for group in &old {
            shard.count(shard.registry.slot(&Channel::Group(group.clone())), false);
            if !entry.groups.contains(group) {
                forget(by_group, group, self.key);
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.set_groups(Box::default());
        let shard = &self.shard;
        let mut state = shard.state.borrow_mut();
        if let Some(entry) = state.connections.try_remove(self.key) {
            unlist(&mut state.users, &entry.member.user, self.key);
            state.ids.remove(&entry.member.id);
            if let Some(session) = &entry.member.session {
                unlist(&mut state.sessions, session, self.key);
            }
            shard.count(shard.registry.slot(&Channel::User(entry.member.user.clone())), false);
            if shard.registry.0.users.remove(shard.hash(&entry.member.user)) {
                shard.registry.0.metrics.users(-1);
            }
            shard.registry.0.metrics.connections(-1);
        }
        if state.connections.is_empty() {
            // A crowd has left; its memory goes with it.
            *state = State::default();
        }
    }
}

fn forget<S: std::hash::BuildHasher>(
    groups: &mut HashMap<Group, HashSet<usize, S>, ahash::RandomState>,
    group: &Group,
    key: usize,
) {
    if let Some(keys) = groups.get_mut(group) {
        keys.remove(&key);
        if keys.is_empty() {
            groups.remove(group);
        }
    }
}

fn unlist<K: Eq + Hash>(
    keys: &mut HashMap<K, Keys, ahash::RandomState>,
    name: &K,
    connection: usize,
) {
    if let Some(found) = keys.get_mut(name) {
        found.retain(|key| *key != connection);
        if found.is_empty() {
            keys.remove(name);
        }
    }
}

/// The connections that an event is not for; `None`, as nearly always: it is for all.
fn excluded(state: &State, delivery: &Delivery) -> Option<HashSet<usize>> {
    (!delivery.except.is_empty()).then(|| {
        let connected = delivery.except.iter().filter_map(|user| state.users.get(user));
        connected.flat_map(|keys| keys.iter().copied()).collect()
    })
}

/// Tells every connection at its own moment, so that pages do not reload in step.
fn resync(shard: &Rc<Shard>, reason: GapReason) {
    match shard.resync.get() {
        Resync::Idle => {
            shard.resync.set(Resync::Telling);
            actix_rt::spawn(tell(Rc::downgrade(shard), reason));
        }
        Resync::Telling | Resync::Again(_) => shard.resync.set(Resync::Again(reason)),
    }
}

async fn tell(shard: Weak<Shard>, mut reason: GapReason) {
    loop {
        let Some(plan) = shard.upgrade().map(|shard| shard.plan()) else { return };
        for (at, outbox, groups) in plan {
            tokio::time::sleep_until(at).await;
            if let Some(outbox) = outbox.upgrade() {
                let lost = frame::tags(&groups);
                let notice = Notice::Resync { lost: &lost, cursor: "", reason: reason.label() };
                outbox.deliver(&notice.frame());
            }
        }
        let Some(shard) = shard.upgrade() else { return };
        match shard.resync.replace(Resync::Telling) {
            Resync::Again(next) => reason = next,
            Resync::Idle | Resync::Telling => return shard.resync.set(Resync::Idle),
        }
    }
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
                tokio::task::yield_now().await;
            }
        }
        if shard.shared.lagged.swap(false, Ordering::AcqRel) {
            shard.registry.0.metrics.gap(GapReason::WorkerLagged);
            resync(&shard, GapReason::WorkerLagged);
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

//! A connection's place in the registry, as its actor holds it.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    rc::Rc,
    time::Duration,
};

use super::{
    lanes::{Lane, Lanes, Start, Way},
    shard::{Entry, Keys, Remembered, Shard, State, Word},
};
use crate::{
    event::{Channel, ConnectionId, Cursor, GapReason, Group, Position, SessionKey},
    history::Kept,
    outbox::Push,
};

/// A renewal under way takes seconds at most; an order that came meanwhile counts for the session
/// that it leads to.
const RENEWAL: Duration = Duration::from_secs(5);

/// A connection's place in the registry.
pub struct Registration {
    shard: Rc<Shard>,
    pub(super) key: usize,
}

impl Registration {
    pub(super) fn new(shard: Rc<Shard>, key: usize) -> Self {
        Self { shard, key }
    }

    /// The connection that it is of; `None` once it was taken out.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.shard.state.borrow().connections.get(self.key).map(|entry| entry.member.id)
    }

    /// The lanes with which the connection begins.
    pub(super) fn enter(&self, groups: Box<[Group]>, starts: Vec<Start>) {
        self.list_groups(groups);
        if let Some(entry) = self.shard.state.borrow_mut().connections.get_mut(self.key) {
            entry.lanes = Lanes::new(starts);
        }
    }

    /// Replaces session and groups of this connection, at a renewal; `starts` are for groups that
    /// it did not have.
    pub fn update(&self, session: Option<SessionKey>, groups: Box<[Group]>, starts: Vec<Start>) {
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
        self.list_groups(groups);
        if let Some(Entry { lanes, groups, .. }) =
            self.shard.state.borrow_mut().connections.get_mut(self.key)
        {
            let stays = |channel: &Channel| matches!(channel, Channel::Group(group) if groups.contains(group));
            lanes.set_groups(stays, starts);
        }
    }

    /// The channels on which a replay has to bring what live events cannot: they are past it.
    #[must_use]
    pub fn behind(&self) -> Vec<Channel> {
        let state = self.shard.state.borrow();
        let lanes = state.connections.get(self.key).into_iter().flat_map(|entry| &entry.lanes.0);
        lanes
            .filter(|lane| lane.way.get() == Way::Behind)
            .map(|lane| lane.channel().clone())
            .collect()
    }

    /// Up to where the connection has a channel; `None` if it does not listen to it.
    #[must_use]
    pub fn at(&self, channel: &Channel) -> Option<Position> {
        self.on_lane(channel, |_, lane| lane.at.get())
    }

    /// Up to where a replay has to bring a channel at least.
    #[must_use]
    pub fn upto(&self, channel: &Channel) -> Position {
        self.on_lane(channel, |_, lane| lane.upto.get()).unwrap_or_default()
    }

    /// Goes live on a channel if nothing is missing up to what was handed out on this replica.
    #[must_use]
    pub fn join(&self, channel: &Channel) -> bool {
        self.on_lane(channel, |_, lane| lane.join()).unwrap_or(true)
    }

    /// Hands the connection the next event of a replay; `now` in milliseconds since 1970.
    pub fn replay(&self, channel: &Channel, kept: &Kept, now: u64) {
        self.on_lane(channel, |entry, lane| {
            lane.at.set(kept.at);
            // A full outbox has asked for a close already, and a closed one needs no more.
            let (Push::Queued | Push::Overflow(_) | Push::Closed) =
                entry.outbox.deliver(&kept.replayed(&entry.member.user, now).arrived());
        });
    }

    /// What follows on this channel, up to what was handed out, cannot be had: the connection is
    /// told, at its own moment, and goes on from there.
    pub fn lose(&self, channel: &Channel, reason: GapReason) {
        self.on_lane(channel, |entry, lane| {
            lane.lose(lane.at.get().max(lane.handed_out()));
            self.shard.plan(self.key, entry, Word { reason, all: false });
        });
    }

    /// Where the connection stands.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let state = self.shard.state.borrow();
        let entry = state.connections.get(self.key);
        entry.map(|entry| entry.lanes.cursor()).unwrap_or_default()
    }

    pub(super) fn on_lane<T>(
        &self,
        channel: &Channel,
        f: impl FnOnce(&Entry, &Lane) -> T,
    ) -> Option<T> {
        let state = self.shard.state.borrow();
        let entry = state.connections.get(self.key)?;
        Some(f(entry, entry.lanes.of(channel)?))
    }

    /// To be called before a lane of a new group is begun: what is handed out once that stands must
    /// find the worker interested.
    fn list_groups(&self, groups: Box<[Group]>) {
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
        self.list_groups(Box::default());
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
            shard.registry.0.metrics.connections(entry.member.transport, -1);
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

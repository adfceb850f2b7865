//! Sessions that are refused, and users whose older credentials are.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use crate::{
    bus::BusError,
    event::{SessionKey, UserId},
};

/// What is remembered of revocations. Every method resolves within the command timeout.
pub trait Revocations: Send + Sync {
    /// Refuses a session for `ttl`.
    fn revoke_session(
        &self,
        session: SessionKey,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(), BusError>>;

    /// Refuses a user's credentials that were issued up to `at`, but not those of the session
    /// `except`, for `ttl`.
    fn revoke_user<'a>(
        &'a self,
        user: &'a UserId,
        at: SystemTime,
        except: Option<SessionKey>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// Whether a credential of this user and session, issued then, is refused. One that does not
    /// say when it was issued counts as older than any revocation of its user.
    fn revoked<'a>(
        &'a self,
        user: &'a UserId,
        session: Option<SessionKey>,
        issued: Option<SystemTime>,
    ) -> BoxFuture<'a, Result<bool, BusError>>;
}

/// What is held against a user's credentials. Two moments are enough: when another exception comes,
/// the old one's moment counts for everyone, and that is exactly what both orders together say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Everything issued up to here is refused, in milliseconds since 1970.
    pub(super) all: u64,
    /// Everything up to here but that of one session.
    pub(super) but: u64,
    pub(super) session: Option<SessionKey>,
}

impl Mark {
    /// Adds a revocation.
    fn add(&mut self, at: u64, except: Option<SessionKey>) {
        if except.is_none() {
            self.all = self.all.max(at);
            return;
        }
        if self.session != except {
            self.all = self.all.max(self.but);
            self.but = 0;
        }
        self.session = except;
        self.but = self.but.max(at);
    }

    /// Whether it is held against this credential. `iat` of a token is mostly in whole seconds,
    /// so one issued in the very second of the revocation is refused.
    pub(super) fn covers(&self, session: Option<SessionKey>, issued: Option<SystemTime>) -> bool {
        let issued = issued.map_or(0, millis);
        let excepted = self.session.is_some() && self.session == session;
        (self.all > 0 && issued <= self.all) || (self.but > 0 && issued <= self.but && !excepted)
    }
}

/// Milliseconds since 1970.
pub(super) fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Revocations in memory, each with its end.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionKey, Instant>,
    users: HashMap<UserId, (Mark, Instant)>,
    /// Looked through for what has ended at this size, and then at twice what is left.
    sweep_at: usize,
}

impl State {
    fn sweep(&mut self) {
        if self.sessions.len() + self.users.len() < self.sweep_at.max(1024) {
            return;
        }
        let now = Instant::now();
        self.sessions.retain(|_, end| *end > now);
        self.users.retain(|_, (_, end)| *end > now);
        self.sweep_at = 2 * (self.sessions.len() + self.users.len());
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether such a credential is refused.
    pub(super) fn cover(
        &self,
        user: &UserId,
        session: Option<SessionKey>,
        issued: Option<SystemTime>,
    ) -> bool {
        let state = self.state();
        let ended = session.and_then(|session| state.sessions.get(&session));
        let mark = state.users.get(user);
        if ended.is_none() && mark.is_none() {
            return false;
        }
        let now = Instant::now();
        ended.is_some_and(|end| *end > now)
            || mark.is_some_and(|(mark, end)| *end > now && mark.covers(session, issued))
    }
}

impl Revocations for super::memory::MemoryStore {
    fn revoke_session(
        &self,
        session: SessionKey,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(), BusError>> {
        let mut state = self.revocations.state();
        state.sweep();
        state.sessions.insert(session, Instant::now() + ttl);
        std::future::ready(Ok(())).boxed()
    }

    fn revoke_user<'a>(
        &'a self,
        user: &'a UserId,
        at: SystemTime,
        except: Option<SessionKey>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        let mut state = self.revocations.state();
        state.sweep();
        let now = Instant::now();
        let held = state.users.entry(user.clone()).or_insert((Mark::default(), now));
        if held.1 <= now {
            held.0 = Mark::default();
        }
        held.0.add(millis(at), except);
        held.1 = now + ttl;
        std::future::ready(Ok(())).boxed()
    }

    fn revoked<'a>(
        &'a self,
        user: &'a UserId,
        session: Option<SessionKey>,
        issued: Option<SystemTime>,
    ) -> BoxFuture<'a, Result<bool, BusError>> {
        std::future::ready(Ok(self.revocations.cover(user, session, issued))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_hold_for_their_own_order_only() {
        let at = |ms| Some(UNIX_EPOCH + Duration::from_millis(ms));
        let [x, s, other] = ["x", "s", "other"].map(|id| Some(SessionKey::of(id)));
        let mut mark = Mark::default();
        assert!(!mark.covers(other, None));
        mark.add(10, x);
        assert!(mark.covers(other, at(10)) && mark.covers(None, at(9)) && mark.covers(s, None));
        assert!(!mark.covers(x, at(5)) && !mark.covers(other, at(11)));
        mark.add(20, s);
        // x was excepted from the first order, and the second covers it; s the other way round.
        assert!(mark.covers(x, at(15)) && mark.covers(x, at(5)));
        assert!(mark.covers(s, at(10)) && !mark.covers(s, at(11)) && mark.covers(other, at(20)));
        mark.add(30, None);
        assert!(mark.covers(s, at(30)) && !mark.covers(s, at(31)));
    }
}

//! How many connections a user has, over all replicas.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use futures_util::future::{BoxFuture, FutureExt};

use super::replicas::Fleet;
use crate::{
    bus::BusError,
    event::{ConnectionId, SessionKey, UserId},
};

/// What holds for all seats of a replica.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The replica.
    pub replica: Arc<str>,
    /// Seats of one user; 0: as many as are wanted.
    pub limit: usize,
    /// Where there are no more: the wish is refused, or the oldest have to go.
    pub refuse: bool,
    /// The replicas that are alive; what others took does not count. Unknown if its time is 0.
    pub fleet: Fleet,
}

/// A wish for a seat.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Whose.
    pub user: UserId,
    /// For which connection.
    pub id: ConnectionId,
    /// The credential's session.
    pub session: Option<SessionKey>,
    /// When the credential was issued.
    pub issued: Option<SystemTime>,
    /// All that the replica holds for the user, where the store may not have heard yet what it gave
    /// back: other seats of the replica are taken out first.
    pub held: Option<Vec<Held>>,
    /// What holds for all.
    pub terms: Arc<Terms>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A seat.
    Seat {
        /// When it was taken, in milliseconds of the store's own clock; later than all others.
        at: u64,
        /// The oldest of those that were one too many. Their seats are gone already; who held
        /// them has to go.
        over: Vec<ConnectionId>,
    },
    /// There is none.
    Full,
    /// The credential was revoked: it takes no seat, and drives nobody out.
    Revoked,
}

/// A seat that a replica holds, and when it was taken; `None` while that is not known yet.
pub type Held = (ConnectionId, Option<u64>);

/// So many seats at most are told to be one too many at once; the next wish tells the others.
pub const OVER: usize = 32;

/// What a replica really holds for a user.
pub type Holding = (UserId, Vec<Held>);

/// The seats of users. Every method resolves within the command timeout, or within twice that time
/// where others are asked for first.
pub trait SeatBook: Send + Sync {
    /// Takes a seat, if the credential was not [revoked](super::revocations::Revocations::revoked).
    fn take_seat(&self, wish: Wish) -> BoxFuture<'_, Result<Taken, BusError>>;

    /// Gives a seat back, where that takes no waiting; else `false`, and what is held is to be
    /// [entered](Self::enter_seats).
    fn give_back(&self, user: &UserId, id: ConnectionId) -> bool;

    /// How many seats each of these users has on replicas that are alive.
    fn count_seats<'a>(
        &'a self,
        users: &'a [UserId],
    ) -> BoxFuture<'a, Result<Vec<usize>, BusError>>;

    /// Enters what this replica really holds for these users, and nothing else of theirs. The
    /// answers stand in the order of the users, each for itself.
    fn enter_seats<'a>(
        &'a self,
        replica: &'a Arc<str>,
        holdings: &'a [Holding],
    ) -> BoxFuture<'a, Vec<Result<(), BusError>>>;
}

/// The seats of the one replica there is, oldest first.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserId, Vec<(u64, ConnectionId)>, ahash::RandomState>,
    count: u64,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, wish: Wish) -> Taken {
        if let Some(held) = &wish.held {
            self.enter(&wish.user, held);
        }
        let mut state = self.state();
        state.count += 1;
        let at = state.count;
        let limit = if wish.terms.limit == 0 { usize::MAX } else { wish.terms.limit };
        // Nearly everyone has one.
        let seats = state.users.entry(wish.user).or_insert_with(|| Vec::with_capacity(1));
        if wish.terms.refuse && seats.len() >= limit {
            return Taken::Full;
        }
        seats.push((at, wish.id));
        let over = seats.len().saturating_sub(limit).min(OVER);
        Taken::Seat { at, over: seats.drain(..over).map(|(_, id)| id).collect() }
    }

    fn count(&self, user: &UserId) -> usize {
        self.state().users.get(user).map_or(0, Vec::len)
    }

    /// Whether a user has a seat.
    pub(super) fn has(&self, user: &UserId) -> bool {
        self.state().users.contains_key(user)
    }

    fn enter(&self, user: &UserId, held: &[Held]) {
        self.keep(user, |id| held.iter().any(|(held, _)| held == id));
    }

    fn keep(&self, user: &UserId, stays: impl Fn(&ConnectionId) -> bool) {
        let mut state = self.state();
        let Some(seats) = state.users.get_mut(user) else { return };
        seats.retain(|(_, id)| stays(id));
        if seats.is_empty() {
            state.users.remove(user);
        }
        // A crowd has left; its memory goes with it.
        if state.users.capacity() > 64 && state.users.len() * 4 < state.users.capacity() {
            state.users.shrink_to_fit();
        }
    }
}

impl super::memory::MemoryStore {
    /// Whether a user has a seat.
    #[must_use]
    pub fn is_seated(&self, user: &UserId) -> bool {
        self.seats.has(user)
    }
}

impl SeatBook for super::memory::MemoryStore {
    fn take_seat(&self, wish: Wish) -> BoxFuture<'_, Result<Taken, BusError>> {
        let revoked = self.revocations.cover(&wish.user, wish.session, wish.issued);
        let taken = if revoked { Taken::Revoked } else { self.seats.take(wish) };
        std::future::ready(Ok(taken)).boxed()
    }

    fn give_back(&self, user: &UserId, id: ConnectionId) -> bool {
        self.seats.keep(user, |held| *held != id);
        true
    }

    fn count_seats<'a>(
        &'a self,
        users: &'a [UserId],
    ) -> BoxFuture<'a, Result<Vec<usize>, BusError>> {
        let counts = users.iter().map(|user| self.seats.count(user)).collect();
        std::future::ready(Ok(counts)).boxed()
    }

    fn enter_seats<'a>(
        &'a self,
        _replica: &'a Arc<str>,
        holdings: &'a [Holding],
    ) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        for (user, held) in holdings {
            self.seats.enter(user, held);
        }
        std::future::ready(vec![Ok(()); holdings.len()]).boxed()
    }
}

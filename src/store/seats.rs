//! How many connections a user has, over all replicas.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{BoxFuture, FutureExt};

use super::replicas::Fleet;
use crate::{
    bus::BusError,
    event::{ConnectionId, UserId},
};

/// A wish for a seat.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Whose.
    pub user: &'a UserId,
    /// For which connection.
    pub id: ConnectionId,
    /// On which replica.
    pub replica: &'a str,
    /// Seats of one user.
    pub limit: usize,
    /// Where there are no more: the wish is refused, or the oldest have to go.
    pub refuse: bool,
    /// The replicas that are alive; what others took does not count. Unknown if its time is 0.
    pub fleet: &'a Fleet,
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
}

/// A seat that a replica holds, and when it was taken; `None` while that is not known yet.
pub type Held = (ConnectionId, Option<u64>);

/// So many seats at most are told to be one too many at once; the next wish tells the others.
pub const OVER: usize = 32;

/// The seats of users. Every method resolves within the command timeout.
pub trait SeatBook: Send + Sync {
    /// Takes a seat.
    fn take_seat<'a>(&'a self, wish: Wish<'a>) -> BoxFuture<'a, Result<Taken, BusError>>;

    /// Enters what this replica really holds for a user, and nothing else.
    fn enter_seats<'a>(
        &'a self,
        replica: &'a str,
        user: &'a UserId,
        held: &'a [Held],
    ) -> BoxFuture<'a, Result<(), BusError>>;
}

/// The seats of the one replica there is, oldest first.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserId, Vec<(u64, ConnectionId)>>,
    count: u64,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, wish: Wish<'_>) -> Taken {
        let mut state = self.state();
        state.count += 1;
        let at = state.count;
        let seats = state.users.entry(wish.user.clone()).or_default();
        if wish.refuse && seats.len() >= wish.limit {
            return Taken::Full;
        }
        seats.push((at, wish.id));
        let over = seats.len().saturating_sub(wish.limit).min(OVER);
        Taken::Seat { at, over: seats.drain(..over).map(|(_, id)| id).collect() }
    }

    /// Whether a user has a seat.
    pub(super) fn has(&self, user: &UserId) -> bool {
        self.state().users.contains_key(user)
    }

    fn enter(&self, user: &UserId, held: &[Held]) {
        let mut state = self.state();
        let Some(seats) = state.users.get_mut(user) else { return };
        seats.retain(|(_, id)| held.iter().any(|(held, _)| held == id));
        if seats.is_empty() {
            state.users.remove(user);
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
    fn take_seat<'a>(&'a self, wish: Wish<'a>) -> BoxFuture<'a, Result<Taken, BusError>> {
        std::future::ready(Ok(self.seats.take(wish))).boxed()
    }

    fn enter_seats<'a>(
        &'a self,
        _replica: &'a str,
        user: &'a UserId,
        held: &'a [Held],
    ) -> BoxFuture<'a, Result<(), BusError>> {
        self.seats.enter(user, held);
        std::future::ready(Ok(())).boxed()
    }
}

//! Room for each user over all replicas, and what was revoked.
//!
//! A seat is entered in the shared store at the handshake. What this replica holds it knows itself,
//! and its [`Keeper`] sees to it that the store says the same: after every end of a connection,
//! now and then, and at once when the store has forgotten.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, time::Instant};

use crate::{
    bus::{BusError, orders::Orders},
    config::{Limits, UserPolicy},
    event::{ConnectionId, Principal, UserId},
    store::{
        Store,
        replicas::{Fleet, LEASE},
        seats::{Held, Taken, Wish},
    },
};

mod keeper;

pub use keeper::Keeper;

/// The seats. Shared by all workers.
pub struct Seats {
    replica: String,
    store: Arc<dyn Store>,
    orders: Orders,
    /// Seats of one user; 0 for any number, which are not counted then.
    limit: usize,
    policy: UserPolicy,
    known: ArcSwap<Known>,
    held: Mutex<Table>,
    /// Rung when there is something to settle.
    dirty: Notify,
}

/// What is known of the other replicas.
#[derive(Default)]
struct Known {
    fleet: Fleet,
    /// Until then some may be missing on the list: the store has forgotten everyone, and they
    /// renew their leases one after another.
    doubtful: Option<Instant>,
}

/// What this replica holds.
#[derive(Default)]
struct Table {
    users: HashMap<UserId, Holding, ahash::RandomState>,
    /// Users whose seats in the store are to be settled. Each held one, so they are no more than
    /// connections were held.
    dirty: HashSet<UserId, ahash::RandomState>,
    changes: u64,
}

#[derive(Default)]
struct Holding {
    seats: Vec<Held>,
    /// The number of the last change.
    changed: u64,
}

/// One connection's place among its user's; dropping it gives it back.
pub struct Seat {
    seats: Arc<Seats>,
    user: UserId,
    id: ConnectionId,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSeat {
    /// The user has too many connections, and the newest is the one to go.
    TooMany,
    /// The session or the user's credentials were revoked.
    Revoked,
    /// It cannot be known: the store is away.
    Away,
}

impl Seats {
    /// Seats on a replica of this name, and who looks after them.
    #[must_use]
    pub fn new(
        replica: &str,
        store: Arc<dyn Store>,
        orders: Orders,
        limits: &Limits,
    ) -> (Arc<Self>, Keeper) {
        let seats = Arc::new(Self {
            replica: replica.to_owned(),
            store,
            orders,
            limit: limits.connections_per_user,
            policy: limits.user_policy,
            known: ArcSwap::default(),
            held: Mutex::default(),
            dirty: Notify::new(),
        });
        let keeper = Keeper::new(Arc::clone(&seats));
        (seats, keeper)
    }

    /// Takes a seat for a connection of this id, if nothing was revoked; one round trip to the
    /// store. `None`: seats are not counted.
    ///
    /// # Errors
    /// See [`NoSeat`].
    pub async fn take(
        self: &Arc<Self>,
        id: ConnectionId,
        principal: &Principal,
    ) -> Result<Option<Seat>, NoSeat> {
        if self.limit == 0 {
            return match self.revoked(principal).await {
                Ok(false) => Ok(None),
                Ok(true) => Err(NoSeat::Revoked),
                Err(_) => Err(NoSeat::Away),
            };
        }
        if self.known.load().fleet.at == 0 {
            // Others must not take a seat for that of a replica that is gone.
            self.beat().await.map_err(|_| NoSeat::Away)?;
        }
        // Held before the store knows it, so that settling meanwhile does not take it away; and
        // given back by its drop, whatever comes.
        let seat = self.hold(id, &principal.user);
        let known = self.known.load_full();
        let doubtful = known.doubtful.is_some_and(|until| Instant::now() < until);
        let wish = Wish {
            user: &principal.user,
            id,
            replica: &self.replica,
            limit: self.limit,
            refuse: self.policy == UserPolicy::Refuse,
            fleet: if doubtful { &Fleet::default() } else { &known.fleet },
        };
        let (revoked, taken) = tokio::join!(self.revoked(principal), self.store.take_seat(wish));
        // Not before it is known that nothing was revoked: a revoked credential drives nobody out.
        let taken = match (revoked, taken) {
            (Ok(true), _) => return Err(NoSeat::Revoked),
            (Ok(false), Ok(taken)) => taken,
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "no seat could be taken");
                return Err(NoSeat::Away);
            }
        };
        let Taken::Seat { at, over } = taken else { return Err(NoSeat::TooMany) };
        seat.taken(at);
        for oldest in over {
            if let Err(error) = self.orders.replace(oldest).await {
                tracing::debug!(%error, "a connection too many stays until the next handshake");
                break;
            }
        }
        Ok(Some(seat))
    }

    /// Whether the principal's session, or the user's credentials of that time, were revoked.
    ///
    /// # Errors
    /// The store is away.
    pub async fn revoked(&self, principal: &Principal) -> Result<bool, BusError> {
        self.store.revoked(&principal.user, principal.session, principal.issued).await
    }

    /// Renews the lease of this replica, and learns which others are alive. Whether this replica
    /// was not known: the store has forgotten it, or others have taken it for gone.
    async fn beat(&self) -> Result<bool, BusError> {
        let fleet = self.store.beat(&self.replica).await?;
        let fresh = fleet.fresh;
        let mut doubtful = self.known.load().doubtful;
        if fresh {
            doubtful = Some(Instant::now() + LEASE);
            let mut table = self.table();
            let users: Vec<UserId> = table.users.keys().cloned().collect();
            table.dirty.extend(users);
            self.dirty.notify_one();
        }
        self.known.store(Arc::new(Known { fleet, doubtful }));
        Ok(fresh)
    }

    fn hold(self: &Arc<Self>, id: ConnectionId, user: &UserId) -> Seat {
        let mut table = self.table();
        table.change(user).seats.push((id, None));
        drop(table);
        Seat { seats: Arc::clone(self), user: user.clone(), id }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn change(&mut self, user: &UserId) -> &mut Holding {
        self.changes += 1;
        let changes = self.changes;
        let holding = self.users.entry(user.clone()).or_default();
        holding.changed = changes;
        holding
    }

    fn release(&mut self, user: &UserId, id: ConnectionId) {
        let holding = self.change(user);
        holding.seats.retain(|(held, _)| *held != id);
        if holding.seats.is_empty() {
            self.users.remove(user);
        }
        self.dirty.insert(user.clone());
        if self.users.is_empty() {
            // A crowd has left; its memory goes with it.
            self.users = HashMap::default();
        }
    }
}

impl Seat {
    /// The store has entered it at this time.
    fn taken(&self, at: u64) {
        if let Some(holding) = self.seats.table().users.get_mut(&self.user) {
            for (id, time) in &mut holding.seats {
                if *id == self.id {
                    *time = Some(at);
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table().release(&self.user, self.id);
        self.seats.dirty.notify_one();
    }
}

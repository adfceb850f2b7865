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

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Duration, Instant, timeout},
};

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

/// How long a handshake waits until this replica is known to the others.
const JOINING: Duration = Duration::from_millis(1_500);
/// Handshakes whose evictions may wait for the keeper.
const EVICTIONS: usize = 1024;

/// The seats. Shared by all workers.
pub struct Seats {
    replica: String,
    store: Arc<dyn Store>,
    orders: Orders,
    /// Seats of one user; 0 for any number, which are not counted then.
    limit: usize,
    policy: UserPolicy,
    /// Written by the keeper alone.
    known: watch::Sender<Arc<Known>>,
    /// Connections that had to give up their seats, for the keeper to announce.
    over: mpsc::Sender<Vec<ConnectionId>>,
    held: Mutex<Table>,
    /// Rung when there is something to settle.
    dirty: Notify,
}

/// What is known of the other replicas.
#[derive(Default)]
struct Known {
    fleet: Fleet,
    /// The names in it, to be shared.
    live: Arc<[String]>,
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
        let (over, evictions) = mpsc::channel(EVICTIONS);
        let seats = Arc::new(Self {
            replica: replica.to_owned(),
            store,
            orders,
            limit: limits.connections_per_user,
            policy: limits.user_policy,
            known: watch::Sender::default(),
            over,
            held: Mutex::default(),
            dirty: Notify::new(),
        });
        let keeper = Keeper::new(Arc::clone(&seats), evictions);
        (seats, keeper)
    }

    /// Takes a seat for a connection of this id, if nothing was revoked: one round trip to the
    /// store for either, so that a revoked credential drives nobody out. What is revoked in between
    /// comes as an order, for which handshakes under way are no exception. `None`: seats are not
    /// counted.
    ///
    /// # Errors
    /// See [`NoSeat`].
    pub async fn take(
        self: &Arc<Self>,
        id: ConnectionId,
        principal: &Principal,
    ) -> Result<Option<Seat>, NoSeat> {
        if self.revoked(principal).await.map_err(|error| away(&error))? {
            return Err(NoSeat::Revoked);
        }
        if self.limit == 0 {
            return Ok(None);
        }
        let known = self.known().await?;
        // Held before the store knows it, so that settling meanwhile does not take it away; and
        // given back by its drop, whatever comes.
        let seat = self.hold(id, &principal.user);
        let doubtful = known.doubtful.is_some_and(|until| Instant::now() < until);
        let wish = Wish {
            user: &principal.user,
            id,
            replica: &self.replica,
            limit: self.limit,
            refuse: self.policy == UserPolicy::Refuse,
            fleet: if doubtful { &Fleet::default() } else { &known.fleet },
        };
        let taken = self.store.take_seat(wish).await.map_err(|error| away(&error))?;
        let Taken::Seat { at, over } = taken else { return Err(NoSeat::TooMany) };
        seat.taken(at);
        if !over.is_empty()
            && let Err(error) = self.over.try_send(over)
        {
            tracing::debug!(%error, "connections too many stay until their seats are entered again");
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

    /// The names of the replicas that are alive, this one included; none while that is not known.
    #[must_use]
    pub fn alive(&self) -> Arc<[String]> {
        let known = self.known.borrow();
        let doubtful = known.doubtful.is_some_and(|until| Instant::now() < until);
        if doubtful { Arc::default() } else { Arc::clone(&known.live) }
    }

    /// What is known of the fleet, once this replica belongs to it: others must not take a seat for
    /// that of a replica that is gone.
    async fn known(&self) -> Result<Arc<Known>, NoSeat> {
        let mut known = self.known.subscribe();
        let joined = timeout(JOINING, known.wait_for(|known| known.fleet.at != 0)).await;
        match joined {
            Ok(Ok(known)) => Ok(Arc::clone(&known)),
            _ => Err(NoSeat::Away),
        }
    }

    /// Renews the lease of this replica, and learns which others are alive. Whether this replica
    /// was not known: the store has forgotten it, or others have taken it for gone.
    async fn beat(&self) -> Result<bool, BusError> {
        let fleet = self.store.beat(&self.replica).await?;
        let fresh = fleet.fresh;
        let mut doubtful = self.known.borrow().doubtful;
        if fresh {
            doubtful = Some(Instant::now() + LEASE);
            let mut table = self.table();
            let users: Vec<UserId> = table.users.keys().cloned().collect();
            table.dirty.extend(users);
            self.dirty.notify_one();
        }
        self.known.send_replace(Arc::new(Known {
            live: fleet.live.clone().into(),
            fleet,
            doubtful,
        }));
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

fn away(error: &BusError) -> NoSeat {
    tracing::debug!(%error, "no seat could be taken");
    NoSeat::Away
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bus::{
            memory::{Capacity, MemoryBus},
            orders,
        },
        event::SessionKey,
        lifecycle::Vital,
        registry::Registry,
        store::{memory::MemoryStore, revocations::Revocations as _, seats::SeatBook as _},
        telemetry::Metrics,
    };

    fn seats(policy: UserPolicy) -> (Arc<Seats>, Keeper, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::default());
        let (publisher, _) = MemoryBus::new(Capacity::default());
        let metrics = Metrics::new(10);
        let registry = Registry::new(10, metrics.clone(), Vital::default());
        let (orders, _, _) = orders::road(
            "r",
            Arc::new(publisher),
            Arc::clone(&store) as Arc<dyn Store>,
            registry,
            metrics,
            Duration::from_secs(60),
        );
        let limits = Limits {
            connections: 10,
            heartbeat: Duration::from_secs(25),
            inbound_bytes: 1024,
            queue_bytes: 1024,
            queue_events: 8,
            groups: 8,
            data_bytes: 1024,
            body_bytes: 1024,
            connections_per_user: 1,
            user_policy: policy,
        };
        let (seats, keeper) = Seats::new("r", Arc::clone(&store) as _, orders, &limits);
        (seats, keeper, store)
    }

    fn principal(session: &str) -> Principal {
        Principal {
            user: UserId::new("alice").unwrap(),
            session: Some(SessionKey::of(session)),
            groups: Vec::new(),
            expires: None,
            issued: None,
            cookie: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_wait_for_the_keepers_first_beat_and_not_for_ever() {
        let (seats, keeper, _) = seats(UserPolicy::Refuse);
        let alice = principal("s");
        assert_eq!(seats.take(ConnectionId::new(), &alice).await.err(), Some(NoSeat::Away));
        let id = ConnectionId::new();
        let (taken, ()) = tokio::join!(seats.take(id, &alice), async {
            tokio::spawn(keeper.run());
        });
        assert!(matches!(taken, Ok(Some(_))), "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_credential_never_takes_a_seat() {
        for policy in [UserPolicy::Refuse, UserPolicy::Oldest] {
            let (seats, keeper, store) = seats(policy);
            tokio::spawn(keeper.run());
            let ttl = Duration::from_secs(60);
            store.revoke_session(SessionKey::of("bad"), ttl).await.unwrap();
            seats.known().await.unwrap();
            let bad = seats.take(ConnectionId::new(), &principal("bad")).await;
            assert_eq!(bad.err(), Some(NoSeat::Revoked));
            let user = UserId::new("alice").unwrap();
            let fleet = Fleet { live: vec!["r".to_owned()], at: 1, fresh: false };
            let wish = Wish {
                user: &user,
                id: ConnectionId::new(),
                replica: "r",
                limit: 1,
                refuse: policy == UserPolicy::Refuse,
                fleet: &fleet,
            };
            let taken = store.take_seat(wish).await.unwrap();
            assert!(matches!(&taken, Taken::Seat { over, .. } if over.is_empty()), "{taken:?}");
        }
    }
}

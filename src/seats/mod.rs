//! Room for each user over all replicas, who is connected, and what was revoked.
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
        seats::{Held, Taken, Terms, Wish},
    },
};

mod keeper;
pub mod report;

pub use keeper::Keeper;
use report::{Report, Reporter, Source};

/// How long a handshake waits until this replica is known to the others.
const JOINING: Duration = Duration::from_millis(1_500);
/// Handshakes whose evictions may wait for the keeper.
const EVICTIONS: usize = 1024;

/// The seats. Shared by all workers.
pub struct Seats {
    replica: Arc<str>,
    store: Arc<dyn Store>,
    orders: Orders,
    /// Seats of one user; 0 for any number.
    limit: usize,
    policy: UserPolicy,
    /// Written by the keeper alone.
    known: watch::Sender<Arc<Known>>,
    /// Connections that had to give up their seats, for the keeper to announce.
    over: mpsc::Sender<Vec<ConnectionId>>,
    held: Mutex<Table>,
    /// Rung when there is something to settle.
    dirty: Notify,
    /// What this replica tells of itself.
    reporter: Reporter,
}

/// What is known of the other replicas.
#[derive(Default)]
struct Known {
    /// The list of replicas in it is not known if its time is 0.
    terms: Arc<Terms>,
    /// The same without the list, one for all: those who wish by the same terms go together.
    unlisted: Arc<Terms>,
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
    /// Seats on a replica of this name, and who looks after them and tells the others of `numbers`.
    #[must_use]
    pub fn new(
        replica: &str,
        store: Arc<dyn Store>,
        orders: Orders,
        limits: &Limits,
        numbers: Source,
    ) -> (Arc<Self>, Keeper) {
        let (over, evictions) = mpsc::channel(EVICTIONS);
        let seats = Arc::new(Self {
            replica: replica.into(),
            store,
            orders,
            limit: limits.connections_per_user,
            policy: limits.user_policy,
            known: watch::Sender::default(),
            over,
            held: Mutex::default(),
            dirty: Notify::new(),
            reporter: Reporter::new(numbers),
        });
        let keeper = Keeper::new(Arc::clone(&seats), evictions);
        (seats, keeper)
    }

    /// Takes a seat for a connection of this id, if nothing was revoked, so that a revoked
    /// credential drives nobody out. What is revoked in between comes as an order, for which
    /// handshakes under way are no exception.
    ///
    /// # Errors
    /// See [`NoSeat`].
    pub async fn take(
        self: &Arc<Self>,
        id: ConnectionId,
        principal: &Principal,
    ) -> Result<Seat, NoSeat> {
        let known = self.known().await?;
        // Held before the store knows it, so that settling meanwhile does not take it away; and
        // given back by its drop, whatever comes.
        let (seat, held) = self.hold(id, &principal.user);
        let doubtful = known.doubtful.is_some_and(|until| Instant::now() < until);
        let wish = Wish {
            user: principal.user.clone(),
            id,
            session: principal.session,
            issued: principal.issued,
            held,
            terms: Arc::clone(if doubtful { &known.unlisted } else { &known.terms }),
        };
        let taken = self.store.take_seat(wish).await.map_err(|error| away(&error))?;
        let (at, over) = match taken {
            Taken::Seat { at, over } => (at, over),
            Taken::Full => return Err(NoSeat::TooMany),
            Taken::Revoked => return Err(NoSeat::Revoked),
        };
        seat.taken(at);
        if !over.is_empty()
            && let Err(error) = self.over.try_send(over)
        {
            tracing::debug!(%error, "connections too many stay until their seats are entered again");
        }
        Ok(seat)
    }

    /// Whether the principal's session, or the user's credentials of that time, were revoked.
    ///
    /// # Errors
    /// The store is away.
    pub async fn revoked(&self, principal: &Principal) -> Result<bool, BusError> {
        self.store.revoked(&principal.user, principal.session, principal.issued).await
    }

    /// How many connections each of these users has, over all replicas that are alive.
    ///
    /// # Errors
    /// The store is away.
    pub async fn count(&self, users: &[UserId]) -> Result<Vec<usize>, BusError> {
        self.store.count_seats(users).await
    }

    /// The replicas that are alive, and what is known of them: of this one now, of others as of
    /// their last beat, and nothing of those that have not said.
    ///
    /// # Errors
    /// The store is away.
    pub async fn reports(&self) -> Result<Vec<(String, Option<Report>)>, BusError> {
        let others = self.store.reports().await?.into_iter();
        let others = others.filter(|(name, _)| **name != *self.replica).map(|(name, report)| {
            (name, report.and_then(|report| serde_json::from_str(&report).ok()))
        });
        let own = (self.replica.to_string(), Some(self.reporter.report()));
        Ok(std::iter::once(own).chain(others).collect())
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
        let joined = |known: &Arc<Known>| known.terms.fleet.at != 0;
        let now = Arc::clone(&self.known.borrow());
        if joined(&now) {
            return Ok(now);
        }
        let mut known = self.known.subscribe();
        match timeout(JOINING, known.wait_for(joined)).await {
            Ok(Ok(known)) => Ok(Arc::clone(&known)),
            _ => Err(NoSeat::Away),
        }
    }

    fn terms(&self, fleet: Fleet) -> Arc<Terms> {
        Arc::new(Terms {
            replica: Arc::clone(&self.replica),
            limit: self.limit,
            refuse: self.policy == UserPolicy::Refuse,
            fleet,
        })
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
            terms: self.terms(fleet),
            unlisted: self.terms(Fleet::default()),
            doubtful,
        }));
        Ok(fresh)
    }

    /// Leaves word of this replica's numbers.
    async fn report(&self) -> Result<(), BusError> {
        // A report of plain members has no way to fail.
        let report = serde_json::to_string(&self.reporter.sample()).unwrap_or_default();
        self.store.report(&self.replica, report).await
    }

    /// Holds a seat from now on. With it, what the replica holds for the user, if the store may not
    /// have heard of all that was given back: who comes back at once must not be taken for one more.
    fn hold(self: &Arc<Self>, id: ConnectionId, user: &UserId) -> (Seat, Option<Vec<Held>>) {
        let mut table = self.table();
        table.change(user).seats.push((id, None));
        let held = table.dirty.contains(user).then(|| table.held(user));
        drop(table);
        (Seat { seats: Arc::clone(self), user: user.clone(), id }, held)
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
        // Nearly everyone has one.
        let one = || Holding { seats: Vec::with_capacity(1), changed: 0 };
        let holding = self.users.entry(user.clone()).or_insert_with(one);
        holding.changed = changes;
        holding
    }

    fn held(&self, user: &UserId) -> Vec<Held> {
        self.users.get(user).map(|holding| holding.seats.clone()).unwrap_or_default()
    }

    fn release(&mut self, user: &UserId, id: ConnectionId) {
        self.changes += 1;
        let changes = self.changes;
        let Some(holding) = self.users.get_mut(user) else { return };
        holding.changed = changes;
        holding.seats.retain(|(held, _)| *held != id);
        if holding.seats.is_empty() {
            self.users.remove(user);
        }
        // A crowd has left; its memory goes with it.
        if self.users.capacity() > 64 && self.users.len() * 4 < self.users.capacity() {
            self.users.shrink_to_fit();
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
        let Self { seats, user, id } = self;
        if seats.store.give_back(user, *id) {
            seats.table().release(user, *id);
            return;
        }
        let mut table = seats.table();
        table.release(user, *id);
        let first = table.dirty.is_empty();
        table.dirty.insert(user.clone());
        drop(table);
        // Whoever found it empty has rung, and the keeper takes all that is in it then.
        if first {
            seats.dirty.notify_one();
        }
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
        history::Bounds,
        lifecycle::Vital,
        registry::{Registry, tracks::Tracks},
        store::{memory::MemoryStore, revocations::Revocations as _, seats::SeatBook as _},
        telemetry::Metrics,
    };

    fn seats(policy: UserPolicy) -> (Arc<Seats>, Keeper, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::default());
        let day = Duration::from_secs(86_400);
        let bounds = Bounds { events: 10, bytes: 1_000_000, ttl: day, meta_ttl: day };
        let (publisher, _) = MemoryBus::new(Capacity::default(), bounds, Arc::clone(&store));
        let metrics = Metrics::new(10);
        let registry = Registry::new(10, Tracks::new(bounds), metrics.clone(), Vital::default());
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
            batch_bytes: 1024,
            connections_per_user: 1,
            user_policy: policy,
        };
        let (seats, keeper) = Seats::new(
            "r",
            Arc::clone(&store) as _,
            orders,
            &limits,
            Box::new(report::Numbers::default),
        );
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
        assert!(taken.is_ok(), "{taken:?}");
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
            let fleet = Fleet { live: vec!["r".to_owned()], at: 1, fresh: false };
            let wish = Wish {
                user: UserId::new("alice").unwrap(),
                id: ConnectionId::new(),
                session: None,
                issued: None,
                held: None,
                terms: seats.terms(fleet),
            };
            let taken = store.take_seat(wish).await.unwrap();
            assert!(matches!(&taken, Taken::Seat { over, .. } if over.is_empty()), "{taken:?}");
        }
    }
}

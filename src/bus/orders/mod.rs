//! Orders to close connections, wherever they are: given once, heard by every replica, carried out
//! by each and acknowledged.
//!
//! [`Orders`] gives them; the [`Executor`] of every replica carries them out, also those that it
//! did not hear: after a gap it reads what is kept after the last one it knows.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{BusError, Destination, Message, Publisher, envelope};
use crate::{
    event::{CloseCause, ConnectionId, Order, SessionKey, Subject},
    registry::Registry,
    store::Store,
    telemetry::Metrics,
};

mod executor;
mod wire;

pub use executor::Executor;
pub(super) use wire::Wire;
pub use wire::{Ack, Given, OrderId};

/// How long the store and the bus may take together, so that whoever gives an order hears within
/// two seconds that they are away.
const GIVING: Duration = Duration::from_millis(1_800);
/// How long whoever gives an order waits for the replicas.
const PATIENCE: Duration = Duration::from_secs(1);
/// What may wait for the executor. A burst over it is read again from what is kept.
const WAITING: usize = 4096;
/// Acknowledgements that may wait for one order.
const ACKS: usize = 1024;

/// What the subscriber heard that concerns orders.
#[derive(Debug)]
pub enum Heard {
    /// An order.
    Order(Given),
    /// An acknowledgement.
    Ack(Ack),
    /// Orders may have been missed up to here.
    Gap,
}

/// The subscriber's end: never waits.
#[derive(Clone, Debug)]
pub struct Ear {
    heard: mpsc::Sender<Heard>,
    missed: Arc<AtomicBool>,
}

impl Ear {
    /// Hands it to the executor, or leaves word that something did not fit.
    pub fn hear(&self, heard: Heard) {
        if let Err(error) = self.heard.try_send(heard) {
            self.missed.store(true, Ordering::Release);
            tracing::debug!(%error, "an order is read again later");
        }
    }
}

/// A request to close connections.
#[derive(Clone, Debug)]
pub struct Disconnect {
    /// Which.
    pub subject: Subject,
    /// But not this one.
    pub except_connection: Option<ConnectionId>,
    /// And none of this session.
    pub except_session: Option<SessionKey>,
    /// Also refuse the session, or the user's credentials issued before now, from now on.
    pub revoke: bool,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Connections that were closed, as far as replicas have said.
    pub closed: u64,
    /// Replicas that are alive.
    pub replicas: usize,
    /// Those of them that have carried it out.
    pub acknowledged: usize,
}

/// Gives orders. Cheap to clone.
#[derive(Clone)]
pub struct Orders(Arc<Inner>);

struct Inner {
    publisher: Arc<dyn Publisher>,
    store: Arc<dyn Store>,
    metrics: Metrics,
    revocation_ttl: Duration,
    /// Who waits for the acknowledgements of an order, by its nonce. Held for a look-up.
    waiting: Mutex<HashMap<String, mpsc::Sender<Ack>>>,
}

/// Stops waiting when it is dropped.
struct Waiting<'a> {
    orders: &'a Orders,
    nonce: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.orders.waiting().remove(&self.nonce);
    }
}

/// Both ends of the road of orders on a replica of this name, and the ear that its subscriber needs.
pub fn road(
    replica: &str,
    publisher: Arc<dyn Publisher>,
    store: Arc<dyn Store>,
    registry: Registry,
    metrics: Metrics,
    revocation_ttl: Duration,
) -> (Orders, Executor, Ear) {
    let (sender, heard) = mpsc::channel(WAITING);
    let missed = Arc::new(AtomicBool::new(false));
    let ear = Ear { heard: sender, missed: Arc::clone(&missed) };
    let orders = Orders(Arc::new(Inner {
        publisher,
        store,
        metrics,
        revocation_ttl,
        waiting: Mutex::default(),
    }));
    let executor = Executor::new(replica.to_owned(), orders.clone(), registry, heard, missed);
    (orders, executor, ear)
}

impl Orders {
    /// Revokes where that is asked for, gives the order, and waits a moment for the replicas.
    ///
    /// # Errors
    /// When the store or the bus is away: nothing may have happened, or some of it.
    pub async fn disconnect(&self, request: Disconnect) -> Result<Outcome, BusError> {
        let Disconnect { subject, except_connection, except_session, revoke } = request;
        let order = Order {
            subject,
            except_connection,
            except_session,
            cause: CloseCause::Revoked,
            given: SystemTime::now(),
        };
        let nonce = uuid::Uuid::now_v7().simple().to_string();
        let wire = serde_json::to_string(&Wire::new(&order, Some(&nonce)))
            .map_err(|error| BusError::Refused(error.to_string()))?;
        let (sender, mut acks) = mpsc::channel(ACKS);
        self.waiting().insert(nonce.clone(), sender);
        let _waiting = Waiting { orders: self, nonce };
        let given = timeout(GIVING, self.give(&order, wire, revoke)).await;
        let late = |_| BusError::Away("the order took too long".to_owned());
        let mut replicas = given.map_err(late)??;
        self.0.metrics.revocation(&order.subject);
        let deadline = Instant::now() + PATIENCE;
        let mut heard = HashSet::new();
        let mut closed = 0;
        while !replicas.is_subset(&heard) || heard.is_empty() {
            let Ok(Some(ack)) = timeout_at(deadline, acks.recv()).await else { break };
            if heard.insert(ack.replica) {
                // A neighbour can say any number.
                closed = u64::saturating_add(closed, ack.closed);
            }
        }
        let acknowledged = heard.len();
        replicas.extend(heard);
        Ok(Outcome { closed, replicas: replicas.len(), acknowledged })
    }

    /// Revokes where that is asked for, and gives the order; the replicas that are alive.
    async fn give(
        &self,
        order: &Order,
        wire: String,
        revoke: bool,
    ) -> Result<HashSet<String>, BusError> {
        let Inner { store, publisher, .. } = &*self.0;
        let (live, revoked) = tokio::join!(store.live(), async {
            // First: a handshake that the order does not reach finds the revocation.
            if revoke { self.revoke(&order.subject, order.except_session).await } else { Ok(()) }
        });
        revoked?;
        let live = live?;
        publisher.give(wire).await?;
        Ok(live.into_iter().collect())
    }

    /// Closes connections whose users have newer ones too many, in one batch. The orders are not
    /// kept: if they are lost, the replicas enter the seats again, and a handshake after that gives
    /// others.
    ///
    /// # Errors
    /// As for any message.
    pub async fn replace(&self, connections: &[ConnectionId]) -> Result<(), BusError> {
        let orders = connections.iter().map(|connection| {
            let order = Order {
                subject: Subject::Connection(*connection),
                except_connection: None,
                except_session: None,
                cause: CloseCause::Replaced,
                given: SystemTime::now(),
            };
            let wire = serde_json::to_string(&Wire::new(&order, None))
                .map_err(|error| BusError::Refused(error.to_string()))?;
            let payload = envelope::encode_order(None, &wire);
            Ok(Message { to: Destination::Control, payload })
        });
        self.0.publisher.publish(orders.collect::<Result<_, BusError>>()?).await
    }

    async fn revoke(&self, subject: &Subject, except: Option<SessionKey>) -> Result<(), BusError> {
        let Inner { store, revocation_ttl: ttl, .. } = &*self.0;
        match subject {
            Subject::Session(session) => store.revoke_session(*session, *ttl).await,
            Subject::User(user) => store.revoke_user(user, SystemTime::now(), except, *ttl).await,
            // A connection has no credential of its own.
            Subject::Connection(_) => Ok(()),
        }
    }

    /// Hands an acknowledgement to whoever waits for it here.
    fn acknowledged(&self, ack: Ack) {
        if let Some(waiting) = self.waiting().get(&ack.order)
            && let Err(error) = waiting.try_send(ack)
        {
            tracing::debug!(%error, "an acknowledgement came too late");
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Ack>>> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        bus::memory::{Capacity, MemoryBus},
        event::UserId,
        lifecycle::Vital,
        registry::tracks::Tracks,
        store::memory::MemoryStore,
        testing::KEEPING,
    };

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_an_order_hears_within_two_seconds_that_it_was_not() {
        let patience = Duration::from_secs(10);
        let (publisher, _feed) = MemoryBus::new(
            Capacity { messages: 1, patience, ..Capacity::default() },
            KEEPING,
            Arc::default(),
        );
        let payload = Bytes::from_static(b"{}");
        publisher.publish(vec![Message { to: Destination::Control, payload }]).await.unwrap();
        let metrics = Metrics::new(10);
        let registry = Registry::new(10, Tracks::new(KEEPING), metrics.clone(), Vital::default());
        let store = Arc::new(MemoryStore::default());
        let (orders, _executor, _ear) =
            road("r", Arc::new(publisher), store, registry, metrics, Duration::from_secs(60));
        let started = Instant::now();
        let request = Disconnect {
            subject: Subject::User(UserId::new("alice").unwrap()),
            except_connection: None,
            except_session: None,
            revoke: true,
        };
        let outcome = orders.disconnect(request).await;
        assert!(matches!(outcome, Err(BusError::Away(_))), "{outcome:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
}

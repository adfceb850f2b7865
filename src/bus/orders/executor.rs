//! Carries orders out on this replica, in a task of its own, so that the subscriber never waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};

use super::{Ack, Given, Heard, OrderId, Orders};
use crate::{
    bus::{
        BusError, Destination, Message,
        control::{Kept, PAGE},
        envelope::{self, Decoded},
    },
    event::Order,
    registry::Registry,
    telemetry::DropReason,
};

/// Between two tries of a repair while the bus is away.
const RETRY: Duration = Duration::from_millis(500);
/// Nobody waits this long for an acknowledgement.
const WAIT: Duration = Duration::from_secs(10);
/// Orders under way, from the workers' mailboxes to the acknowledgement; others wait. One worker
/// that is stuck holds up neither the other workers nor the orders after it.
const ORDERS: usize = 1024;

/// See the module.
pub struct Executor {
    replica: String,
    orders: Orders,
    registry: Registry,
    heard: mpsc::Receiver<Heard>,
    missed: Arc<AtomicBool>,
    /// The last order that is known; what is kept after it has been missed. At the start none is,
    /// and a repair reads everything: where the orders stood when the subscription began cannot be
    /// asked without a hole.
    last: OrderId,
    /// Orders that were given before do not concern anyone here.
    started: SystemTime,
    /// What was missed is to be read.
    wanted: bool,
    /// It is being read.
    repairing: bool,
    retry: Instant,
    /// Who else is to know of an order, before it is carried out.
    told: Box<dyn Fn(&Order)>,
}

type Page = Result<Kept, BusError>;
type Working = FuturesUnordered<BoxFuture<'static, ()>>;

impl Executor {
    pub(super) fn new(
        replica: String,
        orders: Orders,
        registry: Registry,
        heard: mpsc::Receiver<Heard>,
        missed: Arc<AtomicBool>,
    ) -> Self {
        Self {
            replica,
            orders,
            registry,
            heard,
            missed,
            last: OrderId::default(),
            started: SystemTime::now(),
            wanted: false,
            repairing: false,
            retry: Instant::now(),
            told: Box::new(|_| {}),
        }
    }

    /// Also tells `told` of every order, before it is carried out.
    #[must_use]
    pub fn telling(self, told: impl Fn(&Order) + 'static) -> Self {
        Self { told: Box::new(told), ..self }
    }

    /// Runs until the subscriber ends.
    pub async fn run(mut self) {
        let mut working = Working::new();
        let mut reading: Option<BoxFuture<'static, Page>> = None;
        loop {
            self.look();
            let room = working.len() < ORDERS;
            tokio::select! {
                heard = self.heard.recv(), if room => match heard {
                    Some(heard) => self.heard(heard, &working),
                    None => return,
                },
                page = poll(&mut reading), if room => {
                    reading = None;
                    self.read(page, &working);
                }
                Some(()) = working.next() => {}
                () = sleep_until(self.retry), if self.wanted && reading.is_none() => {
                    reading = Some(self.ask());
                }
            }
        }
    }

    /// Whether something did not fit into the queue.
    fn look(&mut self) {
        if self.missed.swap(false, Ordering::AcqRel) {
            self.wanted = true;
        }
    }

    fn heard(&mut self, heard: Heard, working: &Working) {
        // Also here: what comes through the queue came after what did not fit into it.
        self.look();
        match heard {
            Heard::Order(given) => {
                // One heard before a repair is through says nothing of those before it, and one from
                // the future is no order's: taken at its word, it would end every later repair.
                if !self.wanted
                    && !self.repairing
                    && let Some(id) = given.id
                    && id.is_past(SystemTime::now())
                {
                    self.last = self.last.max(id);
                }
                working.push(self.execute(given, false));
            }
            Heard::Ack(ack) => self.orders.acknowledged(ack),
            Heard::Gap => self.wanted = true,
        }
    }

    /// Begins to read. What is missed from here on is read after it.
    fn ask(&mut self) -> BoxFuture<'static, Page> {
        self.retry = Instant::now() + RETRY;
        self.wanted = false;
        self.repairing = true;
        let (publisher, after) = (Arc::clone(&self.orders.0.publisher), self.last);
        Box::pin(async move { publisher.kept(after).await })
    }

    fn read(&mut self, page: Page, working: &Working) {
        self.repairing = false;
        let page = match page {
            Ok(Kept { orders, hole }) => {
                if hole {
                    self.report_hole();
                }
                orders
            }
            Err(error) => {
                self.wanted = true;
                return tracing::debug!(%error, "orders could not be read; this is tried again");
            }
        };
        if page.len() >= PAGE {
            self.wanted = true;
            self.retry = Instant::now();
        }
        let mut missed = 0;
        for (id, payload) in page {
            self.last = self.last.max(id);
            match envelope::decode(&payload) {
                Ok(Decoded::Order(given)) if given.order.reaches(self.started) => {
                    missed += 1;
                    working.push(self.execute(*given, true));
                }
                Ok(Decoded::Order(_)) => {}
                _ => self.orders.0.metrics.dropped(DropReason::BusInvalid, 1),
            }
        }
        if missed > 0 {
            tracing::info!(missed, "orders that may have been missed are carried out");
        }
    }

    /// What was revoked stays revoked, for handshakes and renewals; only who was to be closed is not
    /// known.
    fn report_hole(&mut self) {
        tracing::error!(
            last = %self.last,
            "orders after the last one known here are not kept any more: connections that were to be \
             closed since may still be open on this replica; repeat the orders, or restart it"
        );
        self.last = OrderId::default();
    }

    fn execute(&self, given: Given, late: bool) -> BoxFuture<'static, ()> {
        let Given { nonce, mut order, .. } = given;
        // Nothing is given in the future; who says so would close connections that are still to come.
        order.given = order.given.min(SystemTime::now());
        (self.told)(&order);
        let (registry, replica) = (self.registry.clone(), self.replica.clone());
        let publisher = Arc::clone(&self.orders.0.publisher);
        Box::pin(async move {
            let given = order.given;
            let closed = registry.order(order, late).await;
            let Some(nonce) = nonce else { return };
            let Some(closed) = closed else {
                return tracing::warn!("a worker is stuck; an order waits for it");
            };
            if given.elapsed().is_ok_and(|age| age > WAIT) {
                return;
            }
            let closed = u64::try_from(closed).unwrap_or(u64::MAX);
            match envelope::encode_ack(Ack { order: nonce, replica, closed }) {
                Ok(payload) => {
                    let message = Message { to: Destination::Control, payload };
                    if let Err(error) = publisher.publish(vec![message]).await {
                        tracing::debug!(%error, "an acknowledgement was not sent");
                    }
                }
                Err(error) => tracing::error!(%error, "an acknowledgement could not be written"),
            }
        })
    }
}

async fn poll(reading: &mut Option<BoxFuture<'static, Page>>) -> Page {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

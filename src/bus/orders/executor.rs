//! Carries orders out on this replica, in a task of its own, so that the subscriber never waits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};

use super::{Ack, Given, Heard, OrderId, Orders};
use crate::{
    bus::{
        BusError, Destination, Message,
        control::PAGE,
        envelope::{self, Decoded},
    },
    registry::Registry,
    telemetry::DropReason,
};

/// Between two tries of a repair while the bus is away.
const RETRY: Duration = Duration::from_millis(500);
/// Acknowledgements under way; more are left out, and whoever waits reports one fewer.
const ACKS: usize = 1024;

/// See the module.
pub struct Executor {
    replica: String,
    orders: Orders,
    registry: Registry,
    heard: mpsc::Receiver<Heard>,
    missed: Arc<AtomicBool>,
    /// The last order that is known; what is kept after it has been missed. `None` until the first
    /// look, and then a repair begins at the first order that is kept: orders older than a
    /// connection do not concern it.
    last: Option<OrderId>,
    want: Want,
    /// What was missed is being read.
    repairing: bool,
    retry: Instant,
}

/// What is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Nothing,
    /// Where the orders stand, at the start of this replica: older ones do not concern it.
    Newest,
    /// What was missed.
    Missed,
}

enum Read {
    Newest(Result<OrderId, BusError>),
    Missed(Result<Vec<(OrderId, Bytes)>, BusError>),
}

type Acks = FuturesUnordered<BoxFuture<'static, Result<(), BusError>>>;

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
            last: None,
            want: Want::Nothing,
            repairing: false,
            retry: Instant::now(),
        }
    }

    /// Runs until the subscriber ends.
    pub async fn run(mut self) {
        let mut acks = Acks::new();
        let mut read: Option<BoxFuture<'static, Read>> = None;
        loop {
            self.look();
            let idle = read.is_none() && self.want != Want::Nothing;
            tokio::select! {
                heard = self.heard.recv() => match heard {
                    Some(heard) => self.heard(heard, &acks).await,
                    None => return,
                },
                answer = poll(&mut read) => {
                    read = None;
                    self.read(answer, &acks).await;
                }
                Some(sent) = acks.next() => if let Err(error) = sent {
                    tracing::debug!(%error, "an acknowledgement was not sent");
                },
                () = sleep_until(self.retry), if idle => read = Some(self.ask()),
            }
        }
    }

    /// Whether something did not fit into the queue.
    fn look(&mut self) {
        if self.missed.swap(false, Ordering::AcqRel) {
            self.want = Want::Missed;
        }
    }

    async fn heard(&mut self, heard: Heard, acks: &Acks) {
        // Also here: what comes through the queue came after what did not fit into it.
        self.look();
        match heard {
            Heard::Order(given) => {
                // One heard in the middle of a repair says nothing of those before it.
                if self.want != Want::Missed
                    && !self.repairing
                    && let Some(id) = given.id
                {
                    self.last = self.last.max(Some(id));
                }
                self.execute(given, false, acks).await;
            }
            Heard::Ack(ack) => self.orders.acknowledged(ack),
            Heard::Subscribed { again: false } if self.want == Want::Nothing => {
                self.want = Want::Newest;
            }
            Heard::Subscribed { .. } | Heard::Gap => self.want = Want::Missed,
        }
    }

    /// Begins to read. What is wanted from here on was missed after it and is read next.
    fn ask(&mut self) -> BoxFuture<'static, Read> {
        self.retry = Instant::now() + RETRY;
        let publisher = Arc::clone(&self.orders.0.publisher);
        match std::mem::replace(&mut self.want, Want::Nothing) {
            Want::Newest => Box::pin(async move { Read::Newest(publisher.newest().await) }),
            Want::Missed | Want::Nothing => {
                self.repairing = true;
                let after = self.last.unwrap_or_default();
                Box::pin(async move { Read::Missed(publisher.kept(after).await) })
            }
        }
    }

    async fn read(&mut self, read: Read, acks: &Acks) {
        match read {
            // After a gap it might pass over what was missed.
            Read::Newest(Ok(newest)) if self.want == Want::Nothing => {
                self.last = self.last.max(Some(newest));
            }
            Read::Newest(Ok(_)) => {}
            Read::Missed(Ok(page)) => {
                self.repairing = false;
                if page.len() >= PAGE {
                    self.want = Want::Missed;
                    self.retry = Instant::now();
                }
                if !page.is_empty() {
                    tracing::info!(orders = page.len(), "orders that were missed are carried out");
                }
                for (id, payload) in page {
                    self.last = self.last.max(Some(id));
                    match envelope::decode(&payload) {
                        Ok(Decoded::Order(given)) => self.execute(*given, true, acks).await,
                        _ => self.orders.0.metrics.dropped(DropReason::BusInvalid, 1),
                    }
                }
            }
            Read::Newest(Err(error)) => {
                if self.want == Want::Nothing {
                    self.want = Want::Newest;
                }
                tracing::debug!(%error, "the newest order could not be read; this is tried again");
            }
            Read::Missed(Err(error)) => {
                self.repairing = false;
                self.want = Want::Missed;
                tracing::debug!(%error, "orders could not be read; this is tried again");
            }
        }
    }

    async fn execute(&self, given: Given, late: bool, acks: &Acks) {
        let Given { nonce, order, .. } = given;
        let closed = self.registry.order(order, late).await;
        let Some(nonce) = nonce else { return };
        if acks.len() >= ACKS {
            return tracing::debug!("an acknowledgement is left out: too many are under way");
        }
        let closed = u64::try_from(closed).unwrap_or(u64::MAX);
        let ack = Ack { order: nonce, replica: self.replica.clone(), closed };
        match envelope::encode_ack(ack) {
            Ok(payload) => {
                let publisher = Arc::clone(&self.orders.0.publisher);
                let message = Message { to: Destination::Control, payload };
                acks.push(Box::pin(async move { publisher.publish(vec![message]).await }));
            }
            Err(error) => tracing::error!(%error, "an acknowledgement could not be written"),
        }
    }
}

async fn poll(read: &mut Option<BoxFuture<'static, Read>>) -> Read {
    match read {
        Some(read) => read.await,
        None => std::future::pending().await,
    }
}

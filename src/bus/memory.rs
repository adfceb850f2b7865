//! The bus of one replica: a queue from whoever publishes to the subscriber actor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    BusError, Destination, Feed, Incoming, Message, Once, Published, Publisher,
    control::{Control, Kept},
    envelope,
    orders::OrderId,
};
use crate::store::{Claim, IDEMPOTENCY_TTL, Store as _, memory::MemoryStore};

/// How much may wait for the subscriber actor, and how long a publisher waits for room.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Messages; at least 1.
    pub messages: usize,
    /// Bytes of payload. A longer message takes all of it.
    pub bytes: u32,
    /// Longest wait for room, like `redis.command_timeout`.
    pub patience: Duration,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { messages: 16_384, bytes: 64 * 1024 * 1024, patience: Duration::from_millis(1_500) }
    }
}

/// Makes a bus in memory.
#[derive(Debug)]
pub struct MemoryBus;

struct Waiting {
    from: Destination,
    payload: Bytes,
    /// Gives the bytes back when it is dropped.
    _room: OwnedSemaphorePermit,
}

/// Puts messages into the queue.
#[derive(Clone, Debug)]
pub struct MemoryPublisher {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    capacity: Capacity,
    /// Orders that were given.
    orders: Arc<AtomicU64>,
    /// Requests that were done once.
    done: Arc<MemoryStore>,
}

/// Takes them out.
#[derive(Debug)]
pub struct MemoryFeed {
    queue: mpsc::Receiver<Waiting>,
    /// A [`Incoming::Subscribed`] that is still to be said.
    subscribed: Option<bool>,
}

impl MemoryBus {
    /// Both ends of a new bus. It ends when every publisher is gone, or the feed.
    #[expect(clippy::new_ret_no_self, reason = "a bus is its two ends")]
    pub fn new(capacity: Capacity) -> (MemoryPublisher, MemoryFeed) {
        let (sender, receiver) = mpsc::channel(capacity.messages.max(1));
        let room = Arc::new(Semaphore::new(capacity.bytes as usize));
        (
            MemoryPublisher {
                queue: sender,
                room,
                capacity,
                orders: Arc::default(),
                done: Arc::default(),
            },
            MemoryFeed { queue: receiver, subscribed: Some(false) },
        )
    }
}

impl MemoryPublisher {
    async fn put(&self, message: Message, deadline: Instant) -> Result<(), BusError> {
        let full = |_| BusError::Away("its queue is full".to_owned());
        let gone = || BusError::Away("it has shut down".to_owned());
        let bytes = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
        // First the place, then the bytes: two publishers then never hold what the other needs.
        let place =
            timeout_at(deadline, self.queue.reserve()).await.map_err(full)?.map_err(|_| gone())?;
        let room = Arc::clone(&self.room).acquire_many_owned(bytes.min(self.capacity.bytes));
        let room = timeout_at(deadline, room).await.map_err(full)?.map_err(|_| gone())?;
        place.send(Waiting { from: message.to, payload: message.payload, _room: room });
        Ok(())
    }
}

impl Publisher for MemoryPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let deadline = Instant::now() + self.capacity.patience;
            for message in messages {
                self.put(message, deadline).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn publish_once(
        &self,
        messages: Vec<Message>,
        once: Once,
    ) -> BoxFuture<'_, Result<Published, BusError>> {
        async move {
            let Once { key, fingerprint, answer } = &once;
            match self.done.claim(key, fingerprint, self.capacity.patience * 2).await? {
                Claim::Fresh => {}
                Claim::Done { fingerprint: first, answer } if first == *fingerprint => {
                    return Ok(Published::Before(answer));
                }
                Claim::Done { .. } => return Ok(Published::Conflict),
                Claim::Pending => {
                    return Err(BusError::Away("the same request is under way".to_owned()));
                }
            }
            match self.publish(messages).await {
                Ok(()) => {
                    let settled = self.done.settle(key, fingerprint, answer, IDEMPOTENCY_TTL);
                    settled.await.map(|()| Published::Now)
                }
                Err(error) => self.done.release(key).await.and(Err(error)),
            }
        }
        .boxed()
    }

    fn probe(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        self.publish(vec![message])
    }

    fn is_up(&self) -> bool {
        !self.queue.is_closed()
    }
}

/// Nothing is lost on the way to the one replica there is, so nothing is kept.
impl Control for MemoryPublisher {
    fn give(&self, order: String) -> BoxFuture<'_, Result<(), BusError>> {
        let count = self.orders.fetch_add(1, Ordering::Relaxed) + 1;
        let payload = envelope::encode_order(Some(OrderId::at(count)), &order);
        self.publish(vec![Message { to: Destination::Control, payload }])
    }

    fn kept(&self, _after: OrderId) -> BoxFuture<'_, Result<Kept, BusError>> {
        std::future::ready(Ok(Kept::default())).boxed()
    }
}

impl Feed for MemoryFeed {
    fn next(&mut self) -> BoxFuture<'_, Option<Incoming>> {
        async move {
            if let Some(again) = self.subscribed.take() {
                return Some(Incoming::Subscribed { again });
            }
            let Waiting { from, payload, .. } = self.queue.recv().await?;
            Some(Incoming::Message { from, payload })
        }
        .boxed()
    }

    fn restart(&mut self) -> BoxFuture<'_, ()> {
        // Nothing can be lost here, but the promise is the same: say that it stands again.
        self.subscribed = Some(true);
        std::future::ready(()).boxed()
    }
}

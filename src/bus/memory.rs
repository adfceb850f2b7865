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
    Ask, BusError, Destination, Feed, History, Incoming, Keep, Message, Once, Post, Posted,
    Publisher, Receipt,
    control::{Control, Kept},
    envelope,
    orders::OrderId,
};
use crate::{
    event::{Channel, Tag, UserId},
    history::{Bounds, Reading},
    store::{Claim, IDEMPOTENCY_TTL, Store as _, memory::MemoryStore},
};

mod streams;

use streams::Streams;

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
    /// Requests that were done once, and who is connected.
    store: Arc<MemoryStore>,
    /// What is kept.
    streams: Arc<Streams>,
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
    pub fn new(
        capacity: Capacity,
        bounds: Bounds,
        store: Arc<MemoryStore>,
    ) -> (MemoryPublisher, MemoryFeed) {
        let (sender, receiver) = mpsc::channel(capacity.messages.max(1));
        let room = Arc::new(Semaphore::new(capacity.bytes as usize));
        (
            MemoryPublisher {
                queue: sender,
                room,
                capacity,
                orders: Arc::default(),
                store,
                streams: Arc::new(Streams::new(bounds)),
            },
            MemoryFeed { queue: receiver, subscribed: Some(false) },
        )
    }
}

/// A place in the queue, and room for so many bytes.
struct Place<'a> {
    place: mpsc::Permit<'a, Waiting>,
    room: OwnedSemaphorePermit,
}

impl Place<'_> {
    fn send(self, from: Destination, payload: Bytes) {
        self.place.send(Waiting { from, payload, _room: self.room });
    }
}

impl MemoryPublisher {
    async fn place(&self, bytes: usize, deadline: Instant) -> Result<Place<'_>, BusError> {
        let full = |_| BusError::Away("its queue is full".to_owned());
        let gone = || BusError::Away("it has shut down".to_owned());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // First the place, then the bytes: two publishers then never hold what the other needs.
        let place =
            timeout_at(deadline, self.queue.reserve()).await.map_err(full)?.map_err(|_| gone())?;
        let room = Arc::clone(&self.room).acquire_many_owned(bytes.min(self.capacity.bytes));
        let room = timeout_at(deadline, room).await.map_err(full)?.map_err(|_| gone())?;
        Ok(Place { place, room })
    }

    async fn put(&self, message: Message, deadline: Instant) -> Result<(), BusError> {
        let place = self.place(message.payload.len(), deadline).await?;
        place.send(message.to, message.payload);
        Ok(())
    }

    /// Keeps and publishes one event, or finds that it was done before.
    async fn post_one(&self, post: Post, deadline: Instant) -> Result<Posted, BusError> {
        let Some(Once { key, fingerprint, .. }) = post.once.clone() else {
            return self.keep_and_publish(post, deadline).await.map(Posted::Done);
        };
        match self.store.claim(&key, &fingerprint, self.capacity.patience * 2).await? {
            Claim::Fresh => {}
            Claim::Done { fingerprint: first, answer } if first == fingerprint => {
                return Ok(Posted::Done(Receipt::remembered(&answer)));
            }
            Claim::Done { .. } => return Ok(Posted::Conflict),
            Claim::Pending => {
                return Err(BusError::Away("the same request is under way".to_owned()));
            }
        }
        match self.keep_and_publish(post, deadline).await {
            Ok(receipt) => {
                let answer = receipt.to_string();
                let settled = self.store.settle(&key, &fingerprint, &answer, IDEMPOTENCY_TTL);
                settled.await.map(|()| Posted::Done(receipt))
            }
            Err(error) => self.store.release(&key).await.and(Err(error)),
        }
    }

    async fn keep_and_publish(&self, post: Post, deadline: Instant) -> Result<Receipt, BusError> {
        let Post { to, event, keep, online, .. } = post;
        let online = match (online, &to) {
            (Some(_), Channel::User(user)) => Some(self.store.is_seated(user)),
            _ => None,
        };
        let bytes = event.head.len() + event.members.len() + PLACE_BYTES;
        let place = self.place(bytes, deadline).await?;
        let life = match keep {
            Keep::Kept => None,
            Keep::For(life) => Some(life),
            Keep::Transient => {
                let receipt = Receipt::new(&Tag::of(&to), None, online);
                place.send(Destination::Events(to), event.transient());
                return Ok(receipt);
            }
        };
        let tag = Tag::of(&to);
        let to_queue = |message| place.send(Destination::Events(to.clone()), message);
        let at = self.streams.append(
            &to,
            |at, prev, now| {
                let until = life.map(|life| now.saturating_add(millis(life)));
                let message = event.kept(&tag, at, prev, until);
                envelope::kept(&to, &message).map(|kept| (kept, message))
            },
            to_queue,
        );
        Ok(Receipt::new(&tag, at, online))
    }
}

/// Room for the id of an event and the one before it.
const PLACE_BYTES: usize = 128;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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

    fn post(&self, posts: Vec<Post>) -> BoxFuture<'_, Vec<Result<Posted, BusError>>> {
        async move {
            let deadline = Instant::now() + self.capacity.patience;
            let mut answers = Vec::with_capacity(posts.len());
            for post in posts {
                answers.push(self.post_one(post, deadline).await);
            }
            answers
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

impl History for MemoryPublisher {
    fn keeps(&self) -> bool {
        self.streams.keeps()
    }

    fn read(&self, asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>> {
        let readings = asks.iter().map(|ask| self.streams.read(ask)).collect();
        std::future::ready(Ok(readings)).boxed()
    }

    fn erase<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Result<(), BusError>> {
        self.streams.erase(&Channel::User(user.clone()));
        std::future::ready(Ok(())).boxed()
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

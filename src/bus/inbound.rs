//! The way of clients' messages to back ends: from any worker into one queue, and from there in
//! batches to a stream.
//!
//! Nobody waits for it. What does not fit into the queue, or meets a broker that is away, is
//! dropped and counted; the connection that sent it goes on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use super::BusError;
use crate::{
    event::{ConnectionId, UserId},
    telemetry::{DropReason, Metrics},
    throttle::Throttle,
};

/// Messages that may wait.
const QUEUE: usize = 4096;
/// Bytes that may wait, beside one message of any length.
const QUEUE_BYTES: u32 = 8 * 1024 * 1024;
/// Messages that go to the broker at once.
const BATCH: usize = 64;
/// And their bytes, beside the last one.
const BATCH_BYTES: usize = 256 * 1024;

/// What a client said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whose connection it is.
    pub user: UserId,
    /// Which.
    pub connection: ConnectionId,
    /// A JSON object, as it came.
    pub message: Bytes,
}

/// The stream that back ends read.
pub trait Inbound: Send + Sync {
    /// Appends all of them in order, or none; resolves within the command timeout.
    ///
    /// # Errors
    /// As any command. [`BusError::Away`]: they may be there all the same.
    fn append<'a>(&'a self, said: &'a [Said]) -> BoxFuture<'a, Result<(), BusError>>;
}

/// The end of the queue that connections hold. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outlet {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    bytes: u32,
}

#[derive(Debug)]
struct Waiting {
    said: Said,
    /// Gives the bytes back once it is written or dropped.
    room: OwnedSemaphorePermit,
}

/// The actor at the other end.
pub struct Pump {
    queue: mpsc::Receiver<Waiting>,
    stream: Arc<dyn Inbound>,
    metrics: Metrics,
    complaints: Throttle,
}

/// A queue for messages of at most `longest` bytes, and who empties it.
#[must_use]
pub fn queue(longest: usize, stream: Arc<dyn Inbound>, metrics: Metrics) -> (Outlet, Pump) {
    let bytes = QUEUE_BYTES.max(u32::try_from(longest).unwrap_or(u32::MAX));
    let (sender, queue) = mpsc::channel(QUEUE);
    let room = Arc::new(Semaphore::new(bytes as usize));
    (
        Outlet { queue: sender, room, bytes },
        Pump { queue, stream, metrics, complaints: Throttle::default() },
    )
}

impl Outlet {
    /// Takes a message, without waiting.
    ///
    /// # Errors
    /// [`DropReason::InboundFull`]: too many wait.
    pub fn send(
        &self,
        user: &UserId,
        connection: ConnectionId,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let full = DropReason::InboundFull;
        let place = self.queue.try_reserve().map_err(|_| full)?;
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| full)?;
        // Copied, since it may be a small part of a large read buffer.
        let said =
            Said { user: user.clone(), connection, message: Bytes::copy_from_slice(message) };
        place.send(Waiting { said, room });
        Ok(())
    }

    /// Waits until nothing waits any more, at most so long.
    pub async fn flushed(&self, within: Duration) {
        if timeout(within, self.room.acquire_many(self.bytes)).await.is_err() {
            tracing::warn!("messages of clients are left behind");
        }
    }
}

impl Pump {
    /// Writes what comes, until every [`Outlet`] is gone.
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let (said, room) = self.batch(first);
            let count = said.len() as u64;
            match self.stream.append(&said).await {
                Ok(()) => self.metrics.forwarded(count),
                Err(error) => {
                    self.metrics.dropped(DropReason::InboundAway, count);
                    if let Some(held_back) = self.complaints.check() {
                        tracing::warn!(%error, count, held_back, "messages of clients are dropped");
                    }
                }
            }
            drop(room);
        }
    }

    /// This one and those that wait already.
    fn batch(&mut self, first: Waiting) -> (Vec<Said>, Vec<OwnedSemaphorePermit>) {
        let mut bytes = first.said.message.len();
        let (mut said, mut room) = (vec![first.said], vec![first.room]);
        while said.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(next) = self.queue.try_recv() else { break };
            bytes += next.said.message.len();
            said.push(next.said);
            room.push(next.room);
        }
        (said, room)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::FutureExt;

    use super::*;

    /// Takes batches one at a time, as the test lets it, or refuses all.
    struct Stream {
        gate: Semaphore,
        away: bool,
        batches: Mutex<Vec<Vec<Said>>>,
    }

    impl Stream {
        fn new(turns: usize, away: bool) -> Arc<Self> {
            Arc::new(Self { gate: Semaphore::new(turns), away, batches: Mutex::default() })
        }

        fn messages(&self) -> Vec<Bytes> {
            let batches = self.batches.lock().unwrap();
            batches.iter().flatten().map(|said| said.message.clone()).collect()
        }
    }

    impl Inbound for Stream {
        fn append<'a>(&'a self, said: &'a [Said]) -> BoxFuture<'a, Result<(), BusError>> {
            async move {
                self.gate.acquire().await.unwrap().forget();
                if self.away {
                    return Err(BusError::Away("on purpose".into()));
                }
                self.batches.lock().unwrap().push(said.to_vec());
                Ok(())
            }
            .boxed()
        }
    }

    fn count(metrics: &Metrics, name: &str) -> u64 {
        let (text, _) = metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn send(outlet: &Outlet, n: usize) -> Result<(), DropReason> {
        let user = UserId::new("alice").unwrap();
        outlet.send(&user, ConnectionId::new(), format!("{{\"n\":{n}}}").as_bytes())
    }

    #[tokio::test]
    async fn in_order_and_in_batches() {
        let (stream, metrics) = (Stream::new(1000, false), Metrics::new(1));
        let (outlet, pump) = queue(1024, stream.clone(), metrics.clone());
        for n in 0..1000 {
            send(&outlet, n).unwrap();
        }
        drop(outlet);
        pump.run().await;
        let expected: Vec<_> = (0..1000).map(|n| Bytes::from(format!("{{\"n\":{n}}}"))).collect();
        assert_eq!(stream.messages(), expected);
        assert_eq!(stream.batches.lock().unwrap().len(), 1000_usize.div_ceil(BATCH));
        assert_eq!(count(&metrics, "belfry_messages_forwarded_total"), 1000);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_the_rest_is_written() {
        let (stream, metrics) = (Stream::new(0, false), Metrics::new(1));
        let (outlet, pump) = queue(1024, stream.clone(), metrics);
        for n in 0..QUEUE {
            send(&outlet, n).unwrap();
        }
        assert_eq!(send(&outlet, QUEUE), Err(DropReason::InboundFull));
        stream.gate.add_permits(1000);
        let pump = tokio::spawn(pump.run());
        outlet.flushed(Duration::from_secs(5)).await;
        assert_eq!(stream.messages().len(), QUEUE);
        send(&outlet, 0).unwrap();
        drop(outlet);
        pump.await.unwrap();
        assert_eq!(stream.messages().len(), QUEUE + 1);
    }

    #[tokio::test]
    async fn bytes_count_too() {
        let (outlet, _pump) = queue(1024, Stream::new(0, false), Metrics::new(1));
        let user = UserId::new("alice").unwrap();
        let long = vec![b' '; 1024 * 1024];
        let sent = (0..100).take_while(|_| outlet.send(&user, ConnectionId::new(), &long).is_ok());
        assert_eq!(sent.count(), 8);
        let (outlet, _pump) = queue(16 << 20, Stream::new(0, false), Metrics::new(1));
        let longest = vec![b' '; 16 << 20];
        outlet.send(&user, ConnectionId::new(), &longest).unwrap();
    }

    #[tokio::test]
    async fn an_outage_drops_and_counts() {
        let (stream, metrics) = (Stream::new(1000, true), Metrics::new(1));
        let (outlet, pump) = queue(1024, stream, metrics.clone());
        for n in 0..10 {
            send(&outlet, n).unwrap();
        }
        drop(outlet);
        pump.run().await;
        let dropped = "belfry_messages_dropped_total{reason=\"inbound_away\"}";
        assert_eq!(count(&metrics, dropped), 10);
        assert_eq!(count(&metrics, "belfry_messages_forwarded_total"), 0);
    }
}

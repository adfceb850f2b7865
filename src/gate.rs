//! Who comes in at what rate: connections per client address, and handshakes per second.
//!
//! It stands before the credential is looked at, so that a refusal costs next to nothing, and a
//! wave of clients that return together waits here and not in the crypto or in Redis.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_http::RequestHead;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use crate::{config::gate::Gate as Settings, rate::Bucket};

mod client;

/// Longest wait in the queue: a browser's user does not wait longer for a page either.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maps that the addresses are spread over, so that workers seldom meet at one lock.
const SHARDS: usize = 32;
/// The part of a second's handshakes that may come at once.
const BURST: u32 = 10;

/// Why someone is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its address has as many connections as it may have.
    Crowded,
    /// More come than are taken a second, and the queue is full.
    Busy,
}

/// The gate. Shared by all workers.
pub struct Gate {
    settings: Settings,
    addresses: Option<(Arc<Addresses>, NonZeroU32)>,
    queue: Option<Queue>,
}

/// The right of one connection to come from its address; dropping it gives it back.
#[derive(Debug, Default)]
pub struct Pass(Option<(Arc<Addresses>, IpAddr)>);

impl Gate {
    /// A gate with these limits.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            addresses: settings.connections_per_address.map(|most| (Arc::default(), most)),
            queue: settings
                .handshakes_per_second
                .map(|rate| Queue::new(rate, settings.handshake_queue)),
            settings,
        }
    }

    /// Lets a request in, after a wait in the queue where many come at once.
    ///
    /// # Errors
    /// See [`Closed`].
    pub async fn enter(&self, head: &RequestHead) -> Result<Pass, Closed> {
        let pass = self.room(head)?;
        if let Some(queue) = &self.queue {
            queue.turn().await?;
        }
        Ok(pass)
    }

    fn room(&self, head: &RequestHead) -> Result<Pass, Closed> {
        let Some((addresses, most)) = &self.addresses else { return Ok(Pass::default()) };
        // A peer without an address is gone, and nothing will come of its request.
        let Some(peer) = head.peer_addr else { return Ok(Pass::default()) };
        let client = client::address(peer.ip(), &head.headers, &self.settings.trusted_proxies);
        Addresses::enter(addresses, group(client), *most).ok_or(Closed::Crowded)
    }
}

/// What counts as one address: a household has an IPv4 address, or an IPv6 network of 64 bits.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Connections by address. An address without any takes no room.
#[derive(Debug, Default)]
struct Addresses {
    shards: [Mutex<HashMap<IpAddr, u32, ahash::RandomState>>; SHARDS],
    hasher: ahash::RandomState,
}

impl Addresses {
    fn enter(this: &Arc<Self>, address: IpAddr, most: NonZeroU32) -> Option<Pass> {
        let mut shard = this.shard(address).lock().unwrap_or_else(PoisonError::into_inner);
        let count = shard.entry(address).or_insert(0);
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        drop(shard);
        Some(Pass(Some((Arc::clone(this), address))))
    }

    fn shard(&self, address: IpAddr) -> &Mutex<HashMap<IpAddr, u32, ahash::RandomState>> {
        let hash = usize::try_from(self.hasher.hash_one(address) % SHARDS as u64);
        &self.shards[hash.unwrap_or(0)]
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some((addresses, address)) = self.0.take() else { return };
        let mut shard = addresses.shard(address).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = shard.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&address);
            }
        }
    }
}

/// Requests take their turns in the order in which they came.
struct Queue {
    bucket: Bucket,
    /// Whose turn it is; tokio's semaphore is fair.
    head: Semaphore,
    waiting: AtomicUsize,
    /// As many as may wait, and as will have their turn in time.
    most: usize,
}

/// One that waits; gone when it stops, for whatever reason.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    fn new(rate: NonZeroU32, queue: usize) -> Self {
        let burst = NonZeroU32::new(rate.get() / BURST).unwrap_or(NonZeroU32::MIN);
        let in_time = usize::try_from(u64::from(rate.get()) * PATIENCE.as_secs());
        Self {
            bucket: Bucket::new(rate, Duration::from_secs(1), burst),
            head: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            most: queue.min(in_time.unwrap_or(usize::MAX)),
        }
    }

    async fn turn(&self) -> Result<(), Closed> {
        let deadline = Instant::now() + PATIENCE;
        if let Ok(_first) = self.head.try_acquire()
            && self.bucket.take(NonZeroU32::MIN).is_ok()
        {
            return Ok(());
        }
        let place = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if place >= self.most {
            return Err(Closed::Busy);
        }
        // The semaphore is never closed.
        let Ok(Ok(_head)) = timeout_at(deadline, self.head.acquire()).await else {
            return Err(Closed::Busy);
        };
        while let Err(wait) = self.bucket.take(NonZeroU32::MIN) {
            if Instant::now() + wait > deadline {
                return Err(Closed::Busy);
            }
            sleep(wait).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

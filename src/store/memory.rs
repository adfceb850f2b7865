//! The memory of one replica, bounded in entries and in bytes.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use super::{
    Claim, Store, replicas, revocations, seats,
    tickets::{MemoryTickets, Tickets},
};
use crate::bus::BusError;

/// How much is remembered. Above it new keys are refused until old ones expire.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Idempotency keys.
    pub keys: usize,
    /// Bytes of keys, fingerprints and answers.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { keys: 100_000, bytes: 64 * 1024 * 1024 }
    }
}

/// Remembers in this process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    bounds: Bounds,
    // Held for a lookup, never across an await.
    state: Mutex<State>,
    tickets: MemoryTickets,
    pub(super) single: replicas::Single,
    pub(super) revocations: revocations::Memory,
    pub(super) seats: seats::Memory,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<String, Entry>,
    bytes: usize,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    fingerprint: String,
    /// `None`: claimed, not settled.
    answer: Option<String>,
    expires: Instant,
}

impl Entry {
    fn bytes(&self, key: &str) -> usize {
        key.len() + self.fingerprint.len() + self.answer.as_ref().map_or(0, String::len)
    }
}

impl State {
    /// Forgets what has expired. It looks at every entry, so at most once a second.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + Duration::from_secs(1)) {
            return;
        }
        self.swept = Some(now);
        let bytes = &mut self.bytes;
        self.entries.retain(|key, entry| {
            let keep = entry.expires > now;
            if !keep {
                *bytes -= entry.bytes(key);
            }
            keep
        });
    }

    fn put(&mut self, key: &str, entry: Entry) {
        self.bytes += entry.bytes(key);
        if let Some(old) = self.entries.insert(key.to_owned(), entry) {
            self.bytes -= old.bytes(key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= old.bytes(key);
        }
    }
}

impl MemoryStore {
    /// Remembers at most this much.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds it panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim_now(
        &self,
        key: &str,
        fingerprint: &str,
        pending: Duration,
    ) -> Result<Claim, BusError> {
        let now = Instant::now();
        let mut state = self.state();
        state.sweep(now);
        if let Some(entry) = state.entries.get(key).filter(|entry| entry.expires > now) {
            return Ok(match &entry.answer {
                Some(answer) => {
                    Claim::Done { fingerprint: entry.fingerprint.clone(), answer: answer.clone() }
                }
                None if entry.fingerprint == fingerprint => Claim::Pending,
                None => {
                    Claim::Done { fingerprint: entry.fingerprint.clone(), answer: String::new() }
                }
            });
        }
        if state.entries.len() >= self.bounds.keys || state.bytes >= self.bounds.bytes {
            return Err(BusError::Refused("too many idempotency keys are remembered".to_owned()));
        }
        let fingerprint = fingerprint.to_owned();
        state.put(key, Entry { fingerprint, answer: None, expires: now + pending });
        Ok(Claim::Fresh)
    }
}

impl Store for MemoryStore {
    fn claim<'a>(
        &'a self,
        key: &'a str,
        fingerprint: &'a str,
        pending: Duration,
    ) -> BoxFuture<'a, Result<Claim, BusError>> {
        async move { self.claim_now(key, fingerprint, pending) }.boxed()
    }

    fn settle<'a>(
        &'a self,
        key: &'a str,
        fingerprint: &'a str,
        answer: &'a str,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let entry = Entry {
                fingerprint: fingerprint.to_owned(),
                answer: Some(answer.to_owned()),
                expires: Instant::now() + keep,
            };
            self.state().put(key, entry);
            Ok(())
        }
        .boxed()
    }

    fn release<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let mut state = self.state();
            if state.entries.get(key).is_some_and(|entry| entry.answer.is_none()) {
                state.remove(key);
            }
            Ok(())
        }
        .boxed()
    }
}

impl Tickets for MemoryStore {
    fn put_ticket<'a>(
        &'a self,
        name: &'a str,
        value: String,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        self.tickets.put_ticket(name, value)
    }

    fn take_ticket<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        self.tickets.take_ticket(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::IDEMPOTENCY_TTL;

    const PENDING: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_full_memory_refuses_until_something_expires() {
        let store = MemoryStore::new(Bounds { keys: 2, bytes: 1_000 });
        for key in ["a", "b"] {
            assert_eq!(store.claim(key, "f", PENDING).await.unwrap(), Claim::Fresh);
        }
        assert!(store.claim("c", "f", PENDING).await.is_err());
        assert_eq!(store.claim("a", "f", PENDING).await.unwrap(), Claim::Pending);
        tokio::time::advance(PENDING).await;
        assert_eq!(store.claim("c", "f", PENDING).await.unwrap(), Claim::Fresh);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_given_back() {
        let store = MemoryStore::new(Bounds { keys: 10, bytes: 100 });
        store.claim("a", "f", PENDING).await.unwrap();
        store.settle("a", "f", &"x".repeat(100), IDEMPOTENCY_TTL).await.unwrap();
        assert!(store.claim("b", "f", PENDING).await.is_err());
        tokio::time::advance(IDEMPOTENCY_TTL).await;
        assert_eq!(store.claim("b", "f", PENDING).await.unwrap(), Claim::Fresh);
        store.release("b").await.unwrap();
        assert_eq!(store.state().bytes, 0);
    }
}

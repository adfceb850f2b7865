//! What is known about the way from this replica back to itself.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// See the module.
#[derive(Debug, Default)]
pub struct Health(Mutex<Proof>);

#[derive(Debug, Default)]
struct Proof {
    /// It has been proved at least once.
    ever: bool,
    /// When it began to fail; `None` while it holds.
    failing: Option<Instant>,
    /// It holds now.
    holds: bool,
    /// What is wrong, for `/readyz`.
    why: Option<String>,
}

impl Health {
    /// Whether what is published reaches this replica, as far as it knows: new connections are
    /// taken only then.
    #[must_use]
    pub fn delivers(&self) -> bool {
        self.lock().holds
    }

    /// Whether the replica may count as ready: proved once, and not failing for `grace`.
    #[must_use]
    pub fn ready(&self, grace: Duration) -> bool {
        let proof = self.lock();
        proof.ever && proof.failing.is_none_or(|since| since.elapsed() < grace)
    }

    /// What is wrong, in words for an operator.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    pub(super) fn proved(&self) {
        *self.lock() = Proof { ever: true, failing: None, holds: true, why: None };
    }

    pub(super) fn failed(&self, why: &str) {
        let mut proof = self.lock();
        proof.holds = false;
        proof.failing.get_or_insert_with(Instant::now);
        proof.why = Some(why.to_owned());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Proof> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

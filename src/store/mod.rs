//! What replicas remember together, beside the events: what was done once, [`tickets`],
//! [`revocations`], the [`seats`] of users, and which [`replicas`] are alive. The [`sessions`] of a
//! back end are only read, possibly from another Redis.
//!
//! One trait, in memory and on Redis, and one suite of tests for both.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::bus::BusError;

pub mod memory;
pub mod redis;
pub mod replicas;
pub mod revocations;
pub mod seats;
pub mod sessions;
pub mod tickets;

use tickets::Tickets;

/// How long a publisher may repeat a request and have it done once (contract §5).
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(300);

/// What is known of an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has used it: it is ours until [`Store::settle`] or [`Store::release`].
    Fresh,
    /// Somebody is publishing under it right now.
    Pending,
    /// It was used before: for the request of this fingerprint, with this answer.
    Done {
        /// What [`Store::claim`] was given the first time.
        fingerprint: String,
        /// What [`Store::settle`] was given.
        answer: String,
    },
}

/// Shared memory of the replicas. Every method resolves within the command timeout.
pub trait Store:
    replicas::Replicas + revocations::Revocations + seats::SeatBook + Tickets + Send + Sync
{
    /// Claims `key` for a request with this fingerprint. A claim that is neither settled nor
    /// released ends by itself after `pending` (the claimant died).
    ///
    /// A [`Claim::Pending`] key with another fingerprint is reported as [`Claim::Done`] with that
    /// fingerprint and an empty answer, so that the caller can refuse it at once.
    fn claim<'a>(
        &'a self,
        key: &'a str,
        fingerprint: &'a str,
        pending: Duration,
    ) -> BoxFuture<'a, Result<Claim, BusError>>;

    /// Records the answer of a claimed key, for `keep` from now.
    fn settle<'a>(
        &'a self,
        key: &'a str,
        fingerprint: &'a str,
        answer: &'a str,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// Gives a claimed key back, since nothing was published under it.
    fn release<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), BusError>>;
}

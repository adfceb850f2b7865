//! Events that back ends write to a stream instead of sending requests.
//!
//! One replica at a time reads the stream, under a lease, so that events leave it in the order in
//! which they came. It goes on where the last one stopped: entries are taken in the name of all
//! replicas, and are gone only when they are done. What was published by a replica that died before
//! it could say so is published again under the same key, and the bus does it once.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BusError, Post};
use crate::telemetry::Target;

mod reader;

pub(in crate::bus) use reader::LEASE;
pub use reader::Reader;

/// Entries that are taken at once.
pub const PAGE: usize = 64;

/// An entry of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// Names and values; anything may be in them. Empty: it was trimmed away before it was
    /// published.
    pub fields: Vec<(Bytes, Bytes)>,
}

/// What an entry asks for.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it is addressed to.
    pub target: Target,
    /// One for each channel, each done once.
    pub posts: Vec<Post>,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Entries that are still there.
    pub entries: u64,
    /// Entries that were dropped now, since there were too many.
    pub trimmed: u64,
}

/// The stream, and the lease on it. Every method resolves within the command timeout; only
/// [`next`](Self::next) may wait for something to come, for less than that.
pub trait Ingest: Send + Sync {
    /// Takes the lease for the time of a lease (5 s) more, if no other replica has it.
    ///
    /// # Errors
    /// As any command.
    fn hold(&self) -> BoxFuture<'_, Result<bool, BusError>>;

    /// Gives it back.
    ///
    /// # Errors
    /// As any command.
    fn release(&self) -> BoxFuture<'_, Result<(), BusError>>;

    /// The oldest [`PAGE`] entries that were taken and are not done.
    ///
    /// # Errors
    /// As any command.
    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<Entry>, BusError>>;

    /// The next [`PAGE`] entries that nobody has taken; none if none came for a while.
    ///
    /// # Errors
    /// As any command. Some may have been taken all the same, and are unfinished.
    fn next(&self) -> BoxFuture<'_, Result<Vec<Entry>, BusError>>;

    /// These entries are done, and can go.
    ///
    /// # Errors
    /// As any command.
    fn done(&self, ids: Vec<String>) -> BoxFuture<'_, Result<(), BusError>>;

    /// Drops the oldest of too many.
    ///
    /// # Errors
    /// As any command.
    fn trim(&self) -> BoxFuture<'_, Result<Backlog, BusError>>;
}

#[cfg(test)]
mod tests;

//! Which replicas are alive: each holds a lease that it renews.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};

use crate::bus::BusError;

/// A replica that has not renewed its lease for this long counts as gone.
pub const LEASE: Duration = Duration::from_secs(12);

/// The replicas at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Names of those that are alive.
    pub live: Vec<String>,
    /// When that was, in milliseconds of the store's own clock; 0: never.
    pub at: u64,
    /// The one who asked was not among them before: its lease had ended, or the store has
    /// forgotten everything, and what it had entered there with it.
    pub fresh: bool,
}

/// The name of a replica, and what it has left word of.
pub type Word = (String, Option<String>);

/// Leases of replicas. Every method resolves within the command timeout.
pub trait Replicas: Send + Sync {
    /// Renews the lease of this replica for [`LEASE`]; who is alive now.
    fn beat<'a>(&'a self, replica: &'a str) -> BoxFuture<'a, Result<Fleet, BusError>>;

    /// Who is alive.
    fn live(&self) -> BoxFuture<'_, Result<Vec<String>, BusError>>;

    /// Leaves word of how this replica does, until its lease ends.
    fn report<'a>(
        &'a self,
        replica: &'a str,
        report: String,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// Who is alive, and what they last left word of.
    fn reports(&self) -> BoxFuture<'_, Result<Vec<Word>, BusError>>;

    /// Ends the lease of a replica that stops.
    fn leave<'a>(&'a self, replica: &'a str) -> BoxFuture<'a, Result<(), BusError>>;
}

/// The one replica there is in memory.
#[derive(Debug, Default)]
pub struct Single(Mutex<Option<String>>);

impl Single {
    /// Sees to its lease.
    pub(super) fn beat(&self, replica: &str) -> Fleet {
        let mut name = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = name.replace(replica.to_owned()).is_none();
        Fleet { live: vec![replica.to_owned()], at: 1, fresh }
    }
}

impl Replicas for super::memory::MemoryStore {
    fn beat<'a>(&'a self, replica: &'a str) -> BoxFuture<'a, Result<Fleet, BusError>> {
        std::future::ready(Ok(self.single.beat(replica))).boxed()
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<String>, BusError>> {
        let name = self.single.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        std::future::ready(Ok(name.into_iter().collect())).boxed()
    }

    fn report<'a>(
        &'a self,
        _replica: &'a str,
        _report: String,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        // Whoever asks is the one replica there is, and knows.
        std::future::ready(Ok(())).boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<Word>, BusError>> {
        let live = self.live();
        async move { Ok(live.await?.into_iter().map(|name| (name, None)).collect()) }.boxed()
    }

    fn leave<'a>(&'a self, _replica: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        *self.single.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        std::future::ready(Ok(())).boxed()
    }
}

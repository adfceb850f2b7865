//! The road between replicas: publish on one, receive on all.
//!
//! Two seams, each with an implementation in memory (one replica) and one on Redis, and one suite
//! of tests for both:
//! - [`Publisher`] puts a message on a channel;
//! - [`Feed`] is the one subscription of a replica, read by the [`subscriber`] actor.
//!
//! Everything published comes back through the feed, also what this replica published itself:
//! there is one road, and so one behaviour.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::event::Channel;

pub mod control;
pub mod envelope;
pub mod memory;
pub mod orders;
pub mod redis;
pub mod subscriber;
#[cfg(test)]
mod suite;

/// One message for one channel.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it goes.
    pub to: Destination,
    /// A JSON object, ready for the channel (see [`envelope`]).
    pub payload: Bytes,
}

/// A channel that Belfry itself reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Events for browsers.
    Events(Channel),
    /// Words between replicas: probes, orders and their acknowledgements.
    Control,
    /// A channel beside those of users (`…user:` + a name no user can have), to prove that what
    /// is published for users comes back.
    UserProbe,
    /// The same for groups.
    GroupProbe,
}

/// Why a message was not published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BusError {
    /// The broker cannot be reached, did not answer in time, or too many publishes are waiting
    /// for it. Whether the message was published cannot be known.
    #[error("the message broker is away: {0}")]
    Away(String),
    /// The broker answered, with a refusal (no right, read-only, full).
    #[error("the message broker refused: {0}")]
    Refused(String),
}

/// A request that is to be done once.
#[derive(Clone, Debug)]
pub struct Once {
    /// What it goes by; remembered for [`store::IDEMPOTENCY_TTL`](crate::store::IDEMPOTENCY_TTL).
    pub key: String,
    /// What tells it from another request under the same key; without spaces.
    pub fingerprint: String,
    /// What its caller is answered, now and whenever it is repeated.
    pub answer: String,
}

/// What became of a request that is to be done once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It was published.
    Now,
    /// It had been published before, with this answer; nothing was done.
    Before(String),
    /// The key belongs to another request; nothing was done.
    Conflict,
}

/// Puts messages on the bus. Cheap to share; every method may be called from any thread.
pub trait Publisher: control::Control + Send + Sync {
    /// Publishes all of `messages`, in order for messages of one channel; resolves within the
    /// configured command timeout whatever the broker does.
    ///
    /// # Errors
    /// The first failure. Others of the same call may have been published.
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>>;

    /// Publishes under a key that was not used before, and remembers that it was, in one step: a
    /// caller who could not know the outcome repeats the call and has it done once.
    ///
    /// # Errors
    /// As [`publish`](Self::publish); whether it was published and remembered cannot be known, but
    /// both were or neither.
    fn publish_once(
        &self,
        messages: Vec<Message>,
        once: Once,
    ) -> BoxFuture<'_, Result<Published, BusError>>;

    /// The same for the subscriber's own probes: tried even while the bus counts as down, since
    /// it is the probe that finds out that it is up again.
    fn probe(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>>;

    /// Whether publishing is tried at all. While it is not, [`publish`](Self::publish) refuses at
    /// once, and new connections had better be refused too: they would hear nothing.
    fn is_up(&self) -> bool;
}

/// What a feed yields.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// A message on one of the channels that Belfry reads. The payload may share memory with a
    /// large read buffer: copy what is kept.
    Message {
        /// Where it was published.
        from: Destination,
        /// As it came; anything may be in it.
        payload: Bytes,
    },
    /// A message on a name that matches the patterns but names no legal user or group.
    Unaddressed,
    /// The subscription stands (again); whether it delivers is for the probe to prove.
    Subscribed {
        /// Not the first time: what was published since the last message may be lost.
        again: bool,
    },
    /// The subscription is gone; the feed goes on trying by itself.
    Lost(String),
    /// Messages were dropped on the way here.
    Lagged(u64),
}

/// The one subscription of this replica, owned by the [`subscriber`] actor.
pub trait Feed: Send {
    /// The next thing that happened. Cancel safe: dropping the future loses nothing.
    /// `None`: the bus has shut down.
    fn next(&mut self) -> BoxFuture<'_, Option<Incoming>>;

    /// Drops the connection and makes a new one: the subscription proved deaf.
    fn restart(&mut self) -> BoxFuture<'_, ()>;
}

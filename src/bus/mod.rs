//! The road between replicas: publish on one, receive on all.
//!
//! Three seams, each with an implementation in memory (one replica) and one on Redis, and one suite
//! of tests for both:
//! - [`Publisher`] keeps an event and puts it on its channel;
//! - [`History`] reads what is kept;
//! - [`Feed`] is the one subscription of a replica, read by the [`subscriber`] actor.
//!
//! Everything published comes back through the feed, also what this replica published itself:
//! there is one road, and so one behaviour.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{
    event::{Channel, Position, UserId},
    history::Reading,
};

pub mod control;
pub mod envelope;
pub mod inbound;
pub mod ingest;
pub mod memory;
pub mod orders;
mod receipt;
pub mod redis;
pub mod replays;
pub mod subscriber;
#[cfg(test)]
mod suite;
mod wave;

pub use receipt::Receipt;
pub use wave::Wave;

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

/// An event to be published on one channel.
#[derive(Clone, Debug)]
pub struct Post {
    /// Where it goes.
    pub to: Channel,
    /// What it says.
    pub event: envelope::Parts,
    /// Whether it is kept.
    pub keep: Keep,
    /// Done once under this key.
    pub once: Option<Once>,
    /// The names of the replicas that are alive, if it is asked whether the user is online; an
    /// empty list: it is not known which are, and every connection counts.
    pub online: Option<Arc<[String]>>,
}

/// Whether an event is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// No: it is for those who are connected now.
    Transient,
    /// As long as its channel keeps events.
    Kept,
    /// The same, and not replayed after this time.
    For(Duration),
}

/// A request that is to be done once.
#[derive(Clone, Debug)]
pub struct Once {
    /// What it goes by; remembered for [`store::IDEMPOTENCY_TTL`](crate::store::IDEMPOTENCY_TTL).
    pub key: String,
    /// What tells it from another request under the same key; without spaces.
    pub fingerprint: String,
    /// It goes to a list of users.
    pub each: bool,
}

impl Once {
    /// The part of the request that goes to this channel: a list of users is one request, and done
    /// once for each.
    #[must_use]
    pub fn of(&self, to: &Channel) -> Self {
        match to {
            Channel::User(user) if self.each => {
                Self { key: format!("{}:{}", self.key, user.as_str()), ..self.clone() }
            }
            _ => self.clone(),
        }
    }
}

/// What became of a [`Post`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It was kept and published, now or when it was asked for first.
    Done(Receipt),
    /// The key belongs to another request; nothing was done.
    Conflict,
}

/// A question about what a channel keeps.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which.
    pub channel: Channel,
    /// What comes after this place. `None`: nothing, only the channel's last id is asked for.
    pub after: Option<Position>,
    /// At most so many events.
    pub most: usize,
}

/// Events that one reading brings at most: a page.
pub const PAGE: usize = 64;

/// What is kept of channels. Every method resolves within the command timeout.
pub trait History: Send + Sync {
    /// Whether anything is kept at all (`history.events` is not 0).
    fn keeps(&self) -> bool;

    /// Reads, all in one round trip; the answers stand in the order of the questions.
    ///
    /// # Errors
    /// The first failure.
    fn read(&self, asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>>;

    /// The same for a connection that begins. Many begin together, and few of their channels have
    /// anything after the place that is asked for.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn begin(&self, asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>> {
        self.read(asks)
    }

    /// Drops what is kept for a user. The last id stays, so that whoever has not seen it is told.
    ///
    /// # Errors
    /// As any command.
    fn erase<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Result<(), BusError>>;
}

/// Puts messages on the bus. Cheap to share; every method may be called from any thread.
pub trait Publisher: control::Control + Send + Sync {
    /// Publishes all of `messages`, in order for messages of one channel; resolves within the
    /// configured command timeout whatever the broker does.
    ///
    /// # Errors
    /// The first failure. Others of the same call may have been published.
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>>;

    /// Keeps and publishes events, each in one step: it is kept and published, or neither. In
    /// order for events of one channel. The answers stand in the order of the posts, and each
    /// stands for itself.
    ///
    /// An error is [`BusError::Refused`] where nothing was done, and [`BusError::Away`] where it
    /// cannot be known; repeated under the same key it is done once.
    fn post(&self, posts: Vec<Post>) -> BoxFuture<'_, Vec<Result<Posted, BusError>>>;

    /// The same for the subscriber's own probes: tried even while the bus counts as down, since
    /// it is the probe that finds out that it is up again.
    fn probe(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>>;

    /// Whether publishing is tried at all. While it is not, [`publish`](Self::publish) refuses at
    /// once, and new connections had better be refused too: they would hear nothing.
    fn is_up(&self) -> bool;

    /// What an operator should change about the broker, though it works.
    fn warning(&self) -> Option<String> {
        None
    }
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

//! The bus on Redis pub/sub. With [`store::redis`](crate::store::redis) the only place that knows
//! fred.
//!
//! Two connections: one for commands ([`commands`]), shared by the publisher and the store, and
//! one for the subscription ([`feed`]), so that a flood of messages does not hold up a publish.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::config;

pub(crate) mod commands;
mod control;
mod feed;
mod link;
mod names;
mod publisher;
mod quiet;

pub use feed::RedisFeed;
pub use publisher::RedisPublisher;

use commands::Commands;
use link::LinkSettings;
use names::Names;

/// `redis.url` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("redis.url: {0}")]
pub struct ConnectError(String);

/// Whether a connection does its work. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Up(Arc<AtomicBool>);

impl Up {
    /// At this moment.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, up: bool) {
        self.0.store(up, Ordering::Release);
    }

    /// Goes down; whether it was up.
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// Both seams to one Redis.
#[derive(Debug)]
pub struct Redis {
    /// For whoever publishes.
    pub publisher: RedisPublisher,
    /// For the subscriber actor.
    pub feed: RedisFeed,
    /// The publisher's connection, which a store may share.
    pub(crate) commands: Arc<Commands>,
    /// Whether the feed's subscription stands. The publisher's is
    /// [`Publisher::is_up`](super::Publisher::is_up).
    pub subscribed: Up,
}

/// Begins to connect, in the background and for ever: Redis may come later, and may go. Runs on
/// the tokio runtime it is called in; everything ends when the parts are dropped.
///
/// # Errors
/// The address is malformed. A Redis that is away is no error.
pub fn connect(settings: &config::Redis) -> Result<Redis, ConnectError> {
    let links = Arc::new(LinkSettings::new(settings)?);
    let names = Arc::new(Names::new(&settings.prefix));
    let commands =
        Arc::new(Commands::start(Arc::clone(&links), settings.inflight, &settings.prefix));
    let subscribed = Up::default();
    Ok(Redis {
        feed: RedisFeed::start(links, Arc::clone(&names), subscribed.clone()),
        publisher: RedisPublisher { commands: Arc::clone(&commands), names },
        commands,
        subscribed,
    })
}

//! The bus on Redis pub/sub. With [`store::redis`](crate::store::redis) the only place that knows
//! fred.
//!
//! Two connections: one for commands ([`commands`]), shared by the publisher and the store, and
//! one for the subscription ([`feed`]), so that a flood of messages does not hold up a publish.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::{config, history::Bounds};

mod calls;
pub(crate) mod commands;
mod control;
mod desk;
mod feed;
mod foreign;
mod glance;
mod history;
mod inbound;
mod ingest;
mod joiner;
mod keys;
mod link;
mod names;
mod pipeline;
mod publisher;
mod pulse;
mod quiet;
mod recent;
mod said;
mod scripts;
mod setup;
mod slots;

pub(crate) use desk::Desk;
pub use feed::RedisFeed;
pub use inbound::RedisInbound;
pub use ingest::RedisIngest;
pub(crate) use keys::Removals;
#[cfg(test)]
pub(crate) use names::COMMANDS;
pub(crate) use names::Names;
pub use publisher::RedisPublisher;
pub(crate) use scripts::{Call, Script, eval};

use calls::Calls;
use commands::{Check, Commands};
use glance::Glancer;
use joiner::Joiner;
use link::{LinkSettings, Role};
use recent::Recent;
use scripts::Scripts;
use setup::{Server, Setup};

/// The address of a Redis cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(String);

/// Which connection does its work, by its number; 0 while none does. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Up(Arc<AtomicU64>);

impl Up {
    /// Whether one does, at this moment.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    fn set(&self, number: Option<u64>) {
        self.0.store(number.unwrap_or(0), Ordering::Release);
    }

    /// Goes down if it is this connection that is up: a late failure of an old one must not take
    /// the new one's place away.
    fn take(&self, number: u64) -> bool {
        self.0.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
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
    /// How keys are called, for a store.
    pub(crate) names: Arc<Names>,
    /// Whether the feed's subscription stands. The publisher's is
    /// [`Publisher::is_up`](super::Publisher::is_up).
    pub subscribed: Up,
    /// What further connections are made from.
    links: Arc<LinkSettings>,
}

/// Begins to connect, in the background and for ever: Redis may come later, and may go. Runs on
/// the tokio runtime it is called in; everything ends when the parts are dropped.
///
/// # Errors
/// The address is malformed. A Redis that is away is no error.
pub fn connect(settings: &config::Redis, bounds: Bounds) -> Result<Redis, ConnectError> {
    let links = LinkSettings::new(settings)?;
    let cluster = links.is_cluster();
    if cluster && has_open_brace(&settings.prefix) {
        let why = "the prefix has an open brace, by which a cluster cannot tell slots";
        return Err(ConnectError(why.to_owned()));
    }
    let names = Arc::new(Names::new(&settings.prefix, cluster));
    let calls = Arc::new(Calls { names: Arc::clone(&names), bounds });
    let scripts = Arc::new(Scripts::default());
    let recent = Arc::new(Recent::default());
    let server = Arc::new(Server::default());
    let setup = Setup {
        calls: Arc::clone(&calls),
        scripts: Arc::clone(&scripts),
        recent: Arc::clone(&recent),
        server: Arc::clone(&server),
    };
    let check = Check::Write(names.key("probe"), Some(setup));
    let commands = Commands::start(Arc::clone(&links), settings.inflight, Role::Publisher, check);
    let commands = Arc::new(commands);
    // Each job holds a place of those under way, as long as somebody waits for it.
    let (jobs, waiting) = mpsc::channel(settings.inflight.max(1));
    let joiner = Joiner {
        commands: Arc::clone(&commands),
        calls: Arc::clone(&calls),
        scripts: Arc::clone(&scripts),
        recent: Arc::clone(&recent),
        server: Arc::clone(&server),
    };
    tokio::spawn(joiner.run(waiting));
    let subscribed = Up::default();
    let glancer = Glancer {
        commands: Arc::clone(&commands),
        calls: Arc::clone(&calls),
        scripts: Arc::clone(&scripts),
    };
    Ok(Redis {
        feed: RedisFeed::start(Arc::clone(&links), Arc::clone(&names), subscribed.clone()),
        publisher: RedisPublisher {
            commands: Arc::clone(&commands),
            calls,
            scripts,
            jobs,
            recent,
            server,
            glances: glancer.open(),
        },
        commands,
        names,
        subscribed,
        links,
    })
}

/// Whether a brace in it would swallow the one that follows the prefix.
fn has_open_brace(prefix: &str) -> bool {
    prefix.split_once('{').is_some_and(|(_, rest)| !rest.contains('}') || rest.starts_with('}'))
}

/// A Redis from which others' keys are read.
pub(crate) struct Reading {
    /// For looking at them.
    pub(crate) commands: Commands,
    /// For hearing of those that go.
    pub(crate) removals: Removals,
}

/// Begins to connect like [`connect`], to read keys that begin with `prefix`.
///
/// # Errors
/// As [`connect`].
pub(crate) fn read(settings: &config::Redis, prefix: &str) -> Result<Reading, ConnectError> {
    let links = LinkSettings::new(settings)?;
    let role = Role::Sessions;
    Ok(Reading {
        commands: Commands::start(Arc::clone(&links), settings.inflight, role, Check::Answer),
        removals: Removals::start(links, prefix),
    })
}

//! [`Ingest`] on Redis: a stream, and a consumer group in which all replicas go by one name.

use std::{sync::Arc, time::Duration};

use fred::{
    clients::{Client, WithOptions},
    interfaces::{ClientLike, LuaInterface},
    types::{CustomCommand, FromValue, Value},
    util::redis_keyslot,
};
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    Redis,
    commands::{Check, Commands},
    link::Role,
};
use crate::bus::{
    BusError,
    ingest::{Backlog, Entry, Ingest, LEASE, PAGE},
};

/// The group, and the one consumer in it: the lease says which replica that is.
const GROUP: &str = "belfry";
const CONSUMER: &str = "replicas";

const HOLD: &str = "local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end";

/// From the first entry on, so that what was written before any replica came is published too.
const CREATE: &str =
    "local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end";

const DONE: &str = "local group = table.remove(ARGV, 1)
redis.call('XACK', KEYS[1], group, unpack(ARGV))
redis.call('XDEL', KEYS[1], unpack(ARGV))";

const TRIM: &str =
    "return {redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1]), redis.call('XLEN', KEYS[1])}";

/// The stream `publish`, and its owner's lease beside it.
#[derive(Debug)]
pub struct RedisIngest {
    /// Those of the publisher.
    commands: Arc<Commands>,
    /// A connection of its own, on which nothing else has to wait.
    reads: Commands,
    key: String,
    lease: String,
    replica: String,
    max_messages: usize,
    /// How long a read waits for something to come.
    wait: Duration,
}

impl Redis {
    /// The stream under this prefix, of which so many entries are kept at most, for the replica of
    /// this name. Opens a connection of its own.
    #[must_use]
    pub fn ingest(&self, prefix: &str, max_messages: usize, replica: &str) -> RedisIngest {
        let links = Arc::clone(&self.links);
        let wait = links.command_timeout / 2;
        let check = Check::Write(format!("{prefix}probe"), None);
        RedisIngest {
            commands: Arc::clone(&self.commands),
            reads: Commands::start(links, 1, Role::PublishStream, check),
            key: format!("{prefix}publish"),
            lease: format!("{prefix}publish:owner"),
            replica: replica.to_owned(),
            max_messages,
            wait,
        }
    }
}

impl RedisIngest {
    async fn eval<T: FromValue>(
        &self,
        script: &'static str,
        key: &str,
        arguments: Vec<String>,
    ) -> Result<T, BusError> {
        let key = key.to_owned();
        let turn = self.commands.turn(1).await?;
        turn.run(|client| async move { client.eval(script, key, arguments).await }).await
    }

    /// `XREADGROUP` from this id. The first read of all, and one after Redis has lost everything,
    /// makes the group.
    async fn read(&self, from: &'static str) -> Result<Vec<Entry>, BusError> {
        match self.try_read(from).await {
            Err(BusError::Refused(reason)) if reason.starts_with("NOGROUP") => {
                self.eval::<()>(CREATE, &self.key, vec![GROUP.to_owned()]).await?;
                self.try_read(from).await
            }
            read => read,
        }
    }

    async fn try_read(&self, from: &'static str) -> Result<Vec<Entry>, BusError> {
        let wait = self.wait.as_millis().max(1).to_string();
        let page = PAGE.to_string();
        let words = ["GROUP", GROUP, CONSUMER, "COUNT", &page, "BLOCK", &wait, "STREAMS"];
        let words: Vec<String> =
            words.into_iter().chain([self.key.as_str(), from]).map(str::to_owned).collect();
        let slot = redis_keyslot(self.key.as_bytes());
        let command = CustomCommand::new_static("XREADGROUP", slot, true);
        let turn = self.reads.turn(1).await?;
        let answer: Value = turn
            .run(|client: WithOptions<Client>| async move { client.custom(command, words).await })
            .await?;
        Ok(entries(answer))
    }
}

impl Ingest for RedisIngest {
    fn hold(&self) -> BoxFuture<'_, Result<bool, BusError>> {
        async move {
            let lease = LEASE.as_millis().to_string();
            let held: i64 = self.eval(HOLD, &self.lease, vec![self.replica.clone(), lease]).await?;
            Ok(held == 1)
        }
        .boxed()
    }

    fn release(&self) -> BoxFuture<'_, Result<(), BusError>> {
        self.eval(RELEASE, &self.lease, vec![self.replica.clone()]).boxed()
    }

    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<Entry>, BusError>> {
        self.read("0").boxed()
    }

    fn next(&self) -> BoxFuture<'_, Result<Vec<Entry>, BusError>> {
        self.read(">").boxed()
    }

    fn done(&self, ids: Vec<String>) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            if ids.is_empty() {
                return Ok(());
            }
            let arguments = std::iter::once(GROUP.to_owned()).chain(ids).collect();
            self.eval(DONE, &self.key, arguments).await
        }
        .boxed()
    }

    fn trim(&self) -> BoxFuture<'_, Result<Backlog, BusError>> {
        async move {
            let most = self.max_messages.to_string();
            let (trimmed, entries) = self.eval(TRIM, &self.key, vec![most]).await?;
            Ok(Backlog { entries, trimmed })
        }
        .boxed()
    }
}

/// Reads the answer: streams, of which there is one, with entries. A map in RESP3, and nothing
/// where nothing came.
fn entries(answer: Value) -> Vec<Entry> {
    let streams = match answer {
        Value::Map(streams) => streams.inner().into_values().collect(),
        _ => Vec::new(),
    };
    streams.into_iter().flat_map(Value::into_array).filter_map(entry).collect()
}

/// An id, and names and values in turn; no list of them for an entry that was trimmed away.
fn entry(value: Value) -> Option<Entry> {
    let mut parts = value.into_array().into_iter();
    let id = parts.next()?.into_string()?;
    let mut fields = Vec::new();
    if let Some(values @ Value::Array(_)) = parts.next() {
        let mut values = values.into_array().into_iter().filter_map(Value::into_bytes);
        while let (Some(name), Some(value)) = (values.next(), values.next()) {
            fields.push((name, value));
        }
    }
    Some(Entry { id, fields })
}

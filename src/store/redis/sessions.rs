//! Sessions on Redis, of the back end's making: strings or hashes under a prefix.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use fred::{
    interfaces::{HashesInterface, KeysInterface},
    types::Value,
};
use futures_util::future::{BoxFuture, FutureExt};

use crate::{
    bus::{
        BusError,
        redis::{self, ConnectError, Removals, commands::Commands},
    },
    config::{self, SessionFormat},
    event::SessionKey,
    store::sessions::{Endings, Held, Sessions},
};

/// Endings that are handed on at once.
const BATCH: usize = 1_024;

/// Reads sessions from Redis.
#[derive(Debug)]
pub struct RedisSessions {
    commands: Commands,
    prefix: String,
    format: SessionFormat,
    /// What is asked of a hash.
    fields: Vec<String>,
    /// With [`SessionFormat::Auto`]: hashes were found last, so they are tried first.
    hashes: AtomicBool,
}

/// Hears of sessions that go.
#[derive(Debug)]
pub struct RedisEndings(Removals);

/// Begins to connect to the sessions' Redis, in the background and for ever. `fields` are the
/// names of the fields of a hash that matter.
///
/// # Errors
/// The address is malformed. A Redis that is away is no error.
pub fn connect(
    redis: &config::Redis,
    session: &config::Session,
    fields: Vec<String>,
) -> Result<(RedisSessions, RedisEndings), ConnectError> {
    let reading = redis::read(redis, &session.key_prefix)?;
    let sessions = RedisSessions {
        commands: reading.commands,
        prefix: session.key_prefix.clone(),
        format: session.format,
        fields,
        hashes: AtomicBool::new(false),
    };
    Ok((sessions, RedisEndings(reading.removals)))
}

impl RedisSessions {
    /// `None` where the key holds another type.
    async fn read(&self, key: &str, hash: bool) -> Result<Option<Option<Held>>, BusError> {
        let turn = self.commands.turn(1).await?;
        let key = key.to_owned();
        let answer: Result<Value, BusError> = if hash {
            let fields = self.fields.clone();
            turn.run(|client| async move { client.hmget(key, fields).await }).await
        } else {
            turn.run(|client| async move { client.get(key).await }).await
        };
        match answer {
            Ok(Value::Array(values)) if hash => Ok(Some(self.fields(values))),
            Ok(value) if hash => Ok(Some(self.fields(vec![value]))),
            Ok(Value::Null) => Ok(Some(None)),
            Ok(value) => {
                let text = value.into_bytes().map(|bytes| Held::Text(bytes.to_vec()));
                Ok(Some(Some(text.unwrap_or(Held::Other))))
            }
            Err(BusError::Refused(reason)) if reason.starts_with("WRONGTYPE") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A key that is not there and a hash without any of the fields look the same here, and are
    /// the same to us.
    fn fields(&self, values: Vec<Value>) -> Option<Held> {
        let mut found = HashMap::new();
        for (name, value) in self.fields.iter().zip(values) {
            if value.is_null() {
                continue;
            }
            let Some(text) = value.into_string() else { return Some(Held::Other) };
            found.insert(name.clone(), text);
        }
        (!found.is_empty()).then_some(Held::Fields(found))
    }
}

impl Sessions for RedisSessions {
    fn look_up<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Held>, BusError>> {
        async move {
            let key = format!("{}{id}", self.prefix);
            let hash = match self.format {
                SessionFormat::Json => false,
                SessionFormat::Hash => true,
                SessionFormat::Auto => self.hashes.load(Ordering::Relaxed),
            };
            if let Some(held) = self.read(&key, hash).await? {
                return Ok(held);
            }
            if self.format != SessionFormat::Auto {
                return Ok(Some(Held::Other));
            }
            let held = self.read(&key, !hash).await?;
            if held.is_some() {
                self.hashes.store(!hash, Ordering::Relaxed);
            }
            Ok(held.unwrap_or(Some(Held::Other)))
        }
        .boxed()
    }
}

impl Endings for RedisEndings {
    fn next(&mut self) -> BoxFuture<'_, Option<Vec<SessionKey>>> {
        async move {
            let mut ended = vec![SessionKey::of(&self.0.next().await?)];
            while ended.len() < BATCH
                && let Some(id) = self.0.ready()
            {
                ended.push(SessionKey::of(&id));
            }
            Some(ended)
        }
        .boxed()
    }
}

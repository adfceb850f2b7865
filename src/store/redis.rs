//! The memory that replicas share, on Redis: keys under the prefix, each with an end of its own.

use std::{sync::Arc, time::Duration};

use fred::interfaces::KeysInterface;
use fred::types::{Expiration, FromValue, Value};
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    Claim, Store,
    seats::{Taken, Wish},
};
use crate::bus::{
    BusError,
    redis::{Desk, Names, commands::Commands, eval},
};

mod replicas;
mod revocations;
mod seats;
pub mod sessions;
mod tickets;

use seats::Clerk;

/// What the key holds, or nothing after having set it. `SET … NX GET` says the same, but only
/// from Redis 7 on.
const CLAIM: &str = "local held = redis.call('GET', KEYS[1])
if held then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false";

/// Only a claim is given back, never an answer.
const RELEASE: &str = "local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, 1) == 'p' then redis.call('DEL', KEYS[1]) end
return false";

/// Remembers in Redis.
#[derive(Clone, Debug)]
pub struct RedisStore {
    commands: Arc<Commands>,
    names: Arc<Names>,
    /// Of idempotency keys.
    prefix: String,
    tickets: String,
    clerk: Arc<Clerk>,
    /// Where handshakes leave their wishes for the clerk.
    wishes: Desk<Wish, Taken>,
}

impl RedisStore {
    /// A store that shares the bus's connection and its way to call keys. Its part that runs by
    /// itself does so on the tokio runtime it is called in, as long as there is a clone.
    #[must_use]
    pub(crate) fn new(commands: Arc<Commands>, names: Arc<Names>) -> Self {
        let (prefix, tickets) = (names.key("idempotency:"), names.key("ticket:"));
        let clerk = Arc::new(Clerk::new(Arc::clone(&commands), Arc::clone(&names)));
        let asked = Arc::clone(&clerk);
        let wishes = Desk::open(move |wishes: Vec<Wish>| {
            let clerk = Arc::clone(&asked);
            async move { clerk.take(&wishes).await }
        });
        Self { commands, names, prefix, tickets, clerk, wishes }
    }

    /// The key of this name.
    fn key(&self, name: &str) -> String {
        self.names.key(name)
    }

    /// Runs a script on one key.
    async fn script<T: FromValue>(
        &self,
        script: &'static str,
        key: String,
        arguments: Vec<String>,
    ) -> Result<T, BusError> {
        let turn = self.commands.turn(1).await?;
        let arguments = arguments.into_iter().map(Into::into).collect();
        turn.run(|client| eval(client, script, vec![key], arguments)).await
    }

    async fn eval(
        &self,
        script: &'static str,
        key: &str,
        arguments: Vec<String>,
    ) -> Result<Option<String>, BusError> {
        let key = format!("{}{key}", self.prefix);
        let turn = self.commands.turn(1).await?;
        let arguments = arguments.into_iter().map(Into::into).collect();
        turn.run(|client| eval(client, script, vec![key], arguments)).await
    }
}

/// A claimed key holds `p` and the fingerprint; a settled one `d` and both strings as JSON.
fn pending(fingerprint: &str) -> String {
    format!("p{fingerprint}")
}

fn done(fingerprint: &str, answer: &str) -> String {
    format!("d{}", serde_json::json!([fingerprint, answer]))
}

fn read(held: &str, fingerprint: &str) -> Option<Claim> {
    if let Some(other) = held.strip_prefix('p') {
        return Some(if other == fingerprint {
            Claim::Pending
        } else {
            Claim::Done { fingerprint: other.to_owned(), answer: String::new() }
        });
    }
    let (fingerprint, answer) = serde_json::from_str(held.strip_prefix('d')?).ok()?;
    Some(Claim::Done { fingerprint, answer })
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1)
}

impl Store for RedisStore {
    fn claim<'a>(
        &'a self,
        key: &'a str,
        fingerprint: &'a str,
        ends_after: Duration,
    ) -> BoxFuture<'a, Result<Claim, BusError>> {
        async move {
            let arguments = vec![pending(fingerprint), millis(ends_after).to_string()];
            let Some(held) = self.eval(CLAIM, key, arguments).await? else {
                return Ok(Claim::Fresh);
            };
            read(&held, fingerprint)
                .ok_or_else(|| BusError::Refused("an idempotency key is not ours".to_owned()))
        }
        .boxed()
    }

    fn settle<'a>(
        &'a self,
        key: &'a str,
        fingerprint: &'a str,
        answer: &'a str,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let key = format!("{}{key}", self.prefix);
            let value = done(fingerprint, answer);
            let ttl = Expiration::PX(millis(keep));
            let turn = self.commands.turn(1).await?;
            turn.run(|client| async move {
                client.set::<Value, _, _>(key, value, Some(ttl), None, false).await
            })
            .await
            .map(drop)
        }
        .boxed()
    }

    fn release<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        async move { self.eval(RELEASE, key, Vec::new()).await.map(drop) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_reads_back() {
        assert_eq!(read(&pending("f\""), "f\""), Some(Claim::Pending));
        let other = Claim::Done { fingerprint: "g".to_owned(), answer: String::new() };
        assert_eq!(read(&pending("g"), "f"), Some(other));
        let settled = Claim::Done { fingerprint: "f".to_owned(), answer: "{\"id\":1}".to_owned() };
        assert_eq!(read(&done("f", "{\"id\":1}"), "f"), Some(settled));
        assert_eq!(read("something else", "f"), None);
    }
}

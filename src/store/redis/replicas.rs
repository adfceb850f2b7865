//! Leases on Redis: `<prefix>replicas`, a sorted set of names by the time of the last beat, and
//! `<prefix>stats:<name>`, what each has left word of.

use fred::interfaces::KeysInterface;
use fred::types::{Expiration, Value};
use futures_util::future::{BoxFuture, FutureExt, try_join_all};

use super::{RedisStore, millis};
use crate::{
    bus::BusError,
    store::replicas::{Fleet, LEASE, Replicas, Word},
};

/// ARGV: the name, the lease in milliseconds. Answers with whether it was unknown, the time, and
/// the names.
const BEAT: &str = "local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
local fresh = redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
local answer = redis.call('ZRANGE', KEYS[1], 0, -1)
table.insert(answer, 1, tostring(fresh))
table.insert(answer, 2, string.format('%.0f', now))
return answer";

/// ARGV: the lease in milliseconds. Answers with the time, and the names.
const LIVE: &str = "local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answer = redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf')
table.insert(answer, 1, string.format('%.0f', now))
return answer";

const LEAVE: &str = "return redis.call('ZREM', KEYS[1], ARGV[1])";

impl RedisStore {
    /// The time in milliseconds, and who is alive.
    pub(super) async fn roll(&self) -> Result<(u64, Vec<String>), BusError> {
        let arguments = vec![millis(LEASE).to_string()];
        let answer: Vec<String> = self.script(LIVE, self.key("replicas"), arguments).await?;
        let mut answer = answer.into_iter();
        let now = answer.next().and_then(|now| now.parse().ok()).unwrap_or_default();
        Ok((now, answer.collect()))
    }

    fn stats(&self, replica: &str) -> String {
        self.key(&format!("stats:{replica}"))
    }

    async fn get(&self, key: String) -> Result<Option<String>, BusError> {
        let turn = self.commands.turn(1).await?;
        turn.run(|client| async move { client.get(key).await }).await
    }
}

impl Replicas for RedisStore {
    fn beat<'a>(&'a self, replica: &'a str) -> BoxFuture<'a, Result<Fleet, BusError>> {
        async move {
            let arguments = vec![replica.to_owned(), millis(LEASE).to_string()];
            let answer: Vec<String> = self.script(BEAT, self.key("replicas"), arguments).await?;
            let mut answer = answer.into_iter();
            let fresh = answer.next().is_some_and(|count| count != "0");
            let at = answer.next().and_then(|at| at.parse().ok()).unwrap_or_default();
            Ok(Fleet { live: answer.collect(), at, fresh })
        }
        .boxed()
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<String>, BusError>> {
        async move { self.roll().await.map(|(_, live)| live) }.boxed()
    }

    fn report<'a>(
        &'a self,
        replica: &'a str,
        report: String,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let (key, ttl) = (self.stats(replica), Some(Expiration::PX(millis(LEASE))));
            let turn = self.commands.turn(1).await?;
            turn.run(|client| async move {
                client.set::<Value, _, _>(key, report, ttl, None, false).await
            })
            .await
            .map(drop)
        }
        .boxed()
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<Word>, BusError>> {
        async move {
            let (_, live) = self.roll().await?;
            let reports = live.iter().map(|replica| self.get(self.stats(replica)));
            let reports = try_join_all(reports).await?;
            Ok(live.into_iter().zip(reports).collect())
        }
        .boxed()
    }

    fn leave<'a>(&'a self, replica: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let arguments = vec![replica.to_owned()];
            self.script::<i64>(LEAVE, self.key("replicas"), arguments).await.map(drop)
        }
        .boxed()
    }
}

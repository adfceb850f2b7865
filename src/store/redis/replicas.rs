//! Leases on Redis: `<prefix>replicas`, a sorted set of names by the time of the last beat.

use futures_util::future::{BoxFuture, FutureExt};

use super::{RedisStore, millis};
use crate::{
    bus::BusError,
    store::replicas::{Fleet, LEASE, Replicas},
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

/// ARGV: the lease in milliseconds.
const LIVE: &str = "local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf')";

const LEAVE: &str = "return redis.call('ZREM', KEYS[1], ARGV[1])";

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
        let arguments = vec![millis(LEASE).to_string()];
        self.script(LIVE, self.key("replicas"), arguments).boxed()
    }

    fn leave<'a>(&'a self, replica: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let arguments = vec![replica.to_owned()];
            self.script::<i64>(LEAVE, self.key("replicas"), arguments).await.map(drop)
        }
        .boxed()
    }
}

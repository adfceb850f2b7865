//! Revocations on Redis: a key for each session, a hash for each user.

use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};

use super::{RedisStore, millis};
use crate::{
    bus::{BusError, redis::Names},
    event::{SessionKey, UserId},
    store::revocations::{self, Mark, Revocations},
};

const SESSION: &str = "return redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])";
const SESSION_HELD: &str = "return redis.call('EXISTS', KEYS[1])";

/// ARGV: the moment, the session that is excepted or nothing, and the TTL. Does what `Mark::add`
/// does.
const USER: &str = "local mark = redis.call('HMGET', KEYS[1], 'all', 'but', 'session')
local at, all, but = tonumber(ARGV[1]), tonumber(mark[1] or 0), tonumber(mark[2] or 0)
if ARGV[2] == '' then
  all = math.max(all, at)
else
  if mark[3] ~= ARGV[2] then
    all = math.max(all, but)
    but = 0
  end
  but = math.max(but, at)
  redis.call('HSET', KEYS[1], 'session', ARGV[2])
end
redis.call('HSET', KEYS[1], 'all', string.format('%.0f', all), 'but', string.format('%.0f', but))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1";
const USER_HELD: &str = "return redis.call('HMGET', KEYS[1], 'all', 'but', 'session')";

/// Where it is remembered that a session was revoked.
pub(super) fn of_session(names: &Names, session: SessionKey) -> String {
    names.key(&format!("revoked:session:{session}"))
}

/// Where it is remembered what is held against a user's credentials.
pub(super) fn of_user(names: &Names, user: &UserId) -> String {
    names.key(&format!("revoked:user:{}", user.as_str()))
}

impl Revocations for RedisStore {
    fn revoke_session(
        &self,
        session: SessionKey,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let arguments = vec![millis(ttl).to_string()];
            let key = of_session(&self.names, session);
            self.script::<String>(SESSION, key, arguments).await.map(drop)
        }
        .boxed()
    }

    fn revoke_user<'a>(
        &'a self,
        user: &'a UserId,
        at: SystemTime,
        except: Option<SessionKey>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let arguments = vec![
                revocations::millis(at).to_string(),
                except.map(|session| session.to_string()).unwrap_or_default(),
                millis(ttl).to_string(),
            ];
            self.script::<i64>(USER, of_user(&self.names, user), arguments).await.map(drop)
        }
        .boxed()
    }

    fn revoked<'a>(
        &'a self,
        user: &'a UserId,
        session: Option<SessionKey>,
        issued: Option<SystemTime>,
    ) -> BoxFuture<'a, Result<bool, BusError>> {
        async move {
            let of_session = async {
                let Some(session) = session else { return Ok(0) };
                let key = of_session(&self.names, session);
                self.script::<i64>(SESSION_HELD, key, Vec::new()).await
            };
            let key = of_user(&self.names, user);
            let of_user = self.script::<Vec<Option<String>>>(USER_HELD, key, Vec::new());
            // Two keys, which a cluster may keep apart, and one round trip.
            let (of_session, of_user) = tokio::try_join!(of_session, of_user)?;
            Ok(of_session > 0 || read(&of_user).covers(session, issued))
        }
        .boxed()
    }
}

fn read(mark: &[Option<String>]) -> Mark {
    let at = |n: usize| mark.get(n).and_then(Option::as_deref);
    let moment = |n| at(n).and_then(|text| text.parse().ok()).unwrap_or_default();
    Mark { all: moment(0), but: moment(1), session: at(2).and_then(SessionKey::parse) }
}

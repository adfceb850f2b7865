//! [`History`] on Redis.

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    RedisPublisher,
    calls::millis,
    names::Keys,
    scripts::{Call, eval},
};
use crate::{
    bus::{Ask, BusError, History, envelope},
    event::{Channel, UserId},
    history::Reading,
};

/// Drops what is kept. The last id stays, also where it only stood in the stream.
const ERASE: &str = "local last = redis.call('GET', KEYS[2])
if not last then
  local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if top then redis.call('SET', KEYS[2], top[1] .. ' 0 0', 'PX', ARGV[1]) end
end
redis.call('DEL', KEYS[1])
return 1";

impl RedisPublisher {
    fn answer(&self, ask: &Ask, answer: Vec<Bytes>) -> Result<Reading, BusError> {
        let unreadable = || BusError::Away("a script's answer cannot be read".to_owned());
        let mut answer = answer.into_iter();
        let mut text = || {
            let bytes = answer.next()?;
            std::str::from_utf8(&bytes).map(str::to_owned).ok()
        };
        let (now, last, epoch, read) = (text(), text(), text(), text());
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
        let now = number(now).ok_or_else(unreadable)?;
        let epoch = number(epoch).ok_or_else(unreadable)?;
        let read = number(read).ok_or_else(unreadable)?;
        let last = match last.ok_or_else(unreadable)? {
            none if none.is_empty() => None,
            id => Some(id.parse().map_err(|_| unreadable())?),
        };
        // What others put there is no event; the ids around it show what is missing.
        let kept: Vec<_> = answer
            .take(ask.most)
            .filter_map(|message| envelope::kept(&ask.channel, &message))
            .collect();
        let more = usize::try_from(read).unwrap_or(usize::MAX) > ask.most && !kept.is_empty();
        let meta_ttl = u64::try_from(self.calls.bounds.meta_ttl.as_millis()).unwrap_or(u64::MAX);
        let silent_since = if self.server.is_forgetful() {
            u64::MAX
        } else {
            epoch.max(now.saturating_sub(meta_ttl))
        };
        Ok(Reading { kept, more, last, epoch, silent_since, now })
    }
}

impl History for RedisPublisher {
    fn keeps(&self) -> bool {
        self.calls.keeps()
    }

    fn read(&self, asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>> {
        async move {
            let turn = self.commands.turn(asks.len()).await?;
            let calls: Vec<Call> = asks.iter().map(|ask| self.calls.read(ask)).collect();
            let answers = self.scripts.read.run::<Vec<Bytes>>(&turn, &calls).await;
            let read = |(ask, answer): (_, Result<_, _>)| {
                self.answer(ask, answer.map_err(|error| self.explain(error))?)
            };
            asks.iter().zip(answers).map(read).collect()
        }
        .boxed()
    }

    fn erase<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let Keys { stream, last, .. } = self.calls.names.keys(&Channel::User(user.clone()));
            let turn = self.commands.turn(1).await?;
            let keys = vec![stream, last];
            let meta_ttl = vec![millis(self.calls.bounds.meta_ttl).into()];
            turn.run(|client| eval::<i64>(client, ERASE, keys, meta_ttl)).await.map(drop)
        }
        .boxed()
    }
}

//! [`History`] on Redis.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    RedisPublisher,
    calls::millis,
    foreign::is_foreign,
    glance::{Glance, Last},
    names::Keys,
    scripts::{Call, eval},
};
use crate::{
    bus::{Ask, BusError, History, envelope},
    event::{Channel, Position, UserId},
    history::Reading,
};

/// Drops what is kept. The last id stays, also where it only stood in the stream; not that of an entry
/// that others put there.
const ERASE: &str = r#"local last = redis.call('GET', KEYS[2])
if not last then
  local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  for i = 1, top and #top[2] or 0, 2 do
    local own = string.find(top[2][i + 1], '~' .. top[1] .. '","prev":"', 1, true)
    if top[2][i] == 'm' and own then
      redis.call('SET', KEYS[2], top[1] .. ' 0 0', 'PX', ARGV[1])
    end
  end
end
redis.call('DEL', KEYS[1])
return 1"#;

/// A reading that proves nothing.
fn nothing() -> Reading {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Reading { silent_since: u64::MAX, now, ..Reading::default() }
}

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
        // One channel whose last id is none, or beyond all numbers, is unknown, and no other with it.
        let last: Result<Option<Position>, _> = match last.ok_or_else(unreadable)? {
            none if none.is_empty() => Ok(None),
            id => id.parse().map(Some),
        };
        // What others put there is no event, and a copy under another id is none either; the ids
        // around it show what is missing.
        let mut kept = Vec::new();
        for _ in 0..ask.most {
            let (Some(id), Some(message)) = (answer.next(), answer.next()) else { break };
            let event = envelope::kept(&ask.channel, &message);
            let id = std::str::from_utf8(&id).ok().and_then(|id| id.parse().ok());
            kept.extend(event.filter(|event| Some(event.at) == id));
        }
        let more = usize::try_from(read).unwrap_or(usize::MAX) > ask.most && !kept.is_empty();
        let silent_since = if last.is_err() { u64::MAX } else { self.silent_since(epoch, now) };
        Ok(Reading { kept, more, last: last.ok().flatten(), epoch, silent_since, now })
    }

    /// Since when a channel without a last id was silent.
    fn silent_since(&self, epoch: u64, now: u64) -> u64 {
        if self.server.is_forgetful() {
            return u64::MAX;
        }
        let meta_ttl = u64::try_from(self.calls.bounds.meta_ttl.as_millis()).unwrap_or(u64::MAX);
        epoch.max(now.saturating_sub(meta_ttl))
    }

    /// Looks where the channels stand first, together with others who ask, and reads only those
    /// that have something after the place that is asked for, or where that cannot be seen.
    async fn begin_together(&self, asks: Vec<Ask>) -> Result<Vec<Reading>, BusError> {
        let channels = asks.iter().map(|ask| ask.channel.clone()).collect();
        let glance = self.glances.ask(channels).await.map_err(|error| self.explain(error))?;
        let Glance { now, epoch, lasts } = glance;
        let silent_since = self.silent_since(epoch, now);
        let (mut readings, mut more) = (Vec::with_capacity(asks.len()), Vec::new());
        for (ask, last) in asks.into_iter().zip(lasts) {
            let last = last.map_err(|error| self.explain(error))?;
            let (last, is_read) = match last {
                Last::Known(last) => (last, ask.after.is_some_and(|after| last > Some(after))),
                Last::Hidden => (None, true),
            };
            if is_read {
                more.push((readings.len(), ask));
            }
            let (kept, more) = (Vec::new(), false);
            readings.push(Reading { kept, more, last, epoch, silent_since, now });
        }
        if more.is_empty() {
            return Ok(readings);
        }
        let (places, asks): (Vec<usize>, Vec<Ask>) = more.into_iter().unzip();
        for (place, reading) in places.into_iter().zip(self.read(asks).await?) {
            if let Some(first) = readings.get_mut(place) {
                *first = reading;
            }
        }
        Ok(readings)
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
            let answers = asks.iter().zip(answers).map(|(ask, answer)| match answer {
                Err(BusError::Refused(reason)) if is_foreign(&reason) => {
                    self.server.complaints.unread(&self.calls.names, &ask.channel, &reason);
                    Ok(nothing())
                }
                answer => self.answer(ask, answer.map_err(|error| self.explain(error))?),
            });
            answers.collect()
        }
        .boxed()
    }

    fn begin(&self, asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>> {
        // On a cluster channels lie apart, and there is nothing to share.
        if self.calls.names.is_cluster() || asks.is_empty() {
            return self.read(asks);
        }
        self.begin_together(asks).boxed()
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

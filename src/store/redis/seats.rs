//! Seats on Redis: `<prefix>seats:<user>`, a sorted set of `<replica>:<connection>` by time. One
//! key a script; on a cluster it lies in the slot of the user's channel, where publishing looks
//! whether anyone is there.

use fred::types::Value;
use futures_util::future::{BoxFuture, FutureExt, try_join, try_join_all};

use super::{RedisStore, millis};
use crate::{
    bus::BusError,
    event::{ConnectionId, UserId},
    store::seats::{Held, OVER, SeatBook, Taken, Wish},
};

/// A seat that its replica does not enter again within this time is forgotten with its key.
const TTL: std::time::Duration = std::time::Duration::from_secs(180);

/// ARGV: the seat, the limit (0: none), `refuse` or `oldest`, how many that are over are wanted, the TTL, the
/// time of the list of live replicas (0: not known), and the list.
///
/// Looks for seats of replicas that are gone only when there is no room: a seat taken after the
/// list was made may be of a replica that is not on it. Each seat has a time of its own, so that
/// there is a newest one. Those that are over are taken out at once, so that they are named once.
const TAKE: &str = "local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local limit = tonumber(ARGV[2])
if limit == 0 then limit = math.huge end
redis.call('ZREM', KEYS[1], ARGV[1])
local taken = redis.call('ZCARD', KEYS[1])
local as_of = tonumber(ARGV[6])
if taken >= limit and as_of > 0 then
  local live = {}
  for i = 7, #ARGV do live[ARGV[i]] = true end
  local seats = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  for i = 1, #seats, 2 do
    if tonumber(seats[i + 1]) <= as_of and not live[string.match(seats[i], '^[^:]*')] then
      redis.call('ZREM', KEYS[1], seats[i])
      taken = taken - 1
    end
  end
end
if taken >= limit and ARGV[3] == 'refuse' then return {} end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if last[2] and tonumber(last[2]) >= now then now = tonumber(last[2]) + 1 end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local answer = {string.format('%.0f', now)}
if taken >= limit then
  local over = math.min(taken + 1 - limit, tonumber(ARGV[4]))
  for _, seat in ipairs(redis.call('ZRANGE', KEYS[1], 0, over - 1)) do answer[#answer + 1] = seat end
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, over - 1)
end
return answer";

/// ARGV: the replica and a colon, the TTL, then seats and their times, which may be empty.
const SETTLE: &str = "local held = {}
for i = 3, #ARGV, 2 do
  held[ARGV[i]] = true
  if ARGV[i + 1] ~= '' then redis.call('ZADD', KEYS[1], 'NX', ARGV[i + 1], ARGV[i]) end
end
for _, seat in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(seat, 1, #ARGV[1]) == ARGV[1] and not held[seat] then
    redis.call('ZREM', KEYS[1], seat)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1";

/// The seats, each followed by its time.
const SEATS: &str = "return redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')";

/// A replica that took a seat so recently is alive, whether or not it is on the list: it held its
/// lease then. (The list may have been made before it joined, or after Redis forgot everyone.)
const RECENT: u64 = 9_000;

/// How many of these seats, each followed by its time, are of a replica that is alive.
fn count(seats: &[String], now: u64, live: &[String]) -> usize {
    let alive = |pair: &[String]| {
        let [seat, at] = pair else { return false };
        let recent = at.parse::<f64>().is_ok_and(|at| at + RECENT as f64 > now as f64);
        let replica = seat.split(':').next().unwrap_or_default();
        recent || live.iter().any(|name| name == replica)
    };
    seats.chunks(2).filter(|pair| alive(pair)).count()
}

fn seat(replica: &str, id: ConnectionId) -> String {
    format!("{replica}:{id}")
}

impl SeatBook for RedisStore {
    fn take_seat<'a>(&'a self, wish: Wish<'a>) -> BoxFuture<'a, Result<Taken, BusError>> {
        async move {
            let mut arguments = vec![
                seat(wish.replica, wish.id),
                wish.limit.to_string(),
                if wish.refuse { "refuse" } else { "oldest" }.to_owned(),
                OVER.to_string(),
                millis(TTL).to_string(),
                wish.fleet.at.to_string(),
            ];
            arguments.extend(wish.fleet.live.iter().cloned());
            let answer: Vec<String> =
                self.script(TAKE, self.names.seats(wish.user), arguments).await?;
            let Some((at, over)) = answer.split_first() else { return Ok(Taken::Full) };
            let id = |seat: &String| ConnectionId::parse(seat.rsplit_once(':')?.1);
            let at = at.parse().unwrap_or_default();
            Ok(Taken::Seat { at, over: over.iter().filter_map(id).collect() })
        }
        .boxed()
    }

    fn count_seats<'a>(
        &'a self,
        users: &'a [UserId],
    ) -> BoxFuture<'a, Result<Vec<usize>, BusError>> {
        async move {
            // All are on their way before the first is answered: one round trip.
            let seats =
                users.iter().map(|user| self.script(SEATS, self.names.seats(user), Vec::new()));
            let (roll, seats) = try_join(self.roll(), try_join_all(seats)).await?;
            let (now, live) = roll;
            let seats: Vec<Vec<String>> = seats;
            Ok(seats.iter().map(|seats| count(seats, now, &live)).collect())
        }
        .boxed()
    }

    fn enter_seats<'a>(
        &'a self,
        replica: &'a str,
        user: &'a UserId,
        held: &'a [Held],
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let mut arguments = vec![format!("{replica}:"), millis(TTL).to_string()];
            for (id, at) in held {
                arguments.push(seat(replica, *id));
                arguments.push(at.map(|at| at.to_string()).unwrap_or_default());
            }
            self.script::<Value>(SETTLE, self.names.seats(user), arguments).await.map(drop)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_count_while_their_replica_lives() {
        let seats = ["a:1", "1000", "b:2", "1000", "b:3", "99500", "c:4", "1e+05", "d:", "x"];
        let seats: Vec<String> = seats.iter().map(ToString::to_string).collect();
        assert_eq!(count(&seats, 100_000, &["a".to_owned()]), 3);
        assert_eq!(count(&seats, 200_000, &["a".to_owned()]), 1);
        assert_eq!(count(&seats, 200_000, &[]), 0);
        assert_eq!(count(&[], 0, &[]), 0);
    }
}

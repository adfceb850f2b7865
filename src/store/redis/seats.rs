//! Seats on Redis: `<prefix>seats:<user>`, a sorted set of `<replica>:<connection>` by time. On a
//! cluster it lies in the slot of the user's channel, where publishing looks whether anyone is there.
//!
//! Handshakes that come together share one run of the script, which looks whether their credentials
//! were revoked as well. On a cluster the keys of users lie apart, and each has its own.

use std::sync::Arc;

use fred::types::Value;
use futures_util::future::{BoxFuture, FutureExt, try_join, try_join_all};

use super::{RedisStore, millis, revocations};
use crate::{
    bus::{
        BusError,
        redis::{
            Call, Names, Script,
            commands::{Commands, Turn},
        },
    },
    event::{ConnectionId, UserId},
    store::{
        revocations::{Revocations as _, millis as since_1970},
        seats::{Held, Holding, OVER, SeatBook, Taken, Terms, Wish},
    },
};

/// A seat that its replica does not enter again within this time is forgotten with its key.
const TTL: std::time::Duration = std::time::Duration::from_secs(180);

/// Users in one run of the script: it takes Redis about 10 µs for each, in which it does nothing
/// else.
const TOGETHER: usize = 32;

/// The seats, each followed by its time.
const SEATS: &str = "return redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')";

/// A replica that took a seat so recently is alive, whether or not it is on the list: it held its
/// lease then. (The list may have been made before it joined, or after Redis forgot everyone.)
const RECENT: u64 = 9_000;

/// Takes and enters seats.
#[derive(Debug)]
pub(super) struct Clerk {
    commands: Arc<Commands>,
    names: Arc<Names>,
    script: Script,
}

/// What a run of the script is asked to do.
enum Step<'a> {
    Take(&'a Wish),
    Enter(&'a Holding),
}

impl Clerk {
    pub(super) fn new(commands: Arc<Commands>, names: Arc<Names>) -> Self {
        Self { commands, names, script: Script::new(include_str!("seats.lua")) }
    }

    /// Takes seats; the answers stand in the order of the wishes.
    pub(super) async fn take(&self, wishes: &[Wish]) -> Vec<Result<Taken, BusError>> {
        let mut runs = Vec::new();
        for same in wishes.chunk_by(|a, b| Arc::ptr_eq(&a.terms, &b.terms)) {
            for some in same.chunks(self.together()) {
                runs.extend(some.first().map(|first| (&*first.terms, some)));
            }
        }
        let calls = runs
            .into_iter()
            .map(|(terms, some)| self.call(terms, some.iter().map(Step::Take), some.len()));
        let answers = self.run(calls.collect(), wishes.len()).await;
        answers.into_iter().map(|answer| taken(&answer?)).collect()
    }

    /// Enters what a replica holds.
    async fn enter(&self, replica: &Arc<str>, holdings: &[Holding]) -> Vec<Result<(), BusError>> {
        let terms = Terms { replica: Arc::clone(replica), ..Terms::default() };
        let calls = holdings
            .chunks(self.together())
            .map(|some| self.call(&terms, some.iter().map(Step::Enter), some.len()));
        let answers = self.run(calls.collect(), holdings.len()).await;
        answers.into_iter().map(|answer| answer.map(drop)).collect()
    }

    /// Users whose keys may stand in one script.
    fn together(&self) -> usize {
        if self.names.is_cluster() { 1 } else { TOGETHER }
    }

    fn call<'a>(
        &self,
        terms: &Terms,
        steps: impl Iterator<Item = Step<'a>>,
        count: usize,
    ) -> (Call, usize) {
        let Terms { replica, limit, refuse, fleet } = terms;
        let mut keys = Vec::with_capacity(2 * count);
        let mut arguments = Vec::with_capacity(7 + fleet.live.len() + count);
        arguments.extend([
            text(replica),
            limit.to_string().into(),
            Value::from_static_str(if *refuse { "refuse" } else { "oldest" }),
            OVER.to_string().into(),
            millis(TTL).to_string().into(),
            fleet.at.to_string().into(),
            fleet.live.len().to_string().into(),
        ]);
        arguments.extend(fleet.live.iter().map(|name| text(name)));
        for step in steps {
            match step {
                Step::Take(wish) => {
                    keys.push(self.names.seats(&wish.user).into());
                    arguments.push(self.wish(wish, &mut keys).into());
                }
                Step::Enter((user, held)) => {
                    keys.push(self.names.seats(user).into());
                    arguments.push(words("enter".to_owned(), held).into());
                }
            }
        }
        (Call { keys, arguments, whole: false }, count)
    }

    fn wish(&self, wish: &Wish, keys: &mut Vec<Value>) -> String {
        let Wish { user, id, session, issued, held, .. } = wish;
        let look = match session {
            _ if self.names.is_cluster() => 0,
            None => 1,
            Some(_) => 2,
        };
        if look > 0 {
            keys.push(revocations::of_user(&self.names, user).into());
            keys.extend(
                session.map(|session| revocations::of_session(&self.names, session).into()),
            );
        }
        let issued = issued.map_or(0, since_1970);
        let settle = if held.is_some() { "settle" } else { "keep" };
        let take = match session {
            Some(session) => format!("take {id} {session} {issued} {look} {settle}"),
            None => format!("take {id} - {issued} {look} {settle}"),
        };
        words(take, held.as_deref().unwrap_or_default())
    }

    /// One answer for each user.
    async fn run(
        &self,
        calls: Vec<(Call, usize)>,
        users: usize,
    ) -> Vec<Result<Vec<Value>, BusError>> {
        let turn = match self.commands.turn(calls.len()).await {
            Ok(turn) => turn,
            Err(error) => return (0..users).map(|_| Err(error.clone())).collect(),
        };
        let (calls, counts): (Vec<Call>, Vec<usize>) = calls.into_iter().unzip();
        let answers = self.script.run::<Value>(&turn, &calls).await;
        let of_run = |(answer, count)| of_run(&turn, answer, count);
        answers.into_iter().zip(counts).flat_map(of_run).collect()
    }
}

fn of_run(
    turn: &Turn<'_>,
    answer: Result<Value, BusError>,
    count: usize,
) -> Vec<Result<Vec<Value>, BusError>> {
    let error = match answer {
        Ok(Value::Array(answers)) if answers.len() == count => {
            return answers.into_iter().map(|answer| of_user(turn, answer)).collect();
        }
        Ok(_) => unreadable(),
        Err(error) => error,
    };
    (0..count).map(|_| Err(error.clone())).collect()
}

fn of_user(turn: &Turn<'_>, answer: Value) -> Result<Vec<Value>, BusError> {
    let answer = match answer {
        Value::Array(answer) => answer,
        // What is empty has no kind of its own.
        Value::Null => Vec::new(),
        _ => return Err(unreadable()),
    };
    match (answer.first().and_then(Value::as_str), answer.get(1)) {
        (Some(word), why) if word == "failed" => {
            let why = why.and_then(Value::as_str).unwrap_or_default();
            Err(turn.refused(why.to_string()))
        }
        _ => Ok(answer),
    }
}

fn unreadable() -> BusError {
    BusError::Away("a script's answer cannot be read".to_owned())
}

fn taken(answer: &[Value]) -> Result<Taken, BusError> {
    let mut words = answer.iter().map(Value::as_str);
    let at = match words.next().flatten().as_deref() {
        None => return Ok(Taken::Full),
        Some("revoked") => return Ok(Taken::Revoked),
        Some(at) => at.parse().map_err(|_| unreadable())?,
    };
    let over = words.flatten().filter_map(|seat| ConnectionId::parse(seat.rsplit_once(':')?.1));
    Ok(Taken::Seat { at, over: over.collect() })
}

/// These words, and what is held.
fn words(mut words: String, held: &[Held]) -> String {
    for (id, at) in held {
        words.push(' ');
        words.push_str(&id.to_string());
        words.push(' ');
        words.push_str(&at.map_or_else(|| "-".to_owned(), |at| at.to_string()));
    }
    words
}

fn text(text: &str) -> Value {
    text.into()
}

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

impl SeatBook for RedisStore {
    fn take_seat(&self, wish: Wish) -> BoxFuture<'_, Result<Taken, BusError>> {
        async move {
            if self.names.is_cluster()
                && self.revoked(&wish.user, wish.session, wish.issued).await?
            {
                return Ok(Taken::Revoked);
            }
            self.wishes.ask(wish).await
        }
        .boxed()
    }

    fn give_back(&self, _user: &UserId, _id: ConnectionId) -> bool {
        false
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
        replica: &'a Arc<str>,
        holdings: &'a [Holding],
    ) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        self.clerk.enter(replica, holdings).boxed()
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

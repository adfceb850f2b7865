//! A back end: it publishes to any replica, and repeats with the same `Idempotency-Key` until it
//! has a 202.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    breach::Kind,
    cast::{Channel, group_name, user_name},
    dice::Dice,
    ledger::To,
    position::{Position, parse_id},
    stage::Stage,
};
use crate::support::app::API_KEY;

const LONGEST_WAIT: Duration = Duration::from_millis(800);

pub struct Publisher {
    stage: Arc<Stage>,
    number: usize,
    /// What is published: the same for a seed, however often a publish is repeated.
    what: Dice,
    /// Where to, and when again.
    way: Dice,
    http: reqwest::Client,
}

/// An answer to a publish.
enum Answer {
    Accepted(Vec<(Channel, Position)>),
    /// 503, 429, or none: repeat.
    Again,
    Wrong(String),
}

impl Publisher {
    pub fn new(stage: Arc<Stage>, number: usize) -> Self {
        // Above the time within which a replica answers when Redis is away.
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
        let stream = 10_000 + 2 * number as u64;
        Self {
            what: Dice::new(stage.seed, stream),
            way: Dice::new(stage.seed, stream + 1),
            http: http.expect("a client"),
            stage,
            number,
        }
    }

    /// Publishes until it is told to begin nothing more, and ends when everything is accepted.
    pub async fn run(mut self) {
        let (no_more, over) = (self.stage.no_more.clone(), self.stage.over.clone());
        let rate = self.stage.size.rate.max(1);
        let pause = Duration::from_secs(1)
            * u32::try_from(self.stage.size.publishers).expect("few")
            / u32::try_from(rate).expect("slow");
        let mut beat = interval(pause);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while no_more.run_until_cancelled(beat.tick()).await.is_some() {
            if over.run_until_cancelled(self.publish()).await.is_none() {
                return;
            }
        }
    }

    fn draw(&mut self) -> (To, Vec<usize>) {
        let size = self.stage.size;
        let to = match self.what.below(40) {
            0 => To::Broadcast,
            1..=4 => To::Group(self.what.below(size.groups)),
            5..=7 => {
                let count = 2 + self.what.below(6);
                To::Users(self.what.some_of(count, size.users))
            }
            _ => To::User(self.what.below(size.users)),
        };
        let many = matches!(to, To::Broadcast | To::Group(_));
        let except = if many && self.what.one_in(3) {
            let count = 1 + self.what.below(3);
            self.what.some_of(count, size.users)
        } else {
            Vec::new()
        };
        (to, except)
    }

    fn body(&mut self, to: &To, except: &[usize], mark: u32) -> Value {
        let names = |users: &[usize]| users.iter().copied().map(user_name).collect::<Vec<_>>();
        let target = match to {
            To::User(user) => json!({"user": user_name(*user)}),
            To::Users(users) => json!({"users": names(users)}),
            To::Group(group) => json!({"group": group_name(*group)}),
            To::Broadcast => json!({"broadcast": true}),
        };
        let pad = if self.what.one_in(8) { 8_000 } else { self.what.below(300) };
        let data = json!({"mk": mark, "pad": "x".repeat(pad)});
        let mut body = json!({"to": target, "type": "chaos", "data": data});
        if !except.is_empty() {
            body["except"] = json!({"users": names(except)});
        }
        body
    }

    async fn publish(&mut self) {
        let (to, except) = self.draw();
        let mark = self.stage.ledger().begin(to.clone(), except.clone());
        let body = self.body(&to, &except, mark).to_string();
        let key = format!("chaos-{}-{}-{mark}", self.stage.seed, self.number);
        let twice = self.what.one_in(25);
        let (ids, replica) = self.until_accepted(&to, &key, &body).await;
        self.stage.ledger().accept(mark, ids.clone(), self.stage.ms(), replica);
        if twice {
            let (again, other) = self.until_accepted(&to, &key, &body).await;
            let mut ledger = self.stage.ledger();
            // A Redis that forgot the key makes it anew; clients are asked about that.
            if again != ids && !ledger.redis_died_since(mark) {
                let what = format!(
                    "mark {mark}: {ids:?} from replica {replica}, {again:?} for the same key from \
                     {other}"
                );
                ledger.breaches.add(Kind::Doubled, what);
            }
        }
    }

    async fn until_accepted(
        &mut self,
        to: &To,
        key: &str,
        body: &str,
    ) -> (Vec<(Channel, Position)>, usize) {
        let mut wait = Duration::from_millis(50);
        loop {
            let replica = self.way.below(self.stage.addresses.len());
            match self.post(to, key, body, replica).await {
                Answer::Accepted(ids) => return (ids, replica),
                Answer::Again => {}
                Answer::Wrong(what) => {
                    let what = format!("replica {replica} to {body:.200}: {what}");
                    self.stage.ledger().breaches.add(Kind::Protocol, what);
                }
            }
            sleep(self.way.between(wait / 2, wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn post(&self, to: &To, key: &str, body: &str, replica: usize) -> Answer {
        let request = self
            .http
            .post(format!("http://{}/v1/events", self.stage.addresses[replica].internal))
            .bearer_auth(API_KEY)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_owned());
        let Ok(response) = request.send().await else { return Answer::Again };
        let status = response.status().as_u16();
        let Ok(text) = response.text().await else { return Answer::Again };
        match status {
            202 => match ids(to, &text) {
                Some(ids) => Answer::Accepted(ids),
                None => Answer::Wrong(format!("202 {text}")),
            },
            429 | 503 => Answer::Again,
            _ => Answer::Wrong(format!("{status} {text}")),
        }
    }
}

/// The ids in the answer to a publish, each with its channel.
fn ids(to: &To, text: &str) -> Option<Vec<(Channel, Position)>> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let at = |value: &Value| Some(parse_id(value["id"].as_str()?)?.1);
    let To::Users(users) = to else { return Some(vec![(to.channels()[0], at(&answer)?)]) };
    let mut wanted: BTreeMap<String, usize> =
        users.iter().map(|user| (user_name(*user), *user)).collect();
    let mut ids = Vec::new();
    for event in answer["events"].as_array()? {
        let user = wanted.remove(event["user"].as_str()?)?;
        ids.push((Channel::User(user), at(event)?));
    }
    wanted.is_empty().then_some(ids)
}

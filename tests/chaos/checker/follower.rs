//! A client: it connects to any replica, follows its cursor, and comes back as the table of close
//! codes says (contract §3).

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    breach::Kind,
    cast::{Seat, group_name, user_name},
    dice::Dice,
    faults::Mishap,
    line::{Heard, Line, Refusal},
    stage::Stage,
    trace::Told,
};
use crate::support::jwt::{Jwt, now};

/// A wait that the server asks for is cut to this: the run is short.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

pub struct Follower {
    stage: Arc<Stage>,
    seat: Seat,
    token: String,
    dice: Dice,
    mishaps: mpsc::Receiver<Mishap>,
    /// What SSE would send as `Last-Event-ID`.
    last_event_id: Option<String>,
    failures: u32,
}

/// How an open connection ended, and what to do then.
struct Ended {
    wait: Option<Duration>,
    how: String,
}

impl Follower {
    pub fn new(stage: Arc<Stage>, seat: Seat, mishaps: mpsc::Receiver<Mishap>) -> Self {
        let groups: Vec<String> = seat.groups.iter().copied().map(group_name).collect();
        // Longer than any run.
        let token = Jwt::of(&user_name(seat.user))
            .claim("groups", groups)
            .claim("exp", now() + 7 * 24 * 3600)
            .sign();
        let dice = Dice::new(stage.seed, 1_000 + seat.number as u64);
        Self { stage, seat, token, dice, mishaps, last_event_id: None, failures: 0 }
    }

    /// Follows until the run is over.
    pub async fn run(mut self) {
        let over = self.stage.over.clone();
        // What it holds is dropped where it stands.
        let _ = over.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        loop {
            let replica = self.dice.below(self.stage.addresses.len());
            let wait = match self.connect(replica).await {
                Ok(line) => {
                    self.stage.trace(self.seat.number).opens();
                    let ended = self.listen(line, replica).await;
                    self.stage.ended(ended.how);
                    ended.wait
                }
                Err(Refusal::Later(wait)) => wait,
                Err(Refusal::Never(what)) => {
                    self.breach(Kind::Protocol, replica, &what);
                    None
                }
            };
            self.failures += 1;
            let backoff = SHORTEST_WAIT * 2_u32.pow(self.failures.min(4));
            let backoff = self.dice.between(backoff / 2, backoff);
            sleep(wait.unwrap_or(backoff).min(LONGEST_WAIT)).await;
        }
    }

    async fn connect(&self, replica: usize) -> Result<Line, Refusal> {
        let cursor = {
            let trace = self.stage.trace(self.seat.number);
            let own = trace.begun().then(|| trace.cursor());
            // A browser sends back what it was given; that both are the same is checked elsewhere.
            self.last_event_id.clone().or(own)
        };
        let address = self.stage.addresses[replica].public;
        Line::open(self.seat.transport, address, &self.token, cursor.as_deref()).await
    }

    fn breach(&self, kind: Kind, replica: usize, what: &str) {
        let moment = self.stage.moment(replica);
        self.stage.trace(self.seat.number).breach(kind, moment, what);
    }

    async fn listen(&mut self, mut line: Line, replica: usize) -> Ended {
        let mut goodbye = None;
        let mut mishap = None;
        // A server pings who is silent for a heartbeat, and this client never speaks first.
        let patience = 4 * self.stage.size.heartbeat;
        loop {
            let heard = tokio::select! {
                heard = timeout(patience, line.next()) => heard,
                order = self.mishaps.recv() => {
                    match order {
                        Some(Mishap::Cut { after }) => line.cut(after),
                        Some(Mishap::Stalled { lasts }) => sleep(lasts).await,
                        Some(Mishap::HalfOpen { lasts }) => {
                            let over = self.stage.over.clone();
                            tokio::spawn(async move {
                                let _ = over.run_until_cancelled(sleep(lasts)).await;
                                drop(line);
                            });
                            return Ended { wait: Some(Duration::ZERO), how: "half open".into() };
                        }
                        // The conductor is gone.
                        None => return Ended { wait: None, how: "the end".into() },
                    }
                    mishap = order.map(|order| order.name());
                    continue;
                }
            };
            match heard {
                Err(_) => {
                    let what = format!("nothing came for {patience:?}");
                    self.breach(Kind::Silent, replica, &what);
                    return Ended { wait: Some(Duration::ZERO), how: "silent".into() };
                }
                Ok(Heard::Life) => {}
                Ok(Heard::Nonsense(what)) => self.breach(Kind::Protocol, replica, &what),
                Ok(Heard::Frame(frame, id)) => {
                    let moment = self.stage.moment(replica);
                    let mut trace = self.stage.trace(self.seat.number);
                    let told = trace.hear(&frame, moment);
                    if let (Some(id), Told::GoOn) = (id, &told) {
                        trace.compare(&id, moment);
                        self.last_event_id = Some(id);
                    }
                    drop(trace);
                    match told {
                        Told::GoOn => self.failures = 0,
                        Told::Goodbye { code, reason, retry } => {
                            goodbye = Some((code, reason, retry));
                        }
                    }
                }
                Ok(Heard::End(close, why)) => {
                    return self.ended(close, goodbye, &why, line.retry(), replica, mishap);
                }
            }
        }
    }

    fn ended(
        &self,
        close: Option<(u16, String)>,
        goodbye: Option<(u16, String, Option<u64>)>,
        why: &str,
        retry: Option<u64>,
        replica: usize,
        mishap: Option<&'static str>,
    ) -> Ended {
        let (code, reason, wait) = match (close, goodbye) {
            (Some((code, reason)), goodbye) => (code, reason, goodbye.and_then(|(.., wait)| wait)),
            (None, Some(goodbye)) => goodbye,
            (None, None) => (1006, String::new(), retry),
        };
        // Those that tell to stay away, to log in again or to come back much later.
        if matches!(code, 1000 | 1002 | 1003 | 1007 | 1008 | 1009 | 4401 | 4403 | 4409 | 4429) {
            let what = format!("closed with {code} {reason:?}");
            self.breach(Kind::SentAway, replica, &what);
        }
        let how = match (code, mishap) {
            (1006, Some(mishap)) => mishap.to_owned(),
            (1006, None) => format!("broken: {why}"),
            _ => format!("{code} {reason}"),
        };
        Ended { wait: wait.map(Duration::from_millis), how }
    }
}

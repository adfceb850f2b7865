//! Publishing by the HTTP API: one at a time, in bursts behind a window, at a rate, or flat out.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    super::failure::Failure,
    board::{Board, Channel, Reasons},
    lane::{Answer, Api, Lane},
    latency::Latency,
    payload,
};

/// An event that is later than this counts from when it was due, so that a publisher that is held
/// up hides nothing. Below, the timer's own grain of a millisecond would be measured.
const LATE: Duration = Duration::from_millis(2);
/// The most events in one batch (contract §5).
pub(super) const BATCH: usize = 1000;
/// The largest batch's body that is sent, under the 4 MiB that are accepted.
const BATCH_BYTES: usize = 3 << 20;

/// When the next event goes out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// When at most so many events are under way to connections.
    Window(usize),
    /// So many a second, whatever comes of them.
    Rate(f64),
    /// When the last is answered.
    Flat,
}

/// What is published.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) pace: Pace,
    /// Events in one request.
    pub(super) batch: usize,
    /// Connections to the API. Each channel keeps to one of them: order is only promised there.
    pub(super) lanes: usize,
    pub(super) events: u64,
    pub(super) duration: Duration,
    /// Bytes of an event's data.
    pub(super) size: usize,
    pub(super) transient: bool,
    /// Silence after which what is owed is lost.
    pub(super) patience: Duration,
}

/// What the API made of it.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) sent: Cell<u64>,
    pub(super) accepted: Cell<u64>,
    pub(super) refused: RefCell<Reasons>,
    /// From a request to its answer.
    pub(super) answers: RefCell<Latency>,
    pub(super) took: Cell<Duration>,
    /// Events still to be sent.
    left: Cell<u64>,
}

/// Publishes to `channels` as planned, and waits for the last deliveries.
///
/// # Errors
/// Latencies cannot be kept. What the API refuses is counted, not an error.
pub(super) async fn publish(
    board: &Rc<Board>,
    api: &Rc<Api>,
    channels: &[Rc<Channel>],
    plan: &Plan,
) -> Result<Published, Failure> {
    let published = Published {
        sent: Cell::new(0),
        accepted: Cell::new(0),
        refused: RefCell::default(),
        answers: RefCell::new(Latency::new()?),
        took: Cell::new(Duration::ZERO),
        left: Cell::new(plan.events),
    };
    let lanes = plan.lanes.clamp(1, channels.len().max(1));
    let mut shares = vec![Vec::new(); lanes];
    for (share, channel) in (0..lanes).cycle().zip(channels) {
        if let Some(share) = shares.get_mut(share) {
            share.push(channel.clone());
        }
    }
    let start = Instant::now();
    let runs = shares.iter().enumerate().map(|(n, share)| {
        let publisher = Publisher {
            board,
            plan,
            channels: share,
            published: &published,
            lanes,
            lane: n,
            start,
        };
        publisher.run(Lane::new(api.clone()))
    });
    // One that waits for a server that hangs does not hold up the end for ever: its own patience
    // is 10 s.
    join_all(runs).await;
    published.took.set(start.elapsed());
    board.drain(plan.patience).await;
    Ok(published)
}

/// One lane at work.
struct Publisher<'a> {
    board: &'a Board,
    plan: &'a Plan,
    channels: &'a [Rc<Channel>],
    published: &'a Published,
    lanes: usize,
    lane: usize,
    start: Instant,
}

impl Publisher<'_> {
    async fn run(self, mut lane: Lane) {
        let end = self.start + self.plan.duration;
        let mut sent = 0_u64;
        while Instant::now() < end && !self.board.stop.is_cancelled() {
            let Some((count, due)) = self.turn(sent, end).await else { break };
            let count = (count as u64).min(self.published.left.get());
            if count == 0 {
                break;
            }
            self.published.left.set(self.published.left.get() - count);
            sent += count;
            self.send(&mut lane, count, due).await;
        }
    }

    /// Waits until it is time, and says how many events may go, and when the first was due.
    async fn turn(&self, sent: u64, end: Instant) -> Option<(usize, Option<Instant>)> {
        let batch = self.plan.batch.clamp(1, BATCH);
        match self.plan.pace {
            Pace::Flat => Some((batch, None)),
            Pace::Window(window) => {
                let batch = batch.min(window.max(1));
                let each = self.channels.iter().map(|channel| channel.live.get()).max()?;
                let low = (window.max(1) - batch) as u64 * each;
                let waited = self.board.owes_at_most(low, self.plan.patience);
                match timeout(end - Instant::now(), waited).await {
                    Ok(true) => Some((batch, None)),
                    Ok(false) | Err(_) => None,
                }
            }
            Pace::Rate(rate) => {
                // This lane's events are every `lanes`-th of all.
                let number = sent as f64 * self.lanes as f64 + self.lane as f64;
                let due = self.start + Duration::from_secs_f64(number / rate);
                tokio::select! {
                    () = sleep_until(due.min(end)) => {}
                    () = self.board.stop.cancelled() => return None,
                }
                (due < end).then_some((batch, Some(due)))
            }
        }
    }

    async fn send(&self, lane: &mut Lane, count: u64, due: Option<Instant>) {
        let mut bodies = Vec::new();
        let mut bytes = 0;
        let now = Instant::now();
        let from = due.filter(|due| *due + LATE < now).unwrap_or(now);
        for _ in 0..count {
            // Any of them, so that tabs of one user do not get a burst for themselves.
            let pick = rand::random_range(0..self.channels.len());
            let Some(channel) = self.channels.get(pick) else { return };
            let n = channel.published.get();
            channel.published.set(n + 1);
            self.board.owe(channel);
            let at = self.board.stamp(from);
            let data = payload::write(&self.board.run, n, at, self.plan.size);
            let body = event(&channel.to, &data, self.plan.transient);
            bytes += body.len();
            bodies.push((channel.clone(), body));
            if bytes > BATCH_BYTES {
                self.exchange(lane, std::mem::take(&mut bodies)).await;
                bytes = 0;
            }
        }
        if !bodies.is_empty() {
            self.exchange(lane, bodies).await;
        }
    }

    async fn exchange(&self, lane: &mut Lane, events: Vec<(Rc<Channel>, String)>) {
        let (channels, mut bodies): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        let count = bodies.len() as u64;
        self.published.sent.set(self.published.sent.get() + count);
        let asked = Instant::now();
        let (single, answer) = match bodies.pop() {
            Some(body) if bodies.is_empty() => (true, lane.post("/v1/events", body.into()).await),
            Some(body) => {
                bodies.push(body);
                let body = format!("{{\"events\":[{}]}}", bodies.join(","));
                (false, lane.post("/v1/events/batch", body.into()).await)
            }
            None => return,
        };
        self.published.answers.borrow_mut().record(asked.elapsed());
        let mut refused = self.published.refused.borrow_mut();
        let accepted = match answer {
            Err(reason) => {
                refused.count(&reason, count);
                // Whether they were kept cannot be known; those that come are counted all the same.
                for channel in &channels {
                    self.board.settle(channel.live.get());
                }
                return;
            }
            Ok(answer) if single => vec![match answer.status.as_u16() {
                202 => None,
                _ => Some(answer.refusal()),
            }],
            Ok(answer) => items(&answer, channels.len()),
        };
        for (channel, outcome) in channels.iter().zip(accepted) {
            match outcome {
                None => self.published.accepted.set(self.published.accepted.get() + 1),
                Some(reason) => {
                    refused.count(&reason, 1);
                    self.board.settle(channel.live.get());
                }
            }
        }
    }
}

/// An event as the API takes it.
fn event(to: &str, data: &str, transient: bool) -> String {
    let kind = payload::KIND;
    let transient = if transient { r#","transient":true"# } else { "" };
    format!(r#"{{"to":{to},"type":"{kind}","data":{data}{transient}}}"#)
}

/// What became of each event of a batch: `None` accepted, else why not.
fn items(answer: &Answer, count: usize) -> Vec<Option<String>> {
    #[derive(Deserialize)]
    struct Results {
        results: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        status: u16,
    }
    if !answer.status.is_success() {
        return vec![Some(answer.refusal()); count];
    }
    let Ok(Results { results }) = serde_json::from_slice::<Results>(&answer.body) else {
        return vec![Some("an answer without results".to_owned()); count];
    };
    let mut items: Vec<_> = results
        .iter()
        .map(|item| (item.status != 202).then(|| format!("{} in a batch", item.status)))
        .collect();
    items.resize(count, Some("no result in a batch".to_owned()));
    items
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, retry_after: None, body: body.into() }
    }

    #[test]
    fn an_event_is_what_the_api_takes() {
        let text = event(r#"{"user":"a\"b"}"#, r#"{"n":1}"#, true);
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["to"]["user"], "a\"b");
        assert_eq!(event["type"], "bench");
        assert_eq!(event["transient"], true);
    }

    #[test]
    fn every_event_of_a_batch_has_its_outcome() {
        let mixed = answer(200, r#"{"results":[{"status":202,"id":"x"},{"status":422}]}"#);
        let told = items(&mixed, 3);
        assert_eq!(told[0], None);
        assert_eq!(told[1].as_deref(), Some("422 in a batch"));
        assert_eq!(told[2].as_deref(), Some("no result in a batch"));
        assert!(items(&answer(503, ""), 2).iter().all(Option::is_some));
        assert!(items(&answer(200, "hello"), 2).iter().all(Option::is_some));
    }
}

//! What all connections and publishers of one run share. One thread, so no locks.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    pin::pin,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{super::failure::Failure, latency::Latency, ledger::Arrival};

/// Reasons that are kept apart; what else comes is counted under one name.
const REASONS: usize = 20;
const OTHER: &str = "other reasons";

/// Counts by reason, bounded.
#[derive(Debug, Default)]
pub(super) struct Reasons(BTreeMap<String, u64>);

impl Reasons {
    pub(super) fn count(&mut self, reason: &str, by: u64) {
        let known = self.0.contains_key(reason) || self.0.len() < REASONS;
        *self.0.entry(if known { reason } else { OTHER }.to_owned()).or_default() += by;
    }

    pub(super) fn counts(&self) -> &BTreeMap<String, u64> {
        &self.0
    }
}

/// Where events go, and how many went: a user, a group, or everyone.
#[derive(Debug)]
pub(super) struct Channel {
    /// The member `to` of an event, as JSON.
    pub(super) to: String,
    /// Numbers that were given out: events are 0 to this, exclusive.
    pub(super) published: Cell<u64>,
    /// Connections that are open and get them.
    pub(super) live: Cell<u64>,
}

impl Channel {
    pub(super) fn new(to: String) -> Self {
        Self { to, published: Cell::new(0), live: Cell::new(0) }
    }
}

/// The counts of a run.
#[derive(Debug)]
pub(super) struct Board {
    /// The mark that our events bear.
    pub(super) run: String,
    /// Moments in events count from here.
    start: Instant,
    /// Cancelled when it is time to end.
    pub(super) stop: CancellationToken,
    pub(super) latency: RefCell<Latency>,
    pub(super) delivered: Cell<u64>,
    pub(super) repeated: Cell<u64>,
    pub(super) out_of_order: Cell<u64>,
    pub(super) pings: Cell<u64>,
    /// Frames of other people.
    pub(super) foreign: Cell<u64>,
    /// Deliveries that are still expected.
    owed: Cell<u64>,
    last: Cell<Instant>,
    /// Told whenever `owed` falls to `low` or below.
    changed: Notify,
    low: Cell<u64>,
}

impl Board {
    pub(super) fn new(run: String, stop: CancellationToken) -> Result<Self, Failure> {
        let now = Instant::now();
        Ok(Self {
            run,
            start: now,
            stop,
            latency: RefCell::new(Latency::new()?),
            delivered: Cell::new(0),
            repeated: Cell::new(0),
            out_of_order: Cell::new(0),
            pings: Cell::new(0),
            foreign: Cell::new(0),
            owed: Cell::new(0),
            last: Cell::new(now),
            changed: Notify::new(),
            low: Cell::new(0),
        })
    }

    /// A moment as it stands in events: nanoseconds since the start.
    pub(super) fn stamp(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Enters an arrival of an event that was sent at `at`.
    pub(super) fn arrived(&self, arrival: Arrival, at: u64) {
        let now = Instant::now();
        self.last.set(now);
        match arrival {
            Arrival::Repeated => return bump(&self.repeated),
            Arrival::Late => bump(&self.out_of_order),
            // What was skipped is not waited for.
            Arrival::Next { skipped } => self.settle(skipped + 1),
        }
        bump(&self.delivered);
        let took = self.stamp(now).saturating_sub(at);
        self.latency.borrow_mut().record(Duration::from_nanos(took));
    }

    /// One more event is on its way to `channel`.
    pub(super) fn owe(&self, channel: &Channel) {
        self.owed.set(self.owed.get() + channel.live.get());
    }

    /// So many deliveries are not expected any more.
    pub(super) fn settle(&self, deliveries: u64) {
        let owed = self.owed.get().saturating_sub(deliveries);
        self.owed.set(owed);
        if owed <= self.low.get() {
            self.changed.notify_waiters();
        }
    }

    /// Waits until at most `low` deliveries are owed. False: nothing came for `patience`, or it is
    /// time to end.
    pub(super) async fn owes_at_most(&self, low: u64, patience: Duration) -> bool {
        self.low.set(low);
        let asked = Instant::now();
        let mut stopped = pin!(self.stop.cancelled());
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.owed.get() <= low {
                return true;
            }
            let silence = self.last.get().max(asked) + patience;
            tokio::select! {
                () = changed => {}
                () = &mut stopped => return false,
                () = tokio::time::sleep_until(silence) => {
                    if self.last.get().max(asked) + patience <= Instant::now() {
                        return false;
                    }
                }
            }
        }
    }

    /// The same for the last of a run: ends early only in silence.
    pub(super) async fn drain(&self, patience: Duration) {
        self.low.set(0);
        let asked = Instant::now();
        while self.owed.get() > 0 {
            let silence = self.last.get().max(asked) + patience;
            if silence <= Instant::now() {
                return;
            }
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.owed.get() == 0 {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(silence) => {}
            }
        }
    }

    /// When the last event came.
    pub(super) fn last(&self) -> Instant {
        self.last.get()
    }

    /// Forgets what was measured, after the events that warm up.
    pub(super) fn clear(&self) {
        self.latency.borrow_mut().clear();
        self.delivered.set(0);
        self.last.set(Instant::now());
    }
}

pub(super) fn bump(count: &Cell<u64>) {
    count.set(count.get() + 1);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn board() -> Rc<Board> {
        Rc::new(Board::new("r".to_owned(), CancellationToken::new()).unwrap())
    }

    fn owing(board: &Board, deliveries: u64) {
        let channel = Channel::new(String::new());
        channel.live.set(deliveries);
        board.owe(&channel);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_opens_when_enough_has_come() {
        let board = board();
        owing(&board, 3);
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let waits = {
                    let board = board.clone();
                    tokio::task::spawn_local(async move { board.owes_at_most(1, PATIENCE).await })
                };
                tokio::task::yield_now().await;
                board.arrived(Arrival::Next { skipped: 0 }, 0);
                tokio::task::yield_now().await;
                assert!(!waits.is_finished());
                // One that was lost is not waited for.
                board.arrived(Arrival::Next { skipped: 1 }, 0);
                assert!(waits.await.unwrap());
            })
            .await;
        assert_eq!((board.owed.get(), board.delivered.get()), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_wait_and_arrivals_put_it_off() {
        let board = board();
        owing(&board, 10);
        let began = Instant::now();
        let arrivals = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(2)).await;
                board.arrived(Arrival::Next { skipped: 0 }, 0);
            }
        };
        let (open, ()) = tokio::join!(board.owes_at_most(0, PATIENCE), arrivals);
        assert!(!open);
        assert_eq!(began.elapsed().as_secs(), 8 + 3);
        board.drain(PATIENCE).await;
        assert_eq!(began.elapsed().as_secs(), 8 + 3 + 3, "a drain waits once more");
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_to_stop_ends_the_wait() {
        let board = board();
        owing(&board, 1);
        board.stop.cancel();
        assert!(!board.owes_at_most(0, PATIENCE).await);
    }

    #[test]
    fn reasons_are_bounded() {
        let mut reasons = Reasons::default();
        for n in 0..100 {
            reasons.count(&n.to_string(), 1);
        }
        assert_eq!(reasons.counts().len(), REASONS + 1);
        assert_eq!(reasons.counts()[OTHER], 80);
    }
}

//! Keeps what the store says of this replica true: its lease, and the seats of its connections.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{Known, Seats, Table};
use crate::{
    event::{ConnectionId, UserId},
    store::{replicas::LEASE, seats::Holding},
};

/// Between two renewals of the lease: three may fail before it ends.
const BEAT: Duration = Duration::from_secs(3);
/// Between two tries while the store is away.
const RETRY: Duration = Duration::from_millis(200);
/// How often every seat is entered again, whatever the store says.
const ROUND: Duration = Duration::from_secs(60);
/// Between two portions of a round.
const PACE: Duration = Duration::from_millis(50);
/// Users that are settled at once.
const PORTION: usize = 128;
/// When so many users were settled within `COMPANY`, a crowd is leaving, and the next are settled
/// together after that time: to tell the store costs more than what it does then.
const CROWD: usize = 4;
const COMPANY: Duration = Duration::from_millis(1);
/// How long the last releases may take.
const LAST: Duration = Duration::from_secs(1);
/// Connections whose eviction is announced at once.
const BATCH: usize = 256;

/// See the module. There is one for each process.
pub struct Keeper {
    seats: Arc<Seats>,
    /// Connections that had to give up their seats.
    over: mpsc::Receiver<Vec<ConnectionId>>,
    /// Users whose turn is still to come in this round.
    round: Vec<UserId>,
    next_round: Instant,
    beat: Instant,
    /// Nothing is settled before this moment, because it failed just now or more will have left.
    patience: Instant,
    /// How many users were settled since when.
    settled: (usize, Instant),
}

/// Users, what is held for each, and the number of its last change.
#[derive(Default)]
struct Portion {
    holdings: Vec<Holding>,
    changes: Vec<Option<u64>>,
}

impl Keeper {
    pub(super) fn new(seats: Arc<Seats>, over: mpsc::Receiver<Vec<ConnectionId>>) -> Self {
        let now = Instant::now();
        let (next_round, round) = (now + ROUND, Vec::new());
        Self { seats, over, round, next_round, beat: now, patience: now, settled: (0, now) }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let seats = Arc::clone(&self.seats);
        loop {
            let dirty = !seats.table().dirty.is_empty();
            tokio::select! {
                () = sleep_until(self.beat) => self.beat().await,
                Some(over) = self.over.recv() => self.announce(over).await,
                () = sleep_until(self.next_round) => self.begin_round(),
                () = sleep_until(self.patience), if dirty => self.settle_some().await,
                () = seats.dirty.notified(), if !dirty => {}
                _ = pace.tick(), if !self.round.is_empty() => self.go_round(),
            }
        }
    }

    /// Settles what is left when this process ends, and ends its lease.
    pub async fn finish(seats: &Seats) {
        let last = async {
            loop {
                let portion = seats.table().portion();
                if portion.holdings.is_empty() || !settle(seats, portion).await {
                    break;
                }
            }
            if let Err(error) = seats.store.leave(&seats.replica).await {
                tracing::debug!(%error, "the lease of this replica ends by itself");
            }
        };
        if timeout(LAST, last).await.is_err() {
            tracing::debug!("seats of this replica end with its lease");
        }
    }

    async fn beat(&mut self) {
        let before = Instant::now();
        self.beat = match self.seats.beat().await {
            Ok(fresh) => {
                if fresh {
                    // Once more when every replica has us on its list: until then they may take
                    // away what we enter now.
                    self.next_round = before + BEAT * 2;
                }
                if let Err(error) = self.seats.report().await {
                    tracing::debug!(%error, "the numbers of this replica are not told this time");
                }
                before + BEAT
            }
            Err(error) => {
                tracing::debug!(%error, "the lease of this replica could not be renewed");
                // An old list tells nothing: by now it may miss a replica whose seats are as old.
                let doubtful = self.seats.known.borrow().doubtful;
                self.seats.known.send_replace(Arc::new(Known { doubtful, ..Known::default() }));
                Instant::now() + RETRY
            }
        };
        debug_assert!(BEAT * 3 < LEASE);
    }

    /// Has connections closed whose seats went to newer ones.
    async fn announce(&mut self, mut over: Vec<ConnectionId>) {
        while over.len() < BATCH
            && let Ok(more) = self.over.try_recv()
        {
            over.extend(more);
        }
        if let Err(error) = self.seats.orders.replace(&over).await {
            // Their replicas enter the seats again, and the next handshake names them once more.
            tracing::debug!(%error, "connections too many stay for a while");
        }
    }

    fn begin_round(&mut self) {
        self.next_round = Instant::now() + ROUND;
        self.round = self.seats.table().users.keys().cloned().collect();
    }

    fn go_round(&mut self) {
        let from = self.round.len().saturating_sub(PORTION);
        self.seats.table().dirty.extend(self.round.drain(from..));
    }

    async fn settle_some(&mut self) {
        let portion = self.seats.table().portion();
        let count = portion.holdings.len();
        let good = settle(&self.seats, portion).await;
        let now = Instant::now();
        if now.duration_since(self.settled.1) >= COMPANY {
            self.settled = (0, now);
        }
        self.settled.0 += count;
        if self.settled.0 >= CROWD {
            self.patience = now + COMPANY;
        }
        if !good {
            self.patience = now + RETRY;
        }
    }
}

/// All at once, in one round trip; whether the store took it.
async fn settle(seats: &Seats, portion: Portion) -> bool {
    let Portion { holdings, changes } = portion;
    let answers = seats.store.enter_seats(&seats.replica, &holdings).await;
    let mut good = true;
    let mut table = seats.table();
    for (((user, _), changed), answer) in holdings.into_iter().zip(changes).zip(answers) {
        if let Err(error) = &answer {
            tracing::debug!(%error, "seats could not be settled; this is tried again");
            good = false;
        }
        // What changed meanwhile may have been entered before we said that it is not there.
        if answer.is_err() || table.users.get(&user).map(|holding| holding.changed) != changed {
            table.dirty.insert(user);
        }
    }
    good
}

impl Table {
    /// Takes some users out of the dirty ones.
    fn portion(&mut self) -> Portion {
        let users: Vec<UserId> = self.dirty.iter().take(PORTION).cloned().collect();
        let mut portion = Portion::default();
        for user in users {
            self.dirty.remove(&user);
            portion.changes.push(self.users.get(&user).map(|holding| holding.changed));
            let held = self.held(&user);
            portion.holdings.push((user, held));
        }
        // A crowd has left, and was settled.
        if self.dirty.capacity() > 1_024 && self.dirty.is_empty() {
            self.dirty.shrink_to_fit();
        }
        portion
    }
}

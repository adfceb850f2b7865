//! What clients, publishers and the conductor share.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{cast::Size, ledger::Ledger, trace::Moment, trace::Trace};

/// Where a replica listens, also after a restart.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub public: SocketAddr,
    pub internal: SocketAddr,
}

pub struct Stage {
    pub seed: u64,
    pub size: Size,
    pub addresses: Vec<Address>,
    /// Publishers begin nothing more.
    pub no_more: CancellationToken,
    /// Everyone goes home.
    pub over: CancellationToken,
    ledger: Mutex<Ledger>,
    traces: Vec<Mutex<Trace>>,
    after: Mutex<&'static str>,
    ends: Mutex<BTreeMap<String, u64>>,
    start: Instant,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}

impl Stage {
    pub fn new(seed: u64, size: Size, addresses: Vec<Address>) -> Self {
        Self {
            seed,
            size,
            addresses,
            no_more: CancellationToken::new(),
            over: CancellationToken::new(),
            ledger: Mutex::default(),
            traces: size.seats().into_iter().map(|seat| Mutex::new(Trace::new(seat))).collect(),
            after: Mutex::new("the start"),
            ends: Mutex::default(),
            start: Instant::now(),
        }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        hold(&self.ledger)
    }

    pub fn trace(&self, seat: usize) -> MutexGuard<'_, Trace> {
        hold(&self.traces[seat])
    }

    pub fn seats(&self) -> usize {
        self.traces.len()
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn ms(&self) -> u32 {
        u32::try_from(self.elapsed().as_millis()).expect("less than 49 days")
    }

    pub fn moment(&self, replica: usize) -> Moment {
        Moment { ms: self.ms(), replica, after: *hold(&self.after) }
    }

    /// From now on, this is what a gap came after.
    pub fn fault(&self, name: &'static str) {
        *hold(&self.after) = name;
    }

    /// A connection ended like this.
    pub fn ended(&self, how: String) {
        *hold(&self.ends).entry(how).or_default() += 1;
    }

    pub fn ends(&self) -> BTreeMap<String, u64> {
        hold(&self.ends).clone()
    }

    /// Say it, with the time.
    pub fn say(&self, what: &str) {
        println!("{:9.3}  {what}", self.elapsed().as_secs_f64());
    }
}

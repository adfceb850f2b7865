//! What a replica tells of itself, for whoever asks any of them.

use std::{
    collections::VecDeque,
    ops::Add,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Samples that rates are made from: with one a beat, those of the last 15 s.
const SAMPLES: usize = 6;

/// The numbers of a process at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// Open connections.
    pub connections: u64,
    /// Users with a connection.
    pub users: u64,
    /// Whether `/readyz` would answer 200.
    pub ready: bool,
    /// Events of back ends that were accepted here, since it began.
    pub published: u64,
    /// Messages that came over the bus, since it began.
    pub received: u64,
    /// Events that were handed to sockets, since it began.
    pub delivered: u64,
}

/// Per second, over the last 15 s or since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Events of back ends that were accepted.
    pub published: f64,
    /// Messages that came over the bus; each replica gets every broadcast.
    pub received: f64,
    /// Events that were handed to sockets.
    pub delivered: f64,
}

impl Add for Rates {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            published: tenths(self.published + other.published),
            received: tenths(self.received + other.received),
            delivered: tenths(self.delivered + other.delivered),
        }
    }
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its version.
    pub version: String,
    /// When it began, in milliseconds since 1970.
    pub since_ms: u64,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Open connections.
    pub connections: u64,
    /// Users with a connection.
    pub users: u64,
    /// How much it does.
    pub rates: Rates,
}

/// Where the numbers come from.
pub type Source = Box<dyn Fn() -> Numbers + Send + Sync>;

/// Makes reports of this process.
pub struct Reporter {
    source: Source,
    since_ms: u64,
    samples: Mutex<VecDeque<(Instant, Numbers)>>,
}

impl Reporter {
    /// Reports what `source` says.
    #[must_use]
    pub fn new(source: Source) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let samples = Mutex::new(VecDeque::from([(Instant::now(), source())]));
        Self { source, since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), samples }
    }

    /// As it is now.
    #[must_use]
    pub fn report(&self) -> Report {
        let now = (self.source)();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let rates = samples.front().map(|(begun, then)| {
            let seconds = begun.elapsed().as_secs_f64().max(1.0);
            let rate = |now: u64, then: u64| tenths(float(now.saturating_sub(then)) / seconds);
            Rates {
                published: rate(now.published, then.published),
                received: rate(now.received, then.received),
                delivered: rate(now.delivered, then.delivered),
            }
        });
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since_ms: self.since_ms,
            ready: now.ready,
            connections: now.connections,
            users: now.users,
            rates: rates.unwrap_or_default(),
        }
    }

    /// The same, and remembers it for the rates to come.
    pub fn sample(&self) -> Report {
        let report = self.report();
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back((Instant::now(), (self.source)()));
        if samples.len() > SAMPLES {
            samples.pop_front();
        }
        report
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53, and a rate for people")]
fn float(count: u64) -> f64 {
    count as f64
}

fn tenths(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_seconds() {
        let published = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&published);
        let reporter = Reporter::new(Box::new(move || Numbers {
            published: count.load(Ordering::Relaxed),
            ..Numbers::default()
        }));
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(3)).await;
            published.fetch_add(30, Ordering::Relaxed);
            let rate = reporter.sample().rates.published;
            assert!((rate - 10.0).abs() < 0.11, "{rate}");
        }
        for _ in 0..SAMPLES {
            tokio::time::advance(Duration::from_secs(3)).await;
            reporter.sample();
        }
        assert!(reporter.report().rates.published < 0.1);
    }
}

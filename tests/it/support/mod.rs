//! What the tests are made with.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use tokio::time::{Duration, Instant};

pub mod app;
pub mod client;
pub mod http;
pub mod jwks;
pub mod jwt;
pub mod openssl;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod sse;
pub mod tab;
pub mod tls;

/// How long a test waits for what should take milliseconds, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Polls `check` until it yields a value.
///
/// # Panics
/// After `within`, naming what did not happen.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port nobody listens on, outside the range from which the kernel takes the ports of outgoing
/// connections: it is still free when a server that was killed comes back to it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 11).unwrap_or(0) * 1_000;
    for _ in 0..11_000 {
        let port = 20_000 + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}

/// The value below which this share of `samples` lies.
pub fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    assert!(!samples.is_empty(), "no samples");
    samples.sort_unstable();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length is between 0 and it"
    )]
    let rank = ((samples.len() as f64) * share).ceil() as usize;
    samples[rank.clamp(1, samples.len()) - 1]
}

/// How often each value occurs.
pub fn tally<T: Ord>(values: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0) += 1;
    }
    counts
}

//! What the tests are made with.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::time::{Duration, Instant};

pub mod app;
pub mod client;
pub mod cluster;
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

/// Ports that one process of tests takes for itself.
const BLOCK: u16 = 1_000;

/// The first of this process's ports. It listens on it, so that no other process takes the block:
/// a server that was killed finds its port free when it comes back.
fn block() -> u16 {
    static GUARD: OnceLock<TcpListener> = OnceLock::new();
    let guard = GUARD.get_or_init(|| {
        // Below the range from which the kernel takes the ports of outgoing connections.
        let mut firsts = (10_000..32_000).step_by(BLOCK.into());
        let guard = firsts.find_map(|first: u16| TcpListener::bind(("127.0.0.1", first)).ok());
        guard.expect("a block of ports that no other tests have taken")
    });
    guard.local_addr().expect("it listens").port()
}

/// A port nobody listens on, and that no other process of tests will take.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 1..BLOCK {
        let port = block() + 1 + NEXT.fetch_add(1, Ordering::Relaxed) % (BLOCK - 1);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("all ports of this process are taken");
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

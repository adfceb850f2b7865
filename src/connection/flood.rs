//! How much one client may send.

use std::{num::NonZeroU32, time::Duration};

use super::Received;
use crate::rate::Bucket;

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Messages a second, for ever.
    pub per_second: NonZeroU32,
    /// Messages at once, after a rest.
    pub burst: NonZeroU32,
}

/// What a message costs; pings, pongs and the pieces of a message cost one. So a client that keeps
/// to the protocol never meets the limit for those, and a flood of them does.
const MESSAGE: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// Counts what a client sends. Most clients send nothing but pongs, a heartbeat apart.
pub(super) struct Flood {
    allowance: Option<Allowance>,
    bucket: Option<Box<Bucket>>,
}

impl Flood {
    /// `None`: no limit.
    pub(super) fn new(allowance: Option<Allowance>) -> Self {
        Self { allowance, bucket: None }
    }

    /// Whether this was too much.
    pub(super) fn exceeded(&mut self, received: &Received) -> bool {
        let Some(Allowance { per_second, burst }) = self.allowance else { return false };
        let cost = match received {
            Received::Text(_) | Received::Binary => MESSAGE,
            Received::Ping(_) | Received::Pong | Received::Piece => NonZeroU32::MIN,
            Received::Close(_) | Received::Fault(_) => return false,
        };
        let bucket = self.bucket.get_or_insert_with(|| {
            let count = per_second.saturating_mul(MESSAGE);
            let burst = burst.saturating_mul(MESSAGE);
            Box::new(Bucket::new(count, Duration::from_secs(1), burst))
        });
        bucket.take(cost).is_err()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn flood() -> Flood {
        let per_second = NonZeroU32::new(5).unwrap();
        let burst = NonZeroU32::new(10).unwrap();
        Flood::new(Some(Allowance { per_second, burst }))
    }

    #[tokio::test(start_paused = true)]
    async fn messages_have_a_burst_and_a_rate() {
        let mut flood = flood();
        let text = || Received::Text(Bytes::new());
        for _ in 0..10 {
            assert!(!flood.exceeded(&text()));
        }
        assert!(flood.exceeded(&text()));
        for _ in 0..50 {
            tokio::time::advance(Duration::from_millis(200)).await;
            assert!(!flood.exceeded(&text()));
        }
        assert!(flood.exceeded(&Received::Binary));
    }

    #[tokio::test(start_paused = true)]
    async fn pings_and_pieces_cost_a_tenth() {
        let mut flood = flood();
        for _ in 0..50 {
            assert!(!flood.exceeded(&Received::Ping(Bytes::new())));
            assert!(!flood.exceeded(&Received::Piece));
        }
        assert!(flood.exceeded(&Received::Pong));
        assert!(!flood.exceeded(&Received::Close(None)));
    }

    #[test]
    fn no_allowance_is_no_limit() {
        let mut flood = Flood::new(None);
        assert!((0..100_000).all(|_| !flood.exceeded(&Received::Binary)));
    }
}

//! Token buckets: so much a second for ever, and so much at once after a rest. The only file that
//! touches `governor`.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::time::Instant;

/// A bucket. Its state is one number (GCRA), which any thread may take from.
pub struct Bucket(RateLimiter<NotKeyed, InMemoryState, Since, NoOpMiddleware<Duration>>);

/// Time since the bucket was made, on a clock that tests can pause.
struct Since(Instant);

impl Clock for Since {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Bucket {
    /// A full bucket of `burst` tokens, of which `count` come back in each `period`.
    #[must_use]
    pub fn new(count: NonZeroU32, period: Duration, burst: NonZeroU32) -> Self {
        // Below a nanosecond a token there is no period; a quota that fast is none.
        let each = (period / count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(each).unwrap_or(Quota::per_second(count));
        Self(RateLimiter::direct_with_clock(quota.allow_burst(burst), Since(Instant::now())))
    }

    /// Takes `tokens`, which must be no more than the burst.
    ///
    /// # Errors
    /// When there are not so many; how long it takes until there are, if nobody else takes any.
    pub fn take(&self, tokens: NonZeroU32) -> Result<(), Duration> {
        match self.0.check_n(tokens) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(later)) => Err(later.wait_time_from(self.0.clock().now())),
            Err(_) => Err(Duration::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate() {
        let bucket = Bucket::new(n(10), Duration::from_secs(1), n(3));
        for _ in 0..3 {
            assert_eq!(bucket.take(n(1)), Ok(()));
        }
        assert_eq!(bucket.take(n(1)), Err(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(bucket.take(n(1)), Ok(()));
        assert!(bucket.take(n(1)).is_err());
        // A long rest fills it, and no more than that.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(bucket.take(n(3)), Ok(()));
        assert!(bucket.take(n(1)).is_err());
    }

    #[test]
    fn a_bucket_is_small() {
        assert!(size_of::<Bucket>() <= 64, "{} bytes", size_of::<Bucket>());
    }
}

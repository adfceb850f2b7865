//! At most one log line a second for things that a peer can make happen as often as it likes.

use std::cell::Cell;

use tokio::time::{Duration, Instant};

/// Lines may be this close.
const QUIET: Duration = Duration::from_secs(1);

/// Says when a line is due, and how many were held back.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
    held: Cell<u64>,
}

impl Throttle {
    /// `Some(held back since the last line)` if a line may be written now.
    #[must_use]
    pub fn check(&self) -> Option<u64> {
        let now = Instant::now();
        if self.last.get().is_some_and(|last| now.duration_since(last) < QUIET) {
            self.held.set(self.held.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.held.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_second() {
        let throttle = Throttle::default();
        assert_eq!(throttle.check(), Some(0));
        assert_eq!(throttle.check(), None);
        assert_eq!(throttle.check(), None);
        tokio::time::advance(QUIET).await;
        assert_eq!(throttle.check(), Some(2));
    }
}

//! Says the same thing seldom: a log line at the first failure, then at most one in 30 s.

use std::time::Duration;

use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(30);

/// For one kind of failure that repeats while an outage lasts.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    last: Option<Instant>,
    unsaid: u64,
}

impl Quiet {
    /// Calls `log` if a line is due, with the number of failures since the last line.
    pub(super) fn warn(&mut self, log: impl FnOnce(u64)) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            self.unsaid += 1;
        } else {
            log(std::mem::take(&mut self.unsaid));
            self.last = Some(now);
        }
    }

    /// It works again: the next failure is news.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_not_said_until_it_worked_in_between() {
        let (mut quiet, mut lines) = (Quiet::default(), 0);
        for _ in 0..5 {
            quiet.warn(|_| lines += 1);
        }
        assert_eq!(lines, 1);
        quiet.reset();
        quiet.warn(|_| lines += 1);
        assert_eq!(lines, 2);
    }
}

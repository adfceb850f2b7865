//! What one connection got of a channel whose events are numbered from 0.

use std::ops::Range;

/// The most holes that are remembered; what lies in older ones stays lost, even if it comes late.
const HOLES: usize = 1024;

/// Tells lost, repeated and reordered events of one connection apart.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// One more than the highest number that came.
    next: u64,
    /// Below `next`, what did not come; in order.
    holes: Vec<Range<u64>>,
    /// What was in holes that are not remembered any more.
    forgotten: u64,
}

/// What an arrival was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one, or a later one behind so many that did not come.
    Next {
        skipped: u64,
    },
    /// One that was missing: out of order.
    Late,
    Repeated,
}

impl Ledger {
    /// Enters event `n`.
    pub(super) fn enter(&mut self, n: u64) -> Arrival {
        if n >= self.next {
            let skipped = n - self.next;
            if skipped > 0 {
                self.open(self.next..n);
            }
            self.next = n.saturating_add(1);
            return Arrival::Next { skipped };
        }
        match self.holes.iter().position(|hole| hole.contains(&n)) {
            Some(at) => {
                let hole = self.holes.remove(at);
                let rest = [hole.start..n, n + 1..hole.end];
                for part in rest.into_iter().rev().filter(|part| !part.is_empty()) {
                    self.holes.insert(at, part);
                }
                Arrival::Late
            }
            None => Arrival::Repeated,
        }
    }

    /// Of the first `published` events of the channel, those that did not come.
    pub(super) fn lost(&self, published: u64) -> u64 {
        let holes: u64 = self.holes.iter().map(|hole| hole.end - hole.start).sum();
        self.forgotten + holes + published.saturating_sub(self.next)
    }

    /// Of the first `published` events, those that may still come in order.
    pub(super) fn ahead(&self, published: u64) -> u64 {
        published.saturating_sub(self.next)
    }

    fn open(&mut self, hole: Range<u64>) {
        if self.holes.len() >= HOLES {
            let oldest = self.holes.remove(0);
            self.forgotten += oldest.end - oldest.start;
        }
        self.holes.push(hole);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_is_lost_until_it_is_filled() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.enter(0), Arrival::Next { skipped: 0 });
        assert_eq!(ledger.enter(4), Arrival::Next { skipped: 3 });
        assert_eq!(ledger.lost(6), 4);
        assert_eq!(ledger.enter(2), Arrival::Late);
        assert_eq!(ledger.enter(2), Arrival::Repeated);
        assert_eq!(ledger.enter(4), Arrival::Repeated);
        assert_eq!((ledger.lost(5), ledger.ahead(6)), (2, 1));
    }

    #[test]
    fn memory_is_bounded_and_forgotten_holes_stay_lost() {
        let mut ledger = Ledger::default();
        for n in 0..2 * HOLES as u64 {
            ledger.enter(2 * n + 1);
        }
        assert_eq!(ledger.holes.len(), HOLES);
        assert_eq!(ledger.lost(0), 2 * HOLES as u64);
        assert_eq!(ledger.enter(0), Arrival::Repeated);
    }

    proptest! {
        /// Whatever comes in whatever order: what never came is lost, and each coming beyond the
        /// first is a repeat.
        #[test]
        fn the_sums_are_right(numbers in proptest::collection::vec(0_u64..40, 0..80)) {
            let mut ledger = Ledger::default();
            let mut seen = std::collections::BTreeSet::new();
            for n in numbers {
                let first = seen.insert(n);
                prop_assert_eq!(ledger.enter(n) == Arrival::Repeated, !first);
            }
            prop_assert_eq!(ledger.lost(40), 40 - seen.len() as u64);
        }
    }
}

//! Sessions that ended a moment ago, for handshakes that had looked them up before.

use std::collections::{HashSet, VecDeque};

use tokio::time::{Duration, Instant};

use crate::event::SessionKey;

/// They are remembered at least this long, which no handshake lasts.
const REMEMBER: Duration = Duration::from_secs(10);
/// Those that end within this time are remembered together.
const SLICE: Duration = Duration::from_secs(1);
/// So many are remembered at most; each takes 32 bytes.
const MOST: usize = 65_536;

/// See [the module](self).
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// The oldest first.
    slices: VecDeque<Slice>,
    /// When there were last more than can be remembered.
    overflowed: Option<Instant>,
}

#[derive(Debug)]
struct Slice {
    begun: Instant,
    sessions: HashSet<SessionKey, ahash::RandomState>,
}

impl Endings {
    /// These ended now.
    pub(super) fn add(&mut self, sessions: &HashSet<SessionKey>) {
        let now = Instant::now();
        self.forget(now);
        let held: usize = self.slices.iter().map(|slice| slice.sessions.len()).sum();
        if held + sessions.len() > MOST {
            self.overflowed = Some(now);
            self.slices.clear();
            return;
        }
        match self.slices.back_mut() {
            Some(last) if now.duration_since(last.begun) < SLICE => last.sessions.extend(sessions),
            _ => {
                let sessions = sessions.iter().copied().collect();
                self.slices.push_back(Slice { begun: now, sessions });
            }
        }
    }

    /// Whether this one did a moment ago, or may have: where there are too many to tell, it is
    /// better to look once too often.
    pub(super) fn may_have(&mut self, session: &SessionKey) -> bool {
        self.forget(Instant::now());
        self.overflowed.is_some()
            || self.slices.iter().any(|slice| slice.sessions.contains(session))
    }

    fn forget(&mut self, now: Instant) {
        // The last of a slice came up to its length after the first.
        let over = |begun: Instant| now.duration_since(begun) > REMEMBER + SLICE;
        while self.slices.front().is_some_and(|oldest| over(oldest.begun)) {
            self.slices.pop_front();
        }
        self.overflowed = self.overflowed.filter(|at| !over(*at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ids: impl IntoIterator<Item = usize>) -> HashSet<SessionKey> {
        ids.into_iter().map(|id| SessionKey::of(&id.to_string())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_store_does_not_shorten_the_memory() {
        let mut endings = Endings::default();
        let key = |id: usize| SessionKey::of(&id.to_string());
        // A batch every 50 ms, as from a store where sessions end all the time.
        for batch in 0..400 {
            endings.add(&keys([batch]));
            assert!(endings.may_have(&key(batch)));
            if batch >= 200 {
                assert!(endings.may_have(&key(batch - 200)), "10 s after batch {batch}");
            }
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        assert!(endings.slices.len() <= 13, "{} slices", endings.slices.len());
        assert!(!endings.may_have(&key(0)) && !endings.may_have(&key(1_000)));
        tokio::time::advance(REMEMBER + 2 * SLICE).await;
        assert!(!endings.may_have(&key(399)));
        assert!(endings.slices.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_are_all_looked_at_for_a_while() {
        let mut endings = Endings::default();
        let stranger = SessionKey::of("stranger");
        endings.add(&keys(0..MOST));
        assert!(!endings.may_have(&stranger));
        endings.add(&keys([MOST]));
        assert!(endings.may_have(&stranger) && endings.may_have(&SessionKey::of("0")));
        assert!(endings.slices.is_empty());
        tokio::time::advance(REMEMBER + 2 * SLICE).await;
        assert!(!endings.may_have(&stranger));
    }
}

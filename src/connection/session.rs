//! The state of one connection, pure: what happened goes in with the time, what is to be done and
//! the one next deadline come out. No socket, no timer, so tests drive it through hours in a
//! moment.

use std::time::Duration;

use tokio::time::Instant;

use crate::event::CloseCause;

/// A credential's end is announced this long before it (contract §3).
const WARN_BEFORE: Duration = Duration::from_secs(60);

/// What a connection has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing came for a heartbeat: ask whether the peer lives.
    Ping,
    /// Look the session up: it may be gone.
    Recheck,
    /// The credential ends in this time.
    Warn(Duration),
    /// The end.
    Close(CloseCause),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Session {
    heartbeat: Duration,
    leeway: Duration,
    seen: Instant,
    pinged: Option<Instant>,
    expires: Option<Instant>,
    warned: bool,
    leave: Option<Instant>,
    recheck: Option<Instant>,
    /// The peer cannot answer.
    mute: bool,
}

impl Session {
    /// A connection that begins now. `leeway` is granted after the credential's end.
    #[must_use]
    pub fn new(now: Instant, heartbeat: Duration, leeway: Duration) -> Self {
        Self {
            heartbeat,
            leeway,
            seen: now,
            pinged: None,
            expires: None,
            warned: false,
            leave: None,
            recheck: None,
            mute: false,
        }
    }

    /// The peer has no way to say anything: it hears of us once a heartbeat, and nothing is expected
    /// of it. That it is gone shows in what cannot be written.
    pub fn expects_nothing(&mut self) {
        self.mute = true;
    }

    /// The first look comes this much early, so that those who connected together are not asked
    /// together for ever.
    pub fn hasten(&mut self, by: Duration) {
        self.seen = self.seen.checked_sub(by).unwrap_or(self.seen);
    }

    /// The credential's end; `None` if it has none. A renewal sets it anew.
    pub fn expires(&mut self, at: Option<Instant>) {
        self.expires = at;
        self.warned = false;
    }

    /// Look the session up at this moment; `None`: it need not be.
    pub fn recheck(&mut self, at: Option<Instant>) {
        self.recheck = at;
    }

    /// Any frame of the peer is a sign of life.
    pub fn seen(&mut self, now: Instant) {
        self.seen = now;
        self.pinged = None;
    }

    /// Close with 1012 at this moment, or earlier if asked twice.
    pub fn leave(&mut self, at: Instant) {
        self.leave = Some(self.leave.map_or(at, |earlier| earlier.min(at)));
    }

    /// The next thing that is due, or `None` when there is nothing more for now.
    pub fn due(&mut self, now: Instant) -> Option<Step> {
        if self.ends().is_some_and(|end| end <= now) {
            return Some(Step::Close(CloseCause::TokenExpired));
        }
        if self.leave.is_some_and(|at| at <= now) {
            return Some(Step::Close(CloseCause::Restart));
        }
        if self.recheck.is_some_and(|at| at <= now) {
            self.recheck = None;
            return Some(Step::Recheck);
        }
        if let (Some(expires), Some(warn)) = (self.expires, self.warning())
            && warn <= now
        {
            self.warned = true;
            return Some(Step::Warn(expires.saturating_duration_since(now)));
        }
        if self.life() <= now {
            if self.pinged.is_some() {
                return Some(Step::Close(CloseCause::NoPong));
            }
            if self.mute {
                self.seen = now;
            } else {
                self.pinged = Some(now);
            }
            return Some(Step::Ping);
        }
        None
    }

    /// When [`due`](Self::due) has something next.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        [self.ends(), self.leave, self.recheck, self.warning()]
            .into_iter()
            .flatten()
            .fold(self.life(), Instant::min)
    }

    /// When the heartbeat wants something: a ping, or the verdict on the last one.
    fn life(&self) -> Instant {
        self.pinged.unwrap_or(self.seen) + self.heartbeat
    }

    /// The credential's end, with the leeway that it was checked with.
    fn ends(&self) -> Option<Instant> {
        self.expires.map(|at| at + self.leeway)
    }

    fn warning(&self) -> Option<Instant> {
        let expires = self.expires.filter(|_| !self.warned)?;
        Some(expires.checked_sub(WARN_BEFORE).unwrap_or(expires))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEAT: Duration = Duration::from_secs(25);
    const LEEWAY: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    fn session() -> (Instant, Session) {
        let now = Instant::now();
        (now, Session::new(now, BEAT, LEEWAY))
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_pinged_and_then_closed() {
        let (start, mut session) = session();
        assert_eq!(session.due(start + BEAT - SECOND), None);
        assert_eq!(session.deadline(), start + BEAT);
        assert_eq!(session.due(start + BEAT), Some(Step::Ping));
        assert_eq!(session.due(start + BEAT), None);
        assert_eq!(session.deadline(), start + 2 * BEAT);
        assert_eq!(session.due(start + 2 * BEAT), Some(Step::Close(CloseCause::NoPong)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_look_may_come_early_and_the_next_are_a_heartbeat_apart() {
        let (start, mut session) = session();
        session.hasten(5 * SECOND);
        assert_eq!(session.deadline(), start + 20 * SECOND);
        assert_eq!(session.due(start + 20 * SECOND), Some(Step::Ping));
        session.seen(start + 20 * SECOND);
        assert_eq!(session.deadline(), start + 45 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_answer_is_pinged_for_ever() {
        let (start, mut session) = session();
        session.expects_nothing();
        for n in 1..100 {
            let at = start + n * BEAT;
            assert_eq!(session.deadline(), at);
            assert_eq!(session.due(at - SECOND), None);
            assert_eq!(session.due(at), Some(Step::Ping));
            assert_eq!(session.due(at), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn any_frame_is_life_also_late() {
        let (start, mut session) = session();
        assert_eq!(session.due(start + BEAT), Some(Step::Ping));
        session.seen(start + 2 * BEAT - SECOND);
        assert_eq!(session.due(start + 2 * BEAT), None);
        assert_eq!(session.due(start + 3 * BEAT - SECOND), Some(Step::Ping));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_credential_is_announced_once_and_kept() {
        let (start, mut session) = session();
        let end = start + Duration::from_secs(100);
        session.expires(Some(end));
        session.seen(start + Duration::from_secs(39));
        assert_eq!(session.due(start + Duration::from_secs(39)), None);
        assert_eq!(session.due(start + Duration::from_secs(40)), Some(Step::Warn(60 * SECOND)));
        session.seen(end + LEEWAY - SECOND);
        assert_eq!(session.due(end + LEEWAY - SECOND), None);
        assert_eq!(session.due(end + LEEWAY), Some(Step::Close(CloseCause::TokenExpired)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_moves_the_end() {
        let (start, mut session) = session();
        session.expires(Some(start + SECOND));
        assert_eq!(session.due(start), Some(Step::Warn(SECOND)));
        session.expires(Some(start + Duration::from_secs(3600)));
        session.seen(start + 90 * SECOND);
        assert_eq!(session.due(start + 90 * SECOND), None);
    }

    #[tokio::test(start_paused = true)]
    async fn leaving_has_its_moment() {
        let (start, mut session) = session();
        session.leave(start + 5 * SECOND);
        session.leave(start + 9 * SECOND);
        assert_eq!(session.deadline(), start + 5 * SECOND);
        assert_eq!(session.due(start + 5 * SECOND), Some(Step::Close(CloseCause::Restart)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_at_the_session_comes_once() {
        let (start, mut session) = session();
        session.recheck(Some(start + SECOND));
        assert_eq!(session.deadline(), start + SECOND);
        assert_eq!(session.due(start + SECOND), Some(Step::Recheck));
        assert_eq!(session.due(start + SECOND), None);
        assert_eq!(session.deadline(), start + BEAT);
    }

    proptest! {
        /// Nothing is ever due before the deadline, and something always is at it.
        #[test]
        fn the_deadline_is_exact(
            expires in prop::option::of(0_u64..200),
            leave in prop::option::of(0_u64..200),
            seen in prop::collection::vec(0_u64..200, 0..8),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let _guard = runtime.enter();
            let (start, mut session) = session();
            session.expires(expires.map(|s| start + Duration::from_secs(s)));
            if let Some(s) = leave { session.leave(start + Duration::from_secs(s)); }
            let mut seen = seen;
            seen.sort_unstable();
            let mut now = start;
            for _ in 0..50 {
                let at = session.deadline();
                if let Some(s) = seen.first().copied() && start + Duration::from_secs(s) < at {
                    now = now.max(start + Duration::from_secs(s));
                    session.seen(now);
                    seen.remove(0);
                    continue;
                }
                if at > now {
                    prop_assert_eq!(session.clone().due(at - Duration::from_millis(1)), None);
                }
                now = now.max(at);
                let step = session.due(now);
                prop_assert!(step.is_some());
                if matches!(step, Some(Step::Close(_))) { break; }
            }
        }
    }
}

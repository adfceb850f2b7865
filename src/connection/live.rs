//! An open connection: what arrives, what is due, and what is asked about its credential.

use std::{
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::LocalBoxFuture;
use rand::Rng as _;
use tokio::time::Instant;

use super::{
    Inbound, Received, Settings, Standing,
    farewell::End,
    flood::Flood,
    message::ClientMessage,
    replay::Replay,
    session::{Session, Step},
};
use crate::{
    bus::{
        BusError,
        replays::{Replays, Since},
    },
    event::{Channel, CloseCause, Group, Principal},
    frame::{Frame, Notice},
    outbox::{Outbox, Push, Signal},
    rate::Bucket,
    registry::{Registration, Start},
    telemetry::DropReason,
    timer::Timer,
};

/// Each renewal costs a signature and a question to Redis: a connection has one a second.
const RENEWALS: Duration = Duration::from_secs(1);
/// And so many at once after a rest, so that a page whose token was no good can send the next.
const RENEWALS_AT_ONCE: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// The share of a heartbeat by which the first ping may come early.
const EARLY: f64 = 0.25;

/// What an open connection knows and does.
pub(super) struct Live {
    session: Session,
    outbox: Rc<Outbox>,
    registration: Rc<Registration>,
    principal: Principal,
    settings: Rc<Settings>,
    /// What brings the connection to where this replica is, while it is behind.
    replay: Option<LocalBoxFuture<'static, ()>>,
    /// It fell behind again meanwhile.
    replay_again: bool,
    /// A question about the credential that is under way; there is one at a time.
    pending: Option<LocalBoxFuture<'static, Answer>>,
    flood: Flood,
    /// What is left of renewals, once there was one.
    renewals: Option<Box<Bucket>>,
    /// Look the session up once that is answered: it was asked before the reason to look.
    look_again: bool,
}

/// The answer to a question about the credential.
enum Answer {
    Renewed(Result<(Principal, Vec<Start>), &'static str>),
    Rechecked(Standing, Vec<Start>),
}

impl Live {
    /// A connection that begins now.
    pub(super) fn new(
        outbox: &Rc<Outbox>,
        registration: Registration,
        principal: Principal,
        settings: &Rc<Settings>,
    ) -> Self {
        Self {
            session: Session::new(Instant::now(), settings.heartbeat, settings.leeway),
            outbox: Rc::clone(outbox),
            registration: Rc::new(registration),
            principal,
            settings: Rc::clone(settings),
            replay: None,
            replay_again: false,
            pending: None,
            flood: Flood::new(settings.inbound),
            renewals: None,
            look_again: false,
        }
    }

    /// Plans what is to be done without anyone asking. `resumes`: the client asked for what it missed;
    /// `speaks`: something can come from it.
    pub(super) fn begin(&mut self, resumes: bool, speaks: bool) {
        if !speaks {
            self.session.expects_nothing();
        }
        self.session.hasten(self.settings.heartbeat.mul_f64(rand::rng().random_range(0.0..EARLY)));
        self.catch_up(resumes);
        self.plan_recheck();
        self.session.expires(moment(self.principal.expires));
    }

    /// Runs to the end.
    pub(super) async fn run(&mut self, inbound: &mut impl Inbound, timer: &Timer) -> End {
        loop {
            if let Some(cause) = self.settle() {
                return End::Ours(cause, None);
            }
            timer.set(self.session.deadline());
            // Frames of the client move deadlines away, never nearer, so the timer is only set
            // again when it has come or a signal or a renewal changed something.
            let changed = loop {
                let step = tokio::select! {
                    biased;
                    signal = self.outbox.signalled() => self.signal(signal),
                    received = inbound.next() => self.received(received),
                    answer = answer(&mut self.pending) => self.answered(answer),
                    () = caught_up(&mut self.replay) => self.caught_up(),
                };
                match step {
                    Next::Go => {}
                    Next::Settle => break None,
                    Next::End(end) => break Some(end),
                }
            };
            if let Some(end) = changed {
                return end;
            }
        }
    }

    /// Does what is due now.
    fn settle(&mut self) -> Option<CloseCause> {
        while let Some(step) = self.session.due(Instant::now()) {
            match step {
                Step::Close(cause) => return Some(cause),
                Step::Recheck => self.recheck(),
                Step::Ping => self.say(&Frame::heartbeat()),
                Step::Warn(left) => {
                    let notice = Notice::TokenExpiring { expires_in_ms: millis(left) };
                    self.say(&notice.frame());
                }
            }
        }
        None
    }

    fn say(&self, frame: &Frame) {
        // A full outbox has asked for a close already, and a closed one needs no more words.
        let (Push::Queued | Push::Overflow(_) | Push::Closed) = self.outbox.deliver(frame);
    }

    fn signal(&mut self, signal: Signal) -> Next {
        match signal {
            Signal::Gone => Next::End(End::Ours(CloseCause::Gone, None)),
            Signal::Close(cause) => Next::End(End::Ours(cause, None)),
            Signal::Leave(at) => {
                self.session.leave(at);
                Next::Settle
            }
            Signal::Recheck => {
                self.recheck();
                Next::Go
            }
            Signal::CatchUp => {
                self.catch_up(false);
                Next::Go
            }
            Signal::Due => Next::Settle,
        }
    }

    /// Brings the connection to where this replica is, if it is behind.
    fn catch_up(&mut self, asked: bool) {
        if self.replay.is_some() {
            self.replay_again = true;
        } else if asked || !self.registration.behind().is_empty() {
            let replay = Replay {
                registration: Rc::clone(&self.registration),
                outbox: Rc::clone(&self.outbox),
                replays: Arc::clone(&self.settings.replays),
                asked,
            };
            self.replay = Some(Box::pin(replay.run()));
        }
    }

    fn caught_up(&mut self) -> Next {
        self.replay = None;
        if std::mem::take(&mut self.replay_again) {
            self.catch_up(false);
        }
        Next::Go
    }

    fn received(&mut self, received: Option<Received>) -> Next {
        let Some(received) = received else {
            return Next::End(End::Ours(CloseCause::Gone, None));
        };
        if self.flood.exceeded(&received) {
            return Next::End(End::Ours(CloseCause::Rate, None));
        }
        self.session.seen(Instant::now());
        match received {
            Received::Ping(payload) => self.outbox.pong(&payload),
            Received::Pong | Received::Piece => {}
            Received::Binary => self.settings.metrics.dropped(DropReason::InboundBinary, 1),
            Received::Text(text) => return self.message(&text),
            Received::Close(code) => return Next::End(End::Theirs(code)),
            Received::Fault(cause) => return Next::End(End::Ours(cause, None)),
        }
        Next::Go
    }

    fn message(&mut self, text: &[u8]) -> Next {
        match ClientMessage::parse(text) {
            ClientMessage::Pong => {}
            ClientMessage::Token(Some(token)) => self.renew(token),
            ClientMessage::Token(None) => {
                self.say(&Notice::RenewalFailed { reason: "invalid" }.frame());
            }
            ClientMessage::Reserved => self.settings.metrics.dropped(DropReason::InboundUnread, 1),
            ClientMessage::Other => {
                if let Err(reason) = self.forward(text) {
                    self.settings.metrics.dropped(reason, 1);
                }
            }
            ClientMessage::Invalid => self.settings.metrics.dropped(DropReason::InboundInvalid, 1),
        }
        Next::Go
    }

    fn forward(&self, text: &[u8]) -> Result<(), DropReason> {
        let id = self.registration.connection();
        let (Some(outlet), Some(id)) = (&self.settings.outlet, id) else {
            return Err(DropReason::InboundUnread);
        };
        outlet.send(&self.principal.user, id, text)
    }

    fn renew(&mut self, token: String) {
        if self.pending.is_some() {
            return self.say(&Notice::RenewalFailed { reason: "busy" }.frame());
        }
        let renewals = self.renewals.get_or_insert_with(|| {
            Box::new(Bucket::new(NonZeroU32::MIN, RENEWALS, RENEWALS_AT_ONCE))
        });
        if renewals.take(NonZeroU32::MIN).is_err() {
            return self.say(&Notice::RenewalFailed { reason: "too_often" }.frame());
        }
        let renewal = self.settings.credentials.renew(token);
        let begin = self.beginning();
        self.pending = Some(Box::pin(async move {
            let principal = match renewal.await {
                Ok(principal) => principal,
                Err(reason) => return Answer::Renewed(Err(reason)),
            };
            match begin.groups(&principal.groups).await {
                Ok(starts) => Answer::Renewed(Ok((principal, starts))),
                Err(_away) => Answer::Renewed(Err("unavailable")),
            }
        }));
    }

    fn recheck(&mut self) {
        if self.pending.is_some() {
            self.look_again = true;
        } else if self.principal.cookie.is_some() {
            let look = self.settings.credentials.recheck(&self.principal);
            let begin = self.beginning();
            self.pending = Some(Box::pin(async move {
                let standing = look.await;
                let Standing::Holds(principal) = &standing else {
                    return Answer::Rechecked(standing, Vec::new());
                };
                match begin.groups(&principal.groups).await {
                    Ok(starts) => Answer::Rechecked(standing, starts),
                    Err(_away) => Answer::Rechecked(Standing::Unknown, Vec::new()),
                }
            }));
        }
    }

    fn plan_recheck(&mut self) {
        let around = self.settings.recheck.mul_f64(rand::rng().random_range(0.75..1.25));
        let cookie = self.principal.cookie.is_some();
        self.session.recheck(cookie.then(|| Instant::now() + around));
    }

    fn answered(&mut self, answer: Answer) -> Next {
        self.pending = None;
        match answer {
            Answer::Renewed(Ok((principal, starts))) if principal.user == self.principal.user => {
                self.adopt(principal, starts);
                self.plan_recheck();
                let left = self
                    .principal
                    .expires
                    .map(|at| millis(at.duration_since(SystemTime::now()).unwrap_or_default()));
                let groups = &self.principal.groups;
                self.say(&Notice::Renewed { expires_in_ms: left, groups }.frame());
            }
            // The next look stays where it is: a client must not put it off by failing.
            Answer::Renewed(renewed) => {
                let reason = renewed.err().unwrap_or("other_user");
                self.say(&Notice::RenewalFailed { reason }.frame());
            }
            Answer::Rechecked(Standing::Holds(principal), starts) => {
                self.adopt(*principal, starts);
                self.plan_recheck();
            }
            Answer::Rechecked(Standing::Unknown, _) => self.plan_recheck(),
            Answer::Rechecked(Standing::Ended, _) => {
                return Next::End(End::Ours(CloseCause::SessionEnded, None));
            }
        }
        if std::mem::take(&mut self.look_again) {
            self.recheck();
        }
        Next::Settle
    }

    /// Stands on this credential from now on.
    fn adopt(&mut self, principal: Principal, starts: Vec<Start>) {
        self.session.expires(moment(principal.expires));
        let groups = principal.groups.clone().into();
        self.registration.update(principal.session, groups, starts);
        self.principal = principal;
        self.catch_up(false);
    }

    fn beginning(&self) -> Beginning {
        Beginning {
            known: self.principal.groups.clone(),
            replays: Arc::clone(&self.settings.replays),
        }
    }
}

/// Where a connection begins in groups that it did not have.
struct Beginning {
    known: Vec<Group>,
    replays: Arc<Replays>,
}

impl Beginning {
    async fn groups(&self, groups: &[Group]) -> Result<Vec<Start>, BusError> {
        let new = groups.iter().filter(|group| !self.known.contains(group));
        let channels: Vec<Channel> = new.cloned().map(Channel::Group).collect();
        if channels.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.replays.open(&channels, &Since::Now).await?.starts)
    }
}

async fn caught_up(replay: &mut Option<LocalBoxFuture<'static, ()>>) {
    match replay {
        Some(replay) => replay.await,
        None => std::future::pending().await,
    }
}

async fn answer(pending: &mut Option<LocalBoxFuture<'static, Answer>>) -> Answer {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

enum Next {
    /// On, with the deadline as it is.
    Go,
    /// Look at the deadlines again.
    Settle,
    End(End),
}

/// A time of day as a moment of the clock that timers use; `None` when there is no end, or none
/// within reach.
fn moment(at: Option<SystemTime>) -> Option<Instant> {
    let now = Instant::now();
    match at?.duration_since(SystemTime::now()) {
        Ok(ahead) => now.checked_add(ahead),
        Err(past) => Some(now.checked_sub(past.duration()).unwrap_or(now)),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! One connection: the actor that owns it from the handshake to the end of its socket.
//!
//! The actor reads what the client sends, keeps the [`Session`]'s deadlines and closes. It writes
//! nothing itself and never waits for the socket: all that is sent goes through the outbox.

use std::{
    future::Future,
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use rand::Rng as _;
use tokio::time::Instant;

use crate::{
    bus::{
        BusError,
        replays::{Replays, Since},
    },
    event::{Advice, Channel, CloseCause, Group, Principal},
    frame::{self, Frame, Notice},
    net::Link,
    outbox::{Outbox, Push, Signal},
    rate::Bucket,
    registry::{Permit, Registration, Start},
    telemetry::{DropReason, Metrics},
    timer::Timer,
};

mod flood;
mod guard;
mod message;
mod replay;
pub mod session;
pub mod websocket;

pub use flood::Allowance;

use flood::Flood;
use message::ClientMessage;
use replay::Replay;
use session::{Session, Step};

/// How long a peer has to answer a close and to read what is left, before it is reset.
const FAREWELL: Duration = Duration::from_secs(5);

/// Each renewal costs a signature and a question to Redis: a connection has one a second.
const RENEWALS: Duration = Duration::from_secs(1);
/// And so many at once after a rest, so that a page whose token was no good can send the next.
const RENEWALS_AT_ONCE: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// What a client sent.
#[derive(Debug)]
pub enum Received {
    /// A text message; valid UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary,
    /// A piece of a message that is not whole yet.
    Piece,
    /// A protocol ping, to be answered.
    Ping(Bytes),
    /// A protocol pong.
    Pong,
    /// A close, with its code.
    Close(Option<u16>),
    /// Something that the protocol forbids, or an end without a close.
    Fault(CloseCause),
}

/// The incoming side of a transport.
pub trait Inbound {
    /// The next thing the client sent; `None` when nothing more can come. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Received>>;
}

/// Checks credentials of connections that are open. Implemented with `auth`, which this module
/// does not know.
pub trait Credentials {
    /// A token that a client sent to replace its credential; the error is a word from a closed set.
    fn renew(&self, token: String) -> LocalBoxFuture<'static, Result<Principal, &'static str>>;

    /// Whether the session cookie behind a connection still holds. Only called for principals
    /// that have one.
    fn recheck(&self, principal: &Principal) -> LocalBoxFuture<'static, Standing>;
}

/// What became of a session.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It is there; with its end, where it has one, and its groups as they are now.
    Holds(Box<Principal>),
    /// It is gone, or another user's.
    Ended,
    /// It could not be looked up: the connection goes on as it is.
    Unknown,
}

/// What all connections of a worker have in common.
pub struct Settings {
    /// Silence after which a client is pinged.
    pub heartbeat: Duration,
    /// Granted after a credential's end.
    pub leeway: Duration,
    /// Looks after credentials.
    pub credentials: Rc<dyn Credentials>,
    /// How often a session cookie is looked up again; spread by a quarter either way.
    pub recheck: Duration,
    /// Where ends and drops are counted.
    pub metrics: Metrics,
    /// What a client may send; `None`: as much as it likes.
    pub inbound: Option<Allowance>,
    /// Reads what connections missed.
    pub replays: Arc<Replays>,
}

/// A connection that was let in.
pub struct Connection<I> {
    /// Its incoming side.
    pub inbound: I,
    /// Its outgoing side.
    pub outbox: Rc<Outbox>,
    /// Its socket.
    pub link: Link,
    /// Its place in the registry.
    pub registration: Registration,
    /// It asked for what it missed, and is told when it has everything.
    pub resumes: bool,
    /// Its place in the process, kept until the socket is gone: a drain waits for it.
    pub permit: Permit,
    /// Its deadline.
    pub timer: Timer,
    /// Whose it is.
    pub principal: Principal,
    /// What it has in common with others.
    pub settings: Rc<Settings>,
    /// Its seat among its user's; given back when its farewell begins, which may be long.
    pub seat: Box<dyn std::any::Any>,
    /// What it occupies elsewhere; given back at its end.
    pub hold: Box<dyn std::any::Any>,
}

impl<I: Inbound> Connection<I> {
    /// Runs it to its end.
    pub async fn run(self) {
        let Self {
            mut inbound,
            outbox,
            link,
            registration,
            resumes,
            permit,
            timer,
            principal,
            settings,
            seat,
            hold,
        } = self;
        let mut live = Live {
            session: Session::new(Instant::now(), settings.heartbeat, settings.leeway),
            outbox: Rc::clone(&outbox),
            registration: Rc::new(registration),
            principal,
            settings: Rc::clone(&settings),
            replay: None,
            replay_again: false,
            pending: None,
            flood: Flood::new(settings.inbound),
            renewals: Bucket::new(NonZeroU32::MIN, RENEWALS, RENEWALS_AT_ONCE),
            look_again: false,
        };
        live.catch_up(resumes);
        live.plan_recheck();
        live.session.expires(moment(live.principal.expires));
        let end = live.run(&mut inbound, &timer).await;
        // Out of the registry before the farewell: nothing is delivered after it.
        drop(live);
        drop((timer, seat));
        settings.metrics.close(end.cause());
        part(end, &mut inbound, &outbox, &link).await;
        drop((permit, hold));
    }
}

/// Closes a connection that was never let in, so that its browser learns why. `detail` replaces
/// the reason where people are told more.
pub async fn reject<I: Inbound>(
    mut inbound: I,
    outbox: Rc<Outbox>,
    link: Link,
    cause: CloseCause,
    detail: Option<String>,
) {
    part(End::Ours(cause, detail), &mut inbound, &outbox, &link).await;
}

enum End {
    /// We close.
    Ours(CloseCause, Option<String>),
    /// The client closed, with this code.
    Theirs(Option<u16>),
}

impl End {
    fn cause(&self) -> CloseCause {
        match self {
            Self::Ours(cause, _) => *cause,
            Self::Theirs(_) => CloseCause::Normal,
        }
    }
}

struct Live {
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
    /// What is left of renewals.
    renewals: Bucket,
    /// Look the session up once that is answered: it was asked before the reason to look.
    look_again: bool,
}

/// The answer to a question about the credential.
enum Answer {
    Renewed(Result<(Principal, Vec<Start>), &'static str>),
    Rechecked(Standing, Vec<Start>),
}

impl Live {
    async fn run(&mut self, inbound: &mut impl Inbound, timer: &Timer) -> End {
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
            ClientMessage::Other => self.settings.metrics.dropped(DropReason::InboundUnread, 1),
            ClientMessage::Invalid => self.settings.metrics.dropped(DropReason::InboundInvalid, 1),
        }
        Next::Go
    }

    fn renew(&mut self, token: String) {
        if self.pending.is_some() {
            return self.say(&Notice::RenewalFailed { reason: "busy" }.frame());
        }
        if self.renewals.take(NonZeroU32::MIN).is_err() {
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

/// Says goodbye, waits for the peer's own close or its end, and sees to it that the socket goes
/// whatever the peer does.
async fn part(end: End, inbound: &mut impl Inbound, outbox: &Outbox, link: &Link) {
    let deadline = Instant::now() + FAREWELL;
    let answered = match &end {
        End::Ours(CloseCause::Gone, _) => true,
        End::Ours(cause, detail) => {
            let slow = *cause == CloseCause::SlowConsumer;
            let last = frame::farewell(*cause, retry_after(*cause), detail.as_deref());
            outbox.finish(last, slow);
            false
        }
        End::Theirs(code) => {
            let answer = match code {
                Some(code) => Frame::close(*code, ""),
                None => Frame::close_empty(),
            };
            outbox.finish([answer], false);
            true
        }
    };
    let ended =
        if answered { Ended::Closed } else { closed_by_peer(inbound, outbox, deadline).await };
    match ended {
        Ended::Closed => {
            outbox.end();
            link.finish();
        }
        // The peer may still be sending. Closing over unread input would reset the connection and
        // the peer never see the code, so actix reads and discards for a while before it closes.
        Ended::Faulted => outbox.end(),
        Ended::Silent => link.reset(),
    }
    let gone = async { while outbox.signalled().await != Signal::Gone {} };
    if tokio::time::timeout_at(deadline, gone).await.is_err() {
        link.reset();
    }
}

/// How a peer took our close.
enum Ended {
    /// It closed as well, or is gone.
    Closed,
    /// What it sends cannot be understood (any more).
    Faulted,
    /// Neither in time.
    Silent,
}

async fn closed_by_peer(inbound: &mut impl Inbound, outbox: &Outbox, deadline: Instant) -> Ended {
    let closed = async {
        loop {
            tokio::select! {
                biased;
                signal = outbox.signalled() => if signal == Signal::Gone { return Ended::Closed },
                received = inbound.next() => match received {
                    Some(Received::Close(_) | Received::Fault(CloseCause::Gone)) => {
                        return Ended::Closed;
                    }
                    None | Some(Received::Fault(_)) => return Ended::Faulted,
                    Some(_) => {}
                },
            }
        }
    };
    tokio::time::timeout_at(deadline, closed).await.unwrap_or(Ended::Silent)
}

/// When to come back, spread over half to one and a half of the advice.
fn retry_after(cause: CloseCause) -> Option<u64> {
    match cause.advice() {
        Advice::Return(middle) => Some(millis(middle.mul_f64(rand::rng().random_range(0.5..1.5)))),
        Advice::Renew | Advice::Stay => None,
    }
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

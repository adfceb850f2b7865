//! One connection: the actor that owns it from the handshake to the end of its socket.
//!
//! The actor reads what the client sends, keeps the [`Session`](session::Session)'s deadlines and closes. It writes
//! nothing itself and never waits for the socket: all that is sent goes through the outbox.

use std::{future::Future, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use crate::{
    bus::{inbound::Outlet, replays::Replays},
    event::{CloseCause, Principal},
    net::Link,
    outbox::Outbox,
    registry::{Permit, Registration},
    telemetry::Metrics,
    timer::Timer,
};

pub mod direct;
mod farewell;
mod flood;
mod guard;
mod incoming;
mod live;
mod message;
mod replay;
pub mod scratch;
pub mod session;
pub mod sse;
pub mod stream;
pub mod websocket;

/// The subprotocol that the server answers with (contract §2).
pub const PROTOCOL: &str = "belfry.v1";

pub use flood::Allowance;

use farewell::{End, part};
use live::Live;

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
    /// Whether the client can say anything once it is connected. One that cannot is asked for no
    /// sign of life, and its answer to a close is not waited for.
    const SPEAKS: bool = true;

    /// The next thing the client sent; `None` when nothing more can come. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Received>>;

    /// Brings what is queued to the socket and closes it, for a transport whose socket nobody else
    /// drives. `linger`: the peer may still be sending; closing over unread input would reset the
    /// connection, and the peer never see the close. The others are told by their socket.
    fn close(&mut self, linger: bool) -> impl Future<Output = ()> {
        let _ = linger;
        std::future::pending()
    }
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
    /// Where messages of clients go; `None`: nowhere.
    pub outlet: Option<Outlet>,
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

impl<I: Inbound + 'static> Connection<I> {
    /// Runs it to its end.
    #[must_use]
    pub fn run(self) -> LocalBoxFuture<'static, ()> {
        let Self {
            inbound,
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
        let mut live = Live::new(&outbox, registration, principal, &settings);
        live.begin(resumes, I::SPEAKS);
        let open = Open { inbound, live, timer, seat, outbox, link, settings, permit, hold };
        Box::pin(Box::new(open).run())
    }
}

/// A connection that runs. In a box, of which its future has only the address: a future keeps its
/// arguments' places beside those that they are moved to.
struct Open<I> {
    inbound: I,
    live: Live,
    timer: Timer,
    seat: Box<dyn std::any::Any>,
    outbox: Rc<Outbox>,
    link: Link,
    settings: Rc<Settings>,
    permit: Permit,
    hold: Box<dyn std::any::Any>,
}

impl<I: Inbound> Open<I> {
    async fn run(mut self: Box<Self>) {
        let end = self.live.run(&mut self.inbound, &self.timer).await;
        // Out of the registry before the farewell: nothing is delivered after it.
        drop((self.live, self.timer, self.seat));
        self.settings.metrics.close(end.cause());
        part(end, &mut self.inbound, &self.outbox, &self.link).await;
        drop((self.permit, self.hold));
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

//! Many connections: opened with few handshakes at once, held, counted, closed.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::failure::Failure,
    board::{Board, Channel, Reasons, bump},
    dial::{Dialer, LATER, Refused, Socket},
    latency::Latency,
    ledger::Ledger,
    payload::{Heard, read},
};
use crate::event::UserId;

/// How long one connection tries, where the server says "later".
const ATTEMPTS_END: Duration = Duration::from_secs(60);
/// Longest wait for the other side's Close.
const GOODBYE: Duration = Duration::from_secs(5);

/// How many connections, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) connections: usize,
    /// Handshakes under way at most.
    pub(super) at_once: usize,
    /// New connections a second at most; `None`: as fast as they come.
    pub(super) rate: Option<f64>,
}

/// One connection as the counts see it.
#[derive(Debug)]
struct Member {
    channel: Rc<Channel>,
    ledger: RefCell<Ledger>,
    state: Cell<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No welcome yet, or never.
    Coming,
    Open,
    Ended,
}

/// How the opening went, and what ended early.
#[derive(Debug)]
pub(super) struct Ramp {
    pub(super) opened: Cell<u64>,
    /// Attempts beyond the first.
    pub(super) retried: Cell<u64>,
    pub(super) failed: RefCell<Reasons>,
    /// Connections that ended before the load was over, by their close.
    pub(super) ended: RefCell<Reasons>,
    /// From the first attempt to the welcome.
    pub(super) latency: RefCell<Latency>,
    pub(super) took: Cell<Duration>,
}

impl Ramp {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            opened: Cell::new(0),
            retried: Cell::new(0),
            failed: RefCell::default(),
            ended: RefCell::default(),
            latency: RefCell::new(Latency::new()?),
            took: Cell::new(Duration::ZERO),
        })
    }
}

/// Connections that stand.
pub(super) struct Crowd {
    members: Vec<Rc<Member>>,
    ramp: Rc<Ramp>,
    tasks: JoinSet<()>,
    close: CancellationToken,
}

impl Crowd {
    /// Opens connections until all stand or have failed, or it is time to end. `who` gives the user
    /// and the channel of each.
    pub(super) async fn open(
        board: &Rc<Board>,
        dialer: &Rc<Dialer>,
        size: Size,
        who: impl Fn(usize) -> (UserId, Rc<Channel>),
    ) -> Result<Self, Failure> {
        let start = Instant::now();
        let places = Arc::new(Semaphore::new(size.at_once));
        let mut crowd = Self {
            members: Vec::with_capacity(size.connections),
            ramp: Rc::new(Ramp::new()?),
            tasks: JoinSet::new(),
            close: CancellationToken::new(),
        };
        for n in 0..size.connections {
            if let Some(rate) = size.rate {
                sleep_until(start + Duration::from_secs_f64(n as f64 / rate)).await;
            }
            // Given back when the handshake is over.
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place,
                () = board.stop.cancelled() => break,
            };
            let Ok(place) = place else { break };
            let (user, channel) = who(n);
            let state = Cell::new(State::Coming);
            let member = Rc::new(Member { channel, ledger: RefCell::default(), state });
            crowd.members.push(member.clone());
            let (board, dialer, ramp) = (board.clone(), dialer.clone(), crowd.ramp.clone());
            let close = crowd.close.clone();
            crowd.tasks.spawn_local(async move {
                // In a box of its own: what a handshake needs is not kept for a connection's life.
                let socket = Box::pin(enter(&board, &dialer, &ramp, &user)).await;
                drop((place, user, dialer));
                if let Some(socket) = socket {
                    stand(&board, &ramp, &member, socket, &close).await;
                }
            });
        }
        // All places are free again when all have entered or failed.
        let all = u32::try_from(size.at_once).unwrap_or(u32::MAX);
        tokio::select! {
            _ = places.acquire_many(all) => {}
            () = board.stop.cancelled() => {}
        }
        crowd.ramp.took.set(start.elapsed());
        Ok(crowd)
    }

    /// Connections that are open now.
    pub(super) fn alive(&self) -> u64 {
        self.members.iter().filter(|member| member.state.get() == State::Open).count() as u64
    }

    /// Events that were published to a connection's channel and never came, those after an early
    /// end included. Connections that never stood have failed, and lost nothing.
    pub(super) fn lost(&self) -> u64 {
        let stood = self.members.iter().filter(|member| member.state.get() != State::Coming);
        stood.map(|member| member.ledger.borrow().lost(member.channel.published.get())).sum()
    }

    /// Closes all connections and waits until they have ended.
    pub(super) async fn close(mut self) -> Rc<Ramp> {
        self.close.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.ramp
    }
}

/// Opens one connection, with more attempts where the server asks for that.
pub(super) async fn enter(
    board: &Board,
    dialer: &Dialer,
    ramp: &Ramp,
    user: &UserId,
) -> Option<Socket> {
    let start = Instant::now();
    loop {
        let attempt = tokio::select! {
            attempt = dialer.open(user) => attempt,
            () = board.stop.cancelled() => return None,
        };
        let (wait, reason) = match attempt {
            Ok(socket) => {
                bump(&ramp.opened);
                ramp.latency.borrow_mut().record(start.elapsed());
                return Some(socket);
            }
            Err(Refused::Later(wait, reason)) => (Some(wait), reason),
            Err(Refused::Away(reason)) => ((ramp.opened.get() > 0).then_some(LATER), reason),
            Err(Refused::Never(reason)) => (None, reason),
        };
        match wait {
            Some(wait) if start.elapsed() + wait < ATTEMPTS_END => {
                bump(&ramp.retried);
                // Spread, so that those who were sent away together do not come back together.
                let spread = rand::random_range(0.5..1.5);
                tokio::select! {
                    () = sleep(wait.mul_f64(spread)) => {}
                    () = board.stop.cancelled() => return None,
                }
            }
            _ => {
                ramp.failed.borrow_mut().count(&reason, 1);
                return None;
            }
        }
    }
}

/// Takes what comes until it is time to close, or the other side ends it.
async fn stand(
    board: &Board,
    ramp: &Ramp,
    member: &Member,
    mut socket: Socket,
    close: &CancellationToken,
) {
    member.state.set(State::Open);
    bump(&member.channel.live);
    let mut closing = pin!(close.cancelled());
    let why = loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = &mut closing => break None,
        };
        match message {
            Some(Ok(Message::Text(frame))) => match read(&frame, &board.run) {
                Heard::Event { n, at } => {
                    let arrival = member.ledger.borrow_mut().enter(n);
                    board.arrived(arrival, at);
                }
                // The protocol's own Ping comes with it, and tungstenite answers that.
                Heard::Ping => bump(&board.pings),
                Heard::Welcome | Heard::Other => bump(&board.foreign),
            },
            Some(Ok(Message::Close(frame))) => break Some(told(frame.as_ref())),
            Some(Ok(_)) => {}
            Some(Err(error)) => break Some(error.to_string()),
            None => break Some("ended without a close".to_owned()),
        }
    };
    member.state.set(State::Ended);
    let channel = &member.channel;
    channel.live.set(channel.live.get().saturating_sub(1));
    board.settle(member.ledger.borrow().ahead(channel.published.get()));
    match why {
        Some(reason) => ramp.ended.borrow_mut().count(&reason, 1),
        None => leave(socket).await,
    }
}

/// Closes as RFC 6455 §7 asks.
pub(super) async fn leave(mut socket: Socket) {
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // It is over either way.
    timeout(GOODBYE, async {
        if socket.close(Some(close)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    })
    .await
    .unwrap_or_default();
}

fn told(close: Option<&CloseFrame>) -> String {
    match close {
        Some(close) => format!("closed: {} {}", u16::from(close.code), close.reason),
        None => "closed: 1005".to_owned(),
    }
}

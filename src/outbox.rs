//! One connection's outgoing queue, and the signals that end or wake the connection.
//!
//! It is the one object that the shard, the socket, the timer wheel and the connection's actor
//! share. All of them live on one worker thread, so it needs no lock and nothing here awaits.
//!
//! There are two ways out. A transport of actix takes frame by frame ([`Outbox::poll_frame`]) when
//! its task runs. A socket that was taken over is a [`Sink`]: the shard itself writes to it, all
//! that waits in one system call, and only what it does not take is left to the task.
//!
//! The story of the slow consumer is this file: the queue is bounded in frames and in bytes; when
//! it is full the peer is too slow, the queue is dropped as a whole, and the actor closes with
//! 1013 so that the client resumes. Nothing is dropped in silence and nothing grows.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::{event::CloseCause, frame::Frame, telemetry::WorkerMetrics};

/// Bounds on what may wait for one connection.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Frames.
    pub frames: usize,
    /// Bytes on the wire. A frame is accepted by an empty queue, however large.
    pub bytes: usize,
}

impl Bounds {
    fn admit(&self, state: &State, bytes: usize) -> bool {
        state.queue.is_empty()
            || (state.queue.len() < self.frames && state.bytes + bytes <= self.bytes)
    }

    fn has_room(&self, state: &State, bytes: usize) -> bool {
        state.queue.is_empty()
            || state.queue.len() <= self.frames / 2 && state.bytes + bytes <= self.bytes / 2
    }
}

/// A socket that takes bytes at once, or says [`io::ErrorKind::WouldBlock`].
pub trait Sink {
    /// Writes some of these bytes.
    ///
    /// # Errors
    /// The system's.
    fn try_write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// Frames that are written by one system call at most.
const GATHER: usize = 64;
/// Frames that an idle connection's queue may have room for; a burst's memory is given back.
const SPARE: usize = 16;

/// What a flush left.
#[derive(Debug)]
pub enum Flushed {
    /// Nothing; more may come.
    Empty,
    /// Nothing, and the connection has ended.
    Ended,
    /// Frames that the socket does not take for now.
    Blocked,
    /// Frames that it will never take.
    Broken(io::Error),
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It will be written.
    Queued,
    /// It did not fit: this many events were dropped, it included, and the connection ends.
    Overflow(usize),
    /// The connection is ending.
    Closed,
}

/// What the connection's actor is woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The socket is gone, and with it whoever could read.
    Gone,
    /// Close, for this cause.
    Close(CloseCause),
    /// Close with 1012 at this moment (or earlier).
    Leave(Instant),
    /// Look the session up now: it may be gone.
    Recheck,
    /// Read on from the history: live events were missed.
    CatchUp,
    /// The deadline that was set has come.
    Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Frames are accepted.
    Open,
    /// What is queued is still written, nothing more is accepted.
    Closing,
    /// The socket may close once the queue is empty.
    Ended,
}

struct State {
    queue: VecDeque<Frame>,
    bytes: usize,
    /// Bytes of the first frame that are written: what follows it on the socket is the rest of it,
    /// whatever happens.
    begun: usize,
    sink: Option<Rc<dyn Sink>>,
    /// Someone has promised to flush: the shard at the end of its turn, or the task once the socket
    /// takes more.
    promised: bool,
    /// Only the newest ping has to be answered (RFC 6455 §5.5.3), so a flood of pings to a peer
    /// that does not read costs one slot.
    pong: Option<Frame>,
    phase: Phase,
    socket: Option<Waker>,
    actor: Option<Waker>,
    /// Whoever waits for room, and for how much.
    replay: Option<Waker>,
    wanted: usize,
}

/// See the module.
pub struct Outbox {
    state: RefCell<State>,
    bounds: Bounds,
    metrics: Rc<WorkerMetrics>,
    gone: Cell<bool>,
    due: Cell<bool>,
    close: Cell<Option<CloseCause>>,
    leave: Cell<Option<Instant>>,
    recheck: Cell<bool>,
    catch_up: Cell<bool>,
}

impl Outbox {
    /// An empty queue.
    #[must_use]
    pub fn new(bounds: Bounds, metrics: Rc<WorkerMetrics>) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                begun: 0,
                sink: None,
                promised: false,
                pong: None,
                phase: Phase::Open,
                socket: None,
                actor: None,
                replay: None,
                wanted: 0,
            }),
            bounds,
            metrics,
            gone: Cell::new(false),
            due: Cell::new(false),
            close: Cell::new(None),
            leave: Cell::new(None),
            recheck: Cell::new(false),
            catch_up: Cell::new(false),
        })
    }

    /// Writes to this socket from now on, instead of handing out frames.
    pub fn attach(&self, sink: Rc<dyn Sink>) {
        self.state.borrow_mut().sink = Some(sink);
    }

    /// Queues a frame, or ends the connection as too slow. Never waits.
    pub fn deliver(&self, frame: &Frame) -> Push {
        let mut state = self.state.borrow_mut();
        let push = self.queue(&mut state, frame);
        if push == Push::Queued {
            wake(&mut state.socket);
        }
        drop(state);
        self.judge(push)
    }

    /// The same, for whoever delivers to many and then flushes those that are `unwritten`.
    pub fn post(self: &Rc<Self>, frame: &Frame, unwritten: &mut Vec<Rc<Self>>) -> Push {
        let mut state = self.state.borrow_mut();
        let push = self.queue(&mut state, frame);
        if push == Push::Queued {
            if state.sink.is_none() {
                wake(&mut state.socket);
            } else if !state.promised {
                state.promised = true;
                unwritten.push(Rc::clone(self));
            }
        }
        drop(state);
        self.judge(push)
    }

    fn judge(&self, push: Push) -> Push {
        if let Push::Overflow(_) = push {
            self.request_close(CloseCause::SlowConsumer);
        }
        push
    }

    fn queue(&self, state: &mut State, frame: &Frame) -> Push {
        let event = usize::from(frame.received().is_some());
        if state.phase != Phase::Open {
            self.metrics.dropped(event);
            return Push::Closed;
        }
        if !self.bounds.admit(state, frame.len()) && state.sink.is_some() {
            // Nobody is too slow who was not asked yet whether he takes more.
            if let Flushed::Broken(error) = self.write(state) {
                tracing::debug!(%error, "a socket cannot be written to");
            }
        }
        if !self.bounds.admit(state, frame.len()) {
            let dropped = self.clear(state) + event;
            self.metrics.dropped(dropped);
            state.phase = Phase::Closing;
            wake(&mut state.replay);
            return Push::Overflow(dropped);
        }
        state.bytes += frame.len();
        self.metrics.queued(frame.len());
        state.queue.push_back(frame.clone());
        Push::Queued
    }

    /// Waits until a frame of this many bytes fits into half of the queue, or is alone in it, so
    /// that a replay goes at the socket's pace and what comes live still fits. Also returns when the
    /// connection is ending.
    pub async fn room(&self, bytes: usize) {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            if state.phase != Phase::Open || self.bounds.has_room(&state, bytes) {
                return Poll::Ready(());
            }
            state.wanted = bytes;
            remember(&mut state.replay, cx);
            Poll::Pending
        })
        .await;
    }

    /// Answers a ping, in place of an answer that is still waiting.
    pub fn pong(&self, payload: &[u8]) {
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::Open {
            state.pong = Some(Frame::pong(payload));
            wake(&mut state.socket);
        }
    }

    /// Accepts nothing more, and writes `last` after what is queued, or instead of it.
    pub fn finish(&self, last: impl IntoIterator<Item = Frame>, drop_queue: bool) {
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::Ended {
            return;
        }
        state.phase = Phase::Closing;
        wake(&mut state.replay);
        state.pong = None;
        if drop_queue {
            let dropped = self.clear(&mut state);
            self.metrics.dropped(dropped);
        }
        for frame in last {
            state.bytes += frame.len();
            self.metrics.queued(frame.len());
            state.queue.push_back(frame);
        }
        wake(&mut state.socket);
    }

    /// Lets the socket end once the queue is written.
    pub fn end(&self) {
        let mut state = self.state.borrow_mut();
        state.phase = Phase::Ended;
        wake(&mut state.socket);
    }

    /// The socket's side: the next frame to write; `None` ends the stream.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut state = self.state.borrow_mut();
        if let Some(pong) = state.pong.take() {
            return Poll::Ready(Some(pong));
        }
        if let Some(frame) = state.queue.pop_front() {
            state.bytes -= frame.len();
            self.metrics.written(frame.len(), frame.received());
            if self.bounds.has_room(&state, state.wanted) {
                wake(&mut state.replay);
            }
            state.shrink();
            return Poll::Ready(Some(frame));
        }
        if state.phase == Phase::Ended {
            return Poll::Ready(None);
        }
        remember(&mut state.socket, cx);
        Poll::Pending
    }

    /// Writes what is queued to the socket that was attached, joined.
    pub fn flush(&self) -> Flushed {
        let mut state = self.state.borrow_mut();
        let flushed = self.write(&mut state);
        state.promised = matches!(flushed, Flushed::Blocked);
        if !matches!(flushed, Flushed::Empty) {
            wake(&mut state.socket);
        }
        flushed
    }

    /// The same from the socket's own task, which is woken when there is more to write. Where it is
    /// blocked, the task has to wait for the socket as well.
    pub fn poll_flush(&self, cx: &Context<'_>) -> Flushed {
        let mut state = self.state.borrow_mut();
        let flushed = self.write(&mut state);
        state.promised = matches!(flushed, Flushed::Blocked);
        remember(&mut state.socket, cx);
        flushed
    }

    fn write(&self, state: &mut State) -> Flushed {
        loop {
            if state.queue.is_empty() && state.pong.is_none() {
                let ended = state.phase == Phase::Ended;
                return if ended { Flushed::Ended } else { Flushed::Empty };
            }
            match state.hand_over() {
                Ok(written) => self.advance(state, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Flushed::Broken(error),
            }
        }
    }

    /// So many more bytes are written.
    fn advance(&self, state: &mut State, mut written: usize) {
        while written > 0 {
            // A pong that has begun is a frame like others; until then a newer one may replace it.
            if state.begun == 0
                && let Some(pong) = state.pong.take()
            {
                state.bytes += pong.len();
                self.metrics.queued(pong.len());
                state.queue.push_front(pong);
            }
            let Some(first) = state.queue.front() else { break };
            let rest = first.len() - state.begun;
            if written < rest {
                state.begun += written;
                break;
            }
            written -= rest;
            state.begun = 0;
            state.bytes -= first.len();
            self.metrics.written(first.len(), first.received());
            state.queue.pop_front();
        }
        if self.bounds.has_room(state, state.wanted) {
            wake(&mut state.replay);
        }
        state.shrink();
    }

    /// The socket's side: it is gone, whatever is queued will never be written.
    pub fn socket_gone(&self) {
        self.gone.set(true);
        let mut state = self.state.borrow_mut();
        state.phase = Phase::Ended;
        state.sink = None;
        state.begun = 0;
        state.pong = None;
        let dropped = self.clear(&mut state);
        self.metrics.dropped(dropped);
        wake(&mut state.replay);
        wake(&mut state.actor);
    }

    /// Asks the actor to close. The first cause stands.
    pub fn request_close(&self, cause: CloseCause) {
        if self.close.get().is_none() {
            self.close.set(Some(cause));
        }
        wake(&mut self.state.borrow_mut().actor);
    }

    /// Asks the actor to close with 1012 at this moment.
    pub fn request_leave(&self, at: Instant) {
        self.leave.set(Some(at));
        wake(&mut self.state.borrow_mut().actor);
    }

    /// Asks the actor to look its session up.
    pub fn request_recheck(&self) {
        self.recheck.set(true);
        wake(&mut self.state.borrow_mut().actor);
    }

    /// Asks the actor to read on from the history.
    pub fn request_catch_up(&self) {
        self.catch_up.set(true);
        wake(&mut self.state.borrow_mut().actor);
    }

    /// Tells the actor that its deadline has come.
    pub fn due(&self) {
        self.due.set(true);
        wake(&mut self.state.borrow_mut().actor);
    }

    /// The actor's side: waits for the next signal.
    pub async fn signalled(&self) -> Signal {
        poll_fn(|cx| self.poll_signal(cx)).await
    }

    fn poll_signal(&self, cx: &mut Context<'_>) -> Poll<Signal> {
        if self.gone.get() {
            return Poll::Ready(Signal::Gone);
        }
        if let Some(cause) = self.close.take() {
            return Poll::Ready(Signal::Close(cause));
        }
        if let Some(at) = self.leave.take() {
            return Poll::Ready(Signal::Leave(at));
        }
        if self.recheck.take() {
            return Poll::Ready(Signal::Recheck);
        }
        if self.catch_up.take() {
            return Poll::Ready(Signal::CatchUp);
        }
        if self.due.take() {
            return Poll::Ready(Signal::Due);
        }
        remember(&mut self.state.borrow_mut().actor, cx);
        Poll::Pending
    }

    /// Drops what is queued, but for a frame that is written in part.
    fn clear(&self, state: &mut State) -> usize {
        let begun = if state.begun > 0 { state.queue.pop_front() } else { None };
        let dropped = state.queue.iter().filter(|frame| frame.received().is_some()).count();
        let stays = begun.as_ref().map_or(0, Frame::len);
        self.metrics.unqueued(state.bytes - stays);
        state.queue = begun.into_iter().collect();
        state.bytes = stays;
        dropped
    }
}

impl State {
    /// Offers the socket what is queued.
    fn hand_over(&self) -> io::Result<usize> {
        let Some(sink) = &self.sink else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut skip = self.begun;
        // So it is nearly always, and it needs no gathering.
        if let (1, None, Some(only)) = (self.queue.len(), &self.pong, self.queue.front()) {
            return sink.try_write(&[IoSlice::new(only.wire().get(skip..).unwrap_or_default())]);
        }
        let (begun, others) = (usize::from(skip > 0), self.queue.iter());
        let frames = others.clone().take(begun).chain(&self.pong).chain(others.skip(begun));
        let frames = frames.take(GATHER).map(|frame| {
            let rest = frame.wire().get(std::mem::take(&mut skip)..).unwrap_or_default();
            IoSlice::new(rest)
        });
        let slices: SmallVec<[IoSlice<'_>; GATHER]> = frames.collect();
        sink.try_write(&slices)
    }

    fn shrink(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > SPARE {
            self.queue = VecDeque::new();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let bytes = self.state.borrow().bytes;
        self.metrics.unqueued(bytes);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

#[cfg(test)]
mod tests;

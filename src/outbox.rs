//! One connection's outgoing queue, and the signals that end or wake the connection.
//!
//! It is the one object that the shard, the socket, the timer wheel and the connection's actor
//! share. All of them live on one worker thread, so it needs no lock and nothing here awaits.
//!
//! The story of the slow consumer is this file: the queue is bounded in frames and in bytes; when
//! it is full the peer is too slow, the queue is dropped as a whole, and the actor closes with
//! 1013 so that the client resumes. Nothing is dropped in silence and nothing grows.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

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
    fn has_room(&self, state: &State, bytes: usize) -> bool {
        state.queue.is_empty()
            || state.queue.len() <= self.frames / 2 && state.bytes + bytes <= self.bytes / 2
    }
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

    /// Queues a frame, or ends the connection as too slow. Never waits.
    pub fn deliver(&self, frame: &Frame) -> Push {
        let mut state = self.state.borrow_mut();
        let event = usize::from(frame.received().is_some());
        if state.phase != Phase::Open {
            self.metrics.dropped(event);
            return Push::Closed;
        }
        let fits = state.queue.is_empty()
            || (state.queue.len() < self.bounds.frames
                && state.bytes + frame.len() <= self.bounds.bytes);
        if !fits {
            let dropped = self.clear(&mut state) + event;
            self.metrics.dropped(dropped);
            state.phase = Phase::Closing;
            wake(&mut state.replay);
            drop(state);
            self.request_close(CloseCause::SlowConsumer);
            return Push::Overflow(dropped);
        }
        state.bytes += frame.len();
        self.metrics.queued(frame.len());
        state.queue.push_back(frame.clone());
        wake(&mut state.socket);
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
            if state.queue.is_empty() && state.queue.capacity() > 64 {
                // A burst has passed; an idle connection keeps no memory of it.
                state.queue = VecDeque::new();
            }
            return Poll::Ready(Some(frame));
        }
        if state.phase == Phase::Ended {
            return Poll::Ready(None);
        }
        remember(&mut state.socket, cx);
        Poll::Pending
    }

    /// The socket's side: it is gone, whatever is queued will never be written.
    pub fn socket_gone(&self) {
        self.gone.set(true);
        let mut state = self.state.borrow_mut();
        state.phase = Phase::Ended;
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

    fn clear(&self, state: &mut State) -> usize {
        let dropped = state.queue.iter().filter(|frame| frame.received().is_some()).count();
        self.metrics.unqueued(state.bytes);
        state.queue = VecDeque::new();
        state.bytes = 0;
        dropped
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

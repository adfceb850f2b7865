//! One timer wheel per worker, for the deadlines of all its connections.
//!
//! A connection names one next deadline and is woken once; heartbeats that are answered in time
//! move the deadline only when it has come, so a busy connection costs the wheel nothing.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue::Key};

use crate::{lifecycle::Guard, outbox::Outbox};

/// Deadlines are met on a grid this fine, up to so much late: those of thousands of idle connections
/// then come a few together, and cost one awakening and not each its own, and so do their answers.
const GRID: Duration = Duration::from_millis(50);

/// The wheel has a rim; a deadline behind it comes early, and the connection names it again.
const FURTHEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The wheel. Lives as long as its worker.
pub struct Wheel {
    start: Instant,
    queue: RefCell<DelayQueue<Rc<Slot>>>,
}

struct Slot {
    /// Where it stands in the wheel. Cleared at the moment it leaves, because the wheel uses the
    /// keys of those that left again.
    key: Cell<Option<Key>>,
    outbox: Rc<Outbox>,
}

impl Wheel {
    /// A wheel that turns on the current worker.
    #[must_use]
    pub fn spawn(guard: Guard) -> Rc<Self> {
        let wheel = Rc::new(Self { start: Instant::now(), queue: RefCell::new(DelayQueue::new()) });
        actix_rt::spawn(turn(Rc::downgrade(&wheel), guard));
        wheel
    }

    /// The next point of the grid.
    fn on_grid(&self, at: Instant) -> Instant {
        let since = at.saturating_duration_since(self.start).as_millis();
        let points = u32::try_from(since.div_ceil(GRID.as_millis())).unwrap_or(u32::MAX);
        self.start + GRID * points
    }

    /// A deadline for one connection; none is set yet.
    #[must_use]
    pub fn timer(self: &Rc<Self>, outbox: Rc<Outbox>) -> Timer {
        Timer { wheel: Rc::clone(self), slot: Rc::new(Slot { key: Cell::new(None), outbox }) }
    }
}

async fn turn(wheel: Weak<Wheel>, _guard: Guard) {
    poll_fn(|cx| {
        let Some(wheel) = wheel.upgrade() else { return Poll::Ready(()) };
        loop {
            // The borrow ends before anyone is woken, who might set a new deadline.
            let due = wheel.queue.borrow_mut().poll_expired(cx);
            match due {
                Poll::Ready(Some(expired)) => {
                    let slot = expired.into_inner();
                    slot.key.set(None);
                    slot.outbox.due();
                }
                // Empty or not, the queue has taken note of this task and wakes it.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// One connection's deadline; dropping it takes it from the wheel.
pub struct Timer {
    wheel: Rc<Wheel>,
    slot: Rc<Slot>,
}

impl Timer {
    /// Wakes the connection with [`Signal::Due`](crate::outbox::Signal::Due) at this moment,
    /// instead of the one set before.
    pub fn set(&self, at: Instant) {
        let at = self.wheel.on_grid(at.min(Instant::now() + FURTHEST));
        let mut queue = self.wheel.queue.borrow_mut();
        if let Some(key) = self.slot.key.get() {
            queue.reset_at(&key, at);
        } else {
            self.slot.key.set(Some(queue.insert_at(Rc::clone(&self.slot), at)));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(key) = self.slot.key.take() {
            self.wheel.queue.borrow_mut().try_remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_met_on_the_grid_and_never_early() {
        let start = Instant::now();
        let wheel = Wheel { start, queue: RefCell::new(DelayQueue::new()) };
        let millis = Duration::from_millis;
        for (wanted, met) in [(0, 0), (1, 50), (50, 50), (51, 100), (25_000, 25_000)] {
            assert_eq!(wheel.on_grid(start + millis(wanted)), start + millis(met), "{wanted}");
        }
        assert_eq!(wheel.on_grid(start - millis(10)), start);
    }
}

//! What one worker counts by itself.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use prometheus::{Histogram, IntCounterVec, IntGauge, local::LocalHistogram};
use tokio::time::Instant;

use super::Metrics;

/// What the workers report to.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) deliveries: IntCounterVec,
    pub(super) duration: Histogram,
    pub(super) queue_bytes: IntGauge,
    pub(super) lag: Histogram,
}

const WRITTEN: &str = "written";
const DROPPED: &str = "dropped";

impl Shared {
    pub(super) fn written(&self) -> u64 {
        self.deliveries.with_label_values(&[WRITTEN]).get()
    }

    pub(super) fn touch(&self) {
        for result in [WRITTEN, DROPPED] {
            self.deliveries.with_label_values(&[result]);
        }
    }
}

/// What one worker counts without a shared atomic per delivery; [`flush`](Self::flush) brings it
/// to the shared metrics a few times a second.
pub struct WorkerMetrics {
    process: Metrics,
    shared: Shared,
    written: Cell<u64>,
    dropped: Cell<u64>,
    queued: Cell<i64>,
    reported: Cell<i64>,
    duration: RefCell<LocalHistogram>,
}

impl WorkerMetrics {
    pub(super) fn new(process: Metrics, shared: Shared) -> Self {
        Self {
            process,
            written: Cell::new(0),
            dropped: Cell::new(0),
            queued: Cell::new(0),
            reported: Cell::new(0),
            duration: RefCell::new(shared.duration.local()),
            shared,
        }
    }

    /// The metrics that all workers share.
    #[must_use]
    pub fn process(&self) -> &Metrics {
        &self.process
    }

    /// Bytes joined an outbox.
    pub fn queued(&self, bytes: usize) {
        self.queued.set(self.queued.get() + i64::try_from(bytes).unwrap_or(0));
    }

    /// Bytes left an outbox unwritten.
    pub fn unqueued(&self, bytes: usize) {
        self.queued.set(self.queued.get() - i64::try_from(bytes).unwrap_or(0));
    }

    /// A frame left an outbox for the socket.
    pub fn written(&self, bytes: usize, received: Option<Instant>) {
        self.unqueued(bytes);
        if let Some(received) = received {
            self.written.set(self.written.get() + 1);
            self.duration.borrow_mut().observe(received.elapsed().as_secs_f64());
        }
    }

    /// Events were dropped for connections that end.
    pub fn dropped(&self, events: usize) {
        self.dropped.set(self.dropped.get() + u64::try_from(events).unwrap_or(0));
    }

    /// Bytes that wait in this worker's outboxes.
    #[must_use]
    pub fn queue_bytes(&self) -> i64 {
        self.queued.get()
    }

    /// Brings everything to the shared metrics; `lag` is how late this was run.
    pub fn flush(&self, lag: Duration) {
        let Shared { deliveries, queue_bytes, lag: late, .. } = &self.shared;
        deliveries.with_label_values(&[WRITTEN]).inc_by(self.written.take());
        deliveries.with_label_values(&[DROPPED]).inc_by(self.dropped.take());
        queue_bytes.add(self.queued.get() - self.reported.get());
        self.reported.set(self.queued.get());
        self.duration.borrow().flush();
        late.observe(lag.as_secs_f64());
    }
}

impl Drop for WorkerMetrics {
    fn drop(&mut self) {
        self.shared.queue_bytes.sub(self.reported.get());
    }
}

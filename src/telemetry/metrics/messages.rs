//! Messages that went another way than to a browser.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::{Maker, Metrics};
use crate::telemetry::DropReason;

pub(super) struct Messages {
    dropped: IntCounterVec,
    forwarded: IntCounter,
    publish_backlog: IntGauge,
}

impl Messages {
    pub(super) fn new(make: &Maker) -> Self {
        Self {
            dropped: make.counters(
                "messages_dropped_total",
                "Messages from clients, the bus or the publish stream that went nowhere.",
                &["reason"],
            ),
            forwarded: make.counter(
                "messages_forwarded_total",
                "Messages from clients that went to the inbound stream.",
            ),
            publish_backlog: make.gauge(
                "publish_stream_entries",
                "Entries of the publish stream that wait, as the replica that reads it saw last.",
            ),
        }
    }

    /// Makes every series of the closed set.
    pub(super) fn touch(&self) {
        for reason in DropReason::ALL {
            self.dropped.with_label_values(&[reason.label()]);
        }
    }
}

impl Metrics {
    /// Messages went nowhere.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        self.0.messages.dropped.with_label_values(&[reason.label()]).inc_by(count);
    }

    /// Messages of clients went to the inbound stream.
    pub fn forwarded(&self, count: u64) {
        self.0.messages.forwarded.inc_by(count);
    }

    /// So many entries of the publish stream wait.
    pub fn publish_backlog(&self, entries: u64) {
        self.0.messages.publish_backlog.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
}

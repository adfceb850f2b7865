//! The metrics of this process.

use std::{sync::Arc, time::Duration};

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};

use super::{
    labels::{self, ConnectResult, DropReason, JwksRefresh, Role, Target},
    worker::{Shared, WorkerMetrics},
};
use crate::{
    config::Method,
    event::{CloseCause, GapReason, Subject},
};

/// Seconds, from a tenth of a millisecond to ten seconds.
const LATENCY_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// Seconds that a credential check takes, from ten microseconds.
const AUTH_BUCKETS: &[f64] = &[0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.025, 0.1, 1.0];
/// The transport of a connection, as a label.
const TRANSPORT: &str = "websocket";
/// The label for a request that came without a credential.
const NO_AUTH: &str = "none";

/// Every metric of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    /// Apart, because its names bear no prefix of ours: dashboards know them (`process_…`).
    process: Registry,
    connections: IntGaugeVec,
    connections_limit: IntGauge,
    users: IntGauge,
    connects: IntCounterVec,
    closes: IntCounterVec,
    published: IntCounterVec,
    received_own: IntCounter,
    received_raw: IntCounter,
    publish_duration: Histogram,
    ready: IntGauge,
    redis_up: IntGaugeVec,
    gaps: IntCounterVec,
    resumes: IntCounterVec,
    probe_duration: Histogram,
    dropped: IntCounterVec,
    auth_duration: HistogramVec,
    jwks_refreshes: IntCounterVec,
    api_requests: IntCounterVec,
    drain_remaining: IntGauge,
    revocations: IntCounterVec,
    panics: IntCounter,
    workers: Shared,
}

/// Makes and registers one metric after another.
struct Maker(Registry);

impl Maker {
    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    #[expect(
        clippy::expect_used,
        reason = "names are constants of this file, each used once; the test below holds it"
    )]
    fn register<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("a valid name");
        self.register_boxed(Box::new(metric.clone()));
        metric
    }

    #[expect(clippy::expect_used, reason = "as above")]
    fn register_boxed(&self, metric: Box<dyn Collector>) {
        self.0.register(metric).expect("a new name");
    }
}

impl Metrics {
    /// Registers everything, with each series of a closed set at zero from the start, so that a
    /// rate over it is right from the first increment.
    #[must_use]
    pub fn new(connections_limit: usize) -> Self {
        let make = Maker(Registry::new_custom(Some("belfry".to_owned()), None).unwrap_or_default());
        let process = Maker(Registry::new());
        process.register_boxed(Box::new(ProcessCollector::for_self()));
        let auth = HistogramOpts::new("auth_duration_seconds", "Time to check a credential.")
            .buckets(AUTH_BUCKETS.to_vec());
        let received = make.counters(
            "events_received_total",
            "Messages that came over the bus: replicas' own kind, or raw ones.",
            &["source"],
        );
        let metrics = Self(Arc::new(Inner {
            connections: make.gauges("connections", "Open connections.", &["transport"]),
            connections_limit: make.gauge("connections_limit", "Most connections taken here."),
            users: make.gauge("users", "Users with a connection to this replica."),
            connects: make.counters(
                "connects_total",
                "Attempts to connect, by credential and outcome.",
                &["transport", "auth", "result"],
            ),
            closes: make.counters("closes_total", "Connections that ended, by cause.", &["cause"]),
            published: make.counters(
                "events_published_total",
                "Events that back ends published here, by target and outcome.",
                &["target", "result"],
            ),
            received_own: received.with_label_values(&["belfry"]),
            received_raw: received.with_label_values(&["raw"]),
            publish_duration: make.histogram(
                "publish_duration_seconds",
                "From a complete request to the broker's acknowledgement.",
            ),
            ready: make.gauge("ready", "1 while /readyz answers 200."),
            redis_up: make.gauges(
                "redis_up",
                "1 while the broker works in this role (in memory: always).",
                &["role"],
            ),
            gaps: make.counters(
                "redis_pubsub_gaps_total",
                "Times this replica may have missed messages.",
                &["reason"],
            ),
            resumes: make.counters(
                "resumes_total",
                "Clients that came back with a cursor: everything they missed follows, or not.",
                &["result"],
            ),
            probe_duration: make.histogram(
                "redis_probe_duration_seconds",
                "From publishing a probe to its return.",
            ),
            dropped: make.counters(
                "messages_dropped_total",
                "Messages from clients or the bus that went nowhere.",
                &["reason"],
            ),
            auth_duration: make.register(HistogramVec::new(auth, &["method"])),
            jwks_refreshes: make.counters(
                "jwks_refreshes_total",
                "Looks at the keys that issuers publish, by outcome.",
                &["result"],
            ),
            api_requests: make.counters(
                "api_requests_total",
                "Requests to the internal API.",
                &["key", "route", "code"],
            ),
            drain_remaining: make.gauge(
                "drain_remaining_connections",
                "Connections that a drain has still to close; 0 while none runs.",
            ),
            revocations: make.counters(
                "revocations_total",
                "Orders to close connections that were given here, by what they name.",
                &["by"],
            ),
            panics: make.counter("panics_total", "Panics that were caught. Each is a bug."),
            workers: Shared {
                deliveries: make.counters(
                    "deliveries_total",
                    "Frames with events for connections: written to the socket, or dropped.",
                    &["result"],
                ),
                duration: make.histogram(
                    "delivery_duration_seconds",
                    "From an event's arrival at this replica to its hand-over to a socket.",
                ),
                queue_bytes: make.gauge("queue_bytes", "Bytes that wait in outboxes."),
                lag: make.histogram(
                    "worker_lag_seconds",
                    "How late a worker ran a task that was due: its event loop was busy.",
                ),
            },
            process: process.0,
            registry: make.0.clone(),
        }));
        metrics.0.connections_limit.set(i64::try_from(connections_limit).unwrap_or(i64::MAX));
        let info = make.gauges("build_info", "Always 1; see the label.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.touch();
        metrics
    }

    /// Makes every series of the closed sets.
    fn touch(&self) {
        let inner = &*self.0;
        inner.connections.with_label_values(&[TRANSPORT]);
        for role in [Role::Publisher, Role::Subscriber] {
            inner.redis_up.with_label_values(&[role.label()]);
        }
        for cause in CloseCause::ALL {
            inner.closes.with_label_values(&[cause.label()]);
        }
        for target in Target::ALL {
            for result in ["accepted", "failed"] {
                inner.published.with_label_values(&[target.label(), result]);
            }
        }
        for reason in GapReason::ALL {
            inner.gaps.with_label_values(&[reason.label()]);
        }
        for result in ["whole", "lost"] {
            inner.resumes.with_label_values(&[result]);
        }
        for reason in DropReason::ALL {
            inner.dropped.with_label_values(&[reason.label()]);
        }
        for auth in Method::ALL.iter().map(|method| method.label()).chain([NO_AUTH]) {
            for result in ConnectResult::ALL {
                inner.connects.with_label_values(&[TRANSPORT, auth, result.label()]);
            }
        }
        for method in Method::ALL {
            inner.auth_duration.with_label_values(&[method.label()]);
        }
        for result in JwksRefresh::ALL {
            inner.jwks_refreshes.with_label_values(&[result.label()]);
        }
        for by in ["user", "session", "connection"] {
            inner.revocations.with_label_values(&[by]);
        }
        inner.workers.touch();
    }

    /// The counters of one worker.
    #[must_use]
    pub fn worker(&self) -> WorkerMetrics {
        WorkerMetrics::new(self.clone(), self.0.workers.clone())
    }

    /// A connection began (+1) or ended (−1).
    pub fn connections(&self, change: i64) {
        self.0.connections.with_label_values(&[TRANSPORT]).add(change);
    }

    /// A user's first connection here began (+1), or the last ended (−1).
    pub fn users(&self, change: i64) {
        self.0.users.add(change);
    }

    /// An attempt to connect was answered. `None`: it bore no credential.
    pub fn connect(&self, auth: Option<Method>, result: ConnectResult) {
        let auth = auth.map_or(NO_AUTH, Method::label);
        self.0.connects.with_label_values(&[TRANSPORT, auth, result.label()]).inc();
    }

    /// A connection ended.
    pub fn close(&self, cause: CloseCause) {
        self.0.closes.with_label_values(&[cause.label()]).inc();
    }

    /// A back end's event was published, or not.
    pub fn published(&self, target: Target, accepted: bool, took: Duration) {
        let result = if accepted { "accepted" } else { "failed" };
        self.0.published.with_label_values(&[target.label(), result]).inc();
        self.0.publish_duration.observe(took.as_secs_f64());
    }

    /// A message came over the bus: a replica's own kind, or a neighbour's.
    pub fn received(&self, own: bool) {
        if own { self.0.received_own.inc() } else { self.0.received_raw.inc() }
    }

    /// Whether `/readyz` answers 200.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(i64::from(ready));
    }

    /// Whether the broker works in this role.
    pub fn redis_up(&self, role: Role, up: bool) {
        self.0.redis_up.with_label_values(&[role.label()]).set(i64::from(up));
    }

    /// This replica may have missed messages.
    pub fn gap(&self, reason: GapReason) {
        self.0.gaps.with_label_values(&[reason.label()]).inc();
    }

    /// A client came back with a cursor; whether everything that it missed follows.
    pub fn resume(&self, whole: bool) {
        let result = if whole { "whole" } else { "lost" };
        self.0.resumes.with_label_values(&[result]).inc();
    }

    /// A probe came back.
    pub fn probe(&self, took: Duration) {
        self.0.probe_duration.observe(took.as_secs_f64());
    }

    /// Messages went nowhere.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        self.0.dropped.with_label_values(&[reason.label()]).inc_by(count);
    }

    /// A credential was checked.
    pub fn auth(&self, method: Method, took: Duration) {
        self.0.auth_duration.with_label_values(&[method.label()]).observe(took.as_secs_f64());
    }

    /// An issuer's keys were looked at.
    pub fn jwks_refresh(&self, result: JwksRefresh) {
        self.0.jwks_refreshes.with_label_values(&[result.label()]).inc();
    }

    /// An order to close connections was given.
    pub fn revocation(&self, subject: &Subject) {
        let by = match subject {
            Subject::User(_) => "user",
            Subject::Session(_) => "session",
            Subject::Connection(_) => "connection",
        };
        self.0.revocations.with_label_values(&[by]).inc();
    }

    /// A request to the internal API was answered. `key` is a configured name, `route` a pattern
    /// of the route table and `code` a status of ours, so the set is closed.
    pub fn api_request(&self, key: &str, route: &str, code: u16) {
        self.0.api_requests.with_label_values(&[key, route, labels::code(code)]).inc();
    }

    /// Connections that a drain has still to close.
    pub fn drain_remaining(&self, count: usize) {
        self.0.drain_remaining.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A panic was caught.
    pub fn panicked(&self) {
        self.0.panics.inc();
    }

    /// Everything in the text format of Prometheus, and the content type that names it.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn render(&self) -> Result<(String, String), prometheus::Error> {
        let encoder = TextEncoder::new();
        let mut families = self.0.registry.gather();
        families.extend(self.0.process.gather());
        let mut text = Vec::new();
        encoder.encode(&families, &mut text)?;
        let text =
            String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))?;
        Ok((text, encoder.format_type().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn names_are_those_of_the_contract_and_each_stands_once() {
        let metrics = Metrics::new(7);
        let (text, content_type) = metrics.render().unwrap();
        assert!(content_type.starts_with("text/plain"));
        for name in [
            "belfry_connections{transport=\"websocket\"} 0",
            "belfry_connections_limit 7",
            "belfry_users 0",
            "belfry_connects_total{auth=\"none\",result=\"unauthorized\",transport=\"websocket\"} 0",
            "belfry_closes_total{cause=\"no_pong\"} 0",
            "belfry_events_published_total{result=\"accepted\",target=\"user\"} 0",
            "belfry_events_received_total{source=\"raw\"} 0",
            "belfry_deliveries_total{result=\"dropped\"} 0",
            "belfry_delivery_duration_seconds_count 0",
            "belfry_publish_duration_seconds_count 0",
            "belfry_queue_bytes 0",
            "belfry_ready 0",
            "belfry_redis_up{role=\"subscriber\"} 0",
            "belfry_redis_pubsub_gaps_total{reason=\"reconnected\"} 0",
            "belfry_redis_probe_duration_seconds_count 0",
            "belfry_messages_dropped_total{reason=\"bus_invalid\"} 0",
            "belfry_auth_duration_seconds_count{method=\"query\"} 0",
            "belfry_jwks_refreshes_total{result=\"failed\"} 0",
            "belfry_drain_remaining_connections 0",
            "belfry_worker_lag_seconds_count 0",
            "belfry_build_info{version=",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
    }

    #[test]
    fn workers_report_when_flushed() {
        let metrics = Metrics::new(1);
        let worker = metrics.worker();
        worker.queued(10);
        worker.written(4, Some(Instant::now()));
        worker.flush(Duration::ZERO);
        let (text, _) = metrics.render().unwrap();
        assert!(text.contains("belfry_queue_bytes 6\n"));
        assert!(text.contains("belfry_deliveries_total{result=\"written\"} 1\n"));
        assert!(text.contains("belfry_delivery_duration_seconds_count 1\n"));
    }
}

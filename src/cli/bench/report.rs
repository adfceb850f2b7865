//! What a load came to, as it stands in the JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::latency::{Bar, Quantiles};

/// One load with everything measured. Members that do not belong to it are absent.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// `idle`, `fanout`, `direct`, `churn` or `publish`.
    pub(super) load: &'static str,
    /// The load in words.
    pub(super) title: String,
    /// Ended by Ctrl-C.
    pub(super) interrupted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connections: Option<Connections>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cycles: Option<Cycles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publishing: Option<Publishing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deliveries: Option<Deliveries>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<Server>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generator: Option<Generator>,
}

/// How the connections came and went.
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    pub(super) asked: u64,
    pub(super) opened: u64,
    /// Open when the load was over, before they were closed.
    pub(super) alive: u64,
    pub(super) retried: u64,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
    /// From the first attempt to the welcome.
    pub(super) connect: Option<Quantiles>,
    /// Those that came to nothing, by reason.
    pub(super) failed: BTreeMap<String, u64>,
    /// Those that the other side ended, by close.
    pub(super) ended: BTreeMap<String, u64>,
    /// Heartbeats that the server asked for.
    pub(super) pings: u64,
}

/// Connect, welcome, leave.
#[derive(Debug, Serialize)]
pub(super) struct Cycles {
    pub(super) done: u64,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
}

/// What the HTTP API made of the events.
#[derive(Debug, Serialize)]
pub(super) struct Publishing {
    pub(super) sent: u64,
    pub(super) accepted: u64,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) seconds: f64,
    pub(super) accepted_per_second: f64,
    /// From a request to its answer.
    pub(super) answer: Option<Quantiles>,
}

/// What reached the connections.
#[derive(Debug, Serialize)]
pub(super) struct Deliveries {
    pub(super) expected: u64,
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) out_of_order: u64,
    /// Frames that are none of ours.
    pub(super) foreign: u64,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
    /// From just before the request that published it to the client.
    pub(super) latency: Option<Quantiles>,
    pub(super) histogram: Vec<Bar>,
}

/// The watched process.
#[derive(Debug, Default, Serialize)]
pub(super) struct Server {
    pub(super) cpu_seconds: f64,
    /// Of one core.
    pub(super) busy: f64,
    /// Microseconds for each of `per`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) per: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory>,
}

/// Anonymous memory (`Pss_Anon`) in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) before: u64,
    pub(super) open: u64,
    pub(super) closed: u64,
    pub(super) per_connection: f64,
}

/// This process: a load is only as good as its generator.
#[derive(Debug, Serialize)]
pub(super) struct Generator {
    pub(super) cpu_seconds: f64,
    /// Of one core. Near 1, the numbers are the generator's and not the server's.
    pub(super) busy: f64,
}

impl Report {
    /// What must not happen, in words; empty where all is well.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        };
        if let Some(found) = &self.deliveries {
            add(found.lost, "lost");
            add(found.repeated, "repeated");
            add(found.out_of_order, "out of order");
        }
        if let Some(found) = &self.publishing {
            add(found.refused.values().sum(), "refused");
        }
        if let Some(found) = &self.connections {
            add(found.failed.values().sum(), "connections failed");
            add(found.ended.values().sum(), "connections ended early");
        }
        faults
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn quantiles() -> Quantiles {
        Quantiles {
            count: 10,
            p50_us: 100.0,
            p90_us: 200.0,
            p99_us: 3_000.0,
            p999_us: 4_000.0,
            max_us: 5_000.0,
        }
    }

    pub(in super::super) fn report(lost: u64) -> Report {
        Report {
            load: "fanout",
            title: "fan-out, one at a time, 10 connections".to_owned(),
            deliveries: Some(Deliveries {
                expected: 100,
                delivered: 100 - lost,
                lost,
                repeated: 0,
                out_of_order: 0,
                foreign: 0,
                seconds: 1.0,
                per_second: 100.0,
                latency: Some(quantiles()),
                histogram: vec![Bar { to_us: 200.0, count: 100 }],
            }),
            server: Some(Server { cpu_us: Some(2.5), per: Some("delivery"), ..Server::default() }),
            ..Report::default()
        }
    }

    #[test]
    fn faults_are_what_must_not_happen() {
        assert!(report(0).faults().is_empty());
        assert_eq!(report(3).faults(), ["3 lost"]);
        let refused = BTreeMap::from([("503".to_owned(), 2)]);
        let publishing = Publishing {
            sent: 2,
            accepted: 0,
            refused,
            seconds: 1.0,
            accepted_per_second: 0.0,
            answer: None,
        };
        let both = Report { publishing: Some(publishing), ..report(1) };
        assert_eq!(both.faults(), ["1 lost", "2 refused"]);
    }

    #[test]
    fn json_has_no_members_that_do_not_belong() {
        let json = serde_json::to_value(report(0)).unwrap();
        assert_eq!(json["deliveries"]["latency"]["p99_us"], 3_000.0);
        assert!(json.get("publishing").is_none() && json.get("cycles").is_none(), "{json}");
    }
}

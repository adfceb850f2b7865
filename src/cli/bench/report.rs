//! What a load came to: the JSON, and the words.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::latency::{Bar, Quantiles, draw, human};

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

/// Proportional set size, bytes.
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

/// From where on the generator's own core may be the limit.
const BUSY: f64 = 0.9;

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

    /// The load as a person reads it.
    pub(super) fn text(&self) -> String {
        let mut lines = Lines(String::new());
        lines.0.push_str(&self.title);
        lines.0.push('\n');
        if self.interrupted {
            lines.add("interrupted", "what follows was measured until then");
        }
        if let Some(found) = &self.connections {
            connections(&mut lines, found);
        }
        if let Some(found) = &self.cycles {
            let rate = format!("{:.0}/s in {:.1} s", found.per_second, found.seconds);
            lines.add("connect and leave", &format!("{} times, {rate}", found.done));
        }
        if let Some(found) = &self.publishing {
            let rate = format!("{:.0}/s in {:.1} s", found.accepted_per_second, found.seconds);
            lines.add("published", &format!("{} accepted, {rate}", found.accepted));
            lines.reasons("refused", &found.refused);
            lines.quantiles("answered in", found.answer.as_ref());
        }
        if let Some(found) = &self.deliveries {
            let rate = format!("{:.0}/s in {:.1} s", found.per_second, found.seconds);
            let of = format!("{} of {}", found.delivered, found.expected);
            lines.add("delivered", &format!("{of}, {rate}"));
            let wrong = format!(
                "{} lost, {} repeated, {} out of order",
                found.lost, found.repeated, found.out_of_order
            );
            lines.add("checked", &wrong);
            lines.quantiles("latency", found.latency.as_ref());
        }
        if let Some(found) = &self.server {
            server(&mut lines, found);
        }
        if let Some(found) = &self.generator {
            let limit =
                if found.busy > BUSY { ": it may be the limit, not the server" } else { "" };
            lines.add("this program", &format!("{:.0} % of a core{limit}", found.busy * 100.0));
        }
        if let Some(found) = self.deliveries.as_ref().filter(|d| !d.histogram.is_empty()) {
            lines.0.push_str("  latencies\n");
            lines.0.push_str(&draw(&found.histogram));
        }
        lines.0
    }
}

fn connections(lines: &mut Lines, found: &Connections) {
    let rate = format!("{:.0}/s in {:.1} s", found.per_second, found.seconds);
    lines.add("connections", &format!("{} of {}, {rate}", found.opened, found.asked));
    if found.retried > 0 {
        lines.add("", &format!("{} more attempts, since the server said later", found.retried));
    }
    lines.reasons("failed", &found.failed);
    lines.reasons("ended early", &found.ended);
    lines.quantiles("connected in", found.connect.as_ref());
}

fn server(lines: &mut Lines, found: &Server) {
    let mut cpu =
        format!("{:.2} s of CPU, {:.1} % of a core", found.cpu_seconds, found.busy * 100.0);
    if let (Some(us), Some(per)) = (found.cpu_us, found.per) {
        write!(cpu, ", {us:.2} µs {}", each(per)).unwrap_or_default();
    }
    lines.add("server", &cpu);
    if let Some(memory) = &found.memory {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let told = format!(
            "{} before, {} with them, {} after; {:.0} bytes a connection",
            mib(memory.before),
            mib(memory.open),
            mib(memory.closed),
            memory.per_connection
        );
        lines.add("memory (Pss)", &told);
    }
}

fn each(what: &str) -> String {
    let article = if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {what}")
}

/// Lines of a label and its value, below each other.
struct Lines(String);

impl Lines {
    fn add(&mut self, label: &str, value: &str) {
        // Writing to a string cannot fail.
        writeln!(self.0, "  {label:<18} {value}").unwrap_or_default();
    }

    fn reasons(&mut self, label: &str, reasons: &BTreeMap<String, u64>) {
        for (reason, count) in reasons {
            // A problem's detail has lines of its own.
            let reason = reason.replace('\n', " ");
            self.add(label, &format!("{count}: {reason}"));
        }
    }

    fn quantiles(&mut self, label: &str, found: Option<&Quantiles>) {
        let Some(found) = found else { return };
        let told = format!(
            "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            human(found.p50_us),
            human(found.p90_us),
            human(found.p99_us),
            human(found.p999_us),
            human(found.max_us)
        );
        self.add(label, &told);
    }
}

/// One line for each load.
pub(super) fn table(reports: &[Report]) -> String {
    const HEAD: [&str; 7] = ["load", "rate", "p50", "p99", "max", "server CPU", "faults"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    for report in reports {
        let connected = report.connections.as_ref();
        let (rate, quantiles) = if let Some(found) = &report.deliveries {
            (format!("{:.0}/s", found.per_second), found.latency.as_ref())
        } else if let Some(found) = &report.publishing {
            (format!("{:.0}/s", found.accepted_per_second), found.answer.as_ref())
        } else if let Some(found) = &report.cycles {
            (format!("{:.0}/s", found.per_second), connected.and_then(|c| c.connect.as_ref()))
        } else {
            let rate = connected.map(|found| format!("{:.0}/s", found.per_second));
            (rate.unwrap_or_default(), connected.and_then(|c| c.connect.as_ref()))
        };
        let time = |us: fn(&Quantiles) -> f64| quantiles.map_or("-".to_owned(), |q| human(us(q)));
        let server = report.server.as_ref();
        let cpu = server.map_or("-".to_owned(), |server| match (server.cpu_us, server.per) {
            (Some(us), Some(per)) => format!("{us:.2} µs {}", each(per)),
            _ => format!("{:.1} %", server.busy * 100.0),
        });
        let faults = report.faults();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
        let times = (time(|q| q.p50_us), time(|q| q.p99_us), time(|q| q.max_us));
        rows.push([report.title.clone(), rate, times.0, times.1, times.2, cpu, faults]);
    }
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(n, (cell, width))| match n {
                // Words to the left, numbers to the right.
                0 | 6 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
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

    fn report(lost: u64) -> Report {
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
    fn a_person_reads_the_same_numbers() {
        let text = report(3).text();
        for part in [
            "97 of 100, 100/s",
            "3 lost, 0 repeated",
            "p99 3.00 ms",
            "2.50 µs a delivery",
            "<=   200 µs 100.0 %",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_load() {
        let text = table(&[report(0), report(3)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].ends_with("2.50 µs a delivery  none"), "{text}");
        assert!(lines[2].ends_with("3 lost"), "{text}");
    }

    #[test]
    fn json_has_no_members_that_do_not_belong() {
        let json = serde_json::to_value(report(0)).unwrap();
        assert_eq!(json["deliveries"]["latency"]["p99_us"], 3_000.0);
        assert!(json.get("publishing").is_none() && json.get("cycles").is_none(), "{json}");
    }
}

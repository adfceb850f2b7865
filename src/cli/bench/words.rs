//! What a load came to, as a person reads it.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    latency::{Quantiles, draw, human},
    report::{Connections, Report, Server},
};

/// From where on the generator's own core may be the limit.
const BUSY: f64 = 0.9;

/// Everything about one load.
pub(super) fn text(report: &Report) -> String {
    let mut lines = Lines(String::new());
    lines.0.push_str(&report.title);
    lines.0.push('\n');
    if report.interrupted {
        lines.add("interrupted", "what follows was measured until then");
    }
    if let Some(found) = &report.connections {
        connections(&mut lines, found);
    }
    if let Some(found) = &report.cycles {
        let rate = format!("{:.0}/s in {:.1} s", found.per_second, found.seconds);
        lines.add("connect and leave", &format!("{} times, {rate}", found.done));
    }
    if let Some(found) = &report.publishing {
        let rate = format!("{:.0}/s in {:.1} s", found.accepted_per_second, found.seconds);
        lines.add("published", &format!("{} accepted, {rate}", found.accepted));
        lines.reasons("refused", &found.refused);
        lines.quantiles("answered in", found.answer.as_ref());
    }
    if let Some(found) = &report.deliveries {
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
    if let Some(found) = &report.server {
        server(&mut lines, found);
    }
    if let Some(found) = &report.generator {
        let limit = if found.busy > BUSY { ": it may be the limit, not the server" } else { "" };
        lines.add("this program", &format!("{:.0} % of a core{limit}", found.busy * 100.0));
    }
    if let Some(found) = report.deliveries.as_ref().filter(|d| !d.histogram.is_empty()) {
        lines.0.push_str("  latencies\n");
        lines.0.push_str(&draw(&found.histogram));
    }
    lines.0
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
        lines.add("memory", &told);
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
    use super::{super::report::tests::report, *};

    #[test]
    fn a_person_reads_the_same_numbers() {
        let text = text(&report(3));
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
}

//! Latencies: kept in a histogram, told as percentiles and as bars.

use std::{fmt::Write as _, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::failure::Failure;

/// Three digits of every latency are kept.
const DIGITS: u8 = 3;
/// The longest latency that is told apart, in nanoseconds: an hour, as the longest load.
const LONGEST: u64 = 3_600_000_000_000;
/// The widest bar, in characters.
const WIDTH: f64 = 50.0;

/// A histogram of nanoseconds, of a quarter of a mebibyte.
#[derive(Debug)]
pub(super) struct Latency(Histogram<u64>);

/// Microseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: u64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

/// How many latencies are above the bar before and at most `to_us`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Bar {
    pub(super) to_us: f64,
    pub(super) count: u64,
}

impl Latency {
    pub(super) fn new() -> Result<Self, Failure> {
        Histogram::new_with_bounds(1, LONGEST, DIGITS)
            .map(Self)
            .map_err(|error| Failure::new(format!("cannot keep latencies: {error}")))
    }

    pub(super) fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn clear(&mut self) {
        self.0.reset();
    }

    /// `None` where nothing was recorded.
    pub(super) fn quantiles(&self) -> Option<Quantiles> {
        let at = |quantile| micros(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Quantiles {
            count: self.0.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        })
    }

    /// Bars at 1, 2, 5, 10, 20, 50 … microseconds, from the first to the last that is not empty.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let mut bars = Vec::new();
        let (mut below, mut done, mut digits) = (0, 0, [1_000_u64, 2_000, 5_000]);
        while done < self.0.len() {
            for edge in digits {
                // An edge of the histogram's own may lie beyond ours; no latency is counted twice.
                let so_far = if edge >= self.0.max() {
                    self.0.len()
                } else {
                    self.0.count_between(0, edge).max(done)
                };
                let count = so_far - done;
                if !bars.is_empty() || count > 0 {
                    bars.push(Bar { to_us: micros(edge), count });
                }
                (below, done) = (edge, so_far);
                if done == self.0.len() {
                    break;
                }
            }
            let Some(next) = digits[0].checked_mul(10) else { break };
            digits = [next, next.saturating_mul(2), next.saturating_mul(5)];
            debug_assert!(below < digits[0], "edges grow");
        }
        bars
    }
}

fn micros(nanos: u64) -> f64 {
    // Tenths are more than the clock is good for.
    (nanos as f64 / 100.0).round() / 10.0
}

/// `850 µs`, `12.3 ms`, `1.25 s`: three digits, as a person reads them.
pub(super) fn human(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1_000.0 => (us, "µs"),
        us if us < 1_000_000.0 => (us / 1_000.0, "ms"),
        us => (us / 1_000_000.0, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// The bars in plain characters, a line each; a bar that is not empty shows at least a dot.
pub(super) fn draw(bars: &[Bar]) -> String {
    let (all, most) = (
        bars.iter().map(|bar| bar.count).sum::<u64>() as f64,
        bars.iter().map(|bar| bar.count).max().unwrap_or(0) as f64,
    );
    let mut text = String::new();
    for bar in bars {
        let share = bar.count as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most WIDTH, and not negative"
        )]
        let length = (share / most * WIDTH).round() as usize;
        let line = if length == 0 && bar.count > 0 { ".".to_owned() } else { "#".repeat(length) };
        let edge = human(bar.to_us);
        // Writing to a string cannot fail.
        writeln!(text, "  <= {edge:>8} {:>5.1} % {line}", share / all * 100.0).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(micros: &[u64]) -> Latency {
        let mut latency = Latency::new().unwrap();
        for us in micros {
            latency.record(Duration::from_micros(*us));
        }
        latency
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        assert!(of(&[]).quantiles().is_none());
        let all: Vec<u64> = (1..=1000).collect();
        let found = of(&all).quantiles().unwrap();
        assert_eq!(found.count, 1000);
        for (value, expected) in [(found.p50_us, 500.0), (found.p99_us, 990.0)] {
            assert!((value - expected).abs() / expected < 0.002, "{value} for {expected}");
        }
        assert!((found.max_us - 1000.0).abs() < 1.0, "{}", found.max_us);
    }

    #[test]
    fn bars_hold_everything_once() {
        assert!(of(&[]).bars().is_empty());
        let bars = of(&[3, 4, 150, 7_000_000]).bars();
        assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), 4);
        assert_eq!(bars[0], Bar { to_us: 5.0, count: 2 });
        assert!(bars.contains(&Bar { to_us: 200.0, count: 1 }), "{bars:?}");
        assert_eq!(bars.last().unwrap(), &Bar { to_us: 10_000_000.0, count: 1 });
    }

    #[test]
    fn a_bar_is_drawn_to_scale_and_never_hidden() {
        let bar = |to_us, count| Bar { to_us, count };
        let drawn = draw(&[bar(200.0, 1), bar(500.0, 1000), bar(1_000.0, 500), bar(2_000.0, 0)]);
        assert!(drawn.lines().next().unwrap().ends_with(" % ."), "{drawn}");
        assert!(drawn.lines().nth(1).unwrap().ends_with(&"#".repeat(50)), "{drawn}");
        assert_eq!(drawn.lines().nth(2).unwrap().matches('#').count(), 25, "{drawn}");
        assert!(drawn.lines().nth(3).unwrap().trim_end().ends_with('%'), "{drawn}");
        assert_eq!(drawn.lines().count(), 4);
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        for (us, told) in [
            (3.25, "3.25 µs"),
            (85.0, "85.0 µs"),
            (850.0, "850 µs"),
            (12_345.0, "12.3 ms"),
            (1_250_000.0, "1.25 s"),
        ] {
            assert_eq!(human(us), told);
        }
    }
}

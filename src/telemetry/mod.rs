//! Log lines, and every metric as a typed method.
//!
//! Labels are enums or words from a closed set, never anything that a user can choose, so the
//! number of series is fixed (contract §8).

use std::io::IsTerminal as _;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::config::{Log, LogFormat};

mod labels;
mod metrics;
mod worker;

pub use labels::{ConnectResult, DropReason, JwksRefresh, Role, Target, Transport};
pub use metrics::Metrics;
pub use worker::WorkerMetrics;

/// Lines that may wait for whoever reads the log; more are dropped.
const LINES: usize = 16_384;

/// Keeps the log going; dropping it writes what still waits, within a second or so.
pub struct Lines(#[expect(dead_code, reason = "held for its drop")] WorkerGuard);

/// Sets up the log lines of this process, as configured. Lines go to standard output, through a
/// thread of their own: a reader that stalls, or is gone, costs lines and nothing else.
///
/// # Errors
/// When the filter does not parse or a subscriber is installed already.
pub fn init(log: &Log) -> Result<Lines, Box<dyn std::error::Error + Send + Sync>> {
    let filter = filter(&log.level)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES)
        .thread_name("log")
        .finish(std::io::stdout());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(true)
        .with_writer(writer)
        // It would say on standard error that standard output is gone, and panic if that is too.
        .log_internal_errors(false);
    let set = match log.format {
        LogFormat::Pretty => lines.compact().with_ansi(std::io::stdout().is_terminal()).try_init(),
        LogFormat::Json => lines.json().with_current_span(false).with_span_list(false).try_init(),
    };
    set.map(|()| Lines(guard))
}

fn filter(level: &str) -> Result<EnvFilter, Box<dyn std::error::Error + Send + Sync>> {
    let mut filter = EnvFilter::try_new(level)?;
    let named = |library: &str| {
        level
            .split(',')
            .any(|part| part.trim_start().split(['=', ':', '[']).next() == Some(library))
    };
    for (library, most) in LIBRARIES {
        // Only ever quieter: `log.level = "off"` stays off.
        let louder = filter.max_level_hint().is_none_or(|global| global > most);
        if louder && !named(library) {
            filter = filter.add_directive(format!("{library}={most}").parse()?);
        }
    }
    Ok(filter)
}

/// Libraries that speak of what an operator does not ask for, or, at their finest levels, of bytes
/// in which a credential may stand. They are quieter than the rest unless `log.level` names them.
const LIBRARIES: [(&str, LevelFilter); 5] = [
    ("actix_server", LevelFilter::WARN),
    ("actix_http", LevelFilter::WARN),
    ("fred", LevelFilter::ERROR),
    ("mio", LevelFilter::WARN),
    // Whoever connects says the same, and not at every attempt.
    ("rustls_platform_verifier", LevelFilter::OFF),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_only_ever_quieter() {
        for (level, expected) in [
            ("off", "off"),
            ("error", "error,rustls_platform_verifier=off"),
            (
                "trace",
                "actix_server=warn,actix_http=warn,fred=error,mio=warn,rustls_platform_verifier=off,trace",
            ),
            (
                "info,fred=trace",
                "actix_server=warn,actix_http=warn,fred=trace,mio=warn,rustls_platform_verifier=off,info",
            ),
        ] {
            let mut said: Vec<String> =
                filter(level).unwrap().to_string().split(',').map(str::to_owned).collect();
            let mut expected: Vec<&str> = expected.split(',').collect();
            said.sort_unstable();
            expected.sort_unstable();
            assert_eq!(said, expected, "{level}");
        }
    }
}

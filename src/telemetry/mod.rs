//! Log lines, and every metric as a typed method.
//!
//! Labels are enums or words from a closed set, never anything that a user can choose, so the
//! number of series is fixed (contract §8).

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

mod labels;
mod metrics;
mod worker;

pub use labels::{ConnectResult, DropReason, JwksRefresh, Role, Target};
pub use metrics::Metrics;
pub use worker::WorkerMetrics;

/// Sets up the log lines of this process, as configured. Lines go to standard output.
///
/// # Errors
/// When the filter does not parse or a subscriber is installed already.
pub fn init(log: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut filter = EnvFilter::try_new(&log.level)?;
    for (library, level) in LIBRARIES {
        if !log.level.contains(library) {
            filter = filter.add_directive(format!("{library}={level}").parse()?);
        }
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_target(true);
    match log.format {
        LogFormat::Pretty => lines.compact().with_ansi(std::io::stdout().is_terminal()).try_init(),
        LogFormat::Json => lines.json().with_current_span(false).with_span_list(false).try_init(),
    }
}

/// Libraries that speak of what an operator does not ask for, or, at their finest levels, of bytes
/// in which a credential may stand. They are quieter than the rest unless `log.level` names them.
const LIBRARIES: [(&str, &str); 5] = [
    ("actix_server", "warn"),
    ("actix_http", "warn"),
    ("fred", "error"),
    ("mio", "warn"),
    // Whoever connects says the same, and not at every attempt.
    ("rustls_platform_verifier", "off"),
];

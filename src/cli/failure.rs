//! How a command ends, and the two streams it speaks on.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use crate::config::Faults;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// One sentence for a person.
    #[error("{0}")]
    Message(String),
    /// The configuration cannot be used.
    #[error("{0}")]
    Configuration(#[from] Faults),
    /// Whoever read our output has enough, as in `belfry listen | head`.
    #[error("nobody reads the output any more")]
    PipeClosed,
}

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self::Message(message.into())
    }
}

/// The exit code of a command; a failure is told on standard error.
pub(super) fn exit_code(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) | Err(Failure::PipeClosed) => ExitCode::SUCCESS,
        Err(failure @ Failure::Message(_)) => {
            status(&format!("belfry: {failure}"));
            ExitCode::FAILURE
        }
        Err(failure @ Failure::Configuration(_)) => {
            status(&format!("belfry: {failure}"));
            ExitCode::from(2)
        }
    }
}

/// Writes one line to standard output, at once.
pub(super) fn print(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::PipeClosed),
        Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
    }
}

/// Writes one line to standard error.
pub fn status(line: &str) {
    // Nobody is left to tell where this fails.
    writeln!(io::stderr().lock(), "{line}").unwrap_or_default();
}

/// The argument itself, or standard input where it is `-`.
pub(super) fn or_stdin(argument: String) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument);
    }
    io::read_to_string(io::stdin().lock())
        .map_err(|error| Failure::new(format!("cannot read standard input: {error}")))
}

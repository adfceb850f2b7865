//! The `belfry` program: argv and environment into a configuration, log lines, the gateway, and
//! its exit code.

use std::process::ExitCode;

use belfry::{app, cli, telemetry};

/// Gives memory back to the system once a crowd has left; the system's own allocator keeps all of it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = match cli::run(std::env::args_os()) {
        cli::Action::Serve(config) => *config,
        cli::Action::Done(code) => return code,
    };
    let _lines = match telemetry::init(&config.log) {
        Ok(lines) => lines,
        Err(error) => {
            cli::status(&format!("belfry: cannot write log lines: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let shown = config.clone();
    let gateway = app::run(config, |public, internal| cli::greet(&shown, public, internal));
    match actix_rt::System::new().block_on(gateway) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::status(&format!("belfry: cannot serve: {error}"));
            ExitCode::FAILURE
        }
    }
}

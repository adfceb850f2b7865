//! `make chaos`: the delivery checker, long and with faults at random.
//!
//! `cargo test --test chaos -- [--duration SECONDS] [--seed N] [--fsync everysec|always]
//! [--no-repair] [--log LEVEL]`. With `--no-repair` the replicas neither fill nor announce gaps, and
//! the run succeeds if the checker finds events that are lost.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::string_slice,
    reason = "a test that fails by panicking fails well"
)]

mod checker;
#[path = "../it/support/mod.rs"]
#[allow(unused, reason = "what only other tests need")]
mod support;

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use checker::{
    breach::Kind,
    cast::Size,
    faults::Tempo,
    report::report,
    run::{Plan, run},
    world::{Fsync, Making},
};

#[derive(Parser)]
struct Options {
    /// Seconds of faults; what comes before and after takes about one minute more.
    #[arg(long, default_value_t = 600)]
    duration: u64,
    /// Of everything that is random; a new one if none is given.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, value_enum, default_value = "everysec")]
    fsync: Fsync,
    /// Expects the run to fail, with replicas that do not repair gaps.
    #[arg(long)]
    no_repair: bool,
    /// The replicas' log level.
    #[arg(long, default_value = "info")]
    log: String,
}

/// About 800 events a second reach clients. Each channel gets less than 5 a second, so 300 of them
/// last for a minute, and nobody is away for so long.
const SIZE: Size = Size {
    replicas: 3,
    users: 40,
    groups: 5,
    websockets: 70,
    event_streams: 30,
    publishers: 16,
    rate: 160,
    heartbeat: Duration::from_secs(12),
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const TEMPO: Tempo = Tempo {
    pause: (ms(2_000), ms(6_000)),
    outage: (ms(200), ms(8_000)),
    clients: (ms(200), ms(1_500)),
    stall: (ms(3_000), ms(26_000)),
};

/// Beyond the time of the faults: start, settling, end.
const OVERHEAD: Duration = Duration::from_secs(240);

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| rand::random::<u64>() >> 32);
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
    // Those of an earlier run with this seed, if there was one.
    let _ = std::fs::remove_dir_all(&logs);
    let plan = Plan {
        seed,
        size: SIZE,
        tempo: TEMPO,
        duration: Duration::from_secs(options.duration),
        making: Making {
            fsync: options.fsync,
            no_repair: options.no_repair,
            logs: logs.clone(),
            level: options.log,
        },
    };
    println!(
        "seed {seed}, {} s of faults, AOF {:?}, logs in {}",
        options.duration,
        options.fsync,
        logs.display()
    );
    let mut terminate = signal(SignalKind::terminate()).expect("a handler");
    let outcome = tokio::select! {
        outcome = run(&plan) => outcome,
        () = tokio::time::sleep(plan.duration + OVERHEAD) => {
            eprintln!("it did not end in time");
            return ExitCode::from(2);
        }
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
        _ = terminate.recv() => return ExitCode::from(143),
    };
    println!("{}", report(&outcome));
    let verdict = &outcome.verdict;
    let (good, end) = if options.no_repair {
        match verdict.breaches.count(Kind::Lost) {
            0 => (false, "NOTHING IS LOST WITHOUT REPAIR: the checker is blind"),
            _ => (true, "does not hold without repair, as it must be"),
        }
    } else if verdict.holds() {
        (true, "holds")
    } else {
        (false, "DOES NOT HOLD")
    };
    println!("seed {seed}: {end}");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

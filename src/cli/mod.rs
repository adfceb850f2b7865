//! The command line of contract §7: what a person types, and what becomes of it.
//!
//! What a script may want goes to standard output, everything else to standard error. Exit codes:
//! 0 done, 1 failed, 2 the command line or the configuration is at fault.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Flag, Sources, load, show};

mod banner;
mod bench;
mod failure;
mod healthcheck;
mod key;
mod listen;
mod publish;
mod remote;
mod token;

pub use banner::{banner, development_token, greet};
use failure::Failure;
pub use failure::status;

/// A notification gateway: a back end POSTs an event, every browser tab of its user has it a
/// moment later.
#[derive(Debug, Parser)]
#[command(
    name = "belfry",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        belfry                                        serve, on this machine only\n  \
        belfry listen --user alice                    see what alice gets\n  \
        belfry publish --user alice '{\"text\":\"hi\"}'   send her something\n  \
        belfry config                                 see what is configured, and where\n\n\
        BELFRY_PROFILE is development (default) or production. Every key of the configuration\n\
        is also an environment variable: limits.heartbeat is BELFRY__LIMITS__HEARTBEAT."
)]
struct Cli {
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags that every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Configuration")]
struct Layers {
    /// A TOML file over the built-in defaults and the profile
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over every other layer; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

/// Flags of `serve`, which is also what no command means.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Serving")]
struct Serve {
    /// Where browsers connect (public.bind)
    #[arg(long, value_name = "IP:PORT")]
    bind: Option<String>,
    /// Where back ends and operators connect (internal.bind)
    #[arg(long, value_name = "IP:PORT")]
    internal_bind: Option<String>,
    /// The Redis that makes replicas one (redis.url); keep passwords in a file, away from here
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
}

impl Serve {
    fn flags(self) -> impl Iterator<Item = Flag> {
        [
            ("--bind", "public.bind", self.bind),
            ("--internal-bind", "internal.bind", self.internal_bind),
            ("--redis-url", "redis.url", self.redis_url),
        ]
        .into_iter()
        .filter_map(|(name, key, value)| Some(Flag { name, key: key.to_owned(), value: value? }))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (what `belfry` alone does)
    #[command(after_help = "Examples:\n  \
        belfry serve\n  \
        belfry serve --bind 0.0.0.0:8080 --redis-url redis://redis:6379\n  \
        belfry serve --config belfry.toml --set limits.heartbeat=10s")]
    Serve(Serve),
    /// Make a token for a user, or check one
    Token(token::Token),
    /// Make an API key for a back end
    Key(key::Key),
    /// Send an event
    Publish(publish::Publish),
    /// Connect as a browser would, and print every frame
    Listen(listen::Listen),
    /// Print the configuration in force, and where each value came from
    #[command(after_help = "Examples:\n  \
        belfry config\n  \
        BELFRY_PROFILE=production belfry config --config belfry.toml\n\n\
        Secrets are redacted. Where the configuration is bad, every fault is named, and the exit\n\
        code is 2.")]
    Config(Serve),
    /// Put a gateway under load, and measure it
    Bench(bench::Bench),
    /// Ask a running gateway on this machine whether it is ready
    Healthcheck(healthcheck::Healthcheck),
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, such as limits.heartbeat=10s".to_owned()),
    }
}

/// What is left to do when the command line has been read.
#[derive(Debug)]
pub enum Action {
    /// Serve with this configuration.
    Serve(Box<Config>),
    /// Nothing: the command ran, or could not.
    Done(ExitCode),
}

/// Reads the command line and the environment, and runs whatever command is not `serve`.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> Action {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(help_or_error) => {
            // Nobody is left to tell where even this cannot be printed.
            help_or_error.print().unwrap_or_default();
            let code = u8::try_from(help_or_error.exit_code()).unwrap_or(2);
            return Action::Done(ExitCode::from(code));
        }
    };
    let set = |(key, value)| Flag { name: "--set", key, value };
    let flags = cli.serve.flags().chain(cli.layers.set.into_iter().map(set)).collect();
    let mut sources = Sources::from_process(cli.layers.config, flags);
    let done = match cli.command {
        None => return serve(&sources),
        Some(Command::Serve(flags)) => {
            sources.flags.extend(flags.flags());
            return serve(&sources);
        }
        Some(Command::Config(flags)) => {
            sources.flags.extend(flags.flags());
            config(&sources)
        }
        Some(Command::Token(token)) => token.run(&sources),
        Some(Command::Key(key)) => key.run(),
        Some(Command::Publish(publish)) => publish.run(&sources),
        Some(Command::Listen(listen)) => listen.run(&sources),
        Some(Command::Bench(bench)) => bench.run(&sources),
        Some(Command::Healthcheck(healthcheck)) => healthcheck.run(&sources),
    };
    Action::Done(failure::exit_code(done))
}

fn serve(sources: &Sources) -> Action {
    match load::load(sources) {
        Ok(config) => Action::Serve(Box::new(config)),
        Err(faults) => Action::Done(failure::exit_code(Err(faults.into()))),
    }
}

fn config(sources: &Sources) -> Result<(), Failure> {
    let loaded = load::load_with_origins(sources)?;
    failure::print(&show::show(&loaded))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lines_that_people_write_are_understood() {
        for line in [
            "belfry",
            "belfry --bind 127.0.0.1:0",
            "belfry serve --bind 127.0.0.1:0 --internal-bind 127.0.0.1:0",
            "belfry --config a.toml --set a=b serve --set c=d=e",
            "belfry token --user alice --group a --group b --ttl 1h --session s",
            "belfry token check abc",
            "belfry --config a.toml token check abc",
            "belfry token check abc --config a.toml",
            "belfry key --name billing --scope publish --scope read",
            "belfry publish --user alice {}",
            "belfry publish --broadcast --except bob --type t {}",
            "belfry listen --token t --count 3",
            "belfry listen --user alice --group g --url wss://x",
            "belfry config --bind 127.0.0.1:0",
            "belfry healthcheck --url http://127.0.0.1:1",
            "belfry bench all",
            "belfry bench --json idle --connections 10000 --pid 1 --pid 2",
            "belfry bench fanout --window 32 --url wss://x --api https://y --secret-file f",
            "belfry bench direct --rate 1500 --tabs 3 --tickets",
            "belfry bench churn --at-once 8 --duration 1m --group",
            "belfry bench publish --window 8 --batch 500 --transient",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        for line in [
            "belfry sing",
            "belfry --set heartbeat",
            "belfry --set =1",
            "belfry token",
            "belfry token --user alice check abc",
            "belfry key",
            "belfry key --name a --scope everything",
            "belfry publish {}",
            "belfry publish --user a --group b {}",
            "belfry publish --user a",
            "belfry listen",
            "belfry listen --token t --user u",
            "belfry listen --token t --group g",
            "belfry listen --token t --count 0",
            "belfry bench",
            "belfry bench idle --connections 0",
            "belfry bench idle --connections 1000000",
            "belfry bench idle --duration 2h",
            "belfry bench fanout --window 2 --rate 3",
            "belfry bench fanout --rate 0",
            "belfry bench publish --batch 1001",
            "belfry bench idle --tickets --secret-file f",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn flags_become_the_highest_layer_in_their_order() {
        let cli = parse("belfry --bind 127.0.0.1:1 --set limits.heartbeat=1s").unwrap();
        let flags: Vec<_> =
            cli.serve.flags().map(|flag| (flag.name, flag.key, flag.value)).collect();
        assert_eq!(flags, [("--bind", "public.bind".to_owned(), "127.0.0.1:1".to_owned())]);
        assert_eq!(cli.layers.set, [("limits.heartbeat".to_owned(), "1s".to_owned())]);
    }
}

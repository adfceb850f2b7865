//! `belfry bench`

use std::{path::PathBuf, rc::Rc, sync::Arc};

use clap::Args;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::{
    failure::{self, Failure},
    listen, publish, remote,
};
use crate::{
    config::{Auth, Flag, Sources, load},
    event::Group,
};

mod board;
mod crowd;
mod dial;
mod lane;
mod latency;
mod ledger;
mod loads;
mod options;
mod payload;
mod process;
mod publisher;
mod report;
mod words;

use dial::{Credentials, Dialer};
use lane::Api;
use loads::Scene;
use options::Mode;
use process::Watched;
use report::Report;

/// Descriptors beside the connections: standard streams, the runtime's own, connections to the
/// API, files under `/proc`.
const SPARE: u64 = 128;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    belfry bench all\n  \
    belfry bench fanout --connections 5000 --window 32 --pid \"$(pidof belfry)\"\n  \
    belfry bench direct --rate 1500 --url wss://app.example --api https://belfry-internal:8081\n  \
    belfry bench idle --connections 10000 --duration 2m --json\n\n\
    Events are published over the HTTP API (--api or BELFRY_URL) with the key in BELFRY_API_KEY,\n\
    scopes publish and broadcast. Connections come with tokens that are signed with --secret-file\n\
    or the secret of the configuration in force; with --tickets, or where there is no secret, with\n\
    tickets from the API, scope tickets.\n\n\
    Lost, repeated and reordered events are counted, and make the exit code 1, as do refused ones\n\
    and connections that fail. Ctrl-C ends a load early and tells what was measured.\n\n\
    A broadcast reaches everyone who is connected: on a gateway that others use, --group keeps it\n\
    among the connections of this command. Users and the group are named bench-…; what is kept for\n\
    them goes after history.ttl.")]
pub(super) struct Bench {
    #[command(subcommand)]
    mode: Mode,
    #[command(flatten)]
    target: Target,
}

/// Where the load goes, and how it is told.
#[derive(Args, Debug)]
#[command(next_help_heading = "Target")]
struct Target {
    #[arg(
        long,
        global = true,
        help = "The public listener, ws:// or wss:// [default: ws://127.0.0.1:8080/ws/notifications]"
    )]
    url: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help = "The internal API [env: BELFRY_URL] [default: http://127.0.0.1:8081]"
    )]
    api: Option<String>,
    /// A file with the secret that tokens are signed with
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "tickets")]
    secret_file: Option<PathBuf>,
    /// Connect with tickets bought from the API instead of tokens
    #[arg(long, global = true)]
    tickets: bool,
    /// Send to a group of this command's connections instead of to everyone
    #[arg(long, global = true)]
    group: bool,
    /// A process of the server on this machine, whose CPU time and memory are told; may be repeated
    #[arg(long = "pid", global = true, value_name = "PID")]
    pids: Vec<u32>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    trust: remote::Trust,
}

impl Bench {
    pub(super) fn run(self, sources: &Sources) -> Result<(), Failure> {
        enough_files(self.mode.connections())?;
        let reports = remote::block_on(LocalSet::new().run_until(async {
            let stop = CancellationToken::new();
            let work = async {
                let scene = self.target.scene(sources, stop.clone()).await?;
                self.mode.run(&scene, |report| self.target.progress(report)).await
            };
            tokio::select! {
                reports = work => reports,
                failure = interrupted(&stop) => Err(failure),
            }
        }))?;
        self.target.tell(&reports)?;
        let faults: Vec<String> = reports.iter().flat_map(Report::faults).collect();
        if faults.is_empty() { Ok(()) } else { Err(Failure::new(faults.join(", "))) }
    }
}

/// The first Ctrl-C asks for an end, the second is one.
async fn interrupted(stop: &CancellationToken) -> Failure {
    for _ in 0..2 {
        if let Err(error) = tokio::signal::ctrl_c().await {
            failure::status(&format!("belfry: cannot wait for Ctrl-C: {error}"));
            return std::future::pending().await;
        }
        if !stop.is_cancelled() {
            failure::status("ending; once more to end at once");
        }
        stop.cancel();
    }
    Failure::new("interrupted")
}

impl Target {
    async fn scene(&self, sources: &Sources, stop: CancellationToken) -> Result<Scene, Failure> {
        // Told apart from other runs by anyone's measure; not a secret.
        let run = format!("{:08x}", rand::random::<u32>());
        let tls = || tls(&self.trust, sources);
        let api = publish::api(self.api.as_deref().or_else(|| sources.var("BELFRY_URL")))?;
        let api = Rc::new(Api::new(&api, &publish::api_key(sources)?, tls).await?);
        let group = self.group.then(|| Group::new(&format!("bench-{run}"))).transpose();
        let group = group.map_err(|error| Failure::new(error.to_string()))?;
        let credentials = match self.secret(sources)? {
            Some(auth) => Credentials::Signed(auth),
            None => Credentials::Bought { api: api.clone(), lanes: std::cell::RefCell::default() },
        };
        let url = listen::endpoint(self.url.as_deref().unwrap_or(listen::DEFAULT_URL))?;
        let dialer = Dialer::new(url, tls, credentials, group.clone(), run.clone()).await?;
        let watched = Watched::new(&self.pids);
        // Says now, and not after the load, that a process cannot be looked at.
        watched.memory()?;
        Ok(Scene { dialer: Rc::new(dialer), api, watched, stop, run, group })
    }

    /// What tokens are signed with; `None`: tickets are bought.
    fn secret(&self, sources: &Sources) -> Result<Option<Box<Auth>>, Failure> {
        if self.tickets {
            return Ok(None);
        }
        let mut sources = sources.clone();
        if let Some(file) = &self.secret_file {
            let file = file.to_str().ok_or_else(|| Failure::new("--secret-file: not UTF-8"))?;
            let key = "auth.jwt.secret_file".to_owned();
            sources.flags.push(Flag { name: "--secret-file", key, value: file.to_owned() });
        }
        let auth = load::load(&sources)?.auth;
        Ok(auth.jwt.secret.is_some().then(|| Box::new(auth)))
    }

    /// A load of several is done.
    fn progress(&self, report: &Report) {
        if !self.json {
            failure::status(&format!("done: {}", report.title));
        }
    }

    fn tell(&self, reports: &[Report]) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "runs": reports });
            return failure::print(&json.to_string());
        }
        for report in reports {
            failure::print(&words::text(report))?;
        }
        if reports.len() > 1 {
            failure::print(words::table(reports).trim_end())?;
        }
        Ok(())
    }
}

/// Whom TLS believes: the authorities of `--ca-file`, or the system's.
fn tls(trust: &remote::Trust, sources: &Sources) -> Result<Arc<ClientConfig>, Failure> {
    if let Some(config) = trust.rustls(sources)? {
        return Ok(config);
    }
    let mut roots = RootCertStore::empty();
    // Those that cannot be read are missing, and only matter where a certificate needs them.
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(Failure::new("this system has no authorities to trust; give --ca-file"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(format!("TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Raises the limit of open files as far as it goes, and says at once where that is not enough.
fn enough_files(connections: u64) -> Result<(), Failure> {
    let wanted = connections.saturating_add(SPARE);
    let limit = rlimit::increase_nofile_limit(wanted)
        .map_err(|error| Failure::new(format!("cannot read the limit of open files: {error}")))?;
    if limit < wanted {
        let most = limit.saturating_sub(SPARE);
        return Err(Failure::new(format!(
            "`ulimit -n` is {limit} here: at most {most} connections from one process; raise the \
             limit, or run from more machines"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_connections_than_files_are_refused_at_once() {
        assert!(enough_files(1).is_ok());
        let told = enough_files(u64::MAX).unwrap_err().to_string();
        assert!(told.contains("`ulimit -n` is") && told.contains("at most"), "{told}");
    }
}

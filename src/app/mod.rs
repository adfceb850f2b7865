//! Builds everything in order, runs the two servers, and conducts the drain.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use actix_rt::task::JoinHandle;
use tokio::time::timeout;

use crate::{
    auth::Authenticator,
    config::Config,
    http::server,
    lifecycle::{Guard, Lifecycle, Phase, Stop, Vital},
    registry::Registry,
    rotation,
    seats::Keeper,
    store::sessions::Endings,
    telemetry::Metrics,
    tls,
};

mod parts;

use parts::{Actors, Parts};

/// Past the drain's spread, stalled peers are given this long to be cut.
const LAST_CALL: Duration = Duration::from_secs(6);
/// Requests that back ends have under way at the end are given this long: longer than a publish
/// may take.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How often the drain says how many are left.
const REPORT: Duration = Duration::from_millis(500);
/// Between two words of sessions that ended.
const TOGETHER: Duration = Duration::from_millis(50);

/// Why a replica cannot run, or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port in use, no right, no file descriptors.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A setting that only shows when it is used.
    #[error("{0}")]
    Setting(String),
    /// A task without which nothing is delivered has ended: a bug.
    #[error("the {0} has ended, which it must not {1}")]
    Ended(&'static str, String),
}

/// Tasks that go on as long as the replica. One that panics ends it: no probe would notice that what
/// it does is not done any more.
struct Tasks {
    vital: Vital,
    running: Vec<JoinHandle<()>>,
}

impl Tasks {
    fn new(vital: Vital) -> Self {
        Self { vital, running: Vec::new() }
    }

    fn spawn(&mut self, what: &'static str, task: impl Future<Output = ()> + 'static) {
        self.running.push(spawn(self.vital.guard(what), task));
    }
}

fn spawn(guard: Guard, task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    actix_rt::spawn(async move {
        let _guard = guard;
        task.await;
    })
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.running {
            task.abort();
        }
    }
}

/// Runs a replica until it is told to stop. `started` is called once with the addresses of the
/// public and the internal listener, when both answer.
///
/// # Errors
/// When it cannot start, or go on.
pub async fn run(
    mut config: Config,
    started: impl FnOnce(SocketAddr, SocketAddr),
) -> Result<(), StartError> {
    let mut stop = Stop::listen()?;
    config.limits.connections = room(config.limits.connections);
    let metrics = Metrics::new(config.limits.connections);
    count_panics(metrics.clone());
    let (parts, actors) = parts::build(&config, metrics)?;

    let public_listener = server::listen(config.public.bind, config.public.backlog)?;
    let internal_listener = server::listen(config.internal.bind, config.public.backlog)?;
    let addresses = (public_listener.local_addr()?, internal_listener.local_addr()?);
    let public_tls = parts::encrypt(config.public.tls.as_ref())?;
    let internal_tls = parts::encrypt(config.internal.tls.as_ref())?;
    let public = parts.public(&config, public_tls.clone())?.start(public_listener)?;
    let state = parts.internal(&config);
    let workers = config.internal.workers;
    let reader = parts.reader(state.clone());
    let internal = server::start_internal(internal_listener, workers, state, internal_tls.clone())?;
    let (public_handle, internal_handle) = (public.handle(), internal.handle());
    let servers = [("public", actix_rt::spawn(public)), ("internal", actix_rt::spawn(internal))];

    let mut subscriber = actix_rt::spawn(parts.subscriber(&config, actors.feed, actors.ear).run());
    let Actors { executor, keeper, endings, pump, .. } = actors;
    let mut tasks = Tasks::new(parts.vital.clone());
    tasks.spawn("executor of orders", executor.run());
    let following = Arc::clone(&parts.authenticator);
    tasks.spawn("follower of key sets", async move { following.follow().await });
    let (authenticator, keys) = (Arc::clone(&parts.authenticator), Arc::clone(&parts.keys));
    tasks.spawn("rotation of secrets", rotation::run(config.clone(), authenticator, keys));
    if let Some(endings) = endings {
        let watching = watch(endings, Arc::clone(&parts.authenticator), parts.registry.clone());
        tasks.spawn("watch on sessions", watching);
    }
    if let Some(pump) = pump {
        tasks.spawn("pump of clients' messages", pump.run());
    }
    if let Some(reader) = reader {
        tasks.spawn("reader of the publish stream", reader.run());
    }
    let keeper = spawn(parts.vital.guard("keeper of seats"), keeper.run());

    let listeners = [("public", addresses.0, public_tls), ("internal", addresses.1, internal_tls)];
    for (listener, address, tls) in &listeners {
        tracing::info!(listener, %address, tls = tls.is_some(), "listening");
    }
    let encrypted = listeners.into_iter().filter_map(|(name, _, tls)| Some((name, tls?)));
    tasks.spawn("watch on certificates", tls::watch(encrypted.collect()));
    parts.lifecycle.advance(Phase::Ready);
    started(addresses.0, addresses.1);

    let outcome = tokio::select! {
        () = stop.requested() => Ok(leave(&mut stop, &config, &parts).await),
        // Without it the replica is deaf and would not know; the platform starts another.
        end = &mut subscriber => Err(StartError::Ended("subscriber", format!("{end:?}"))),
        what = parts.vital.ended() => Err(StartError::Ended(what, String::new())),
    };
    // The internal server goes last, so that /metrics shows the drain to its end; publishes that
    // are under way get their answer.
    public_handle.stop(false).await;
    if matches!(outcome, Ok(Left::Drained)) {
        parts.underway.settled(LAST_ANSWERS).await;
        if let Some(outlet) = &parts.outlet {
            outlet.flushed(LAST_ANSWERS).await;
        }
    }
    internal_handle.stop(false).await;
    keeper.abort();
    Keeper::finish(&parts.seats).await;
    subscriber.abort();
    drop(tasks);
    if let Some(ingest) = &parts.ingest
        && let Err(error) = ingest.release().await
    {
        tracing::debug!(%error, "the lease of the publish stream stays until its end");
    }
    for (name, server) in servers {
        if let Ok(Err(error)) = server.await {
            tracing::warn!(%error, name, "a server ended with an error");
        }
    }
    outcome.map(drop)
}

/// How a replica left.
enum Left {
    Drained,
    AtOnce,
}

async fn leave(stop: &mut Stop, config: &Config, parts: &Parts) -> Left {
    tracing::info!("asked to stop; a second signal stops at once");
    tokio::select! {
        () = drain(config, &parts.lifecycle, &parts.registry, &parts.metrics) => {
            tracing::info!("drained");
            Left::Drained
        }
        () = stop.requested() => {
            tracing::warn!("stopped at once, by a second signal");
            Left::AtOnce
        }
    }
}

/// Not ready first, while everything goes on and the router notices; then the closes, spread.
async fn drain(config: &Config, lifecycle: &Lifecycle, registry: &Registry, metrics: &Metrics) {
    lifecycle.advance(Phase::Draining);
    let report = async {
        loop {
            metrics.drain_remaining(registry.connections());
            tokio::time::sleep(REPORT).await;
        }
    };
    let leave = async {
        tokio::time::sleep(config.drain.delay).await;
        lifecycle.advance(Phase::Leaving);
        let closed = async {
            registry.leave(config.drain.spread).await;
            registry.emptied().await;
        };
        if timeout(config.drain.spread + LAST_CALL, closed).await.is_err() {
            tracing::warn!(left = registry.connections(), "connections are left and are cut");
        }
    };
    tokio::select! {
        () = leave => {}
        () = report => {}
    }
    metrics.drain_remaining(0);
}

/// Has the connections of sessions that end look, at once.
async fn watch(
    mut endings: Box<dyn Endings>,
    authenticator: Arc<Authenticator>,
    registry: Registry,
) {
    while let Some(sessions) = endings.next().await {
        authenticator.ended(&sessions);
        registry.recheck(sessions).await;
        // Many that end one after another are told together.
        tokio::time::sleep(TOGETHER).await;
    }
}

/// Open files beside those of connections: listeners, Redis, requests to the internal listener, and
/// clients that are being refused.
const SPARE_FILES: u64 = 900;

/// Every connection is an open file, and shells hand out 1,024; what the system allows at most is
/// ours to take. The limit on connections is lowered to what it has room for, so that the process
/// says "full" and its health, instead of failing to accept anything.
fn room(connections: usize) -> usize {
    let files = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files cannot be found out");
            return connections;
        }
    };
    let spare = SPARE_FILES.min(files / 2);
    let room = usize::try_from(files - spare).unwrap_or(usize::MAX);
    if room < connections {
        tracing::warn!(
            open_files = files,
            limit = room,
            configured = connections,
            "limits.connections is lowered: the system allows no more open files"
        );
    }
    connections.min(room)
}

/// A panic ends its own task only (`panic = "unwind"`); it is a bug all the same, so it is counted.
fn count_panics(metrics: Metrics) {
    // In place of the default hook, which writes to standard error, where nobody may be reading.
    std::panic::set_hook(Box::new(move |info| {
        metrics.panicked();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let what = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or_default();
        tracing::error!(place, what, "a task panicked; this is a bug");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_by_its_name() {
        let test = async {
            let vital = Vital::default();
            let mut tasks = Tasks::new(vital.clone());
            tasks.spawn("quiet one", async {});
            tasks.spawn("broken one", async { panic!("on purpose") });
            assert_eq!(timeout(Duration::from_secs(5), vital.ended()).await, Ok("broken one"));
        };
        tokio::task::LocalSet::new().run_until(test).await;
    }
}

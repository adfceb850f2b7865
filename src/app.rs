//! Builds everything in order, runs the two servers, and conducts the drain.

use std::{io, sync::Arc, time::Duration};

use actix_web::web;
use tokio::time::timeout;

use crate::{
    auth::{Authenticator, api_key::ApiKeys, origin::Origins},
    bus::{
        Feed, Publisher,
        memory::{Capacity, MemoryBus},
        orders::{self, Ear, Executor, Orders},
        redis,
        subscriber::{self, Health, Subscriber},
    },
    config::{Config, Profile},
    gate::Gate,
    http::{
        internal,
        logout::Logouts,
        public,
        server::{self, PublicServer},
    },
    lifecycle::{Lifecycle, Phase, Stop},
    outbox::Bounds,
    registry::Registry,
    rotation,
    seats::{Keeper, Seats},
    store::{Store, memory::MemoryStore, redis::RedisStore},
    telemetry::Metrics,
};

/// Room for what an event has beside its data: type, sender, head and the exceptions.
const ENVELOPE_BYTES: usize = 512 * 1024;
/// Past the drain's spread, stalled peers are given this long to be cut.
const LAST_CALL: Duration = Duration::from_secs(6);

/// What went wrong at the start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port in use, no right, no file descriptors.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A setting that only shows when it is used.
    #[error("{0}")]
    Setting(String),
}

/// Runs a replica until it is told to stop. `started` is called once with the addresses of the
/// public and the internal listener, when both answer.
///
/// # Errors
/// When it cannot start.
pub async fn run(
    config: Config,
    started: impl FnOnce(std::net::SocketAddr, std::net::SocketAddr),
) -> Result<(), StartError> {
    let mut stop = Stop::listen()?;
    raise_open_files();
    let metrics = Metrics::new(config.limits.connections);
    count_panics(metrics.clone());
    let lifecycle = Arc::new(Lifecycle::default());
    let health = Arc::new(Health::default());
    let registry = Registry::new(config.limits.connections, metrics.clone());
    let (publisher, feed, store) = broker(&config)?;
    let authenticator = Arc::new(Authenticator::new(&config, metrics.clone()));
    let keys = Arc::new(ApiKeys::new(config.api.keys.clone()));
    let Together { orders, executor, ear, seats, keeper, logouts } =
        together(&config, &publisher, &store, &registry, &metrics, &authenticator);

    let public_listener = server::listen(config.public.bind, config.public.backlog)?;
    let internal_listener = server::listen(config.internal.bind, config.public.backlog)?;
    let addresses = (public_listener.local_addr()?, internal_listener.local_addr()?);

    let public = PublicServer {
        workers: config.public.workers,
        base_path: config.public.base_path.clone(),
        connections: config.limits.connections,
        heartbeat: config.limits.heartbeat,
        leeway: config.auth.jwt.leeway,
        recheck: config.reserved.session_recheck,
        state: Arc::new(public::State {
            authenticator: Arc::clone(&authenticator),
            origins: Origins::parse(&config.auth.origins).map_err(|text| {
                StartError::Setting(format!("auth.origins: {text} is no origin"))
            })?,
            reject: config.auth.reject,
            explain: config.profile == Profile::Development,
            health: Arc::clone(&health),
            lifecycle: Arc::clone(&lifecycle),
            gate: Gate::default(),
            registry: registry.clone(),
            seats: Arc::clone(&seats),
            logouts: config.auth.backchannel_public.then(|| Arc::clone(&logouts)),
            bounds: Bounds { frames: config.limits.queue_events, bytes: config.limits.queue_bytes },
            inbound_bytes: config.limits.inbound_bytes,
            metrics: metrics.clone(),
        }),
    }
    .start(public_listener)?;
    let internal = server::start_internal(
        internal_listener,
        config.internal.workers,
        web::Data::new(internal::State {
            publisher: Arc::clone(&publisher),
            store,
            keys: Arc::clone(&keys),
            limits: config.limits.clone(),
            ready: config.ready.clone(),
            health: Arc::clone(&health),
            lifecycle: Arc::clone(&lifecycle),
            orders,
            logouts,
            metrics: metrics.clone(),
        }),
    )?;
    let public_handle = public.handle();
    let internal_handle = internal.handle();
    let public = actix_rt::spawn(public);
    let internal = actix_rt::spawn(internal);
    let subscriber = Subscriber::new(
        feed,
        publisher,
        registry.clone(),
        health,
        ear,
        metrics.clone(),
        subscriber_settings(&config),
    );
    let executor = actix_rt::spawn(executor.run());
    let keeper = actix_rt::spawn(keeper.run());
    let subscriber = actix_rt::spawn(subscriber.run());
    let rotation = actix_rt::spawn(rotation::run(config.clone(), authenticator, keys));

    for (listener, address) in [("public", addresses.0), ("internal", addresses.1)] {
        tracing::info!(listener, %address, "listening");
    }
    lifecycle.advance(Phase::Ready);
    started(addresses.0, addresses.1);

    stop.requested().await;
    tracing::info!("asked to stop; a second signal stops at once");
    tokio::select! {
        () = drain(&config, &lifecycle, &registry, &metrics) => tracing::info!("drained"),
        () = stop.requested() => tracing::warn!("stopped at once, by a second signal"),
    }
    // The internal server goes last, so that /metrics shows the drain to its end.
    public_handle.stop(false).await;
    keeper.abort();
    Keeper::finish(&seats).await;
    subscriber.abort();
    executor.abort();
    rotation.abort();
    internal_handle.stop(false).await;
    for (name, server) in [("public", public), ("internal", internal)] {
        if let Ok(Err(error)) = server.await {
            tracing::warn!(%error, name, "a server ended with an error");
        }
    }
    Ok(())
}

type Broker = (Arc<dyn Publisher>, Box<dyn Feed>, Arc<dyn Store>);

fn broker(config: &Config) -> Result<Broker, StartError> {
    match &config.redis {
        None => {
            let (publisher, feed) = MemoryBus::new(Capacity::default());
            Ok((Arc::new(publisher), Box::new(feed), Arc::new(MemoryStore::default())))
        }
        Some(settings) => {
            let redis =
                redis::connect(settings).map_err(|error| StartError::Setting(error.to_string()))?;
            let store = RedisStore::new(redis.commands, &settings.prefix);
            Ok((Arc::new(redis.publisher), Box::new(redis.feed), Arc::new(store)))
        }
    }
}

/// What replicas do together, beside events: orders, and the count of a user's connections.
struct Together {
    orders: Orders,
    executor: Executor,
    ear: Ear,
    seats: Arc<Seats>,
    keeper: Keeper,
    logouts: Arc<Logouts>,
}

fn together(
    config: &Config,
    publisher: &Arc<dyn Publisher>,
    store: &Arc<dyn Store>,
    registry: &Registry,
    metrics: &Metrics,
    authenticator: &Arc<Authenticator>,
) -> Together {
    let replica = uuid::Uuid::now_v7().simple().to_string();
    let (orders, executor, ear) = orders::road(
        &replica,
        Arc::clone(publisher),
        Arc::clone(store),
        registry.clone(),
        metrics.clone(),
        config.auth.revocation_ttl,
    );
    let (seats, keeper) = Seats::new(&replica, Arc::clone(store), orders.clone(), &config.limits);
    let logouts = Arc::new(Logouts {
        authenticator: Arc::clone(authenticator),
        orders: orders.clone(),
        store: Arc::clone(store),
        token_bytes: config.auth.token_bytes,
    });
    Together { orders, executor, ear, seats, keeper, logouts }
}

fn subscriber_settings(config: &Config) -> subscriber::Settings {
    let (probe_interval, probe_timeout) = match &config.redis {
        Some(redis) => (redis.probe_interval, redis.probe_timeout),
        None => (Duration::from_secs(2), Duration::from_secs(3)),
    };
    let message_bytes = config.limits.data_bytes + ENVELOPE_BYTES;
    subscriber::Settings { probe_interval, probe_timeout, message_bytes }
}

/// Not ready first, while everything goes on and the router notices; then the closes, spread.
async fn drain(config: &Config, lifecycle: &Lifecycle, registry: &Registry, metrics: &Metrics) {
    lifecycle.advance(Phase::Draining);
    metrics.drain_remaining(registry.connections());
    tokio::time::sleep(config.drain.delay).await;
    lifecycle.advance(Phase::Leaving);
    registry.leave(config.drain.spread).await;
    if timeout(config.drain.spread + LAST_CALL, registry.emptied()).await.is_err() {
        tracing::warn!(left = registry.connections(), "connections are left and are cut");
    }
    metrics.drain_remaining(0);
}

/// Every connection is a file descriptor, and shells hand out 1,024; what the system allows at most
/// is ours to take.
fn raise_open_files() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit on open files could not be raised"),
    }
}

/// A panic ends its own task only (`panic = "unwind"`); it is a bug all the same, so it is counted.
fn count_panics(metrics: Metrics) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        metrics.panicked();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a task panicked; this is a bug");
        before(info);
    }));
}

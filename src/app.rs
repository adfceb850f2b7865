//! Builds everything in order, runs the two servers, and conducts the drain.

use std::{io, sync::Arc, time::Duration};

use actix_web::web;
use tokio::time::timeout;

use crate::{
    auth::{
        self, Authenticator, api_key::ApiKeys, groups, origin::Origins, session::Cookies,
        ticket::Office,
    },
    bus::{
        Feed, Publisher,
        memory::{Capacity, MemoryBus},
        orders::{self, Ear, Executor, Orders},
        redis,
        subscriber::{self, Health, Subscriber},
    },
    config::{self, Config, Method, Profile},
    gate::Gate,
    http::{
        internal,
        logout::Logouts,
        public,
        server::{self, PublicServer},
    },
    lifecycle::{Lifecycle, Phase, Stop, Vital},
    outbox::Bounds,
    registry::Registry,
    rotation,
    seats::{Keeper, Seats},
    store::{self, Store, memory::MemoryStore, redis::RedisStore, sessions::Endings},
    telemetry::Metrics,
    tls::{self, Tls},
};

/// Room for what an event has beside its data: type, sender, head and the exceptions.
const ENVELOPE_BYTES: usize = 512 * 1024;
/// Past the drain's spread, stalled peers are given this long to be cut.
const LAST_CALL: Duration = Duration::from_secs(6);
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
    let vital = Vital::default();
    let registry = Registry::new(config.limits.connections, metrics.clone(), vital.clone());
    let (publisher, feed, store) = broker(&config)?;
    let (authenticator, endings) = authenticator(&config, &store, &metrics)?;
    let keys = Arc::new(ApiKeys::new(config.api.keys.clone()));
    let Together { orders, executor, ear, seats, keeper, logouts } =
        together(&config, &publisher, &store, &registry, &metrics, &authenticator);

    let public_listener = server::listen(config.public.bind, config.public.backlog)?;
    let internal_listener = server::listen(config.internal.bind, config.public.backlog)?;
    let addresses = (public_listener.local_addr()?, internal_listener.local_addr()?);
    let public_tls = encrypt(config.public.tls.as_ref())?;
    let internal_tls = encrypt(config.internal.tls.as_ref())?;

    let public = PublicServer {
        workers: config.public.workers,
        base_path: config.public.base_path.clone(),
        connections: config.limits.connections,
        heartbeat: config.limits.heartbeat,
        leeway: config.auth.jwt.leeway,
        recheck: config.auth.session.recheck,
        inbound: config.gate.inbound,
        tls: public_tls.clone(),
        state: Arc::new(public::State {
            authenticator: Arc::clone(&authenticator),
            origins: Origins::parse(&config.auth.origins).map_err(|text| {
                StartError::Setting(format!("auth.origins: {text} is no origin"))
            })?,
            reject: config.auth.reject,
            explain: config.profile == Profile::Development,
            health: Arc::clone(&health),
            lifecycle: Arc::clone(&lifecycle),
            gate: Gate::new(config.gate.clone()),
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
            authenticator: Arc::clone(&authenticator),
            groups: groups::Rule::new(&config),
            limits: config.limits.clone(),
            ready: config.ready.clone(),
            health: Arc::clone(&health),
            lifecycle: Arc::clone(&lifecycle),
            orders,
            logouts,
            metrics: metrics.clone(),
        }),
        internal_tls.clone(),
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
    let mut subscriber = actix_rt::spawn(subscriber.run());
    let following = Arc::clone(&authenticator);
    let following = actix_rt::spawn(async move { following.follow().await });
    let watch = actix_rt::spawn(watch(endings, Arc::clone(&authenticator), registry.clone()));
    let rotation = actix_rt::spawn(rotation::run(config.clone(), authenticator, keys));

    let listeners = [("public", addresses.0, public_tls), ("internal", addresses.1, internal_tls)];
    for (listener, address, tls) in &listeners {
        tracing::info!(listener, %address, tls = tls.is_some(), "listening");
    }
    let certificates = listeners.into_iter().filter_map(|(name, _, tls)| Some((name, tls?)));
    let certificates = actix_rt::spawn(tls::watch(certificates.collect()));
    lifecycle.advance(Phase::Ready);
    started(addresses.0, addresses.1);

    let outcome = tokio::select! {
        () = stop.requested() => {
            tracing::info!("asked to stop; a second signal stops at once");
            tokio::select! {
                () = drain(&config, &lifecycle, &registry, &metrics) => {
                    tracing::info!("drained");
                    Ok(true)
                }
                () = stop.requested() => {
                    tracing::warn!("stopped at once, by a second signal");
                    Ok(false)
                }
            }
        }
        // Without it the replica is deaf and would not know; the platform starts another.
        end = &mut subscriber => Err(StartError::Ended("subscriber", format!("{end:?}"))),
        what = vital.ended() => Err(StartError::Ended(what, String::new())),
    };
    let in_order = matches!(outcome, Ok(true));
    // The internal server goes last, so that /metrics shows the drain to its end; publishes that
    // are under way get their answer.
    public_handle.stop(false).await;
    internal_handle.stop(in_order).await;
    keeper.abort();
    Keeper::finish(&seats).await;
    subscriber.abort();
    executor.abort();
    rotation.abort();
    certificates.abort();
    following.abort();
    watch.abort();
    for (name, server) in [("public", public), ("internal", internal)] {
        if let Ok(Err(error)) = server.await {
            tracing::warn!(%error, name, "a server ended with an error");
        }
    }
    outcome.map(drop)
}

fn encrypt(files: Option<&config::tls::Tls>) -> Result<Option<Arc<Tls>>, StartError> {
    let tls = files.cloned().map(Tls::new).transpose().map_err(StartError::Setting)?;
    Ok(tls.map(Arc::new))
}

type Broker = (Arc<dyn Publisher>, Box<dyn Feed>, Arc<dyn Store>);

fn broker(config: &Config) -> Result<Broker, StartError> {
    match &config.redis {
        None => {
            let (publisher, feed) = MemoryBus::new(Capacity::default());
            Ok((Arc::new(publisher), Box::new(feed), Arc::new(MemoryStore::default())))
        }
        Some(settings) => {
            let redis = redis::connect(settings)
                .map_err(|error| StartError::Setting(format!("redis.url: {error}")))?;
            let store = RedisStore::new(redis.commands, &settings.prefix);
            Ok((Arc::new(redis.publisher), Box::new(redis.feed), Arc::new(store)))
        }
    }
}

/// Word of sessions that end; `None` where no cookie is accepted.
type Words = Option<Box<dyn Endings>>;

/// Whoever checks credentials, with the stores that it asks.
fn authenticator(
    config: &Config,
    store: &Arc<dyn Store>,
    metrics: &Metrics,
) -> Result<(Arc<Authenticator>, Words), StartError> {
    let authenticator = Authenticator::new(config, metrics.clone())
        .with_tickets(Office::new(config, Arc::clone(store)));
    let session = &config.auth.session;
    let wanted = config.auth.methods.contains(&Method::Cookie);
    let Some(redis) = session.redis.as_ref().filter(|_| wanted) else {
        return Ok((Arc::new(authenticator), None));
    };
    let fields = auth::session::fields(config);
    let (sessions, endings) = store::redis::sessions::connect(redis, session, fields)
        .map_err(|error| StartError::Setting(format!("auth.session.redis_url: {error}")))?;
    let authenticator = authenticator.with_cookies(Cookies::new(config, Arc::new(sessions)));
    Ok((Arc::new(authenticator), Some(Box::new(endings))))
}

/// Has the connections of sessions that end look, at once.
async fn watch(endings: Words, authenticator: Arc<Authenticator>, registry: Registry) {
    let Some(mut endings) = endings else { return };
    while let Some(sessions) = endings.next().await {
        authenticator.ended(&sessions);
        registry.recheck(sessions).await;
        // Many that end one after another are told together.
        tokio::time::sleep(TOGETHER).await;
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

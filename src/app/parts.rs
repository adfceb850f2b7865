//! The parts of a replica, made from its configuration and put together.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use actix_web::web;
use tokio::sync::Semaphore;

use super::StartError;
use crate::{
    auth::{
        self, Authenticator, api_key::ApiKeys, groups, origin::Origins, session::Cookies,
        ticket::Office,
    },
    bus::{
        Feed, History, Publisher,
        inbound::{self, Inbound, Outlet, Pump},
        ingest::{Entry, Ingest, Job, Reader},
        memory::{Capacity, MemoryBus},
        orders::{self, Ear, Executor, Orders},
        redis,
        replays::Replays,
        subscriber::{self, Health, Subscriber},
    },
    config::{self, Config, Method, Profile},
    event::Subject,
    gate::Gate,
    history::Bounds as Keeping,
    http::{ingest, internal, logout::Logouts, public, server::PublicServer},
    lifecycle::{Lifecycle, Phase, Underway, Vital},
    outbox::Bounds,
    registry::{Registry, tracks::Tracks},
    seats::{
        Keeper, Seats,
        report::{Numbers, Source},
    },
    store::{self, Store, memory::MemoryStore, redis::RedisStore, sessions::Endings},
    telemetry::Metrics,
    tls::Tls,
};

/// Room for what an event has beside its data: type, sender, head and the exceptions.
const ENVELOPE_BYTES: usize = 512 * 1024;

/// Refused clients that are told why over a WebSocket at the same time; more get a status.
const FAREWELLS: usize = 256;

/// What the servers and the actors share.
pub(super) struct Parts {
    pub(super) metrics: Metrics,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) vital: Vital,
    pub(super) underway: Underway,
    pub(super) registry: Registry,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) keys: Arc<ApiKeys>,
    pub(super) seats: Arc<Seats>,
    /// Where messages of clients go, if anywhere.
    pub(super) outlet: Option<Outlet>,
    /// The stream that back ends may write events to, if any.
    pub(super) ingest: Option<Arc<dyn Ingest>>,
    health: Arc<Health>,
    publisher: Arc<dyn Publisher>,
    history: Arc<dyn History>,
    store: Arc<dyn Store>,
    replays: Arc<Replays>,
    orders: Orders,
    logouts: Arc<Logouts>,
}

/// What runs by itself once it is started.
pub(super) struct Actors {
    pub(super) feed: Box<dyn Feed>,
    pub(super) ear: Ear,
    pub(super) executor: Executor,
    pub(super) keeper: Keeper,
    /// `None` where no cookie is accepted.
    pub(super) endings: Option<Box<dyn Endings>>,
    /// `None` where messages of clients go nowhere.
    pub(super) pump: Option<Pump>,
}

/// Makes everything that needs no port.
pub(super) fn build(config: &Config, metrics: Metrics) -> Result<(Parts, Actors), StartError> {
    let vital = Vital::default();
    let tracks = Tracks::new(keeping(config));
    let limit = config.limits.connections;
    let registry = Registry::new(limit, Arc::clone(&tracks), metrics.clone(), vital.clone());
    let replica = uuid::Uuid::now_v7().simple().to_string();
    let Broker { publisher, history, feed, store, inbound, ingest } = broker(config, &replica)?;
    let (outlet, pump) = inbound
        .map(|stream| inbound::queue(config.limits.inbound_bytes, stream, metrics.clone()))
        .unzip();
    let (authenticator, endings) = authenticator(config, &store, &metrics)?;
    let (orders, executor, ear) = orders::road(
        &replica,
        Arc::clone(&publisher),
        Arc::clone(&store),
        registry.clone(),
        metrics.clone(),
        config.auth.revocation_ttl,
    );
    // A session that is ordered out must not come back by what a cache remembers of it.
    let cache = Arc::clone(&authenticator);
    let executor = executor.telling(move |order| {
        if let Subject::Session(session) = &order.subject {
            cache.ended(&[*session]);
        }
    });
    let lifecycle = Arc::<Lifecycle>::default();
    let health = Arc::<Health>::default();
    let numbers = numbers(&metrics, &lifecycle, &health, config.ready.redis_grace);
    let (seats, keeper) =
        Seats::new(&replica, Arc::clone(&store), orders.clone(), &config.limits, numbers);
    let underway = Underway::default();
    let logouts = Arc::new(Logouts {
        authenticator: Arc::clone(&authenticator),
        orders: orders.clone(),
        store: Arc::clone(&store),
        underway: underway.clone(),
        token_bytes: config.auth.token_bytes,
        refusals: Mutex::default(),
    });
    let replays = Arc::new(Replays::new(Arc::clone(&history), tracks));
    let parts = Parts {
        metrics,
        lifecycle,
        vital,
        underway,
        registry,
        authenticator,
        keys: Arc::new(ApiKeys::new(config.api.keys.clone())),
        seats,
        outlet,
        ingest,
        health,
        publisher,
        history,
        store,
        replays,
        orders,
        logouts,
    };
    Ok((parts, Actors { feed, ear, executor, keeper, endings, pump }))
}

impl Parts {
    /// The server for browsers.
    pub(super) fn public(
        &self,
        config: &Config,
        tls: Option<Arc<Tls>>,
    ) -> Result<PublicServer, StartError> {
        let origins = Origins::parse(&config.auth.origins)
            .map_err(|text| StartError::Setting(format!("auth.origins: {text} is no origin")))?;
        Ok(PublicServer {
            workers: config.public.workers,
            base_path: config.public.base_path.clone(),
            transport: config.public.transport,
            connections: config.limits.connections,
            heartbeat: config.limits.heartbeat,
            leeway: config.auth.jwt.leeway,
            recheck: config.auth.session.recheck,
            inbound: config.gate.inbound,
            tls,
            state: Arc::new(public::State {
                authenticator: Arc::clone(&self.authenticator),
                origins,
                farewells: Arc::new(Semaphore::new(FAREWELLS)),
                reject: config.auth.reject,
                explain: config.profile == Profile::Development,
                health: Arc::clone(&self.health),
                lifecycle: Arc::clone(&self.lifecycle),
                gate: Gate::new(config.gate.clone()),
                registry: self.registry.clone(),
                seats: Arc::clone(&self.seats),
                logouts: config.auth.backchannel_public.then(|| Arc::clone(&self.logouts)),
                bounds: Bounds {
                    frames: config.limits.queue_events,
                    bytes: config.limits.queue_bytes,
                },
                inbound_bytes: config.limits.inbound_bytes,
                outlet: self.outlet.clone(),
                replays: Arc::clone(&self.replays),
                metrics: self.metrics.clone(),
            }),
        })
    }

    /// What the server for back ends and operators works with.
    pub(super) fn internal(&self, config: &Config) -> web::Data<internal::State> {
        web::Data::new(internal::State {
            publisher: Arc::clone(&self.publisher),
            keys: Arc::clone(&self.keys),
            authenticator: Arc::clone(&self.authenticator),
            groups: groups::Rule::new(config),
            limits: config.limits.clone(),
            history: Arc::clone(&self.history),
            history_ttl: config.history.ttl,
            store: Arc::clone(&self.store),
            seats: Arc::clone(&self.seats),
            ready: config.ready.clone(),
            health: Arc::clone(&self.health),
            lifecycle: Arc::clone(&self.lifecycle),
            underway: self.underway.clone(),
            orders: self.orders.clone(),
            logouts: Arc::clone(&self.logouts),
            metrics: self.metrics.clone(),
        })
    }

    /// The actor that publishes what back ends write to a stream, if they may.
    pub(super) fn reader(
        &self,
        state: web::Data<internal::State>,
    ) -> Option<Reader<impl Fn(&Entry) -> Result<Job, String> + use<>>> {
        let stream = Arc::clone(self.ingest.as_ref()?);
        let parse = move |entry: &Entry| ingest::job(&state, entry);
        Some(Reader::new(stream, Arc::clone(&self.publisher), parse, self.metrics.clone()))
    }

    /// The actor that owns this replica's subscription.
    pub(super) fn subscriber(&self, config: &Config, feed: Box<dyn Feed>, ear: Ear) -> Subscriber {
        let (probe_interval, probe_timeout) = match &config.redis {
            Some(redis) => (redis.probe_interval, redis.probe_timeout),
            None => (Duration::from_secs(2), Duration::from_secs(3)),
        };
        let message_bytes = config.limits.data_bytes + ENVELOPE_BYTES;
        let bus = subscriber::Bus {
            feed,
            publisher: Arc::clone(&self.publisher),
            history: Arc::clone(&self.history),
        };
        Subscriber::new(
            bus,
            self.registry.clone(),
            Arc::clone(&self.health),
            ear,
            self.metrics.clone(),
            subscriber::Settings { probe_interval, probe_timeout, message_bytes },
        )
    }
}

/// What this replica tells of itself.
fn numbers(
    metrics: &Metrics,
    lifecycle: &Arc<Lifecycle>,
    health: &Arc<Health>,
    grace: Duration,
) -> Source {
    let (metrics, lifecycle, health) = (metrics.clone(), Arc::clone(lifecycle), Arc::clone(health));
    Box::new(move || {
        let (connections, users) = metrics.present();
        let (published, received, delivered) = metrics.totals();
        let ready = lifecycle.phase() <= Phase::Ready && health.ready(grace);
        Numbers { connections, users, ready, published, received, delivered }
    })
}

/// Transport encryption, where files for it are configured.
pub(super) fn encrypt(files: Option<&config::tls::Tls>) -> Result<Option<Arc<Tls>>, StartError> {
    let tls = files.cloned().map(Tls::new).transpose().map_err(StartError::Setting)?;
    Ok(tls.map(Arc::new))
}

/// The seams to the broker.
struct Broker {
    publisher: Arc<dyn Publisher>,
    history: Arc<dyn History>,
    feed: Box<dyn Feed>,
    store: Arc<dyn Store>,
    inbound: Option<Arc<dyn Inbound>>,
    ingest: Option<Arc<dyn Ingest>>,
}

fn keeping(config: &Config) -> Keeping {
    let config::History { events, bytes, ttl, meta_ttl } = config.history;
    Keeping { events, bytes, ttl, meta_ttl }
}

fn broker(config: &Config, replica: &str) -> Result<Broker, StartError> {
    let bounds = keeping(config);
    let Some(settings) = &config.redis else {
        let store = Arc::new(MemoryStore::default());
        let (publisher, feed) = MemoryBus::new(Capacity::default(), bounds, Arc::clone(&store));
        let publisher = Arc::new(publisher);
        let history = Arc::clone(&publisher);
        // Streams are Redis's; the configuration sees to it that none is asked for.
        let (inbound, ingest) = (None, None);
        return Ok(Broker { publisher, history, feed: Box::new(feed), store, inbound, ingest });
    };
    let redis = redis::connect(settings, bounds)
        .map_err(|error| StartError::Setting(format!("redis.url: {error}")))?;
    let prefix = &settings.prefix;
    let inbound = config
        .inbound
        .map(|stream| Arc::new(redis.inbound(prefix, stream.max_messages)) as Arc<dyn Inbound>);
    let ingest = config.publish_stream.map(|stream| {
        Arc::new(redis.ingest(prefix, stream.max_messages, replica)) as Arc<dyn Ingest>
    });
    let store = Arc::new(RedisStore::new(redis.commands, redis.names));
    let publisher = Arc::new(redis.publisher);
    let history = Arc::clone(&publisher);
    Ok(Broker { publisher, history, feed: Box::new(redis.feed), store, inbound, ingest })
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

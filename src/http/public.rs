//! The public listener: its routes, and what its handlers work with.

use std::{rc::Rc, sync::Arc};

use actix_http::ServiceConfig;
use actix_web::{http::Method, web};
use tokio::sync::Semaphore;

use super::{
    logout::{self, Logouts},
    not_found, sse, tickets, upgrade, wrong_method,
};
use crate::{
    auth::{Authenticator, origin::Origins},
    bus::{inbound::Outlet, replays::Replays, subscriber::Health},
    config::Reject,
    connection::{Settings, scratch::Scratch},
    gate::Gate,
    lifecycle::Lifecycle,
    outbox::Bounds,
    registry::{Registry, Shard},
    seats::Seats,
    telemetry::Metrics,
    timer::Wheel,
};

/// Its routes, below the base path.
pub(super) const WEBSOCKET: &str = "/ws/notifications";
pub(super) const SSE: &str = "/sse/notifications";
pub(super) const TICKETS: &str = "/ws/tickets";

/// What all workers of the public listener share.
pub struct State {
    /// Who may connect.
    pub authenticator: Arc<Authenticator>,
    /// Whose pages may connect.
    pub origins: Origins,
    /// Upgrades that are completed only to say no, all at once: a budget of their own, so that
    /// strangers do not take the room of those who may come in.
    pub farewells: Arc<Semaphore>,
    /// What becomes of a bad credential.
    pub reject: Reject,
    /// Whether people are told more (development).
    pub explain: bool,
    /// Whether events reach this replica.
    pub health: Arc<Health>,
    /// Where this process stands.
    pub lifecycle: Arc<Lifecycle>,
    /// Who comes in at what rate.
    pub gate: Gate,
    /// Who is connected.
    pub registry: Registry,
    /// Room for each user, over all replicas.
    pub seats: Arc<Seats>,
    /// Logs out whom an issuer names, where issuers may say so here.
    pub logouts: Option<Arc<Logouts>>,
    /// Bounds of one connection's queue.
    pub bounds: Bounds,
    /// Longest message from a client.
    pub inbound_bytes: usize,
    /// Where messages of clients go; `None`: nowhere.
    pub outlet: Option<Outlet>,
    /// What connections missed.
    pub replays: Arc<Replays>,
    /// What is counted.
    pub metrics: Metrics,
}

/// What one worker adds to it; never leaves its thread.
pub struct Worker {
    /// What the workers share.
    pub state: Arc<State>,
    /// This worker's connections.
    pub shard: Rc<Shard>,
    /// Their deadlines.
    pub wheel: Rc<Wheel>,
    /// What they have in common.
    pub settings: Rc<Settings>,
    /// What those that were taken over read through.
    pub scratch: Rc<Scratch>,
    /// Connections go on with their sockets alone.
    pub takes_sockets: bool,
    /// How answers are written that do so.
    pub http: ServiceConfig,
}

/// Adds the routes of the public listener below `base_path`.
pub fn routes(base_path: &str, config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource(format!("{base_path}{WEBSOCKET}"))
                .route(web::get().to(upgrade::notifications))
                .default_service(wrong_method("GET")),
        )
        .service(
            web::resource(format!("{base_path}{SSE}"))
                .route(web::get().to(sse::notifications))
                .route(web::method(Method::OPTIONS).to(sse::preflight))
                .default_service(wrong_method("GET, OPTIONS")),
        )
        .service(
            web::resource(format!("{base_path}{TICKETS}"))
                .route(web::post().to(tickets::buy))
                .route(web::method(Method::OPTIONS).to(tickets::preflight))
                .default_service(wrong_method("POST, OPTIONS")),
        )
        .service(
            web::resource(format!("{base_path}{}", logout::ROUTE))
                .route(web::post().to(logout::public))
                .default_service(web::to(logout::elsewhere)),
        )
        .default_service(web::to(not_found));
}

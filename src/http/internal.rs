//! The internal listener: its routes, and who may use them.

use std::{sync::Arc, time::Duration};

use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    guard,
    middleware::Next,
    web,
};

use super::{
    batch, disconnect, events,
    logout::{self, Logouts},
    not_found, ops,
    problem::{Kind, Problem},
    stats, tickets, users, wrong_method,
};
use crate::{
    auth::{
        Authenticator,
        api_key::{ApiKeys, Caller},
        groups,
    },
    bus::{History, Publisher, orders::Orders, subscriber::Health},
    config::{Limits, Ready, Scope},
    lifecycle::{Answering, Lifecycle, Underway},
    seats::Seats,
    store::Store,
    telemetry::Metrics,
};

/// What the handlers of the internal listener work with.
pub struct State {
    /// The way to the bus.
    pub publisher: Arc<dyn Publisher>,
    /// Who may call.
    pub keys: Arc<ApiKeys>,
    /// Who sells tickets.
    pub authenticator: Arc<Authenticator>,
    /// Which groups a ticket may name.
    pub groups: groups::Rule,
    /// Bounds of a request.
    pub limits: Limits,
    /// What is kept.
    pub history: Arc<dyn History>,
    /// How long events are kept.
    pub history_ttl: Duration,
    /// What replicas remember together.
    pub store: Arc<dyn Store>,
    /// Who is connected, on any replica.
    pub seats: Arc<Seats>,
    /// When this replica counts as ready.
    pub ready: Ready,
    /// Whether what is published comes back.
    pub health: Arc<Health>,
    /// Where this process stands.
    pub lifecycle: Arc<Lifecycle>,
    /// Requests that are being answered.
    pub underway: Underway,
    /// Closes connections.
    pub orders: Orders,
    /// Logs out whom an issuer names.
    pub logouts: Arc<Logouts>,
    /// What is counted.
    pub metrics: Metrics,
}

/// A resource that is read.
fn readable<H, A>(path: &str, handler: H) -> Resource
where
    H: Handler<A>,
    A: FromRequest + 'static,
    H::Output: Responder + 'static,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(wrong_method("GET, HEAD"))
}

/// A resource that takes orders.
fn ordered<H, A>(path: &str, handler: H) -> Resource
where
    H: Handler<A>,
    A: FromRequest + 'static,
    H::Output: Responder + 'static,
{
    web::resource(path).route(web::post().to(handler)).default_service(wrong_method("POST"))
}

/// What is kept for a user.
fn kept(path: &str) -> Resource {
    web::resource(path)
        .route(web::get().to(users::events))
        .route(web::head().to(users::events))
        .route(web::delete().to(users::erase))
        .default_service(wrong_method("GET, HEAD, DELETE"))
}

/// Adds the routes of the internal listener.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(ordered("/v1/events", events::publish))
        .service(ordered("/v1/events/batch", batch::publish))
        .service(readable("/v1/users", users::user))
        // A user may be called `events`: this route is asked for by the query.
        .service(kept("/v1/users/events").guard(guard::fn_guard(users::asks_by_query)))
        .service(readable("/v1/users/{user}", users::user))
        .service(kept("/v1/users/{user}/events"))
        .service(ordered("/v1/presence", users::presences))
        .service(readable("/v1/stats", stats::stats))
        .service(ordered("/v1/tickets", tickets::sell))
        .service(ordered("/v1/disconnect", disconnect::disconnect))
        .service(ordered(logout::ROUTE, logout::internal))
        .service(readable("/livez", ops::live))
        .service(readable("/readyz", ops::ready))
        .service(readable("/metrics", ops::metrics))
        .default_service(web::to(not_found));
}

/// The connection's client showed a certificate that holds.
pub(super) struct VouchedFor;

/// Lets those without a certificate have the probes, which machines without one ask for, and
/// nothing else.
pub(super) async fn only_vouched_for(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let probe = matches!(request.path(), "/livez" | "/readyz");
    if probe || request.request().conn_data::<VouchedFor>().is_some() {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    tracing::warn!(target: "audit", action = "refused", why = "no client certificate");
    Ok(request.into_response(Problem::new(Kind::Certificate).response()))
}

/// The label of requests that bear no known key.
const NOBODY: &str = "none";

/// One request to the API, from its key to its line in metrics and audit.
pub(super) struct Call<'a> {
    state: &'a State,
    route: &'static str,
    caller: Option<Caller>,
    /// The key has had its share: until when.
    over: Option<Duration>,
    _answering: Answering,
}

impl<'a> Call<'a> {
    /// Finds out who calls.
    pub(super) fn new(state: &'a State, route: &'static str, request: &HttpRequest) -> Self {
        let caller = state.keys.caller(request.headers());
        let over = caller.as_ref().and_then(|caller| caller.call().err());
        Self { state, route, caller, over, _answering: state.underway.begin() }
    }

    /// Who calls.
    ///
    /// # Errors
    /// 401 when nobody is known by the key, 429 when it is over its rate.
    pub(super) fn caller(&self) -> Result<&Caller, Problem> {
        let caller = self.caller.as_ref().ok_or_else(|| Problem::new(Kind::Unauthorized))?;
        match self.over {
            None => Ok(caller),
            Some(wait) => {
                let seconds = wait.as_millis().div_ceil(1000).max(1);
                let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
                Err(Problem::new(Kind::Busy)
                    .detail("the API key is over its rate")
                    .retry_after(seconds))
            }
        }
    }

    /// The name of the key; of none, where it is not known.
    pub(super) fn name(&self) -> &str {
        self.caller.as_ref().map_or(NOBODY, |caller| &caller.name)
    }

    /// Who calls, if they may do this.
    ///
    /// # Errors
    /// 401, 403 or 429.
    pub(super) fn require(&self, scope: Scope) -> Result<&Caller, Problem> {
        self.require_any(&[scope])
    }

    /// Who calls, if they may do one of these.
    ///
    /// # Errors
    /// 401, 403 or 429.
    pub(super) fn require_any(&self, scopes: &[Scope]) -> Result<&Caller, Problem> {
        let caller = self.caller()?;
        if scopes.iter().any(|scope| caller.may(*scope)) {
            return Ok(caller);
        }
        let names: Vec<_> = scopes.iter().map(|scope| format!("`{}`", scope.label())).collect();
        let detail = format!("the scope {} is needed", names.join(" or "));
        Err(Problem::new(Kind::Forbidden).detail(detail))
    }

    /// The line about parts of a request that were refused for want of a scope.
    pub(super) fn refused(&self, parts: usize) {
        if parts > 0 {
            let (key, route) = (self.name(), self.route);
            tracing::warn!(target: "audit", action = "refused", key, route, status = 403, parts);
        }
    }

    /// Renders the outcome; refusals are audited, everything is counted.
    pub(super) fn answer(&self, outcome: Result<HttpResponse, Problem>) -> HttpResponse {
        let name = self.name();
        let response = outcome.unwrap_or_else(|problem| {
            let status = problem.status().as_u16();
            if matches!(status, 401 | 403) {
                tracing::warn!(
                    target: "audit", action = "refused", key = name, route = self.route, status,
                );
            }
            problem.response()
        });
        self.state.metrics.api_request(name, self.route, response.status().as_u16());
        response
    }
}

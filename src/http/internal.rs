//! The internal listener: its routes, and who may use them.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::{
    disconnect, events,
    logout::{self, Logouts},
    not_found, ops,
    problem::{Kind, Problem},
    tickets, wrong_method,
};
use crate::{
    auth::{
        Authenticator,
        api_key::{ApiKeys, Caller},
        groups,
    },
    bus::{Publisher, orders::Orders, subscriber::Health},
    config::{History, Limits, Ready, Scope},
    lifecycle::{Answering, Lifecycle, Underway},
    seats::Seats,
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
    pub history: History,
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

/// Adds the routes of the internal listener.
pub fn routes(config: &mut web::ServiceConfig) {
    let probe =
        |path: &str| web::resource(path.to_owned()).default_service(wrong_method("GET, HEAD"));
    config
        .service(
            web::resource("/v1/events")
                .route(web::post().to(events::publish))
                .default_service(wrong_method("POST")),
        )
        .service(
            web::resource("/v1/tickets")
                .route(web::post().to(tickets::sell))
                .default_service(wrong_method("POST")),
        )
        .service(
            web::resource("/v1/disconnect")
                .route(web::post().to(disconnect::disconnect))
                .default_service(wrong_method("POST")),
        )
        .service(
            web::resource(logout::ROUTE)
                .route(web::post().to(logout::internal))
                .default_service(wrong_method("POST")),
        )
        .service(probe("/livez").route(web::get().to(ops::live)).route(web::head().to(ops::live)))
        .service(
            probe("/readyz").route(web::get().to(ops::ready)).route(web::head().to(ops::ready)),
        )
        .service(
            probe("/metrics")
                .route(web::get().to(ops::metrics))
                .route(web::head().to(ops::metrics)),
        )
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

    /// Who calls, if they may do this.
    ///
    /// # Errors
    /// 401, 403 or 429.
    pub(super) fn require(&self, scope: Scope) -> Result<&Caller, Problem> {
        let caller = self.caller()?;
        if caller.may(scope) {
            Ok(caller)
        } else {
            let detail = format!("the scope `{}` is needed", scope.label());
            Err(Problem::new(Kind::Forbidden).detail(detail))
        }
    }

    /// Renders the outcome; refusals are audited, everything is counted.
    pub(super) fn answer(&self, outcome: Result<HttpResponse, Problem>) -> HttpResponse {
        let name = self.caller.as_ref().map_or(NOBODY, |caller| &caller.name);
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

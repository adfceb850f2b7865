//! Selling one-time tickets: to whoever bears a valid credential (`POST /ws/tickets`), and to back
//! ends in a user's name (`POST /v1/tickets`).

use std::time::{Duration, SystemTime};

use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    body, cors, fresh,
    internal::{self, Call},
    problem::{Kind, Problem},
    public::{State, Worker},
    request,
};
use crate::{
    auth::{Denied, Head, origin::Verdict},
    config::{Method, Scope},
    event::Principal,
    gate::Closed,
    lifecycle::Phase,
    store::tickets::TICKET_TTL,
};

const PUBLIC_ROUTE: &str = "/ws/tickets";
const ROUTE: &str = "/v1/tickets";
/// The label of callers who have no API key, and need none.
const NOBODY: &str = "none";
/// What a ticket may be bought with. Not with another ticket; and a subprotocol only stands in a
/// handshake.
const CURRENCIES: [Method; 3] = [Method::Bearer, Method::Query, Method::Cookie];
/// Longest body of an order for a ticket, in bytes: 32 groups of 256 bytes, all escaped, fit.
const BODY_BYTES: usize = 64 * 1024;

/// `POST /ws/tickets`
pub(super) async fn buy(request: HttpRequest, worker: web::Data<Worker>) -> HttpResponse {
    let state = &worker.state;
    let verdict = state.origins.check(&request.head().headers);
    let allowed = verdict == Verdict::Allowed;
    let outcome = serve(&request, state, verdict).await;
    let mut response = outcome.unwrap_or_else(|problem| problem.response());
    cors::grant(&mut response, request.headers(), allowed);
    state.metrics.api_request(NOBODY, PUBLIC_ROUTE, response.status().as_u16());
    response
}

/// `OPTIONS /ws/tickets`
pub(super) async fn preflight(request: HttpRequest, worker: web::Data<Worker>) -> HttpResponse {
    let origins = &worker.state.origins;
    cors::preflight(request.headers(), origins, "POST, OPTIONS", "Authorization, Content-Type")
}

async fn serve(
    request: &HttpRequest,
    state: &State,
    verdict: Verdict,
) -> Result<HttpResponse, Problem> {
    let head = request.head();
    if state.lifecycle.phase() >= Phase::Leaving {
        return Err(Problem::new(Kind::Draining).retry_after(1));
    }
    let _pass = state.gate.enter(head).await.map_err(|closed| {
        let seconds = if closed == Closed::Crowded { 60 } else { 1 };
        Problem::new(Kind::Busy).retry_after(seconds)
    })?;
    let origin = match verdict {
        Verdict::Foreign(_) => return Err(Problem::new(Kind::Origin)),
        Verdict::Allowed => true,
        Verdict::Missing => false,
    };
    let query = head.uri.query().unwrap_or_default();
    let asked = Head { headers: &head.headers, query, origin };
    let found = state.authenticator.authenticate_by(asked, &CURRENCIES).await;
    let (_, principal) = found.map_err(|(_, denied)| match denied {
        Denied::NoOrigin => {
            Problem::new(Kind::Origin).detail("a cookie needs an Origin from auth.origins")
        }
        Denied::Away => Problem::unavailable(),
        Denied::Unauthorized(fault) => {
            if state.explain {
                tracing::info!(%fault, "a ticket was refused");
            } else {
                tracing::debug!(%fault, "a ticket was refused");
            }
            Problem::new(Kind::BadCredential)
        }
    })?;
    // The handshake would refuse the ticket as well; this says so before it is fetched in vain.
    match state.seats.revoked(&principal).await {
        Ok(false) => sold(&state.authenticator, &principal).await,
        Ok(true) => Err(Problem::new(Kind::BadCredential)),
        Err(error) => {
            tracing::debug!(%error, "whether a credential was revoked cannot be known");
            Err(Problem::unavailable())
        }
    }
}

/// `POST /v1/tickets`
pub(super) async fn sell(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<internal::State>,
) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let outcome = order(&request, payload, &state, &call).await;
    call.answer(outcome)
}

async fn order(
    request: &HttpRequest,
    payload: web::Payload,
    state: &internal::State,
    call: &Call<'_>,
) -> Result<HttpResponse, Problem> {
    let caller = call.require(Scope::Tickets)?;
    let body = body::json(request, payload, BODY_BYTES).await?;
    let order = request::ticket::parse(&body, &state.groups)?;
    let now = SystemTime::now();
    let principal = Principal {
        user: order.user,
        session: order.session,
        groups: order.groups,
        expires: order.expires_in.map(|ahead: Duration| now + ahead),
        issued: Some(now),
        cookie: None,
    };
    let response = sold(&state.authenticator, &principal).await?;
    let user = principal.user.as_str();
    tracing::info!(target: "audit", action = "ticket", key = &*caller.name, user);
    Ok(response)
}

async fn sold(
    authenticator: &crate::auth::Authenticator,
    principal: &Principal,
) -> Result<HttpResponse, Problem> {
    let ticket = authenticator.sell(principal).await.map_err(|error| {
        tracing::debug!(%error, "a ticket could not be kept");
        Problem::unavailable()
    })?;
    // Where tickets are not accepted, there is nothing to be had.
    let ticket = ticket.ok_or_else(|| Problem::new(Kind::NotFound))?;
    let body = serde_json::json!({
        "ticket": ticket,
        "expires_in_ms": u64::try_from(TICKET_TTL.as_millis()).unwrap_or(u64::MAX),
    });
    Ok(fresh(&body))
}

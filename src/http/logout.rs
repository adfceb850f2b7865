//! `POST /oidc/backchannel-logout` (OpenID Connect Back-Channel Logout 1.0): the issuer says that a
//! session, or a user, has logged out.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::{
    body, disconnect,
    internal::{self, Call},
    problem::{Kind, Problem, RETRY_AFTER},
    public::{State, Worker},
};
use crate::{
    auth::{
        Authenticator,
        jwt::{Fault, Logout as Token},
    },
    bus::{
        BusError,
        orders::{Disconnect, Orders},
    },
    gate::Closed,
    lifecycle::{Phase, Underway},
    store::{Claim, Store},
    throttle::Throttle,
};

/// Where it is, on either listener.
pub(super) const ROUTE: &str = "/oidc/backchannel-logout";
/// The name under which issuers stand in the audit log.
const KEY: &str = "backchannel";
/// Room for the name of the field, and for a token that is escaped needlessly.
const ENVELOPE_BYTES: usize = 1024;
/// The label of issuers in metrics: they have no API key, and need none.
const NOBODY: &str = "none";
/// How long a body may take to arrive: it is short, and may be a stranger's.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever began to carry a token out and has not finished within this has died; longer than it
/// takes while the store answers in time.
const CLAIM: Duration = Duration::from_secs(6);
/// What is remembered of a token that was carried out.
const DONE: &str = "done";
/// A token is remembered this much longer than it is good, for replicas whose clocks differ.
const SKEW: Duration = Duration::from_secs(60);

/// What a logout needs.
pub struct Logouts {
    /// Checks tokens.
    pub authenticator: Arc<Authenticator>,
    /// Closes connections.
    pub orders: Orders,
    /// Remembers tokens.
    pub store: Arc<dyn Store>,
    /// Waits for those that are being carried out.
    pub underway: Underway,
    /// Longest token, in bytes.
    pub token_bytes: usize,
    /// Lines about tokens that do not hold, which anyone can send.
    pub refusals: Mutex<Throttle>,
}

/// Why it is not done; the texts are the specification's (§2.8) and OAuth's.
enum Refusal {
    /// For good.
    Invalid,
    /// The store, the bus or the issuer's keys are away, or the token is being carried out: the
    /// issuer is to send it again.
    Unavailable,
}

/// On the internal listener. No API key: the token is signed.
pub(super) async fn internal(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<internal::State>,
) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let response = respond(&request, payload, &state.logouts).await;
    call.answer(Ok(response))
}

/// On the public listener.
pub(super) async fn public(
    request: HttpRequest,
    payload: web::Payload,
    worker: web::Data<Worker>,
) -> HttpResponse {
    let state = &worker.state;
    let Some(logouts) = &state.logouts else { return super::not_found().await };
    let response = match enter(&request, payload, state, logouts).await {
        Ok(response) => response,
        Err(problem) => problem.response(),
    };
    state.metrics.api_request(NOBODY, ROUTE, response.status().as_u16());
    response
}

/// Strangers come through the gate, like those who connect.
async fn enter(
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
    logouts: &Arc<Logouts>,
) -> Result<HttpResponse, Problem> {
    if state.lifecycle.phase() >= Phase::Leaving {
        return Err(Problem::new(Kind::Draining).retry_after(1));
    }
    let _pass = state.gate.enter(request.head()).await.map_err(|closed| {
        let seconds = if closed == Closed::Crowded { 60 } else { 1 };
        Problem::new(Kind::Busy).retry_after(seconds)
    })?;
    Ok(respond(request, payload, logouts).await)
}

/// Another method, on the public listener.
pub(super) async fn elsewhere(worker: web::Data<Worker>) -> HttpResponse {
    match &worker.state.logouts {
        Some(_) => super::not_allowed("POST"),
        None => super::not_found().await,
    }
}

async fn respond(
    request: &HttpRequest,
    payload: web::Payload,
    logouts: &Arc<Logouts>,
) -> HttpResponse {
    let (status, body) = match logouts.accept(request, payload).await {
        Ok(()) => (StatusCode::OK, ""),
        Err(Refusal::Invalid) => (StatusCode::BAD_REQUEST, r#"{"error":"invalid_request"}"#),
        Err(Refusal::Unavailable) => {
            (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"temporarily_unavailable"}"#)
        }
    };
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.insert_header((header::RETRY_AFTER, RETRY_AFTER.to_string()));
    }
    if body.is_empty() {
        return response.finish();
    }
    response.content_type("application/json").body(body)
}

impl Logouts {
    async fn accept(
        self: &Arc<Self>,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<(), Refusal> {
        let form = "application/x-www-form-urlencoded";
        let limit = self.token_bytes + ENVELOPE_BYTES;
        let body =
            body::read(request, payload, limit, form, PATIENCE).await.map_err(|problem| {
                tracing::debug!(status = %problem.status(), "a logout could not be read");
                Refusal::Invalid
            })?;
        let mut tokens = form_urlencoded::parse(&body)
            .filter(|(name, _)| name == "logout_token")
            .map(|(_, token)| token.into_owned());
        let (Some(token), None) = (tokens.next(), tokens.next()) else {
            return Err(Refusal::Invalid);
        };
        let logout = match self.authenticator.logout(&token).await {
            Ok(logout) => logout,
            Err(Fault::Away) => return Err(Refusal::Unavailable),
            Err(fault) => return Err(self.refuse(&fault)),
        };
        let fingerprint = URL_SAFE_NO_PAD.encode(Sha256::digest(&token));
        // An issuer that does not wait for the answer must not stop it half way.
        let (this, answering) = (Arc::clone(self), self.underway.begin());
        let carried_out = tokio::spawn(async move {
            let _answering = answering;
            this.carry_out(logout, &fingerprint).await
        });
        carried_out.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a logout was not carried out");
            Err(Refusal::Unavailable)
        })
    }

    fn refuse(&self, fault: &dyn std::fmt::Display) -> Refusal {
        let held_back = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).check();
        if let Some(held_back) = held_back {
            tracing::warn!(target: "audit", action = "refused", key = KEY, route = ROUTE, %fault,
                held_back);
        }
        Refusal::Invalid
    }

    async fn carry_out(&self, logout: Token, fingerprint: &str) -> Result<(), Refusal> {
        let Token { subject, id, issuer, until } = logout;
        let key = key(&issuer, &id);
        // Claimed before it acts, so that of two at once one is the repetition.
        match self.store.claim(&key, fingerprint, CLAIM).await.map_err(|error| away(&error))? {
            Claim::Fresh => {}
            // Under way; or whoever did it has died, and the claim ends soon.
            Claim::Pending => return Err(Refusal::Unavailable),
            // The same, of another token of this name, and that one may still fail.
            Claim::Done { answer, .. } if answer.is_empty() => return Err(Refusal::Unavailable),
            // The issuer repeats what it has had no answer to: it is done, and not done again.
            Claim::Done { fingerprint: before, .. } if before == fingerprint => {
                tracing::debug!("a logout was carried out before");
                return Ok(());
            }
            Claim::Done { .. } => {
                return Err(self.refuse(&"another logout token had the same `jti`"));
            }
        }
        let order =
            Disconnect { subject, except_connection: None, except_session: None, revoke: true };
        disconnect::audit(KEY, &order);
        if let Err(error) = self.orders.disconnect(order).await {
            // The issuer may send it again at once.
            if let Err(error) = self.store.release(&key).await {
                tracing::debug!(%error, "a logout token stays claimed for a moment");
            }
            return Err(away(&error));
        }
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        if let Err(error) = self.store.settle(&key, fingerprint, DONE, left + SKEW).await {
            // It is carried out all the same, and doing it twice does no harm.
            tracing::debug!(%error, "a logout token is not remembered");
        }
        Ok(())
    }
}

fn away(error: &BusError) -> Refusal {
    tracing::debug!(%error, "a logout could not be carried out");
    Refusal::Unavailable
}

/// Hashed, so that neither part can be as long or as odd as it likes in a key of the store.
fn key(issuer: &str, id: &str) -> String {
    let mut hash = Sha256::new();
    for part in [issuer, id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    format!("logout:{}", URL_SAFE_NO_PAD.encode(hash.finalize()))
}

//! `POST /oidc/backchannel-logout` (OpenID Connect Back-Channel Logout 1.0): the issuer says that a
//! session, or a user, has logged out.

use std::{
    sync::Arc,
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
    public::Worker,
};
use crate::{
    auth::{Authenticator, jwt::Logout as Token},
    bus::orders::{Disconnect, Orders},
    store::{Claim, Store},
};

/// Where it is, on either listener.
pub(super) const ROUTE: &str = "/oidc/backchannel-logout";
/// The name under which issuers stand in the audit log.
const KEY: &str = "backchannel";
/// Room for the name of the field, and for a token that is escaped needlessly.
const ENVELOPE_BYTES: usize = 1024;
/// A token that is still good is remembered at most this long.
const MEMORY: Duration = Duration::from_secs(3600);

/// What a logout needs.
pub struct Logouts {
    /// Checks tokens.
    pub authenticator: Arc<Authenticator>,
    /// Closes connections.
    pub orders: Orders,
    /// Remembers tokens.
    pub store: Arc<dyn Store>,
    /// Longest token, in bytes.
    pub token_bytes: usize,
}

/// Why it is not done; the texts are the specification's (§2.8) and OAuth's.
enum Refusal {
    /// For good.
    Invalid,
    /// The store or the bus is away.
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
    match &worker.state.logouts {
        Some(logouts) => respond(&request, payload, logouts).await,
        None => super::not_found().await,
    }
}

/// Another method, on the public listener.
pub(super) async fn elsewhere(worker: web::Data<Worker>) -> HttpResponse {
    match &worker.state.logouts {
        Some(_) => super::not_allowed("POST"),
        None => super::not_found().await,
    }
}

async fn respond(request: &HttpRequest, payload: web::Payload, logouts: &Logouts) -> HttpResponse {
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
        response.insert_header((header::RETRY_AFTER, "2"));
    }
    if body.is_empty() {
        return response.finish();
    }
    response.content_type("application/json").body(body)
}

impl Logouts {
    async fn accept(&self, request: &HttpRequest, payload: web::Payload) -> Result<(), Refusal> {
        let form = "application/x-www-form-urlencoded";
        let limit = self.token_bytes + ENVELOPE_BYTES;
        let body = body::read(request, payload, limit, form).await.map_err(|problem| {
            tracing::debug!(status = %problem.status(), "a logout could not be read");
            Refusal::Invalid
        })?;
        let mut tokens = form_urlencoded::parse(&body)
            .filter(|(name, _)| name == "logout_token")
            .map(|(_, token)| token.into_owned());
        let (Some(token), None) = (tokens.next(), tokens.next()) else {
            return Err(Refusal::Invalid);
        };
        let logout = self.authenticator.logout(&token).await.map_err(|fault| {
            tracing::warn!(target: "audit", action = "refused", key = KEY, route = ROUTE, %fault);
            Refusal::Invalid
        })?;
        self.carry_out(logout).await
    }

    async fn carry_out(&self, logout: Token) -> Result<(), Refusal> {
        let Token { subject, id, issuer, until } = logout;
        let away = |error| {
            tracing::debug!(%error, "a logout could not be carried out");
            Refusal::Unavailable
        };
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        let memory = left.clamp(Duration::from_secs(60), MEMORY);
        let key = key(&issuer, &id);
        // Claimed before it acts, so that of two at once one is the replay.
        match self.store.claim(&key, KEY, memory).await.map_err(away)? {
            Claim::Fresh => {}
            Claim::Pending | Claim::Done { .. } => {
                tracing::warn!(target: "audit", action = "refused", key = KEY, route = ROUTE,
                    fault = "this logout token was used before");
                return Err(Refusal::Invalid);
            }
        }
        let order =
            Disconnect { subject, except_connection: None, except_session: None, revoke: true };
        disconnect::audit(KEY, &order);
        if let Err(error) = self.orders.disconnect(order).await {
            // The issuer may send it again.
            if let Err(error) = self.store.release(&key).await {
                tracing::debug!(%error, "a logout token stays used for a while");
            }
            return Err(away(error));
        }
        Ok(())
    }
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

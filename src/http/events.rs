//! `POST /v1/events`: where an event begins its road.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    body,
    internal::{Call, State},
    problem::{Kind, Member, Problem},
    request::{self, Publish},
};
use crate::{
    bus::{BusError, Destination, Message, envelope},
    config::Scope,
    event::Channel,
    store::Claim,
    telemetry::Target,
};

const ROUTE: &str = "/v1/events";
/// Longest `Idempotency-Key`, in characters.
const KEY_CHARS: usize = 128;
/// A claimed key whose publisher vanished is free again after this.
const PENDING: Duration = Duration::from_secs(5);
/// A second request waits this long for the first, and looks this often.
const PATIENCE: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(25);
/// Seconds to wait when the broker is away.
const RETRY_AFTER: u32 = 2;

/// Publishes one event.
pub async fn publish(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let outcome = accept(&request, payload, &state, &call).await;
    call.answer(outcome)
}

async fn accept(
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
    call: &Call<'_>,
) -> Result<HttpResponse, Problem> {
    call.caller()?;
    let body = body::json(request, payload, state.limits.body_bytes).await?;
    let event = request::parse(&body, &state.limits)?;
    let broadcast = event.target == Target::Broadcast;
    let caller = call.require(if broadcast { Scope::Broadcast } else { Scope::Publish })?;
    if broadcast {
        tracing::info!(target: "audit", action = "broadcast", key = &*caller.name, r#type = event.kind);
    }
    let Some(key) = idempotency_key(request)? else {
        send(state, &event).await?;
        return Ok(accepted(EMPTY));
    };
    let key = scoped(&key, &caller.name, &event);
    let fingerprint = digest(Sha256::new().chain_update(&body));
    if let Some(answer) = claim(state, &key, &fingerprint).await? {
        return Ok(accepted(&answer));
    }
    if let Err(problem) = send(state, &event).await {
        if let Err(error) = state.store.release(&key).await {
            tracing::debug!(%error, "an idempotency key stays claimed for a while");
        }
        return Err(problem);
    }
    if let Err(error) = state.store.settle(&key, &fingerprint, EMPTY).await {
        // The event is out; a repetition within the next seconds is told to wait, a later one is
        // published again.
        tracing::warn!(%error, "an answer could not be remembered for its idempotency key");
    }
    Ok(accepted(EMPTY))
}

/// The answer while events have no ids.
const EMPTY: &str = "{}";

fn accepted(answer: &str) -> HttpResponse {
    HttpResponse::Accepted().content_type("application/json").body(answer.to_owned())
}

async fn send(state: &State, event: &Publish) -> Result<(), Problem> {
    let begun = Instant::now();
    let wire = envelope::encode(
        &envelope::Event { kind: &event.kind, data: &event.data, sender: event.sender.as_deref() },
        // A list of users is addressed without its exceptions, so they need not ride along.
        if event.target.names_users() { &[] } else { &event.except },
    )
    .map_err(|error| {
        tracing::error!(%error, "an event could not be written");
        Problem::new(Kind::Internal)
    })?;
    let messages = event
        .to
        .iter()
        .map(|to| Message { to: Destination::Events(to.clone()), payload: wire.clone() })
        .collect();
    let result = state.publisher.publish(messages).await;
    state.metrics.published(event.target, result.is_ok(), begun.elapsed());
    result.map_err(|error| unavailable(&error))
}

fn unavailable(error: &BusError) -> Problem {
    tracing::debug!(%error, "a publish failed");
    Problem::new(Kind::Unavailable).retry_after(RETRY_AFTER)
}

fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=KEY_CHARS).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::new(Kind::BadRequest)
            .detail(format!("Idempotency-Key must have 1 to {KEY_CHARS} printable characters"))),
    }
}

/// A key is the caller's own, and per target (contract §5). Hashed, so that neither can be as
/// long or as odd as it likes in a key of the store.
fn scoped(key: &str, caller: &str, event: &Publish) -> String {
    let mut hash = Sha256::new();
    for part in [caller, key, event.target.label()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    for to in &event.to {
        let name = match to {
            Channel::User(user) => user.as_str(),
            Channel::Group(group) => group.as_str(),
            Channel::Broadcast => "",
        };
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
    }
    digest(hash)
}

/// Claims the key, or gives the answer that was given for it.
async fn claim(state: &State, key: &str, fingerprint: &str) -> Result<Option<String>, Problem> {
    let begun = Instant::now();
    loop {
        match state.store.claim(key, fingerprint, PENDING).await.map_err(|e| unavailable(&e))? {
            Claim::Fresh => return Ok(None),
            Claim::Done { fingerprint: first, answer } if first == fingerprint => {
                return Ok(Some(answer));
            }
            Claim::Done { .. } => {
                return Err(Problem::invalid(vec![Member {
                    pointer: String::new(),
                    detail: "differs from the body that this Idempotency-Key came with first"
                        .into(),
                }]));
            }
            Claim::Pending if begun.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            Claim::Pending => return Err(Problem::new(Kind::Conflict).retry_after(1)),
        }
    }
}

/// Base64 is as good as hexadecimal for a key, and shorter.
fn digest(hash: Sha256) -> String {
    URL_SAFE_NO_PAD.encode(hash.finalize())
}

//! `POST /v1/events`: where an event begins its road.

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
    bus::{Destination, Message, Once, Published, envelope},
    config::Scope,
    event::Channel,
    telemetry::Target,
};

const ROUTE: &str = "/v1/events";
/// Longest `Idempotency-Key`, in characters.
const KEY_CHARS: usize = 128;

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
    let once = idempotency_key(request)?.map(|key| Once {
        key: scoped(&key, &caller.name, &event),
        fingerprint: digest(Sha256::new().chain_update(&body)),
        answer: EMPTY.to_owned(),
    });
    let answer = send(state, &event, once).await?;
    Ok(HttpResponse::Accepted().content_type("application/json").body(answer))
}

/// The answer while events have no ids.
const EMPTY: &str = "{}";

/// Publishes; what the publisher is answered.
async fn send(state: &State, event: &Publish, once: Option<Once>) -> Result<String, Problem> {
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
    let result = match once {
        None => state.publisher.publish(messages).await.map(|()| Published::Now),
        Some(once) => state.publisher.publish_once(messages, once).await,
    };
    state.metrics.published(event.target, result.is_ok(), begun.elapsed());
    match result {
        Ok(Published::Now) => Ok(EMPTY.to_owned()),
        Ok(Published::Before(answer)) => Ok(answer),
        Ok(Published::Conflict) => Err(Problem::invalid(vec![Member {
            pointer: String::new(),
            detail: "differs from the body that this Idempotency-Key came with first".into(),
        }])),
        Err(error) => {
            tracing::debug!(%error, "a publish failed");
            Err(Problem::unavailable())
        }
    }
}

fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let mut values = request.headers().get_all("idempotency-key");
    let (Some(value), more) = (values.next(), values.next()) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if more.is_none() && (1..=KEY_CHARS).contains(&key.len()) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::new(Kind::BadRequest).detail(format!(
            "Idempotency-Key must stand once, with 1 to {KEY_CHARS} printable characters"
        ))),
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
    // The same users in another order are the same target.
    let mut targets: Vec<&Channel> = event.to.iter().collect();
    targets.sort_unstable_by_key(|to| match to {
        Channel::User(user) => user.as_str(),
        Channel::Group(group) => group.as_str(),
        Channel::Broadcast => "",
    });
    for to in targets {
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

/// Base64 is as good as hexadecimal for a key, and shorter.
fn digest(hash: Sha256) -> String {
    URL_SAFE_NO_PAD.encode(hash.finalize())
}

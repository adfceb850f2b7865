//! `POST /v1/events`: where an event begins its road.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    body,
    internal::{Call, State},
    problem::{Kind, Member, Problem},
    request::{self, Publish},
};
use crate::{
    bus::{BusError, Keep, Once, Post, Posted, Receipt, envelope},
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
    let event = request::parse(&body, &state.limits, state.history.ttl)?;
    let broadcast = event.target == Target::Broadcast;
    let caller = call.require(if broadcast { Scope::Broadcast } else { Scope::Publish })?;
    if broadcast {
        tracing::info!(target: "audit", action = "broadcast", key = &*caller.name, r#type = event.kind);
    }
    let once = idempotency_key(request)?.map(|key| Once {
        key: scoped(&key, &caller.name, &event),
        fingerprint: digest(Sha256::new().chain_update(&body)),
        each: event.target == Target::Users,
    });
    let answer = send(state, &event, once).await?;
    Ok(HttpResponse::Accepted().content_type("application/json").body(answer))
}

/// Publishes; what the publisher is answered.
async fn send(state: &State, event: &Publish, once: Option<Once>) -> Result<String, Problem> {
    let begun = Instant::now();
    let posts = posts(state, event, once)?;
    let answers = state.publisher.post(posts).await;
    let accepted = answers.iter().all(|answer| matches!(answer, Ok(Posted::Done(_))));
    state.metrics.published(event.target, accepted, begun.elapsed());
    let receipts = answers.into_iter().map(receipt).collect::<Result<Vec<_>, _>>()?;
    answer(event, receipts).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        Problem::new(Kind::Internal)
    })
}

/// One post for each channel that the event goes to.
fn posts(state: &State, event: &Publish, once: Option<Once>) -> Result<Vec<Post>, Problem> {
    // A list of users is addressed without its exceptions, so they need not ride along.
    let except: &[_] = if event.target.names_users() { &[] } else { &event.except };
    let said =
        envelope::Event { kind: &event.kind, data: &event.data, sender: event.sender.as_deref() };
    let parts =
        envelope::encode(&said, except, event.keep == Keep::Transient).map_err(|error| {
            tracing::error!(%error, "an event could not be written");
            Problem::new(Kind::Internal)
        })?;
    let keep = if state.history.events == 0 { Keep::Transient } else { event.keep };
    let online = event.target.names_users().then(|| state.seats.alive());
    let post = |to: &Channel| Post {
        to: to.clone(),
        event: parts.clone(),
        keep,
        once: once.as_ref().map(|once| once.of(to)),
        online: online.clone(),
    };
    Ok(event.to.iter().map(post).collect())
}

fn receipt(answer: Result<Posted, BusError>) -> Result<Receipt, Problem> {
    match answer {
        Ok(Posted::Done(receipt)) => Ok(receipt),
        Ok(Posted::Conflict) => Err(Problem::invalid(vec![Member {
            pointer: String::new(),
            detail: "differs from the body that this Idempotency-Key came with first".into(),
        }])),
        Err(error) => {
            tracing::debug!(%error, "a publish failed");
            Err(Problem::unavailable())
        }
    }
}

/// What a list of users is answered, one by one.
#[derive(Serialize)]
struct ToUser<'a> {
    user: &'a str,
    #[serde(flatten)]
    receipt: Receipt,
}

fn answer(event: &Publish, receipts: Vec<Receipt>) -> Result<String, serde_json::Error> {
    if event.target != Target::Users {
        // One user whom the event itself excepts is sent nothing.
        return serde_json::to_string(&receipts.into_iter().next().unwrap_or_default());
    }
    let events = event.to.iter().zip(receipts);
    let events = events.filter_map(|(to, receipt)| match to {
        Channel::User(user) => Some(ToUser { user: user.as_str(), receipt }),
        _ => None,
    });
    serde_json::to_string(&BTreeMap::from([("events", events.collect::<Vec<_>>())]))
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

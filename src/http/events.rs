//! `POST /v1/events`: where an event begins its road.

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;

use super::{
    body, cloudevents,
    internal::{Call, State},
    posting::{self, Digest, Wanted},
    problem::{Kind, Problem},
    request,
};
use crate::{bus::Once, telemetry::Target};

const ROUTE: &str = "/v1/events";
/// Longest `Idempotency-Key`, in characters.
const KEY_CHARS: usize = 128;

/// Publishes one event, or CloudEvents.
pub async fn publish(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let outcome = match cloudevents::Mode::of(request.headers()) {
        Some(mode) => cloudevents::accept(mode, &request, payload, &state, &call).await,
        None => accept(&request, payload, &state, &call).await,
    };
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
    let event = request::parse(&body, &state.limits, state.history_ttl)?;
    let caller = call.require(posting::scope(&event))?;
    let once = idempotency_key(request)?.map(|key| once(&key, &caller.name, &event, &body));
    if let Some(once) = once.as_ref().filter(|once| once.each) {
        posting::claim(state, &once.key, &once.fingerprint).await?;
    }
    posting::audit(call, &event);
    let mut answers = posting::send(state, vec![Wanted { event, once }]).await;
    let answer = answers.pop().unwrap_or_else(|| Err(Problem::new(Kind::Internal)))?;
    Ok(HttpResponse::Accepted().json(answer))
}

/// A key is the caller's own, and per target (contract §5).
pub(super) fn once(key: &str, caller: &str, event: &request::Publish, body: &Bytes) -> Once {
    let each = event.target == Target::Users;
    let name = Digest::new().add(caller).add(key).target(event);
    // To the version before, which publishes to all users of a list at once, the bare name says that
    // all of it is done. Here it is only claimed.
    let name = if each { name.add("each") } else { name };
    Once { key: name.text(), fingerprint: Digest::of(body).text(), each }
}

/// The header `Idempotency-Key`.
///
/// # Errors
/// 400 where it stands there twice, or is too long, or not printable.
pub(super) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let mut values = request.headers().get_all("idempotency-key");
    let (Some(value), more) = (values.next(), values.next()) else { return Ok(None) };
    match legal_key(value.as_bytes()) {
        Some(key) if more.is_none() => Ok(Some(key.to_owned())),
        _ => Err(Problem::new(Kind::BadRequest).detail(format!(
            "Idempotency-Key must stand once, with 1 to {KEY_CHARS} printable characters"
        ))),
    }
}

/// The text of an idempotency key, where it is one.
pub(super) fn legal_key(key: &[u8]) -> Option<&str> {
    let printable = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let legal = (1..=KEY_CHARS).contains(&key.len()) && key.iter().all(printable);
    std::str::from_utf8(key).ok().filter(|_| legal)
}

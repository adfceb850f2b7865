//! `POST /v1/events/batch`: many events with one request, each for itself.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    body,
    events::idempotency_key,
    internal::{Call, State},
    posting::{self, Answer, Digest, Wanted},
    problem::{Kind, Problem},
    request::{self, Publish},
};
use crate::{bus::Once, config::Scope, telemetry::Target};

const ROUTE: &str = "/v1/events/batch";

/// Publishes what it can of a batch.
pub async fn publish(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let outcome = accept(&request, payload, &state, &call).await;
    call.answer(outcome)
}

/// What became of one event.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Accepted {
        status: u16,
        #[serde(flatten)]
        answer: Answer,
    },
    Refused {
        status: u16,
        problem: Problem,
    },
}

impl From<Result<Answer, Problem>> for Outcome {
    fn from(result: Result<Answer, Problem>) -> Self {
        match result {
            Ok(answer) => Self::Accepted { status: 202, answer },
            Err(problem) => Self::Refused { status: problem.status().as_u16(), problem },
        }
    }
}

#[derive(Serialize)]
struct Results {
    results: Vec<Outcome>,
}

async fn accept(
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
    call: &Call<'_>,
) -> Result<HttpResponse, Problem> {
    call.require_any(&[Scope::Publish, Scope::Broadcast])?;
    let body = body::json(request, payload, state.limits.batch_bytes).await?;
    let events = request::batch::parse(&body)?;
    let once = idempotency_key(request)?.map(|key| Once {
        key: Digest::new().add(call.name()).add(key).add(ROUTE).text(),
        fingerprint: Digest::new().add(&body).text(),
        each: true,
    });
    if let Some(once) = &once {
        posting::claim(state, &once.key, &once.fingerprint).await?;
    }
    let checked = events.into_iter().map(|event| check(event, state, call));
    let checked: Vec<_> = checked.collect();
    let lacking = checked.iter().filter(|event| matches!(event, Err(p) if p.status() == 403));
    call.refused(lacking.count());

    let mut wanted = Vec::new();
    let mut refused = Vec::with_capacity(checked.len());
    for (n, event) in checked.into_iter().enumerate() {
        refused.push(event.map(|event| {
            posting::audit(call, &event);
            let once = once.as_ref().map(|once| part(once, n, &event));
            wanted.push(Wanted { event, once });
        }));
    }
    let mut answers = posting::send(state, wanted).await.into_iter();
    let results = refused.into_iter().map(|event| {
        event.and_then(|()| answers.next().unwrap_or_else(|| Err(Problem::new(Kind::Internal))))
    });
    let results: Vec<_> = results.collect();
    let away = |result: &Result<_, Problem>| matches!(result, Err(p) if p.status() == 503);
    if results.iter().any(away) && !results.iter().any(Result::is_ok) {
        return Err(Problem::unavailable());
    }
    let results = results.into_iter().map(Outcome::from).collect();
    Ok(HttpResponse::Ok().json(Results { results }))
}

fn check(event: &RawValue, state: &State, call: &Call<'_>) -> Result<Publish, Problem> {
    let event = request::event(event, &state.limits, state.history_ttl)?;
    call.require(posting::scope(&event)).map(|_| event)
}

/// One event of a batch that is done once.
fn part(whole: &Once, n: usize, event: &Publish) -> Once {
    Once {
        key: format!("{}:{n}", whole.key),
        fingerprint: whole.fingerprint.clone(),
        each: event.target == Target::Users,
    }
}

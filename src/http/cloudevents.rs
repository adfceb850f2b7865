//! CloudEvents 1.0 on `POST /v1/events`, in the three modes of its HTTP protocol binding.

use actix_web::{HttpRequest, HttpResponse, http::header::HeaderMap, web};

use super::{
    body,
    internal::{Call, State},
    posting::{self, Digest, Wanted},
    problem::{Member, Problem},
    request::cloudevent::{self, CloudEvent},
};
use crate::bus::Once;

/// Where attributes and data stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Both in a JSON document.
    Structured,
    /// In a list of such documents.
    Batched,
    /// Attributes in headers, data in the body.
    Binary,
}

impl Mode {
    /// `None`: the request is in Belfry's own form.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let media_type = body::media_type_of(headers).unwrap_or_default();
        if media_type.eq_ignore_ascii_case("application/cloudevents+json") {
            Some(Self::Structured)
        } else if media_type.eq_ignore_ascii_case("application/cloudevents-batch+json") {
            Some(Self::Batched)
        } else if media_type.to_ascii_lowercase().starts_with("application/cloudevents") {
            // A document in a form that is not JSON, whatever headers say.
            None
        } else {
            cloudevent::is_binary(headers).then_some(Self::Binary)
        }
    }
}

/// Publishes all events of a request, or says why not.
pub(super) async fn accept(
    mode: Mode,
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
    call: &Call<'_>,
) -> Result<HttpResponse, Problem> {
    call.caller()?;
    let limits = &state.limits;
    let most = if mode == Mode::Batched { limits.batch_bytes } else { limits.body_bytes };
    let body = body::any(request, payload, most, body::PATIENCE).await?;
    let events = match mode {
        Mode::Structured => vec![cloudevent::structured(&body, limits)?],
        Mode::Batched => cloudevent::batch(&body, limits)?,
        Mode::Binary => {
            let headers = request.headers();
            vec![cloudevent::binary(headers, body::media_type_of(headers), &body, limits)?]
        }
    };
    for event in &events {
        call.require(posting::scope(&event.publish))?;
    }
    let wanted = events.into_iter().map(|event| {
        posting::audit(call, &event.publish);
        wanted(event, call.name())
    });
    let answers = posting::send(state, wanted.collect()).await;
    let mut faults = Vec::new();
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(_) => {}
            Err(problem) if problem.status() == 422 => faults.push(Member {
                pointer: if mode == Mode::Batched { format!("/{n}") } else { String::new() },
                detail: "is another event than the one of this source and id before".to_owned(),
            }),
            Err(problem) => return Err(problem),
        }
    }
    if faults.is_empty() {
        Ok(HttpResponse::Accepted().finish())
    } else {
        Err(Problem::invalid(faults))
    }
}

/// Events with the same source and id are the same (specification, `source`). What else may differ,
/// like the time of a later try, is not compared.
fn wanted(event: CloudEvent, caller: &str) -> Wanted {
    let CloudEvent { publish: event, source, id } = event;
    let key = Digest::new().add(caller).add("cloudevents").add(source).add(id).target(&event);
    let fingerprint = Digest::new().add(&event.kind).add(event.data.get());
    let once = Once { key: key.text(), fingerprint: fingerprint.text(), each: false };
    Wanted { event, once: Some(once) }
}

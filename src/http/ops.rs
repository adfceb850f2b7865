//! What operators and their machines ask.

use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;

use super::{
    internal::State,
    problem::{Kind, Problem},
};
use crate::lifecycle::Phase;

/// `/livez`: the process answers. It never depends on the broker, so an outage there restarts
/// nothing here.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .content_type("application/json")
        .body(r#"{"live":true}"#)
}

#[derive(Serialize)]
struct Report<'a> {
    ready: bool,
    checks: Checks<'a>,
}

#[derive(Serialize)]
struct Checks<'a> {
    lifecycle: Check<'a>,
    bus: Check<'a>,
    /// How the broker is set up. It works all the same, so this one does not decide.
    broker: Check<'a>,
}

#[derive(Serialize)]
struct Check<'a> {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// `/readyz`: whether the router should send new connections here, and which check says no.
pub async fn ready(state: web::Data<State>) -> HttpResponse {
    let phase = state.lifecycle.phase();
    let at_work = phase <= Phase::Ready;
    let bus = state.health.ready(state.ready.redis_grace);
    let why = state.health.why();
    let warning = state.publisher.warning();
    let report = Report {
        ready: at_work && bus,
        checks: Checks {
            lifecycle: Check { ok: at_work, detail: (!at_work).then(|| phase.label()) },
            // Within the grace the check holds and still says what is wrong.
            bus: Check { ok: bus, detail: why.as_deref() },
            broker: Check { ok: warning.is_none(), detail: warning.as_deref() },
        },
    };
    state.metrics.ready(report.ready);
    let mut response =
        if report.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.insert_header((header::CACHE_CONTROL, "no-store")).json(report)
}

/// `/metrics`, for Prometheus.
pub async fn metrics(state: web::Data<State>) -> HttpResponse {
    let ready =
        state.lifecycle.phase() <= Phase::Ready && state.health.ready(state.ready.redis_grace);
    state.metrics.ready(ready);
    match state.metrics.render() {
        Ok((text, content_type)) => HttpResponse::Ok().content_type(content_type).body(text),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            Problem::new(Kind::Internal).response()
        }
    }
}

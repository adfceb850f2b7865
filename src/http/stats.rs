//! `GET /v1/stats`: all replicas in one answer.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web,
};
use serde::Serialize;

use super::{
    internal::{Call, State},
    posting::away,
};
use crate::{
    config::Scope,
    seats::report::{Rates, Report},
};

const ROUTE: &str = "/v1/stats";

#[derive(Serialize)]
struct Stats {
    connections: u64,
    /// A user with connections to two replicas counts twice.
    users: u64,
    rates: Rates,
    replicas: Vec<Replica>,
}

#[derive(Serialize)]
struct Replica {
    name: String,
    /// `None`: it lives, and has not said more.
    #[serde(flatten)]
    report: Option<Report>,
}

/// Sums up.
pub(super) async fn stats(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let outcome = async {
        call.require(Scope::Read)?;
        let reports = state.seats.reports().await.map_err(|error| away(&error))?;
        let replicas = reports.into_iter().map(|(name, report)| Replica { name, report });
        let stats = sum(replicas.collect());
        let mut response = HttpResponse::Ok().json(stats);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    };
    call.answer(outcome.await)
}

fn sum(replicas: Vec<Replica>) -> Stats {
    let mut stats = Stats { connections: 0, users: 0, rates: Rates::default(), replicas };
    for report in stats.replicas.iter().filter_map(|replica| replica.report.as_ref()) {
        stats.connections += report.connections;
        stats.users += report.users;
        stats.rates = stats.rates + report.rates;
    }
    stats
}

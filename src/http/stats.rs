//! `GET /v1/stats`: all replicas in one answer.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::{
    fresh,
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
        Ok(fresh(&sum(replicas.collect())))
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

//! Routes, and what both listeners answer alike.

mod admission;
mod arrival;
mod batch;
pub mod body;
mod cloudevents;
mod cors;
mod disconnect;
pub mod events;
pub mod ingest;
pub mod internal;
pub mod logout;
pub mod ops;
mod percent;
mod posting;
pub mod problem;
pub mod public;
mod refusal;
mod request;
pub mod server;
mod sse;
mod stats;
mod takeover;
mod tickets;
mod upgrade;
mod users;
mod waves;

use actix_web::{
    HttpResponse, Route,
    http::header::{self, HeaderValue},
    web,
};
use serde::Serialize;

use problem::{Kind, Problem};

/// An answer that is true now, and not to be stored.
fn fresh(body: &impl Serialize) -> HttpResponse {
    let mut response = HttpResponse::Ok().json(body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The answer where no route matches.
async fn not_found() -> HttpResponse {
    Problem::new(Kind::NotFound).response()
}

/// The answer where a route matches, but not for this method: 405, and which would do (RFC 9110
/// §15.5.6).
fn not_allowed(allowed: &'static str) -> HttpResponse {
    let mut response = Problem::new(Kind::Method).response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The same, as a route.
fn wrong_method(allowed: &'static str) -> Route {
    web::to(move || std::future::ready(not_allowed(allowed)))
}

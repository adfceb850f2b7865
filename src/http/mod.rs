//! Routes, and what both listeners answer alike.

mod admission;
pub mod body;
mod disconnect;
pub mod events;
pub mod internal;
pub mod logout;
pub mod ops;
pub mod problem;
pub mod public;
mod request;
pub mod server;
mod upgrade;

use actix_web::{HttpRequest, HttpResponse};

use problem::{Kind, Problem};

/// The answer where no route matches.
async fn not_found() -> HttpResponse {
    Problem::new(Kind::NotFound).response()
}

/// The answer where a route matches, but not for this method.
async fn wrong_method(_: HttpRequest) -> HttpResponse {
    Problem::new(Kind::Method).response()
}

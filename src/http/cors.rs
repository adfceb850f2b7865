//! Cross-origin requests (WHATWG Fetch, CORS protocol): answered with credentials, for the pages
//! that may connect and nobody else's. Never `*`.

use actix_web::{
    HttpResponse,
    http::header::{self, HeaderMap, HeaderValue},
};

use super::problem::{Kind, Problem};
use crate::auth::origin::{Origins, Verdict};

/// How long a browser may remember the answer to a preflight, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Adds what a page needs in order to read the answer to the request with these headers. `allowed`:
/// it bears an Origin, and one that may connect.
pub(super) fn grant(response: &mut HttpResponse, request: &HeaderMap, allowed: bool) {
    let headers = response.headers_mut();
    // For caches between us: another Origin gets another answer.
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = request.get(header::ORIGIN).filter(|_| allowed) {
        let retry = HeaderValue::from_static("Retry-After");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, retry);
    }
}

/// The answer to a preflight, for these methods and headers.
pub(super) fn preflight(
    request: &HeaderMap,
    origins: &Origins,
    methods: &'static str,
    headers: &'static str,
) -> HttpResponse {
    let verdict = origins.check(request);
    let allowed = verdict == Verdict::Allowed;
    let mut response = match verdict {
        Verdict::Foreign(_) => Problem::new(Kind::Origin).response(),
        Verdict::Allowed | Verdict::Missing => {
            let methods = HeaderValue::from_static(methods);
            HttpResponse::NoContent()
                .insert_header((header::ALLOW, methods.clone()))
                .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, methods))
                .insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, headers))
                .insert_header((header::ACCESS_CONTROL_MAX_AGE, MAX_AGE))
                .finish()
        }
    };
    grant(&mut response, request, allowed);
    response
}

//! From the head of a request to a [`Principal`].
//!
//! Everything here takes a head and never an `HttpRequest`, and a refusal is a value, so that any
//! transport can ask and render the answer its own way.

use std::sync::Arc;

use actix_http::header::{self, HeaderMap};
use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::{
    config::{Config, Method},
    event::Principal,
    telemetry::Metrics,
};

pub mod api_key;
pub mod jwt;
pub mod logout;
pub mod origin;

use jwt::{Fault, Verifier};

/// The subprotocol entry that carries a token.
const TOKEN_PROTOCOL: &str = "belfry.token.";

/// What a credential check needs to see of a request.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The query string, still encoded.
    pub query: &'a str,
    /// Whether it bears an Origin, and an allowed one: a cookie is taken from no other.
    pub origin: bool,
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its credential is missing or does not hold.
    Unauthorized(Unauthorized),
    /// Its credential is a cookie, which a page of any site can make a browser send.
    NoOrigin,
    /// Its credential cannot be checked now.
    Away,
}

impl From<Unauthorized> for Denied {
    fn from(fault: Unauthorized) -> Self {
        Self::Unauthorized(fault)
    }
}

/// Why nobody was let in. The detail is for logs and metrics; a client only ever learns
/// `unauthorized`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// No credential of an accepted kind.
    #[error("no credential")]
    Missing,
    /// The same kind twice: which one is meant cannot be known.
    #[error("more than one credential of the same kind")]
    Ambiguous,
    /// One that does not hold.
    #[error("{0}")]
    Token(#[from] Fault),
}

/// Checks credentials. The verifier can be replaced while it runs.
pub struct Authenticator {
    methods: Vec<Method>,
    verifier: ArcSwap<Verifier>,
    metrics: Metrics,
}

impl Authenticator {
    /// An authenticator for these settings.
    #[must_use]
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        Self {
            methods: config.auth.methods.clone(),
            verifier: ArcSwap::from_pointee(Verifier::new(config)),
            metrics,
        }
    }

    /// Uses another verifier from now on: a secret was rotated.
    pub fn replace(&self, verifier: Verifier) {
        self.verifier.store(Arc::new(verifier));
    }

    /// Who sends this request, by the first kind of credential that it bears (contract §2): a bad
    /// one is refused and never skipped for the next.
    ///
    /// # Errors
    /// With the kind that was tried, if any.
    pub async fn authenticate(
        &self,
        head: Head<'_>,
    ) -> Result<(Method, Principal), (Option<Method>, Denied)> {
        let (method, token) = match self.find(head) {
            Ok(Some(found)) => found,
            Ok(None) => return Err((None, Unauthorized::Missing.into())),
            Err(method) => return Err((Some(method), Unauthorized::Ambiguous.into())),
        };
        let begun = Instant::now();
        let verdict = self.verify(&token).await;
        self.metrics.auth(method, begun.elapsed());
        match verdict {
            Ok(principal) => Ok((method, principal)),
            Err(fault) => Err((Some(method), Unauthorized::from(fault).into())),
        }
    }

    /// Checks a token without a request: a renewal.
    ///
    /// # Errors
    /// Names the rule that fails.
    pub async fn verify(&self, token: &str) -> Result<Principal, Fault> {
        self.verifier.load().verify(token)
    }

    /// Checks a logout token of an issuer.
    ///
    /// # Errors
    /// Names the rule that fails.
    pub async fn logout(&self, token: &str) -> Result<jwt::Logout, Fault> {
        self.verifier.load().logout(token)
    }

    fn find(&self, head: Head<'_>) -> Result<Option<(Method, String)>, Method> {
        for method in Method::ALL.into_iter().filter(|method| self.methods.contains(method)) {
            let mut found = match method {
                Method::Subprotocol => subprotocol(head.headers),
                Method::Bearer => bearer(head.headers),
                Method::Query => query(head.query),
            };
            match (found.pop(), found.is_empty()) {
                (None, _) => {}
                (Some(token), true) => return Ok(Some((method, token))),
                (Some(_), false) => return Err(method),
            }
        }
        Ok(None)
    }
}

fn subprotocol(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|item| item.trim().strip_prefix(TOKEN_PROTOCOL))
        .map(str::to_owned)
        .collect()
}

/// Any `Authorization` counts: one of another scheme is a credential that does not hold, and must
/// not be skipped for a cookie or a query.
fn bearer(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::AUTHORIZATION)
        .map(|value| value.to_str().ok().and_then(bearer_token).unwrap_or_default().to_owned())
        .collect()
}

/// The token of a `Bearer` authorization (RFC 6750 §2.1); the scheme's case does not matter
/// (RFC 9110 §11.1).
#[must_use]
pub fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn query(query: &str) -> Vec<String> {
    form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "token")
        .map(|(_, token)| token.into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use actix_http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn tokens_are_found_where_they_may_be() {
        let h = headers(&[
            (header::SEC_WEBSOCKET_PROTOCOL, "belfry.v1, belfry.token.a.b.c"),
            (header::AUTHORIZATION, "bearer  d.e.f"),
        ]);
        assert_eq!(subprotocol(&h), ["a.b.c"]);
        assert_eq!(bearer(&h), ["d.e.f"]);
        assert_eq!(query("x=1&token=g%2Eh.i&y"), ["g.h.i"]);
    }

    #[test]
    fn two_of_a_kind_are_seen() {
        let h = headers(&[
            (header::SEC_WEBSOCKET_PROTOCOL, "belfry.token.a"),
            (header::SEC_WEBSOCKET_PROTOCOL, "belfry.token.b"),
        ]);
        assert_eq!(subprotocol(&h).len(), 2);
        assert_eq!(query("token=a&token=b").len(), 2);
    }

    #[test]
    fn another_scheme_is_a_credential_that_does_not_hold() {
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "Basic YTpi")])), [""]);
        assert_eq!(bearer(&headers(&[])), Vec::<String>::new());
    }
}

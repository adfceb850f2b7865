//! From the head of a request to a [`Principal`].
//!
//! Everything here takes a head and never an `HttpRequest`, and a refusal is a value, so that any
//! transport can ask and render the answer its own way.

use std::sync::Arc;

use actix_http::header::{self, HeaderMap};
use arc_swap::ArcSwap;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use crate::{
    bus::BusError,
    config::{Config, Method},
    event::{Principal, SessionKey},
    telemetry::Metrics,
};

pub mod api_key;
mod cookie;
pub mod fault;
pub mod groups;
pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod logout;
pub mod origin;
pub mod session;
pub mod ticket;

use fault::Fault;
use jwt::Verifier;
use session::Cookies;
use ticket::Office;

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
    /// A session that does not hold.
    #[error("{0}")]
    Session(#[from] session::Fault),
    /// A ticket that is none.
    #[error("the ticket is used, over, or none of ours")]
    Ticket,
}

impl From<session::Failure> for Denied {
    fn from(failure: session::Failure) -> Self {
        match failure {
            session::Failure::Fault(fault) => Self::Unauthorized(fault.into()),
            session::Failure::Away => Self::Away,
        }
    }
}

/// Checks credentials. The verifier can be replaced while it runs.
pub struct Authenticator {
    methods: Vec<Method>,
    verifier: ArcSwap<Verifier>,
    /// `None`: no cookie is accepted.
    cookies: Option<Cookies>,
    /// `None`: no ticket is.
    office: Option<Office>,
    metrics: Metrics,
}

/// What became of the session behind an open connection.
#[derive(Clone, Debug)]
pub enum Rechecked {
    /// It is there, and still the same user's.
    Holds(Principal),
    /// It is gone, or another user's.
    Ended,
    /// It could not be looked up.
    Unknown,
}

impl Authenticator {
    /// An authenticator for these settings.
    #[must_use]
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        Self {
            methods: config.auth.methods.clone(),
            verifier: ArcSwap::from_pointee(Verifier::new(config)),
            cookies: None,
            office: None,
            metrics,
        }
    }

    /// Accepts session cookies as well, where `auth.methods` says so.
    #[must_use]
    pub fn with_cookies(mut self, cookies: Cookies) -> Self {
        self.cookies = self.methods.contains(&Method::Cookie).then_some(cookies);
        self
    }

    /// Sells and accepts tickets as well, where `auth.methods` says so.
    #[must_use]
    pub fn with_tickets(mut self, office: Office) -> Self {
        self.office = self.methods.contains(&Method::Ticket).then_some(office);
        self
    }

    /// Uses these settings from now on: a key was rotated. The issuers stay the same.
    pub fn replace(&self, config: &Config) {
        self.verifier.store(Arc::new(self.verifier.load().renewed(config)));
    }

    /// Keeps the keys that issuers publish fresh. Never returns where there are any; to be spawned.
    pub async fn follow(&self) {
        self.verifier().follow(Some(&self.metrics)).await;
    }

    /// What checks tokens now.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.verifier.load_full()
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
        self.authenticate_by(head, &Method::ALL).await
    }

    /// The same, where a request may bear only some kinds of credential; others are not looked at.
    ///
    /// # Errors
    /// As [`authenticate`](Self::authenticate).
    pub async fn authenticate_by(
        &self,
        head: Head<'_>,
        kinds: &[Method],
    ) -> Result<(Method, Principal), (Option<Method>, Denied)> {
        let (method, credential) = match self.find(head, kinds) {
            Ok(Some(found)) => found,
            Ok(None) => return Err((None, Unauthorized::Missing.into())),
            Err(method) => return Err((Some(method), Unauthorized::Ambiguous.into())),
        };
        let begun = Instant::now();
        let verdict = match method {
            Method::Subprotocol | Method::Bearer | Method::Query => {
                self.verify(&credential).await.map_err(|fault| match fault {
                    Fault::Away => Denied::Away,
                    fault => Unauthorized::from(fault).into(),
                })
            }
            Method::Ticket => self.redeem(&credential).await,
            Method::Cookie if !head.origin => Err(Denied::NoOrigin),
            Method::Cookie => self.session(&credential, true).await,
        };
        self.metrics.auth(method, begun.elapsed());
        verdict.map(|principal| (method, principal)).map_err(|denied| (Some(method), denied))
    }

    /// The kind of credential that this request would be asked for; nothing is checked.
    #[must_use]
    pub fn kind(&self, head: Head<'_>) -> Option<Method> {
        match self.find(head, &Method::ALL) {
            Ok(found) => found.map(|(method, _)| method),
            Err(ambiguous) => Some(ambiguous),
        }
    }

    /// Sells a ticket that stands for `principal`. `None`: tickets are not accepted here.
    ///
    /// # Errors
    /// The store's.
    pub async fn sell(&self, principal: &Principal) -> Result<Option<String>, BusError> {
        match &self.office {
            Some(office) => office.sell(principal).await.map(Some),
            None => Ok(None),
        }
    }

    /// Looks the session behind an open connection up again, past every cache.
    pub async fn recheck(&self, principal: &Principal) -> Rechecked {
        let Some(cookie) = &principal.cookie else { return Rechecked::Unknown };
        match self.session(cookie.expose_secret(), false).await {
            Ok(now) if now.user == principal.user => Rechecked::Holds(now),
            Ok(_) | Err(Denied::Unauthorized(_) | Denied::NoOrigin) => Rechecked::Ended,
            Err(Denied::Away) => Rechecked::Unknown,
        }
    }

    /// These sessions are gone: what is known of them is not used any more.
    pub fn ended(&self, sessions: &[SessionKey]) {
        if let Some(cookies) = &self.cookies {
            cookies.forget(sessions);
        }
    }

    async fn session(&self, id: &str, cached: bool) -> Result<Principal, Denied> {
        let cookies = self.cookies.as_ref().ok_or(Denied::Away)?;
        Ok(cookies.principal(id, cached).await?)
    }

    async fn redeem(&self, ticket: &str) -> Result<Principal, Denied> {
        let office = self.office.as_ref().ok_or(Denied::Away)?;
        let principal = match office.redeem(ticket).await {
            Ok(Some(principal)) => principal,
            Ok(None) => return Err(Unauthorized::Ticket.into()),
            Err(error) => {
                tracing::debug!(%error, "a ticket could not be looked up");
                return Err(Denied::Away);
            }
        };
        // A session may have ended since the ticket was sold.
        let Some(cookie) = &principal.cookie else { return Ok(principal) };
        let now = self.session(cookie.expose_secret(), true).await?;
        if now.user == principal.user { Ok(now) } else { Err(Unauthorized::Ticket.into()) }
    }

    /// Whether tokens are accepted at all, in whatever place.
    #[must_use]
    pub fn takes_tokens(&self) -> bool {
        self.methods.iter().any(|method| method.is_token())
    }

    /// Checks a token without a request: a renewal, which only makes sense where
    /// [tokens are accepted](Self::takes_tokens).
    ///
    /// # Errors
    /// Names the rule that fails; [`Fault::Away`] where that cannot be known now.
    pub async fn verify(&self, token: &str) -> Result<Principal, Fault> {
        self.verifier().verify(token).await
    }

    /// Checks a logout token of an issuer.
    ///
    /// # Errors
    /// Names the rule that fails.
    pub async fn logout(&self, token: &str) -> Result<jwt::Logout, Fault> {
        self.verifier().logout(token).await
    }

    fn find(&self, head: Head<'_>, kinds: &[Method]) -> Result<Option<(Method, String)>, Method> {
        let asked = |method: &Method| self.methods.contains(method) && kinds.contains(method);
        for method in Method::ALL.into_iter().filter(asked) {
            let mut found = match method {
                Method::Subprotocol => subprotocol(head.headers),
                Method::Bearer => bearer(head.headers),
                Method::Ticket => query(head.query, "ticket"),
                Method::Query => query(head.query, "token"),
                Method::Cookie => match &self.cookies {
                    Some(cookies) => cookie::values(head.headers, cookies.name()),
                    None => Vec::new(),
                },
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

/// A value that is no text counts as well: a bad credential is not skipped for the next.
fn subprotocol(headers: &HeaderMap) -> Vec<String> {
    let mut found = Vec::new();
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let value = String::from_utf8_lossy(value.as_bytes());
        let items = value.split(',').filter_map(|item| item.trim().strip_prefix(TOKEN_PROTOCOL));
        found.extend(items.map(str::to_owned));
    }
    found
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

fn query(query: &str, wanted: &str) -> Vec<String> {
    parameters(query, wanted).collect()
}

/// The values of a parameter of a query string. What is long in there is mostly another, which is
/// passed over as it is.
pub fn parameters<'a>(query: &'a str, wanted: &'a str) -> impl Iterator<Item = String> {
    let perhaps = move |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        name == wanted || name.contains(['%', '+'])
    };
    let pairs = query.split('&').filter(perhaps);
    let pairs = pairs.flat_map(|pair| form_urlencoded::parse(pair.as_bytes()));
    pairs.filter(move |(name, _)| name == wanted).map(|(_, value)| value.into_owned())
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
        assert_eq!(query("x=1&token=g%2Eh.i&ticket=t&y", "token"), ["g.h.i"]);
        assert_eq!(query("tokens=1&%74oken=a=b&&token&=&token=+", "token"), ["a=b", "", " "]);
    }

    #[test]
    fn two_of_a_kind_are_seen() {
        let h = headers(&[
            (header::SEC_WEBSOCKET_PROTOCOL, "belfry.token.a"),
            (header::SEC_WEBSOCKET_PROTOCOL, "belfry.token.b"),
        ]);
        assert_eq!(subprotocol(&h).len(), 2);
        assert_eq!(query("token=a&token=b", "token").len(), 2);
    }

    #[test]
    fn another_scheme_is_a_credential_that_does_not_hold() {
        assert_eq!(bearer(&headers(&[(header::AUTHORIZATION, "Basic YTpi")])), [""]);
        assert_eq!(bearer(&headers(&[])), Vec::<String>::new());
    }
}

//! Errors as `application/problem+json` (RFC 9457).

use std::borrow::Cow;

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
};
use serde::Serialize;

/// Seconds to wait where the broker or the store is away.
pub const RETRY_AFTER: u32 = 2;

/// The listed set of problems: each is a `type`, a status and a title.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The body is not JSON.
    NotJson,
    /// The request itself is at fault, not its content.
    BadRequest,
    /// No API key, or an unknown one.
    Unauthorized,
    /// No valid credential for a connection.
    BadCredential,
    /// The key may not do this.
    Forbidden,
    /// The client has no certificate that holds.
    Certificate,
    /// Another site's page.
    Origin,
    /// No such route.
    NotFound,
    /// The route exists, for another method.
    Method,
    /// The body did not come in time.
    Timeout,
    /// The body, or a part of it, is too large.
    TooLarge,
    /// The body is of another media type.
    MediaType,
    /// A member of the body is at fault.
    Invalid,
    /// The broker is away: nothing was published, or it cannot be known.
    Unavailable,
    /// This replica is leaving.
    Draining,
    /// This replica is full.
    Full,
    /// Too many requests, or too many connections.
    Busy,
    /// A fault on our side.
    Internal,
}

impl Kind {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotJson => (StatusCode::BAD_REQUEST, "not-json", "The body is not JSON"),
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad-request", "Bad request"),
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "A valid API key is required")
            }
            Self::BadCredential => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "A valid credential is required")
            }
            Self::Forbidden => {
                (StatusCode::FORBIDDEN, "forbidden", "The API key lacks the scope for this")
            }
            Self::Certificate => {
                (StatusCode::FORBIDDEN, "certificate", "A client certificate is required")
            }
            Self::Origin => {
                (StatusCode::FORBIDDEN, "origin", "Pages of this origin may not connect")
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is nothing here"),
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Not with this method")
            }
            Self::Timeout => {
                (StatusCode::REQUEST_TIMEOUT, "timeout", "The body did not arrive in time")
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large"),
            Self::MediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "The body must be application/json",
            ),
            Self::Invalid => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Members of the body are at fault")
            }
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The message broker is away; try again",
            ),
            Self::Draining => {
                (StatusCode::SERVICE_UNAVAILABLE, "draining", "This replica is leaving; try again")
            }
            Self::Full => {
                (StatusCode::SERVICE_UNAVAILABLE, "full", "This replica is full; try again")
            }
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many; try again later"),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong here")
            }
        }
    }
}

/// One member at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Where, as a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// An error to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    detail: Option<Cow<'static, str>>,
    members: Vec<Member>,
    retry_after: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Member]>::is_empty")]
    errors: &'a [Member],
}

impl Problem {
    /// A problem of this kind.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, detail: None, members: Vec::new(), retry_after: None }
    }

    /// Members of the body that are at fault.
    #[must_use]
    pub fn invalid(members: Vec<Member>) -> Self {
        Self { members, ..Self::new(Kind::Invalid) }
    }

    /// The broker or the store is away; breakers close again within seconds.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::new(Kind::Unavailable).retry_after(RETRY_AFTER)
    }

    /// Says more than the title.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Says when to try again, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The members at fault.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.kind.parts().0
    }

    /// In one line of text, for a log: what is wrong, and up to five members at fault.
    #[must_use]
    pub fn told(&self) -> String {
        let (_, _, title) = self.kind.parts();
        let mut told = self.detail.as_deref().unwrap_or(title).to_owned();
        for Member { pointer, detail } in self.members.iter().take(5) {
            told.extend(["; ", pointer, " ", detail]);
        }
        told
    }

    fn body(&self) -> Body<'_> {
        let (status, name, title) = self.kind.parts();
        Body {
            kind: format!("urn:belfry:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: self.detail.as_deref(),
            errors: &self.members,
        }
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> HttpResponse {
        let body = self.body();
        let mut response = HttpResponse::build(self.status());
        response.content_type("application/problem+json");
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        if self.kind == Kind::Unauthorized || self.kind == Kind::BadCredential {
            response.insert_header((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        response.body(serde_json::to_string(&body).unwrap_or_default())
    }
}

/// As it stands in an answer about many.
impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.body().serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::body::MessageBody as _;

    use super::*;

    #[test]
    fn members_are_named() {
        let member = Member { pointer: "/to/user".into(), detail: "must not be empty".into() };
        let response = Problem::invalid(vec![member]).response();
        assert_eq!(response.status(), 422);
        let body = response.into_body().try_into_bytes().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "urn:belfry:problem:invalid");
        assert_eq!(body["errors"][0]["pointer"], "/to/user");
    }

    #[test]
    fn headers_belong_to_their_status() {
        let response = Problem::new(Kind::Unauthorized).response();
        assert_eq!(response.headers().get("www-authenticate").unwrap(), "Bearer");
        let response = Problem::unavailable().response();
        assert_eq!(response.headers().get("retry-after").unwrap(), "2");
    }
}

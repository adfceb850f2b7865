//! Reading a JSON body within bounds.

use std::time::Duration;

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
    web::{self, BytesMut},
};
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::problem::{Kind, Problem};

/// How long a body may take to arrive.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the body of a request that must be `application/json`.
///
/// # Errors
/// 415, 413 at the byte that is too much (or already for its declared length), 408, 400.
pub async fn json(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
) -> Result<Bytes, Problem> {
    read(request, payload, limit, "application/json", PATIENCE).await
}

/// Reads the body of a request that must be of this media type, and arrive within `patience`.
///
/// # Errors
/// As [`json`].
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
    media_type: &str,
    patience: Duration,
) -> Result<Bytes, Problem> {
    if !media_type_of(request.headers()).is_some_and(|found| found.eq_ignore_ascii_case(media_type))
    {
        return Err(Problem::new(Kind::MediaType));
    }
    any(request, payload, limit, patience).await
}

/// Reads the body of a request whatever its media type. It must come as it is: what is compressed
/// has no bounds of its own (415, RFC 9110 §15.5.16).
///
/// # Errors
/// As [`json`].
pub async fn any(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
    patience: Duration,
) -> Result<Bytes, Problem> {
    if is_encoded(request.headers()) {
        return Err(Problem::new(Kind::MediaType).detail("Content-Encoding is not supported"));
    }
    let too_large =
        || Problem::new(Kind::TooLarge).detail(format!("the body is over {limit} bytes"));
    if declared(request.headers()).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let read = async {
        let mut payload = payload;
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!(%error, "a request body ended early");
                Problem::new(Kind::BadRequest).detail("the body ended early")
            })?;
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    tokio::time::timeout(patience, read).await.unwrap_or_else(|_| Err(Problem::new(Kind::Timeout)))
}

/// The media type of a request, without parameters.
pub fn media_type_of(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING);
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

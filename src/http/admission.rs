//! Whether a request may become a connection: the checks in their order, each cheaper than the next.
//!
//! They take the head of a request and nothing of actix-web, and a refusal is a value, so that any
//! transport can ask and render the answer its own way.

use actix_http::{RequestHead, Version, header, ws::verify_handshake};

use super::public::State;
use crate::{
    auth::{Denied, Head, origin::Verdict, parameters},
    bus::replays::{Opening, Since},
    config::{Method, Reject},
    event::{Channel, CloseCause, ConnectionId, Principal},
    gate::{Closed, Pass},
    lifecycle::Phase,
    registry::Permit,
    seats::{NoSeat, Seat},
    telemetry::{ConnectResult, Transport},
};

/// What a browser's EventSource sends when it comes back (WHATWG HTML, Server-sent events).
const LAST_EVENT_ID: &str = "last-event-id";

/// Why a request does not become a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not a valid request for this transport.
    BadRequest(&'static str),
    /// This replica is leaving.
    Draining,
    /// This process is full.
    Full,
    /// Too many requests to connect.
    Busy,
    /// Its address has too many connections.
    Crowded,
    /// Another site's page, or a cookie without an Origin.
    Origin(Option<String>),
    /// A credential that is missing or does not hold.
    Unauthorized(Option<Method>),
    /// The user has too many connections, and the newest is the one to go.
    TooMany(Method),
    /// The broker or the sessions' store is away: no one is to sit on a deaf socket, nor to be
    /// logged out for our fault.
    Away(Option<Method>),
}

impl Refusal {
    /// How it is counted.
    pub(super) fn result(&self) -> (Option<Method>, ConnectResult) {
        match self {
            Self::BadRequest(_) => (None, ConnectResult::BadRequest),
            Self::Draining => (None, ConnectResult::Draining),
            Self::Full => (None, ConnectResult::Full),
            Self::Busy => (None, ConnectResult::Busy),
            Self::Crowded => (None, ConnectResult::Crowded),
            Self::Origin(Some(_)) => (None, ConnectResult::Origin),
            Self::Origin(None) => (Some(Method::Cookie), ConnectResult::Origin),
            Self::Unauthorized(method) => (*method, ConnectResult::Unauthorized),
            Self::TooMany(method) => (Some(*method), ConnectResult::TooMany),
            Self::Away(method) => (*method, ConnectResult::Away),
        }
    }

    /// The close code for a transport that completes the upgrade so that a page's script learns
    /// why; `None` where a status says it to a router or a program.
    pub(super) fn close_code(&self, state: &State) -> Option<CloseCause> {
        match self {
            _ if state.reject != Reject::Close => None,
            Self::Unauthorized(_) => Some(CloseCause::Unauthorized),
            Self::Origin(_) if state.explain => Some(CloseCause::Unauthorized),
            Self::TooMany(_) => Some(CloseCause::TooMany),
            _ => None,
        }
    }
}

/// A request that may become a connection.
pub(super) struct Admitted {
    pub(super) id: ConnectionId,
    pub(super) method: Method,
    pub(super) principal: Principal,
    pub(super) permit: Permit,
    /// Room for its user, up to its farewell.
    pub(super) seat: Seat,
    /// Room for its address, up to its end.
    pub(super) pass: Pass,
    pub(super) made: std::time::SystemTime,
    /// Where it begins in each of its channels.
    pub(super) opening: Opening,
}

/// A request that may not, and its address's room, which it keeps until it has been told.
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) pass: Option<Pass>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, pass: None }
    }
}

/// Phase, room, Origin, bus, credential, room for the user.
pub(super) async fn admit(
    head: &RequestHead,
    state: &State,
    transport: Transport,
) -> Result<Admitted, Refused> {
    let made = std::time::SystemTime::now();
    match transport {
        Transport::WebSocket => upgrade(head)?,
        Transport::Sse => stream(head)?,
    }
    if state.lifecycle.phase() >= Phase::Leaving {
        return Err(Refusal::Draining.into());
    }
    // Those who wait at the gate hold their room already, so what waits is bounded as well.
    let permit = state.registry.admit().ok_or(Refusal::Full)?;
    let pass = state.gate.enter(head).await.map_err(|closed| match closed {
        Closed::Busy => Refusal::Busy,
        Closed::Crowded => Refusal::Crowded,
    })?;
    let origin = state.origins.check(&head.headers);
    if let Verdict::Foreign(origin) = origin {
        let refusal = Refusal::Origin(Some(origin));
        return Err(Refused { refusal, pass: Some(pass) });
    }
    let query = head.uri.query().unwrap_or_default();
    let asked = Head { headers: &head.headers, query, origin: origin == Verdict::Allowed };
    // A ticket is good for one look, and an outage is not its holder's fault. Every other kind is
    // looked at first: a bad one is bad in an outage too, and to come back with it would be in vain.
    let ticket = || state.authenticator.kind(asked) == Some(Method::Ticket);
    if !state.health.delivers() && ticket() {
        return Err(Refusal::Away(Some(Method::Ticket)).into());
    }
    let (method, principal) = match state.authenticator.authenticate(asked).await {
        Ok(found) => found,
        Err((method, denied)) => {
            let refusal = match denied {
                Denied::Away => return Err(Refusal::Away(method).into()),
                Denied::NoOrigin => Refusal::Origin(None),
                Denied::Unauthorized(fault) => {
                    // The client learns nothing but `unauthorized`; a developer finds the rule here.
                    if state.explain {
                        tracing::info!(%fault, "a credential was refused");
                    } else {
                        tracing::debug!(%fault, "a credential was refused");
                    }
                    Refusal::Unauthorized(method)
                }
            };
            return Err(Refused { refusal, pass: Some(pass) });
        }
    };
    if !state.health.delivers() {
        return Err(Refusal::Away(Some(method)).into());
    }
    let id = ConnectionId::new();
    let channels = channels(&principal);
    // One round trip for both.
    let since = Since::parse(since(head, transport).as_deref());
    let (seat, opening) =
        tokio::join!(state.seats.take(id, &principal), state.replays.open(&channels, &since));
    let seat = match seat {
        Ok(seat) => seat,
        Err(NoSeat::Away) => return Err(Refusal::Away(Some(method)).into()),
        Err(NoSeat::Revoked) => {
            let refusal = Refusal::Unauthorized(Some(method));
            return Err(Refused { refusal, pass: Some(pass) });
        }
        Err(NoSeat::TooMany) => {
            let refusal = Refusal::TooMany(method);
            return Err(Refused { refusal, pass: Some(pass) });
        }
    };
    let opening = opening.map_err(|error| {
        tracing::debug!(%error, "what a connection begins with could not be read");
        Refusal::Away(Some(method))
    })?;
    if let Some(whole) = opening.resumed {
        state.metrics.resume(whole);
    }
    Ok(Admitted { id, method, principal, permit, seat, pass, made, opening })
}

/// What a connection listens to: its user's channel, everyone's, and those of its groups.
fn channels(principal: &Principal) -> Vec<Channel> {
    let own = [Channel::User(principal.user.clone()), Channel::Broadcast];
    own.into_iter().chain(principal.groups.iter().cloned().map(Channel::Group)).collect()
}

/// Whether it is a valid upgrade.
fn upgrade(head: &RequestHead) -> Result<(), Refusal> {
    if let Err(error) = verify_handshake(head) {
        tracing::debug!(%error, "not a valid upgrade");
        return Err(Refusal::BadRequest("this is not a valid WebSocket upgrade"));
    }
    // actix looks for the word anywhere in the value, and takes any version of HTTP (RFC 6455
    // §4.2.1, RFC 9110 §7.8).
    if head.version < Version::HTTP_11 || !upgrades_to_websocket(head) {
        return Err(Refusal::BadRequest("this is not a valid WebSocket upgrade"));
    }
    if has_body(head) {
        return Err(Refusal::BadRequest("an upgrade has no body"));
    }
    Ok(())
}

/// Whether it asks for a stream. An upgrade to WebSocket does not. (A server may pass over one, RFC
/// 9110 §7.8, but actix takes what follows its head for a body without an end, and would announce
/// chunks and write none.) Other upgrades are passed over: some clients offer h2c with every request.
fn stream(head: &RequestHead) -> Result<(), Refusal> {
    let mut upgrades = head.headers.get_all(header::UPGRADE);
    if upgrades.any(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"websocket")) {
        return Err(Refusal::BadRequest("this is a stream of events and no WebSocket"));
    }
    if has_body(head) {
        return Err(Refusal::BadRequest("a request for a stream has no body"));
    }
    Ok(())
}

/// From where a client wants to go on, as it wrote it: `?since=`; on SSE a `Last-Event-ID` wins,
/// because a browser's EventSource asks for the same address again when it comes back.
fn since(head: &RequestHead, transport: Transport) -> Option<String> {
    let sent = head.headers.get(LAST_EVENT_ID).filter(|_| transport == Transport::Sse);
    // What is no text is no cursor either, and must not pass for nothing asked.
    let sent = sent.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    sent.filter(|text| !text.is_empty())
        .or_else(|| parameters(head.uri.query().unwrap_or_default(), "since").next())
}

fn upgrades_to_websocket(head: &RequestHead) -> bool {
    let mut values = head.headers.get_all(header::UPGRADE);
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    value.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// A body in front of the first frame would be taken for frames (RFC 6455 §4.1 allows none).
fn has_body(head: &RequestHead) -> bool {
    head.headers.contains_key(header::TRANSFER_ENCODING)
        || head.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

//! What is known of users: whether they are connected, on any replica, and what is kept for them.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, guard::GuardContext, web};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    body, fresh,
    internal::{Call, State},
    percent,
    posting::away,
    problem::{Kind, Member, Problem},
    request::presence,
};
use crate::{
    bus::{Ask, PAGE},
    config::Scope,
    event::{Channel, Position, Tag, UserId, parse_id},
    history::Kept,
};

const USER: &str = "/v1/users/{user}";
const EVENTS: &str = "/v1/users/{user}/events";
const PRESENCE: &str = "/v1/presence";
/// Bytes of events after which an answer ends. Room for everything that is kept by default.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// How often a user is connected.
#[derive(Serialize)]
struct Presence {
    online: bool,
    connections: usize,
}

impl Presence {
    fn new(connections: usize) -> Self {
        Self { online: connections > 0, connections }
    }
}

#[derive(Serialize)]
struct User<'a> {
    user: &'a str,
    #[serde(flatten)]
    presence: Presence,
}

/// `GET /v1/users/{user}` and `GET /v1/users?user=`
pub(super) async fn user(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let call = Call::new(&state, USER, &request);
    let outcome = async {
        call.require(Scope::Read)?;
        let user = named(&request)?;
        let counts = state.seats.count(std::slice::from_ref(&user)).await;
        let connections = counts.map_err(|error| away(&error))?.first().copied();
        let presence = Presence::new(connections.unwrap_or_default());
        Ok(fresh(&User { user: user.as_str(), presence }))
    };
    call.answer(outcome.await)
}

/// `POST /v1/presence`
pub(super) async fn presences(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    let call = Call::new(&state, PRESENCE, &request);
    let outcome = async {
        call.require(Scope::Read)?;
        let body = body::json(&request, payload, state.limits.body_bytes).await?;
        let users = presence::parse(&body)?;
        let counts = state.seats.count(&users).await.map_err(|error| away(&error))?;
        let presences = users.iter().map(UserId::as_str).zip(counts);
        let presences = presences.map(|(user, count)| (user, Presence::new(count)));
        Ok(fresh(&BTreeMap::from([("users", presences.collect::<BTreeMap<_, _>>())])))
    };
    call.answer(outcome.await)
}

/// What is kept for a user.
#[derive(Serialize)]
struct Log<'a> {
    user: &'a str,
    /// As browsers get them, oldest first.
    events: Vec<Box<RawValue>>,
    /// The channel's last id, whether or not that event is still kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    /// There are more, after the last of these.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

/// `GET /v1/users/{user}/events` and `GET /v1/users/events?user=`
pub(super) async fn events(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let call = Call::new(&state, EVENTS, &request);
    let outcome = async {
        call.require(Scope::Read)?;
        let user = named(&request)?;
        let after = after(&request)?;
        Ok(fresh(&read(&state, &user, after).await?))
    };
    call.answer(outcome.await)
}

async fn read<'a>(
    state: &State,
    user: &'a UserId,
    mut after: Position,
) -> Result<Log<'a>, Problem> {
    let mut answer = Log { user: user.as_str(), events: Vec::new(), last: None, more: false };
    if !state.history.keeps() {
        return Ok(answer);
    }
    let channel = Channel::User(user.clone());
    let mut bytes = 0;
    loop {
        let ask = Ask { channel: channel.clone(), after: Some(after), most: PAGE };
        let readings = state.history.read(vec![ask]).await.map_err(|error| away(&error))?;
        let Some(reading) = readings.into_iter().next() else { break };
        answer.last = reading.last.map(|last| Tag::User.id(last));
        let Some(newest) = reading.kept.last() else { break };
        after = newest.at;
        for kept in reading.kept.iter().filter(|kept| is_event(kept, reading.now)) {
            let json = kept.frame.json().and_then(|json| String::from_utf8(json.to_vec()).ok());
            if let Some(json) = json.and_then(|json| RawValue::from_string(json).ok()) {
                bytes += json.get().len();
                answer.events.push(json);
            }
        }
        if !reading.more {
            break;
        }
        if bytes >= ANSWER_BYTES {
            answer.more = true;
            break;
        }
    }
    Ok(answer)
}

/// Not word of a loss, and not over.
fn is_event(kept: &Kept, now: u64) -> bool {
    !kept.loss && kept.until.is_none_or(|until| until > now)
}

/// `DELETE /v1/users/{user}/events` and `DELETE /v1/users/events?user=`
pub(super) async fn erase(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let call = Call::new(&state, EVENTS, &request);
    let outcome = async {
        let caller = call.require(Scope::Publish)?;
        let user = named(&request)?;
        let (key, name) = (&*caller.name, user.as_str());
        tracing::info!(target: "audit", action = "erase", key, user = name);
        state.history.erase(&user).await.map_err(|error| away(&error))?;
        Ok(HttpResponse::NoContent().finish())
    };
    call.answer(outcome.await)
}

/// A request that names its user in the query.
pub(super) fn asks_by_query(context: &GuardContext<'_>) -> bool {
    !in_query(context.head().uri.query(), "user").is_empty()
}

/// The values of a member of the query, as forms write it: `+` is a space.
fn in_query(query: Option<&str>, name: &str) -> Vec<String> {
    let query = query.unwrap_or_default().as_bytes();
    form_urlencoded::parse(query)
        .filter(|(member, _)| member == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// The user of a request: in its path, or, since some ids do not survive one, in its query.
fn named(request: &HttpRequest) -> Result<UserId, Problem> {
    let in_path = request.match_info().get("user").is_some();
    let text = match (in_path, in_query(request.uri().query(), "user").as_slice()) {
        // Taken from the path as it came: the router has decoded a part of it.
        (true, []) => percent::decode(segment(request.uri().path(), 3).as_bytes()),
        (false, [user]) => Some(user.clone()),
        _ => {
            return Err(Problem::new(Kind::BadRequest)
                .detail("name one user, in the path or as the query's `user`"));
        }
    };
    let fault = |detail: String| Problem::invalid(vec![Member { pointer: "/user".into(), detail }]);
    let text = text.ok_or_else(|| fault("is not UTF-8".to_owned()))?;
    UserId::new(&text).map_err(|error| fault(error.to_string()))
}

fn segment(path: &str, n: usize) -> &str {
    path.split('/').nth(n).unwrap_or_default()
}

/// Where an answer is to begin: after the event of this id.
fn after(request: &HttpRequest) -> Result<Position, Problem> {
    let values = in_query(request.uri().query(), "after");
    let Some(value) = values.first() else { return Ok(Position::ZERO) };
    match parse_id(value) {
        Some((Tag::User, at)) if values.len() == 1 => Ok(at),
        _ => Err(Problem::invalid(vec![Member {
            pointer: "/after".into(),
            detail: "must be the id of an event of this user".into(),
        }])),
    }
}

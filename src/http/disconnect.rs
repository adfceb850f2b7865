//! `POST /v1/disconnect`: closes connections wherever they are, and refuses who must not return.

use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    body,
    internal::{Call, State},
    problem::Problem,
    request::{Faults, name, session_key, whole},
};
use crate::{
    bus::{
        BusError,
        orders::{Disconnect, Outcome},
    },
    config::Scope,
    event::{ConnectionId, Subject, UserId},
};

const ROUTE: &str = "/v1/disconnect";

/// Gives an order.
pub async fn disconnect(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    let call = Call::new(&state, ROUTE, &request);
    let outcome = accept(&request, payload, &state, &call).await;
    call.answer(outcome)
}

async fn accept(
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
    call: &Call<'_>,
) -> Result<HttpResponse, Problem> {
    let caller = call.require(Scope::Disconnect)?;
    let body = body::json(request, payload, state.limits.body_bytes).await?;
    let order = parse(&body)?;
    audit(&caller.name, &order);
    let Outcome { closed, replicas, acknowledged } =
        state.orders.disconnect(order).await.map_err(|error| unavailable(&error))?;
    Ok(HttpResponse::Ok().json(serde_json::json!({
        "closed": closed, "replicas": replicas, "acknowledged": acknowledged,
    })))
}

/// The line that every order leaves. A session is only ever known by its hash.
pub(super) fn audit(key: &str, order: &Disconnect) {
    let (by, subject) = match &order.subject {
        Subject::User(user) => ("user", user.as_str().to_owned()),
        Subject::Session(session) => ("session", session.to_string()),
        Subject::Connection(id) => ("connection", id.to_string()),
    };
    let except_connection = order.except_connection.map(|id| id.to_string());
    let except_session = order.except_session.map(|session| session.to_string());
    tracing::info!(
        target: "audit", action = "disconnect", key, by, subject, revoke = order.revoke,
        except_connection, except_session,
    );
}

fn unavailable(error: &BusError) -> Problem {
    tracing::debug!(%error, "an order could not be given");
    Problem::unavailable()
        .detail("nothing may have happened, or only a part: repeat the order, which does no harm")
}

fn parse(body: &[u8]) -> Result<Disconnect, Problem> {
    const ONE: &str = "must have exactly one of user, session, connection";
    let whole = whole(body)?;
    let mut faults = Faults::default();
    let Some(mut members) = faults.object("", whole) else {
        return Err(Problem::invalid(faults.0));
    };
    let mut take = |name: &str| members.0.remove(name);
    let (user, session, connection) = (take("user"), take("session"), take("connection"));
    let (except_connection, except_session) = (take("except_connection"), take("except_session"));
    let revoke = take("revoke");
    faults.unknown("", members);

    let subject = match (user, session, connection) {
        (Some(user), None, None) => {
            name(&mut faults, "/user", user, UserId::new).map(Subject::User)
        }
        (None, Some(session), None) => {
            session_key(&mut faults, "/session", session).map(Subject::Session)
        }
        (None, None, Some(id)) => {
            let id: Option<String> = faults.parse("/connection", id, "a string");
            id.and_then(|id| connection_id(&mut faults, "/connection", &id))
                .map(Subject::Connection)
        }
        _ => {
            faults.add("", ONE);
            None
        }
    };
    let except_connection = except_connection.and_then(|id| {
        let id: String = faults.parse("/except_connection", id, "a string")?;
        connection_id(&mut faults, "/except_connection", &id)
    });
    let except_session =
        except_session.and_then(|session| session_key(&mut faults, "/except_session", session));
    let revoke = revoke
        .and_then(|value| faults.parse("/revoke", value, "true or false"))
        .unwrap_or_default();
    if revoke && matches!(subject, Some(Subject::Connection(_))) {
        faults.add("/revoke", "needs a user or a session: a connection has no credential");
    }
    if revoke && except_connection.is_some() {
        // It would stay now, and be refused with its next handshake.
        faults.add("/except_connection", "cannot be spared by `revoke`: use except_session");
    }
    match subject {
        Some(subject) if faults.0.is_empty() => {
            Ok(Disconnect { subject, except_connection, except_session, revoke })
        }
        _ => Err(Problem::invalid(faults.0)),
    }
}

fn connection_id(faults: &mut Faults, pointer: &str, text: &str) -> Option<ConnectionId> {
    let id = ConnectionId::parse(text);
    if id.is_none() {
        faults.add(pointer, "is no id of a connection");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SessionKey;

    fn good(body: &str) -> Disconnect {
        parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn a_session_is_an_id_or_its_hash() {
        let key = SessionKey::of("s-1");
        for body in [r#"{"session":"s-1"}"#.to_owned(), format!(r#"{{"session":"{key}"}}"#)] {
            assert_eq!(good(&body).subject, Subject::Session(key));
        }
        let order = good(r#"{"user":"a","except_session":"s-1","revoke":true}"#);
        assert_eq!(order.except_session, Some(key));
        assert!(order.revoke && !good(r#"{"user":"a","revoke":false}"#).revoke);
    }

    #[test]
    fn every_fault_has_its_place() {
        for (body, pointers) in [
            ("[]", &[""][..]),
            ("{}", &[""]),
            (r#"{"user":"a","session":"b"}"#, &[""]),
            (r#"{"user":7}"#, &["/user"]),
            (r#"{"user":""}"#, &["/user"]),
            (r#"{"session":""}"#, &["/session"]),
            (r#"{"session":"sha256:12"}"#, &["/session"]),
            (r#"{"user":"a","except_session":"a\u0000"}"#, &["/except_session"]),
            (r#"{"connection":"x"}"#, &["/connection"]),
            (r#"{"user":"a","except":"x"}"#, &["/except"]),
            (r#"{"user":"a","except_connection":"x"}"#, &["/except_connection"]),
            (
                r#"{"user":"a","except_connection":"0198c0ffee0070008000000000000000","revoke":true}"#,
                &["/except_connection"],
            ),
            (r#"{"user":"a","except_session":7,"revoke":1}"#, &["/except_session", "/revoke"]),
            (r#"{"connection":"0198c0ffee0070008000000000000000","revoke":true}"#, &["/revoke"]),
        ] {
            let problem = parse(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status(), 422, "{body}");
            let found: Vec<_> = problem.members().iter().map(|m| m.pointer.as_str()).collect();
            assert_eq!(found, pointers, "{body}");
        }
        assert_eq!(parse(b"{").unwrap_err().status(), 400);
    }
}

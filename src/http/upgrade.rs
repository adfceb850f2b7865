//! `GET /ws/notifications`: a browser's request becomes a running connection, or learns why not.

use std::{rc::Rc, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web,
};
use rand::Rng as _;

use super::{
    admission::{self, Admitted, Refusal, Refused},
    problem::{Kind, Problem},
    public::Worker,
};
use crate::{
    config::Reject,
    connection::{self, Connection, websocket},
    frame::Notice,
    net::Link,
    outbox::Outbox,
    registry::Member,
    telemetry::ConnectResult,
};

pub(super) async fn notifications(
    request: HttpRequest,
    payload: web::Payload,
    worker: web::Data<Worker>,
) -> HttpResponse {
    let refused = match admission::admit(request.head(), &worker.state).await {
        Ok(admitted) => match accept(&request, payload, &worker, admitted).await {
            Ok(response) => return response,
            Err(refusal) => {
                count(&worker, &refusal);
                return respond(&refusal);
            }
        },
        Err(refused) => refused,
    };
    count(&worker, &refused.refusal);
    refuse(&request, payload, &worker, refused).await
}

fn count(worker: &Worker, refusal: &Refusal) {
    let (method, result) = refusal.result();
    worker.state.metrics.connect(method, result);
}

async fn accept(
    request: &HttpRequest,
    payload: web::Payload,
    worker: &Worker,
    Admitted { id, method, principal, permit, seat, pass, made, opening }: Admitted,
) -> Result<HttpResponse, Refusal> {
    let state = &worker.state;
    let (Some(link), outbox) = (request.conn_data::<Link>().cloned(), outbox(worker)) else {
        return Err(Refusal::BadRequest("this connection cannot be upgraded"));
    };
    let upgraded =
        websocket::upgrade(request, payload, Rc::clone(&outbox), state.inbound_bytes).await;
    let (response, inbound) = upgraded.map_err(|error| {
        tracing::debug!(%error, "an upgrade failed");
        Refusal::BadRequest("this is not a valid WebSocket upgrade")
    })?;
    let heartbeat = worker.settings.heartbeat.as_millis();
    let welcome = Notice::Welcome {
        connection: &id.to_string(),
        user: principal.user.as_str(),
        groups: &principal.groups,
        cursor: &opening.cursor.to_string(),
        heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
        resumed: opening.resumed,
        lost: &opening.lost.iter().map(ToString::to_string).collect::<Vec<_>>(),
    };
    // The welcome is queued first and the registration stands before the 101 is written, so
    // nothing that is published after the handshake is missed or comes before the welcome.
    outbox.deliver(&welcome.frame().resets(opening.cursor));
    let member = Member { id, user: principal.user.clone(), session: principal.session, made };
    let groups = principal.groups.clone().into();
    let registration = worker.shard.register(member, groups, opening.starts, Rc::clone(&outbox));
    let timer = worker.wheel.timer(Rc::clone(&outbox));
    let settings = Rc::clone(&worker.settings);
    let (seat, hold) = (Box::new(seat), Box::new(pass));
    let connection = Connection {
        inbound,
        outbox,
        link,
        registration,
        resumes: opening.resumed.is_some(),
        permit,
        timer,
        principal,
        settings,
        seat,
        hold,
    };
    actix_rt::spawn(connection.run());
    state.metrics.connect(Some(method), ConnectResult::Accepted);
    tracing::debug!(connection = %id, "connected");
    Ok(response)
}

/// Answers with a status where a program reads it, and with an upgrade and a close code where only
/// that reaches a page's script.
async fn refuse(
    request: &HttpRequest,
    payload: web::Payload,
    worker: &Worker,
    Refused { refusal, pass }: Refused,
) -> HttpResponse {
    let state = &worker.state;
    let Some(cause) = refusal.close(state.explain).filter(|_| state.reject == Reject::Close) else {
        return respond(&refusal);
    };
    let detail = match &refusal {
        Refusal::Origin(Some(origin)) => {
            Some(format!("unauthorized: the origin {origin} is not in auth.origins"))
        }
        Refusal::Origin(None) => {
            Some("unauthorized: a cookie needs an Origin from auth.origins".to_owned())
        }
        _ => None,
    };
    let Ok(farewell) = Arc::clone(&state.farewells).try_acquire_owned() else {
        return respond(&refusal);
    };
    let (Some(link), outbox) = (request.conn_data::<Link>().cloned(), outbox(worker)) else {
        return respond(&refusal);
    };
    let upgraded =
        websocket::upgrade(request, payload, Rc::clone(&outbox), state.inbound_bytes).await;
    match upgraded {
        Ok((response, inbound)) => {
            actix_rt::spawn(async move {
                connection::reject(inbound, outbox, link, cause, detail).await;
                drop((farewell, pass));
            });
            response
        }
        Err(error) => {
            tracing::debug!(%error, "an upgrade failed");
            respond(&refusal)
        }
    }
}

/// The refusal as a status.
fn respond(refusal: &Refusal) -> HttpResponse {
    let problem = match refusal {
        Refusal::BadRequest(detail) => Problem::new(Kind::BadRequest).detail(*detail),
        Refusal::Draining => Problem::new(Kind::Draining).retry_after(1),
        Refusal::Full => Problem::new(Kind::Full).retry_after(5),
        // Spread, so that those who were refused together do not return together.
        Refusal::Busy => Problem::new(Kind::Busy).retry_after(rand::rng().random_range(1..=5)),
        Refusal::Origin(_) => Problem::new(Kind::Origin),
        Refusal::Unauthorized(_) => Problem::new(Kind::BadCredential),
        Refusal::Crowded | Refusal::TooMany(_) => Problem::new(Kind::Busy).retry_after(60),
        Refusal::Away(_) => Problem::unavailable(),
    };
    let mut response = problem.response();
    // Whatever the client sent after its head is not HTTP.
    response.head_mut().set_connection_type(actix_http::ConnectionType::Close);
    if matches!(refusal, Refusal::BadRequest(_)) {
        let version = HeaderValue::from_static("13");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
    }
    response
}

fn outbox(worker: &Worker) -> Rc<Outbox> {
    Outbox::new(worker.state.bounds, Rc::clone(worker.shard.metrics()))
}

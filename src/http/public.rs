//! The public listener: a browser's request to connect, from its head to a running connection.

use std::{rc::Rc, sync::Arc};

use actix_http::ws::verify_handshake;
use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web,
};

use super::{
    not_found,
    problem::{Kind, Problem},
    wrong_method,
};
use crate::{
    auth::{
        Authenticator, Head,
        origin::{Origins, Verdict},
    },
    bus::subscriber::Health,
    config::{Method, Reject},
    connection::{self, Connection, Settings, websocket},
    event::{CloseCause, Principal},
    frame::Notice,
    lifecycle::{Lifecycle, Phase},
    net::Link,
    outbox::{Bounds, Outbox},
    registry::{Permit, Registry, Shard},
    telemetry::{ConnectResult, Metrics},
    timer::Wheel,
};

/// What all workers of the public listener share.
pub struct State {
    /// Who may connect.
    pub authenticator: Arc<Authenticator>,
    /// Whose pages may connect.
    pub origins: Origins,
    /// What becomes of a bad credential.
    pub reject: Reject,
    /// Whether people are told more (development).
    pub explain: bool,
    /// Whether events reach this replica.
    pub health: Arc<Health>,
    /// Where this process stands.
    pub lifecycle: Arc<Lifecycle>,
    /// Who is connected.
    pub registry: Registry,
    /// Bounds of one connection's queue.
    pub bounds: Bounds,
    /// Longest message from a client.
    pub inbound_bytes: usize,
    /// What is counted.
    pub metrics: Metrics,
}

/// What one worker adds to it; never leaves its thread.
pub struct Worker {
    /// What the workers share.
    pub state: Arc<State>,
    /// This worker's connections.
    pub shard: Rc<Shard>,
    /// Their deadlines.
    pub wheel: Rc<Wheel>,
    /// What they have in common.
    pub settings: Rc<Settings>,
}

/// Adds the routes of the public listener below `base_path`.
pub fn routes(base_path: &str, config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource(format!("{base_path}/ws/notifications"))
                .route(web::get().to(notifications))
                .default_service(wrong_method("GET")),
        )
        .default_service(web::to(not_found));
}

/// Why a request does not become a connection. A value, so that any transport can render it.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Not a valid upgrade.
    BadRequest(&'static str),
    /// This replica is leaving.
    Draining,
    /// This process is full.
    Full,
    /// Another site's page.
    Origin(String),
    /// A credential that is missing or does not hold.
    Unauthorized(Option<Method>),
    /// What is published may not arrive: no one is to sit on a deaf socket.
    Away(Method),
}

impl Refusal {
    fn result(&self) -> (Option<Method>, ConnectResult) {
        match self {
            Self::BadRequest(_) => (None, ConnectResult::BadRequest),
            Self::Draining => (None, ConnectResult::Draining),
            Self::Full => (None, ConnectResult::Full),
            Self::Origin(_) => (None, ConnectResult::Origin),
            Self::Unauthorized(method) => (*method, ConnectResult::Unauthorized),
            Self::Away(method) => (Some(*method), ConnectResult::Away),
        }
    }

    fn response(&self) -> HttpResponse {
        let problem = match self {
            Self::BadRequest(detail) => Problem::new(Kind::BadRequest).detail(*detail),
            Self::Draining => Problem::new(Kind::Draining).retry_after(1),
            Self::Full => Problem::new(Kind::Full).retry_after(5),
            Self::Origin(_) => Problem::new(Kind::Origin),
            Self::Unauthorized(_) => Problem::new(Kind::BadCredential),
            Self::Away(_) => Problem::new(Kind::Unavailable).retry_after(2),
        };
        let mut response = problem.response();
        // Whatever the client sent after its head is not HTTP.
        response.head_mut().set_connection_type(actix_http::ConnectionType::Close);
        if matches!(self, Self::BadRequest(_)) {
            let version = HeaderValue::from_static("13");
            response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
        }
        response
    }
}

async fn notifications(
    request: HttpRequest,
    payload: web::Payload,
    worker: web::Data<Worker>,
) -> HttpResponse {
    let refusal = match admit(&request, &worker.state) {
        Ok(admitted) => match accept(&request, payload, &worker, admitted).await {
            Ok(response) => return response,
            Err(refusal) => refusal,
        },
        Err((refusal, permit)) => {
            let (method, result) = refusal.result();
            worker.state.metrics.connect(method, result);
            return refuse(&request, payload, &worker, refusal, permit).await;
        }
    };
    let (method, result) = refusal.result();
    worker.state.metrics.connect(method, result);
    refusal.response()
}

struct Admitted {
    method: Method,
    principal: Principal,
    permit: Permit,
}

/// The checks in the order of the design: phase, room, Origin, credential, bus.
fn admit(request: &HttpRequest, state: &State) -> Result<Admitted, (Refusal, Option<Permit>)> {
    if let Err(error) = verify_handshake(request.head()) {
        tracing::debug!(%error, "not a valid upgrade");
        return Err((Refusal::BadRequest("this is not a valid WebSocket upgrade"), None));
    }
    if has_body(request) {
        return Err((Refusal::BadRequest("an upgrade has no body"), None));
    }
    if state.lifecycle.phase() >= Phase::Leaving {
        return Err((Refusal::Draining, None));
    }
    let Some(permit) = state.registry.admit() else { return Err((Refusal::Full, None)) };
    if let Verdict::Foreign(origin) = state.origins.check(request.headers()) {
        return Err((Refusal::Origin(origin), Some(permit)));
    }
    let head = Head { headers: request.headers(), query: request.query_string() };
    let (method, principal) = match state.authenticator.authenticate(head) {
        Ok(found) => found,
        Err((method, fault)) => {
            // The client learns nothing but `unauthorized`; a developer finds the rule here.
            if state.explain {
                tracing::info!(%fault, "a credential was refused");
            } else {
                tracing::debug!(%fault, "a credential was refused");
            }
            return Err((Refusal::Unauthorized(method), Some(permit)));
        }
    };
    if !state.health.delivers() {
        return Err((Refusal::Away(method), None));
    }
    Ok(Admitted { method, principal, permit })
}

/// A body in front of the first frame would be taken for frames (RFC 6455 §4.1 allows none).
fn has_body(request: &HttpRequest) -> bool {
    let headers = request.headers();
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

async fn accept(
    request: &HttpRequest,
    payload: web::Payload,
    worker: &Worker,
    Admitted { method, principal, permit }: Admitted,
) -> Result<HttpResponse, Refusal> {
    let state = &worker.state;
    let (Some(link), outbox) = (request.conn_data::<Link>().cloned(), outbox(worker)) else {
        return Err(Refusal::BadRequest("this connection cannot be upgraded"));
    };
    let id = uuid::Uuid::now_v7().simple().to_string();
    let upgraded =
        websocket::upgrade(request, payload, Rc::clone(&outbox), state.inbound_bytes).await;
    let (response, inbound) = upgraded.map_err(|error| {
        tracing::debug!(%error, "an upgrade failed");
        Refusal::BadRequest("this is not a valid WebSocket upgrade")
    })?;
    let heartbeat = worker.settings.heartbeat.as_millis();
    let welcome = Notice::Welcome {
        connection: &id,
        user: principal.user.as_str(),
        groups: &principal.groups,
        cursor: "",
        heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
        resumed: None,
    };
    // The welcome is queued first and the registration stands before the 101 is written, so
    // nothing that is published after the handshake is missed or comes before the welcome.
    outbox.deliver(&welcome.frame());
    let registration =
        worker.shard.register(&principal.user, principal.groups.clone().into(), Rc::clone(&outbox));
    let timer = worker.wheel.timer(Rc::clone(&outbox));
    let settings = Rc::clone(&worker.settings);
    let connection =
        Connection { inbound, outbox, link, registration, permit, timer, principal, settings };
    actix_rt::spawn(connection.run());
    state.metrics.connect(Some(method), ConnectResult::Accepted);
    tracing::debug!(connection = id, "connected");
    Ok(response)
}

/// Answers with a status where a program reads it, and with an upgrade and a close code where only
/// that reaches a page's script.
async fn refuse(
    request: &HttpRequest,
    payload: web::Payload,
    worker: &Worker,
    refusal: Refusal,
    permit: Option<Permit>,
) -> HttpResponse {
    let state = &worker.state;
    let detail = match &refusal {
        Refusal::Unauthorized(_) if state.reject == Reject::Close => None,
        Refusal::Origin(origin) if state.explain => {
            Some(format!("unauthorized: the origin {origin} is not in auth.origins"))
        }
        _ => return refusal.response(),
    };
    let (Some(link), outbox) = (request.conn_data::<Link>().cloned(), outbox(worker)) else {
        return refusal.response();
    };
    let upgraded =
        websocket::upgrade(request, payload, Rc::clone(&outbox), state.inbound_bytes).await;
    match upgraded {
        Ok((response, inbound)) => {
            actix_rt::spawn(async move {
                connection::reject(inbound, outbox, link, CloseCause::Unauthorized, detail).await;
                drop(permit);
            });
            response
        }
        Err(error) => {
            tracing::debug!(%error, "an upgrade failed");
            refusal.response()
        }
    }
}

fn outbox(worker: &Worker) -> Rc<Outbox> {
    Outbox::new(worker.state.bounds, Rc::clone(worker.shard.metrics()))
}

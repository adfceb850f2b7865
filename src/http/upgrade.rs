//! `GET /ws/notifications`: a browser's request becomes a running connection, or learns why not.

use std::{rc::Rc, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web,
};

use super::{
    admission::{self, Admitted, Refusal, Refused},
    arrival::{arrive, outbox},
    public::Worker,
};
use crate::{
    connection::{self, websocket},
    net::Link,
    telemetry::Transport,
};

pub(super) async fn notifications(
    request: HttpRequest,
    payload: web::Payload,
    worker: web::Data<Worker>,
) -> HttpResponse {
    let refused = match admission::admit(request.head(), &worker.state, Transport::WebSocket).await
    {
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

pub(super) fn count(worker: &Worker, refusal: &Refusal) {
    let (method, result) = refusal.result();
    worker.state.metrics.connect(Transport::WebSocket, method, result);
}

async fn accept(
    request: &HttpRequest,
    payload: web::Payload,
    worker: &Worker,
    admitted: Admitted,
) -> Result<HttpResponse, Refusal> {
    let (Some(link), outbox) = (request.conn_data::<Link>().cloned(), outbox(worker)) else {
        return Err(Refusal::BadRequest("this connection cannot be upgraded"));
    };
    let inbound_bytes = worker.state.inbound_bytes;
    let upgraded = websocket::upgrade(request, payload, Rc::clone(&outbox), inbound_bytes).await;
    let (response, inbound) = upgraded.map_err(|error| {
        tracing::debug!(%error, "an upgrade failed");
        Refusal::BadRequest("this is not a valid WebSocket upgrade")
    })?;
    let connection = arrive(worker, admitted, Transport::WebSocket, outbox, link, inbound);
    actix_rt::spawn(connection.run());
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
    let Some(cause) = refusal.close_code(state) else { return respond(&refusal) };
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
                connection::reject(inbound, outbox, link, cause, refusal.detail()).await;
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
pub(super) fn respond(refusal: &Refusal) -> HttpResponse {
    let mut response = refusal.problem().response();
    // Whatever the client sent after its head is not HTTP.
    response.head_mut().set_connection_type(actix_http::ConnectionType::Close);
    if matches!(refusal, Refusal::BadRequest(_)) {
        let version = HeaderValue::from_static("13");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
    }
    response
}

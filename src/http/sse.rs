//! `GET /sse/notifications`: the same connection as Server-Sent Events.
//!
//! A browser's EventSource comes back by itself from a stream that ended, and never from any other
//! answer. So what will be better later is said in a stream of one goodbye, and only what
//! trying again cannot mend is a status.

use std::rc::Rc;

use actix_http::{
    ConnectionType, Response, Version,
    body::BodySize,
    h1::{Codec, Message},
};
use actix_web::{HttpRequest, HttpResponse, body::MessageBody, http::header, web};
use bytes::BytesMut;
use rand::Rng as _;
use tokio_util::codec::Encoder as _;

use super::{
    admission::{self, Admitted, Refusal},
    arrival::{arrive, outbox},
    cors,
    public::Worker,
};
use crate::{
    auth::origin::Verdict,
    connection::{
        sse::{self, Body, Silence},
        stream::Stream,
    },
    event::CloseCause,
    net::Link,
    outbox::Outbox,
    telemetry::Transport,
};

/// What a page may send that reads a stream by other means than EventSource.
const HEADERS: &str = "Authorization, Cache-Control, Last-Event-ID";

/// `OPTIONS /sse/notifications`
pub(super) async fn preflight(request: HttpRequest, worker: web::Data<Worker>) -> HttpResponse {
    cors::preflight(request.headers(), &worker.state.origins, "GET, OPTIONS", HEADERS)
}

/// `GET /sse/notifications`
pub(super) async fn notifications(request: HttpRequest, worker: web::Data<Worker>) -> HttpResponse {
    let state = &worker.state;
    if worker.takes_sockets
        && let Some(link) = request.conn_data::<Link>()
    {
        link.written().await;
    }
    let allowed = state.origins.check(request.headers()) == Verdict::Allowed;
    let complete = |mut response: HttpResponse| {
        // After the end of a stream its client comes back by another connection: this one has no
        // more requests, and what still comes on it is not read as one.
        response.head_mut().set_connection_type(ConnectionType::Close);
        cors::grant(&mut response, request.headers(), allowed);
        response
    };
    let answer = match admission::admit(request.head(), state, Transport::Sse).await {
        Ok(admitted) => accept(&request, &worker, admitted, complete),
        Err(refused) => Err(refused.refusal),
    };
    answer.unwrap_or_else(|refusal| {
        let (method, result) = refusal.result();
        state.metrics.connect(Transport::Sse, method, result);
        complete(refuse(&refusal, state.explain))
    })
}

fn accept(
    request: &HttpRequest,
    worker: &Worker,
    admitted: Admitted,
    complete: impl Fn(HttpResponse) -> HttpResponse,
) -> Result<HttpResponse, Refusal> {
    let Some(link) = request.conn_data::<Link>().cloned() else {
        return Err(Refusal::BadRequest("this connection cannot bear a stream"));
    };
    let outbox = outbox(worker);
    // HTTP/1.0 knows no chunks: its stream ends with the connection (RFC 9112 §6.1).
    let chunks = request.head().version >= Version::HTTP_11;
    if chunks && worker.takes_sockets {
        return take(worker, admitted, outbox, &link, complete(stream(())));
    }
    let mut response = complete(stream(Body::new(Rc::clone(&outbox), link.clone())));
    response.head_mut().no_chunking(!chunks);
    let connection = arrive(worker, admitted, Transport::Sse, outbox, link, Silence);
    actix_rt::spawn(connection.run());
    Ok(response)
}

/// Goes on with the socket alone, and answers by itself. What is returned goes nowhere.
fn take(
    worker: &Worker,
    admitted: Admitted,
    outbox: Rc<Outbox>,
    link: &Link,
    response: HttpResponse,
) -> Result<HttpResponse, Refusal> {
    let (mut codec, mut head) = (Codec::new(worker.http.clone()), BytesMut::new());
    let response = Response::from(response).drop_body();
    let written = codec.encode(Message::Item((response, BodySize::Stream)), &mut head);
    let (Ok(()), Some(socket)) = (written, link.take()) else {
        return Err(Refusal::BadRequest("this connection is closed"));
    };
    let scratch = Rc::clone(&worker.scratch);
    let stream = Stream::new(socket, Rc::clone(&outbox), head, codec, scratch);
    let connection = arrive(worker, admitted, Transport::Sse, outbox, link.clone(), stream);
    link.hand_over(connection.run());
    Ok(HttpResponse::Ok().finish())
}

fn refuse(refusal: &Refusal, explain: bool) -> HttpResponse {
    if let Some((cause, seconds)) = refusal.retry() {
        return stream(sse::goodbye(cause, spread(cause, seconds)));
    }
    let problem = refusal.problem();
    match refusal.advice().filter(|_| explain) {
        Some(advice) => problem.detail(advice).response(),
        None => problem.response(),
    }
}

/// Milliseconds around these seconds, so that those who were refused together do not return
/// together. Tabs of one user too many are few, and have to wait for all of it.
fn spread(cause: CloseCause, seconds: u32) -> u64 {
    let middle = u64::from(seconds) * 1000;
    match cause {
        CloseCause::TooMany => middle,
        _ => rand::rng().random_range(middle / 2..middle * 3 / 2),
    }
}

fn stream(body: impl MessageBody + 'static) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CONTENT_TYPE, "text/event-stream"));
    // Who compresses on the way also collects (RFC 9111 §5.2.2.6).
    response.insert_header((header::CACHE_CONTROL, "no-store, no-transform"));
    // nginx and those who follow it would collect a stream before they pass it on.
    response.insert_header(("x-accel-buffering", "no"));
    response.body(body)
}

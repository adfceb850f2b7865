//! Upgrades on a plain listener: the socket is taken over from HTTP, and with it every request that
//! asks for WebSocket, whatever its path and method. What `upgrade` is to actix-ws.

use std::{convert::Infallible, future::poll_fn, rc::Rc, sync::Arc, task::Poll, time::Duration};

use actix_codec::{Framed, FramedParts};
use actix_http::{
    ConnectionType, Request, RequestHead, Response,
    body::{BodySize, MessageBody},
    h1::{Codec, Message},
    header,
    ws::handshake,
};
use actix_service::{ServiceFactory, fn_service};
use actix_web::{HttpResponse, http::Method, web};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::{io::ReadBuf, time::timeout};
use tokio_util::codec::Encoder as _;

use super::{
    admission::{self, Admitted, Refusal, Refused},
    arrival::{arrive, outbox},
    not_allowed,
    problem::{Kind, Problem},
    public::{SSE, TICKETS, WEBSOCKET, Worker},
    upgrade::{count, respond},
};
use crate::{
    connection::{self, Inbound as _, PROTOCOL, direct::Direct},
    frame::Frame,
    net::{Link, Taken},
    outbox::Outbox,
    telemetry::Transport,
    tls::Stream,
};

/// How long a refused client has to read why.
const LINGER: Duration = Duration::from_secs(2);
/// Room for the head of an answer that upgrades.
const HEAD_BYTES: usize = 256;

/// What actix-http hands upgrades to. The connection goes on in the task that its socket has anyway,
/// once HTTP has let go of it.
pub(super) fn takeover(
    worker: web::Data<Worker>,
    base_path: String,
) -> impl ServiceFactory<
    (Request, Framed<Stream, Codec>),
    Config = (),
    Response = (),
    Error = Infallible,
    InitError = (),
> {
    let base_path: Rc<str> = base_path.into();
    fn_service(move |(request, framed): (Request, Framed<Stream, Codec>)| {
        open(worker.clone(), Rc::clone(&base_path), request, framed).map(Ok)
    })
}

/// A request and the socket that it came on.
struct Asked {
    request: Request,
    socket: Taken,
    link: Link,
    codec: Codec,
    early: BytesMut,
    /// Answers to requests that came before it on this connection, not written yet.
    earlier: BytesMut,
}

async fn open(
    worker: web::Data<Worker>,
    base_path: Rc<str>,
    request: Request,
    framed: Framed<Stream, Codec>,
) {
    let FramedParts { io, codec, read_buf: early, write_buf: earlier, .. } = framed.into_parts();
    let link = io.link();
    let Some(socket) = link.take() else { return };
    let asked = Asked { request, socket, link, codec, early, earlier };
    if let Some(response) = misses(asked.request.head(), &base_path) {
        return answer(asked, &worker, response).await;
    }
    let admitted = tokio::select! {
        biased;
        admitted = admission::admit(asked.request.head(), &worker.state, Transport::WebSocket) => admitted,
        () = gone(&asked.socket) => return,
    };
    match admitted {
        Ok(admitted) => accept(asked, &worker, admitted).await,
        Err(refused) => refuse(asked, &worker, refused).await,
    }
}

/// What a request is answered that is not for the route of WebSocket.
fn misses(head: &RequestHead, base_path: &str) -> Option<HttpResponse> {
    let path = head.uri.path().strip_prefix(base_path).unwrap_or_default();
    if path == WEBSOCKET {
        (head.method != Method::GET).then(|| not_allowed("GET"))
    } else if path == SSE || path == TICKETS {
        let detail = "only /ws/notifications can be upgraded";
        Some(Problem::new(Kind::BadRequest).detail(detail).response())
    } else {
        Some(Problem::new(Kind::NotFound).response())
    }
}

/// Waits until the client has closed, as long as it has sent nothing more: whoever has left does not
/// take the turn of one who waits.
async fn gone(socket: &Taken) {
    poll_fn(|cx| {
        let mut byte = [0];
        match socket.tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Ok(1..)) | Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
        }
    })
    .await;
}

async fn accept(mut asked: Asked, worker: &Worker, admitted: Admitted) {
    let Some(head) = switching(&mut asked) else {
        let refusal = Refusal::BadRequest("this is not a valid WebSocket upgrade");
        count(worker, &refusal);
        return answer(asked, worker, respond(&refusal)).await;
    };
    let outbox = outbox(worker);
    outbox.deliver(&head);
    let link = asked.link.clone();
    let inbound = direct(asked, worker, Rc::clone(&outbox));
    let transport = Transport::WebSocket;
    let connection = arrive(worker, admitted, transport, outbox, link.clone(), inbound);
    link.hand_over(connection.run());
}

/// Answers with a status where a program reads it, and with an upgrade and a close code where only
/// that reaches a page's script.
async fn refuse(mut asked: Asked, worker: &Worker, Refused { refusal, pass }: Refused) {
    count(worker, &refusal);
    let state = &worker.state;
    if let Some(cause) = refusal.close_code(state)
        && let Ok(farewell) = Arc::clone(&state.farewells).try_acquire_owned()
        && let Some(head) = switching(&mut asked)
    {
        let outbox = outbox(worker);
        outbox.deliver(&head);
        let link = asked.link.clone();
        let inbound = direct(asked, worker, Rc::clone(&outbox));
        connection::reject(inbound, outbox, link, cause, refusal.detail()).await;
        drop((farewell, pass));
    } else {
        answer(asked, worker, respond(&refusal)).await;
    }
}

/// The head of the answer that upgrades; `None` if the request is no valid upgrade, or no head can
/// be written, which admission has found out before.
fn switching(asked: &mut Asked) -> Option<Frame> {
    let head = asked.request.head();
    let mut response = handshake(head).ok()?;
    let offers = head.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offers.filter_map(|offer| offer.to_str().ok()).flat_map(|s| s.split(','));
    if offered.any(|name| name.trim() == PROTOCOL) {
        response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL));
    }
    let mut wire = std::mem::take(&mut asked.earlier);
    wire.reserve(HEAD_BYTES);
    let message = Message::Item((response.finish().drop_body(), BodySize::None));
    asked.codec.encode(message, &mut wire).ok()?;
    Some(Frame::head(wire))
}

fn direct(asked: Asked, worker: &Worker, outbox: Rc<Outbox>) -> Direct {
    let Asked { socket, early, .. } = asked;
    let scratch = Rc::clone(&worker.scratch);
    Direct::new(socket, &early, outbox, worker.state.inbound_bytes, scratch)
}

/// Writes an answer that is no upgrade, and closes.
async fn answer(mut asked: Asked, worker: &Worker, response: HttpResponse) {
    let mut wire = std::mem::take(&mut asked.earlier);
    if encode(&mut asked.codec, response, &mut wire).is_err() {
        return;
    }
    let outbox = outbox(worker);
    let mut socket = direct(asked, worker, Rc::clone(&outbox));
    outbox.finish([Frame::head(wire)], false);
    outbox.end();
    // Whatever the client sent after its head is not HTTP; it is read, so that the answer is too.
    if timeout(LINGER, socket.close(true)).await.is_err() {
        tracing::debug!("a refused client does not close");
    }
}

fn encode(codec: &mut Codec, response: HttpResponse, wire: &mut BytesMut) -> std::io::Result<()> {
    let mut response: Response<_> = response.into();
    response.head_mut().set_connection_type(ConnectionType::Close);
    // What refuses is written at once, not streamed.
    let mut body = Bytes::new();
    let response = response.map_body(|_, whole| body = whole.try_into_bytes().unwrap_or_default());
    let size = BodySize::Sized(body.len() as u64);
    wire.reserve(HEAD_BYTES + body.len());
    codec.encode(Message::Item((response, size)), wire)?;
    codec.encode(Message::Chunk(Some(body)), wire)?;
    codec.encode(Message::Chunk(None), wire)
}

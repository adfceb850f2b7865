//! WebSocket over actix-ws, and the only file that touches it.
//!
//! actix-ws does the handshake and decodes what the client sends. What the server sends goes its
//! own lane: [`Body`] reads the connection's outbox, whose frames are encoded once and shared.
//! Control frames take the same lane, so that a close never overtakes what is queued before it.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_http::{
    body::{BodySize, BoxBody, MessageBody},
    error::PayloadError,
};
use actix_web::{FromRequest as _, HttpRequest, HttpResponse, dev, web};
use actix_ws::{Message, MessageStream};
use bytes::Bytes;
use futures_core::Stream;

use super::{
    Inbound, PROTOCOL, Received,
    guard::Guard,
    incoming::{Pieces, cause},
};
use crate::outbox::Outbox;

/// Completes the handshake. The response must be returned to actix, and the inbound side read by
/// a connection's actor.
///
/// # Errors
/// When the request is no valid upgrade (RFC 6455 §4.2.1).
pub async fn upgrade(
    request: &HttpRequest,
    payload: web::Payload,
    outbox: Rc<Outbox>,
    inbound_bytes: usize,
) -> Result<(HttpResponse, WebSocket), actix_web::Error> {
    let guard = Guard::new(payload.into_inner(), inbound_bytes);
    let boxed: Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>>>> = Box::pin(guard);
    let mut guarded = dev::Payload::Stream { payload: boxed };
    let payload = web::Payload::from_request(request, &mut guarded).await?;
    // The session's own lane stays empty; its body is kept because its end tells the stream that
    // the connection is gone.
    let (response, _session, stream) =
        actix_ws::handle_with_protocols(request, payload, &[PROTOCOL])?;
    let response = response.map_body(|_, control| BoxBody::new(Body { outbox, _control: control }));
    let stream = stream.max_frame_size(inbound_bytes);
    Ok((response, WebSocket { stream: Some(stream), pieces: Pieces::new(inbound_bytes) }))
}

/// The outgoing side: what actix-http writes to the socket. It is asked until the socket's buffer
/// is full or nothing is queued, so a burst becomes one write.
struct Body {
    outbox: Rc<Outbox>,
    _control: BoxBody,
}

impl MessageBody for Body {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.outbox.poll_frame(cx).map(|frame| frame.map(|frame| Ok(frame.wire().clone())))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.outbox.socket_gone();
    }
}

/// The incoming side.
pub struct WebSocket {
    /// `None` after the first error: the stream would go on, but what follows means nothing.
    stream: Option<MessageStream>,
    pieces: Pieces,
}

impl Inbound for WebSocket {
    async fn next(&mut self) -> Option<Received> {
        loop {
            let stream = self.stream.as_mut()?;
            let message = poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await;
            let received = match message? {
                Ok(Message::Text(text)) => Ok(Some(Received::Text(text.into_bytes()))),
                Ok(Message::Binary(_)) => Ok(Some(Received::Binary)),
                Ok(Message::Ping(payload)) => Ok(Some(Received::Ping(payload))),
                Ok(Message::Pong(_) | Message::Nop) => Ok(Some(Received::Pong)),
                Ok(Message::Close(reason)) => {
                    Ok(Some(Received::Close(reason.map(|reason| reason.code.into()))))
                }
                Ok(Message::Continuation(item)) => self.pieces.add(item),
                Err(error) => Err(cause(&error)),
            };
            match received {
                Ok(Some(received)) => return Some(received),
                Ok(None) => {}
                Err(cause) => {
                    self.stream = None;
                    return Some(Received::Fault(cause));
                }
            }
        }
    }
}

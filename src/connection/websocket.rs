//! WebSocket over actix-ws, and the only file that touches it.
//!
//! actix-ws does the handshake and decodes what the client sends. What the server sends goes its
//! own lane: [`Body`] reads the connection's outbox, whose frames are encoded once and shared.
//! Control frames take the same lane, so that a close never overtakes what is queued before it.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    str::Utf8Error,
    task::{Context, Poll},
};

use actix_http::{
    body::{BodySize, BoxBody, MessageBody},
    error::PayloadError,
    ws::{Item, ProtocolError},
};
use actix_web::{FromRequest as _, HttpRequest, HttpResponse, dev, web};
use actix_ws::{Message, MessageStream};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;

use super::{Inbound, Received, guard::Guard};
use crate::{event::CloseCause, outbox::Outbox};

/// The subprotocol that the server answers with (contract §2).
const PROTOCOL: &str = "belfry.v1";

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
    let pieces = Pieces { max: inbound_bytes, started: None, cost: 0 };
    Ok((response, WebSocket { stream: Some(stream), pieces }))
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
        self.outbox.poll_frame(cx).map(|frame| frame.map(|frame| Ok(frame.into_wire())))
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

/// The message whose pieces are coming in.
struct Pieces {
    max: usize,
    started: Option<(Kind, BytesMut)>,
    /// Every piece counts as at least one byte, so that empty ones cannot go on for ever.
    cost: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Binary,
}

impl Pieces {
    fn add(&mut self, item: Item) -> Result<Option<Received>, CloseCause> {
        let (piece, last) = match item {
            Item::FirstText(piece) => {
                self.started = Some((Kind::Text, BytesMut::new()));
                self.cost = 0;
                (piece, false)
            }
            Item::FirstBinary(piece) => {
                self.started = Some((Kind::Binary, BytesMut::new()));
                self.cost = 0;
                (piece, false)
            }
            Item::Continue(piece) => (piece, false),
            Item::Last(piece) => (piece, true),
        };
        let Some((kind, buffer)) = &mut self.started else { return Err(CloseCause::Protocol) };
        self.cost += piece.len().max(1);
        // An empty last piece is no more message than there was.
        if self.cost > self.max + usize::from(last) || buffer.len() + piece.len() > self.max {
            return Err(CloseCause::TooBig);
        }
        buffer.extend_from_slice(&piece);
        if !last {
            return Ok(Some(Received::Piece));
        }
        let (kind, whole) = (*kind, std::mem::take(buffer).freeze());
        self.started = None;
        match kind {
            Kind::Text if std::str::from_utf8(&whole).is_err() => Err(CloseCause::Encoding),
            Kind::Text => Ok(Some(Received::Text(whole))),
            Kind::Binary => Ok(Some(Received::Binary)),
        }
    }
}

/// Which close code an error of the stream deserves. They are untyped in part: the guard's come
/// wrapped as I/O errors, and so does text that is not UTF-8 (actix/actix-web#4217).
fn cause(error: &ProtocolError) -> CloseCause {
    match error {
        ProtocolError::Overflow => CloseCause::TooBig,
        ProtocolError::Io(error) => io_cause(error),
        _ => CloseCause::Protocol,
    }
}

fn io_cause(error: &io::Error) -> CloseCause {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<PayloadError>()) {
        Some(PayloadError::Overflow) => return CloseCause::TooBig,
        Some(PayloadError::EncodingCorrupted) => return CloseCause::Protocol,
        Some(_) => return CloseCause::Gone,
        None => {}
    }
    if inner.and_then(|inner| inner.downcast_ref::<Utf8Error>()).is_some() {
        CloseCause::Encoding
    } else if error.kind() == io::ErrorKind::InvalidData {
        CloseCause::Protocol
    } else {
        CloseCause::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(max: usize) -> Pieces {
        Pieces { max, started: None, cost: 0 }
    }

    fn bytes(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    #[test]
    fn pieces_join_up_to_the_limit() {
        let mut pieces = pieces(10);
        assert!(pieces.add(Item::FirstText(bytes(5))).is_ok());
        assert!(
            matches!(pieces.add(Item::Last(bytes(5))), Ok(Some(Received::Text(t))) if t.len() == 10)
        );
        assert!(pieces.add(Item::FirstText(bytes(5))).is_ok());
        assert_eq!(pieces.add(Item::Last(bytes(6))).err(), Some(CloseCause::TooBig));
    }

    #[test]
    fn empty_pieces_come_to_an_end() {
        let mut pieces = pieces(100);
        assert!(pieces.add(Item::FirstBinary(bytes(0))).is_ok());
        let end = (0..200).find_map(|n| pieces.add(Item::Continue(bytes(0))).err().map(|e| (n, e)));
        assert_eq!(end, Some((99, CloseCause::TooBig)));
    }

    #[test]
    fn utf8_is_judged_over_the_whole_message() {
        let mut pieces = pieces(100);
        let (head, tail) = "ä€".as_bytes().split_at(3);
        assert!(pieces.add(Item::FirstText(Bytes::copy_from_slice(head))).is_ok());
        assert!(pieces.add(Item::Last(Bytes::copy_from_slice(tail))).is_ok());
        assert!(pieces.add(Item::FirstText(Bytes::copy_from_slice(head))).is_ok());
        assert_eq!(pieces.add(Item::Last(bytes(1))).err(), Some(CloseCause::Encoding));
    }

    #[test]
    fn errors_have_their_codes() {
        let utf8 = String::from_utf8(vec![0xff]).unwrap_err().utf8_error();
        for (error, expected) in [
            (
                ProtocolError::Io(io::Error::new(io::ErrorKind::InvalidData, utf8)),
                CloseCause::Encoding,
            ),
            (
                ProtocolError::Io(io::Error::new(io::ErrorKind::InvalidData, "bits")),
                CloseCause::Protocol,
            ),
            (ProtocolError::Io(io::Error::other(PayloadError::Overflow)), CloseCause::TooBig),
            (ProtocolError::Io(io::Error::other(PayloadError::Incomplete(None))), CloseCause::Gone),
            (ProtocolError::UnmaskedFrame, CloseCause::Protocol),
        ] {
            assert_eq!(cause(&error), expected, "{error:?}");
        }
    }
}

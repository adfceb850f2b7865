//! WebSocket over a socket that was taken over from HTTP at the upgrade.
//!
//! actix-http keeps two buffers and a dispatcher for every connection as long as it lives, which is
//! most of what an idle WebSocket costs. Here nothing stays but the socket: what comes in is read
//! through one buffer of the worker and decoded by actix's codec, and what goes out is written by
//! whoever queues it (see [`Outbox::flush`]).

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_http::ws::{Codec, Frame};
use actix_rt::net::TcpStream;
use bytes::BytesMut;
use tokio::task::coop::poll_proceed;
use tokio_util::codec::Decoder as _;

use super::{
    Inbound, Received,
    guard::Headers,
    incoming::{Pieces, cause},
    scratch::Scratch,
};
use crate::{
    event::CloseCause,
    net::Taken,
    outbox::{Flushed, Outbox, Sink},
};

impl Sink for TcpStream {
    fn try_write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        match bytes {
            [one] => Self::try_write(self, one),
            many => self.try_write_vectored(many),
        }
    }
}

/// A connection's socket.
pub struct Direct {
    socket: Taken,
    outbox: Rc<Outbox>,
    codec: Codec,
    guard: Headers,
    pieces: Pieces,
    /// Read, and not decoded yet.
    rest: BytesMut,
    scratch: Rc<Scratch>,
    /// What was wrong with what came early.
    fault: Option<CloseCause>,
    /// After the first fault what follows means nothing.
    over: bool,
}

impl Direct {
    /// Takes a socket over whose request is answered by what is queued in the outbox. `early` are
    /// bytes that came after the request.
    #[must_use]
    pub fn new(
        socket: Taken,
        early: &[u8],
        outbox: Rc<Outbox>,
        inbound_bytes: usize,
        scratch: Rc<Scratch>,
    ) -> Self {
        outbox.attach(Rc::clone(&socket.tcp) as Rc<dyn Sink>);
        let mut guard = Headers::new(inbound_bytes);
        let fault = guard.follow(early).err().map(CloseCause::from);
        Self {
            socket,
            outbox,
            codec: Codec::new().max_size(inbound_bytes),
            guard,
            pieces: Pieces::new(inbound_bytes),
            rest: BytesMut::from(early),
            scratch,
            fault,
            over: false,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        if self.over {
            return Poll::Ready(None);
        }
        let received = loop {
            if self.socket.is_reset() || self.poll_write(cx).is_err() {
                break Err(CloseCause::Gone);
            }
            if let Some(cause) = self.fault.take() {
                break Err(cause);
            }
            // A thousand small messages fit into one read: others of this worker have their turns
            // between them.
            ready!(poll_proceed(cx)).made_progress();
            let mut rest = std::mem::take(&mut self.rest);
            let decoded = self.decode(&mut rest);
            if !rest.is_empty() {
                self.rest = rest;
            }
            match decoded {
                Ok(Some(received)) => break Ok(received),
                Ok(None) => {}
                Err(cause) => break Err(cause),
            }
            match ready!(self.poll_read(cx)) {
                Ok(Some(received)) => break Ok(received),
                Ok(None) => {}
                Err(cause) => break Err(cause),
            }
        };
        Poll::Ready(Some(received.unwrap_or_else(|cause| {
            self.over = true;
            Received::Fault(cause)
        })))
    }

    /// Writes what is queued. `Ready` when the connection has ended and all is written.
    fn poll_write(&self, cx: &mut Context<'_>) -> Result<Poll<()>, io::Error> {
        loop {
            match self.outbox.poll_flush(cx) {
                Flushed::Empty => return Ok(Poll::Pending),
                Flushed::Ended => return Ok(Poll::Ready(())),
                Flushed::Broken(error) => return Err(error),
                Flushed::Blocked => match self.socket.tcp.poll_write_ready(cx)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => return Ok(Poll::Pending),
                },
            }
        }
    }

    /// Reads once, and decodes the first message of it.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Received>, CloseCause>> {
        let Ok(mut buffer) = ready!(self.scratch.poll_read(&self.socket.tcp, cx)) else {
            return Poll::Ready(Err(CloseCause::Gone));
        };
        if buffer.is_empty() {
            self.scratch.give_back(buffer);
            return Poll::Ready(Err(CloseCause::Gone));
        }
        let mut received = self.guard.follow(&buffer).map_err(CloseCause::from).map(|()| None);
        if received.is_ok() {
            if self.rest.is_empty() {
                received = self.decode(&mut buffer);
            }
            self.rest.extend_from_slice(&buffer);
        }
        self.scratch.give_back(buffer);
        Poll::Ready(received)
    }

    /// The next message in these bytes.
    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Received>, CloseCause> {
        while !bytes.is_empty() {
            let Some(frame) = self.codec.decode(bytes).map_err(|error| cause(&error))? else {
                return Ok(None);
            };
            let received = match frame {
                Frame::Text(text) if std::str::from_utf8(&text).is_err() => {
                    return Err(CloseCause::Encoding);
                }
                Frame::Text(text) => Some(Received::Text(text)),
                Frame::Binary(_) => Some(Received::Binary),
                Frame::Continuation(item) => self.pieces.add(item)?,
                Frame::Ping(payload) => Some(Received::Ping(payload)),
                Frame::Pong(_) => Some(Received::Pong),
                Frame::Close(reason) => {
                    Some(Received::Close(reason.map(|reason| reason.code.into())))
                }
            };
            if received.is_some() {
                return Ok(received);
            }
        }
        Ok(None)
    }
}

impl Inbound for Direct {
    fn next(&mut self) -> impl Future<Output = Option<Received>> {
        poll_fn(|cx| self.poll_next(cx))
    }

    async fn close(&mut self, linger: bool) {
        let written = poll_fn(|cx| match self.poll_write(cx) {
            Ok(written) => written.map(Ok),
            Err(error) => Poll::Ready(Err(error)),
        });
        if written.await.is_err() || !linger {
            return;
        }
        self.scratch.hang_up(&self.socket.tcp, &mut { usize::MAX }).await;
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.outbox.socket_gone();
    }
}

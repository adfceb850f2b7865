//! Server-Sent Events over a socket that was taken from HTTP, for the same reason as
//! [`direct`](super::direct): the response's dispatcher and buffers are most of what an idle stream
//! costs.
//!
//! What a stream says depends on where its client stands, so it is written by its own task.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::h1::{Codec, Message};
use bytes::{Buf as _, BytesMut};
use tokio::time::timeout;
use tokio_util::codec::Encoder as _;

use super::{
    Inbound, Received,
    scratch::Scratch,
    sse::{CHUNK, Writer},
};
use crate::{event::CloseCause, net::Taken, outbox::Outbox};

/// A client has no more to say than its request; what it sends beyond that is read and discarded, so
/// that its end is seen. This much, and it is cut off.
const CHATTER: usize = 64 * 1024;

/// How long a client has to close its side, once all is written and ours is closed. What is still on
/// its way does not need us.
const LINGER: Duration = Duration::from_secs(1);

/// A stream's socket.
pub struct Stream {
    socket: Taken,
    outbox: Rc<Outbox>,
    writer: Writer,
    /// Has written the head of the answer, and knows how its body is framed.
    codec: Codec,
    /// Encoded, and not written yet.
    waiting: BytesMut,
    ended: bool,
    chatter: usize,
    scratch: Rc<Scratch>,
}

impl Stream {
    /// A stream that goes on after the head of its answer, which this codec has encoded.
    #[must_use]
    pub fn new(
        socket: Taken,
        outbox: Rc<Outbox>,
        head: BytesMut,
        codec: Codec,
        scratch: Rc<Scratch>,
    ) -> Self {
        let (writer, waiting) = (Writer::begin(), head);
        Self { socket, outbox, writer, codec, waiting, ended: false, chatter: CHATTER, scratch }
    }

    /// Writes what is queued. `Ready` when the connection has ended and all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        loop {
            while !self.waiting.is_empty() {
                match self.socket.tcp.try_write(&self.waiting) {
                    Ok(written) => self.waiting.advance(written),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(self.socket.tcp.poll_write_ready(cx))?;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            // An idle stream keeps no memory of what it said.
            self.waiting = BytesMut::new();
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Encodes what is queued, up to a chunk.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK {
            match self.outbox.poll_frame(cx) {
                Poll::Ready(Some(frame)) => self.writer.write(&frame, &mut chunk),
                Poll::Ready(None) => {
                    self.ended = true;
                    break;
                }
                Poll::Pending if chunk.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if !chunk.is_empty() {
            self.codec.encode(Message::Chunk(Some(chunk.freeze())), &mut self.waiting)?;
        }
        if self.ended {
            self.codec.encode(Message::Chunk(None), &mut self.waiting)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        if let Poll::Ready(Err(_)) = self.poll_write(cx) {
            return Poll::Ready(Some(Received::Fault(CloseCause::Gone)));
        }
        let scratch = Rc::clone(&self.scratch);
        ready!(scratch.poll_discard(&self.socket.tcp, &mut self.chatter, cx));
        Poll::Ready(Some(Received::Fault(CloseCause::Gone)))
    }
}

impl Inbound for Stream {
    const SPEAKS: bool = false;

    fn next(&mut self) -> impl Future<Output = Option<Received>> {
        poll_fn(|cx| self.poll_next(cx))
    }

    async fn close(&mut self, _linger: bool) {
        let written = poll_fn(|cx| self.poll_write(cx)).await;
        if written.is_err() {
            return;
        }
        let closed = self.scratch.hang_up(&self.socket.tcp, &mut self.chatter);
        if timeout(LINGER, closed).await.is_err() {
            tracing::debug!("a client does not close a stream that has ended");
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.outbox.socket_gone();
    }
}

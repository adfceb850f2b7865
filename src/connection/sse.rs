//! Server-Sent Events (WHATWG HTML, §9.2), written from the same frames as WebSocket.
//!
//! What differs: the stream itself says in `id:` where its client stands, since a browser's
//! EventSource keeps nothing else; it says in `retry:` when to come back; and its client cannot
//! answer.

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::pending,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_http::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use rand::Rng as _;

use super::{Inbound, Received};
use crate::{
    event::{CloseCause, Cursor},
    frame::{self, Frame},
    net::Link,
    outbox::Outbox,
};

/// What waits is joined up to this length, as much as actix writes at once.
pub(super) const CHUNK: usize = 32 * 1024;
/// When a client comes back whose stream ended without a word, in milliseconds; spread, so that
/// those who lost their streams together do not come back together.
const RETRY_MS: std::ops::Range<u64> = 1000..3000;
/// A line with a field, without its value.
const FIELD: usize = "retry: ".len() + 1;
/// A stream is looked at when there is something to write, or the peer has read, or sent something.
/// So often in a row for nothing, and the peer is sending what nobody reads: once actix has buffered
/// enough of that, it would look without a pause.
const IN_VAIN: u32 = 1024;

/// The incoming side: nothing ever comes. That the client is gone shows in [`Body`], which is
/// dropped with the socket.
pub struct Silence;

impl Inbound for Silence {
    const SPEAKS: bool = false;

    fn next(&mut self) -> impl Future<Output = Option<Received>> {
        pending()
    }
}

/// The outgoing side: the body of the answer.
pub struct Body {
    outbox: Rc<Outbox>,
    link: Link,
    writer: Writer,
    in_vain: u32,
}

impl Body {
    /// A body that ends with its outbox.
    #[must_use]
    pub fn new(outbox: Rc<Outbox>, link: Link) -> Self {
        Self { outbox, link, writer: Writer::begin(), in_vain: 0 }
    }
}

impl MessageBody for Body {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK {
            match self.outbox.poll_frame(cx) {
                Poll::Ready(Some(frame)) => self.writer.write(&frame, &mut chunk),
                // The end is found again once all is written.
                Poll::Ready(None) if chunk.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if !chunk.is_empty() {
            self.in_vain = 0;
            return Poll::Ready(Some(Ok(chunk.freeze())));
        }
        self.in_vain += 1;
        if self.in_vain > IN_VAIN {
            self.link.reset();
            // actix does not read while its buffer is full, and only finds the socket cut by writing.
            return Poll::Ready(Some(Ok(Bytes::from_static(b":\n"))));
        }
        Poll::Pending
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.outbox.socket_gone();
    }
}

/// A whole stream that says no more than why there is none, and when to come back.
#[must_use]
pub fn goodbye(cause: CloseCause, retry_after_ms: u64) -> Bytes {
    let [goodbye, _close] = frame::farewell(cause, Some(retry_after_ms), None);
    let mut stream = BytesMut::new();
    Writer::default().write(&goodbye, &mut stream);
    stream.freeze()
}

/// Makes messages of frames.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Where the client stands.
    cursor: Cursor,
    /// To be said before the next message, in milliseconds.
    retry: Option<u64>,
}

impl Writer {
    /// For the beginning of a stream.
    pub(super) fn begin() -> Self {
        Self { retry: Some(rand::rng().random_range(RETRY_MS)), ..Self::default() }
    }

    pub(super) fn write(&mut self, frame: &Frame, stream: &mut BytesMut) {
        // Pongs and closes are WebSocket's own.
        let Some(json) = frame.json() else { return };
        if let Some(retry) = frame.retry_ms().or(self.retry.take()) {
            line(stream, "retry", format_args!("{retry}"));
        }
        if let Some(cursor) = frame.cursor() {
            self.cursor = cursor.clone();
        }
        if let Some(mark) = frame.mark() {
            self.cursor.set(mark.tag.clone(), mark.at);
        }
        let moved = frame.cursor().is_some() || frame.mark().is_some();
        // An empty id would make a browser forget where it stands.
        if moved && !self.cursor.is_empty() {
            line(stream, "id", format_args!("{}", self.cursor));
        }
        // Line breaks in JSON stand between its members only, never in a string, so those that are
        // empty can go, and what is left is one line of data each.
        for text in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
            if !text.is_empty() {
                stream.reserve(text.len() + FIELD);
                stream.extend_from_slice(b"data: ");
                stream.extend_from_slice(text);
                stream.extend_from_slice(b"\n");
            }
        }
        stream.extend_from_slice(b"\n");
    }
}

fn line(stream: &mut BytesMut, field: &str, value: std::fmt::Arguments<'_>) {
    // A buffer that grows takes whatever is written to it.
    if writeln!(stream, "{field}: {value}").is_err() {
        tracing::error!(field, "a line of a stream could not be written");
    }
}

#[cfg(test)]
mod tests;

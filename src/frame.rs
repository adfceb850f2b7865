//! Frames for browsers, encoded once and shared by every connection they go to.
//!
//! That is possible because a server's WebSocket frames are not masked (RFC 6455 §5.1) and no
//! extension is negotiated: the bytes are the same for everyone.

use std::sync::Arc;

use actix_http::ws::{CloseCode, CloseReason, OpCode, Parser};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::time::Instant;

use crate::event::{CloseCause, Cursor, Group, Position, Tag};

/// Room for the longest header of a server frame: two bytes and a 64-bit length.
const HEADER_BYTES: usize = 10;
/// A browser's EventSource always comes back from the end of a stream. Where it should stay away, it
/// is asked to do so in a day.
const STAY_AWAY_MS: u64 = 24 * 60 * 60 * 1000;

/// One or more encoded WebSocket frames, ready for the socket. Cloning shares the bytes; a queue
/// holds one pointer for each.
#[derive(Clone, Debug)]
pub struct Frame(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    wire: Bytes,
    received: Option<Instant>,
    mark: Option<Mark>,
    cursor: Option<Arc<Cursor>>,
    retry_ms: Option<u64>,
}

/// Where a client stands in a channel once it has a frame: SSE writes it into the `id:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which channel.
    pub tag: Tag,
    /// Up to where.
    pub at: Position,
}

impl Frame {
    fn plain(wire: BytesMut) -> Self {
        let wire = wire.freeze();
        Self(Arc::new(Inner { wire, received: None, mark: None, cursor: None, retry_ms: None }))
    }

    /// The same with a change; what is shared already is copied first.
    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Bytes that go before every frame: the head of the answer to an upgrade.
    #[must_use]
    pub fn head(wire: BytesMut) -> Self {
        Self::plain(wire)
    }

    /// A text frame with this JSON.
    #[must_use]
    pub fn text(json: &str) -> Self {
        let mut wire = BytesMut::with_capacity(json.len() + HEADER_BYTES);
        Parser::write_message(&mut wire, json, OpCode::Text, true, false);
        Self::plain(wire)
    }

    /// An event that reached this replica at `received`, which delivery times count from.
    #[must_use]
    pub fn event(json: &str, received: Instant) -> Self {
        Self::text(json).with(|inner| inner.received = Some(received))
    }

    /// After this frame its client stands here.
    #[must_use]
    pub fn at(self, mark: Mark) -> Self {
        self.with(|inner| inner.mark = Some(mark))
    }

    /// After this frame its client stands here, in all its channels.
    #[must_use]
    pub fn resets(self, cursor: Cursor) -> Self {
        self.with(|inner| inner.cursor = Some(Arc::new(cursor)))
    }

    /// Where its client stands in all its channels after it; `None` for frames that do not say so.
    #[must_use]
    pub fn cursor(&self) -> Option<&Cursor> {
        self.0.cursor.as_deref()
    }

    /// When its client is to come back, in milliseconds; only a goodbye says so. SSE writes it into
    /// the `retry:` line.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        self.0.retry_ms
    }

    /// Nothing for this client under this id, so that the chain holds for everyone.
    #[must_use]
    pub fn skip(tag: &Tag, at: Position, prev: Position) -> Self {
        let json = format!(r#"{{"type":"belfry.skip","id":"{tag}~{at}","prev":"{tag}~{prev}"}}"#);
        Self::text(&json).at(Mark { tag: tag.clone(), at })
    }

    /// Where its client stands after it; `None` for what is not kept.
    #[must_use]
    pub fn mark(&self) -> Option<&Mark> {
        self.0.mark.as_ref()
    }

    /// The JSON of a text frame, without what WebSocket puts around it; `None` for a frame of
    /// another kind.
    #[must_use]
    pub fn json(&self) -> Option<Bytes> {
        let wire = &self.0.wire;
        let text = wire.first() == Some(&0x81);
        let (header, len) = match wire.get(1)? {
            126 => (4, usize::from(u16::from_be_bytes(wire.get(2..4)?.try_into().ok()?))),
            127 => {
                let len = u64::from_be_bytes(wire.get(2..10)?.try_into().ok()?);
                (10, usize::try_from(len).ok()?)
            }
            short => (2, usize::from(*short)),
        };
        (text && wire.len() >= header + len).then(|| wire.slice(header..header + len))
    }

    /// The same, as one that reached this replica now, out of the history.
    #[must_use]
    pub fn arrived(self) -> Self {
        self.with(|inner| inner.received = Some(Instant::now()))
    }

    /// A pong with the payload of the ping it answers (RFC 6455 §5.5.3).
    #[must_use]
    pub fn pong(payload: &[u8]) -> Self {
        let mut wire = BytesMut::with_capacity(payload.len() + HEADER_BYTES);
        Parser::write_message(&mut wire, payload, OpCode::Pong, true, false);
        Self::plain(wire)
    }

    /// The heartbeat: `{"type":"ping"}` for scripts, which never see protocol pings, and a
    /// protocol ping, which browsers answer even while a page's timers are throttled.
    #[must_use]
    pub fn heartbeat() -> Self {
        let mut wire = BytesMut::with_capacity(32);
        Parser::write_message(&mut wire, r#"{"type":"ping"}"#, OpCode::Text, true, false);
        Parser::write_message(&mut wire, b"", OpCode::Ping, true, false);
        Self::plain(wire)
    }

    /// A close frame; the reason is cut to the 123 bytes that RFC 6455 §5.5 leaves for it.
    #[must_use]
    pub fn close(code: u16, reason: &str) -> Self {
        let reason = CloseReason {
            code: CloseCode::from(code),
            description: (!reason.is_empty()).then(|| truncate(reason, 123).to_owned()),
        };
        let mut wire = BytesMut::new();
        Parser::write_close(&mut wire, Some(reason), false);
        Self::plain(wire)
    }

    /// An empty close frame, the answer to a peer's empty one.
    #[must_use]
    pub fn close_empty() -> Self {
        let mut wire = BytesMut::new();
        Parser::write_close(&mut wire, None, false);
        Self::plain(wire)
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.wire.len()
    }

    /// Whether there is nothing to write; never true of a frame made here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.wire.is_empty()
    }

    /// When the event in it reached this replica; `None` for what the server says by itself.
    #[must_use]
    pub fn received(&self) -> Option<Instant> {
        self.0.received
    }

    /// The bytes for the socket.
    #[must_use]
    pub fn wire(&self) -> &Bytes {
        &self.0.wire
    }
}

/// The longest prefix of at most `max` bytes that ends between characters.
fn truncate(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// What the server says by itself (contract §3); every one is one JSON text frame.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub enum Notice<'a> {
    /// The first frame of every connection.
    #[serde(rename = "belfry.welcome")]
    Welcome {
        /// This connection's id, for orders about it.
        connection: &'a str,
        /// Whom the credential names.
        user: &'a str,
        /// The groups that the credential names, as far as `auth.groups.allow` lets them.
        groups: &'a [Group],
        /// Where to resume from; empty where nothing is kept.
        cursor: &'a str,
        /// Silence after which the server pings.
        heartbeat_ms: u64,
        /// `null`: nothing was asked for. `false`: the channels in `lost` cannot be proven whole.
        resumed: Option<bool>,
        /// Tags of the channels that are not whole.
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        lost: &'a [String],
    },
    /// The replay that was asked for is done.
    #[serde(rename = "belfry.live")]
    Live {},
    /// A gap that could not be filled: reload your state.
    #[serde(rename = "belfry.resync")]
    Resync {
        /// Tags of the channels concerned (contract §4).
        lost: &'a [String],
        /// Where to go on from.
        cursor: &'a str,
        /// Why; a word from a closed set.
        reason: &'a str,
    },
    /// The credential ends soon.
    #[serde(rename = "belfry.token_expiring")]
    TokenExpiring {
        /// Until then.
        expires_in_ms: u64,
    },
    /// A renewal was accepted.
    #[serde(rename = "belfry.renewed")]
    Renewed {
        /// Until the new credential ends.
        expires_in_ms: Option<u64>,
        /// The groups from now on.
        groups: &'a [Group],
    },
    /// A renewal was refused; the old credential goes on to its end.
    #[serde(rename = "belfry.renewal_failed")]
    RenewalFailed {
        /// A word from a closed set.
        reason: &'a str,
    },
    /// Just before a close by the server.
    #[serde(rename = "belfry.goodbye")]
    Goodbye {
        /// The close code that follows.
        code: u16,
        /// Its reason.
        reason: &'a str,
        /// When to come back; `null`: do not.
        retry_after_ms: Option<u64>,
    },
}

impl Notice<'_> {
    /// The frame that says this.
    #[must_use]
    pub fn frame(&self) -> Frame {
        // Serialising plain strings and numbers into memory has no way to fail; should serde ever
        // find one, an empty object is a frame that clients ignore.
        Frame::text(&serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned()))
    }
}

/// The tags of a client's channels (contract §4).
#[must_use]
pub fn tags(groups: &[Group]) -> Vec<String> {
    let groups = groups.iter().map(Tag::group);
    [Tag::User, Tag::Broadcast].into_iter().chain(groups).map(|tag| tag.to_string()).collect()
}

/// The goodbye and the close frame for this cause, in the order in which they are sent.
/// `retry_after_ms` comes spread from the caller. `detail` replaces the reason where people are
/// told more (development).
#[must_use]
pub fn farewell(
    cause: CloseCause,
    retry_after_ms: Option<u64>,
    detail: Option<&str>,
) -> [Frame; 2] {
    let reason = truncate(detail.unwrap_or_else(|| cause.label()), 123);
    let goodbye = Notice::Goodbye { code: cause.code(), reason, retry_after_ms }.frame();
    let retry_ms = Some(retry_after_ms.unwrap_or(STAY_AWAY_MS));
    [goodbye.with(|inner| inner.retry_ms = retry_ms), Frame::close(cause.code(), reason)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_encoded_with_minimal_lengths() {
        for (len, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = Frame::text(&"x".repeat(len));
            assert_eq!(frame.len(), len + header, "{len}");
        }
        assert_eq!(&Frame::text("hi").wire()[..], b"\x81\x02hi");
    }

    #[test]
    fn json_is_what_was_given() {
        for len in [0, 125, 126, 65_535, 65_536] {
            let text = "x".repeat(len);
            assert_eq!(Frame::text(&text).json().unwrap(), text.as_bytes(), "{len}");
        }
        assert_eq!(&Frame::heartbeat().json().unwrap()[..], br#"{"type":"ping"}"#);
        assert_eq!(Frame::pong(b"x").json(), None);
        assert_eq!(Frame::close(1000, "").json(), None);
    }

    #[test]
    fn close_carries_code_and_reason() {
        assert_eq!(&Frame::close(4408, "no_pong").wire()[..], b"\x88\x09\x11\x38no_pong");
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let frame = Frame::close(1008, &"é".repeat(100));
        assert_eq!(frame.len(), 2 + 2 + 122);
    }

    #[test]
    fn goodbye_comes_before_the_close() {
        let [goodbye, close] = farewell(CloseCause::Restart, Some(1500), None);
        assert_eq!(
            &goodbye.wire()[2..],
            br#"{"type":"belfry.goodbye","code":1012,"reason":"restart","retry_after_ms":1500}"#
        );
        assert_eq!(close.wire()[0], 0x88);
    }

    #[test]
    fn only_a_goodbye_says_when_to_come_back() {
        let [goodbye, close] = farewell(CloseCause::Restart, Some(1500), None);
        assert_eq!((goodbye.retry_ms(), close.retry_ms()), (Some(1500), None));
        let [goodbye, _] = farewell(CloseCause::Revoked, None, None);
        assert_eq!(goodbye.retry_ms(), Some(STAY_AWAY_MS));
        assert_eq!(Frame::heartbeat().retry_ms(), None);
    }
}

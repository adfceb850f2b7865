//! From bytes to messages: the body of an answer out of its framing, and the lines of a stream.

use serde_json::Value;

use crate::support::http::Reply;

/// A dispatched message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub data: String,
    /// `lastEventId`: of this message, or of the one that last bore an id.
    pub id: String,
    /// The event's name; `message` where none was given.
    pub event: String,
}

impl Message {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What a stream of bytes means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Message(Message),
    Retry(u64),
    Comment(String),
}

/// The standard's parser. Bytes come in pieces of any size.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    begun: bool,
    after_cr: bool,
    data: String,
    event: String,
    id: String,
    /// The last event ID string of the event source, which moves when a message is complete.
    pub last_event_id: String,
}

impl Parser {
    /// For a stream that goes on after this id. Browsers keep it until the new stream gives
    /// another, where the standard begins with none.
    pub fn after(id: &str) -> Self {
        Self { id: id.into(), last_event_id: id.into(), ..Self::default() }
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    items.extend(self.take(&line));
                }
                other => self.line.push(other),
            }
        }
        items
    }

    fn take(&mut self, line: &[u8]) -> Option<Item> {
        // One byte order mark at the very start does not count.
        let line = match line.strip_prefix("\u{feff}".as_bytes()) {
            Some(rest) if !self.begun => rest,
            _ => line,
        };
        self.begun = true;
        let line = String::from_utf8_lossy(line);
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return Some(Item::Comment(value.into())),
            "event" => self.event = value.into(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = value.into(),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                return value.parse().ok().map(Item::Retry);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Item> {
        self.last_event_id.clone_from(&self.id);
        let event = std::mem::take(&mut self.event);
        let mut data = std::mem::take(&mut self.data);
        // Without a data line there is no message; one empty data line makes an empty message.
        data.pop()?;
        let event = if event.is_empty() { "message".into() } else { event };
        Some(Item::Message(Message { data, id: self.id.clone(), event }))
    }
}

/// How the body of an answer is delimited (RFC 9112 §6).
pub enum Framing {
    Chunked(Chunks),
    Length(usize),
    ToTheEnd,
}

/// Takes `Transfer-Encoding: chunked` off (RFC 9112 §7.1); trailers are not expected.
#[derive(Default)]
pub struct Chunks {
    pending: Vec<u8>,
    /// What is left of the present chunk, its line end included.
    left: usize,
}

impl Chunks {
    /// The body in these bytes, and whether it is complete.
    fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        self.pending.extend_from_slice(bytes);
        let mut body = Vec::new();
        loop {
            if self.left == 0 {
                let Some(end) = self.pending.windows(2).position(|two| two == b"\r\n") else {
                    return (body, false);
                };
                let line: Vec<u8> = self.pending.drain(..end + 2).collect();
                let line = String::from_utf8_lossy(&line);
                let size = line.split([';', '\r']).next().unwrap_or_default();
                let size = usize::from_str_radix(size.trim(), 16)
                    .unwrap_or_else(|error| panic!("a chunk of {size:?} bytes: {error}"));
                if size == 0 {
                    return (body, true);
                }
                self.left = size + 2;
            }
            let count = self.pending.len().min(self.left);
            if count == 0 {
                return (body, false);
            }
            let content = count.min(self.left.saturating_sub(2));
            body.extend_from_slice(&self.pending[..content]);
            self.pending.drain(..count);
            self.left -= count;
        }
    }
}

impl Framing {
    pub fn of(head: &Reply) -> Self {
        if head.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            return Self::Chunked(Chunks::default());
        }
        let length = head.header("content-length");
        length.map_or(Self::ToTheEnd, |length| Self::Length(length.parse().expect("a length")))
    }

    /// The body in these bytes, and whether it is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        match self {
            Self::Chunked(chunks) => chunks.feed(bytes),
            Self::ToTheEnd => (bytes.to_vec(), false),
            Self::Length(left) => {
                let count = bytes.len().min(*left);
                *left -= count;
                (bytes[..count].to_vec(), *left == 0)
            }
        }
    }

    /// Is an answer whole that ends with the connection?
    pub fn may_end(&self) -> bool {
        matches!(self, Self::ToTheEnd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages in `text`, however it is cut.
    fn messages(text: &[u8]) -> Vec<Message> {
        let parse = |size: usize| {
            let mut parser = Parser::default();
            let items = text.chunks(size).flat_map(|piece| parser.feed(piece));
            items.collect::<Vec<_>>()
        };
        let whole = parse(text.len().max(1));
        for size in 1..text.len() {
            assert_eq!(parse(size), whole, "in pieces of {size}");
        }
        let only = |item| match item {
            Item::Message(message) => Some(message),
            _ => None,
        };
        whole.into_iter().filter_map(only).collect()
    }

    fn message(data: &str, id: &str, event: &str) -> Message {
        Message { data: data.into(), id: id.into(), event: event.into() }
    }

    /// Examples of the standard, §9.2.6.
    #[test]
    fn it_reads_what_the_standard_shows() {
        let stock = b"data: YHOO\ndata: +2\ndata: 10\n\n";
        assert_eq!(messages(stock), [message("YHOO\n+2\n10", "", "message")]);
        let four = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n";
        assert_eq!(
            messages(four),
            [message("first event", "1", "message"), message("second event", "", "message")]
        );
        let empty = b"data\n\ndata\ndata\n\ndata:";
        assert_eq!(messages(empty), [message("", "", "message"), message("\n", "", "message")]);
        let same = b"data:test\n\ndata: test\n\n";
        assert_eq!(
            messages(same),
            [message("test", "", "message"), message("test", "", "message")]
        );
    }

    #[test]
    fn it_knows_every_line_end_and_the_mark_at_the_start() {
        for end in ["\n", "\r", "\r\n"] {
            let text =
                ["\u{feff}event: x", "id: 7", "data: \u{1f514}", "data: b", "", ""].join(end);
            assert_eq!(messages(text.as_bytes()), [message("\u{1f514}\nb", "7", "x")], "{end:?}");
        }
        let mixed = b"data: a\r\ndata: b\rdata: c\n\r\n";
        assert_eq!(messages(mixed), [message("a\nb\nc", "", "message")]);
        let later = "data: a\n\n\u{feff}data: b\n\ndata: c\n\n".as_bytes();
        assert_eq!(messages(later), [message("a", "", "message"), message("c", "", "message")]);
    }

    #[test]
    fn ids_stay_and_nul_is_none() {
        let text = b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\nid: 3\n\ndata: d\n\n";
        let ids: Vec<String> = messages(text).into_iter().map(|message| message.id).collect();
        assert_eq!(ids, ["1", "1", "1", "3"]);
        let mut parser = Parser::default();
        parser.feed(b"id: 5\ndata: never finished\n");
        assert_eq!(parser.last_event_id, "", "an unfinished message moves nothing");
    }

    #[test]
    fn retry_and_comments() {
        let mut parser = Parser::default();
        let items =
            parser.feed(b"retry: 1500\nretry: 1.5\nretry: -1\nretry:\n:hello\nother: x\n\n");
        assert_eq!(items, [Item::Retry(1500), Item::Comment("hello".into())]);
    }

    #[test]
    fn chunks_come_off_wherever_they_are_cut() {
        let wire = b"5\r\nhello\r\n1;x=y\r\n,\r\nA\r\n 0\r\n world\r\n0\r\n\r\n";
        for size in 1..wire.len() {
            let mut chunks = Chunks::default();
            let mut body = Vec::new();
            let mut whole = false;
            for piece in wire.chunks(size) {
                let (more, end) = chunks.feed(piece);
                body.extend(more);
                whole |= end;
                if whole {
                    break;
                }
            }
            assert_eq!((body.as_slice(), whole), (&b"hello, 0\r\n world"[..], true), "{size}");
        }
    }
}

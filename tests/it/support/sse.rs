//! Browsers' other road: Server-Sent Events over HTTP/1.1 by hand, read by the rules of the WHATWG
//! HTML standard ("Server-sent events", §9.2.5 and §9.2.6), and an `EventSource` that comes back
//! as a browser's does.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Duration, Instant},
};

use super::{
    PATIENCE,
    client::{Dial, is_belfrys_own, mark},
    http::{Reply, head_end},
    until,
};

/// The heartbeat, as it stands in `data:`.
const PING: &str = r#"{"type":"ping"}"#;

/// What browsers wait before they come back, unless a stream says otherwise (Chromium: 3 s).
const RETRY: Duration = Duration::from_secs(3);

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
    fn may_end(&self) -> bool {
        matches!(self, Self::ToTheEnd)
    }
}

/// What a stream showed, and when.
#[derive(Clone, Debug)]
pub enum Seen {
    Message(Message),
    /// The body is complete (`None`), or the connection broke before that.
    End(Option<String>),
}

/// How a stream ended.
#[derive(Clone, Debug)]
pub struct SseEnd {
    /// The body was complete: the last chunk came.
    pub whole: bool,
    /// The last `belfry.goodbye`.
    pub goodbye: Option<Value>,
    /// Data of the messages before it, the pings and the goodbye left out.
    pub texts: Vec<String>,
    pub at: Instant,
}

impl SseEnd {
    /// `code` of the goodbye; 0 without one.
    pub fn code(&self) -> u64 {
        self.goodbye.as_ref().and_then(|goodbye| goodbye["code"].as_u64()).unwrap_or_default()
    }

    pub fn reason(&self) -> &str {
        self.goodbye.as_ref().and_then(|goodbye| goodbye["reason"].as_str()).unwrap_or_default()
    }
}

/// What the reading task and the test share.
#[derive(Debug, Default)]
struct Shared {
    body: Vec<u8>,
    retry: Option<u64>,
    last_event_id: String,
}

/// An open stream. A task of its own reads it. Dropping it drops the connection.
pub struct Sse {
    /// The answer's head; the body is empty in it.
    pub head: Reply,
    /// The first message, once read.
    pub welcome: Value,
    /// The same with its id.
    pub first: Option<Message>,
    shared: Arc<Mutex<Shared>>,
    seen: mpsc::UnboundedReceiver<(Instant, Seen)>,
    reading: watch::Sender<bool>,
    task: AbortHandle,
}

impl Drop for Sse {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends the request, and reads the head of the answer and what came with it.
async fn ask(
    dial: &Dial,
    receive_buffer: Option<u32>,
) -> std::io::Result<(TcpStream, Reply, Vec<u8>)> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let mut stream = socket.connect(dial.address).await?;
    stream.set_nodelay(true)?;
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\nCache-Control: no-store\r\n",
        dial.path,
        dial.authority()
    );
    for (name, value) in &dial.headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = head_end(&bytes) {
            let rest = bytes.split_off(end + 4);
            let head = Reply::from_head(&String::from_utf8_lossy(&bytes[..end]));
            return Ok((stream, head, rest));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn drive(
    mut stream: TcpStream,
    mut framing: Framing,
    mut bytes: Vec<u8>,
    shared: Arc<Mutex<Shared>>,
    seen: mpsc::UnboundedSender<(Instant, Seen)>,
    mut reading: watch::Receiver<bool>,
    mut parser: Parser,
) {
    let mut ended = false;
    let end = loop {
        let (body, whole) = framing.feed(&bytes);
        let items = parser.feed(&body);
        {
            let mut shared = shared.lock().expect("no panic while held");
            shared.body.extend_from_slice(&body);
            shared.last_event_id.clone_from(&parser.last_event_id);
        }
        for item in items {
            let what = match item {
                Item::Message(message) => Seen::Message(message),
                Item::Comment(_) => continue,
                Item::Retry(wait) => {
                    shared.lock().expect("no panic while held").retry = Some(wait);
                    continue;
                }
            };
            if seen.send((Instant::now(), what)).is_err() {
                return;
            }
        }
        if whole {
            break None;
        }
        if ended {
            let fine = framing.may_end();
            break (!fine).then(|| "end of file inside the body".to_owned());
        }
        bytes.clear();
        if reading.wait_for(|reading| *reading).await.is_err() {
            return;
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) => ended = true,
            Ok(_) => {}
            Err(error) => break Some(error.to_string()),
        }
    };
    // Nobody listens any more if this fails.
    let _ = seen.send((Instant::now(), Seen::End(end)));
}

impl Sse {
    async fn dial(
        dial: &Dial,
        receive_buffer: Option<u32>,
    ) -> std::io::Result<Result<Self, Reply>> {
        let (stream, mut head, rest) = ask(dial, receive_buffer).await?;
        let framing = Framing::of(&head);
        let (seen_sender, seen) = mpsc::unbounded_channel();
        let (reading, may_read) = watch::channel(true);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let after =
            dial.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("last-event-id"));
        let parser = Parser::after(after.map_or("", |(_, id)| id));
        let task = drive(stream, framing, rest, shared.clone(), seen_sender, may_read, parser);
        let task = tokio::spawn(task).abort_handle();
        let kind = head.header("content-type").unwrap_or_default().to_owned();
        let good = head.status == 200 && kind.split(';').next() == Some("text/event-stream");
        let mut sse = Self {
            head: head.clone(),
            welcome: Value::Null,
            first: None,
            shared,
            seen,
            reading,
            task,
        };
        if good {
            return Ok(Ok(sse));
        }
        let end = sse.end(PATIENCE).await;
        assert!(end.whole, "an answer of {} that does not end", head.status);
        head.body = String::from_utf8_lossy(&sse.body()).into_owned();
        Ok(Err(head))
    }

    /// Connects as far as the head.
    ///
    /// # Errors
    /// Whatever is not `200 text/event-stream`, read to its end.
    pub async fn try_connect(dial: &Dial) -> Result<Self, Reply> {
        let asked = tokio::time::timeout(PATIENCE, Self::dial(dial, None));
        asked.await.expect("an answer in time").expect("an answer")
    }

    /// The same with a kernel that takes in only so many bytes that are not read.
    pub async fn narrow(dial: &Dial, receive_buffer: u32) -> Self {
        let asked = tokio::time::timeout(PATIENCE, Self::dial(dial, Some(receive_buffer)));
        let sse = asked.await.expect("an answer in time").expect("an answer");
        sse.unwrap_or_else(|reply| panic!("no stream but {reply:?}")).welcomed().await
    }

    /// Connects as far as the head; the first message is the welcome or a goodbye.
    pub async fn connect(dial: &Dial) -> Self {
        let sse = Self::try_connect(dial).await;
        sse.unwrap_or_else(|reply| panic!("no stream but {reply:?}"))
    }

    /// Connects and reads the welcome.
    pub async fn open(dial: &Dial) -> Self {
        Self::connect(dial).await.welcomed().await
    }

    async fn welcomed(mut self) -> Self {
        let (_, message) = self.message(PATIENCE).await;
        self.welcome = message.json();
        assert_eq!(self.welcome["type"], "belfry.welcome", "{message:?}");
        self.first = Some(message);
        self
    }

    /// The bytes of the body so far, the chunks taken off.
    pub fn body(&self) -> Vec<u8> {
        self.shared.lock().expect("no panic while held").body.clone()
    }

    /// The last `retry:` in milliseconds.
    pub fn retry(&self) -> Option<u64> {
        self.shared.lock().expect("no panic while held").retry
    }

    /// What a browser would send as `Last-Event-ID` now.
    pub fn last_event_id(&self) -> String {
        self.shared.lock().expect("no panic while held").last_event_id.clone()
    }

    /// Stops reading, or goes on.
    pub fn reads(&self, on: bool) {
        self.reading.send_replace(on);
    }

    /// Whatever comes next.
    pub async fn next(&mut self, within: Duration) -> (Instant, Seen) {
        tokio::time::timeout(within, self.seen.recv())
            .await
            .unwrap_or_else(|_| panic!("nothing came within {within:?}"))
            .expect("the end was read before")
    }

    /// The next message that is not a ping.
    pub async fn message(&mut self, within: Duration) -> (Instant, Message) {
        let start = Instant::now();
        loop {
            match self.next(within.saturating_sub(start.elapsed())).await {
                (at, Seen::Message(message)) if message.data != PING => return (at, message),
                (_, Seen::End(why)) => panic!("the stream ended: {why:?}"),
                _ => {}
            }
        }
    }

    /// The next message of this `belfry.*` type; others before it are passed over.
    pub async fn word(&mut self, kind: &str, within: Duration) -> Value {
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            let value = self.message(left).await.1.json();
            if value["type"] == kind {
                return value;
            }
        }
    }

    /// Every event up to and including the one that holds `marker`.
    pub async fn through(&mut self, marker: &str) -> Vec<Message> {
        let mut events = Vec::new();
        loop {
            let (_, message) = self.message(PATIENCE).await;
            if is_belfrys_own(&message.data) {
                continue;
            }
            let last = message.data.contains(marker);
            events.push(message);
            if last {
                return events;
            }
        }
    }

    /// The markers `data.mk` of all events up to the one marked `last`, without it.
    pub async fn markers_before(&mut self, last: &str) -> Vec<String> {
        let events = self.through(&format!(r#""mk":"{last}""#)).await;
        let mut markers: Vec<String> = events.iter().map(|event| mark(&event.data)).collect();
        markers.pop();
        markers
    }

    /// Waits for the end of the stream.
    pub async fn end(&mut self, within: Duration) -> SseEnd {
        let start = Instant::now();
        let mut texts = Vec::new();
        let mut goodbye = None;
        loop {
            let (at, seen) = self.next(within.saturating_sub(start.elapsed())).await;
            match seen {
                Seen::Message(message) if message.data.contains("\"belfry.goodbye\"") => {
                    goodbye = Some(message.json());
                }
                Seen::Message(message) if message.data != PING => texts.push(message.data),
                Seen::Message(_) => {}
                Seen::End(why) => return SseEnd { whole: why.is_none(), goodbye, texts, at },
            }
        }
    }
}

/// `readyState` of an [`EventSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    Open,
    /// It does not come back: the status that it got.
    Closed(u16),
}

/// An attempt to connect.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub at: Instant,
    /// `Last-Event-ID`, if there was one to send.
    pub last_event_id: Option<String>,
}

struct Source {
    state: watch::Sender<State>,
    attempts: Mutex<Vec<Attempt>>,
    messages: mpsc::UnboundedSender<(Instant, Message)>,
}

/// A browser's `EventSource`: it comes back for ever after a network error or the end of a stream,
/// and stops for ever at any answer but `200 text/event-stream`. Dropping it closes it.
pub struct EventSource {
    source: Arc<Source>,
    seen: mpsc::UnboundedReceiver<(Instant, Message)>,
    ahead: VecDeque<(Instant, Message)>,
    task: AbortHandle,
}

impl Drop for EventSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EventSource {
    /// `new EventSource(url)`
    pub fn new(dial: Dial) -> Self {
        let (messages, seen) = mpsc::unbounded_channel();
        let state = watch::channel(State::Connecting).0;
        let source = Arc::new(Source { state, attempts: Mutex::new(Vec::new()), messages });
        let task = tokio::spawn(source.clone().run(dial)).abort_handle();
        Self { source, seen, ahead: VecDeque::new(), task }
    }

    pub fn state(&self) -> State {
        *self.source.state.borrow()
    }

    pub fn attempts(&self) -> Vec<Attempt> {
        self.source.attempts.lock().expect("no panic while held").clone()
    }

    /// Waits until it is in this state.
    pub async fn is(&self, state: State, within: Duration) {
        until(&format!("the source is {state:?}"), within, async || {
            (self.state() == state).then_some(())
        })
        .await;
    }

    /// The next message that is not a ping.
    pub async fn message(&mut self, within: Duration) -> (Instant, Message) {
        let start = Instant::now();
        loop {
            if let Some(found) = self.ahead.pop_front() {
                return found;
            }
            let left = within.saturating_sub(start.elapsed());
            let next = tokio::time::timeout(left, self.seen.recv()).await;
            let state = self.state();
            let next = next.unwrap_or_else(|_| panic!("nothing within {within:?}, {state:?}"));
            let next = next.unwrap_or_else(|| panic!("the source ended: {state:?}"));
            if next.1.data != PING {
                self.ahead.push_back(next);
            }
        }
    }

    /// The markers `data.mk` of all events up to the one marked `last`, without it; Belfry's own
    /// words are passed over.
    pub async fn markers_before(&mut self, last: &str, within: Duration) -> Vec<String> {
        let start = Instant::now();
        let mut markers = Vec::new();
        loop {
            let left = within.saturating_sub(start.elapsed());
            let (_, message) = self.message(left).await;
            if is_belfrys_own(&message.data) {
                continue;
            }
            let marker = mark(&message.data);
            if marker == last {
                return markers;
            }
            markers.push(marker);
        }
    }
}

impl Source {
    async fn run(self: Arc<Self>, dial: Dial) {
        let mut retry = RETRY;
        let mut last_event_id = String::new();
        loop {
            let mut again = dial.clone();
            if !last_event_id.is_empty() {
                again.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("last-event-id"));
                again = again.header("Last-Event-ID", last_event_id.as_str());
            }
            let header = (!last_event_id.is_empty()).then(|| last_event_id.clone());
            let attempt = Attempt { at: Instant::now(), last_event_id: header };
            self.attempts.lock().expect("no panic while held").push(attempt);
            match Sse::dial(&again, None).await {
                // The standard: a network error makes it come back.
                Err(_) => {}
                Ok(Err(reply)) => {
                    self.state.send_replace(State::Closed(reply.status));
                    return;
                }
                Ok(Ok(mut sse)) => {
                    self.state.send_replace(State::Open);
                    loop {
                        let Some((at, seen)) = sse.seen.recv().await else { break };
                        match seen {
                            Seen::Message(message) => {
                                if self.messages.send((at, message)).is_err() {
                                    return;
                                }
                            }
                            Seen::End(_) => break,
                        }
                    }
                    if let Some(wait) = sse.retry() {
                        retry = Duration::from_millis(wait);
                    }
                    last_event_id = sse.last_event_id();
                }
            }
            self.state.send_replace(State::Connecting);
            tokio::time::sleep(retry).await;
        }
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

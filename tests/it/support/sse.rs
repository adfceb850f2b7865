//! Browsers' other road: Server-Sent Events over HTTP/1.1 by hand, read by the rules of the WHATWG
//! HTML standard ("Server-sent events", §9.2.5 and §9.2.6), and an `EventSource` that comes back
//! as a browser's does.

use std::sync::{Arc, Mutex};

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
};

mod parser;
mod source;

pub use self::{
    parser::{Framing, Item, Message, Parser},
    source::{EventSource, State},
};

/// The heartbeat, as it stands in `data:`.
const PING: &str = r#"{"type":"ping"}"#;

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

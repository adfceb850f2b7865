//! Browsers: well-behaved WebSocket clients on tokio-tungstenite, which shares no code with
//! Belfry's codec.

use std::net::SocketAddr;

use tokio::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue},
    },
};

use super::{PATIENCE, app::Replica, raw::Raw};

/// How to connect: where to, and with what.
#[derive(Clone, Debug)]
pub struct Dial {
    pub address: SocketAddr,
    pub path: String,
    pub headers: Vec<(String, String)>,
    host: Option<String>,
}

impl Dial {
    /// To the public listener of this replica, with no credential yet.
    pub fn to(replica: &Replica) -> Self {
        Self::at(replica.public)
    }

    pub fn at(address: SocketAddr) -> Self {
        Self { address, path: "/ws/notifications".into(), headers: Vec::new(), host: None }
    }

    /// `?token=`, after what is in the query already.
    pub fn query(mut self, token: &str) -> Self {
        let sign = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!("{}{sign}token={token}", self.path);
        self
    }

    /// `Authorization: Bearer`
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", format!("Bearer {token}"))
    }

    /// `Sec-WebSocket-Protocol: belfry.v1, belfry.token.<JWT>`
    pub fn subprotocol(self, token: &str) -> Self {
        self.header("Sec-WebSocket-Protocol", format!("belfry.v1, belfry.token.{token}"))
    }

    pub fn origin(self, origin: &str) -> Self {
        self.header("Origin", origin)
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with Server-Sent Events.
    pub fn sse(mut self) -> Self {
        self.path = self.path.replacen("/ws/", "/sse/", 1);
        self
    }

    /// `?since=`, after what is in the query already.
    pub fn since(mut self, cursor: &str) -> Self {
        let sign = if self.path.contains('?') { '&' } else { '?' };
        let value = escaped(cursor);
        self.path = format!("{}{sign}since={value}", self.path);
        self
    }

    /// The value of `Host`.
    pub fn authority(&self) -> String {
        self.host.clone().unwrap_or_else(|| self.address.to_string())
    }

    /// Connects as far as the 101.
    ///
    /// # Errors
    /// Any other answer.
    pub async fn try_connect(&self) -> Result<Ws, Refusal> {
        let mut request = format!("ws://{}{}", self.address, self.path)
            .into_client_request()
            .expect("a legal request");
        if let Some(host) = &self.host {
            request.headers_mut().insert("Host", HeaderValue::from_str(host).expect("legal"));
        }
        for (name, value) in &self.headers {
            request.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes()).expect("legal"),
                HeaderValue::from_bytes(value.as_bytes()).expect("legal"),
            );
        }
        let stream = TcpStream::connect(self.address).await.expect("the listener accepts");
        stream.set_nodelay(true).expect("an open socket");
        let handshake = tokio_tungstenite::client_async(request, stream);
        match tokio::time::timeout(PATIENCE, handshake).await.expect("an answer in time") {
            Ok((stream, response)) => {
                let protocol = response.headers().get("sec-websocket-protocol");
                let protocol = protocol.map(|value| value.to_str().expect("ASCII").to_owned());
                Ok(Ws::run(stream, protocol))
            }
            Err(tungstenite::Error::Http(response)) => Err(Refusal {
                status: response.status().as_u16(),
                retry_after: response
                    .headers()
                    .get("retry-after")
                    .map(|value| value.to_str().expect("ASCII").to_owned()),
            }),
            Err(error) => panic!("handshake with {}: {error}", self.address),
        }
    }

    /// Connects as far as the 101; the next text frame is the welcome or a goodbye.
    pub async fn connect(&self) -> Ws {
        self.try_connect().await.unwrap_or_else(|refusal| panic!("no 101 but {refusal:?}"))
    }

    /// Connects and reads the welcome.
    pub async fn open(&self) -> Ws {
        let mut ws = self.connect().await;
        ws.read_welcome().await;
        ws
    }

    /// Connects with a client that does as it is told, and nothing else.
    pub async fn raw(&self) -> Raw {
        Raw::connect(self, None).await
    }

    /// The credential is refused: by HTTP, or by 101 and 1008 with nothing before it but the
    /// goodbye.
    #[track_caller]
    pub fn is_refused(&self, what: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let what = format!("{what} at {caller}");
        async move {
            match self.try_connect().await {
                Err(refusal) => {
                    let known = matches!(refusal.status, 400 | 401 | 403 | 414 | 431);
                    assert!(known, "{what}: {refusal:?}");
                }
                Ok(mut ws) => {
                    let end = ws.end(Duration::from_secs(5)).await;
                    assert_eq!(end.code, 1008, "{what}: {end:?}");
                    assert!(end.texts.is_empty(), "{what}: {end:?}");
                }
            }
        }
    }
}

/// An answer that was not 101.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: u16,
    pub retry_after: Option<String>,
}

/// What a client saw, and when.
#[derive(Clone, Debug)]
pub enum Seen {
    Text(String),
    /// No server frame is binary.
    Binary,
    Ping,
    Pong(Vec<u8>),
    Close(u16, String),
    /// The connection ended without a Close frame.
    Gone(String),
}

enum Order {
    Send(Message),
    Pause,
}

/// How a connection ended.
#[derive(Clone, Debug)]
pub struct End {
    /// 1006 where no Close frame came, 1005 where it bore no code.
    pub code: u16,
    pub reason: String,
    /// The last `belfry.goodbye`.
    pub goodbye: Option<Value>,
    /// Every text frame before it, the pings and the goodbye left out.
    pub texts: Vec<String>,
    pub at: Instant,
}

/// An open connection. A task of its own reads it and answers Pings. Dropping it drops the TCP
/// connection.
pub struct Ws {
    /// The subprotocol that the server chose.
    pub protocol: Option<String>,
    /// The first frame, once read.
    pub welcome: Value,
    seen: mpsc::UnboundedReceiver<(Instant, Seen)>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Ws {
    /// Takes an upgraded connection over, whatever it runs on.
    pub fn run<S>(stream: WebSocketStream<S>, protocol: Option<String>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (seen_sender, seen) = mpsc::unbounded_channel();
        let (orders, order_receiver) = mpsc::unbounded_channel();
        tokio::spawn(drive(stream, seen_sender, order_receiver));
        Self { protocol, welcome: Value::Null, seen, orders }
    }

    pub async fn read_welcome(&mut self) {
        let (_, text) = self.text(PATIENCE).await;
        let welcome: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(welcome["type"], "belfry.welcome", "{text}");
        self.welcome = welcome;
    }

    fn order(&self, order: Order) {
        // A connection that ended takes no orders; the test sees the end when it reads.
        let _ = self.orders.send(order);
    }

    pub fn send(&self, text: impl Into<String>) {
        self.order(Order::Send(Message::text(text.into())));
    }

    pub fn send_message(&self, message: Message) {
        self.order(Order::Send(message));
    }

    /// Stops reading, and with it answering Pings.
    pub fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Whatever comes next.
    pub async fn next(&mut self, within: Duration) -> (Instant, Seen) {
        tokio::time::timeout(within, self.seen.recv())
            .await
            .unwrap_or_else(|_| panic!("nothing came within {within:?}"))
            .expect("the end was read before")
    }

    /// The next text frame that is not a ping.
    pub async fn text(&mut self, within: Duration) -> (Instant, String) {
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            match self.next(left).await {
                (at, Seen::Text(text)) if text != r#"{"type":"ping"}"# => return (at, text),
                (_, Seen::Close(code, reason)) => panic!("closed with {code} {reason:?}"),
                (_, Seen::Gone(why)) => panic!("gone: {why}"),
                (_, Seen::Binary) => panic!("a binary frame from the server"),
                _ => {}
            }
        }
    }

    /// The next frame of this `belfry.*` type; events before it are passed over.
    pub async fn word(&mut self, kind: &str, within: Duration) -> Value {
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            let (_, text) = self.text(left).await;
            if text.contains(kind) {
                let value: Value = serde_json::from_str(&text).expect("JSON");
                if value["type"] == kind {
                    return value;
                }
            }
        }
    }

    /// Every event up to and including the one that holds `marker`.
    pub async fn through(&mut self, marker: &str) -> Vec<String> {
        self.timed_through(marker).await.into_iter().map(|(_, text)| text).collect()
    }

    /// The same with the moment of each.
    pub async fn timed_through(&mut self, marker: &str) -> Vec<(Instant, String)> {
        let mut events = Vec::new();
        loop {
            let (at, text) = self.text(PATIENCE).await;
            if is_belfrys_own(&text) {
                continue;
            }
            let last = text.contains(marker);
            events.push((at, text));
            if last {
                return events;
            }
        }
    }

    /// Waits for the event that holds `marker`; others before it are passed over.
    pub async fn event(&mut self, marker: &str) -> String {
        self.through(marker).await.pop().expect("the marked one")
    }

    /// The markers `data.mk` of all events up to the one marked `last`, without it.
    pub async fn markers_before(&mut self, last: &str) -> Vec<String> {
        let mut markers: Vec<String> = self
            .through(&format!(r#""mk":"{last}""#))
            .await
            .iter()
            .map(|text| mark(text))
            .collect();
        markers.pop();
        markers
    }

    /// Waits for the end of the connection.
    pub async fn end(&mut self, within: Duration) -> End {
        let start = Instant::now();
        let mut texts = Vec::new();
        let mut goodbye = None;
        loop {
            let left = within.saturating_sub(start.elapsed());
            let (at, seen) = self.next(left).await;
            let (code, reason) = match seen {
                Seen::Binary => panic!("a binary frame from the server"),
                Seen::Text(text) if text.contains("belfry.goodbye") => {
                    goodbye = Some(serde_json::from_str(&text).expect("JSON"));
                    continue;
                }
                Seen::Text(text) => {
                    if text != r#"{"type":"ping"}"# {
                        texts.push(text);
                    }
                    continue;
                }
                Seen::Close(code, reason) => (code, reason),
                Seen::Gone(why) => (1006, why),
                _ => continue,
            };
            let end = End { code, reason, goodbye, texts, at };
            if let Some(goodbye) = &end.goodbye {
                assert_eq!(goodbye["code"], end.code, "goodbye and close differ: {end:?}");
                assert_eq!(goodbye["reason"], end.reason, "goodbye and close differ: {end:?}");
                let retry = &goodbye["retry_after_ms"];
                assert!(retry.is_u64() || retry.is_null(), "{end:?}");
            }
            return end;
        }
    }

    /// Closes with 1000 and waits for the answer.
    pub async fn close(mut self) {
        self.send_message(Message::Close(None));
        self.end(PATIENCE).await;
    }

    /// A Ping is answered: the connection works in both directions.
    pub async fn is_alive(&mut self) {
        self.send_message(Message::Ping("still there?".into()));
        let start = Instant::now();
        loop {
            match self.next(PATIENCE.saturating_sub(start.elapsed())).await {
                (_, Seen::Pong(payload)) if payload == b"still there?" => return,
                (_, Seen::Close(code, reason)) => panic!("closed with {code} {reason:?}"),
                (_, Seen::Gone(why)) => panic!("gone: {why}"),
                _ => {}
            }
        }
    }

    /// What came so far and was not read yet.
    pub fn drain(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).map(|(_, seen)| seen).collect()
    }
}

/// A text as the value of a query member: all but RFC 3986's unreserved characters is escaped.
pub fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

/// Is it a frame of Belfry's own, and not an event?
pub fn is_belfrys_own(text: &str) -> bool {
    text.contains("\"belfry.")
        && serde_json::from_str::<Value>(text)
            .is_ok_and(|value| value["type"].as_str().is_some_and(|t| t.starts_with("belfry.")))
}

/// The marker `data.mk` of an event.
pub fn mark(text: &str) -> String {
    let value: Value = serde_json::from_str(text).expect("an event is JSON");
    value["data"]["mk"].as_str().unwrap_or_else(|| panic!("no marker: {text}")).to_owned()
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: WebSocketStream<S>,
    seen: mpsc::UnboundedSender<(Instant, Seen)>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut reading = true;
    let mut closed = false;
    loop {
        let what = tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Pause) => { reading = false; continue }
                Some(Order::Send(message)) => match stream.send(message).await {
                    Ok(()) => continue,
                    // What the peer still said is worth more than our failed write.
                    Err(_) if reading => continue,
                    Err(error) => Seen::Gone(error.to_string()),
                },
            },
            message = stream.next(), if reading => match message {
                Some(Ok(Message::Text(text))) => Seen::Text(text.as_str().to_owned()),
                Some(Ok(Message::Binary(_))) => Seen::Binary,
                Some(Ok(Message::Ping(_))) => Seen::Ping,
                Some(Ok(Message::Pong(bytes))) => Seen::Pong(bytes.to_vec()),
                Some(Ok(Message::Close(frame))) => {
                    closed = true;
                    frame.map_or(Seen::Close(1005, String::new()), |frame| {
                        Seen::Close(frame.code.into(), frame.reason.as_str().to_owned())
                    })
                }
                Some(Ok(Message::Frame(_))) => continue,
                Some(Err(_)) | None if closed => return,
                Some(Err(error)) => Seen::Gone(error.to_string()),
                None => Seen::Gone("end of file".into()),
            },
        };
        let gone = matches!(what, Seen::Gone(_));
        if seen.send((Instant::now(), what)).is_err() || gone {
            return;
        }
    }
}

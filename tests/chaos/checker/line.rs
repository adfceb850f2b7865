//! A client's connection, on either transport, which can break inside a frame.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::Value;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use super::cast::Transport;
use crate::support::{
    http::{Reply, head_end},
    sse::{Framing, Item, Parser},
};

/// What a client's kernel takes in without being read, and the size of segments: small, so that a
/// client that does not read is felt by the server soon.
const RECEIVE: u32 = 8 * 1024;
const SEGMENT: u32 = 1_400;

const CONNECT: Duration = Duration::from_secs(10);

/// A socket that breaks after so many more bytes.
pub struct Fragile {
    stream: TcpStream,
    left: Arc<AtomicUsize>,
}

impl AsyncRead for Fragile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut bytes = [0; 4096];
        let most = left.min(bytes.len()).min(buf.remaining());
        let mut part = ReadBuf::new(&mut bytes[..most]);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let part = part.filled();
        buf.put_slice(part);
        if left < usize::MAX {
            self.left.fetch_sub(part.len(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Fragile {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a client hears.
#[derive(Debug)]
pub enum Heard {
    /// A frame; on SSE with the `id:` in force.
    Frame(Value, Option<String>),
    /// Something that means no more than that the other side lives.
    Life,
    /// The connection ended; with a code where a Close came.
    End(Option<(u16, String)>, String),
    /// Bytes that the contract does not have.
    Nonsense(String),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Refusal {
    /// Come back, at the earliest after this.
    Later(Option<Duration>),
    /// An answer that a good client must not get.
    Never(String),
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Later(None)
    }
}

enum Kind {
    WebSocket(Box<WebSocketStream<Fragile>>),
    Events(Box<Events>),
}

struct Events {
    stream: Fragile,
    framing: Framing,
    parser: Parser,
    /// Read, and not told yet; the last first.
    items: Vec<Item>,
    bytes: Vec<u8>,
    whole: bool,
    retry: Option<u64>,
}

pub struct Line {
    kind: Kind,
    left: Arc<AtomicUsize>,
}

async fn socket(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE)?;
    SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn seconds(text: Option<&str>) -> Option<Duration> {
    Some(Duration::from_secs(text?.parse().ok()?))
}

impl Line {
    /// Connects as far as the 101 or 200, with this cursor if there is one.
    ///
    /// # Errors
    /// Any other answer, or none in time.
    pub async fn open(
        transport: Transport,
        address: SocketAddr,
        token: &str,
        cursor: Option<&str>,
    ) -> Result<Self, Refusal> {
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let connecting = async {
            let stream = Fragile { stream: socket(address).await?, left: left.clone() };
            match transport {
                Transport::WebSocket => websocket(stream, address, token, cursor).await,
                Transport::Events => events(stream, address, token, cursor).await,
            }
        };
        let kind = timeout(CONNECT, connecting).await.map_err(|_| Refusal::Later(None))??;
        Ok(Self { kind, left })
    }

    /// Breaks after so many more bytes.
    pub fn cut(&self, after: usize) {
        self.left.store(after, Ordering::Relaxed);
    }

    /// `retry:`, in milliseconds.
    pub fn retry(&self) -> Option<u64> {
        match &self.kind {
            Kind::WebSocket(_) => None,
            Kind::Events(events) => events.retry,
        }
    }

    /// Whatever comes next. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Heard {
        match &mut self.kind {
            Kind::WebSocket(stream) => next_message(stream).await,
            Kind::Events(events) => events.next().await,
        }
    }
}

async fn websocket(
    stream: Fragile,
    address: SocketAddr,
    token: &str,
    cursor: Option<&str>,
) -> Result<Kind, Refusal> {
    let since = cursor.map(|cursor| format!("&since={}", encoded(cursor))).unwrap_or_default();
    let url = format!("ws://{address}/ws/notifications?token={token}{since}");
    let request = url.into_client_request().expect("a legal request");
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((stream, _)) => Ok(Kind::WebSocket(Box::new(stream))),
        Err(tungstenite::Error::Http(response)) => {
            let status = response.status().as_u16();
            let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
            match status {
                429 | 503 => Err(Refusal::Later(seconds(after))),
                _ => Err(Refusal::Never(format!("the upgrade is answered with {status}"))),
            }
        }
        Err(_) => Err(Refusal::Later(None)),
    }
}

async fn next_message(stream: &mut WebSocketStream<Fragile>) -> Heard {
    match stream.next().await {
        Some(Ok(Message::Text(text))) => match serde_json::from_str(text.as_str()) {
            Ok(frame) => Heard::Frame(frame, None),
            Err(error) => Heard::Nonsense(format!("{error} in {:?}", text.as_str())),
        },
        Some(Ok(Message::Close(frame))) => {
            let close = frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()));
            Heard::End(close, "closed".into())
        }
        Some(Ok(Message::Binary(_))) => Heard::Nonsense("a binary frame".into()),
        Some(Ok(_)) => Heard::Life,
        Some(Err(error)) => Heard::End(None, error.to_string()),
        None => Heard::End(None, "end of file".into()),
    }
}

async fn events(
    mut stream: Fragile,
    address: SocketAddr,
    token: &str,
    cursor: Option<&str>,
) -> Result<Kind, Refusal> {
    let after = cursor.map(|cursor| format!("Last-Event-ID: {cursor}\r\n")).unwrap_or_default();
    let request = format!(
        "GET /sse/notifications?token={token} HTTP/1.1\r\nHost: {address}\r\n\
         Accept: text/event-stream\r\nCache-Control: no-store\r\n{after}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = head_end(&bytes) {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(Refusal::Later(None));
        }
    };
    let rest = bytes.split_off(end + 4);
    let head = Reply::from_head(&String::from_utf8_lossy(&bytes[..end]));
    let kind = head.header("content-type").unwrap_or_default();
    if head.status != 200 || kind.split(';').next() != Some("text/event-stream") {
        // A browser's EventSource would never come back from it.
        return Err(Refusal::Never(format!("the stream is answered with {}", head.status)));
    }
    let mut events = Events {
        stream,
        framing: Framing::of(&head),
        parser: Parser::after(cursor.unwrap_or_default()),
        items: Vec::new(),
        bytes: rest,
        whole: false,
        retry: None,
    };
    events.digest();
    Ok(Kind::Events(Box::new(events)))
}

impl Events {
    fn digest(&mut self) {
        let (body, whole) = self.framing.feed(&self.bytes);
        self.bytes.clear();
        self.whole |= whole;
        self.items = self.parser.feed(&body);
        self.items.reverse();
    }

    async fn next(&mut self) -> Heard {
        loop {
            match self.items.pop() {
                Some(Item::Message(message)) => {
                    return match serde_json::from_str(&message.data) {
                        Ok(frame) => Heard::Frame(frame, Some(message.id)),
                        Err(error) => Heard::Nonsense(format!("{error} in {:?}", message.data)),
                    };
                }
                Some(Item::Retry(wait)) => self.retry = Some(wait),
                Some(Item::Comment(_)) => return Heard::Life,
                None if self.whole => return Heard::End(None, "the stream is complete".into()),
                None => match self.stream.read_buf(&mut self.bytes).await {
                    Ok(0) => return Heard::End(None, "end of file".into()),
                    Ok(_) => self.digest(),
                    Err(error) => return Heard::End(None, error.to_string()),
                },
            }
        }
    }
}

//! A client that does as it is told, right or wrong, and trusts nothing: its parser accepts only
//! what RFC 6455 allows a server to send.

use tokio::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    PATIENCE,
    client::Dial,
    http::{Reply, head_end},
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Opcodes of RFC 6455 §5.2.
pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// A frame of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("checked when it was read")
    }

    /// The code of a Close; 1005 without one.
    pub fn code(&self) -> u16 {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        match self.payload[..] {
            [] => 1005,
            [high, low, ..] => u16::from_be_bytes([high, low]),
            [_] => panic!("a Close of one byte"),
        }
    }
}

/// How a raw connection ended.
#[derive(Clone, Debug)]
pub struct RawEnd {
    /// `None`: end of file or reset without a Close.
    pub code: Option<u16>,
    /// Text frames before it, the pings left out.
    pub texts: Vec<String>,
}

/// The bytes of a client frame, masked as the RFC wants.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | u8::try_from(short).expect("< 126")),
        medium @ 126..65_536 => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&u16::try_from(medium).expect("< 65536").to_be_bytes());
        }
        long => {
            bytes.push(0xff);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The half that reads.
pub struct Reader {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
    start: usize,
    /// Payload of a fragmented text message, checked as a whole.
    open: Option<Vec<u8>>,
}

/// Both halves and the answer to the handshake.
pub struct Raw {
    pub reader: Reader,
    pub writer: OwnedWriteHalf,
    pub head: Reply,
}

impl Raw {
    /// Connects and completes the handshake.
    ///
    /// # Panics
    /// If the answer is not a correct 101.
    pub async fn connect(dial: &Dial, receive_buffer: Option<u32>) -> Self {
        let raw = Self::handshake(dial, receive_buffer, &[]).await;
        assert_eq!(raw.head.status, 101, "{:?}", raw.head);
        raw
    }

    /// A client whose kernel takes in only so many bytes that it does not read.
    pub async fn narrow(dial: &Dial, receive_buffer: u32) -> Self {
        Self::connect(dial, Some(receive_buffer)).await
    }

    /// Sends the handshake and `extra` in one segment; reads the head of the answer.
    pub async fn handshake(dial: &Dial, receive_buffer: Option<u32>, extra: &[u8]) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("a legal size");
        }
        let stream = socket.connect(dial.address).await.expect("the listener accepts");
        stream.set_nodelay(true).expect("an open socket");
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n",
            dial.path,
            dial.authority()
        );
        for (name, value) in &dial.headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(extra);
        Self::send_head(stream, &bytes).await
    }

    async fn send_head(mut stream: TcpStream, bytes: &[u8]) -> Self {
        stream.write_all(bytes).await.expect("the server reads the handshake");
        let (half, writer) = stream.into_split();
        let mut reader = Reader { half, buffer: Vec::new(), start: 0, open: None };
        let end = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(end) = head_end(&reader.buffer) {
                    return end;
                }
                assert!(reader.fill().await, "no answer to the handshake");
            }
        })
        .await
        .expect("an answer to the handshake in time");
        let head = Reply::from_head(&String::from_utf8_lossy(&reader.buffer[..end]));
        reader.start = end + 4;
        if head.status == 101 {
            let accept = head.header("sec-websocket-accept");
            assert_eq!(accept, Some(derive_accept_key(KEY.as_bytes()).as_str()), "{head:?}");
        }
        Self { reader, writer, head }
    }

    /// Sends a frame; `first` is FIN, RSV and opcode.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame(first, payload)).await;
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        // A server that has closed already is seen by the next read.
        let _ = self.writer.write_all(bytes).await;
    }

    /// Reads the welcome.
    pub async fn welcome(mut self) -> Self {
        let first = self.reader.frame(PATIENCE).await.expect("a frame");
        assert!(first.text().contains("belfry.welcome"), "{first:?}");
        self
    }

    /// A Ping is answered.
    pub async fn is_alive(&mut self) {
        self.send(0x80 | PING, b"still there?").await;
        loop {
            let frame = self.reader.frame(PATIENCE).await.expect("still open");
            assert_ne!(frame.opcode, CLOSE, "closed with {}", frame.code());
            if frame.opcode == PONG && frame.payload == b"still there?" {
                return;
            }
        }
    }

    /// Aborts: the peer gets a reset.
    pub fn reset(self) {
        let stream = self.reader.half.reunite(self.writer).expect("both halves of one");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an open socket");
    }
}

impl Reader {
    /// The plain connection again, without what was read ahead.
    pub fn into_stream(self, writer: OwnedWriteHalf) -> TcpStream {
        self.half.reunite(writer).expect("both halves of one")
    }

    async fn fill(&mut self) -> bool {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        self.buffer.reserve(16 * 1024);
        matches!(self.half.read_buf(&mut self.buffer).await, Ok(1..))
    }

    fn parse(&mut self) -> Option<(u8, Vec<u8>)> {
        let bytes = &self.buffer[self.start..];
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        assert_eq!(first & 0x70, 0, "RSV is set: {first:#x}");
        assert_eq!(second & 0x80, 0, "a server frame is masked");
        let (length, header) = match second & 0x7f {
            126 => {
                let length = u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
                assert!(length >= 126, "not the shortest form of {length}");
                (length, 4)
            }
            127 => {
                let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
                assert!((65_536..1 << 32).contains(&length), "not the shortest form of {length}");
                (length, 10)
            }
            short => (u64::from(short), 2),
        };
        let length = usize::try_from(length).expect("it fits");
        let payload = bytes.get(header..header + length)?.to_vec();
        self.start += header + length;
        Some((first, payload))
    }

    /// The next whole message or control frame; `None` at the end of the stream, `Err` if it
    /// does not come in time.
    pub async fn try_frame(&mut self, within: Duration) -> Result<Option<Frame>, ()> {
        let deadline = Instant::now() + within;
        loop {
            let Some((first, payload)) = self.parse() else {
                match tokio::time::timeout_at(deadline, self.fill()).await {
                    Ok(true) => continue,
                    Ok(false) => return Ok(None),
                    Err(_) => return Err(()),
                }
            };
            let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
            match opcode {
                0x0 => {
                    let mut whole = self.open.take().expect("a continuation of nothing");
                    whole.extend_from_slice(&payload);
                    if !fin {
                        self.open = Some(whole);
                        continue;
                    }
                    return Ok(Some(Self::checked(TEXT, whole)));
                }
                TEXT => {
                    assert!(self.open.is_none(), "a message inside another");
                    if !fin {
                        self.open = Some(payload);
                        continue;
                    }
                }
                CLOSE | PING | PONG => {
                    assert!(fin, "a fragmented control frame");
                    assert!(payload.len() <= 125, "a control frame of {}", payload.len());
                }
                other => panic!("opcode {other:#x} from the server"),
            }
            return Ok(Some(Self::checked(opcode, payload)));
        }
    }

    fn checked(opcode: u8, payload: Vec<u8>) -> Frame {
        if opcode == TEXT {
            assert!(std::str::from_utf8(&payload).is_ok(), "text is not UTF-8: {payload:?}");
        }
        if opcode == CLOSE && payload.len() > 2 {
            assert!(std::str::from_utf8(&payload[2..]).is_ok(), "a reason that is not UTF-8");
        }
        Frame { opcode, payload }
    }

    /// The same; late is a failure.
    pub async fn frame(&mut self, within: Duration) -> Option<Frame> {
        self.try_frame(within).await.unwrap_or_else(|()| panic!("no frame within {within:?}"))
    }

    /// Reads to the Close frame or the end of the stream. A goodbye must bear the code of the
    /// Close that follows it.
    pub async fn end(&mut self, within: Duration) -> RawEnd {
        let start = Instant::now();
        let mut texts = Vec::new();
        let mut goodbye = None;
        let code = loop {
            match self.frame(within.saturating_sub(start.elapsed())).await {
                None => break None,
                Some(frame) if frame.opcode == CLOSE => break Some(frame.code()),
                Some(frame) if frame.opcode == TEXT => {
                    let text = frame.text();
                    if text.contains("belfry.goodbye") {
                        let word: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                        goodbye = word["code"].as_u64();
                    } else if text != r#"{"type":"ping"}"# {
                        texts.push(text);
                    }
                }
                Some(_) => {}
            }
        };
        if let (Some(said), Some(code)) = (goodbye, code) {
            assert_eq!(said, u64::from(code), "goodbye and Close differ");
        }
        RawEnd { code, texts }
    }
}

//! HTTP/1.1 by hand, for requests that no library would send.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer, as it was on the wire.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// Everything, head included.
    pub text: String,
}

impl Reply {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Parses a head, without the empty line.
    pub fn from_head(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        assert!(first.starts_with("HTTP/1.1 "), "not an HTTP/1.1 answer: {head:?}");
        let status = first.get(9..12).and_then(|code| code.parse().ok()).expect("a status");
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Self { status, headers, ..Self::default() }
    }
}

/// Where the head ends, if it does.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n")
}

fn complete(bytes: &[u8]) -> bool {
    let Some(end) = head_end(bytes) else { return false };
    let head = Reply::from_head(&String::from_utf8_lossy(&bytes[..end]));
    let body = &bytes[end + 4..];
    if (100..200).contains(&head.status) {
        return false;
    }
    if let Some(length) = head.header("content-length") {
        return body.len() >= length.parse::<usize>().expect("a length");
    }
    if head.header("transfer-encoding").is_some() {
        return body.ends_with(b"0\r\n\r\n");
    }
    head.status == 204
}

/// Sends `request` as it is and reads one answer, both at once: the answer is read also when the
/// server stops reading the request. Interim answers (1xx) are skipped.
///
/// # Panics
/// If there is no answer within 10 seconds, or a reset before it.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Reply {
    try_exchange(address, request).await.unwrap_or_else(|| {
        panic!("no answer to {:?}", String::from_utf8_lossy(&request[..request.len().min(300)]))
    })
}

/// The same; `None` where the connection ended without an answer.
pub async fn try_exchange(address: SocketAddr, request: &[u8]) -> Option<Reply> {
    let stream = TcpStream::connect(address).await.expect("the listener accepts");
    let (mut reader, mut writer) = stream.into_split();
    let request = request.to_vec();
    let sending = tokio::spawn(async move {
        // A server may well stop reading; what it answers is the point.
        let _ = writer.write_all(&request).await;
        writer
    });
    let mut bytes = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 16 * 1024];
        while !complete(&bytes) {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            }
            while let Some(end) = head_end(&bytes) {
                if (100..200)
                    .contains(&Reply::from_head(&String::from_utf8_lossy(&bytes[..end])).status)
                {
                    bytes.drain(..end + 4);
                } else {
                    break;
                }
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), reading).await;
    sending.abort();
    assert!(
        in_time.is_ok(),
        "no complete answer within 10 s: {:?}",
        String::from_utf8_lossy(&bytes)
    );
    let end = head_end(&bytes)?;
    let mut reply = Reply::from_head(&String::from_utf8_lossy(&bytes[..end]));
    reply.body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
    reply.text = String::from_utf8_lossy(&bytes).into_owned();
    Some(reply)
}

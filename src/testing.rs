//! What unit tests share: a real Redis of their own, and waiting for conditions.

use std::{
    future::Future,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::history::Bounds;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// What is kept in tests.
pub const KEEPING: Bounds = Bounds {
    events: 300,
    bytes: 1024 * 1024,
    ttl: Duration::from_secs(3_600),
    meta_ttl: Duration::from_secs(30 * 24 * 3_600),
};

mod cluster;

pub use cluster::RedisCluster;

/// Calls `condition` until it holds.
///
/// # Panics
/// It does not hold within `limit`.
pub async fn eventually<F, Fut>(what: &str, limit: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A `redis-server` on loopback that keeps what it is told to save, and ends with this value.
#[derive(Debug)]
pub struct RedisServer {
    /// Stays the same over [`start`](Self::start).
    pub port: u16,
    address: String,
    directory: TempDir,
    child: Option<Child>,
}

impl RedisServer {
    /// A free port, and nothing on it yet.
    pub fn absent() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = "127.0.0.1".to_owned();
        Self { port, address, directory: TempDir::new().unwrap(), child: None }
    }

    /// A running server.
    pub async fn running() -> Self {
        let mut server = Self::absent();
        server.start().await;
        server
    }

    /// Starts it with the data that it saved last, and waits until it answers.
    pub async fn start(&mut self) {
        self.start_as("127.0.0.1", &[]).await;
    }

    /// The same on another address of loopback, where only [`command`](Self::command) finds it,
    /// with settings of its own.
    pub async fn start_as(&mut self, address: &str, settings: &[&str]) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", address])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.directory.path())
            .args(settings)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.child = Some(child);
        self.address = address.to_owned();
        let server = &*self;
        eventually("Redis answers", Duration::from_secs(10), || async move {
            server.exchange(&["PING"]).await.is_some_and(|answer| answer.starts_with("+PONG"))
        })
        .await;
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it without closing anything.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Sends one command on a connection of its own; the answer is raw RESP 2.
    pub async fn command(&self, words: &[&str]) -> String {
        self.exchange(words).await.expect("Redis answers")
    }

    async fn exchange(&self, words: &[&str]) -> Option<String> {
        exchange((&self.address, self.port), words).await
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn exchange(address: (&str, u16), words: &[&str]) -> Option<String> {
    let limit = Duration::from_secs(2);
    let mut stream = timeout(limit, TcpStream::connect(address)).await.ok()?.ok()?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        for piece in ["$", &word.len().to_string(), "\r\n", word, "\r\n"] {
            request.push_str(piece);
        }
    }
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = vec![0; 64 * 1024];
    let read = timeout(limit, stream.read(&mut answer)).await.ok()?.ok()?;
    Some(String::from_utf8_lossy(&answer[..read]).into_owned())
}

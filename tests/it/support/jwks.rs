//! An issuer that publishes its keys, and misbehaves as told.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Duration, Instant},
};

use super::{PATIENCE, until};

/// What the issuer answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These keys.
    Keys(Vec<Value>),
    /// This status and body.
    Raw(u16, String),
    /// Elsewhere.
    Redirect(String),
    /// Closes the connection without a word.
    Nothing,
}

struct Inner {
    answer: Mutex<Answer>,
    delay: Mutex<Duration>,
    requests: Mutex<Vec<Instant>>,
    busy: AtomicUsize,
    most: AtomicUsize,
}

/// A running issuer; dropping it takes it away.
pub struct JwksServer {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Drop for JwksServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl JwksServer {
    pub async fn start(keys: Vec<Value>) -> Self {
        Self::at(0, keys).await
    }

    pub async fn at(port: u16, keys: Vec<Value>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let inner = Arc::new(Inner {
            answer: Mutex::new(Answer::Keys(keys)),
            delay: Mutex::new(Duration::ZERO),
            requests: Mutex::default(),
            busy: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&inner);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { address, inner, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// What is answered from now on.
    pub fn answer(&self, answer: Answer) {
        *self.inner.answer.lock().expect("no panic while held") = answer;
    }

    /// Other keys from now on.
    pub fn rotate(&self, keys: Vec<Value>) {
        self.answer(Answer::Keys(keys));
    }

    /// How long an answer takes from now on. It says what was true when it was asked for.
    pub fn delay(&self, delay: Duration) {
        *self.inner.delay.lock().expect("no panic while held") = delay;
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.inner.requests.lock().expect("no panic while held").len()
    }

    /// When they came.
    pub fn times(&self) -> Vec<Instant> {
        self.inner.requests.lock().expect("no panic while held").clone()
    }

    /// The most requests that were under way at once.
    pub fn most(&self) -> usize {
        self.inner.most.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub async fn asked(&self, count: usize) {
        until(&format!("{count} requests for keys"), PATIENCE, async || {
            (self.requests() >= count).then_some(())
        })
        .await;
    }
}

async fn serve(mut stream: TcpStream, inner: Arc<Inner>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend_from_slice(&buffer[..count]),
        }
    }
    inner.requests.lock().expect("no panic while held").push(Instant::now());
    let busy = inner.busy.fetch_add(1, Ordering::SeqCst) + 1;
    inner.most.fetch_max(busy, Ordering::SeqCst);
    let answer = inner.answer.lock().expect("no panic while held").clone();
    let delay = *inner.delay.lock().expect("no panic while held");
    tokio::time::sleep(delay).await;
    inner.busy.fetch_sub(1, Ordering::SeqCst);
    let (status, more, body) = match answer {
        Answer::Nothing => return,
        Answer::Keys(keys) => (200, String::new(), json!({"keys": keys}).to_string()),
        Answer::Raw(status, body) => (status, String::new(), body),
        Answer::Redirect(to) => (302, format!("location: {to}\r\n"), String::new()),
    };
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    // The gateway may have gone, which is for the test to judge.
    let _ = stream.write_all(text.as_bytes()).await;
}

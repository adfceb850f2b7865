//! A real `redis-server` of the test's own, and a small client for it.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use tokio::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::free_port;

/// A server in a folder of its own. Dropping it kills it.
pub struct RedisServer {
    child: Option<Child>,
    options: Vec<String>,
    port: u16,
    dir: TempDir,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more options, as on the command line: `["--maxmemory", "10mb"]`.
    pub async fn with(options: &[&str]) -> Self {
        let mut server = Self::absent(options);
        server.restart().await;
        server
    }

    /// A port on which a server can be started later.
    pub fn absent(options: &[&str]) -> Self {
        Self {
            child: None,
            options: options.iter().map(ToString::to_string).collect(),
            port: free_port(),
            dir: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it keeps its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it on its port, empty unless the options keep something, and waits for it.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log file");
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!(
                "cannot run redis-server ({error}): these tests need a real one, install it with \
                 `apt-get install redis-server` or the like"
            )
        }));
        let start = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            // Somebody else could be listening there.
            let ours = log.contains("Server initialized");
            if ours && TcpStream::connect(self.address()).await.is_ok() {
                return;
            }
            let ended = self
                .child
                .as_mut()
                .is_some_and(|child| child.try_wait().expect("a child of ours").is_some());
            let waits = !ended && start.elapsed() < Duration::from_secs(10);
            assert!(waits, "redis-server does not start: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, signal).expect("a child of ours");
    }

    /// Hangs: the kernel still accepts, nobody answers.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub async fn client(&self) -> RedisClient {
        RedisClient::connect(self.address()).await
    }

    /// `redis-cli` with these arguments; its output.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli: install it with `apt-get install redis-tools` or the like");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself, which is what both errors would say.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What Redis answers (RESP2, as far as these tests use it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resp {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Option<Vec<u8>>),
    List(Vec<Resp>),
}

impl Resp {
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            other => panic!("not a number: {other:?}"),
        }
    }
}

/// A connection to Redis that shares no code with Belfry.
pub struct RedisClient {
    stream: BufReader<TcpStream>,
}

impl RedisClient {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("redis accepts");
        stream.set_nodelay(true).expect("an open socket");
        Self { stream: BufReader::new(stream) }
    }

    fn encode(into: &mut Vec<u8>, args: &[&[u8]]) {
        into.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
        for arg in args {
            into.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            into.extend_from_slice(arg);
            into.extend_from_slice(b"\r\n");
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.expect("redis answers");
        assert!(line.ends_with("\r\n"), "redis hung up after {line:?}");
        line.truncate(line.len() - 2);
        line
    }

    async fn read(&mut self) -> Resp {
        let line = self.line().await;
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Resp::Simple(rest.into()),
            "-" => Resp::Error(rest.into()),
            ":" => Resp::Int(rest.parse().expect("a number")),
            "$" => {
                let Ok(length) = rest.parse::<usize>() else { return Resp::Bulk(None) };
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes).await.expect("redis answers");
                bytes.truncate(length);
                Resp::Bulk(Some(bytes))
            }
            "*" => {
                let mut items = Vec::new();
                for _ in 0..rest.parse().expect("a length") {
                    items.push(Box::pin(self.read()).await);
                }
                Resp::List(items)
            }
            other => panic!("not RESP2: {other:?}"),
        }
    }

    /// One command and its answer, errors included.
    pub async fn command(&mut self, args: &[&[u8]]) -> Resp {
        let mut bytes = Vec::new();
        Self::encode(&mut bytes, args);
        self.stream.write_all(&bytes).await.expect("redis reads");
        self.read().await
    }

    /// The same for words; an error fails the test.
    pub async fn words(&mut self, command: &str) -> Resp {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        match self.command(&args).await {
            Resp::Error(error) => panic!("{command}: {error}"),
            answer => answer,
        }
    }

    /// The payload of the next message on a subscribed channel.
    pub async fn message(&mut self) -> Vec<u8> {
        loop {
            if let Resp::List(parts) = self.read().await
                && let [Resp::Bulk(Some(kind)), _, Resp::Bulk(Some(payload))] = &parts[..]
                && kind == b"message"
            {
                return payload.clone();
            }
        }
    }

    /// `PUBLISH`; to how many subscribers of this very server.
    pub async fn publish(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        self.command(&[b"PUBLISH", channel.as_bytes(), payload.as_ref()]).await.int()
    }

    /// Many `PUBLISH` in one go.
    pub async fn publish_all<'a>(
        &mut self,
        messages: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
    ) {
        let mut bytes = Vec::new();
        let mut count = 0;
        for (channel, payload) in messages {
            Self::encode(&mut bytes, &[b"PUBLISH", channel.as_bytes(), &payload]);
            count += 1;
        }
        self.stream.write_all(&bytes).await.expect("redis reads");
        for _ in 0..count {
            self.read().await.int();
        }
    }
}

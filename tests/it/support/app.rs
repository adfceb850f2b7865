//! Replicas: the real binary, configured by its environment alone.

use std::{
    collections::BTreeMap,
    io::Read,
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tokio::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{PATIENCE, jwt, redis::RedisServer, until};

/// The API key that replicas under test know under the name `tests`.
pub const API_KEY: &str = "tests-api-key-2f1f6c4e9a7b4d0c8e5a";

/// `name:<sha256 hex>` as the configuration wants it.
pub fn api_key(name: &str, key: &str) -> String {
    format!("{name}:{:x}", Sha256::digest(key.as_bytes()))
}

/// The binary, with nothing of our own environment but what a process needs.
pub fn belfry() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belfry"));
    command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default());
    command.env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    // For a run of the same tests over another transport.
    if let Ok(transport) = std::env::var("BELFRY_TEST_TRANSPORT") {
        command.env("BELFRY__PUBLIC__TRANSPORT", transport);
    }
    command
}

/// A child process with what it said. Dropping it kills it.
pub struct Process {
    child: Mutex<Child>,
    pid: Pid,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

fn capture(
    mut stream: impl Read + Send + 'static,
) -> (Arc<Mutex<Vec<u8>>>, std::thread::JoinHandle<()>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let into = kept.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 {
                break;
            }
            into.lock().expect("no panic while held").extend_from_slice(&buffer[..count]);
        }
    });
    (kept, reader)
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let (stdout, out) = capture(child.stdout.take().expect("piped"));
        let (stderr, err) = capture(child.stderr.take().expect("piped"));
        let child = Mutex::new(child);
        Self { child, pid, stdout, stderr, readers: Mutex::new(vec![out, err]) }
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().expect("no panic while held")).into_owned()
    }

    /// Both streams.
    pub fn output(&self) -> String {
        let stderr = self.stderr.lock().expect("no panic while held").clone();
        format!("{}{}", self.stdout(), String::from_utf8_lossy(&stderr))
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.pid));
    }

    /// How it ended, if it did.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().expect("no panic while held").try_wait().expect("a child of ours")
    }

    /// Waits for its end, and for the last of its output.
    pub async fn end(&self, within: Duration) -> ExitStatus {
        let status = until("the process ends", within, async || self.exited()).await;
        for reader in self.readers.lock().expect("no panic while held").drain(..) {
            reader.join().expect("a reader does not panic");
        }
        status
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Resident memory in KiB.
    pub fn rss(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .expect("a running process");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("VmRSS")
    }

    /// Processor time so far, at a resolution of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("a running process");
        let (_, after_name) = stat.rsplit_once(')').expect("a name in brackets");
        let fields: Vec<u64> = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|f| f.parse().unwrap_or(0))
            .collect();
        Duration::from_millis(fields.iter().sum::<u64>() * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It may have ended by itself, which is what both errors would say.
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        if std::thread::panicking() {
            let output = self.output();
            let from = output.len().saturating_sub(4_000);
            let tail: String = output.chars().skip(output[..from].chars().count()).collect();
            eprintln!("--- the last words of {} ---\n{tail}\n---", self.pid);
        }
    }
}

/// How a replica is to be started.
#[derive(Clone)]
pub struct Builder {
    env: BTreeMap<String, String>,
    ready: bool,
    ca: Option<reqwest::Certificate>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::production()
    }
}

fn variable(key: &str) -> String {
    format!("BELFRY__{}", key.to_ascii_uppercase().replace('.', "__"))
}

impl Builder {
    /// Production, in memory, on free ports, leaving fast.
    pub fn production() -> Self {
        let builder = Self { env: BTreeMap::new(), ready: true, ca: None };
        builder
            .env("BELFRY_PROFILE", "production")
            .set("public.bind", "127.0.0.1:0")
            .set("public.workers", "2")
            .set("internal.bind", "127.0.0.1:0")
            .set("auth.jwt.secret", jwt::SECRET)
            .set("auth.jwt.algorithms", "HS256")
            .set("api.keys", api_key("tests", API_KEY))
            .set("drain.delay", "100ms")
            .set("drain.spread", "200ms")
            .set("log.format", "json")
    }

    /// The same in development.
    pub fn development() -> Self {
        Self::production().env("BELFRY_PROFILE", "development")
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets a key of the configuration, `limits.heartbeat`.
    pub fn set(self, key: &str, value: impl Into<String>) -> Self {
        self.env(&variable(key), value)
    }

    /// Leaves a key of the configuration out.
    pub fn unset(mut self, key: &str) -> Self {
        self.env.remove(&variable(key));
        self
    }

    /// On this Redis, with probes fast enough for a test.
    pub fn redis(self, redis: &RedisServer) -> Self {
        self.redis_at(&redis.url())
    }

    /// On the Redis at this URL.
    pub fn redis_at(self, url: &str) -> Self {
        self.set("redis.url", url)
    }

    /// Returns from [`Builder::spawn`] before the replica is ready.
    pub fn not_ready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// The internal listener speaks TLS with a certificate of this authority.
    pub fn internal_ca(mut self, pem: &str) -> Self {
        self.ca = Some(reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate"));
        self
    }

    /// `belfry serve`, to be started by other means.
    pub fn command(&self) -> Command {
        let mut command = belfry();
        command.arg("serve").envs(&self.env);
        command
    }

    pub async fn spawn(self) -> Replica {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command = self.command();
        command.current_dir(dir.path());
        let process = Process::spawn(command);
        let [public, internal] = until("both listeners are announced", PATIENCE, async || {
            let output = process.output();
            if let Some(status) = process.exited() {
                panic!("belfry serve ended with {status}");
            }
            Some([listening(&output, "public")?, listening(&output, "internal")?])
        })
        .await;
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        let mut http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20));
        if let Some(ca) = self.ca {
            http = http.tls_certs_only([ca]);
        }
        let http = http.build().expect("a client");
        let replica = Replica { process, public, internal, http, scheme, _dir: dir };
        replica.becomes("/livez", 200, PATIENCE).await;
        if self.ready {
            replica.becomes("/readyz", 200, PATIENCE).await;
        }
        replica
    }
}

/// The address that a log line in JSON gives for this listener.
fn listening(output: &str, listener: &str) -> Option<SocketAddr> {
    output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
        let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
        let found = fields["message"] == "listening" && fields["listener"] == listener;
        found.then(|| fields["address"].as_str()?.parse().ok())?
    })
}

/// An answer of the internal listener.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub took: Duration,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Holds for every error of the API: RFC 9457, and a type from our namespace.
    #[track_caller]
    pub fn is_problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let kind = self.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "{self:?}");
        let problem = self.json();
        let urn = problem["type"].as_str().unwrap_or_default();
        assert!(urn.starts_with("urn:belfry:problem:"), "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
        problem
    }

    /// 422, and the member at fault is named.
    #[track_caller]
    pub fn is_at_fault(&self, pointer: &str) {
        let problem = self.is_problem(422);
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let found = errors.iter().any(|error| error["pointer"] == pointer);
        assert!(found, "no error at {pointer:?}: {self:?}");
        assert!(errors.iter().all(|error| error["detail"].is_string()), "{self:?}");
    }
}

/// A running `belfry serve`.
pub struct Replica {
    pub process: Process,
    pub public: SocketAddr,
    pub internal: SocketAddr,
    pub http: reqwest::Client,
    scheme: &'static str,
    _dir: TempDir,
}

impl Replica {
    /// One in memory, with the defaults of these tests.
    pub async fn start() -> Self {
        Builder::production().spawn().await
    }

    /// `GET` on the internal listener; `None` where nothing answers.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        let url = format!("{}://{}{path}", self.scheme, self.internal);
        let start = Instant::now();
        let response = self.http.get(url).send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.ok()?;
        Some(Answer { status, headers, text, took: start.elapsed() })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.unwrap_or_else(|| panic!("no answer from {path}"))
    }

    /// Waits until `path` answers with `status`.
    pub async fn becomes(&self, path: &str, status: u16, within: Duration) -> Answer {
        until(&format!("{path} answers {status}"), within, async || {
            self.try_get(path).await.filter(|answer| answer.status == status)
        })
        .await
    }

    /// `POST /v1/events` with a body as it is and the tests' key.
    pub async fn post(&self, body: impl Into<reqwest::Body>) -> Answer {
        self.post_with(body, API_KEY, "application/json").await
    }

    /// Any request to the internal listener with the tests' key, and a JSON body where there is one.
    pub async fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.api_with(method, path, body.map(Value::to_string), &[]).await
    }

    /// The same with a body as it is, and headers beside or in place of its own.
    pub async fn api_with(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let method = method.parse().expect("a method");
        let url = format!("{}://{}{path}", self.scheme, self.internal);
        let mut all = reqwest::header::HeaderMap::new();
        let bearer = format!("Bearer {API_KEY}");
        let own = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        for (name, value) in own.iter().chain(headers) {
            let name: reqwest::header::HeaderName = name.parse().expect("a name");
            all.insert(name, value.parse().expect("a value"));
        }
        let mut request = self.http.request(method, url).headers(all);
        if let Some(body) = body {
            request = request.body(body);
        }
        Self::answer(request).await
    }

    /// The same with another key and media type.
    pub async fn post_with(
        &self,
        body: impl Into<reqwest::Body>,
        key: &str,
        media: &str,
    ) -> Answer {
        let request = self
            .http
            .post(format!("{}://{}/v1/events", self.scheme, self.internal))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", media)
            .body(body);
        Self::answer(request).await
    }

    /// The same with an idempotency key, whose bytes may be any.
    pub async fn post_once(&self, body: impl Into<reqwest::Body>, once: &str) -> Answer {
        let request = self
            .http
            .post(format!("{}://{}/v1/events", self.scheme, self.internal))
            .header("authorization", format!("Bearer {API_KEY}"))
            .header("content-type", "application/json")
            .header("idempotency-key", once.as_bytes())
            .body(body);
        Self::answer(request).await
    }

    async fn answer(request: reqwest::RequestBuilder) -> Answer {
        let start = Instant::now();
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a whole answer");
        Answer { status, headers, text, took: start.elapsed() }
    }

    /// Publishes; anything but 202 fails the test.
    #[track_caller]
    pub fn event(&self, body: &Value) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let body = body.to_string();
        async move {
            let answer = self.post(body).await;
            assert_eq!(answer.status, 202, "at {caller}: {answer:?}");
            assert!(answer.json().is_object(), "at {caller}: {answer:?}");
        }
    }

    /// An event of the type `test` for one user, whose data holds a marker.
    pub async fn to_user(&self, user: &str, marker: &str) {
        self.event(&json!({"to": {"user": user}, "type": "test", "data": {"mk": marker}})).await;
    }

    /// The same for everyone.
    pub async fn to_all(&self, marker: &str) {
        self.event(&json!({"to": {"broadcast": true}, "type": "test", "data": {"mk": marker}}))
            .await;
    }

    /// The same for a group.
    pub async fn to_group(&self, group: &str, marker: &str) {
        self.event(&json!({"to": {"group": group}, "type": "test", "data": {"mk": marker}})).await;
    }

    pub async fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Metrics::parse(&answer.text)
    }

    /// Waits until the sum over all series of `belfry_<name>` is `value`.
    pub async fn metric_is(&self, name: &str, value: f64, within: Duration) {
        self.metric(name, &[], within, |now| (now - value).abs() < f64::EPSILON).await;
    }

    /// Waits until the sum over the series with these labels satisfies `holds`.
    pub async fn metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        within: Duration,
        holds: impl Fn(f64) -> bool,
    ) {
        let start = Instant::now();
        loop {
            let value = self.metrics().await.get(name, labels);
            if holds(value) {
                return;
            }
            assert!(start.elapsed() < within, "{name} {labels:?} is {value} after {within:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it logged so far, both streams.
    pub fn log(&self) -> String {
        self.process.output()
    }
}

/// One scrape.
#[derive(Debug)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            series
                .map(|line| {
                    let (key, value) = line.rsplit_once(' ').expect("a name and a value");
                    (key.to_owned(), value.parse().expect("a number"))
                })
                .collect(),
        )
    }

    /// The sum over the series of `belfry_<name>` that bear all of these labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = format!("belfry_{name}");
        self.0
            .iter()
            .filter(|(key, _)| key.split('{').next() == Some(wanted.as_str()))
            .filter(|(key, _)| {
                labels.iter().all(|(label, value)| key.contains(&format!("{label}=\"{value}\"")))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// The same over all labels.
    pub fn sum(&self, name: &str) -> f64 {
        self.get(name, &[])
    }
}

/// A replica in memory, and one on a Redis of its own: what holds for one holds for the other.
pub async fn both() -> Vec<(&'static str, Replica, Option<RedisServer>)> {
    let redis = RedisServer::start().await;
    let on_redis = Builder::production().redis(&redis).spawn().await;
    vec![("memory", Replica::start().await, None), ("redis", on_redis, Some(redis))]
}

//! `belfry bench`: every load against a gateway, and a gateway that errs.

use std::{net::SocketAddr, process::Command, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc},
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Process, Replica, api_key, belfry},
    http::head_end,
    jwt::SECRET,
    tls::Authority,
    until,
};

/// `belfry bench` towards these listeners, its secret in the environment.
fn bench(public: &str, internal: &str, args: &[&str]) -> Command {
    let mut command = belfry();
    command.env("BELFRY_API_KEY", API_KEY).env("BELFRY_URL", internal);
    command.env("BELFRY__AUTH__JWT__SECRET", SECRET);
    command.args(["bench", "--json", "--url", public]).args(args);
    command
}

fn against(replica: &Replica, args: &[&str]) -> Command {
    bench(&format!("ws://{}", replica.public), &format!("http://{}", replica.internal), args)
}

/// Its exit code, its runs, and all it said.
async fn ran(command: Command) -> (Option<i32>, Vec<Value>, String) {
    let process = Process::spawn(command);
    let status = process.end(PATIENCE * 3).await;
    let all = process.output();
    assert!(!all.contains(SECRET), "{all}");
    let report: Value = serde_json::from_str(process.stdout().trim()).unwrap_or_default();
    (status.code(), report["runs"].as_array().cloned().unwrap_or_default(), all)
}

/// The one run of a load that went well.
async fn well(command: Command) -> Value {
    let (code, mut runs, all) = ran(command).await;
    assert_eq!((code, runs.len()), (Some(0), 1), "{all}");
    runs.remove(0)
}

/// A member by its path, as a number.
#[track_caller]
fn number(run: &Value, path: &str) -> f64 {
    let found = path.split('.').fold(run, |value, name| &value[name]);
    found.as_f64().unwrap_or_else(|| panic!("{path}: {found} in {run}"))
}

fn is(run: &Value, expected: &[(&str, f64)]) {
    for (path, value) in expected {
        let found = number(run, path);
        assert!((found - value).abs() < f64::EPSILON, "{path}: {found}, not {value}: {run}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_counted_and_weighed() {
    let replica = Replica::start().await;
    let pid = replica.process.pid().to_string();
    let args = ["idle", "--connections", "50", "--duration", "200ms", "--pid", &pid];
    let run = well(against(&replica, &args)).await;
    is(&run, &[("connections.opened", 50.0), ("connections.alive", 50.0)]);
    assert!(number(&run, "connections.connect.p50_us") > 0.0, "{run}");
    let memory = number(&run, "server.memory.open");
    assert!((1e6..1e9).contains(&memory), "{run}");
    // A connection takes kilobytes, in whatever way it is served.
    let each = number(&run, "server.memory.per_connection");
    assert!((100.0..1e6).contains(&each), "{run}");
    replica.metric_is("users", 0.0, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_of_a_fan_out_is_checked() {
    let replica = Replica::start().await;
    let pid = replica.process.pid().to_string();
    for pace in [&["--window", "1"][..], &["--window", "8"], &["--rate", "500"], &["--group"]] {
        let args = ["fanout", "--connections", "20", "--events", "60", "--pid", &pid];
        let run = well(against(&replica, &[&args[..], pace].concat())).await;
        is(
            &run,
            &[
                ("publishing.accepted", 60.0),
                ("deliveries.delivered", 1200.0),
                ("deliveries.lost", 0.0),
                ("deliveries.latency.count", 1200.0),
            ],
        );
        let bars = run["deliveries"]["histogram"].as_array().unwrap();
        let all: f64 = bars.iter().map(|bar| number(bar, "count")).sum();
        assert!((all - 1200.0).abs() < f64::EPSILON, "{run}");
        assert!(number(&run, "deliveries.latency.p50_us") > 10.0, "{run}");
        assert_eq!(run["server"]["per"], "delivery", "{run}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_to_one_user_reaches_all_tabs() {
    let replica = Replica::start().await;
    for pace in [&["--window", "16"][..], &["--rate", "400"]] {
        let args = ["direct", "--connections", "30", "--tabs", "3", "--events", "100"];
        let run = well(against(&replica, &[&args[..], pace].concat())).await;
        is(&run, &[("publishing.accepted", 100.0), ("deliveries.delivered", 300.0)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_and_publishing_are_measured() {
    let replica = Replica::start().await;
    let churn = ["churn", "--at-once", "4", "--cycles", "40"];
    let run = well(against(&replica, &churn)).await;
    is(&run, &[("cycles.done", 40.0), ("connections.connect.count", 40.0)]);
    for (batch, requests) in [("1", 200.0), ("50", 4.0)] {
        let args = ["publish", "--publishers", "2", "--users", "5", "--events", "200", "--batch"];
        let run = well(against(&replica, &[&args[..], &[batch]].concat())).await;
        is(&run, &[("publishing.accepted", 200.0), ("publishing.answer.count", requests)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_loads_make_one_table() {
    let replica = Replica::start().await;
    let args = ["all", "--connections", "20", "--duration", "300ms"];
    let (code, runs, all) = ran(against(&replica, &args)).await;
    assert_eq!((code, runs.len()), (Some(0), 9), "{all}");
    let loads: Vec<_> = runs.iter().map(|run| run["load"].as_str().unwrap_or_default()).collect();
    for load in ["idle", "fanout", "direct", "churn", "publish"] {
        assert!(loads.contains(&load), "{load}: {all}");
    }
    let mut text = belfry();
    text.env("BELFRY_API_KEY", API_KEY).env("BELFRY_URL", format!("http://{}", replica.internal));
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), SECRET).expect("written");
    text.args(["bench", "--url", &format!("ws://{}", replica.public), "--secret-file"]);
    text.arg(secret.path()).args(["fanout", "--connections", "5", "--events", "10"]);
    let process = Process::spawn(text);
    assert_eq!(process.end(PATIENCE).await.code(), Some(0), "{}", process.output());
    for part in ["50 of 50", "0 lost, 0 repeated, 0 out of order", "p99.9", "<= ", "#"] {
        assert!(process.stdout().contains(part), "{part}: {}", process.stdout());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_do_where_no_secret_is_known() {
    let keys = format!("{}:publish+broadcast+tickets", api_key("tests", API_KEY));
    let replica = Builder::production().set("api.keys", keys).spawn().await;
    let mut command = belfry();
    command.env("BELFRY_API_KEY", API_KEY);
    command.env("BELFRY_URL", format!("http://{}", replica.internal));
    let url = format!("ws://{}", replica.public);
    command.args(["bench", "--json", "--url", &url, "--tickets", "--group", "fanout"]);
    command.args(["--connections", "10", "--events", "5"]);
    is(&well(command).await, &[("deliveries.delivered", 50.0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_both_listeners() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let authority = Authority::new("tests");
    authority.pair().write(path("cert.pem").as_ref(), path("key.pem").as_ref());
    std::fs::write(path("ca.pem"), &authority.pem).expect("a file");
    let mut builder = Builder::production().internal_ca(&authority.pem);
    for section in ["public", "internal"] {
        builder = builder
            .set(&format!("{section}.tls.cert_file"), path("cert.pem"))
            .set(&format!("{section}.tls.key_file"), path("key.pem"));
    }
    let replica = builder.spawn().await;
    let (public, internal) =
        (format!("wss://{}", replica.public), format!("https://{}", replica.internal));
    let args = ["fanout", "--connections", "5", "--events", "10", "--ca-file", &path("ca.pem")];
    let run = well(bench(&public, &internal, &args)).await;
    is(&run, &[("deliveries.delivered", 50.0)]);
    let (code, _, all) = ran(bench(&public, &internal, &args[..5])).await;
    assert_eq!(code, Some(1), "its certificate is nobody's: {all}");
    let idle = ["idle", "--connections", "3", "--duration", "100ms"];
    let (code, runs, all) = ran(bench(&public, "http://127.0.0.1:1", &idle)).await;
    assert_eq!(code, Some(1), "{all}");
    let failed = runs[0]["connections"]["failed"].as_object().expect("reasons");
    assert!(failed.keys().all(|reason| reason.starts_with("TLS: ")), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_load_tells_what_it_measured() {
    let replica = Replica::start().await;
    let args = ["fanout", "--connections", "5", "--rate", "50", "--duration", "1h"];
    let process = Process::spawn(against(&replica, &args));
    let some = async || {
        let metrics = replica.metrics().await;
        (metrics.sum("events_published_total") > 25.0).then_some(())
    };
    until("events are published", PATIENCE, some).await;
    process.signal(Signal::SIGINT);
    assert_eq!(process.end(PATIENCE).await.code(), Some(0), "{}", process.output());
    let report: Value = serde_json::from_str(process.stdout().trim()).expect("JSON");
    assert_eq!(report["runs"][0]["interrupted"], true, "{report}");
    assert!(number(&report["runs"][0], "deliveries.delivered") > 0.0, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_told_and_fails() {
    let replica = Replica::start().await;
    let mut stranger = against(&replica, &["idle", "--connections", "3", "--duration", "100ms"]);
    stranger.env("BELFRY__AUTH__JWT__SECRET", "another-secret-of-at-least-32-bytes");
    let (code, runs, all) = ran(stranger).await;
    assert_eq!(code, Some(1), "{all}");
    assert_eq!(runs[0]["connections"]["failed"]["closed: 1008 unauthorized"], 3, "{all}");
    let idle = ["idle", "--connections", "3", "--duration", "100ms"];
    let (code, runs, all) = ran(bench("ws://127.0.0.1:1", "http://127.0.0.1:1", &idle)).await;
    assert_eq!(code, Some(1), "{all}");
    assert_eq!(runs[0]["connections"]["opened"], 0, "nobody is there: {all}");
    let mut keyless = against(&replica, &["publish", "--events", "3"]);
    keyless.env("BELFRY_API_KEY", "no-key-of-this-gateway");
    let (code, _, all) = ran(keyless).await;
    assert_eq!(code, Some(1), "{all}");
    assert!(all.contains("the API refuses events: 401"), "{all}");
}

/// What a gateway that errs makes of event number `n`: the numbers it sends instead.
type Fault = fn(u64) -> Vec<u64>;

/// A gateway that errs: it accepts everything, and delivers by `fault`.
struct Bad {
    public: SocketAddr,
    internal: SocketAddr,
}

impl Bad {
    async fn start(fault: Fault) -> Self {
        let [public, internal] =
            [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await]
                .map(|listener| listener.expect("a port"));
        let bad = Self {
            public: public.local_addr().expect("an address"),
            internal: internal.local_addr().expect("an address"),
        };
        let (frames, _) = broadcast::channel(4096);
        let (events, queue) = mpsc::channel(4096);
        tokio::spawn(Self::err(queue, frames.clone(), fault));
        tokio::spawn(async move {
            while let Ok((stream, _)) = public.accept().await {
                tokio::spawn(Self::connection(stream, frames.subscribe()));
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = internal.accept().await {
                tokio::spawn(Self::api(stream, events.clone()));
            }
        });
        bad
    }

    async fn err(
        mut queue: mpsc::Receiver<Value>,
        frames: broadcast::Sender<String>,
        fault: Fault,
    ) {
        while let Some(event) = queue.recv().await {
            for n in fault(event["data"]["n"].as_u64().expect("a number")) {
                let mut data = event["data"].clone();
                data["n"] = n.into();
                let frame = json!({ "type": event["type"], "data": data }).to_string();
                frames.send(frame).expect("someone is connected");
            }
        }
    }

    async fn connection(stream: TcpStream, mut frames: broadcast::Receiver<String>) {
        let mut socket = accept_async(stream).await.expect("an upgrade");
        let welcome = r#"{"type":"belfry.welcome"}"#.to_owned();
        socket.send(Message::text(welcome)).await.expect("sent");
        loop {
            tokio::select! {
                Ok(frame) = frames.recv() => socket.send(Message::text(frame)).await.expect("sent"),
                came = socket.next() => match came {
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    }

    /// Answers every request with 202.
    async fn api(mut stream: TcpStream, events: mpsc::Sender<Value>) {
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = head_end(&bytes) {
                let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                let length = head.split("content-length: ").nth(1).expect("a length");
                let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
                let end = end + 4;
                if bytes.len() >= end + length {
                    let event = serde_json::from_slice(&bytes[end..end + length]).expect("JSON");
                    bytes.drain(..end + length);
                    events.send(event).await.expect("taken");
                    let answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(answer).await.expect("sent");
                    continue;
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
    }

    async fn under(&self, args: &[&str]) -> (Option<i32>, Value, String) {
        let (public, internal) =
            (format!("ws://{}", self.public), format!("http://{}", self.internal));
        let args = [&["fanout", "--connections", "4", "--patience", "500ms"], args].concat();
        let (code, mut runs, all) = ran(bench(&public, &internal, &args)).await;
        assert_eq!(runs.len(), 1, "{all}");
        (code, runs.remove(0), all)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_keeps_its_promises_passes() {
    let bad = Bad::start(|n| vec![n]).await;
    let (code, run, all) = bad.under(&["--rate", "500", "--events", "100"]).await;
    assert_eq!(code, Some(0), "{all}");
    is(&run, &[("deliveries.delivered", 400.0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_events_are_counted_and_fail() {
    // The first 20 warm up.
    let bad = Bad::start(|n| if n == 50 || n == 119 { vec![] } else { vec![n] }).await;
    let (code, run, all) = bad.under(&["--rate", "500", "--events", "100"]).await;
    assert_eq!(code, Some(1), "{all}");
    is(
        &run,
        &[
            ("deliveries.lost", 8.0),
            ("deliveries.repeated", 0.0),
            ("deliveries.out_of_order", 0.0),
            ("deliveries.delivered", 392.0),
        ],
    );
    assert!(all.contains("8 lost"), "{all}");
    // One at a time, the first that does not come is the end.
    let bad = Bad::start(|n| if n == 50 { vec![] } else { vec![n] }).await;
    let (code, run, all) = bad.under(&["--window", "1", "--events", "100"]).await;
    assert_eq!(code, Some(1), "{all}");
    is(&run, &[("deliveries.lost", 4.0), ("deliveries.delivered", 120.0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_and_reordered_events_are_counted_and_fail() {
    let fault = |n| match n {
        30 => vec![30, 30],
        50 => vec![],
        51 => vec![51, 50],
        n => vec![n],
    };
    let bad = Bad::start(fault).await;
    let (code, run, all) = bad.under(&["--rate", "500", "--events", "100"]).await;
    assert_eq!(code, Some(1), "{all}");
    is(
        &run,
        &[
            ("deliveries.lost", 0.0),
            ("deliveries.repeated", 4.0),
            ("deliveries.out_of_order", 4.0),
            ("deliveries.delivered", 400.0),
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_open_files_are_told_at_once() {
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", "ulimit -n 200; exec \"$0\" bench idle --connections 1000"]);
    command.arg(belfry().get_program());
    let process = Process::spawn(command);
    let status = process.end(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(1), "{}", process.output());
    let told = "`ulimit -n` is 200 here: at most 72 connections";
    assert!(process.output().contains(told), "{}", process.output());
}

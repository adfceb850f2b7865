//! The replicas, each behind a link of its own to one Redis, and what can be done to them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};

use super::{
    breach::Kind,
    cast::Size,
    faults::{Fault, Severed},
    stage::{Address, Stage},
};
use crate::support::{
    app::{Builder, Replica},
    free_port,
    proxy::{Flow, Proxy},
    redis::RedisServer,
};

/// When Redis makes its AOF durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fsync {
    Everysec,
    Always,
}

/// How the world is made.
#[derive(Clone, Debug)]
pub struct Making {
    pub fsync: Fsync,
    /// The replicas neither fill gaps nor announce them.
    pub no_repair: bool,
    /// Where the replicas' logs are put.
    pub logs: PathBuf,
    /// `log.level`
    pub level: String,
}

pub struct World {
    redis: RedisServer,
    sizes: Sizes,
    links: Vec<Proxy>,
    builders: Vec<Builder>,
    replicas: Vec<Option<Replica>>,
    logs: PathBuf,
    started: AtomicU32,
}

/// How large the AOF was in the last seconds.
struct Sizes {
    seen: Arc<Mutex<VecDeque<(Instant, u64)>>>,
    aof: PathBuf,
    task: AbortHandle,
}

impl Drop for Sizes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sizes {
    fn watch(dir: &Path) -> Self {
        // The one file that Redis 7 appends to as long as it does not rewrite it.
        let aof = dir.join("appendonlydir").join("appendonly.aof.1.incr.aof");
        let seen = Arc::new(Mutex::new(VecDeque::new()));
        let (file, into) = (aof.clone(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                if let Ok(meta) = tokio::fs::metadata(&file).await {
                    let mut seen = into.lock().expect("no panic while held");
                    seen.push_back((Instant::now(), meta.len()));
                    if seen.len() > 100 {
                        seen.pop_front();
                    }
                }
                sleep(Duration::from_millis(25)).await;
            }
        });
        Self { seen, aof, task: task.abort_handle() }
    }

    /// Takes away what was written in the last `tail`; how many bytes. Redis is not running.
    fn lose(&self, tail: Duration) -> std::io::Result<u64> {
        let now = Instant::now();
        let file = std::fs::OpenOptions::new().write(true).open(&self.aof)?;
        let whole = file.metadata()?.len();
        let seen = self.seen.lock().expect("no panic while held");
        let before = seen.iter().rev().find(|(at, _)| now.duration_since(*at) >= tail);
        let left = before.map_or(whole, |(_, size)| (*size).min(whole));
        file.set_len(left)?;
        file.sync_all()?;
        Ok(whole - left)
    }
}

impl World {
    pub async fn start(size: Size, making: &Making) -> Self {
        let fsync = match making.fsync {
            Fsync::Everysec => "everysec",
            Fsync::Always => "always",
        };
        let redis = RedisServer::with(&[
            "--appendonly",
            "yes",
            "--appendfsync",
            fsync,
            "--auto-aof-rewrite-percentage",
            "0",
            "--maxmemory-policy",
            "noeviction",
        ])
        .await;
        std::fs::create_dir_all(&making.logs).expect("a folder for logs");
        let sizes = Sizes::watch(redis.dir());
        let (mut links, mut builders) = (Vec::new(), Vec::new());
        for _ in 0..size.replicas {
            let link = Proxy::start(redis.address()).await;
            let here = || SocketAddr::from(([127, 0, 0, 1], free_port())).to_string();
            let mut builder = Builder::production()
                .not_ready()
                .redis_at(&format!("redis://{}", link.address))
                .set("public.bind", here())
                .set("internal.bind", here())
                .set("public.workers", "1")
                .set("limits.heartbeat", format!("{}ms", size.heartbeat.as_millis()))
                // Small, so that a client that does not read is closed within the run.
                .set("limits.queue_bytes", "32KiB")
                .set("drain.delay", "300ms")
                .set("drain.spread", "1500ms")
                .set("log.level", making.level.as_str());
            if making.no_repair {
                builder = builder.env("BELFRY_TEST_NO_REPAIR", "1");
            }
            links.push(link);
            builders.push(builder);
        }
        let mut world = Self {
            redis,
            sizes,
            links,
            builders,
            replicas: Vec::new(),
            logs: making.logs.clone(),
            started: AtomicU32::new(0),
        };
        for number in 0..size.replicas {
            let replica = world.spawn(number).await.unwrap_or_else(|error| panic!("{error}"));
            replica.becomes("/readyz", 200, Duration::from_secs(20)).await;
            world.replicas.push(Some(replica));
        }
        world
    }

    pub fn addresses(&self) -> Vec<Address> {
        let running = self.replicas.iter().flatten();
        running
            .map(|replica| Address { public: replica.public, internal: replica.internal })
            .collect()
    }

    /// Starts a replica. What goes wrong is told, not panicked: it is for the verdict.
    async fn spawn(&self, number: usize) -> Result<Replica, String> {
        let starting = AssertUnwindSafe(self.builders[number].clone().spawn()).catch_unwind();
        starting.await.map_err(|panic| {
            let why = panic.downcast::<String>().map_or_else(|_| "a panic".into(), |why| *why);
            format!("replica {number} does not start: {why}")
        })
    }

    /// Does it, and undoes it.
    pub async fn apply(&mut self, fault: Fault, stage: &Stage) {
        match fault {
            Fault::PubSubKilled => {
                let killed = self.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                stage.say(&format!("  {killed} connections"));
            }
            Fault::RedisKilled { down } => self.kill_redis(None, down, stage).await,
            Fault::RedisLostTail { tail, down } => self.kill_redis(Some(tail), down, stage).await,
            Fault::RedisPaused { pause } => {
                self.redis.freeze();
                sleep(pause).await;
                self.redis.thaw();
            }
            Fault::Unreachable { replica, how, lasts } => {
                let link = &mut self.links[replica];
                match how {
                    Severed::Cut => {
                        link.refuse().await;
                        link.cut();
                    }
                    Severed::Stalled => link.flow(Flow::Stall, Flow::Stall),
                    Severed::Deaf => link.flow(Flow::Pass, Flow::Stall),
                    Severed::Mute => link.flow(Flow::Stall, Flow::Pass),
                }
                sleep(lasts).await;
                match how {
                    Severed::Cut => link.allow().await,
                    _ => link.flow(Flow::Pass, Flow::Pass),
                }
            }
            Fault::ReplicaKilled { replica, down } => {
                if let Some(killed) = self.replicas[replica].take() {
                    killed.process.signal(Signal::SIGKILL);
                    killed.process.end(Duration::from_secs(5)).await;
                    self.keep_log(replica, &killed);
                }
                self.bring_back(replica, down, stage).await;
            }
            Fault::ReplicaDrained { replica, down } => {
                if let Some(drained) = self.replicas[replica].take() {
                    drained.process.signal(Signal::SIGTERM);
                    self.leaves(replica, &drained, stage).await;
                }
                self.bring_back(replica, down, stage).await;
            }
        }
    }

    async fn kill_redis(&mut self, tail: Option<Duration>, down: Duration, stage: &Stage) {
        self.redis.kill();
        stage.ledger().redis_died();
        if let Some(tail) = tail {
            let lost = self.sizes.lose(tail).expect("an AOF");
            stage.say(&format!("  {lost} bytes of the AOF"));
        }
        sleep(down).await;
        self.redis.restart().await;
    }

    /// Waits until a replica that was told to leave has done so.
    async fn leaves(&self, number: usize, replica: &Replica, stage: &Stage) {
        let left = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                if let Some(status) = replica.process.exited() {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let what = match left.await {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("replica {number} left with {status}")),
            Err(_) => Some(format!("replica {number} did not leave within 20 s of SIGTERM")),
        };
        if let Some(what) = what {
            stage.say(&what);
            stage.ledger().breaches.add(Kind::Replica, what);
        }
        self.keep_log(number, replica);
    }

    async fn bring_back(&mut self, number: usize, down: Duration, stage: &Stage) {
        sleep(down).await;
        match self.spawn(number).await {
            Ok(replica) => self.replicas[number] = Some(replica),
            Err(what) => {
                stage.say(&what);
                stage.ledger().breaches.add(Kind::Replica, what);
            }
        }
    }

    fn keep_log(&self, number: usize, replica: &Replica) {
        let start = self.started.fetch_add(1, Ordering::Relaxed);
        let file = self.logs.join(format!("replica-{number}-{start:03}.log"));
        std::fs::write(&file, replica.process.output()).expect("a log file");
    }

    /// Are all replicas ready? Those that are not.
    pub async fn not_ready(&self) -> Vec<usize> {
        let mut numbers = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            let answer = match replica {
                Some(replica) => replica.try_get("/readyz").await,
                None => None,
            };
            if answer.is_none_or(|answer| answer.status != 200) {
                numbers.push(number);
            }
        }
        numbers
    }

    /// Closes by cause, as far as the replicas that run now have counted them.
    pub async fn closes(&self) -> BTreeMap<String, u64> {
        let mut closes = BTreeMap::new();
        for replica in self.replicas.iter().flatten() {
            let Some(answer) = replica.try_get("/metrics").await else { continue };
            for line in answer.text.lines() {
                let Some(rest) = line.strip_prefix("belfry_closes_total{cause=\"") else {
                    continue;
                };
                if let Some((cause, count)) = rest.split_once("\"} ") {
                    *closes.entry(cause.to_owned()).or_default() += count.parse().unwrap_or(0);
                }
            }
        }
        closes.retain(|_, count| *count > 0);
        closes
    }

    /// Drains all replicas.
    pub async fn end(mut self, stage: &Stage) {
        let replicas: Vec<_> = self.replicas.drain(..).collect();
        for replica in replicas.iter().flatten() {
            if replica.process.exited().is_none() {
                replica.process.signal(Signal::SIGTERM);
            }
        }
        for (number, replica) in replicas.iter().enumerate() {
            if let Some(replica) = replica {
                self.leaves(number, replica, stage).await;
            }
        }
    }
}

//! L04, L12: the seam between what is replayed and what is live, under a publisher that never
//! pauses.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::Jwt,
    redis::RedisServer,
    sse::Sse,
    tab::{Kind, Tab, for_all, for_group, for_user, group_tag, marker, member, put, quick, split},
    until,
};

on_both!(l04_twenty_reconnects_under_a_publisher_without_pause, l13_no_deaf_window);

/// About 200 events a second.
const PAUSE: Duration = Duration::from_millis(5);

/// Publishes without a pause until it is told to stop: to a user, to a group, to all.
struct Publisher {
    /// Which of the replicas it speaks to.
    to: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<BTreeMap<String, Vec<String>>>,
}

impl Publisher {
    fn start(replicas: Vec<Arc<Replica>>) -> Self {
        let to = Arc::new(AtomicUsize::new(0));
        let sent = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (to, sent, stop) = (to.clone(), sent.clone(), stop.clone());
            async move {
                let mut markers: BTreeMap<String, Vec<String>> = BTreeMap::new();
                let begun = Instant::now();
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let marker = n.to_string();
                    let (tag, event) = match n % 5 {
                        0 => ("b".to_owned(), for_all(&marker)),
                        1 => (group_tag("staff"), for_group("staff", &marker)),
                        _ => ("u".to_owned(), for_user("alice", &marker)),
                    };
                    put(&replicas[to.load(Ordering::Acquire)], &event).await;
                    markers.entry(tag).or_default().push(marker);
                    sent.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep_until(begun + PAUSE * (n + 1)).await;
                }
                markers
            }
        });
        Self { to, sent, stop, task }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Acquire)
    }

    /// Waits until so many more were sent.
    async fn sends(&self, more: usize) {
        let wanted = self.sent() + more;
        until("it publishes", PATIENCE, async || (self.sent() >= wanted).then_some(())).await;
    }

    async fn stop(self) -> BTreeMap<String, Vec<String>> {
        self.stop.store(true, Ordering::Release);
        self.task.await.expect("a publisher does not panic")
    }
}

/// What came, by channel.
#[derive(Default)]
struct Got(BTreeMap<String, Vec<String>>);

impl Got {
    fn add(&mut self, frame: &Value) {
        if let Some(id) = member(frame, "id") {
            self.0.entry(split(id).0.to_owned()).or_default().push(marker(frame));
        }
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Reads what is missing, and compares.
    async fn equals(mut self, tab: &mut Tab, sent: &BTreeMap<String, Vec<String>>) {
        let wanted: usize = sent.values().map(Vec::len).sum();
        while self.len() < wanted {
            self.add(&tab.next().await);
        }
        for (tag, sent) in sent {
            assert_eq!(&self.0[tag], sent, "{tag}");
        }
    }
}

fn dial(replica: &Replica, run: u32) -> Dial {
    let dial = Dial::to(replica).query(&Jwt::of("alice").groups(&["staff"]).sign());
    if run.is_multiple_of(2) { dial } else { dial.sse() }
}

/// Reads some frames and goes: at once, in the middle of a replay, or in the middle of the live
/// ones.
async fn some(tab: &mut Tab, got: &mut Got, run: u32) {
    for _ in 0..(run * 13) % 47 {
        got.add(&tab.next().await);
    }
}

async fn l04_twenty_reconnects_under_a_publisher_without_pause(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = Arc::new(place.replica);
    let mut tab = Tab::open(&dial(&replica, 0)).await;
    let mut got = Got::default();
    let publisher = Publisher::start(vec![replica.clone()]);
    let begun = Instant::now();
    for run in 1..=20 {
        some(&mut tab, &mut got, run).await;
        let cursor = tab.leave();
        if run % 3 == 0 {
            publisher.sends(20).await;
        }
        tab = Tab::resume(&dial(&replica, run), &cursor).await;
        tab.is_whole();
    }
    publisher.sends(20).await;
    let took = begun.elapsed();
    let sent = publisher.stop().await;
    let count: usize = sent.values().map(Vec::len).sum();
    println!("{count} in {took:?}");
    assert!(count > 150, "too few to test anything: {count}");
    got.equals(&mut tab, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_on_alternating_replicas_of_which_one_is_killed() {
    let redis = RedisServer::start().await;
    let start = || quick(Builder::production(), &redis).spawn();
    let (one, two) = tokio::join!(start(), start());
    let replicas = [Arc::new(one), Arc::new(two)];
    let mut tab = Tab::open(&dial(&replicas[0], 0)).await;
    let mut got = Got::default();
    let publisher = Publisher::start(replicas.to_vec());
    for run in 1..=20 {
        some(&mut tab, &mut got, run).await;
        if run == 11 {
            // The tab is on the one that goes, and the publisher is not.
            publisher.to.store(1, Ordering::Release);
            publisher.sends(3).await;
            replicas[0].process.signal(Signal::SIGKILL);
        }
        let cursor = tab.leave();
        let next = if run < 11 { &replicas[run as usize % 2] } else { &replicas[1] };
        tab = Tab::resume(&dial(next, run), &cursor).await;
        tab.is_whole();
    }
    publisher.sends(20).await;
    let sent = publisher.stop().await;
    got.equals(&mut tab, &sent).await;
}

/// As far as the 101 or the 200 only: whatever is published after it is delivered.
async fn l13_no_deaf_window(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    for run in 0..200 {
        let user = format!("user-{run}");
        let dial = Dial::to(replica).query(&Jwt::of(&user).groups(&[&user]).sign());
        let event = match run % 4 {
            0 | 1 => for_user(&user, "at once"),
            2 => for_group(&user, "at once"),
            _ => for_all("at once"),
        };
        if run % 2 == 0 {
            let mut ws = dial.connect().await;
            put(replica, &event).await;
            ws.event("at once").await;
        } else {
            let mut sse = Sse::connect(&dial.sse()).await;
            put(replica, &event).await;
            sse.through("at once").await;
        }
    }
}

/// L02: one order for every tab, over both roads and both replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l02_order_is_the_same_on_every_tab() {
    let redis = RedisServer::start().await;
    let start = || quick(Builder::production(), &redis).spawn();
    let (one, two) = tokio::join!(start(), start());
    let mut tabs = Vec::new();
    for run in 0..4 {
        tabs.push(Tab::open(&dial(if run < 2 { &one } else { &two }, run)).await);
    }
    let mut ids = Vec::new();
    for n in 0..1_000 {
        ids.push(put(&one, &for_user("alice", &n.to_string())).await);
    }
    for (index, tab) in tabs.iter_mut().enumerate() {
        for id in &ids {
            assert_eq!(member(&tab.next().await, "id"), Some(id.as_str()), "tab {index}");
        }
    }
}

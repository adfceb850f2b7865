//! The reader, on a stream and a bus that do as the test says.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::{
    task::{JoinHandle, LocalSet},
    time::{Duration, sleep},
};

use super::*;
use crate::{
    bus::{
        Keep, Message, Once, Posted, Publisher, Receipt,
        control::{Control, Kept},
        envelope::Parts,
        orders::OrderId,
    },
    event::{Channel, UserId},
    telemetry::Metrics,
};

/// A stream in memory with its lease, that can refuse to hear what is done.
#[derive(Default)]
struct Stream {
    waiting: Mutex<Vec<Entry>>,
    taken: Mutex<Vec<Entry>>,
    owner: Mutex<Option<&'static str>>,
    deaf: Mutex<bool>,
}

/// How one replica sees it.
struct Seen(std::sync::Arc<Stream>, &'static str);

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, BusError>> {
    std::future::ready(Ok(value)).boxed()
}

impl Ingest for Seen {
    fn hold(&self) -> BoxFuture<'_, Result<bool, BusError>> {
        let mut owner = self.0.owner.lock().unwrap();
        ready(*owner.get_or_insert(self.1) == self.1)
    }

    fn release(&self) -> BoxFuture<'_, Result<(), BusError>> {
        *self.0.owner.lock().unwrap() = None;
        ready(())
    }

    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<Entry>, BusError>> {
        ready(self.0.taken.lock().unwrap().iter().take(PAGE).cloned().collect())
    }

    fn next(&self) -> BoxFuture<'_, Result<Vec<Entry>, BusError>> {
        async move {
            let mut page: Vec<Entry> = Vec::new();
            {
                let mut waiting = self.0.waiting.lock().unwrap();
                let count = waiting.len().min(PAGE);
                page.extend(waiting.drain(..count));
                self.0.taken.lock().unwrap().extend(page.iter().cloned());
            }
            if page.is_empty() {
                sleep(Duration::from_millis(500)).await;
            }
            Ok(page)
        }
        .boxed()
    }

    fn done(&self, ids: Vec<String>) -> BoxFuture<'_, Result<(), BusError>> {
        if *self.0.deaf.lock().unwrap() {
            return std::future::ready(Err(BusError::Away("deaf".into()))).boxed();
        }
        let ids: HashSet<String> = ids.into_iter().collect();
        self.0.taken.lock().unwrap().retain(|entry| !ids.contains(&entry.id));
        ready(())
    }

    fn trim(&self) -> BoxFuture<'_, Result<Backlog, BusError>> {
        ready(Backlog::default())
    }
}

/// Publishes by writing down, once for each key, and refuses as it is told.
#[derive(Default)]
struct Bus {
    published: Mutex<Vec<String>>,
    keys: Mutex<HashMap<String, String>>,
    /// What is said to these users instead.
    refuses: Mutex<HashMap<String, BusError>>,
    /// Posts of the longest call.
    longest: Mutex<usize>,
}

impl Bus {
    fn post_one(&self, post: &Post) -> Result<Posted, BusError> {
        let Channel::User(user) = &post.to else { panic!("only users here") };
        if let Some(error) = self.refuses.lock().unwrap().get(user.as_str()) {
            return Err(error.clone());
        }
        let Once { key, fingerprint, .. } = post.once.clone().expect("every entry has a key");
        let mut keys = self.keys.lock().unwrap();
        match keys.get(&key) {
            Some(first) if *first == fingerprint => {}
            Some(_) => return Ok(Posted::Conflict),
            None => {
                let said = String::from_utf8(post.event.members.to_vec()).unwrap();
                self.published.lock().unwrap().push(format!("{}:{said}", user.as_str()));
                keys.insert(key, fingerprint);
            }
        }
        Ok(Posted::Done(Receipt::default()))
    }
}

impl Publisher for Bus {
    fn publish(&self, _: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>> {
        panic!("not asked for")
    }

    fn post(&self, posts: Vec<Post>) -> BoxFuture<'_, Vec<Result<Posted, BusError>>> {
        let mut longest = self.longest.lock().unwrap();
        *longest = posts.len().max(*longest);
        let answers = posts.iter().map(|post| self.post_one(post)).collect();
        std::future::ready(answers).boxed()
    }

    fn probe(&self, _: Message) -> BoxFuture<'_, Result<(), BusError>> {
        panic!("not asked for")
    }

    fn is_up(&self) -> bool {
        true
    }
}

impl Control for Bus {
    fn give(&self, _: String) -> BoxFuture<'_, Result<(), BusError>> {
        panic!("not asked for")
    }

    fn kept(&self, _: OrderId) -> BoxFuture<'_, Result<Kept, BusError>> {
        panic!("not asked for")
    }
}

/// Users that `many` stands for.
const MANY: usize = 2_000;

/// `user` = `text`, under a key of its own or the one given.
fn entry(n: usize, user: &'static str, key: Option<&'static str>) -> Entry {
    let mut fields = vec![(Bytes::from(user), Bytes::from(n.to_string()))];
    fields.extend(key.map(|key| (Bytes::from("key"), Bytes::from(key))));
    Entry { id: format!("{n}-0"), fields }
}

fn parse(entry: &Entry) -> Result<Job, String> {
    let (user, text) = &entry.fields[0];
    let user = std::str::from_utf8(user).unwrap();
    if user == "nobody" {
        return Err("no event".to_owned());
    }
    let key = entry.fields.get(1).map_or(entry.id.as_bytes(), |(_, key)| key);
    let once = Once {
        key: String::from_utf8(key.to_vec()).unwrap(),
        fingerprint: String::from_utf8(text.to_vec()).unwrap(),
        each: user == "many",
    };
    let post = |user: &str| {
        let to = Channel::User(UserId::new(user).unwrap());
        let event = Parts { head: Bytes::new(), members: text.clone() };
        Post { once: Some(once.of(&to)), to, event, keep: Keep::Kept, online: None }
    };
    let posts = match user {
        "many" => (0..MANY).map(|n| post(&format!("m{n}"))).collect(),
        user => vec![post(user)],
    };
    Ok(Job { target: Target::User, posts })
}

struct Scene {
    stream: std::sync::Arc<Stream>,
    bus: std::sync::Arc<Bus>,
    metrics: Metrics,
}

impl Scene {
    fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let scene = Self {
            stream: std::sync::Arc::default(),
            bus: std::sync::Arc::default(),
            metrics: Metrics::new(1),
        };
        scene.stream.waiting.lock().unwrap().extend(entries);
        scene
    }

    fn replica(&self, name: &'static str) -> JoinHandle<()> {
        let stream = std::sync::Arc::new(Seen(self.stream.clone(), name));
        let reader = Reader::new(stream, self.bus.clone(), parse, self.metrics.clone());
        tokio::task::spawn_local(reader.run())
    }

    async fn emptied(&self) {
        for _ in 0..10_000 {
            let waiting = self.stream.waiting.lock().unwrap().len();
            if waiting + self.stream.taken.lock().unwrap().len() == 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("entries are left: {:?}", self.stream.taken.lock().unwrap());
    }

    fn published(&self) -> Vec<String> {
        self.bus.published.lock().unwrap().clone()
    }

    fn has(&self, line: &str) -> bool {
        self.metrics.render().unwrap().0.contains(line)
    }
}

fn expected(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("alice:{n}")).collect()
}

#[tokio::test(start_paused = true)]
async fn in_order_and_all() {
    let test = async {
        let scene = Scene::new((0..1000).map(|n| entry(n, "alice", None)));
        let reader = scene.replica("a");
        scene.emptied().await;
        assert_eq!(scene.published(), expected(0..1000));
        reader.abort();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_published_and_not_told_is_not_published_again() {
    let test = async {
        let scene = Scene::new((0..100).map(|n| entry(n, "alice", None)));
        *scene.stream.deaf.lock().unwrap() = true;
        let dying = scene.replica("a");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(scene.published(), expected(0..PAGE), "of one page, again and again");
        dying.abort();
        *scene.stream.deaf.lock().unwrap() = false;
        let heir = scene.replica("b");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(scene.published(), expected(0..PAGE), "the lease still stands");
        *scene.stream.owner.lock().unwrap() = None;
        scene.emptied().await;
        assert_eq!(scene.published(), expected(0..100));
        heir.abort();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_makes_two_entries_one() {
    let test = async {
        let scene = Scene::new([
            entry(1, "alice", Some("k")),
            Entry { id: "2-0".into(), ..entry(1, "alice", Some("k")) },
            entry(3, "alice", Some("k")),
            entry(4, "alice", None),
        ]);
        let reader = scene.replica("a");
        scene.emptied().await;
        assert_eq!(scene.published(), expected([1, 4]));
        assert!(scene.has("messages_dropped_total{reason=\"publish_invalid\"} 1\n"));
        reader.abort();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_published_holds_nothing_up() {
    let test = async {
        let gone = Entry { id: "2-0".into(), fields: Vec::new() };
        let scene = Scene::new([
            entry(0, "nobody", None),
            entry(1, "alice", None),
            gone,
            entry(3, "broken", None),
            entry(4, "alice", None),
        ]);
        let wrong = BusError::Refused("WRONGTYPE Operation against a key".into());
        scene.bus.refuses.lock().unwrap().insert("broken".into(), wrong);
        let reader = scene.replica("a");
        scene.emptied().await;
        assert_eq!(scene.published(), expected([1, 4]));
        assert!(scene.has("messages_dropped_total{reason=\"publish_invalid\"} 2\n"));
        reader.abort();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_published_yet_waits_as_long_as_it_takes() {
    for error in [BusError::Away("away".into()), BusError::Refused("OOM command not".into())] {
        let test = async {
            let scene = Scene::new((0..100).map(|n| entry(n, "alice", None)));
            scene.bus.refuses.lock().unwrap().insert("alice".into(), error);
            let reader = scene.replica("a");
            sleep(Duration::from_secs(600)).await;
            assert_eq!(scene.published(), expected([]));
            scene.bus.refuses.lock().unwrap().clear();
            scene.emptied().await;
            assert_eq!(scene.published(), expected(0..100));
            assert!(scene.has("messages_dropped_total{reason=\"publish_invalid\"} 0\n"));
            reader.abort();
        };
        LocalSet::new().run_until(test).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_lease_nothing_is_taken() {
    let test = async {
        let scene = Scene::new((0..10).map(|n| entry(n, "alice", None)));
        *scene.stream.owner.lock().unwrap() = Some("another");
        let reader = scene.replica("a");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(scene.stream.waiting.lock().unwrap().len(), 10);
        *scene.stream.owner.lock().unwrap() = None;
        scene.emptied().await;
        // And one that loses it stops.
        *scene.stream.owner.lock().unwrap() = Some("another");
        sleep(Duration::from_secs(2)).await;
        scene.stream.waiting.lock().unwrap().push(entry(10, "alice", None));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(scene.published(), expected(0..10));
        reader.abort();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_list_is_published_in_waves() {
    let test = async {
        let scene =
            Scene::new([entry(0, "alice", None), entry(1, "many", None), entry(2, "alice", None)]);
        let reader = scene.replica("a");
        scene.emptied().await;
        let many = (0..MANY).map(|n| format!("m{n}:1"));
        let all = expected([0]).into_iter().chain(many).chain(expected([2]));
        assert_eq!(scene.published(), all.collect::<Vec<_>>());
        let longest = *scene.bus.longest.lock().unwrap();
        assert!(longest <= 256, "{longest} posts in one call");
        reader.abort();
    };
    LocalSet::new().run_until(test).await;
}

//! Gaps under a steady flow: two hundred events a second for users, a group and everyone, while
//! Redis and the network do what they do. Every client on every replica has all of them, once, in
//! order, and is told of nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Duration, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica},
    client::Dial,
    jwt::Jwt,
    proxy::{Flow, Proxy},
    raw::Raw,
    redis::RedisServer,
    tab::{Position, Tab, for_all, for_group, for_user, group_tag, marker, member, quick, split},
};

const USERS: [&str; 2] = ["alice", "bob"];
const GROUP: &str = "staff";
/// The channels that are published to in turn, by names of their own.
const CHANNELS: [&str; 4] = ["alice", "bob", GROUP, "all"];
/// So many events every fiftieth of a second.
const AT_ONCE: usize = 10;

fn event(channel: &str, marker: &str) -> Value {
    match channel {
        GROUP => for_group(GROUP, marker),
        "all" => for_all(marker),
        user => for_user(user, marker),
    }
}

/// What was accepted: the events of each channel by their place.
type Accepted = BTreeMap<&'static str, BTreeMap<Position, String>>;

/// A publisher that does not pause.
struct Steady {
    stop: CancellationToken,
    task: JoinHandle<Accepted>,
}

impl Steady {
    /// Publishes over these replicas in turn; each of them must accept everything.
    fn over(replicas: &[&Replica]) -> Self {
        let stop = CancellationToken::new();
        let targets: Vec<_> = replicas
            .iter()
            .map(|replica| {
                (replica.http.clone(), format!("http://{}/v1/events/batch", replica.internal))
            })
            .collect();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut accepted = Accepted::new();
            let mut tick = interval(Duration::from_millis(50));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut count = 0;
            // What is under way when it is told to stop is finished.
            while !stopped.is_cancelled() {
                tick.tick().await;
                let (http, url) = &targets[count / AT_ONCE % targets.len()];
                let part: Vec<_> = (count..count + AT_ONCE)
                    .map(|n| (CHANNELS[n % CHANNELS.len()], n.to_string()))
                    .collect();
                count += AT_ONCE;
                publish(http, url, part, &mut accepted).await;
            }
            accepted
        });
        Self { stop, task }
    }

    async fn end(self) -> Accepted {
        self.stop.cancel();
        self.task.await.expect("everything is accepted")
    }
}

async fn publish(
    http: &reqwest::Client,
    url: &str,
    part: Vec<(&'static str, String)>,
    accepted: &mut Accepted,
) {
    let events: Vec<_> = part.iter().map(|(channel, mk)| event(channel, mk)).collect();
    let request = http.post(url).header("authorization", format!("Bearer {API_KEY}"));
    let answer = request.json(&json!({"events": events})).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("an answer in JSON");
    let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(results.len(), part.len(), "{answer}");
    for (result, (channel, marker)) in results.iter().zip(part) {
        assert_eq!(result["status"], 202, "{result}");
        let (_, at) = split(member(result, "id").expect("an id"));
        let before = accepted.entry(channel).or_default().insert(at, marker);
        assert_eq!(before, None, "one id for two events");
    }
}

/// Everyone on these replicas, over either transport.
async fn everyone(replicas: &[&Replica]) -> Vec<(&'static str, Tab)> {
    let mut tabs = Vec::new();
    for replica in replicas {
        for user in USERS {
            let dial = Dial::to(replica).query(&Jwt::of(user).groups(&[GROUP]).sign());
            tabs.push((user, Tab::open(&dial).await));
            tabs.push((user, Tab::open(&dial.sse()).await));
        }
    }
    tabs
}

/// The words of a loss that came before a client had all there is for it.
async fn words_until_whole(user: &str, tab: &mut Tab, accepted: &Accepted) -> usize {
    let tags = [("u".to_owned(), user), ("b".to_owned(), "all"), (group_tag(GROUP), GROUP)];
    let last = |channel: &str| accepted[channel].keys().next_back().copied();
    let mut words = 0;
    while tags.iter().any(|(tag, channel)| tab.cursor.0.get(tag).copied() < last(channel)) {
        // It fails at a hole and at a repeat.
        words += usize::from(tab.next().await["type"] == "belfry.resync");
    }
    let mut got: BTreeMap<String, Vec<(Position, String)>> = BTreeMap::new();
    for text in &tab.events {
        let frame: Value = serde_json::from_str(text).expect("JSON");
        let (tag, at) = split(member(&frame, "id").expect("it is kept"));
        got.entry(tag.to_owned()).or_default().push((at, marker(&frame)));
    }
    for (tag, channel) in tags {
        let wanted: Vec<_> = accepted[channel].clone().into_iter().collect();
        assert!(!wanted.is_empty(), "nothing was published to {channel}");
        assert_eq!(got.remove(&tag).unwrap_or_default(), wanted, "{channel} for {user}");
    }
    words
}

async fn all_is_there(tabs: &mut [(&'static str, Tab)], accepted: &Accepted) {
    for (user, tab) in tabs {
        let words = words_until_whole(user, tab, accepted).await;
        assert_eq!(words, 0, "{user} was told of a loss");
    }
}

async fn gaps(replica: &Replica, reason: &str) -> f64 {
    replica.metrics().await.get("redis_pubsub_gaps_total", &[("reason", reason)])
}

/// A replica that reaches Redis over a proxy, and one beside it that reaches it directly.
async fn pair(redis: &RedisServer) -> (Replica, Proxy, Replica) {
    let builder = Builder::production().set("history.events", "5000");
    let proxy = Proxy::start(redis.address()).await;
    let far = quick(builder.clone(), redis).redis_at(&format!("redis://{}", proxy.address));
    let (far, near) = tokio::join!(far.spawn(), quick(builder, redis).spawn());
    (far, proxy, near)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_are_killed_again_and_again() {
    let redis = RedisServer::start().await;
    let (one, _proxy, two) = pair(&redis).await;
    let replicas = [&one, &two];
    let mut tabs = everyone(&replicas).await;
    let steady = Steady::over(&replicas);
    for round in 1..=6 {
        sleep(Duration::from_millis(200)).await;
        redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        for replica in replicas {
            let enough = f64::from(round);
            let reason = [("reason", "reconnected")];
            replica.metric("redis_pubsub_gaps_total", &reason, PATIENCE, |n| n >= enough).await;
        }
    }
    let accepted = steady.end().await;
    all_is_there(&mut tabs, &accepted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_is_cut_off_for_five_seconds() {
    let redis = RedisServer::start().await;
    let (far, mut proxy, near) = pair(&redis).await;
    let mut tabs = everyone(&[&far, &near]).await;
    let steady = Steady::over(&[&near]);
    proxy.refuse().await;
    proxy.cut();
    // As long as the fault is to last.
    sleep(Duration::from_secs(5)).await;
    far.becomes("/readyz", 503, PATIENCE).await;
    proxy.allow().await;
    far.becomes("/readyz", 200, PATIENCE).await;
    let accepted = steady.end().await;
    all_is_there(&mut tabs, &accepted).await;
    assert!(gaps(&far, "reconnected").await >= 1.0);
    assert!((near.metrics().await.sum("redis_pubsub_gaps_total")).abs() < f64::EPSILON);
}

/// The commands go through, and so do the replica's own probes; what is published never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_goes_deaf() {
    let redis = RedisServer::start().await;
    let (far, proxy, near) = pair(&redis).await;
    let mut tabs = everyone(&[&far, &near]).await;
    let steady = Steady::over(&[&far, &near]);
    for round in 1..=2 {
        let clients = redis.cli(&["CLIENT", "LIST"]);
        let ports: Vec<u16> = clients
            .lines()
            .filter(|line| line.contains("name=belfry-subscriber"))
            .flat_map(str::split_whitespace)
            .filter_map(|field| field.strip_prefix("addr=127.0.0.1:")?.parse().ok())
            .collect();
        assert_eq!(proxy.flow_of(&ports, Flow::Pass, Flow::Stall), 1, "{clients}");
        let (lost, enough) = ([("reason", "probe_lost")], f64::from(round));
        far.metric("redis_pubsub_gaps_total", &lost, PATIENCE, |n| n >= enough).await;
    }
    let accepted = steady.end().await;
    all_is_there(&mut tabs, &accepted).await;
    assert!((near.metrics().await.sum("redis_pubsub_gaps_total")).abs() < f64::EPSILON);
}

/// More comes at once than the subscriber has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_more_than_a_replica_can_take() {
    use nix::sys::signal::Signal;
    // Of a publisher that does not want it kept; its loss is nobody's. And of a neighbour: whoever
    // is told has lost nothing that is kept.
    let transient = r#"{"belfry":{"v":1,"transient":true},"type":"flood","data":0}"#;
    let raw = r#"{"type":"flood","data":0}"#;
    for (flood, is_told) in [(transient, false), (raw, true)] {
        let redis = RedisServer::start().await;
        let (far, _proxy, near) = pair(&redis).await;
        let mut tabs = everyone(&[&far]).await;
        let mut client = redis.client().await;
        let mut accepted = Accepted::new();
        let url = format!("http://{}/v1/events/batch", near.internal);
        far.process.signal(Signal::SIGSTOP);
        for round in 0..40 {
            let many = (0..3_000).map(|_| ("ws:user:elsewhere", flood.as_bytes().to_vec()));
            client.publish_all(many).await;
            let part = CHANNELS.map(|channel| (channel, round.to_string()));
            publish(&near.http, &url, part.into(), &mut accepted).await;
        }
        far.process.signal(Signal::SIGCONT);
        for (user, tab) in &mut tabs {
            let words = words_until_whole(user, tab, &accepted).await;
            assert!(is_told || words == 0, "told of a loss of nothing");
        }
        assert!(gaps(&far, "lagged").await >= 1.0, "nothing was dropped, so nothing was tested");
    }
}

/// The subscriber is faster than the worker that writes to the sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_more_than_a_worker_can_take() {
    use nix::sys::signal::Signal;
    const EVENTS: usize = 12_000;
    let redis = RedisServer::start().await;
    let builder = Builder::production().set("history.events", "20000");
    let builder = quick(builder.set("history.bytes", "64MiB"), &redis);
    let crowded = builder.clone().set("public.workers", "1");
    let (far, near) = tokio::join!(crowded.spawn(), builder.spawn());
    let dial = |n| Dial::to(&far).query(&Jwt::of(&format!("user-{n}")).sign());
    let mut few = Vec::new();
    for n in 0..5 {
        few.push(dial(n).open().await);
    }
    // They take in whatever comes, and only make work.
    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..400 {
        let Raw { reader, writer, .. } = dial(n).raw().await;
        let mut stream = reader.into_stream(writer);
        crowd.spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
    }
    far.process.signal(Signal::SIGSTOP);
    let url = format!("http://{}/v1/events/batch", near.internal);
    for first in (0..EVENTS).step_by(1_000) {
        let part = (first..first + 1_000).map(|n| ("all", n.to_string())).collect();
        publish(&near.http, &url, part, &mut Accepted::new()).await;
    }
    far.process.signal(Signal::SIGCONT);
    for ws in &mut few {
        for n in 0..EVENTS {
            let (_, text) = ws.text(PATIENCE).await;
            assert!(text.ends_with(&format!(r#""data":{{"mk":"{n}"}}}}"#)), "{n} is not {text}");
        }
    }
    let full = [("reason", "worker_lagged")];
    let dropped = far.metrics().await.get("messages_dropped_total", &full);
    assert!(dropped >= 1.0, "it had room for everything, so nothing was tested");
}

/// More is missed in some channels than is kept, and nothing in others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_several_channels_is_told_to_those_who_are_in_them() {
    let redis = RedisServer::start().await;
    let builder = quick(Builder::production().set("history.events", "5"), &redis);
    let mut proxy = Proxy::start(redis.address()).await;
    let far = builder.clone().redis_at(&format!("redis://{}", proxy.address));
    let (far, near) = tokio::join!(far.spawn(), builder.spawn());
    let dial = |replica: &Replica, user: &str, groups: &[&str]| {
        Dial::to(replica).query(&Jwt::of(user).groups(groups).sign())
    };
    let mut tabs = Vec::new();
    for (user, groups) in [("in-both", &[GROUP, "calm"][..]), ("outside", &["calm"])] {
        let road = dial(&far, user, groups);
        tabs.push((user, groups, Tab::open(&road).await));
        tabs.push((user, groups, Tab::open(&road.sse()).await));
    }
    proxy.refuse().await;
    proxy.cut();
    let url = format!("http://{}/v1/events/batch", near.internal);
    let mut accepted = Accepted::new();
    for channel in [GROUP, "all"] {
        // Redis drops whole pages of up to a hundred.
        let part = (0..600).map(|n| (channel, n.to_string())).collect();
        publish(&near.http, &url, part, &mut accepted).await;
    }
    for user in ["in-both", "outside"] {
        publish(&near.http, &url, vec![(user, "own".into())], &mut accepted).await;
    }
    proxy.allow().await;
    for (user, groups, tab) in &mut tabs {
        let mut missing = vec!["b".to_owned()];
        missing.extend(groups.contains(&GROUP).then(|| group_tag(GROUP)));
        let mut own = false;
        while !missing.is_empty() || !own {
            let frame = tab.next().await;
            if frame["type"] != "belfry.resync" {
                assert_eq!(marker(&frame), "own");
                own = true;
                continue;
            }
            for lost in frame["lost"].as_array().expect("a list") {
                let index = missing.iter().position(|tag| lost == tag);
                missing.swap_remove(index.unwrap_or_else(|| panic!("for {user}: {frame}")));
            }
        }
        // Each begins where it was told, on any replica.
        let cursor = tab.cursor.to_string();
        let mut back = Tab::resume(&dial(&near, user, groups), &cursor).await;
        back.is_whole();
        assert_eq!(back.replay().await, Vec::<Value>::new(), "{user}");
    }
    publish(&near.http, &url, vec![(GROUP, "last".into()), ("all", "last".into())], &mut accepted)
        .await;
    for (_, groups, tab) in &mut tabs {
        for _ in 0..=usize::from(groups.contains(&GROUP)) {
            assert_eq!(marker(&tab.next().await), "last");
        }
    }
    assert!(gaps(&far, "reconnected").await >= 1.0);
}

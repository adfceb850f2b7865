//! The promises of the bus and the store, kept by both implementations, and what happens to them
//! when a real Redis fails.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use secrecy::SecretString;
use tokio::time::{Instant, timeout};

use super::{
    Ask, BusError, Destination, Feed, History, Incoming, Message, Publisher,
    control::Kept,
    envelope::{self, Decoded},
    memory,
    orders::OrderId,
    redis,
};
use crate::{
    config,
    event::{Channel, Group, SessionKey, UserId},
    history::Bounds,
    store::{Claim, IDEMPOTENCY_TTL, Store, memory::MemoryStore, redis::RedisStore},
    testing::{RedisCluster, RedisServer, eventually},
};

const SOON: Duration = Duration::from_secs(5);
const COMMAND_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A bus and a store of one kind.
struct Bus {
    publisher: Arc<dyn Publisher>,
    history: Arc<dyn History>,
    feed: Box<dyn Feed>,
    store: Arc<dyn Store>,
    /// Other replicas may share it.
    is_shared: bool,
    redis: Option<RedisServer>,
}

/// What is kept where a test does not say.
const BOUNDS: Bounds = Bounds {
    events: 300,
    bytes: 1024 * 1024,
    ttl: Duration::from_secs(3_600),
    meta_ttl: Duration::from_secs(86_400),
};

impl Bus {
    fn in_memory(bounds: Bounds) -> Self {
        let store = Arc::new(MemoryStore::default());
        let capacity = memory::Capacity::default();
        let (publisher, feed) = memory::MemoryBus::new(capacity, bounds, Arc::clone(&store));
        let publisher = Arc::new(publisher);
        Self {
            history: Arc::clone(&publisher) as _,
            publisher,
            feed: Box::new(feed),
            store,
            is_shared: false,
            redis: None,
        }
    }

    async fn on_redis() -> Self {
        Self::on(RedisServer::running().await, "", BOUNDS)
    }

    /// On this server, which need not run yet, with `credentials` (`name:password@`).
    fn on(server: RedisServer, credentials: &str, bounds: Bounds) -> Self {
        let url = format!("redis://{credentials}127.0.0.1:{}", server.port);
        Self { redis: Some(server), ..Self::connect(url, "ws:", bounds) }
    }

    fn connect(url: String, prefix: &str, bounds: Bounds) -> Self {
        let settings = config::Redis {
            url: SecretString::from(url),
            url_file: None,
            prefix: prefix.to_owned(),
            connect_timeout: Duration::from_secs(2),
            command_timeout: COMMAND_TIMEOUT,
            inflight: 1_024,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(2),
        };
        let bus = redis::connect(&settings, bounds).unwrap();
        let publisher = Arc::new(bus.publisher);
        Self {
            history: Arc::clone(&publisher) as _,
            publisher,
            feed: Box::new(bus.feed),
            store: Arc::new(RedisStore::new(bus.commands, bus.names)),
            is_shared: true,
            redis: None,
        }
    }

    fn server(&mut self) -> &mut RedisServer {
        self.redis.as_mut().expect("this bus is on Redis")
    }

    async fn next(&mut self) -> Incoming {
        timeout(SOON, self.feed.next()).await.expect("the feed yields").expect("the feed lives")
    }

    /// Waits until it can publish and hear.
    async fn ready(mut self) -> Self {
        assert!(matches!(self.next().await, Incoming::Subscribed { again: false }));
        self.up().await;
        self
    }

    async fn up(&self) {
        eventually("the publisher is up", SOON, || async { self.publisher.is_up() }).await;
    }

    async fn publish(&self, to: &Destination, payload: impl Into<Bytes>) -> Result<(), BusError> {
        let message = Message { to: to.clone(), payload: payload.into() };
        self.publisher.publish(vec![message]).await
    }

    /// The next message; nothing else may come before it.
    async fn message(&mut self) -> (Destination, Bytes) {
        match self.next().await {
            Incoming::Message { from, payload } => (from, payload),
            other => panic!("a message was due, not {other:?}"),
        }
    }

    /// Where the next message came, which must be a probe.
    async fn probe(&mut self) -> Destination {
        let (from, payload) = self.message().await;
        assert_eq!(envelope::decode(&payload), Ok(Decoded::Probe("p".to_owned())));
        from
    }

    /// Reads until the subscription stands again; true if its loss was told.
    async fn resubscribed(&mut self) -> bool {
        let mut lost = false;
        loop {
            match self.next().await {
                Incoming::Lost(_) => lost = true,
                Incoming::Subscribed { again } => {
                    assert!(again);
                    return lost;
                }
                other => panic!("not due: {other:?}"),
            }
        }
    }

    /// Nothing but what was expected has come: a marker published now is the next message.
    async fn is_silent(&mut self) {
        self.publish(&Destination::Control, "marker").await.unwrap();
        assert_eq!(self.message().await, (Destination::Control, Bytes::from("marker")));
    }
}

fn user(id: &str) -> Destination {
    Destination::Events(Channel::User(UserId::new(id).unwrap()))
}

fn group(name: &str) -> Destination {
    Destination::Events(Channel::Group(Group::new(name).unwrap()))
}

fn probe(to: Destination) -> Message {
    Message { to, payload: envelope::encode_probe("p").unwrap() }
}

type Promise = fn(Bus) -> LocalBoxFuture<'static, ()>;

/// Each promise becomes one test in memory and one on Redis.
macro_rules! promises {
    ($($(#[$doc:meta])* async fn $name:ident($bus:pat) $body:block)*) => {
        $($(#[$doc])* async fn $name($bus: Bus) $body)*

        /// All of them, by name.
        pub(in crate::bus::suite) fn promises() -> Vec<(&'static str, Promise)> {
            vec![$((stringify!($name), |bus| Box::pin($name(bus)))),*]
        }

        mod in_memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Bus::in_memory(super::BOUNDS).ready().await).await;
            })*
        }

        mod on_redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Bus::on_redis().await.ready().await).await;
            })*
        }
    };
}

mod kept;
mod seats;

promises! {
    /// Also within one call, and between calls.
    async fn a_channel_keeps_its_order(mut bus) {
        let to = user("alice");
        for round in 0..20_u32 {
            let messages = (0..50_u32)
                .map(|n| Message { to: to.clone(), payload: (round * 50 + n).to_string().into() })
                .collect();
            bus.publisher.publish(messages).await.unwrap();
        }
        for n in 0..1_000_u32 {
            assert_eq!(bus.message().await, (to.clone(), Bytes::from(n.to_string())));
        }
    }

    /// Every kind of channel, and every name that looks like part of another.
    async fn a_message_arrives_where_it_was_sent_and_only_once(mut bus) {
        let mut all = vec![
            Destination::Events(Channel::Broadcast),
            Destination::Control,
            Destination::UserProbe,
            Destination::GroupProbe,
        ];
        for name in [
            "tenant:42", "42", "a:b:c", "c", "b:c", ":x", "x:", ":", "*", "?", "[a]", "\\", "/",
            "{a}", " ", "Bob", "bob", "bob ", "josé", "jose\u{301}", "🔔", "a\u{200d}b",
            "broadcast", "ws:broadcast", "user:a", "group:a", "probe",
        ] {
            all.push(user(name));
            all.push(group(name));
        }
        all.push(user(&"é".repeat(128)));
        for to in &all {
            bus.publish(to, format!("{to:?}")).await.unwrap();
        }
        // The order holds for each channel, not between them.
        let mut expected: HashMap<Destination, String> =
            all.into_iter().map(|to| (to.clone(), format!("{to:?}"))).collect();
        while !expected.is_empty() {
            let (to, payload) = bus.message().await;
            assert_eq!(expected.remove(&to).map(Bytes::from), Some(payload), "{to:?}");
        }
        bus.is_silent().await;
    }

    async fn bytes_arrive_as_they_went(mut bus) {
        for payload in [
            Bytes::from_static(b""),
            Bytes::from_static(b"{\"a\": 1}"),
            Bytes::from_static(b"QUEUED"),
            Bytes::from_static(b"\xff\xfe\r\n$5\r\n\0"),
            Bytes::from(vec![b'x'; 600 * 1024]),
        ] {
            bus.publish(&user("alice"), payload.clone()).await.unwrap();
            assert_eq!(bus.message().await.1, payload);
        }
    }

    async fn a_probe_comes_back(mut bus) {
        for to in [
            Destination::UserProbe,
            Destination::GroupProbe,
            Destination::Control,
            Destination::Events(Channel::Broadcast),
        ] {
            bus.publisher.probe(probe(to.clone())).await.unwrap();
            assert_eq!(bus.probe().await, to);
        }
        let asks = vec![Ask { channel: Channel::Broadcast, after: None, most: 0 }];
        assert_eq!(bus.history.read(asks).await.unwrap()[0].last, None, "nothing was kept");
    }

    /// Whoever polls the feed in a `select!` drops most of its futures.
    async fn a_dropped_wait_loses_nothing(mut bus) {
        for n in 0..200_u32 {
            assert!(timeout(Duration::ZERO, bus.feed.next()).await.is_err());
            bus.publish(&user("alice"), n.to_string()).await.unwrap();
            assert_eq!(bus.message().await.1, Bytes::from(n.to_string()));
        }
    }

    async fn a_restart_is_followed_by_a_new_subscription(mut bus) {
        bus.feed.restart().await;
        bus.resubscribed().await;
        bus.is_silent().await;
    }

    /// A burst faster than anyone reads: what is not delivered is told.
    async fn a_burst_is_whole_or_told(mut bus) {
        const BURST: u64 = 20_000;
        let publisher = Arc::clone(&bus.publisher);
        let sending = tokio::spawn(async move {
            for _ in 0..BURST / 500 {
                let messages = (0..500)
                    .map(|_| Message { to: user("alice"), payload: vec![b'x'; 512].into() })
                    .collect();
                publisher.publish(messages).await.unwrap();
            }
        });
        let (mut seen, mut lagged) = (0, 0);
        while seen + lagged < BURST {
            match bus.next().await {
                Incoming::Message { .. } => seen += 1,
                Incoming::Lagged(count) => lagged += count,
                other => panic!("not due: {other:?}"),
            }
        }
        assert_eq!(seen + lagged, BURST);
        sending.await.unwrap();
        bus.is_silent().await;
    }

    async fn a_claim_goes_from_fresh_to_done(bus) {
        let (store, pending) = (&bus.store, Duration::from_secs(10));
        assert_eq!(store.claim("k", "f", pending).await.unwrap(), Claim::Fresh);
        assert_eq!(store.claim("k", "f", pending).await.unwrap(), Claim::Pending);
        let other = Claim::Done { fingerprint: "f".to_owned(), answer: String::new() };
        assert_eq!(store.claim("k", "g", pending).await.unwrap(), other);
        store.settle("k", "f", "{\"id\":1}", IDEMPOTENCY_TTL).await.unwrap();
        let done = Claim::Done { fingerprint: "f".to_owned(), answer: "{\"id\":1}".to_owned() };
        assert_eq!(store.claim("k", "f", pending).await.unwrap(), done);
        assert_eq!(store.claim("k", "g", pending).await.unwrap(), done);
        store.release("k").await.unwrap();
        assert_eq!(store.claim("k", "f", pending).await.unwrap(), done, "an answer stays");
    }

    async fn a_released_claim_is_free_again(bus) {
        let (store, pending) = (&bus.store, Duration::from_secs(10));
        for _ in 0..2 {
            assert_eq!(store.claim("k", "f", pending).await.unwrap(), Claim::Fresh);
            store.release("k").await.unwrap();
        }
        store.release("never claimed").await.unwrap();
    }

    async fn a_claim_ends_by_itself(bus) {
        let pending = Duration::from_millis(100);
        assert_eq!(bus.store.claim("k", "f", pending).await.unwrap(), Claim::Fresh);
        eventually("the claim ends", SOON, || async {
            bus.store.claim("k", "f", pending).await.unwrap() == Claim::Fresh
        })
        .await;
    }

    async fn a_revocation_holds_for_its_subject_alone_and_for_its_time(bus) {
        let store = &bus.store;
        let [alice, bob] = ["alice", "b:{o}b"].map(|id| UserId::new(id).unwrap());
        let [s, t] = ["s", "t"].map(|id| Some(SessionKey::of(id)));
        let at = SystemTime::now();
        let (before, after) = (Some(at - SOON), Some(at + SOON));
        assert!(!store.revoked(&alice, s, None).await.unwrap());
        store.revoke_session(SessionKey::of("s"), Duration::from_millis(300)).await.unwrap();
        assert!(store.revoked(&alice, s, after).await.unwrap());
        assert!(!store.revoked(&alice, t, None).await.unwrap());
        store.revoke_user(&bob, at, s, SOON).await.unwrap();
        store.revoke_user(&bob, at, t, SOON).await.unwrap();
        assert!(store.revoked(&bob, None, before).await.unwrap());
        assert!(store.revoked(&bob, t, None).await.unwrap(), "the first order covers it");
        assert!(!store.revoked(&bob, t, after).await.unwrap());
        assert!(!store.revoked(&alice, t, before).await.unwrap());
        eventually("the session's revocation ends", SOON, || async {
            !store.revoked(&alice, s, None).await.unwrap()
        })
        .await;
    }

    async fn an_order_is_heard_by_everyone(mut bus) {
        let order = r#"{"user":"alice","cause":"revoked","given":1700000000000,"nonce":"n"}"#;
        let mut places = Vec::new();
        for _ in 0..2 {
            bus.publisher.give(order.to_owned()).await.unwrap();
            let (from, payload) = bus.message().await;
            assert_eq!(from, Destination::Control);
            let Ok(Decoded::Order(given)) = envelope::decode(&payload) else { panic!() };
            assert_eq!(given.nonce.as_deref(), Some("n"));
            places.push(given.id.unwrap());
        }
        assert!(places[0] < places[1]);
        let kept = bus.publisher.kept(places[0]).await.unwrap();
        assert!(!kept.hole, "{kept:?}");
        let kept = kept.orders;
        assert!(kept.iter().all(|(id, _)| *id == places[1]), "{kept:?}");
        assert_eq!(kept.len(), usize::from(bus.is_shared));
        for (_, payload) in kept {
            let Ok(Decoded::Order(given)) = envelope::decode(&payload) else { panic!() };
            assert_eq!(given.id, Some(places[1]));
        }
    }

    async fn one_of_many_claims_is_fresh(bus) {
        let claims: Vec<_> = (0..100)
            .map(|_| {
                let store = Arc::clone(&bus.store);
                tokio::spawn(async move { store.claim("k", "f", SOON).await.unwrap() })
            })
            .collect();
        let mut fresh = 0;
        for claim in claims {
            match claim.await.unwrap() {
                Claim::Fresh => fresh += 1,
                other => assert_eq!(other, Claim::Pending),
            }
        }
        assert_eq!(fresh, 1);
    }
}

/// Every promise, on three masters that share the slots. One cluster serves them all, each under a
/// prefix of its own.
#[tokio::test]
async fn all_promises_hold_on_a_cluster() {
    let cluster = RedisCluster::running().await;
    let all = promises().into_iter().chain(kept::promises()).chain(seats::promises());
    for (n, (name, promise)) in all.enumerate() {
        println!("{name}");
        let bus = Bus::connect(cluster.url(), &format!("p{n}:"), BOUNDS);
        promise(bus.ready().await).await;
    }
}

#[tokio::test]
async fn a_full_memory_bus_refuses_in_time() {
    let capacity =
        memory::Capacity { messages: 10, bytes: 100, patience: Duration::from_millis(50) };
    for (count, size) in [(11, 1), (2, 60)] {
        let (publisher, mut feed) = memory::MemoryBus::new(capacity, BOUNDS, Arc::default());
        let message = || Message { to: user("alice"), payload: vec![b'x'; size].into() };
        for _ in 1..count {
            publisher.publish(vec![message()]).await.unwrap();
        }
        let refused = publisher.publish(vec![message()]).await;
        assert!(matches!(refused, Err(BusError::Away(_))), "{refused:?}");
        assert!(matches!(feed.next().await, Some(Incoming::Subscribed { again: false })));
        assert!(matches!(feed.next().await, Some(Incoming::Message { .. })));
        publisher.publish(vec![message()]).await.unwrap();
    }
}

/// Redis does not wait for a reader that stands still.
#[tokio::test]
async fn a_lag_is_told() {
    const BURST: u64 = 40_000;
    let mut bus = Bus::on_redis().await.ready().await;
    for _ in 0..BURST / 1_000 {
        let message = || Message { to: user("alice"), payload: "x".into() };
        bus.publisher.publish((0..1_000).map(|_| message()).collect()).await.unwrap();
    }
    let (mut seen, mut lagged) = (0, 0);
    while seen + lagged < BURST {
        match bus.next().await {
            Incoming::Message { .. } => seen += 1,
            Incoming::Lagged(count) => lagged += count,
            other => panic!("not due: {other:?}"),
        }
    }
    assert_eq!(seen + lagged, BURST);
    assert!(lagged > 0, "it kept more than its bound");
    bus.is_silent().await;
}

/// What neighbours PUBLISH raw, and what names nobody.
#[tokio::test]
async fn raw_publishes_arrive() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.server().command(&["PUBLISH", "ws:user:a:b", "{}"]).await;
    assert_eq!(bus.message().await, (user("a:b"), Bytes::from("{}")));
    for channel in ["ws:user:", "ws:user:a\nb", &format!("ws:group:{}", "x".repeat(257))] {
        bus.server().command(&["PUBLISH", channel, "{}"]).await;
        assert!(matches!(bus.next().await, Incoming::Unaddressed), "{channel:?}");
    }
    bus.server().command(&["PUBLISH", "ws:broadcast2", "{}"]).await;
    bus.is_silent().await;
}

#[tokio::test]
async fn connections_bear_their_names() {
    let mut bus = Bus::on_redis().await.ready().await;
    let server = bus.server();
    eventually("both have their names", SOON, || async {
        let clients = server.command(&["CLIENT", "LIST"]).await;
        clients.contains("name=belfry-publisher") && clients.contains("name=belfry-subscriber")
    })
    .await;
}

#[tokio::test]
async fn every_key_of_the_store_expires() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.store.claim("a", "f", SOON).await.unwrap();
    bus.store.claim("b", "f", SOON).await.unwrap();
    bus.store.settle("b", "f", "answer", IDEMPOTENCY_TTL).await.unwrap();
    bus.publisher.probe(probe(Destination::Control)).await.unwrap();
    let server = bus.server();
    // Beside them the epoch and the pulse, which the tests of kept events hold.
    assert_eq!(server.command(&["DBSIZE"]).await, ":4\r\n");
    for (key, limit) in [("a", SOON), ("b", IDEMPOTENCY_TTL)] {
        let answer = server.command(&["PTTL", &format!("ws:idempotency:{key}")]).await;
        let ttl: u64 = answer.trim().trim_start_matches(':').parse().unwrap();
        assert!(ttl > 0 && u128::from(ttl) <= limit.as_millis(), "{key}: {ttl}");
    }
}

#[tokio::test]
async fn redis_may_come_later() {
    let mut bus = Bus::on(RedisServer::absent(), "", BOUNDS);
    let begun = Instant::now();
    assert!(matches!(bus.publish(&user("a"), "early").await, Err(BusError::Away(_))));
    let refused = bus.publisher.probe(probe(Destination::Control)).await;
    assert!(matches!(refused, Err(BusError::Away(_))));
    assert!(begun.elapsed() < Duration::from_millis(100), "refused at once: {:?}", begun.elapsed());
    assert!(timeout(Duration::from_millis(500), bus.feed.next()).await.is_err());
    bus.server().start().await;
    let mut bus = bus.ready().await;
    bus.is_silent().await;
    // The probe that failed before did not cost the connection that came after.
    let stats = bus.server().command(&["INFO", "commandstats"]).await;
    assert!(stats.contains("cmdstat_hello:calls=2,"), "{stats}");
}

#[tokio::test]
async fn redis_may_be_killed_and_come_back() {
    let mut bus = Bus::on_redis().await.ready().await;
    for _ in 0..2 {
        bus.server().kill();
        assert!(matches!(bus.next().await, Incoming::Lost(_)));
        eventually("the publisher is down", SOON, || async { !bus.publisher.is_up() }).await;
        // Refused, and never delivered.
        assert!(bus.publish(&user("a"), "refused").await.is_err());
        bus.server().start().await;
        bus.resubscribed().await;
        bus.up().await;
        bus.is_silent().await;
    }
}

#[tokio::test]
async fn a_cut_subscription_comes_back_and_says_so() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.server().command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert!(bus.resubscribed().await);
    bus.is_silent().await;
}

#[tokio::test]
async fn a_cut_publisher_comes_back() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.server().command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    eventually("it publishes again", SOON, || async {
        bus.publish(&Destination::Control, "x").await.is_ok()
    })
    .await;
    assert_eq!(bus.message().await.1, Bytes::from("x"));
}

/// The server hangs: connections stand, nothing is answered.
#[tokio::test]
async fn a_frozen_redis_is_noticed_and_survived() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.server().freeze();
    let begun = Instant::now();
    assert!(matches!(bus.publish(&user("a"), "unsure").await, Err(BusError::Away(_))));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    // From here it is refused at once, and not sent.
    let begun = Instant::now();
    for _ in 0..1_000 {
        assert!(bus.publish(&user("a"), "refused").await.is_err());
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    }
    assert!(bus.store.claim("k", "f", SOON).await.is_err());
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());

    let begun = Instant::now();
    bus.feed.restart().await;
    assert!(begun.elapsed() < Duration::from_millis(100), "it does not ask the server");
    assert!(timeout(Duration::from_secs(3), bus.feed.next()).await.is_err());
    assert!(!bus.publisher.is_up());

    bus.server().thaw();
    assert!(!bus.resubscribed().await);
    bus.up().await;
    bus.is_silent().await;
}

/// Publishes that wait their turn when Redis hangs end in the same two seconds.
#[tokio::test]
async fn a_crowd_is_refused_in_time() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.server().freeze();
    let begun = Instant::now();
    let crowd: Vec<_> = (0..3_000)
        .map(|_| {
            let publisher = Arc::clone(&bus.publisher);
            let message = Message { to: user("alice"), payload: "x".into() };
            tokio::spawn(async move { publisher.publish(vec![message]).await })
        })
        .collect();
    for one in crowd {
        assert!(one.await.unwrap().is_err());
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    bus.server().thaw();
}

/// On a replica `PUBLISH` succeeds, and reaches only those who listen there.
#[tokio::test]
async fn a_read_only_replica_is_refused() {
    let mut bus = Bus::on_redis().await.ready().await;
    let other = RedisServer::running().await;
    bus.server().command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    let refused = bus.publisher.probe(probe(Destination::Control)).await;
    assert!(
        matches!(&refused, Err(BusError::Refused(why)) if why.contains("READONLY")),
        "{refused:?}"
    );
    assert!(!bus.publisher.is_up());
    assert!(bus.publish(&user("a"), "refused").await.is_err());

    bus.server().command(&["REPLICAOF", "NO", "ONE"]).await;
    bus.up().await;
    bus.publisher.probe(probe(Destination::Control)).await.unwrap();
}

/// A full Redis still carries words between replicas. Events and probes need room, so that it
/// shows.
#[tokio::test]
async fn a_full_redis_still_delivers_words() {
    let mut bus = Bus::on_redis().await.ready().await;
    bus.server().command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    bus.is_silent().await;
    let refused = bus.publisher.probe(probe(Destination::UserProbe)).await;
    assert!(matches!(&refused, Err(BusError::Refused(why)) if why.contains("OOM")), "{refused:?}");
    let refused = bus.store.claim("k", "f", SOON).await;
    assert!(matches!(&refused, Err(BusError::Refused(why)) if why.contains("OOM")), "{refused:?}");
    assert!(bus.publisher.is_up());
    bus.server().command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    bus.publisher.probe(probe(Destination::UserProbe)).await.unwrap();
    assert_eq!(bus.probe().await, Destination::UserProbe);
    bus.is_silent().await;
}

/// What is no text is passed on to be counted, and hides nothing after it; what was lost is told.
#[tokio::test]
async fn garbled_orders_and_holes_are_seen() {
    let mut bus = Bus::on_redis().await.ready().await;
    let order = r#"{"user":"alice","cause":"revoked","given":1700000000000}"#;
    bus.publisher.give(order.to_owned()).await.unwrap();
    let garbled = r"return redis.call('XADD', 'ws:control', '*', 'order', '\255\254')";
    bus.server().command(&["EVAL", garbled, "0"]).await;
    bus.publisher.give(order.to_owned()).await.unwrap();
    let kept = bus.publisher.kept(OrderId::default()).await.unwrap();
    assert!(!kept.hole);
    let [(first, _), (_, bad), (last, good)] = &kept.orders[..] else { panic!("{kept:?}") };
    assert_eq!(envelope::decode(bad), Err(envelope::Poison::Invalid));
    assert!(matches!(envelope::decode(good), Ok(Decoded::Order(_))));
    let kept = bus.publisher.kept(*last).await.unwrap();
    assert_eq!(kept, Kept::default());

    bus.server().command(&["XTRIM", "ws:control", "MAXLEN", "1"]).await;
    let kept = bus.publisher.kept(*first).await.unwrap();
    assert!(kept.hole && kept.orders.len() == 1, "{kept:?}");
    bus.server().command(&["DEL", "ws:control"]).await;
    assert!(bus.publisher.kept(*last).await.unwrap().hole);
    // A fleet that was quiet for an hour has lost nothing.
    let old = OrderId::parse("1700000000000-0").unwrap();
    assert_eq!(bus.publisher.kept(old).await.unwrap(), Kept::default());
    bus.publisher.give(order.to_owned()).await.unwrap();
    assert!(!bus.publisher.kept(old).await.unwrap().hole);
}

/// A user without the right to the channels: no false success, no storm of tries.
#[tokio::test]
async fn a_missing_right_is_not_taken_for_a_subscription() {
    let mut bus = Bus::on(RedisServer::absent(), "limited:secret@", BOUNDS);
    let server = bus.server();
    server.start().await;
    let rights = ["resetchannels", "&ws:user:*", "&ws:broadcast", "&ws:control"];
    let mut rule = vec!["ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all"];
    rule.extend(rights);
    assert_eq!(server.command(&rule).await, "+OK\r\n");
    bus.up().await;
    let mut told = 0;
    let reading = async {
        loop {
            match bus.feed.next().await {
                Some(Incoming::Lost(why)) => {
                    assert!(why.contains("NOPERM"), "{why}");
                    told += 1;
                }
                other => panic!("not due: {other:?}"),
            }
        }
    };
    assert!(timeout(Duration::from_secs(3), reading).await.is_err());
    assert!((1..=6).contains(&told), "told {told} times in 3 s");
    let refused = bus.publish(&group("a"), "x").await;
    assert!(
        matches!(&refused, Err(BusError::Refused(why)) if why.contains("NOPERM")),
        "{refused:?}"
    );
    assert!(bus.publisher.is_up(), "other channels work");
    let stats = bus.server().command(&["INFO", "commandstats"]).await;
    let calls: u64 = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_psubscribe:"))
        .map(|line| {
            let field = |name| {
                let value = line.split(',').find_map(|field| field.strip_prefix(name));
                value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
            };
            field("calls=") + field("rejected_calls=")
        })
        .expect("it tried");
    assert!((2..=12).contains(&calls), "{calls} tries in 3 s: {stats}");

    // With the right, the next try succeeds.
    bus.server().command(&["ACL", "SETUSER", "limited", "&ws:group:*"]).await;
    let granted =
        async { while !matches!(bus.next().await, Incoming::Subscribed { again: false }) {} };
    timeout(SOON * 2, granted).await.expect("the right is used");
    bus.is_silent().await;
}

/// A user who may do nothing that is not needed.
#[tokio::test]
async fn the_least_rights_suffice() {
    let mut bus = Bus::on(RedisServer::absent(), "least:p%40ss@", BOUNDS);
    let server = bus.server();
    server.start().await;
    let hint = redis::Names::new("ws:", false).acl_hint();
    let mut rule =
        vec!["ACL", "SETUSER", "least", "on", ">p@ss", "resetkeys", "resetchannels", "-@all"];
    rule.extend(hint.split(' '));
    assert_eq!(server.command(&rule).await, "+OK\r\n");
    let readme = include_str!("../../README.md");
    assert!(readme.contains(redis::COMMANDS), "the README says something else: {hint}");
    let mut bus = bus.ready().await;
    bus.is_silent().await;
    assert_eq!(bus.store.claim("k", "f", SOON).await.unwrap(), Claim::Fresh);
    bus.store.release("k").await.unwrap();
    for to in [Destination::UserProbe, Destination::Control] {
        bus.publisher.probe(probe(to.clone())).await.unwrap();
        assert_eq!(bus.probe().await, to);
    }
    kept::a_life_with(bus).await;
}

#[tokio::test]
async fn everything_ends_when_it_is_dropped() {
    let mut bus = Bus::on_redis().await.ready().await;
    let server = bus.redis.take().unwrap();
    drop(bus);
    eventually("no connection is left", SOON, || async {
        // One asks.
        server.command(&["INFO", "clients"]).await.contains("connected_clients:1\r\n")
    })
    .await;
}

#[test]
fn a_malformed_address_does_not_leak_its_password() {
    let settings = config::Redis {
        url: SecretString::from("redis://user:hush@host:not-a-port"),
        url_file: None,
        prefix: "ws:".to_owned(),
        connect_timeout: SOON,
        command_timeout: SOON,
        inflight: 1,
        probe_interval: SOON,
        probe_timeout: SOON,
    };
    let error = redis::connect(&settings, BOUNDS).unwrap_err().to_string();
    assert!(!error.contains("hush"), "{error}");
}

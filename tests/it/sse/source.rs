//! A page with nothing but `new EventSource(url)` survives what happens to servers: no code, no
//! loss, nothing twice.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use nix::sys::signal::Signal;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::Duration,
};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::token,
    redis::RedisServer,
    sse::{EventSource, State},
    tab::{for_all, for_user, put, quick},
    until,
};

/// How long a page may be without news; its `retry` and some attempts.
const WITHIN: Duration = Duration::from_secs(60);

/// A router in front of replicas: every new connection goes where it points now.
struct Router {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    accepting: AbortHandle,
    standing: Arc<Mutex<JoinSet<()>>>,
}

impl Router {
    async fn to(replica: &Replica) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let target = Arc::new(Mutex::new(replica.public));
        let standing = Arc::new(Mutex::new(JoinSet::new()));
        let (to, links) = (target.clone(), standing.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let address = *to.lock().expect("no panic while held");
                links.lock().expect("no panic while held").spawn(async move {
                    // An upstream that is away looks like a reset, as through a real router.
                    let Ok(mut server) = TcpStream::connect(address).await else { return };
                    // Either side may go at any time; that is what is tested.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, target, accepting: accepting.abort_handle(), standing }
    }

    fn point_at(&self, replica: &Replica) {
        *self.target.lock().expect("no panic while held") = replica.public;
    }

    /// Ends what stands; new connections are taken.
    fn cut(&self) {
        self.standing.lock().expect("no panic while held").abort_all();
    }

    fn dial(&self, user: &str) -> Dial {
        Dial::at(self.address).sse().query(&token(user))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Waits until it has connected and was welcomed; how `resumed` stands.
async fn welcomed(source: &mut EventSource) -> Option<bool> {
    let (_, message) = source.message(WITHIN).await;
    let welcome = message.json();
    assert_eq!(welcome["type"], "belfry.welcome", "{message:?}");
    welcome["resumed"].as_bool()
}

async fn attempts(source: &EventSource, more: usize) {
    let wanted = source.attempts().len() + more;
    until("it tries again", WITHIN, async || {
        assert!(!matches!(source.state(), State::Closed(_)), "{:?}", source.state());
        (source.attempts().len() >= wanted).then_some(())
    })
    .await;
}

fn numbers(to: usize) -> Vec<String> {
    (0..to).map(|n| n.to_string()).collect()
}

/// That the test's source can fail as a browser's does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_gives_up_at_a_401() {
    let replica = Replica::start().await;
    let source = EventSource::new(Dial::to(&replica).sse().query("not-a-token"));
    source.is(State::Closed(401), PATIENCE).await;
    assert_eq!(source.attempts().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_survives_the_drain_of_its_replica() {
    let redis = RedisServer::start().await;
    let start = || {
        let builder = Builder::production().set("drain.delay", "0s").set("drain.spread", "3s");
        quick(builder, &redis).spawn()
    };
    let (one, two) = tokio::join!(start(), start());
    let router = Router::to(&one).await;
    let mut source = EventSource::new(router.dial("alice"));
    assert_eq!(welcomed(&mut source).await, None);
    let mut sent = 0;
    for _ in 0..10 {
        put(&two, &for_user("alice", &sent.to_string())).await;
        sent += 1;
    }
    one.process.signal(Signal::SIGTERM);
    // The router is late: for a while newcomers still go to the one that leaves.
    let mut moved = false;
    while sent < 400 {
        put(&two, &for_user("alice", &sent.to_string())).await;
        sent += 1;
        if !moved && source.attempts().len() >= 3 {
            router.point_at(&two);
            moved = true;
        }
        if moved && sent < 300 && source.state() == State::Open {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(sent < 290, "it did not come back before history forgets");
    }
    put(&two, &for_user("alice", "last")).await;
    assert_eq!(source.markers_before("last", WITHIN).await, numbers(sent));
    assert!(one.process.end(PATIENCE).await.success());
    let attempts = source.attempts();
    assert!(attempts[0].last_event_id.is_none());
    assert!(attempts[1..].iter().all(|attempt| attempt.last_event_id.is_some()), "{attempts:?}");
    assert_eq!(source.state(), State::Open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_survives_a_full_server() {
    let replica = Builder::production().set("limits.connections", "1").spawn().await;
    let router = Router::to(&replica).await;
    // Nothing is free when the page is opened.
    let occupant = Dial::to(&replica).query(&token("bob")).open().await;
    let mut source = EventSource::new(router.dial("alice"));
    attempts(&source, 2).await;
    drop(occupant);
    loop {
        let (_, message) = source.message(WITHIN).await;
        let word = message.json();
        match word["type"].as_str() {
            Some("belfry.goodbye") => assert_eq!(word["code"], 1013, "{word}"),
            Some("belfry.welcome") => break,
            _ => panic!("{word}"),
        }
    }
    put(&replica, &for_user("alice", "0")).await;
    assert!(source.markers_before("0", WITHIN).await.is_empty());
    // Somebody takes its place while it is away.
    router.cut();
    let occupant = until("the place is taken", WITHIN, async || {
        let ws = Dial::to(&replica).query(&token("bob")).try_connect().await.ok()?;
        Some(ws)
    })
    .await;
    for n in 1..20 {
        put(&replica, &for_user("alice", &n.to_string())).await;
        put(&replica, &for_all(&n.to_string())).await;
    }
    attempts(&source, 2).await;
    drop(occupant);
    put(&replica, &for_user("alice", "20")).await;
    let mut markers = source.markers_before("20", WITHIN).await;
    markers.sort_by_key(|marker| marker.parse::<u32>().expect("a number"));
    // Broadcasts may come on either side of the last one.
    while markers.len() < 38 {
        let (_, message) = source.message(WITHIN).await;
        if let Some(marker) = message.json()["data"]["mk"].as_str() {
            markers.push(marker.to_owned());
        }
    }
    let mut wanted: Vec<String> = (1..20).flat_map(|n| [n.to_string(), n.to_string()]).collect();
    markers.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(markers, wanted);
    // It was told how long to wait, and a full server is not hammered.
    let attempts = source.attempts();
    for pair in attempts.windows(2) {
        let wait = pair[1].at - pair[0].at;
        assert!(wait >= Duration::from_millis(100), "after {wait:?}: {attempts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_survives_a_redis_outage() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let router = Router::to(&replica).await;
    let mut source = EventSource::new(router.dial("alice"));
    assert_eq!(welcomed(&mut source).await, None);
    for n in 0..5 {
        put(&replica, &for_user("alice", &n.to_string())).await;
    }
    redis.freeze();
    replica.becomes("/readyz", 503, PATIENCE).await;
    // The way breaks too: the page comes back to a replica that is alone, and is sent away.
    router.cut();
    attempts(&source, 3).await;
    redis.thaw();
    replica.becomes("/readyz", 200, PATIENCE).await;
    for n in 5..10 {
        put(&replica, &for_user("alice", &n.to_string())).await;
    }
    put(&replica, &for_user("alice", "last")).await;
    assert_eq!(source.markers_before("last", WITHIN).await, numbers(10));
    assert_eq!(source.state(), State::Open);
}

/// The power of Redis goes and comes back with what it had written: the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_survives_a_restart_of_redis() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let router = Router::to(&replica).await;
    let mut source = EventSource::new(router.dial("alice"));
    assert_eq!(welcomed(&mut source).await, None);
    for n in 0..5 {
        put(&replica, &for_user("alice", &n.to_string())).await;
    }
    redis.kill();
    router.cut();
    attempts(&source, 2).await;
    redis.restart().await;
    replica.becomes("/readyz", 200, PATIENCE).await;
    for n in 5..10 {
        put(&replica, &for_user("alice", &n.to_string())).await;
    }
    put(&replica, &for_user("alice", "last")).await;
    assert_eq!(source.markers_before("last", WITHIN).await, numbers(10));
}

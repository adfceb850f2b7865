use std::task::Poll;

use super::*;
use crate::{
    event::Position,
    frame::Frame,
    history,
    lifecycle::Vital,
    outbox::{Bounds, Signal},
    registry::tracks::{Source, Tracks},
    telemetry::{Metrics, Transport},
};

const KEEPING: history::Bounds = history::Bounds {
    events: 10,
    bytes: 10_000,
    ttl: Duration::from_secs(60),
    meta_ttl: Duration::from_secs(60),
};

const MIB: usize = 1024 * 1024;

fn event(bytes: usize) -> Delivery {
    let frame = Frame::event(&"x".repeat(bytes), Instant::now());
    Delivery { to: Channel::Broadcast, except: Arc::default(), frame, place: None, skip: None }
}

fn at(ms: u64) -> Position {
    Position::new(ms, 0)
}

struct Client {
    registry: Registry,
    outbox: Rc<Outbox>,
    registration: Registration,
}

fn client(limit: usize) -> Client {
    let tracks = Tracks::new(KEEPING);
    let registry = Registry::new(limit, Arc::clone(&tracks), Metrics::new(limit), Vital::default());
    let shard = registry.attach();
    let bounds = Bounds { frames: 4096, bytes: MIB };
    let outbox = Outbox::new(bounds, Rc::clone(shard.metrics()));
    let member = Member {
        id: ConnectionId::new(),
        user: UserId::new("alice").unwrap(),
        session: None,
        made: SystemTime::now(),
        transport: Transport::WebSocket,
    };
    let starts = [Channel::User(member.user.clone()), Channel::Broadcast].map(|channel| {
        let hold = tracks.hold(&channel);
        hold.start(at(100));
        Start { hold, at: at(100), upto: Position::ZERO }
    });
    let registration = shard.register(member, Box::default(), starts.into(), Rc::clone(&outbox));
    Client { registry, outbox, registration }
}

/// A socket that takes everything at once.
async fn read(outbox: &Outbox, frames: &Cell<usize>) {
    std::future::poll_fn(|cx| {
        while let Poll::Ready(Some(_)) = outbox.poll_frame(cx) {
            frames.set(frames.get() + 1);
        }
        Poll::<()>::Pending
    })
    .await;
}

#[actix_web::test]
async fn a_reader_is_not_closed_for_a_burst_of_large_events() {
    let client = client(1);
    let read_frames = Rc::new(Cell::new(0));
    let (outbox, frames) = (Rc::clone(&client.outbox), Rc::clone(&read_frames));
    actix_rt::spawn(async move { read(&outbox, &frames).await });
    tokio::task::yield_now().await;
    for _ in 0..60 {
        client.registry.deliver(event(60_000));
    }
    let signalled = tokio::time::timeout(Duration::from_millis(300), client.outbox.signalled());
    assert!(signalled.await.is_err(), "closed as too slow");
    assert_eq!(read_frames.get(), 60);
}

#[actix_web::test]
async fn one_who_does_not_read_is() {
    let client = client(1);
    for _ in 0..60 {
        client.registry.deliver(event(60_000));
    }
    let signal = tokio::time::timeout(Duration::from_secs(5), client.outbox.signalled()).await;
    assert_eq!(signal, Ok(Signal::Close(CloseCause::SlowConsumer)));
}

#[actix_web::test]
async fn many_gaps_are_told_in_few_words() {
    let client = client(1);
    let read_frames = Rc::new(Cell::new(0));
    let (outbox, frames) = (Rc::clone(&client.outbox), Rc::clone(&read_frames));
    actix_rt::spawn(async move { read(&outbox, &frames).await });
    for _ in 0..200 {
        client.registry.resync(GapReason::Lagged);
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(notices::SPREAD * 3 / 2).await;
    assert!((1..=2).contains(&read_frames.get()), "{} times", read_frames.get());
}

fn register(shard: &Rc<Shard>, session: &str) -> (Rc<Outbox>, Registration) {
    let outbox = Outbox::new(Bounds { frames: 8, bytes: 1024 }, Rc::clone(shard.metrics()));
    let member = Member {
        id: ConnectionId::new(),
        user: UserId::new("alice").unwrap(),
        session: Some(SessionKey::of(session)),
        made: SystemTime::now(),
        transport: Transport::WebSocket,
    };
    let registration = shard.register(member, Box::default(), Vec::new(), Rc::clone(&outbox));
    (outbox, registration)
}

/// A kept broadcast.
fn kept(prev: u64, ms: u64) -> history::Kept {
    let frame = Frame::text(&format!(r#"{{"id":{ms}}}"#));
    let mark = crate::frame::Mark { tag: Tag::Broadcast, at: at(ms) };
    let (at, prev, until) = (at(ms), at(prev), None);
    history::Kept { at, prev, except: Arc::default(), until, loss: false, frame: frame.at(mark) }
}

impl Client {
    /// As the subscriber hands it out.
    fn hand_out(&self, event: &history::Kept) {
        self.registry.tracks().advance(&Channel::Broadcast, event, Source::Live);
        self.registry.deliver(Delivery {
            to: Channel::Broadcast,
            except: Arc::clone(&event.except),
            frame: event.frame.clone(),
            place: Some(event.at),
            skip: Some(event.skip()),
        });
    }

    /// What was written since the last call.
    async fn frames(&self) -> Vec<String> {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let mut frames = Vec::new();
        std::future::poll_fn(|cx| {
            while let Poll::Ready(Some(frame)) = self.outbox.poll_frame(cx) {
                frames.push(String::from_utf8(frame.json().unwrap().to_vec()).unwrap());
            }
            Poll::Ready(())
        })
        .await;
        frames
    }
}

#[actix_web::test]
async fn a_kept_event_comes_once() {
    let client = client(1);
    client.hand_out(&kept(100, 110));
    client.hand_out(&kept(100, 110));
    client.hand_out(&kept(90, 95));
    client.hand_out(&kept(110, 120));
    assert_eq!(client.frames().await, [r#"{"id":110}"#, r#"{"id":120}"#]);
    assert_eq!(client.registration.cursor().to_string(), "u~100-0,b~120-0");
}

#[actix_web::test]
async fn who_is_excepted_gets_a_skip() {
    let client = client(1);
    let except = Arc::new([UserId::new("alice").unwrap()]);
    client.hand_out(&history::Kept { except, ..kept(100, 110) });
    let skip = r#"{"type":"belfry.skip","id":"b~110-0","prev":"b~100-0"}"#;
    assert_eq!(client.frames().await, [skip]);
}

#[actix_web::test]
async fn a_replay_joins_without_a_hole_or_a_repeat() {
    let client = client(1);
    let all = Channel::Broadcast;
    client.registration.on_lane(&all, |_, lane| lane.way.set(Way::Behind)).unwrap();
    assert_eq!(client.registration.behind(), std::slice::from_ref(&all));
    client.hand_out(&kept(100, 110));
    client.hand_out(&kept(110, 120));
    assert!(client.frames().await.is_empty(), "they come in the replay");
    assert!(!client.registration.join(&all), "120 was handed out");
    client.registration.replay(&all, &kept(100, 110), 0);
    assert!(!client.registration.join(&all));
    client.registration.replay(&all, &kept(110, 120), 0);
    // Still in the mailbox when the replay joins.
    client.hand_out(&kept(120, 130));
    client.registration.replay(&all, &kept(120, 130), 0);
    assert!(client.registration.join(&all));
    client.hand_out(&kept(130, 140));
    let ids: Vec<_> = [110, 120, 130, 140].map(|id| format!(r#"{{"id":{id}}}"#)).into();
    assert_eq!(client.frames().await, ids);
}

#[actix_web::test]
async fn a_loss_is_told_with_the_place_to_go_on_from() {
    let client = client(1);
    let all = Channel::Broadcast;
    client.registry.tracks().jump(&all, at(200));
    client.registry.lose(&all, at(200), GapReason::Reconnected);
    client.hand_out(&kept(200, 210));
    assert!(client.frames().await.is_empty(), "it comes after the word of the loss");
    tokio::time::sleep(notices::SPREAD + Duration::from_millis(200)).await;
    let notice = r#"{"type":"belfry.resync","lost":["b"],"cursor":"u~100-0,b~200-0","reason":"reconnected"}"#;
    assert_eq!(client.frames().await, [notice]);
    let signal = tokio::time::timeout(Duration::from_secs(1), client.outbox.signalled()).await;
    assert_eq!(signal, Ok(Signal::CatchUp), "what came meanwhile is in the history");
    client.registration.replay(&all, &kept(200, 210), 0);
    assert!(client.registration.join(&all));
    client.hand_out(&kept(210, 220));
    assert_eq!(client.frames().await, [r#"{"id":210}"#, r#"{"id":220}"#]);
}

#[actix_web::test]
async fn a_worker_that_lagged_reads_again() {
    let client = client(1);
    for n in 0..=u64::try_from(super::super::MAILBOX_MESSAGES).unwrap() {
        client.hand_out(&kept(100 + n, 101 + n));
    }
    let caught = tokio::time::timeout(Duration::from_secs(5), client.outbox.signalled()).await;
    assert!(matches!(caught, Ok(Signal::CatchUp | Signal::Close(_))), "{caught:?}");
    assert_eq!(client.registration.behind().len(), 2);
}

async fn asked_to_look(outbox: &Outbox) -> bool {
    let signal = tokio::time::timeout(Duration::from_millis(1), outbox.signalled()).await;
    signal.is_ok_and(|signal| signal == Signal::Recheck)
}

/// A handshake looks its session up, the session ends, and only then it is registered.
#[test]
fn a_session_that_ends_during_a_handshake_is_looked_at_again() {
    actix_rt::System::new().block_on(async {
        let registry = Registry::new(10, Tracks::new(KEEPING), Metrics::new(10), Vital::default());
        let shard = registry.attach();
        let (before, _registered) = register(&shard, "s");
        registry.recheck([SessionKey::of("s"), SessionKey::of("t")]).await;
        let signal = tokio::time::timeout(Duration::from_secs(5), before.signalled()).await;
        assert_eq!(signal, Ok(Signal::Recheck));
        assert!(!asked_to_look(&before).await, "once");
        let (late, _registered) = register(&shard, "t");
        assert!(asked_to_look(&late).await);
        let (other, _registered) = register(&shard, "u");
        assert!(!asked_to_look(&other).await);
    });
}

fn about(subject: Subject, cause: CloseCause) -> Arc<Order> {
    let given = SystemTime::now();
    Arc::new(Order { subject, except_connection: None, except_session: None, cause, given })
}

async fn told(outbox: &Outbox) -> Option<Signal> {
    tokio::time::timeout(Duration::from_millis(1), outbox.signalled()).await.ok()
}

#[test]
fn an_order_finds_its_connections_by_what_it_names() {
    actix_rt::System::new().block_on(async {
        let registry = Registry::new(10, Tracks::new(KEEPING), Metrics::new(10), Vital::default());
        let shard = registry.attach();
        let (_first, first) = register(&shard, "s");
        let (_second, second) = register(&shard, "s");
        let session = |id| about(Subject::Session(SessionKey::of(id)), CloseCause::Revoked);
        let id = shard.state.borrow().connections[first.key].member.id;
        let one = about(Subject::Connection(id), CloseCause::Replaced);
        let user = about(Subject::User(UserId::new("alice").unwrap()), CloseCause::Revoked);
        assert_eq!(shard.order(session("s"), false), 2);
        assert_eq!(shard.order(Arc::clone(&one), false), 1);
        second.update(Some(SessionKey::of("t")), Box::default(), Vec::new());
        assert_eq!(shard.order(session("s"), false), 1);
        assert_eq!(shard.order(session("t"), false), 1);
        drop(first);
        assert_eq!(shard.order(one, false), 0);
        assert_eq!(shard.order(session("s"), false), 0);
        assert_eq!(shard.order(Arc::clone(&user), false), 1);
        drop(second);
        assert_eq!(shard.order(session("t"), false), 0);
        assert_eq!(shard.order(user, false), 0);
    });
}

#[test]
fn a_stuck_worker_holds_up_no_other() {
    actix_rt::System::new().block_on(async {
        let registry = Registry::new(10, Tracks::new(KEEPING), Metrics::new(10), Vital::default());
        let (mailbox, mut inbox) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            interest: Interest::new(),
            waiting: std::sync::atomic::AtomicUsize::new(0),
            lagged: std::sync::atomic::AtomicBool::new(false),
            lagged_unkept: std::sync::atomic::AtomicBool::new(false),
        });
        registry.0.shards.store(Arc::new(vec![Arc::new(super::super::ShardHandle {
            mailbox: mailbox.clone(),
            shared,
        })]));
        mailbox.try_send(ToShard::Leave(Duration::ZERO)).unwrap();
        let shard = registry.attach();
        let (outbox, _registered) = register(&shard, "s");
        let order = about(Subject::Session(SessionKey::of("s")), CloseCause::Revoked);
        let ordering = {
            let (registry, order) = (registry.clone(), Order::clone(&order));
            actix_rt::spawn(async move { registry.order(order, false).await })
        };
        let within = Duration::from_secs(1);
        let signal = tokio::time::timeout(within, outbox.signalled()).await;
        assert_eq!(signal, Ok(Signal::Close(CloseCause::Revoked)));
        assert!(matches!(inbox.recv().await, Some(ToShard::Leave(_))));
        // It has the order, and says nothing.
        let Some(ToShard::Order { closed, .. }) = inbox.recv().await else { panic!() };
        let outcome = tokio::time::timeout(Duration::from_secs(5), ordering).await;
        assert_eq!(outcome.expect("bounded").unwrap(), None);
        drop(closed);
    });
}

#[test]
fn replacements_push_no_order_out() {
    actix_rt::System::new().block_on(async {
        let registry = Registry::new(10, Tracks::new(KEEPING), Metrics::new(10), Vital::default());
        let shard = registry.attach();
        let outbox = Outbox::new(Bounds { frames: 8, bytes: 1024 }, Rc::clone(shard.metrics()));
        let member = Member {
            id: ConnectionId::new(),
            user: UserId::new("alice").unwrap(),
            session: Some(SessionKey::of("s")),
            made: SystemTime::now(),
            transport: Transport::WebSocket,
        };
        shard.order(about(Subject::Session(SessionKey::of("s")), CloseCause::Revoked), false);
        for _ in 0..2 * ORDERS {
            let other = Subject::Connection(ConnectionId::new());
            shard.order(about(other, CloseCause::Replaced), false);
        }
        assert!(shard.replaced.borrow().len() <= REPLACED);
        // One that is replaced during its handshake hears of it.
        let (late, _registered) = {
            let id = ConnectionId::new();
            let member = Member { id, session: None, ..member.clone() };
            shard.order(about(Subject::Connection(id), CloseCause::Replaced), false);
            let outbox = Outbox::new(Bounds { frames: 8, bytes: 1024 }, Rc::clone(shard.metrics()));
            let registration =
                shard.register(member, Box::default(), Vec::new(), Rc::clone(&outbox));
            (outbox, registration)
        };
        assert_eq!(told(&late).await, Some(Signal::Close(CloseCause::Replaced)));
        let _registered = shard.register(member, Box::default(), Vec::new(), Rc::clone(&outbox));
        assert_eq!(told(&outbox).await, Some(Signal::Close(CloseCause::Revoked)));
    });
}

/// All data is lost while the clock is set back: what is new comes under lower places.
#[actix_web::test]
async fn after_a_loss_a_connection_goes_on_from_a_lower_place() {
    let client = client(1);
    let all = Channel::Broadcast;
    client.hand_out(&kept(100, 200));
    assert_eq!(client.frames().await, [r#"{"id":200}"#]);
    client.registry.tracks().jump(&all, at(50));
    client.registry.lose(&all, at(50), GapReason::Reconnected);
    tokio::time::sleep(notices::SPREAD + Duration::from_millis(200)).await;
    let notice =
        r#"{"type":"belfry.resync","lost":["b"],"cursor":"u~100-0,b~50-0","reason":"reconnected"}"#;
    assert_eq!(client.frames().await, [notice]);
    client.hand_out(&kept(50, 60));
    assert_eq!(client.frames().await, [r#"{"id":60}"#]);
}

/// Word of a loss that is kept, on a replica that is behind the one before.
#[actix_web::test]
async fn who_is_past_a_kept_word_of_a_loss_has_heard_it() {
    let client = client(1);
    let all = Channel::Broadcast;
    client.registration.on_lane(&all, |_, lane| lane.at.set(at(130))).unwrap();
    client.registry.lose(&all, at(120), GapReason::BrokerLost);
    client.hand_out(&kept(120, 130));
    client.hand_out(&kept(130, 140));
    assert_eq!(client.frames().await, [r#"{"id":140}"#]);
}

/// What is handed out once a lane stands must find its worker interested, also where the worker is
/// held up right then.
#[actix_web::test]
async fn a_worker_is_interested_in_a_group_before_a_lane_of_it_stands() {
    let client = client(1);
    let tracks = Arc::clone(client.registry.tracks());
    let start = |name: &str| {
        let hold = tracks.hold(&Channel::Group(Group::new(name).unwrap()));
        hold.start(at(100));
        vec![Start { hold, at: at(100), upto: Position::ZERO }]
    };
    for names in [&["staff"][..], &["staff", "night shift"]] {
        let group = Group::new(names.last().unwrap()).unwrap();
        let channel = Channel::Group(group);
        let starts = start(names.last().unwrap());
        let slot = client.registry.slot(&channel).unwrap();
        let (locked, mut wait) = mpsc::channel(1);
        let looking = std::thread::spawn({
            let (registry, channel) = (client.registry.clone(), channel.clone());
            move || {
                registry.tracks().locked(&channel, || {
                    locked.try_send(()).unwrap();
                    let end = Instant::now() + Duration::from_secs(5);
                    let interested = || {
                        registry.0.shards.load().iter().any(|shard| shard.shared.interest.any(slot))
                    };
                    while !interested() && Instant::now() < end {
                        std::thread::yield_now();
                    }
                    interested()
                })
            }
        });
        wait.recv().await.unwrap();
        let groups = names.iter().map(|name| Group::new(name).unwrap()).collect();
        client.registration.update(None, groups, starts);
        assert!(looking.join().unwrap(), "{names:?}");
    }
}

use std::task::Poll;

use super::*;
use crate::{
    lifecycle::Vital,
    outbox::{Bounds, Signal},
    telemetry::{Metrics, Transport},
};

const MIB: usize = 1024 * 1024;

fn event(bytes: usize) -> Delivery {
    let frame = frame::Frame::event(&"x".repeat(bytes), Instant::now());
    Delivery { to: Channel::Broadcast, except: Arc::default(), frame }
}

struct Client {
    registry: Registry,
    outbox: Rc<Outbox>,
    _registration: Registration,
}

fn client(limit: usize) -> Client {
    let registry = Registry::new(limit, Metrics::new(limit), Vital::default());
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
    let registration = shard.register(member, Box::default(), Rc::clone(&outbox));
    Client { registry, outbox, _registration: registration }
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
        client.registry.deliver(&event(60_000));
    }
    let signalled = tokio::time::timeout(Duration::from_millis(300), client.outbox.signalled());
    assert!(signalled.await.is_err(), "closed as too slow");
    assert_eq!(read_frames.get(), 60);
}

#[actix_web::test]
async fn one_who_does_not_read_is() {
    let client = client(1);
    for _ in 0..60 {
        client.registry.deliver(&event(60_000));
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
    tokio::time::sleep(RESYNC_SPREAD * 3).await;
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
    let registration = shard.register(member, Box::default(), Rc::clone(&outbox));
    (outbox, registration)
}

async fn asked_to_look(outbox: &Outbox) -> bool {
    let signal = tokio::time::timeout(Duration::from_millis(1), outbox.signalled()).await;
    signal.is_ok_and(|signal| signal == Signal::Recheck)
}

/// A handshake looks its session up, the session ends, and only then it is registered.
#[test]
fn a_session_that_ends_during_a_handshake_is_looked_at_again() {
    actix_rt::System::new().block_on(async {
        let registry = Registry::new(10, Metrics::new(10), Vital::default());
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
        let registry = Registry::new(10, Metrics::new(10), Vital::default());
        let shard = registry.attach();
        let (_first, first) = register(&shard, "s");
        let (_second, second) = register(&shard, "s");
        let session = |id| about(Subject::Session(SessionKey::of(id)), CloseCause::Revoked);
        let id = shard.state.borrow().connections[first.key].member.id;
        let one = about(Subject::Connection(id), CloseCause::Replaced);
        let user = about(Subject::User(UserId::new("alice").unwrap()), CloseCause::Revoked);
        assert_eq!(shard.order(session("s"), false), 2);
        assert_eq!(shard.order(Arc::clone(&one), false), 1);
        second.update(Some(SessionKey::of("t")), Box::default());
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
        let registry = Registry::new(10, Metrics::new(10), Vital::default());
        let (mailbox, mut inbox) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            interest: Interest::new(),
            waiting: std::sync::atomic::AtomicUsize::new(0),
            lagged: std::sync::atomic::AtomicBool::new(false),
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
        let registry = Registry::new(10, Metrics::new(10), Vital::default());
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
            let registration = shard.register(member, Box::default(), Rc::clone(&outbox));
            (outbox, registration)
        };
        assert_eq!(told(&late).await, Some(Signal::Close(CloseCause::Replaced)));
        let _registered = shard.register(member, Box::default(), Rc::clone(&outbox));
        assert_eq!(told(&outbox).await, Some(Signal::Close(CloseCause::Revoked)));
    });
}

//! The parts of an event's road that run once for each event, each delivery or each handshake,
//! without sockets: what `road` times and `count` counts.

use std::{cell::Cell, io, io::IoSlice, rc::Rc, sync::Arc, time::Duration, time::SystemTime};

use actix_rt::SystemRunner;
use belfry::{
    auth::jwt::Verifier,
    bus::envelope::{self, Event},
    config::{Sources, load::load},
    event::{Channel, ConnectionId, Position, Tag, UserId},
    frame::Frame,
    history,
    lifecycle::Vital,
    outbox::{Bounds, Outbox, Sink},
    registry::{Delivery, Member, Registration, Registry, Start, tracks::Tracks},
    telemetry::{Metrics, Transport},
};
use futures_util::FutureExt as _;
use serde_json::value::RawValue;
use tokio::time::Instant;

/// Connections of a crowd.
pub const CROWD: usize = 1000;

/// What a publisher is given, of so many bytes.
pub fn data(bytes: usize) -> Box<RawValue> {
    RawValue::from_string(format!("\"{}\"", "x".repeat(bytes))).unwrap()
}

/// A publisher's part: once for each event.
pub fn encode(data: &RawValue) -> envelope::Parts {
    envelope::encode(&Event { kind: "bench", data, sender: None }, &[], false).unwrap()
}

/// The message that replicas get of a kept event.
pub fn wire(bytes: usize) -> bytes::Bytes {
    let (at, prev) = (Position::new(1_732_406_400_000, 1), Position::new(1_732_406_400_000, 0));
    encode(&data(bytes)).kept(&Tag::User, at, prev, None)
}

/// A subscriber's part: once for each event and replica.
pub fn decode(wire: &bytes::Bytes) -> envelope::Decoded<'_> {
    envelope::decode(wire).unwrap()
}

/// The frame that all connections share.
pub fn frame(bytes: usize) -> Frame {
    Frame::event(
        &format!("{{\"type\":\"bench\",\"data\":\"{}\"}}", "x".repeat(bytes)),
        Instant::now(),
    )
}

/// A socket that takes everything.
#[derive(Default)]
struct Taker {
    taken: Rc<Cell<usize>>,
}

impl Sink for Taker {
    fn try_write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes = bytes.iter().map(|slice| slice.len()).sum();
        self.taken.set(self.taken.get() + bytes);
        Ok(bytes)
    }
}

/// A worker with a thousand connections of as many users.
pub struct Crowd {
    system: SystemRunner,
    registry: Registry,
    taken: Rc<Cell<usize>>,
    _members: Vec<Registration>,
}

impl Crowd {
    pub fn new() -> Self {
        let system = actix_rt::System::new();
        let hour = Duration::from_secs(3600);
        let keeping = history::Bounds { events: 300, bytes: 1 << 20, ttl: hour, meta_ttl: hour };
        let tracks = Tracks::new(keeping);
        let registry =
            Registry::new(CROWD, Arc::clone(&tracks), Metrics::new(CROWD), Vital::default());
        let taken = Rc::new(Cell::new(0));
        let members = system.block_on(async {
            let shard = registry.attach();
            let member = |n| {
                let user = UserId::new(&format!("user-{n}")).unwrap();
                let starts = [Channel::User(user.clone()), Channel::Broadcast].map(|channel| {
                    let (hold, at) = (tracks.hold(&channel), Position::new(1, 0));
                    hold.start(at);
                    Start { hold, at, upto: Position::ZERO }
                });
                let bounds = Bounds { frames: 256, bytes: 1 << 20 };
                let outbox = Outbox::new(bounds, Rc::clone(shard.metrics()));
                outbox.attach(Rc::new(Taker { taken: Rc::clone(&taken) }));
                let (id, made) = (ConnectionId::new(), SystemTime::now());
                let transport = Transport::WebSocket;
                let member = Member { id, user, session: None, made, transport };
                shard.register(member, Box::default(), starts.into(), outbox)
            };
            (0..CROWD).map(member).collect()
        });
        Self { system, registry, taken, _members: members }
    }

    /// Hands an event to everyone, and waits until the sockets have it.
    pub fn broadcast(&self, frame: &Frame) {
        let to = Channel::Broadcast;
        self.deliver(to, frame, CROWD);
    }

    /// Hands an event to one user, and waits until the socket has it.
    pub fn one(&self, frame: &Frame) {
        let user = UserId::new(&format!("user-{}", CROWD / 2)).unwrap();
        self.deliver(Channel::User(user), frame, 1);
    }

    fn deliver(&self, to: Channel, frame: &Frame, connections: usize) {
        let frame = frame.clone();
        let all = self.taken.get() + connections * frame.len();
        self.registry.deliver(Delivery {
            to,
            except: Arc::default(),
            frame,
            place: None,
            skip: None,
        });
        self.system.block_on(async {
            while self.taken.get() < all {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// A handshake's most expensive check.
pub struct Door {
    verifier: Verifier,
    token: String,
}

impl Door {
    pub fn new() -> Self {
        let config = load(&Sources::default()).unwrap();
        let token = belfry::cli::development_token(&config).unwrap();
        let door = Self { verifier: Verifier::new(&config), token };
        assert_eq!(door.check(), UserId::new("alice").unwrap());
        door
    }

    pub fn check(&self) -> UserId {
        // A secret is at hand, so there is nothing to wait for.
        self.verifier.verify(&self.token).now_or_never().unwrap().unwrap().user
    }
}

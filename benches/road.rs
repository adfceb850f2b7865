//! The parts of an event's road that run once for each event or each delivery, without sockets.
//!
//! Times of one machine and one moment: compare within one run only.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that fails by panicking fails well"
)]

use std::rc::Rc;

use belfry::{
    auth::jwt::Verifier,
    bus::envelope::{self, Event},
    config::{Sources, load::load},
    event::{Position, Tag, UserId},
    frame::Frame,
    outbox::{Bounds, Outbox},
    telemetry::Metrics,
};
use divan::{Bencher, black_box, counter::BytesCount};
use futures_util::FutureExt as _;
use serde_json::value::RawValue;
use tokio::time::Instant;

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [200, 4_096, 65_536];

fn data(bytes: usize) -> Box<RawValue> {
    RawValue::from_string(format!("\"{}\"", "x".repeat(bytes))).unwrap()
}

fn wire(bytes: usize) -> bytes::Bytes {
    let data = data(bytes);
    let parts = envelope::encode(&Event { kind: "bench", data: &data, sender: None }, &[], false);
    let (at, prev) = (Position::new(1_732_406_400_000, 1), Position::new(1_732_406_400_000, 0));
    parts.unwrap().kept(&Tag::User, at, prev, None)
}

/// A publisher's part: once for each event.
#[divan::bench(args = SIZES)]
fn envelope_encode(bencher: Bencher<'_, '_>, bytes: usize) {
    let data = data(bytes);
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        envelope::encode(&Event { kind: "bench", data: black_box(&data), sender: None }, &[], false)
    });
}

/// A subscriber's part: once for each event and replica.
#[divan::bench(args = SIZES)]
fn envelope_decode_and_frame(bencher: Bencher<'_, '_>, bytes: usize) {
    let wire = wire(bytes);
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        match envelope::decode(black_box(&wire)) {
            Ok(envelope::Decoded::Event { members, .. }) => {
                Frame::event(&format!("{{{members}"), Instant::now())
            }
            other => unreachable!("{other:?}"),
        }
    });
}

/// A connection's part: once for each delivery.
#[divan::bench]
fn outbox_deliver_and_take(bencher: Bencher<'_, '_>) {
    let metrics = Rc::new(Metrics::new(1).worker());
    let outbox = Outbox::new(Bounds { frames: 64, bytes: 1 << 20 }, metrics);
    let frame = Frame::event(&"x".repeat(200), Instant::now());
    let waker = futures_util::task::noop_waker();
    bencher.bench_local(|| {
        outbox.deliver(black_box(&frame));
        outbox.poll_frame(&mut std::task::Context::from_waker(&waker))
    });
}

/// A handshake's most expensive check.
#[divan::bench]
fn jwt_verify_hs256(bencher: Bencher<'_, '_>) {
    let config = load(&Sources::default()).unwrap();
    let user = UserId::new("alice").unwrap();
    let token = belfry::cli::development_token(&config).unwrap();
    let verifier = Verifier::new(&config);
    // A secret is at hand, so there is nothing to wait for.
    let verify = |token: &str| verifier.verify(token).now_or_never().unwrap();
    assert_eq!(verify(&token).unwrap().user, user);
    bencher.bench_local(|| verify(black_box(&token)));
}

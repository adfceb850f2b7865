//! The parts of an event's road, timed. Times of one machine and one moment: compare within one run
//! only. `count` has the same as numbers that repeat.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that fails by panicking fails well"
)]

use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};

mod parts;

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [200, 4_096, 65_536];

#[divan::bench(args = SIZES)]
fn envelope_encode(bencher: Bencher<'_, '_>, bytes: usize) {
    let data = parts::data(bytes);
    bencher.counter(BytesCount::new(bytes)).bench_local(|| parts::encode(black_box(&data)));
}

#[divan::bench(args = SIZES)]
fn envelope_decode(bencher: Bencher<'_, '_>, bytes: usize) {
    let wire = parts::wire(bytes);
    bencher.counter(BytesCount::new(bytes)).bench_local(|| parts::decode(black_box(&wire)));
}

#[divan::bench(args = SIZES)]
fn frame_encode(bencher: Bencher<'_, '_>, bytes: usize) {
    bencher.counter(BytesCount::new(bytes)).bench_local(|| parts::frame(black_box(bytes)));
}

/// Mailbox, lookup, queue and what would be the write, for each of a thousand connections.
#[divan::bench]
fn registry_broadcast(bencher: Bencher<'_, '_>) {
    let (crowd, frame) = (parts::Crowd::new(), parts::frame(200));
    bencher
        .counter(ItemsCount::new(parts::CROWD))
        .bench_local(|| crowd.broadcast(black_box(&frame)));
}

#[divan::bench]
fn registry_one_user(bencher: Bencher<'_, '_>) {
    let (crowd, frame) = (parts::Crowd::new(), parts::frame(200));
    bencher.bench_local(|| crowd.one(black_box(&frame)));
}

#[divan::bench]
fn jwt_verify_hs256(bencher: Bencher<'_, '_>) {
    let door = parts::Door::new();
    bencher.bench_local(|| black_box(&door).check());
}

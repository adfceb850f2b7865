//! Does one part of an event's road so many times, for a tool that counts instructions:
//! `count PART TIMES`. `benches/count.py` runs it and compares.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that fails by panicking fails well"
)]

use std::hint::black_box;

mod parts;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    // `cargo bench` runs it too, without a part.
    let (Some(part), Some(times)) = (args.next(), args.next()) else { return };
    let times = times.parse().unwrap();
    let mut work: Box<dyn FnMut()> = match part.as_str() {
        "envelope_encode" => {
            let data = parts::data(200);
            Box::new(move || drop(black_box(parts::encode(&data))))
        }
        "envelope_decode" => {
            let wire = parts::wire(200);
            Box::new(move || drop(black_box(parts::decode(&wire))))
        }
        "frame_encode" => Box::new(|| drop(black_box(parts::frame(200)))),
        "registry_broadcast" => {
            let (crowd, frame) = (parts::Crowd::new(), parts::frame(200));
            Box::new(move || crowd.broadcast(&frame))
        }
        "registry_one_user" => {
            let (crowd, frame) = (parts::Crowd::new(), parts::frame(200));
            Box::new(move || crowd.one(&frame))
        }
        "jwt_verify_hs256" => {
            let door = parts::Door::new();
            Box::new(move || drop(black_box(door.check())))
        }
        other => panic!("no part is called {other}"),
    };
    // What is only made once is made before.
    (0..3).for_each(|_| work());
    counted(&mut *work, times);
}

/// The tool counts from its beginning to its end, by this name.
#[inline(never)]
fn counted(work: &mut dyn FnMut(), times: usize) {
    (0..times).for_each(|_| work());
}

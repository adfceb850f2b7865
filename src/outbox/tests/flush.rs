//! The way out that writes by itself: to a socket that takes as much as it is told to.

use super::*;

/// A socket that takes so many bytes, and then no more until it is given room.
#[derive(Default)]
struct Socket {
    room: Cell<usize>,
    broken: Cell<bool>,
    calls: Cell<usize>,
    wire: RefCell<Vec<u8>>,
}

impl Sink for Socket {
    fn try_write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        if self.broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut wire = self.wire.borrow_mut();
        let before = wire.len();
        let all = bytes.iter().flat_map(|slice| slice.iter());
        wire.extend(all.take(self.room.get()));
        let taken = wire.len() - before;
        self.room.set(self.room.get() - taken);
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
}

fn attached(frames: usize, bytes: usize) -> (Rc<Outbox>, Rc<Socket>, Rc<WorkerMetrics>) {
    let (outbox, metrics) = outbox(frames, bytes);
    let socket = Rc::new(Socket::default());
    outbox.attach(Rc::clone(&socket) as Rc<dyn Sink>);
    (outbox, socket, metrics)
}

/// The lengths of the whole frames on the wire, and of what follows them.
fn frames(wire: &[u8]) -> (Vec<usize>, usize) {
    let (mut lens, mut rest) = (Vec::new(), wire);
    while let [_, short, ..] = rest {
        let (header, len) = match short {
            126 => match rest {
                [_, _, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
                _ => break,
            },
            short => (2, usize::from(*short)),
        };
        let Some(after) = rest.get(header + len..) else { break };
        lens.push(header + len);
        rest = after;
    }
    (lens, rest.len())
}

#[test]
fn what_waits_is_joined_into_one_write() {
    let (outbox, socket, metrics) = attached(64, 100_000);
    let mut unwritten = Vec::new();
    for _ in 0..32 {
        assert_eq!(outbox.post(&event(50), &mut unwritten), Push::Queued);
    }
    assert_eq!(unwritten.len(), 1, "one flush is owed");
    socket.room.set(usize::MAX);
    assert!(matches!(outbox.flush(), Flushed::Empty));
    assert_eq!(socket.calls.get(), 1);
    assert_eq!(frames(&socket.wire.borrow()), (vec![52; 32], 0));
    assert_eq!(metrics.queue_bytes(), 0);
    assert_eq!(outbox.post(&event(50), &mut unwritten), Push::Queued);
    assert_eq!(unwritten.len(), 2, "the next is owed again");
}

#[test]
fn who_waits_for_the_socket_is_flushed_by_its_task() {
    let (outbox, socket, _) = attached(8, 1_000);
    socket.room.set(5);
    let mut unwritten = Vec::new();
    outbox.post(&event(10), &mut unwritten);
    assert!(matches!(outbox.flush(), Flushed::Blocked));
    unwritten.clear();
    outbox.post(&event(10), &mut unwritten);
    assert!(unwritten.is_empty());
    socket.room.set(100);
    let noop = noop_waker();
    assert!(matches!(outbox.poll_flush(&Context::from_waker(&noop)), Flushed::Empty));
    assert_eq!(frames(&socket.wire.borrow()), (vec![12, 12], 0));
}

#[test]
fn a_frame_that_has_begun_is_finished_whatever_happens() {
    let (outbox, socket, metrics) = attached(2, 1_000);
    socket.room.set(5);
    let mut unwritten = Vec::new();
    outbox.post(&event(10), &mut unwritten);
    outbox.post(&event(20), &mut unwritten);
    assert!(matches!(outbox.flush(), Flushed::Blocked));
    assert_eq!(outbox.post(&event(30), &mut unwritten), Push::Overflow(2));
    assert_eq!(metrics.queue_bytes(), 12);
    outbox.finish([Frame::close_empty()], true);
    outbox.end();
    socket.room.set(100);
    assert!(matches!(outbox.flush(), Flushed::Ended));
    assert_eq!(frames(&socket.wire.borrow()), (vec![12, 2], 0));
    assert_eq!(metrics.queue_bytes(), 0);
}

#[test]
fn a_pong_goes_first_but_not_into_a_frame() {
    let (outbox, socket, _) = attached(8, 1_000);
    socket.room.set(5);
    let mut unwritten = Vec::new();
    outbox.post(&event(10), &mut unwritten);
    assert!(matches!(outbox.flush(), Flushed::Blocked));
    outbox.post(&event(20), &mut unwritten);
    outbox.pong(b"abc");
    socket.room.set(100);
    assert!(matches!(outbox.flush(), Flushed::Empty));
    assert_eq!(frames(&socket.wire.borrow()), (vec![12, 5, 22], 0));
}

#[test]
fn who_takes_what_he_is_given_is_not_too_slow() {
    let (outbox, socket, _) = attached(2, 1_000);
    socket.room.set(5 * 12 + 6);
    let mut unwritten = Vec::new();
    for _ in 0..5 {
        assert_eq!(outbox.post(&event(10), &mut unwritten), Push::Queued);
    }
    assert!(matches!(outbox.flush(), Flushed::Empty));
    assert_eq!(frames(&socket.wire.borrow()), (vec![12; 5], 0));
    for _ in 0..2 {
        assert_eq!(outbox.post(&event(10), &mut unwritten), Push::Queued);
    }
    assert_eq!(outbox.post(&event(10), &mut unwritten), Push::Overflow(2));
}

#[test]
fn a_flood_of_pings_to_who_does_not_read_costs_one_slot() {
    let (outbox, socket, metrics) = attached(8, 1_000);
    socket.room.set(5);
    outbox.post(&event(10), &mut Vec::new());
    assert!(matches!(outbox.flush(), Flushed::Blocked));
    for n in 0..=u8::MAX {
        outbox.pong(&[n]);
        assert!(matches!(outbox.flush(), Flushed::Blocked));
    }
    assert_eq!(metrics.queue_bytes(), 12);
    // One that has begun is finished, and those that come meanwhile are again one.
    socket.room.set(7 + 1);
    assert!(matches!(outbox.flush(), Flushed::Blocked));
    outbox.pong(b"ab");
    assert!(matches!(outbox.flush(), Flushed::Blocked));
    outbox.pong(b"abc");
    socket.room.set(100);
    assert!(matches!(outbox.flush(), Flushed::Empty));
    let wire = socket.wire.borrow();
    assert_eq!(frames(&wire), (vec![12, 3, 5], 0));
    assert_eq!(wire[12..], [0x8a, 1, u8::MAX, 0x8a, 3, b'a', b'b', b'c']);
    assert_eq!(metrics.queue_bytes(), 0);
}

#[test]
fn a_broken_socket_is_told_and_takes_nothing_more() {
    let (outbox, socket, metrics) = attached(8, 1_000);
    socket.broken.set(true);
    let mut unwritten = Vec::new();
    outbox.post(&event(10), &mut unwritten);
    assert!(matches!(outbox.flush(), Flushed::Broken(_)));
    outbox.socket_gone();
    assert_eq!(signal(&outbox), Poll::Ready(Signal::Gone));
    assert_eq!(outbox.post(&event(10), &mut unwritten), Push::Closed);
    assert_eq!(metrics.queue_bytes(), 0);
}

proptest! {
    /// However the socket takes it: whole frames in their order, within the bounds, and the gauge
    /// says what waits.
    #[test]
    fn whole_frames_in_order(steps in prop::collection::vec((any::<bool>(), 0_usize..200), 1..200)) {
        let (outbox, socket, metrics) = attached(8, 600);
        let mut expected = Vec::new();
        let mut open = true;
        for (post, n) in steps {
            if post {
                let frame = event(n);
                match outbox.post(&frame, &mut Vec::new()) {
                    Push::Queued => expected.push(frame.len()),
                    Push::Closed => prop_assert!(!open),
                    Push::Overflow(_) => {
                        // Only what is on the wire, and the frame that has begun, are still to be seen.
                        let (whole, begun) = frames(&socket.wire.borrow());
                        expected.truncate(whole.len() + usize::from(begun > 0));
                        open = false;
                    }
                }
            } else {
                socket.room.set(n);
                let flushed = outbox.flush();
                prop_assert!(matches!(flushed, Flushed::Empty | Flushed::Blocked));
            }
            let wire = socket.wire.borrow().len();
            let waits: usize = expected.iter().sum::<usize>() - wire;
            let begun = frames(&socket.wire.borrow()).1;
            let gauge = usize::try_from(metrics.queue_bytes()).unwrap();
            prop_assert_eq!(gauge, if waits == 0 { 0 } else { waits + begun });
        }
        socket.room.set(usize::MAX);
        outbox.flush();
        prop_assert_eq!(frames(&socket.wire.borrow()), (expected, 0));
    }
}

mod flush;

use futures_util::task::noop_waker;
use proptest::prelude::*;

use super::*;
use crate::telemetry::Metrics;

fn outbox(frames: usize, bytes: usize) -> (Rc<Outbox>, Rc<WorkerMetrics>) {
    let metrics = Rc::new(Metrics::new(1).worker());
    (Outbox::new(Bounds { frames, bytes }, Rc::clone(&metrics)), metrics)
}

fn event(len: usize) -> Frame {
    Frame::event(&"x".repeat(len), Instant::now())
}

fn next(outbox: &Outbox) -> Poll<Option<Frame>> {
    outbox.poll_frame(&mut Context::from_waker(&noop_waker()))
}

fn signal(outbox: &Outbox) -> Poll<Signal> {
    outbox.poll_signal(&mut Context::from_waker(&noop_waker()))
}

#[test]
fn one_frame_fits_however_large() {
    let (outbox, _) = outbox(4, 10);
    assert_eq!(outbox.deliver(&event(100)), Push::Queued);
    assert_eq!(outbox.deliver(&event(1)), Push::Overflow(2));
}

#[test]
fn overflow_drops_everything_and_asks_for_a_close() {
    let (outbox, metrics) = outbox(2, 1000);
    assert_eq!(outbox.deliver(&event(10)), Push::Queued);
    assert_eq!(outbox.deliver(&event(10)), Push::Queued);
    assert_eq!(outbox.deliver(&event(10)), Push::Overflow(3));
    assert_eq!(outbox.deliver(&event(10)), Push::Closed);
    assert_eq!(signal(&outbox), Poll::Ready(Signal::Close(CloseCause::SlowConsumer)));
    assert!(next(&outbox).is_pending());
    assert_eq!(metrics.queue_bytes(), 0);
}

#[test]
fn the_last_words_come_after_what_is_queued() {
    let (outbox, _) = outbox(8, 1000);
    outbox.deliver(&event(1));
    outbox.finish([Frame::close_empty()], false);
    outbox.end();
    assert!(matches!(next(&outbox), Poll::Ready(Some(f)) if f.received().is_some()));
    assert!(matches!(next(&outbox), Poll::Ready(Some(f)) if f.received().is_none()));
    assert!(matches!(next(&outbox), Poll::Ready(None)));
}

#[test]
fn only_the_newest_ping_is_answered() {
    let (outbox, _) = outbox(8, 1000);
    for n in 0..1000_u16 {
        outbox.pong(&n.to_be_bytes());
    }
    let Poll::Ready(Some(frame)) = next(&outbox) else { panic!("a pong") };
    assert_eq!(&frame.wire()[2..], 999_u16.to_be_bytes());
    assert!(next(&outbox).is_pending());
}

#[test]
fn the_first_cause_stands() {
    let (outbox, _) = outbox(8, 1000);
    outbox.request_close(CloseCause::NoPong);
    outbox.request_close(CloseCause::Restart);
    assert_eq!(signal(&outbox), Poll::Ready(Signal::Close(CloseCause::NoPong)));
}

proptest! {
    /// Whatever is delivered and read: never more than the bounds wait, order holds, and the
    /// gauge says exactly what is queued.
    #[test]
    fn bounded_ordered_and_counted(steps in prop::collection::vec((any::<bool>(), 0_usize..200), 1..200)) {
        let (outbox, metrics) = outbox(8, 600);
        let mut expected = VecDeque::new();
        let mut open = true;
        for (write, len) in steps {
            if write {
                match outbox.deliver(&event(len)) {
                    Push::Queued => expected.push_back(event(len).len()),
                    Push::Overflow(n) => {
                        prop_assert_eq!(n, expected.len() + 1);
                        expected.clear();
                        open = false;
                    }
                    Push::Closed => prop_assert!(!open),
                }
            } else {
                match next(&outbox) {
                    Poll::Ready(Some(frame)) => prop_assert_eq!(Some(frame.len()), expected.pop_front()),
                    Poll::Ready(None) => prop_assert!(false, "nothing ended it"),
                    Poll::Pending => prop_assert!(expected.is_empty()),
                }
            }
            prop_assert!(expected.len() <= 8);
            let bytes: usize = expected.iter().sum();
            prop_assert!(bytes <= 600 || expected.len() == 1);
            prop_assert_eq!(metrics.queue_bytes(), i64::try_from(bytes).unwrap());
        }
    }
}

fn has_room(outbox: &Outbox, bytes: usize) -> bool {
    let mut room = std::pin::pin!(outbox.room(bytes));
    Future::poll(room.as_mut(), &mut Context::from_waker(&noop_waker())).is_ready()
}

#[test]
fn a_replay_leaves_half_of_the_queue_to_what_is_live() {
    let (outbox, _) = outbox(10, 1_000);
    assert!(has_room(&outbox, 5_000), "it is alone");
    outbox.deliver(&event(300));
    assert!(has_room(&outbox, 150));
    assert!(!has_room(&outbox, 300));
    assert!(!has_room(&outbox, 5_000));
    assert!(next(&outbox).is_ready());
    assert!(has_room(&outbox, 5_000));
    for _ in 0..6 {
        outbox.deliver(&event(1));
    }
    assert!(!has_room(&outbox, 1), "half of the frames");
    outbox.finish([], false);
    assert!(has_room(&outbox, 1), "it is ending");
}

#[tokio::test]
async fn whoever_waits_for_room_is_woken() {
    let (outbox, _) = outbox(10, 1_000);
    outbox.deliver(&event(300));
    outbox.deliver(&event(300));
    let room = async {
        outbox.room(2_000).await;
        assert!(outbox.deliver(&event(2_000)) == Push::Queued);
    };
    let socket = async {
        let mut taken = 0;
        while taken < 3 {
            tokio::task::yield_now().await;
            taken += usize::from(next(&outbox).is_ready());
        }
    };
    let both = async { tokio::join!(room, socket) };
    tokio::time::timeout(std::time::Duration::from_secs(5), both).await.expect("woken");
}

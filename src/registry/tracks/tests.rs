use std::time::Duration;

use super::*;
use crate::{
    event::Tag,
    frame::{Frame, Mark},
};

fn tracks() -> Arc<Tracks> {
    Tracks::new(Bounds {
        events: 3,
        bytes: 10_000,
        ttl: Duration::from_secs(60),
        meta_ttl: Duration::from_secs(60),
    })
}

fn at(ms: u64) -> Position {
    Position::new(ms, 0)
}

fn event(prev: u64, ms: u64) -> Kept {
    let mark = Mark { tag: Tag::Broadcast, at: at(ms) };
    Kept {
        at: at(ms),
        prev: at(prev),
        except: Arc::default(),
        until: None,
        loss: false,
        frame: Frame::text("{}").at(mark),
    }
}

const ALL: Channel = Channel::Broadcast;

#[test]
fn events_go_out_along_the_chain_once() {
    let tracks = tracks();
    assert_eq!(tracks.advance(&ALL, &event(1, 2), Source::Live), Step::Unwatched);
    let hold = tracks.hold(&ALL);
    hold.start(at(5));
    assert_eq!(tracks.advance(&ALL, &event(4, 5), Source::Live), Step::Repeat);
    assert_eq!(tracks.advance(&ALL, &event(5, 7), Source::Live), Step::Next);
    assert_eq!(tracks.advance(&ALL, &event(5, 7), Source::Live), Step::Repeat);
    assert_eq!(tracks.advance(&ALL, &event(8, 9), Source::Live), Step::Broken);
    assert_eq!(tracks.advance(&ALL, &event(9, 10), Source::Live), Step::Broken);
    assert_eq!(tracks.take_broken(), [ALL]);
    assert_eq!((tracks.position(&ALL), tracks.seen(&ALL)), (Some(at(7)), Some(at(10))));
    for (prev, ms) in [(7, 8), (8, 9), (9, 10)] {
        assert_eq!(tracks.advance(&ALL, &event(prev, ms), Source::Live), Step::Next);
    }
    assert_eq!((tracks.position(&ALL), tracks.seen(&ALL)), (Some(at(10)), None));
    assert_eq!(tracks.advance(&ALL, &event(10, 11), Source::Live), Step::Next);
}

#[test]
fn what_comes_before_the_start_is_not_lost() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    assert_eq!(tracks.advance(&ALL, &event(5, 7), Source::Live), Step::Broken);
    assert_eq!(hold.position(), None);
    hold.start(at(5));
    assert_eq!(tracks.take_broken(), [ALL]);
    assert_eq!(tracks.advance(&ALL, &event(5, 7), Source::Live), Step::Next);
    assert_eq!(tracks.seen(&ALL), None);
    let other = tracks.hold(&ALL);
    assert_eq!(tracks.advance(&ALL, &event(7, 8), Source::Live), Step::Next);
    other.start(at(5));
    assert_eq!(other.position(), Some(at(8)), "it stands already");
}

#[test]
fn a_track_ends_with_its_last_holder() {
    let tracks = tracks();
    let (one, two) = (tracks.hold(&ALL), tracks.hold(&ALL));
    one.start(at(5));
    drop(one);
    assert_eq!(tracks.position(&ALL), Some(at(5)));
    drop(two);
    assert_eq!(tracks.position(&ALL), None);
    assert!(tracks.all().is_empty());
}

#[test]
fn a_ring_has_what_it_can_prove() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(7));
    assert!(tracks.wants_ring(&ALL));
    tracks.set_ring(&ALL, vec![event(1, 5)], Some(at(5)), at(7), Before::default());
    assert!(tracks.ring(&ALL, at(5), 9, 0).is_none(), "7 is missing in it");
    tracks.set_ring(&ALL, vec![event(1, 5), event(5, 7)], Some(at(7)), at(7), Before::default());
    assert_eq!(tracks.advance(&ALL, &event(7, 9), Source::Live), Step::Next);
    let read = |after| {
        let Held { kept, more, last, .. } = tracks.ring(&ALL, at(after), 2, 0)?;
        Some((kept.iter().map(|kept| kept.at.ms).collect::<Vec<_>>(), more, last?.ms))
    };
    assert_eq!(read(1), Some((vec![5, 7], true, 9)));
    assert_eq!(read(7), Some((vec![9], false, 9)));
    assert_eq!(read(9), Some((vec![], false, 9)));
    assert_eq!(read(0), None);
    assert_eq!(read(10), None);
    assert_eq!(tracks.advance(&ALL, &event(9, 11), Source::Live), Step::Next);
    assert_eq!(read(1), None, "the oldest has gone");
    tracks.jump(&ALL, at(20));
    assert_eq!(read(11), None);
    assert_eq!(tracks.position(&ALL), Some(at(20)));
}

#[test]
fn a_silent_channel_has_a_ring_too() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(3));
    tracks.set_ring(&ALL, Vec::new(), None, at(3), Before { epoch: 1, silent_since: 2 });
    let held = tracks.ring(&ALL, at(3), 9, 0).unwrap();
    assert_eq!((held.kept.len(), held.last, held.before.silent_since), (0, None, 2));
    assert_eq!(tracks.advance(&ALL, &event(0, 5), Source::Live), Step::Next);
    assert_eq!(tracks.ring(&ALL, at(3), 9, 0).unwrap().kept.len(), 1);
}

#[test]
fn what_is_older_than_the_data_is_of_no_use() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(5));
    tracks.renew(&ALL, at(9));
    assert_eq!(hold.beginning(), Some(at(5)), "it is good");
    tracks.learn_epoch(8);
    assert_eq!(hold.beginning(), None);
    tracks.renew(&ALL, at(9));
    assert_eq!(hold.beginning(), Some(at(9)));
    tracks.renew(&ALL, at(10));
    assert_eq!(hold.position(), Some(at(9)));
}

#[test]
fn a_ring_lets_old_events_go() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(7));
    tracks.set_ring(&ALL, vec![event(1, 5), event(5, 7)], Some(at(7)), at(7), Before::default());
    assert_eq!(tracks.ring(&ALL, at(1), 9, 60_005).unwrap().kept.len(), 2);
    assert!(tracks.ring(&ALL, at(1), 9, 60_006).is_none());
    assert_eq!(tracks.ring(&ALL, at(5), 9, 60_006).unwrap().kept.len(), 1);
}

#[test]
fn a_ring_of_a_channel_whose_events_are_gone_knows_the_last_id() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(7));
    tracks.set_ring(&ALL, Vec::new(), Some(at(7)), at(7), Before::default());
    let held = tracks.ring(&ALL, at(7), 9, 0).unwrap();
    assert_eq!((held.kept.len(), held.last), (0, Some(at(7))));
    assert!(tracks.ring(&ALL, at(5), 9, 0).is_none());
}

#[test]
fn what_comes_from_the_future_is_looked_up() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(5));
    let far = event(5, 4_000_000_000_000);
    assert_eq!(tracks.advance(&ALL, &far, Source::Live), Step::Broken);
    assert_eq!(tracks.take_broken(), [ALL]);
    assert_eq!(tracks.advance(&ALL, &event(5, 7), Source::History), Step::Next);
    assert_eq!(tracks.advance(&ALL, &far, Source::History), Step::Next, "the clock was ahead");
}

#[test]
fn a_repeat_of_what_was_never_handed_out_is_looked_up() {
    let tracks = tracks();
    let hold = tracks.hold(&ALL);
    hold.start(at(5));
    let live = |prev, ms| tracks.advance(&ALL, &event(prev, ms), Source::Live);
    assert_eq!((live(5, 7), live(7, 8)), (Step::Next, Step::Next));
    assert_eq!((live(4, 5), live(7, 8)), (Step::Repeat, Step::Repeat));
    assert!(tracks.take_doubts().is_empty(), "it was handed out");
    // 100 is made up, and 9 would be passed over.
    assert_eq!((live(0, 100), live(8, 9), live(9, 10)), (Step::Next, Step::Repeat, Step::Repeat));
    let made_up = Place { at: at(100), prev: at(0) };
    assert_eq!(tracks.take_doubts(), [(ALL, made_up)]);
    // Later the broker gives out the very same id.
    assert_eq!(live(99, 100), Step::Repeat);
    assert!(tracks.take_doubts().is_empty(), "it is looked up already");
    tracks.settle(&ALL, made_up);
    assert_eq!(live(99, 100), Step::Repeat);
    assert_eq!(tracks.take_doubts(), [(ALL, made_up)]);
    tracks.settle(&ALL, made_up);
    tracks.jump(&ALL, at(10));
    assert_eq!((live(10, 11), live(11, 12)), (Step::Next, Step::Next));
    // What the history has is a repeat, and needs no second look.
    tracks.prove(&ALL, at(12));
    assert_eq!(live(10, 11), Step::Repeat);
    assert!(tracks.take_doubts().is_empty());
    // The history shows that 20 was none before 30. Nothing need have been passed over.
    let made_up = Place { at: at(20), prev: at(12) };
    assert_eq!(live(12, 20), Step::Next);
    assert_eq!(tracks.advance(&ALL, &event(15, 30), Source::History), Step::Next);
    tracks.prove(&ALL, at(30));
    assert!(tracks.take_doubts().is_empty());
    assert_eq!((live(15, 30), live(12, 15)), (Step::Repeat, Step::Repeat));
    assert!(tracks.take_doubts().contains(&(ALL, made_up)), "15 was passed over");
    // The word of a loss covers it.
    let word = Kept { loss: true, ..event(30, 40) };
    assert_eq!(tracks.advance(&ALL, &word, Source::History), Step::Next);
    assert!(!tracks.is_doubted(&ALL, made_up));
}

use super::*;
use crate::{event::Tag, frame::Mark};

fn alice() -> Channel {
    Channel::User(UserId::new("alice").unwrap())
}

fn at(ms: u64) -> Position {
    Position::new(ms, 0)
}

fn event(prev: u64, ms: u64) -> Kept {
    Kept {
        at: at(ms),
        prev: at(prev),
        except: Arc::default(),
        until: None,
        loss: false,
        frame: Frame::text("{}").at(Mark { tag: Tag::User, at: at(ms) }),
    }
}

const NOW: u64 = 1_000_000;

/// Data since 100, and a last id of `last`.
fn reading(events: &[(u64, u64)], last: Option<u64>) -> Reading {
    Reading {
        kept: events.iter().map(|(prev, ms)| event(*prev, *ms)).collect(),
        more: false,
        last: last.map(at),
        epoch: 100,
        silent_since: 100,
        now: NOW,
    }
}

fn proof(reading: &Reading, claim: Claim) -> Proof {
    reading.proof(&alice(), claim)
}

#[test]
fn a_client_at_the_last_id_has_everything() {
    assert_eq!(proof(&reading(&[], Some(500)), Claim::Client(at(500))), Proof::Whole);
    assert_eq!(proof(&reading(&[], Some(600)), Claim::Client(at(500))), Proof::Lost(0));
    assert_eq!(proof(&reading(&[], Some(400)), Claim::Client(at(500))), Proof::Lost(0));
}

#[test]
fn events_that_follow_are_whole() {
    let three = reading(&[(500, 510), (510, 520), (520, 530)], Some(530));
    assert_eq!(proof(&three, Claim::Client(at(500))), Proof::Whole);
    let trimmed = reading(&[(505, 510), (510, 520)], Some(520));
    assert_eq!(proof(&trimmed, Claim::Client(at(500))), Proof::Lost(0));
    let hole = reading(&[(500, 510), (515, 520)], Some(520));
    assert_eq!(proof(&hole, Claim::Client(at(500))), Proof::Lost(1));
    let cut = reading(&[(500, 510)], Some(520));
    assert_eq!(proof(&cut, Claim::Client(at(500))), Proof::Lost(1));
    let page = Reading { more: true, ..cut };
    assert_eq!(proof(&page, Claim::Client(at(500))), Proof::Whole);
}

#[test]
fn what_was_never_issued_is_unknown() {
    let some = reading(&[(500, 510)], Some(510));
    for ms in [501, 505, 511, 99, NOW * 2] {
        let after = Reading {
            kept: some.kept.iter().filter(|k| k.at > at(ms)).cloned().collect(),
            ..some.clone()
        };
        assert_eq!(proof(&after, Claim::Client(at(ms))), Proof::Lost(0), "{ms}");
    }
    // A replica's own word needs no such proof.
    assert_eq!(proof(&some, Claim::Own(at(505))), Proof::Whole);
    assert_eq!(proof(&reading(&[], Some(510)), Claim::Own(at(505))), Proof::Lost(0));
}

#[test]
fn a_quiet_channel_gives_a_position_of_its_own() {
    let quiet = reading(&[], None);
    let given = quiet.position(&alice());
    assert_eq!(proof(&quiet, Claim::Client(given)), Proof::Whole);
    let first = reading(&[(0, 700)], Some(700));
    assert_eq!(proof(&first, Claim::Client(given)), Proof::Whole);
    let second = reading(&[(700, 800)], Some(800));
    assert_eq!(proof(&second, Claim::Client(given)), Proof::Lost(0), "the first is gone");
    let bob = Channel::User(UserId::new("bob").unwrap());
    assert_eq!(proof(&quiet, Claim::Client(quiet.position(&bob))), Proof::Lost(0));
    assert_eq!(proof(&quiet, Claim::Client(at(500))), Proof::Lost(0), "made up");
    let flushed = Reading { epoch: NOW - 1, silent_since: NOW - 1, ..quiet.clone() };
    assert_eq!(proof(&flushed, Claim::Client(given)), Proof::Lost(0));
    let forgetful = Reading { silent_since: u64::MAX, ..quiet };
    assert_eq!(proof(&forgetful, Claim::Client(given)), Proof::Lost(0));
}

#[test]
fn every_event_comes_after_a_position_that_was_given_out() {
    for (epoch, now) in [(100, 101), (100, QUIET_BACK * 3)] {
        let quiet = Reading { epoch, silent_since: epoch, now, ..Reading::default() };
        let given = quiet.position(&alice());
        assert!(given < Position::new(now, 0), "{given}");
        assert_eq!(proof(&quiet, Claim::Client(given)), Proof::Whole);
    }
}

#[test]
fn a_moment_takes_what_is_there_since() {
    let some = reading(&[(480, 510)], Some(510));
    assert_eq!(proof(&some, Claim::Moment(at(500))), Proof::Whole);
    assert_eq!(proof(&reading(&[(505, 510)], Some(510)), Claim::Moment(at(500))), Proof::Lost(0));
    assert_eq!(proof(&reading(&[], None), Claim::Moment(at(500))), Proof::Whole);
    assert_eq!(proof(&reading(&[], Some(510)), Claim::Moment(at(500))), Proof::Lost(0));
    assert_eq!(proof(&reading(&[], Some(490)), Claim::Moment(at(500))), Proof::Whole);
    assert_eq!(proof(&reading(&[], None), Claim::Moment(at(50))), Proof::Lost(0));
}

#[test]
fn nothing_before_the_data_began_is_proven() {
    let some = reading(&[(0, 510)], Some(510));
    assert_eq!(proof(&some, Claim::Own(at(99))), Proof::Lost(0));
    assert_eq!(proof(&some, Claim::Own(at(100))), Proof::Whole);
}

#[test]
fn replays_leave_out_who_is_excepted_and_what_is_over() {
    let alice = UserId::new("alice").unwrap();
    let bob = UserId::new("bob").unwrap();
    let kept = Kept { except: [bob.clone()].into(), until: Some(900), ..event(500, 510) };
    let json = |frame: Frame| String::from_utf8(frame.json().unwrap().to_vec()).unwrap();
    let skip = r#"{"type":"belfry.skip","id":"u~510-0","prev":"u~500-0"}"#;
    assert_eq!(json(kept.replayed(&alice, 899)), "{}");
    assert_eq!(json(kept.replayed(&bob, 899)), skip);
    assert_eq!(json(kept.replayed(&alice, 900)), skip);
}

#[test]
fn a_stream_stays_within_its_bounds() {
    use std::time::Duration;
    let bounds = Bounds {
        events: 3,
        bytes: 1_000,
        ttl: Duration::from_millis(100),
        meta_ttl: Duration::from_secs(1),
    };
    let mut stream = Stream::default();
    for n in 0..10 {
        let (at, prev) = stream.next(500 + n);
        stream.push(Kept { at, prev, ..event(0, 0) }, &bounds, 500 + n);
    }
    let (kept, more) = stream.read(Position::ZERO, 2);
    assert_eq!((kept.len(), more), (2, true));
    assert_eq!(kept[0].prev, at(506));
    assert_eq!(stream.begin(), Some(at(506)));
    let (rest, more) = stream.read(kept[1].at, 2);
    assert_eq!((rest.len(), more), (1, false));
    stream.trim(&bounds, 700);
    assert!(stream.is_empty());
    assert_eq!(stream.last(), Some(at(509)));
    let (next, prev) = stream.next(400);
    assert_eq!((next, prev), (Position::new(509, 1), at(509)), "a clock that was set back");
    let small = Bounds { bytes: 9, ..bounds };
    for n in 0..3 {
        let (at, prev) = stream.next(800 + n);
        stream.push(Kept { at, prev, ..event(0, 0) }, &small, 800 + n);
    }
    assert_eq!(stream.read(Position::ZERO, 9).0.len(), 2, "4 bytes each");
}

/// Last ids are remembered for a short time only.
#[test]
fn a_quiet_position_lasts() {
    for meta_ttl in [2_000, 100_000] {
        let quiet =
            |now| Reading { epoch: 100, silent_since: now - meta_ttl, now, ..reading(&[], None) };
        let given = quiet(NOW).position(&alice());
        for later in [0, 1, meta_ttl / 2] {
            let later = quiet(NOW + later);
            assert_eq!(proof(&later, Claim::Client(given)), Proof::Whole, "{meta_ttl}");
        }
        assert_eq!(proof(&quiet(NOW + meta_ttl), Claim::Client(given)), Proof::Lost(0));
    }
}

#[test]
fn what_was_read_begins_at_a_place() {
    for events in [&[(500, 510), (510, 520)][..], &[(0, 510)], &[]] {
        let read = reading(events, events.last().map(|(_, ms)| *ms));
        assert_eq!(proof(&read, Claim::Client(read.begin(&alice()))), Proof::Whole, "{events:?}");
    }
}

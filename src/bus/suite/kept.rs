//! What is kept: the promises of contract §4, in memory and on Redis.

use std::{collections::HashSet, sync::Arc, time::Duration};

use proptest::{prelude::Strategy as _, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::value::RawValue;

use super::{BOUNDS, Bus, Promise};
use crate::{
    bus::{
        Ask, BusError, Destination, Keep, Once, Post, Posted, Receipt,
        envelope::{self, Event, Parts},
    },
    event::{Channel, ConnectionId, Group, Position, Tag, UserId},
    history::{Claim, Proof, Reading},
    store::seats::{Taken, Terms, Wish},
};

mod redis;

fn alice() -> Channel {
    user("alice")
}

fn user(id: &str) -> Channel {
    Channel::User(UserId::new(id).unwrap())
}

fn said(data: &str) -> Parts {
    let data = RawValue::from_string(data.to_owned()).unwrap();
    envelope::encode(&Event { kind: "t", data: &data, sender: None }, &[], false).unwrap()
}

fn post(to: Channel, data: &str) -> Post {
    Post { to, event: said(data), keep: Keep::Kept, once: None, online: None }
}

fn once(key: &str, fingerprint: &str) -> Once {
    Once { key: key.to_owned(), fingerprint: fingerprint.to_owned(), each: false }
}

impl Bus {
    async fn post(&self, post: Post) -> Result<Posted, BusError> {
        self.publisher.post(vec![post]).await.pop().unwrap()
    }

    /// Posts, and must succeed.
    async fn done(&self, post: Post) -> Receipt {
        match self.post(post).await {
            Ok(Posted::Done(receipt)) => receipt,
            other => panic!("not done: {other:?}"),
        }
    }

    async fn keep(&self, to: Channel, data: &str) -> Position {
        self.done(post(to, data)).await.at().unwrap()
    }

    async fn read(&self, channel: Channel, after: Option<Position>, most: usize) -> Reading {
        let asks = vec![Ask { channel, after, most }];
        self.history.read(asks).await.unwrap().pop().unwrap()
    }

    /// The next message, as an event with its place.
    async fn event(&mut self) -> (Destination, Option<(Position, Position)>, String) {
        let (from, payload) = self.message().await;
        match envelope::decode(&payload) {
            Ok(envelope::Decoded::Event { place, members, .. }) => {
                (from, place.map(|(_, at, prev)| (at, prev)), format!("{{{members}"))
            }
            other => panic!("no event: {other:?}"),
        }
    }
}

promises! {
    async fn ids_grow_and_chain_and_live_is_what_is_kept(mut bus) {
        let before = bus.read(alice(), None, 0).await;
        assert_eq!(before.last, None);
        let start = before.position(&alice());
        let mut prev = Position::ZERO;
        let mut live = Vec::new();
        for n in 0..50 {
            let at = bus.keep(alice(), &n.to_string()).await;
            assert!(at > prev, "{at} after {prev}");
            let (from, place, json) = bus.event().await;
            assert_eq!((from, place), (Destination::Events(alice()), Some((at, prev))));
            assert!(json.ends_with(&format!(r#""type":"t","data":{n}}}"#)), "{json}");
            live.push(json);
            prev = at;
        }
        let all = bus.read(alice(), Some(Position::ZERO), 100).await;
        let kept: Vec<String> = all.kept.iter()
            .map(|kept| String::from_utf8(kept.frame.json().unwrap().to_vec()).unwrap())
            .collect();
        assert_eq!(kept, live, "a replay is what was live");
        assert_eq!((all.more, all.last), (false, Some(prev)));
        assert_eq!(all.proof(&alice(), Claim::Client(start)), Proof::Whole);
        bus.is_silent().await;
    }

    async fn many_posts_of_one_call_keep_their_order(mut bus) {
        let posts: Vec<Post> = (0..200)
            .map(|n| post(if n % 2 == 0 { alice() } else { user("bob") }, &n.to_string()))
            .collect();
        let answers = bus.publisher.post(posts).await;
        let mut places = [Vec::new(), Vec::new()];
        for (n, answer) in answers.into_iter().enumerate() {
            let Ok(Posted::Done(receipt)) = answer else { panic!("{answer:?}") };
            places[n % 2].push(receipt.at().unwrap());
        }
        for row in &places {
            assert!(row.is_sorted() && row.len() == 100);
        }
        let mut live = [Vec::new(), Vec::new()];
        for _ in 0..200 {
            let (from, place, _) = bus.event().await;
            live[usize::from(from != Destination::Events(alice()))].push(place.unwrap().0);
        }
        assert_eq!(live, places);
    }

    async fn channels_do_not_mix(mut bus) {
        let group = Channel::Group(Group::new("alice").unwrap());
        let names = ["{a}", "a{b}c", "}{", "a:b", "*", "é{🔔}"];
        let mut all = vec![alice(), group, Channel::Broadcast];
        all.extend(names.map(user));
        let posts = all.iter().enumerate().map(|(n, to)| post(to.clone(), &n.to_string()));
        let answers = bus.publisher.post(posts.collect()).await;
        let ask = |channel: &Channel| {
            Ask { channel: channel.clone(), after: Some(Position::ZERO), most: 9 }
        };
        let readings = bus.history.read(all.iter().map(ask).collect()).await.unwrap();
        for (n, ((to, answer), reading)) in all.iter().zip(answers).zip(readings).enumerate() {
            let Ok(Posted::Done(receipt)) = answer else { panic!("{answer:?}") };
            assert!(receipt.id.unwrap().starts_with(&format!("{}~", Tag::of(to))));
            assert_eq!(reading.kept.len(), 1, "{to:?}");
            let json = reading.kept[0].frame.json().unwrap();
            assert!(json.ends_with(format!("{n}}}").as_bytes()), "{to:?}");
        }
        let mut live = HashSet::new();
        for _ in &all {
            live.insert(bus.event().await.0);
        }
        assert_eq!(live, all.into_iter().map(Destination::Events).collect());
    }

    async fn pages_join_without_a_hole(bus) {
        let start = bus.read(alice(), None, 0).await.position(&alice());
        for n in 0..10 {
            bus.keep(alice(), &n.to_string()).await;
        }
        let (mut at, mut seen) = (start, 0);
        loop {
            let page = bus.read(alice(), Some(at), 4).await;
            assert_eq!(page.proof(&alice(), Claim::Client(at)), Proof::Whole);
            seen += page.kept.len();
            let Some(last) = page.kept.last() else { break };
            at = last.at;
            assert_eq!(page.more, seen < 10);
        }
        assert_eq!(seen, 10);
        let top = Position::new(u64::MAX, u64::MAX);
        assert!(bus.read(alice(), Some(top), 4).await.kept.is_empty());
    }

    async fn a_request_is_done_once(mut bus) {
        let first = Post { once: Some(once("k", "f")), ..post(alice(), "1") };
        let receipt = bus.done(first.clone()).await;
        assert!(!receipt.again);
        let again = bus.done(first.clone()).await;
        assert_eq!(again, Receipt { again: true, ..receipt });
        let other = Post { once: Some(once("k", "g")), ..post(alice(), "2") };
        assert_eq!(bus.post(other).await.unwrap(), Posted::Conflict);
        bus.event().await;
        bus.is_silent().await;
        assert_eq!(bus.read(alice(), Some(Position::ZERO), 9).await.kept.len(), 1);
    }

    /// Neither in order nor one behind the other: all at once.
    async fn of_many_equal_requests_one_is_done(mut bus) {
        let requests: Vec<_> = (0..50)
            .map(|n| {
                let publisher = Arc::clone(&bus.publisher);
                let post = Post { once: Some(once("k", "f")), ..post(alice(), &n.to_string()) };
                tokio::spawn(async move { publisher.post(vec![post]).await.pop().unwrap() })
            })
            .collect();
        let mut ids = HashSet::new();
        let mut now = 0;
        for request in requests {
            match request.await.unwrap() {
                Ok(Posted::Done(receipt)) => {
                    now += usize::from(!receipt.again);
                    ids.insert(receipt.id);
                }
                // In memory the second may find the first under way.
                Err(BusError::Away(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((now, ids.len()), (1, 1));
        bus.event().await;
        bus.is_silent().await;
    }

    async fn what_is_transient_is_live_only(mut bus) {
        let prev = bus.keep(alice(), "1").await;
        let post = Post { keep: Keep::Transient, once: Some(once("k", "f")), ..post(alice(), "2") };
        let receipt = bus.done(post.clone()).await;
        assert_eq!(receipt, Receipt::default());
        assert_eq!(bus.done(post).await, Receipt { again: true, ..receipt });
        bus.event().await;
        let (_, place, json) = bus.event().await;
        assert_eq!((place, &*json), (None, r#"{"type":"t","data":2}"#));
        bus.is_silent().await;
        let reading = bus.read(alice(), Some(Position::ZERO), 9).await;
        assert_eq!((reading.kept.len(), reading.last), (1, Some(prev)));
    }

    async fn an_event_says_until_when_it_is_replayed(bus) {
        let life = Duration::from_secs(60);
        let at = bus.done(Post { keep: Keep::For(life), ..post(alice(), "1") }).await.at().unwrap();
        let reading = bus.read(alice(), Some(Position::ZERO), 9).await;
        let until = reading.kept[0].until.unwrap();
        assert!((at.ms + 59_000..=at.ms + 61_000).contains(&until), "{until} {at}");
        bus.keep(alice(), "2").await;
        assert_eq!(bus.read(alice(), Some(at), 9).await.kept[0].until, None);
    }

    async fn online_is_whoever_has_a_seat_on_a_replica_that_lives(bus) {
        let asked = |live: &[&str]| Post {
            online: Some(live.iter().map(|name| (*name).to_owned()).collect()),
            ..post(alice(), "1")
        };
        assert_eq!(bus.done(post(alice(), "1")).await.online, None);
        assert_eq!(bus.done(asked(&["r"])).await.online, Some(false));
        let fleet = bus.store.beat("r").await.unwrap();
        let wish = Wish {
            user: UserId::new("alice").unwrap(),
            id: ConnectionId::new(),
            session: None,
            issued: None,
            held: None,
            terms: Arc::new(Terms { replica: "r".into(), limit: 9, refuse: false, fleet }),
        };
        assert!(matches!(bus.store.take_seat(wish).await.unwrap(), Taken::Seat { .. }));
        assert_eq!(bus.done(asked(&["q", "r"])).await.online, Some(true));
        assert_eq!(bus.done(asked(&[])).await.online, Some(true), "it is not known who lives");
        // Its replica held a lease when it took the seat, a moment ago; the list may be older.
        assert_eq!(bus.done(asked(&["q"])).await.online, Some(true));
        let group = Channel::Group(Group::new("g").unwrap());
        assert_eq!(bus.done(Post { to: group, ..asked(&["r"]) }).await.online, None);
    }

    async fn what_is_erased_is_told_to_whoever_has_not_seen_it(bus) {
        let first = bus.keep(alice(), "1").await;
        let last = bus.keep(alice(), "2").await;
        bus.history.erase(&UserId::new("alice").unwrap()).await.unwrap();
        let reading = bus.read(alice(), Some(first), 9).await;
        assert_eq!((reading.kept.len(), reading.last), (0, Some(last)));
        assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Lost(0));
        assert_eq!(reading.proof(&alice(), Claim::Client(last)), Proof::Whole);
        let next = bus.keep(alice(), "3").await;
        let reading = bus.read(alice(), Some(last), 9).await;
        assert_eq!((reading.kept[0].at, reading.kept[0].prev), (next, last));
    }

    async fn proofs_hold_and_fail_as_they_should(bus) {
        let quiet = bus.read(alice(), None, 0).await.position(&alice());
        let at_rest = bus.read(alice(), Some(quiet), 9).await;
        assert_eq!(at_rest.proof(&alice(), Claim::Client(quiet)), Proof::Whole);
        let of_bob = bus.read(user("bob"), None, 0).await.position(&user("bob"));
        assert_eq!(at_rest.proof(&alice(), Claim::Client(of_bob)), Proof::Lost(0));
        let first = bus.keep(alice(), "1").await;
        assert!(first > quiet);
        let last = bus.keep(alice(), "2").await;
        for (claim, expected) in [
            (Claim::Client(quiet), Proof::Whole),
            (Claim::Client(first), Proof::Whole),
            (Claim::Client(last), Proof::Whole),
            (Claim::Own(first), Proof::Whole),
            (Claim::Client(Position::new(last.ms + 1, 0)), Proof::Lost(0)),
            (Claim::Client(Position::new(first.ms, first.n + 1_000)), Proof::Lost(0)),
            (Claim::Client(Position::ZERO), Proof::Lost(0)),
        ] {
            let reading = bus.read(alice(), Some(claim.at()), 9).await;
            assert_eq!(reading.proof(&alice(), claim), expected, "{claim:?} {reading:?}");
        }
    }

    /// Whatever is done in whatever order: a client that follows from any place that it was ever
    /// given gets exactly what was published since, or is told.
    async fn any_row_of_deeds_is_followed_or_told(bus) {
        let mut runner = TestRunner::deterministic();
        for row in 0..12 {
            let (to, name) = (user(&format!("row-{row}")), UserId::new(&format!("row-{row}")));
            let deeds = proptest::collection::vec(0..10_u8, 1..25).new_tree(&mut runner).unwrap();
            let start = bus.read(to.clone(), None, 0).await.position(&to);
            // Every place that was given, how many events had been published, and what was erased.
            let (mut places, mut all, mut erased) = (vec![(start, 0)], Vec::new(), 0);
            for deed in deeds.current() {
                match deed {
                    0 => {
                        bus.history.erase(name.as_ref().unwrap()).await.unwrap();
                        erased = all.len();
                    }
                    1 => drop(bus.done(Post { keep: Keep::Transient, ..post(to.clone(), "0") }).await),
                    _ => {
                        all.push(bus.keep(to.clone(), "1").await);
                        places.push((*all.last().unwrap(), all.len()));
                    }
                }
            }
            for (at, seen) in places {
                let reading = bus.read(to.clone(), Some(at), 100).await;
                let got: Vec<Position> = reading.kept.iter().map(|kept| kept.at).collect();
                let proof = reading.proof(&to, Claim::Client(at));
                if seen >= erased {
                    assert_eq!((&got[..], proof), (&all[seen..], Proof::Whole), "{row}");
                } else {
                    assert_eq!(proof, Proof::Lost(0), "{row}");
                }
            }
        }
    }

    async fn one_event_too_many_is_told(bus) {
        let first = bus.keep(alice(), "0").await;
        let posts = (0..BOUNDS.events + 200).map(|n| post(alice(), &n.to_string())).collect();
        let answers = bus.publisher.post(posts).await;
        assert!(answers.iter().all(Result::is_ok));
        let reading = bus.read(alice(), Some(first), 1_000).await;
        assert!((BOUNDS.events..BOUNDS.events + 101).contains(&reading.kept.len()));
        assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Lost(0));
        let from = reading.kept[0].at;
        let rest = bus.read(alice(), Some(from), 1_000).await;
        assert_eq!(rest.proof(&alice(), Claim::Client(from)), Proof::Whole);
    }

    async fn a_channel_stays_within_its_bytes(bus) {
        let data = format!("\"{}\"", "x".repeat(50_000));
        for _ in 0..60 {
            bus.keep(alice(), &data).await;
        }
        let reading = bus.read(alice(), Some(Position::ZERO), 1_000).await;
        let bytes: usize = reading.kept.iter().map(|kept| kept.frame.len()).sum();
        assert!(bytes <= BOUNDS.bytes, "{bytes}");
        assert!(bytes >= BOUNDS.bytes / 2, "{bytes}");
    }
}

/// Everything that events may need, once.
pub(super) async fn a_life_with(mut bus: Bus) {
    let first = bus.done(Post {
        once: Some(once("k", "f")),
        online: Some([].into()),
        ..post(alice(), "1")
    });
    assert_eq!(first.await.online, Some(false));
    let data = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..30 {
        bus.keep(alice(), &data).await;
    }
    bus.done(Post { keep: Keep::Transient, ..post(alice(), "2") }).await;
    for _ in 0..32 {
        bus.event().await;
    }
    assert!(!bus.read(alice(), Some(Position::ZERO), 9).await.kept.is_empty());
    bus.history.erase(&UserId::new("alice").unwrap()).await.unwrap();
    bus.keep(alice(), "3").await;
}

//! Seats of users, and where connections begin.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;

use super::{BOUNDS, Bus, Promise, SOON};
use crate::{
    bus::{Ask, Keep, Post, Posted, envelope},
    event::{Channel, ConnectionId, Position, SessionKey, UserId},
    store::{
        replicas::Fleet,
        seats::{Taken, Terms, Wish},
    },
    testing::RedisServer,
};

fn terms(limit: usize, refuse: bool) -> Arc<Terms> {
    let fleet = Fleet { live: vec!["r".to_owned()], at: 1, fresh: false };
    Arc::new(Terms { replica: "r".into(), limit, refuse, fleet })
}

/// A wish of an own connection, by a credential without a session.
fn wish(user: &str, terms: &Arc<Terms>) -> Wish {
    Wish {
        user: UserId::new(user).unwrap(),
        id: ConnectionId::new(),
        session: None,
        issued: None,
        held: None,
        terms: Arc::clone(terms),
    }
}

fn is_seat(taken: &Taken) -> bool {
    matches!(taken, Taken::Seat { over, .. } if over.is_empty())
}

promises! {
    async fn the_oldest_seats_are_over_and_what_is_not_held_is_gone(bus) {
        let store = &bus.store;
        let fleet = store.beat("r").await.unwrap();
        assert_eq!((fleet.live.as_slice(), fleet.fresh), (&["r".to_owned()][..], true));
        assert!(!store.beat("r").await.unwrap().fresh);
        let user = UserId::new("a:{lice}").unwrap();
        let ids: Vec<ConnectionId> = (0..5).map(|_| ConnectionId::new()).collect();
        let terms = |refuse| {
            Arc::new(Terms { replica: "r".into(), limit: 2, refuse, fleet: fleet.clone() })
        };
        let wish = |n: usize, refuse| Wish { id: ids[n], ..wish("a:{lice}", &terms(refuse)) };
        let mut last = 0;
        for n in 0..4 {
            let taken = store.take_seat(wish(n, false)).await.unwrap();
            let Taken::Seat { at, over } = taken else { panic!("{taken:?}") };
            assert!(at > last, "every seat is newer than those before");
            last = at;
            // Named once: its seat is gone from then on.
            assert_eq!(over, ids[n.saturating_sub(2)..n.saturating_sub(1)]);
        }
        assert_eq!(store.take_seat(wish(4, true)).await.unwrap(), Taken::Full);
        let held = (user.clone(), vec![(ids[3], Some(last))]);
        store.enter_seats(&"r".into(), &[held]).await.remove(0).unwrap();
        let taken = store.take_seat(wish(4, true)).await.unwrap();
        assert!(is_seat(&taken), "{taken:?}");
        assert_eq!(store.take_seat(wish(0, true)).await.unwrap(), Taken::Full);
        assert_eq!(store.live().await.unwrap(), ["r"]);
        store.leave("r").await.unwrap();
        assert!(store.live().await.unwrap().is_empty());
    }

    async fn what_was_given_back_makes_room_though_it_is_not_entered_yet(bus) {
        let terms = terms(2, true);
        let [first, second, third] = [(); 3].map(|()| wish("alice", &terms));
        for wish in [&first, &second] {
            let taken = bus.store.take_seat(wish.clone()).await.unwrap();
            assert!(is_seat(&taken), "{taken:?}");
        }
        assert_eq!(bus.store.take_seat(third.clone()).await.unwrap(), Taken::Full);
        // The second connection has gone, and the third is coming.
        let held = Some(vec![(first.id, Some(1)), (third.id, None)]);
        let taken = bus.store.take_seat(Wish { held, ..third.clone() }).await.unwrap();
        assert!(is_seat(&taken), "{taken:?}");
        let held = Some(vec![(first.id, Some(1)), (third.id, Some(2))]);
        let fourth = Wish { held, ..wish("alice", &terms) };
        assert_eq!(bus.store.take_seat(fourth).await.unwrap(), Taken::Full);
    }

    async fn a_revoked_credential_takes_no_seat_and_drives_nobody_out(bus) {
        let (store, terms) = (&bus.store, terms(1, false));
        let [s, t] = ["s", "t"].map(|id| Some(SessionKey::of(id)));
        let at = SystemTime::now();
        let (before, after) = (Some(at - SOON), Some(at + SOON));
        store.revoke_session(SessionKey::of("s"), SOON).await.unwrap();
        let bob = UserId::new("b:{o}b").unwrap();
        store.revoke_user(&bob, at, t, SOON).await.unwrap();
        for (user, session, issued, revoked) in [
            ("alice", None, None, false),
            ("alice", s, after, true),
            ("alice", t, before, false),
            ("b:{o}b", None, None, true),
            ("b:{o}b", None, before, true),
            ("b:{o}b", None, after, false),
            ("b:{o}b", t, before, false),
            ("b:{o}b", s, after, true),
        ] {
            let asked = Wish { session, issued, ..wish(user, &terms) };
            let taken = store.take_seat(asked).await.unwrap();
            assert_eq!(taken == Taken::Revoked, revoked, "{user} {session:?} {issued:?}");
            assert_eq!(store.revoked(&UserId::new(user).unwrap(), session, issued).await.unwrap(), revoked);
        }
        // Another exception: the first order holds for everyone now, whatever their session.
        store.revoke_user(&bob, at, None, SOON).await.unwrap();
        let excepted = Wish { session: t, issued: before, ..wish("b:{o}b", &terms) };
        assert_eq!(store.take_seat(excepted).await.unwrap(), Taken::Revoked);
        let newer = Wish { issued: after, ..wish("b:{o}b", &terms) };
        let taken = store.take_seat(newer).await.unwrap();
        let Taken::Seat { over, .. } = &taken else { panic!("{taken:?}") };
        assert_eq!(over.len(), 1, "only those who were let in had seats");
    }

    async fn everyone_of_a_crowd_gets_his_own_answer(bus) {
        let (two, one) = (terms(2, false), terms(1, true));
        let mut wishes = Vec::new();
        // More than go in one run of the script, and not so many that one has to step aside.
        for n in 0..54 {
            let limits = if n % 3 == 0 { &one } else { &two };
            wishes.push(wish(&format!("u{}", n / 3), limits));
        }
        let taken = join_all(wishes.iter().map(|wish| bus.store.take_seat(wish.clone()))).await;
        for (n, taken) in taken.into_iter().enumerate() {
            // Each user wishes for three seats in a row, and the third drives the first out.
            let Taken::Seat { over, .. } = taken.unwrap() else { panic!("{n} has no seat") };
            let expected = if n % 3 == 2 { vec![wishes[n - 2].id] } else { Vec::new() };
            assert_eq!(over, expected, "{n}");
        }
        let users: Vec<UserId> = (0..18).map(|n| UserId::new(&format!("u{n}")).unwrap()).collect();
        assert_eq!(bus.store.count_seats(&users).await.unwrap(), vec![2; 18]);
        let none: Vec<_> = users.iter().map(|user| (user.clone(), Vec::new())).collect();
        for entered in bus.store.enter_seats(&"r".into(), &none).await {
            entered.unwrap();
        }
        assert_eq!(bus.store.count_seats(&users).await.unwrap(), vec![0; 18]);
    }

    async fn where_connections_begin_is_what_a_reading_says(bus) {
        let channels: Vec<Channel> = ["a", "b", "c:{}"]
            .map(|id| Channel::User(UserId::new(id).unwrap()))
            .into_iter()
            .chain([Channel::Broadcast])
            .collect();
        let mut places = Vec::new();
        for n in 0..4 {
            let data = serde_json::value::RawValue::from_string(n.to_string()).unwrap();
            let event = envelope::Event { kind: "t", data: &data, sender: None };
            let event = envelope::encode(&event, &[], false).unwrap();
            // Nothing is kept for the first.
            let to = channels[1 + n % 3].clone();
            let post = Post { to, event, keep: Keep::Kept, once: None, online: None };
            match bus.publisher.post(vec![post]).await.pop() {
                Some(Ok(Posted::Done(receipt))) => places.push(receipt.at().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        let last = Position::new(u64::MAX, u64::MAX);
        let mut afters = vec![None, Some(Position::ZERO), Some(last)];
        afters.extend(places.into_iter().map(Some));
        let asks = |after| {
            let ask = |channel: &Channel| Ask { channel: channel.clone(), after, most: 1 };
            channels.iter().map(ask).collect::<Vec<_>>()
        };
        for after in afters {
            // Two at once, so that they are asked for together.
            let (begun, again) =
                tokio::join!(bus.history.begin(asks(after)), bus.history.begin(asks(after)));
            let read = bus.history.read(asks(after)).await.unwrap();
            for ((begun, again), read) in begun.unwrap().iter().zip(again.unwrap()).zip(read) {
                for begun in [begun, &again] {
                    let ids = |kept: &[crate::history::Kept]| kept.iter().map(|k| k.at).collect::<Vec<_>>();
                    assert_eq!(ids(&begun.kept), ids(&read.kept), "{after:?}");
                    assert_eq!((begun.more, begun.last), (read.more, read.last), "{after:?}");
                    assert_eq!(begun.epoch, read.epoch);
                    assert!(begun.now <= read.now && begun.silent_since <= read.silent_since);
                }
            }
        }
    }
}

#[tokio::test]
async fn one_who_cannot_be_answered_is_not_in_the_way_of_others() {
    let mut bus = Bus::on(RedisServer::running().await, "", BOUNDS).ready().await;
    for key in ["ws:seats:bad", "ws:last:user:bad"] {
        assert_eq!(bus.server().command(&["LPUSH", key, "x"]).await, ":1\r\n");
    }
    let terms = terms(1, true);
    let users = ["a", "b", "bad", "c", "d", "bad", "e"];
    let taken = join_all(users.map(|user| bus.store.take_seat(wish(user, &terms)))).await;
    let asks = |user| {
        let channel = Channel::User(UserId::new(user).unwrap());
        vec![Ask { channel, after: None, most: 1 }]
    };
    let begun = join_all(users.map(|user| bus.history.begin(asks(user)))).await;
    for ((user, taken), begun) in users.iter().zip(taken).zip(begun) {
        assert_eq!(taken.is_ok(), *user != "bad", "{user} {taken:?}");
        // It is the end of that channel's history alone.
        let proves = begun.as_ref().is_ok_and(|begun| begun[0].silent_since < u64::MAX);
        assert_eq!((begun.is_ok(), proves), (true, *user != "bad"), "{user} {begun:?}");
    }
    assert!(bus.publisher.is_up());
}

/// A replica that is demoted refuses writes: its connection is given up, as after any such refusal.
#[tokio::test]
async fn a_server_that_takes_no_seats_is_given_up() {
    let mut bus = Bus::on(RedisServer::running().await, "", BOUNDS).ready().await;
    assert_eq!(bus.server().command(&["REPLICAOF", "127.0.0.1", "1"]).await, "+OK\r\n");
    assert!(bus.store.take_seat(wish("alice", &terms(1, true))).await.is_err());
    crate::testing::eventually("it is given up", Duration::from_secs(2), || async {
        !bus.publisher.is_up()
    })
    .await;
}

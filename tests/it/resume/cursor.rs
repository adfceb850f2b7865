//! A cursor brings exactly what came after it, each once and in order, then what is live.

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Duration;

use crate::support::{
    app::{Builder, Replica},
    client::Dial,
    jwt::{Jwt, token},
    redis::RedisServer,
    tab::{
        Cursor, Kind, Tab, answer, for_all, for_group, for_user, group_tag, marker, member, put,
        quick, split, with,
    },
    until,
};

on_both!(
    what_was_missed_follows_then_what_is_live,
    quick_reconnects_lose_nothing,
    before_the_first_event_ever,
    nothing_missed_is_whole,
    half_a_replay_is_taken_up_where_it_broke,
    an_event_id_is_a_cursor,
    a_new_group_begins_ten_seconds_before,
    a_group_that_was_left_is_silent,
    a_quiet_channel_stays_provable,
    an_event_past_its_time_is_a_skip,
);

fn dial(replica: &Replica) -> Dial {
    Dial::to(replica).query(&Jwt::of("alice").groups(&["staff"]).sign())
}

/// The markers of one channel.
fn of_channel(frames: &[Value], tag: &str) -> Vec<String> {
    let here = |frame: &&Value| split(member(frame, "id").expect("an id")).0 == tag;
    frames.iter().filter(here).map(marker).collect()
}

async fn what_was_missed_follows_then_what_is_live(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut witness = Tab::open(&dial(replica)).await;
    for event in [for_user("alice", "old"), for_all("old"), for_group("staff", "old")] {
        put(replica, &event).await;
        witness.before("old").await;
    }
    witness.events.clear();
    for dial in [dial(replica), dial(replica).sse()] {
        let mut tab = Tab::open(&dial).await;
        for event in [for_user("alice", "seen"), for_all("seen")] {
            put(replica, &event).await;
        }
        assert_eq!([marker(&tab.next().await), marker(&tab.next().await)], ["seen", "seen"]);
        let cursor = tab.leave();
        let mut wanted = [Vec::new(), Vec::new(), Vec::new()];
        for n in 0..30 {
            let marker = format!("m{n}");
            let (channel, event) = match n % 6 {
                0..3 => (0, for_user("alice", &marker)),
                3 => (1, for_group("staff", &marker)),
                _ => (2, for_all(&marker)),
            };
            put(replica, &event).await;
            wanted[channel].push(marker);
        }
        put(replica, &for_user("bob", "bobs")).await;
        put(replica, &for_group("other", "others")).await;
        answer(replica, &with(for_user("alice", "transient"), "transient", true)).await;
        witness.before("transient").await;
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.is_whole();
        let replayed = tab.replay().await;
        for (tag, wanted) in ["u", &group_tag("staff"), "b"].into_iter().zip(&wanted) {
            assert_eq!(&of_channel(&replayed, tag), wanted, "{tag}");
        }
        assert_eq!(replayed.len(), 30);
        put(replica, &for_user("alice", "live")).await;
        put(replica, &for_all("live too")).await;
        assert_eq!([marker(&tab.next().await), marker(&tab.next().await)], ["live", "live too"]);
        // What is replayed is what was live, to the letter.
        witness.before("live too").await;
        let mut live = std::mem::take(&mut witness.events);
        for event in tab.events {
            let at = live.iter().position(|text| *text == event);
            live.remove(at.unwrap_or_else(|| panic!("never live: {event}")));
        }
        let left: Vec<&str> =
            live.iter().filter(|text| !text.contains("seen")).map(|t| &**t).collect();
        assert!(left.is_empty(), "never replayed: {left:?}");
    }
}

async fn quick_reconnects_lose_nothing(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    for dial in [dial(replica), dial(replica).sse()] {
        let mut cursor = Tab::open(&dial).await.leave();
        put(replica, &for_user("alice", "one")).await;
        put(replica, &for_all("two")).await;
        // They read the welcome, and go before they read a replayed event.
        for run in 0..5 {
            let tab = Tab::resume(&dial, &cursor).await;
            tab.is_whole();
            cursor = tab.leave();
            put(replica, &for_group("staff", &format!("g{run}"))).await;
        }
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.is_whole();
        let mut markers = tab.replayed().await;
        markers.sort_unstable();
        assert_eq!(markers, ["g0", "g1", "g2", "g3", "g4", "one", "two"]);
    }
}

async fn before_the_first_event_ever(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    for (index, sse) in [false, true].into_iter().enumerate() {
        let user = format!("brand:new-{index}");
        let jwt = Jwt::of(&user).groups(&[&user]).sign();
        let dial = Dial::to(replica).query(&jwt);
        let dial = if sse { dial.sse() } else { dial };
        let cursor = Tab::open(&dial).await.leave();
        put(replica, &for_user(&user, "first")).await;
        put(replica, &for_group(&user, "first of the group")).await;
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.is_whole();
        let mut markers = tab.replayed().await;
        markers.sort_unstable();
        assert_eq!(markers, ["first", "first of the group"]);
        put(replica, &for_user(&user, "last")).await;
        assert!(tab.before("last").await.is_empty());
    }
}

async fn nothing_missed_is_whole(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    // Twice: a channel that never had an event, and one that has.
    let mut witness = Tab::open(&dial(replica)).await;
    for run in 0..2 {
        for dial in [dial(replica), dial(replica).sse()] {
            let mut cursor = Tab::open(&dial).await.leave();
            for _ in 0..3 {
                let mut tab = Tab::resume(&dial, &cursor).await;
                tab.is_whole();
                assert!(tab.replay().await.is_empty(), "run {run}");
                assert_eq!(tab.cursor, Cursor::parse(&cursor), "run {run}");
                cursor = tab.leave();
            }
        }
        for event in [for_user("alice", "x"), for_all("x"), for_group("staff", "x")] {
            put(replica, &event).await;
            witness.before("x").await;
        }
    }
}

async fn half_a_replay_is_taken_up_where_it_broke(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    for dial in [dial(replica), dial(replica).sse()] {
        let mut cursor = Tab::open(&dial).await.leave();
        for n in 0..60 {
            let marker = n.to_string();
            put(replica, &for_user("alice", &marker)).await;
            put(replica, &for_all(&marker)).await;
        }
        let (mut mine, mut everyones) = (Vec::new(), Vec::new());
        loop {
            let mut tab = Tab::resume(&dial, &cursor).await;
            tab.is_whole();
            let mut live = false;
            for _ in 0..17 {
                let frame = tab.next().await;
                if frame["type"] == "belfry.live" {
                    live = true;
                    break;
                }
                let own = split(member(&frame, "id").expect("an id")).0 == "u";
                (if own { &mut mine } else { &mut everyones }).push(marker(&frame));
            }
            cursor = tab.leave();
            if live {
                break;
            }
        }
        let wanted: Vec<String> = (0..60).map(|n| n.to_string()).collect();
        assert_eq!(mine, wanted);
        assert_eq!(everyones, wanted);
    }
}

async fn an_event_id_is_a_cursor(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    put(replica, &for_all("just before")).await;
    let id = put(replica, &for_user("alice", "seen")).await;
    for marker in ["one", "two"] {
        put(replica, &for_user("alice", marker)).await;
        put(replica, &for_all(marker)).await;
    }
    for dial in [dial(replica), dial(replica).sse()] {
        let mut tab = Tab::resume(&dial, &id).await;
        tab.is_whole();
        let replayed = tab.replay().await;
        assert_eq!(of_channel(&replayed, "u"), ["one", "two"]);
        // The other channels begin 10 s before: what is doubled is better than what is lost.
        assert_eq!(of_channel(&replayed, "b"), ["just before", "one", "two"]);
        put(replica, &for_group("staff", "last")).await;
        assert!(tab.before("last").await.is_empty());
    }
}

async fn a_new_group_begins_ten_seconds_before(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let old = Dial::to(replica).query(&token("alice"));
    put(replica, &for_group("staff", "before")).await;
    let mut tab = Tab::open(&old).await;
    put(replica, &for_user("alice", "seen")).await;
    tab.before("seen").await;
    let cursor = tab.leave();
    put(replica, &for_group("staff", "after")).await;
    for dial in [dial(replica), dial(replica).sse()] {
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.is_whole();
        assert_eq!(tab.replayed().await, ["before", "after"]);
    }
}

async fn a_group_that_was_left_is_silent(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let outside = Dial::to(replica).query(&token("alice"));
    for outside in [outside.clone(), outside.sse()] {
        let cursor = Tab::open(&dial(replica)).await.leave();
        put(replica, &for_group("staff", "secret")).await;
        put(replica, &for_user("alice", "mine")).await;
        let mut tab = Tab::resume(&outside, &cursor).await;
        assert_eq!(tab.cursor.tags(), ["b", "u"], "{}", tab.welcome);
        let tag = group_tag("staff");
        let (_, lost) = tab.resumed();
        assert!(lost.iter().all(|lost| *lost == tag), "{}", tab.welcome);
        assert_eq!(tab.replayed().await, ["mine"]);
        put(replica, &for_group("staff", "secret too")).await;
        put(replica, &for_all("last")).await;
        assert!(tab.before("last").await.is_empty());
    }
}

/// What is kept goes; the last ids stay, so a tab that saw everything can know that it did.
async fn a_quiet_channel_stays_provable(kind: Kind) {
    let place = kind.start(Builder::production().set("history.ttl", "1s")).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&dial(replica)).await;
    let missed = tab.cursor.to_string();
    for event in [for_user("alice", "x"), for_group("staff", "x"), for_all("x")] {
        put(replica, &event).await;
        tab.next().await;
    }
    let cursor = tab.leave();
    // The night: nothing is kept any more, as one who needs it finds out.
    until("what was kept is gone", Duration::from_secs(10), async || {
        let tab = Tab::resume(&dial(replica), &missed).await;
        (tab.resumed().1.len() == 3).then_some(())
    })
    .await;
    if let Some(redis) = &place.redis {
        assert_eq!(redis.cli(&["EXISTS", "ws:user:alice", "ws:broadcast", "ws:group:staff"]), "0");
    }
    for dial in [dial(replica), dial(replica).sse()] {
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.is_whole();
        assert!(tab.replay().await.is_empty());
    }
    // The chain goes on where it was.
    let mut tab = Tab::resume(&dial(replica), &cursor).await;
    tab.replay().await;
    put(replica, &for_user("alice", "next")).await;
    assert_eq!(marker(&tab.next().await), "next");
    let mut tab = Tab::resume(&dial(replica), &cursor).await;
    tab.is_whole();
    assert_eq!(tab.replayed().await, ["next"]);
}

async fn an_event_past_its_time_is_a_skip(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut live = Tab::open(&dial(replica)).await;
    let cursor = live.cursor.to_string();
    put(replica, &for_user("alice", "one")).await;
    put(replica, &with(for_user("alice", "short"), "ttl_seconds", 2)).await;
    put(replica, &with(for_all("long"), "ttl_seconds", 600)).await;
    put(replica, &with(for_all("short too"), "ttl_seconds", 2)).await;
    put(replica, &for_user("alice", "last")).await;
    assert_eq!(live.before("last").await, ["one", "short", "long", "short too"]);
    let mut tab = Tab::resume(&dial(replica), &cursor).await;
    tab.is_whole();
    let replayed = tab.replay().await;
    assert_eq!(of_channel(&replayed, "u"), ["one", "short", "last"]);
    assert_eq!(of_channel(&replayed, "b"), ["long", "short too"]);
    for dial in [dial(replica), dial(replica).sse()] {
        // Not before its time; then soon.
        let (own, everyones) = until("its time is over", Duration::from_secs(10), async || {
            let mut tab = Tab::resume(&dial, &cursor).await;
            tab.is_whole();
            let replayed = tab.replay().await;
            let both = (of_channel(&replayed, "u"), of_channel(&replayed, "b"));
            (!both.0.contains(&"short".to_owned()) && !both.1.contains(&"short too".to_owned()))
                .then_some(both)
        })
        .await;
        assert_eq!(own, ["one", "-", "last"]);
        assert_eq!(everyones, ["long", "-"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_another_replica_and_after_the_first_is_dead() {
    let redis = RedisServer::start().await;
    let start = || quick(Builder::production(), &redis).spawn();
    let (one, two) = tokio::join!(start(), start());
    for sse in [false, true] {
        let road = |replica: &Replica| {
            let dial = dial(replica);
            if sse { dial.sse() } else { dial }
        };
        let mut tab = Tab::open(&road(&one)).await;
        put(&two, &for_user("alice", "seen")).await;
        tab.before("seen").await;
        let cursor = tab.leave();
        put(&one, &for_user("alice", "one")).await;
        put(&two, &for_all("two")).await;
        put(&one, &for_group("staff", "three")).await;
        let mut tab = Tab::resume(&road(&two), &cursor).await;
        tab.is_whole();
        let mut markers = tab.replayed().await;
        markers.sort_unstable();
        assert_eq!(markers, ["one", "three", "two"]);
        put(&one, &for_user("alice", "live")).await;
        assert!(tab.before("live").await.is_empty());
    }
    // Users that the dead one knew, with events and without.
    let mut known = Tab::open(&dial(&one)).await;
    let quiet = Dial::to(&one).query(&token("quiet"));
    let quiet = Tab::open(&quiet).await.leave();
    put(&one, &for_user("alice", "its last")).await;
    known.before("its last").await;
    one.process.signal(Signal::SIGKILL);
    one.process.end(Duration::from_secs(5)).await;
    let cursor = known.leave();
    put(&two, &for_user("alice", "after")).await;
    put(&two, &for_user("quiet", "after")).await;
    let mut tab = Tab::resume(&dial(&two), &cursor).await;
    tab.is_whole();
    assert_eq!(tab.replayed().await, ["after"]);
    let mut tab = Tab::resume(&Dial::to(&two).query(&token("quiet")), &quiet).await;
    tab.is_whole();
    assert_eq!(tab.replayed().await, ["after"]);
    // A third that has seen nothing of it.
    let three = start().await;
    let mut tab = Tab::resume(&dial(&three), &cursor).await;
    tab.is_whole();
    assert_eq!(tab.replayed().await, ["after"]);
}

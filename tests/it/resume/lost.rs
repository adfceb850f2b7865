//! What cannot be proven whole is said to be lost, never left out in silence; and the connection
//! goes on live.

use serde_json::{Value, json};
use tokio::time::Duration;

use crate::support::{
    app::{Builder, Replica},
    client::Dial,
    jwt::token,
    tab::{Cursor, Kind, Position, Tab, for_all, for_user, marker, member, put, split},
    until,
};

on_both!(
    l06_an_id_never_issued,
    l06_an_id_that_was_trimmed_away,
    what_expired_is_lost_and_the_rest_is_replayed,
    a_position_of_another_user,
    a_position_in_the_future,
    malformed_cursors_are_no_error,
    unknown_channels_are_no_error,
    l06_a_history_that_was_lost,
);

fn alice(replica: &Replica) -> Dial {
    Dial::to(replica).query(&token("alice"))
}

/// Both roads.
fn roads(replica: &Replica) -> [Dial; 2] {
    [alice(replica), alice(replica).sse()]
}

/// Nothing is replayed of these channels, and all of it works live. `last` is a new marker.
async fn goes_on(tab: &mut Tab, replica: &Replica, lost: &[&str], last: &str) {
    tab.has_lost(lost);
    for frame in tab.replay().await {
        let (tag, _) = split(member(&frame, "id").expect("an id"));
        assert!(!lost.contains(&tag), "a part passed off as the whole: {frame}");
    }
    let own = format!("{last}, own");
    put(replica, &for_user("alice", &own)).await;
    put(replica, &for_all(last)).await;
    assert_eq!(tab.before(last).await, [own]);
}

async fn l06_an_id_never_issued(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&alice(replica)).await;
    let quiet = tab.cursor.clone();
    let never = quiet.0["u"];
    for (what, position) in [
        ("a quiet channel's, changed", Position { ms: never.ms, n: never.n ^ 1 }),
        ("older than that", Position { ms: never.ms.saturating_sub(60_000), n: never.n }),
        ("none at all", Position { ms: 0, n: 0 }),
        ("the example of a page", Position { ms: 1_732_406_400_000, n: 0 }),
    ] {
        for (run, dial) in roads(replica).iter().enumerate() {
            let cursor = quiet.clone().at("u", position).to_string();
            let mut tab = Tab::resume(dial, &cursor).await;
            tab.has_lost(&["u"]);
            tab.replay().await;
            put(replica, &for_all(&format!("{what} {run}"))).await;
            assert!(tab.before(&format!("{what} {run}")).await.is_empty(), "{what}");
        }
    }
    for n in 0..5 {
        put(replica, &for_user("alice", &n.to_string())).await;
    }
    tab.before("4").await;
    let last = tab.cursor.0["u"];
    let first: Value = serde_json::from_str(&first_of(&tab)).expect("JSON");
    let (_, first) = split(member(&first, "id").expect("an id"));
    for (what, position) in [
        ("between two", Position { ms: first.ms, n: first.n + 500 }),
        ("just after the first", Position { ms: first.ms, n: first.n + 77 }),
        ("just before the first", Position { ms: first.ms - 1, n: 3 }),
        ("long before", Position { ms: first.ms - 3_600_000, n: 0 }),
        ("one after the last", Position { ms: last.ms, n: last.n + 1 }),
    ] {
        for (run, dial) in roads(replica).iter().enumerate() {
            let cursor = Cursor::default().at("u", position).at("b", tab.cursor.0["b"]);
            let mut again = Tab::resume(dial, &cursor.to_string()).await;
            let marker = format!("{what}, {run}");
            goes_on(&mut again, replica, &["u"], &marker).await;
            tab.before(&marker).await;
        }
    }
}

/// The first own event of this tab.
fn first_of(tab: &Tab) -> String {
    tab.events.iter().find(|text| text.contains("\"u~")).expect("an own event").clone()
}

async fn l06_an_id_that_was_trimmed_away(kind: Kind) {
    let place = kind.start(Builder::production().set("history.events", "50")).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&alice(replica)).await;
    put(replica, &for_all("seen")).await;
    put(replica, &for_user("alice", "seen")).await;
    tab.before("seen").await;
    tab.before("seen").await;
    let cursor = tab.leave();
    put(replica, &for_all("missed")).await;
    for n in 0..600 {
        put(replica, &for_user("alice", &n.to_string())).await;
    }
    for (run, dial) in roads(replica).iter().enumerate() {
        let mut tab = Tab::resume(dial, &cursor).await;
        tab.has_lost(&["u"]);
        assert_eq!(tab.replayed().await, ["missed"]);
        let last = format!("last {run}");
        put(replica, &for_user("alice", &last)).await;
        assert!(tab.before(&last).await.is_empty());
        // From the new cursor on it is whole again.
        let now = tab.leave();
        put(replica, &for_user("alice", "more")).await;
        let mut tab = Tab::resume(dial, &now).await;
        tab.is_whole();
        assert_eq!(tab.replayed().await, ["more"]);
    }
}

async fn what_expired_is_lost_and_the_rest_is_replayed(kind: Kind) {
    let place = kind.start(Builder::production().set("history.ttl", "1s")).await;
    let replica = &place.replica;
    for dial in roads(replica) {
        let cursor = Tab::open(&dial).await.leave();
        put(replica, &for_user("alice", "expires")).await;
        until("it has expired", Duration::from_secs(10), async || {
            let mut tab = Tab::resume(&dial, &cursor).await;
            let lost = tab.resumed().1 == ["u"];
            let replayed = tab.replayed().await;
            // As long as it is not lost, it is there.
            assert!(replayed.is_empty() || !lost && replayed == ["expires"], "{replayed:?}");
            // It went between the welcome and the replay: that is told too.
            if !lost && replayed.is_empty() {
                let word = tab.next_word("belfry.resync").await;
                assert_eq!(word["lost"], json!(["u"]), "{word}");
            }
            lost.then_some(())
        })
        .await;
        put(replica, &for_all("fresh")).await;
        let mut tab = Tab::resume(&dial, &cursor).await;
        tab.has_lost(&["u"]);
        assert_eq!(tab.replayed().await, ["fresh"]);
    }
}

async fn a_position_of_another_user(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let bob = Dial::to(replica).query(&token("bob"));
    let quiet = Tab::open(&bob).await.cursor;
    let mut tab = Tab::open(&bob).await;
    put(replica, &for_user("bob", "bobs")).await;
    tab.before("bobs").await;
    let busy = tab.cursor.clone();
    // Bob's first event was once read as the first of alice's, who has none; then as one of hers.
    let mut run = 0;
    for _ in 0..2 {
        for cursor in [&quiet, &busy] {
            for dial in roads(replica) {
                put(replica, &for_all(&format!("all {run}"))).await;
                let mut again = Tab::resume(&dial, &cursor.to_string()).await;
                again.has_lost(&["u"]);
                let replayed = again.replayed().await;
                assert!(replayed.iter().all(|marker| marker.starts_with("all")), "{replayed:?}");
                assert!(replayed.contains(&format!("all {run}")), "{replayed:?}");
                run += 1;
            }
        }
        put(replica, &for_user("alice", "hers")).await;
    }
    put(replica, &for_user("bob", "still his")).await;
    let mut tab = Tab::resume(&bob, &busy.to_string()).await;
    tab.is_whole();
    assert!(tab.replayed().await.contains(&"still his".to_owned()));
}

async fn a_position_in_the_future(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&alice(replica)).await;
    put(replica, &for_user("alice", "one")).await;
    tab.before("one").await;
    let now = tab.cursor.0["u"];
    for (run, ahead) in [1, 60_000, 86_400_000 * 365, u64::MAX - now.ms].into_iter().enumerate() {
        for (road, dial) in roads(replica).iter().enumerate() {
            let position = Position { ms: now.ms + ahead, n: 0 };
            // All that is live now is at or below it, and comes all the same.
            let cursor = Cursor::default().at("u", position).at("b", tab.cursor.0["b"]);
            let mut again = Tab::resume(dial, &cursor.to_string()).await;
            let marker = format!("{run}, {road}");
            goes_on(&mut again, replica, &["u"], &marker).await;
            tab.before(&marker).await;
        }
    }
}

async fn malformed_cursors_are_no_error(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&alice(replica)).await;
    put(replica, &for_user("alice", "one")).await;
    put(replica, &for_all("two")).await;
    tab.before("two").await;
    let good = tab.cursor.clone();
    let broadcast = good.clone().only("b");
    let long = "u~1732406400000-0,".repeat(300);
    let whole = [
        "garbage",
        "~",
        ",",
        ",,,",
        "-",
        "0",
        "null",
        "{}",
        "u",
        "u~",
        "%00",
        "\u{0}",
        "🔔~1-0",
        "' OR 1=1 --",
        "../../etc/passwd",
        "$",
        "*",
        "+",
        "18446744073709551616-0",
        &long,
    ];
    let mut cases: Vec<(String, Vec<&str>)> =
        whole.iter().map(|text| ((*text).to_owned(), vec!["b", "u"])).collect();
    for own in [
        "u~1",
        "u~1-",
        "u~-1",
        "u~-1-0",
        "u~1-0-0",
        "u~x-y",
        "u~1.5-0",
        "u~ 1-0",
        "u~+1-0",
        "u~0x1-0",
        "u~99999999999999999999999-0",
        "u~1-99999999999999999999999",
        "u~٣-0",
    ] {
        cases.push((format!("{own},{broadcast}"), vec!["u"]));
        cases.push((format!("{broadcast},{own}"), vec!["u"]));
    }
    for (run, (cursor, lost)) in cases.iter().enumerate() {
        // What no header can bear is not for the road with a header.
        let plain =
            cursor.bytes().all(|byte| (b' '..0x7f).contains(&byte)) && cursor.trim() == cursor;
        for dial in roads(replica).iter().take(if plain { 2 } else { 1 }) {
            let mut again = Tab::resume(dial, cursor).await;
            println!("{cursor:?}: {}", again.welcome);
            again.has_lost(lost);
            assert!(again.replay().await.is_empty(), "{cursor:?}");
            let marker = format!("after {run}");
            put(replica, &for_user("alice", &marker)).await;
            assert_eq!(again.before(&marker).await, Vec::<String>::new(), "{cursor:?}");
        }
    }
    // Nothing asked: it is not an error, and no promise either.
    for empty in [alice(replica).since(""), alice(replica).sse().header("Last-Event-ID", "")] {
        let again = Tab::open(&empty).await;
        assert_ne!(again.welcome["resumed"], true, "{}", again.welcome);
    }
}

async fn unknown_channels_are_no_error(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&alice(replica)).await;
    put(replica, &for_user("alice", "one")).await;
    tab.before("one").await;
    let cursor = tab.leave();
    for (run, odd) in [
        "x~1-0",
        "U~1-0",
        "g~1-0",
        "g=~1-0",
        "g=!~1-0",
        "g=c3RhZmY~1-0",
        "user~1-0",
        "b=~1-0",
        "u=~1-0",
    ]
    .into_iter()
    .enumerate()
    {
        for dial in roads(replica) {
            for cursor in [format!("{cursor},{odd}"), format!("{odd},{cursor}")] {
                put(replica, &for_user("alice", &format!("m{run}"))).await;
                let mut tab = Tab::resume(&dial, &cursor).await;
                let (_, lost) = tab.resumed();
                assert!(!lost.contains(&"u") && !lost.contains(&"b"), "{odd}: {}", tab.welcome);
                let replayed = tab.replayed().await;
                assert!(replayed.contains(&format!("m{run}")), "{odd}: {replayed:?}");
            }
        }
    }
    // The same channel twice: one of the two, or lost, but no event twice.
    let (first, _) = cursor.split_once(",u~").expect("b first");
    for dial in roads(replica) {
        let mut tab = Tab::resume(&dial, &format!("{cursor},{first}")).await;
        tab.replay().await;
    }
}

/// Redis loses everything, or a replica that keeps all in memory starts again.
async fn l06_a_history_that_was_lost(kind: Kind) {
    let builder = Builder::production();
    let mut place = kind.start(builder.clone()).await;
    let dial = |replica: &Replica, user: &str| Dial::to(replica).query(&token(user));
    let mut busy = Tab::open(&dial(&place.replica, "alice")).await;
    let quiet = Tab::open(&dial(&place.replica, "quiet")).await.leave();
    put(&place.replica, &for_user("alice", "seen")).await;
    put(&place.replica, &for_all("seen too")).await;
    busy.before("seen too").await;
    let busy = busy.leave();
    put(&place.replica, &for_user("alice", "missed")).await;
    put(&place.replica, &for_user("quiet", "missed")).await;
    if let Some(redis) = &place.redis {
        // Its epoch is of the next millisecond at the earliest.
        redis.cli(&["FLUSHALL"]);
    } else {
        place.replica = builder.spawn().await;
    }
    let replica = &place.replica;
    // Before anything is new, and after.
    for run in 0..2 {
        for (user, cursor) in [("alice", &busy), ("quiet", &quiet)] {
            for dial in [dial(replica, user), dial(replica, user).sse()] {
                let mut tab = Tab::resume(&dial, cursor).await;
                tab.has_lost(&["b", "u"]);
                let replayed = tab.replay().await;
                assert!(replayed.is_empty(), "{run}: {user}: {replayed:?}");
                let again = format!("again {run}");
                put(replica, &for_user(user, &again)).await;
                assert_eq!(marker(&tab.next().await), again);
                // The new cursor holds.
                let now = tab.leave();
                put(replica, &for_user(user, "more")).await;
                let mut tab = Tab::resume(&dial, &now).await;
                tab.is_whole();
                assert_eq!(tab.replayed().await, ["more"]);
            }
        }
        put(replica, &for_all("new")).await;
    }
}

/// A replica that watches while everything is lost goes on delivering to those who are connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_were_connected_are_not_left_deaf() {
    let place = Kind::Redis.start(Builder::production()).await;
    let redis = place.redis.as_ref().expect("on Redis");
    let mut tab = Tab::open(&alice(&place.replica)).await;
    for n in 0..10 {
        put(&place.replica, &for_user("alice", &n.to_string())).await;
        put(&place.replica, &for_all(&n.to_string())).await;
    }
    tab.before("9").await;
    redis.cli(&["FLUSHALL"]);
    for marker in ["after", "after all"] {
        put(&place.replica, &for_user("alice", marker)).await;
    }
    put(&place.replica, &for_all("last")).await;
    let before = tab.before("last").await;
    let own: Vec<&String> = before.iter().filter(|marker| marker.starts_with("after")).collect();
    assert_eq!(own, ["after", "after all"]);
}

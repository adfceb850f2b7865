//! Every kept event has its place, and everyone sees the whole chain.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::{Jwt, token},
    redis::RedisServer,
    tab::{
        Kind, Position, Tab, answer, for_all, for_group, for_user, group_tag, marker, member, put,
        quick, split, with,
    },
};

on_both!(
    kept_events_have_ids_that_grow_and_name_the_one_before,
    transient_events_have_no_place,
    the_answer_bears_the_id_that_is_delivered,
    the_welcome_has_a_position_in_every_channel,
    nothing_is_said_of_resuming_where_nothing_was_asked,
    d09_who_is_left_out_sees_a_skip_in_its_place,
    history_of_none_keeps_nothing,
);

const GROUPS: [&str; 4] = ["staff", "b:c", "ü / +?{x}", "~,u~1-0"];

fn in_groups(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).query(&Jwt::of(user).groups(&GROUPS).sign())
}

async fn kept_events_have_ids_that_grow_and_name_the_one_before(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let mut tab = Tab::open(&in_groups(&place.replica, "alice")).await;
    let mut other = Tab::open(&in_groups(&place.replica, "bob")).await;
    let mut last: BTreeMap<String, Position> = BTreeMap::new();
    for run in 0..20 {
        let marker = format!("m{run}");
        let mut events = vec![for_user("alice", &marker), for_all(&marker)];
        events.extend(GROUPS.map(|group| for_group(group, &marker)));
        let mut tags = vec!["u".to_owned(), "b".to_owned()];
        tags.extend(GROUPS.map(group_tag));
        for (event, tag) in events.iter().zip(&tags) {
            let id = put(&place.replica, event).await;
            let frame = tab.next().await;
            assert_eq!(member(&frame, "id"), Some(id.as_str()), "{event}: {frame}");
            let (found, position) = split(&id);
            assert_eq!(found, tag, "{event}");
            let (_, prev) = split(member(&frame, "prev").expect("a prev"));
            let before = last.insert(tag.clone(), position);
            // A new channel remembers none.
            assert_eq!(prev, before.unwrap_or(Position { ms: 0, n: 0 }), "{event}: {frame}");
            assert!(position > prev, "{frame}");
            // Members of a channel see the same frame.
            if tag != "u" {
                assert_eq!(other.next().await, frame);
            }
        }
    }
    // The milliseconds are those of the clock.
    let now = u64::try_from(crate::support::jwt::now()).expect("after 1970") * 1_000;
    for position in last.values() {
        assert!(position.ms.abs_diff(now) < 60_000, "{position} at {now}");
    }
}

async fn transient_events_have_no_place(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let mut tab = Tab::open(&Dial::to(&place.replica).query(&token("alice"))).await;
    put(&place.replica, &for_user("alice", "one")).await;
    let first = tab.next().await;
    let said = answer(&place.replica, &with(for_user("alice", "gone"), "transient", true)).await;
    assert!(said.get("id").is_none(), "{said}");
    let frame = tab.next().await;
    assert_eq!(frame, json!({"type": "test", "data": {"mk": "gone"}}));
    put(&place.replica, &for_user("alice", "two")).await;
    let second = tab.next().await;
    assert_eq!(member(&second, "prev"), member(&first, "id"), "{second}");
}

async fn the_answer_bears_the_id_that_is_delivered(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut alice = Tab::open(&Dial::to(replica).query(&token("alice"))).await;
    let mut bob = Tab::open(&Dial::to(replica).query(&token("bob"))).await;
    let said = answer(replica, &for_user("alice", "one")).await;
    assert_eq!(said["online"], true, "{said}");
    assert_eq!(alice.next().await["id"], said["id"]);
    // Kept for somebody who is not there.
    let said = answer(replica, &for_user("nobody", "one")).await;
    assert_eq!(said["online"], false, "{said}");
    assert_eq!(split(said["id"].as_str().expect("an id")).0, "u");
    let said = answer(replica, &for_all("all")).await;
    assert!(said.get("online").is_none(), "only users are online: {said}");
    assert_eq!(alice.next().await["id"], said["id"]);
    assert_eq!(bob.next().await["id"], said["id"]);
    let several = json!({"to": {"users": ["bob", "nobody", "alice"]}, "type": "test",
        "data": {"mk": "several"}});
    let said = answer(replica, &several).await;
    let events = said["events"].as_array().unwrap_or_else(|| panic!("no events: {said}"));
    let of = |user: &str| {
        let mut found = events.iter().filter(|event| event["user"] == user);
        let one = found.next().unwrap_or_else(|| panic!("nothing of {user}: {said}"));
        assert!(found.next().is_none(), "{user} twice: {said}");
        one
    };
    assert_eq!(alice.next().await["id"], of("alice")["id"], "{said}");
    assert_eq!(bob.next().await["id"], of("bob")["id"], "{said}");
    let online = ["alice", "bob", "nobody"].map(|user| of(user)["online"].clone());
    assert_eq!(online, [json!(true), json!(true), json!(false)], "{said}");
}

async fn the_welcome_has_a_position_in_every_channel(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let mut wanted: Vec<String> = GROUPS.map(group_tag).to_vec();
    wanted.extend(["u".into(), "b".into()]);
    wanted.sort_unstable();
    let dial = in_groups(&place.replica, "alice");
    for dial in [dial.clone(), dial.sse()] {
        let tab = Tab::open(&dial).await;
        assert_eq!(tab.cursor.tags(), wanted, "{}", tab.welcome);
    }
    let tab = Tab::open(&Dial::to(&place.replica).query(&token("bob"))).await;
    assert_eq!(tab.cursor.tags(), ["b", "u"], "{}", tab.welcome);
    // It is a position after which nothing is old.
    for marker in ["one", "two"] {
        put(&place.replica, &for_user("bob", marker)).await;
        put(&place.replica, &for_all(marker)).await;
    }
    let mut tab = Tab::resume(&Dial::to(&place.replica).query(&token("bob")), &tab.leave()).await;
    assert_eq!(tab.replay().await.len(), 4);
    let late = Tab::open(&Dial::to(&place.replica).query(&token("bob"))).await;
    assert_eq!(late.cursor, tab.cursor, "{}", late.welcome);
}

async fn nothing_is_said_of_resuming_where_nothing_was_asked(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    put(&place.replica, &for_user("alice", "old")).await;
    let mut last = put(&place.replica, &for_all("old")).await;
    let dial = Dial::to(&place.replica).query(&token("alice"));
    for dial in [dial.clone(), dial.sse()] {
        let mut tab = Tab::open_past(&dial, &last).await;
        assert!(tab.welcome["resumed"].is_null(), "{}", tab.welcome);
        assert!(tab.welcome.get("resumed").is_some(), "{}", tab.welcome);
        assert!(tab.welcome.get("lost").is_none_or(Value::is_null), "{}", tab.welcome);
        last = put(&place.replica, &for_user("alice", "new")).await;
        // Nothing old, and no word of a replay that nobody asked for.
        assert_eq!(tab.next().await["data"]["mk"], "new");
    }
}

async fn d09_who_is_left_out_sees_a_skip_in_its_place(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let dial = |user: &str| Dial::to(replica).query(&Jwt::of(user).groups(&["staff"]).sign());
    let users = ["alice", "a:b", "bob"];
    let mut tabs = Vec::new();
    for user in users {
        tabs.push((user, Tab::open(&dial(user)).await));
        tabs.push((user, Tab::open(&dial(user).sse()).await));
    }
    let away: Vec<(&str, String)> = {
        let mut away = Vec::new();
        for user in users {
            away.push((user, Tab::open(&dial(user)).await.leave()));
        }
        away
    };
    let left_out = |event, users: Value| with(event, "except", json!({"users": users}));
    let events = [
        for_all("for-all"),
        left_out(for_all("not-alice"), json!(["alice"])),
        left_out(for_group("staff", "nobody-of-us"), json!(["bob", "a:b", "alice"])),
        left_out(for_group("staff", "not-a:b"), json!(["a:b", "stranger"])),
        left_out(for_all("all-again"), json!(["stranger"])),
        for_group("staff", "last"),
    ];
    for event in &events {
        put(replica, event).await;
    }
    let seen = |user: &str| -> Vec<&str> {
        let alice = if user == "alice" { "-" } else { "not-alice" };
        let a_b = if user == "a:b" { "-" } else { "not-a:b" };
        vec!["for-all", alice, "-", a_b, "all-again"]
    };
    for (user, tab) in &mut tabs {
        assert_eq!(tab.before("last").await, seen(user), "{user}");
    }
    // The same for those who come later, channel by channel.
    for (user, cursor) in &away {
        for dial in [dial(user), dial(user).sse()] {
            let mut tab = Tab::resume(&dial, cursor).await;
            tab.is_whole();
            let mut frames = tab.replay().await;
            frames.sort_by_key(|frame| split(member(frame, "id").expect("an id")).0 == "b");
            let markers: Vec<String> = frames.iter().map(marker).collect();
            let live = seen(user);
            let mut wanted: Vec<&str> = vec![live[2], live[3], "last"];
            wanted.extend([live[0], live[1], live[4]]);
            assert_eq!(markers, wanted, "{user}");
            // Who else is left out is nobody's business.
            let all = frames.iter().map(Value::to_string).collect::<String>();
            assert!(!all.contains("stranger") && !all.contains("except"), "{all}");
        }
    }
}

/// Several tabs over two replicas, and everyone else sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_over_two_replicas() {
    let redis = RedisServer::start().await;
    let start = || quick(Builder::production(), &redis).spawn();
    let replicas: [Replica; 2] = tokio::join!(start(), start()).into();
    let mut tabs = Vec::new();
    for n in 0..3 {
        tabs.push(("x:y", Tab::open(&Dial::to(&replicas[n % 2]).query(&token("x:y"))).await));
    }
    for n in 0..20 {
        let dial = Dial::to(&replicas[n % 2]).query(&token(&format!("user-{n}")));
        tabs.push(("other", Tab::open(&dial).await));
    }
    let event = with(for_all("secret"), "except", json!({"users": ["x:y"]}));
    put(&replicas[0], &event).await;
    put(&replicas[1], &for_all("last")).await;
    for (user, tab) in &mut tabs {
        let wanted = if *user == "x:y" { "-" } else { "secret" };
        assert_eq!(tab.before("last").await, [wanted], "{user}");
    }
}

async fn history_of_none_keeps_nothing(kind: Kind) {
    let place = kind.start(Builder::production().set("history.events", "0")).await;
    let replica = &place.replica;
    let dial = Dial::to(replica).query(&token("alice"));
    for dial in [dial.clone(), dial.sse()] {
        let mut tab = Tab::open(&dial).await;
        assert_eq!(tab.welcome["cursor"], "", "{}", tab.welcome);
        for event in [for_user("alice", "one"), for_all("one")] {
            let said = answer(replica, &event).await;
            assert!(said.get("id").is_none(), "{said}");
            let frame = tab.next().await;
            assert_eq!(frame, json!({"type": "test", "data": {"mk": "one"}}));
        }
        drop(tab);
        let mut tab = Tab::resume(&dial, "u~1732406400000-0,b~1732406399000-4").await;
        assert_eq!(tab.welcome["resumed"], false, "{}", tab.welcome);
        assert_eq!(tab.welcome["cursor"], "", "{}", tab.welcome);
        answer(replica, &for_user("alice", "last")).await;
        assert!(tab.before("last").await.is_empty());
    }
    if let Some(redis) = &place.redis {
        assert_eq!(redis.cli(&["EXISTS", "ws:user:alice", "ws:broadcast"]), "0");
    }
}

/// Neighbours PUBLISH what they like; it comes as it is, has no place and is not replayed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbours_messages_do_not_touch_the_chain() {
    let place = Kind::Redis.start(Builder::production()).await;
    let redis = place.redis.as_ref().expect("on Redis");
    let dial = Dial::to(&place.replica).query(&token("alice"));
    let begin = Tab::open(&dial).await.leave();
    let mut tab = Tab::open(&dial).await;
    put(&place.replica, &for_user("alice", "one")).await;
    let raw = r#"{ "type":"raw" , "data":{"mk":"raw"} }"#;
    assert_eq!(redis.client().await.publish("ws:user:alice", raw).await, 1);
    put(&place.replica, &for_user("alice", "two")).await;
    let first = tab.text(PATIENCE).await;
    assert!(first.contains("one"), "{first}");
    assert_eq!(tab.text(PATIENCE).await, raw);
    assert!(tab.text(PATIENCE).await.contains("two"));
    let mut later = Tab::resume(&dial, &begin).await;
    later.is_whole();
    assert_eq!(later.replayed().await, ["one", "two"]);
}

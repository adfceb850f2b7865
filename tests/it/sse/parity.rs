//! E05, E10: one history, whatever road it is read by.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::Jwt,
    tab::{Cursor, Kind, Step, Tab, answer, for_all, for_group, for_user, put, with},
};

fn alice(replica: &Replica) -> Dial {
    Dial::to(replica).query(&Jwt::of("alice").groups(&["staff"]).sign())
}

/// Last-Event-ID, `since`, both, and both of them differing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e05_the_header_wins_over_the_query() {
    for kind in [Kind::Memory, Kind::Redis] {
        let place = kind.start(Builder::production()).await;
        let replica = &place.replica;
        let dial = alice(replica).sse();
        let mut tab = Tab::open(&dial).await;
        let old = tab.cursor.to_string();
        put(replica, &for_user("alice", "one")).await;
        tab.before("one").await;
        let new = tab.leave();
        put(replica, &for_user("alice", "two")).await;
        let header = |cursor: &str| ("Last-Event-ID", cursor.to_owned());
        for (what, dial, wanted) in [
            ("header", dial.clone().header("Last-Event-ID", &*old), vec!["one", "two"]),
            ("query", dial.clone().since(&old), vec!["one", "two"]),
            (
                "new in the header",
                dial.clone().since(&old).header("Last-Event-ID", &*new),
                vec!["two"],
            ),
            (
                "old in the header",
                dial.clone().since(&new).header("last-event-id", &*old),
                vec!["one", "two"],
            ),
        ] {
            let mut tab = Tab::open(&dial).await;
            tab.is_whole();
            assert_eq!(tab.replayed().await, wanted, "{what}");
        }
        // A header that is no cursor wins as well, and is not passed over for the query.
        let (name, bad) = header("garbage");
        let tab = Tab::open(&dial.clone().since(&new).header(name, bad)).await;
        tab.has_lost(&["b", "g=c3RhZmY", "u"]);
        // On WebSocket no such header is known.
        let (name, value) = header(&old);
        let tab = Tab::open(&alice(replica).header(name, value)).await;
        assert!(tab.welcome["resumed"].is_null(), "{}", tab.welcome);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_the_same_on_both_roads_and_from_one_to_the_other() {
    for kind in [Kind::Memory, Kind::Redis] {
        let place = kind.start(Builder::production()).await;
        let replica = &place.replica;
        let mut roads = [Tab::open(&alice(replica)).await, Tab::open(&alice(replica).sse()).await];
        assert_eq!(roads[0].cursor, roads[1].cursor);
        let begin = roads[0].cursor.to_string();
        for n in 0..30 {
            let marker = n.to_string();
            let event = match n % 3 {
                0 => for_user("alice", &marker),
                1 => for_all(&marker),
                _ => for_group("staff", &marker),
            };
            match n {
                7 => drop(answer(replica, &with(event, "transient", true)).await),
                10 => {
                    put(replica, &with(event, "except", json!({"users": ["alice"]}))).await;
                }
                _ => {
                    put(replica, &with(event, "sender", "tab-7")).await;
                }
            }
            let (ws, sse) = (roads[0].next().await, roads[1].next().await);
            assert_eq!(ws, sse);
            assert_eq!(roads[0].cursor, roads[1].cursor);
        }
        assert_eq!(roads[0].events.len(), 28);
        // From either to the other, in the middle of things.
        let [ws, sse] = roads;
        let (from_ws, from_sse) = (ws.leave(), sse.leave());
        assert_eq!(Cursor::parse(&from_ws), Cursor::parse(&from_sse));
        put(replica, &for_user("alice", "later")).await;
        for (dial, cursor) in [(alice(replica).sse(), &from_ws), (alice(replica), &from_sse)] {
            let mut tab = Tab::resume(&dial, cursor).await;
            tab.is_whole();
            assert_eq!(tab.replayed().await, ["later"]);
        }
        // All of it, read by both.
        let mut ws = Tab::resume(&alice(replica), &begin).await;
        let mut sse = Tab::resume(&alice(replica).sse(), &begin).await;
        let by = |frames: Vec<Value>, tag: &str| -> Vec<Value> {
            let here = |frame: &Value| frame["id"].as_str().is_some_and(|id| id.starts_with(tag));
            frames.into_iter().filter(here).collect()
        };
        let (ws, sse) = (ws.replay().await, sse.replay().await);
        assert_eq!((ws.len(), sse.len()), (30, 30));
        for tag in ["u~", "b~", "g="] {
            assert_eq!(by(ws.clone(), tag), by(sse.clone(), tag), "{tag}");
        }
    }
}

/// A lost history reads the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_what_is_lost_is_the_same() {
    let replica = Replica::start().await;
    for cursor in ["garbage", "u~1-0", "u~1732406400000-0,b~1732406399000-4"] {
        let ws = Tab::resume(&alice(&replica), cursor).await;
        let sse = Tab::resume(&alice(&replica).sse(), cursor).await;
        assert_eq!(ws.resumed(), sse.resumed(), "{cursor}");
        assert_eq!(ws.resumed().0, Some(false), "{cursor}");
        assert_eq!(ws.cursor, sse.cursor, "{cursor}");
    }
    let mut cursor = Cursor::default();
    let mut sse = Tab::open(&alice(&replica).sse()).await;
    assert_eq!(cursor.take(&sse.welcome), Step::None);
    put(&replica, &for_user("alice", "x")).await;
    let text = sse.text(PATIENCE).await;
    assert!(text.contains("\"x\""), "{text}");
}

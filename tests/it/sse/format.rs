//! What is on the wire: heads, lines, ids, encoding, heartbeats.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Duration;

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::{Jwt, token},
    sse::{Message, Seen, Sse},
    tab::{Cursor, Kind, Tab, for_all, for_group, for_user, put},
};

fn alice(replica: &Replica) -> Dial {
    Dial::to(replica).sse().query(&token("alice"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_a_streams_and_the_first_message_the_welcome() {
    let replica = Replica::start().await;
    let dial = alice(&replica).header("Accept-Encoding", "gzip, deflate, br, zstd");
    let sse = Sse::open(&dial).await;
    let head = &sse.head;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"), "{head:?}");
    let cache = head.header("cache-control").unwrap_or_default();
    for word in ["no-store", "no-transform"] {
        assert!(cache.split(',').any(|found| found.trim() == word), "{head:?}");
    }
    assert_eq!(head.header("x-accel-buffering"), Some("no"), "{head:?}");
    assert_eq!(head.header("transfer-encoding"), Some("chunked"), "{head:?}");
    for absent in ["content-encoding", "content-length"] {
        assert_eq!(head.header(absent), None, "{head:?}");
    }
    for (name, kind) in [("connection", ""), ("user", "alice")] {
        let value = sse.welcome[name].as_str().unwrap_or_default();
        assert!(!value.is_empty() && (kind.is_empty() || value == kind), "{}", sse.welcome);
    }
    assert_eq!(sse.welcome["groups"], json!([]));
    assert_eq!(sse.welcome["heartbeat_ms"], 25_000);
    let body = sse.body();
    assert!(!body.starts_with("\u{feff}".as_bytes()), "a byte order mark");
    assert!(sse.retry().is_some_and(|wait| (100..=60_000).contains(&wait)), "{:?}", sse.retry());
    replica.metric("connections", &[("transport", "sse")], PATIENCE, |now| now > 0.5).await;
    drop(sse);
    replica.metric_is("connections", 0.0, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_is_not_the_same_for_all() {
    let replica = Builder::production().set("limits.connections_per_user", "0").spawn().await;
    let mut waits = BTreeSet::new();
    for _ in 0..20 {
        waits.insert(Sse::open(&alice(&replica)).await.retry().expect("a retry line"));
    }
    assert!(waits.len() > 5, "all come back at the same moment: {waits:?}");
}

/// A message for every way to break a line, and nothing but one message each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_line_breaks_in_anything() {
    let replica = Replica::start().await;
    let mut sse = Sse::open(&alice(&replica)).await;
    let mut ws = Dial::to(&replica).query(&token("alice")).open().await;
    let hostile = "data: x\n\nevent: evil\r\nid: 1\rretry: 1\n\n: comment\n\ndata: y";
    let breaks = [
        "\n", "\r", "\r\n", "\n\r", "\n\n", "\r\r", "\r\n\r\n", "\u{85}", "\u{2028}", "\u{2029}",
        "\u{b}", "\u{c}", "\0",
    ];
    let mut bodies: Vec<String> = Vec::new();
    for text in breaks.into_iter().chain([hostile]) {
        // Inside strings: data, member names, the type and the sender.
        let data = json!({"mk": text, text: [text, {"x": format!("{text}{text}")}]});
        bodies.push(json!({"to": {"user": "alice"}, "type": "t", "data": data}).to_string());
        let naming =
            json!({"to": {"user": "alice"}, "type": format!("t{text}event: x"), "data": 1});
        let sender = json!({"to": {"user": "alice"}, "type": "t", "sender": format!("s{text}data: x"), "data": 1});
        bodies.extend([naming.to_string(), sender.to_string()]);
    }
    // Between members, where data is kept as it was written.
    for space in ["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n", " \n\t\r ", "\n \n"] {
        let data = format!(
            "{space}{{{space}\"mk\"{space}:{space}\"a\"{space},{space}\"b\":[{space}1,{space}2{space}]{space}}}{space}"
        );
        bodies.push(format!(r#"{{"to":{{"user":"alice"}},"type":"t","data":{data}}}"#));
    }
    let mut accepted = 0;
    for body in bodies {
        let answer = replica.post(body.clone()).await;
        if answer.status == 422 {
            // Names may be refused, data may not.
            assert!(!body.contains("\"mk\""), "{body}: {answer:?}");
            continue;
        }
        assert_eq!(answer.status, 202, "{body}: {answer:?}");
        accepted += 1;
        let (_, message) = sse.message(PATIENCE).await;
        assert_eq!(message.event, "message", "{body}");
        let (_, text) = ws.text(PATIENCE).await;
        let on_ws: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(message.json(), on_ws, "{body}");
        let sent: Value = serde_json::from_str(&body).expect("JSON");
        for name in ["type", "data", "sender"] {
            assert_eq!(on_ws.get(name), sent.get(name), "{body}");
        }
        let cursor = Cursor::parse(&message.id);
        assert_eq!(cursor.0["u"], Cursor::parse(on_ws["id"].as_str().expect("an id")).0["u"]);
    }
    assert!(accepted >= 22, "only {accepted} were accepted");
    assert!(sse.retry() != Some(1), "a line of the data was taken for a field");
}

/// The same from a neighbour, whose bytes nobody has checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_line_breaks_from_a_neighbour() {
    let place = Kind::Redis.start(Builder::production()).await;
    let redis = place.redis.as_ref().expect("on Redis");
    let mut client = redis.client().await;
    let mut sse = Sse::open(&alice(&place.replica)).await;
    for space in ["", "\n", "\r", "\r\n", "\n\n", "\r\r", "\n\r\n\r"] {
        let raw = format!(
            "{space}{{{space}\"type\"{space}:\"raw\",{space}\"data\":\"a\\nb\\r\"{space}}}{space}"
        );
        client.publish("ws:user:alice", &raw).await;
        let (_, message) = sse.message(PATIENCE).await;
        let sent: Value = serde_json::from_str(&raw).expect("JSON");
        assert_eq!((message.json(), message.event.as_str()), (sent, "message"), "{raw:?}");
    }
    // A break in a string is not JSON, and goes nowhere.
    client.publish("ws:user:alice", "{\"type\":\"raw\",\"data\":\"a\n\nid: evil\n\n\"}").await;
    put(&place.replica, &for_user("alice", "last")).await;
    assert!(sse.markers_before("last").await.is_empty());
}

/// Ids are what Belfry makes of positions, whatever an event calls its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e04_ids_fit_a_header() {
    let place = Kind::Redis.start(Builder::production()).await;
    let redis = place.redis.as_ref().expect("on Redis");
    let mut client = redis.client().await;
    let groups = ["ü / +?", "a,b~1-0", "\u{1f514}", "x y=z"];
    let jwt = Jwt::of("josé ~,=").groups(&groups).sign();
    let user = "josé ~,=";
    let mut sse = Sse::open(&Dial::to(&place.replica).sse().query(&jwt)).await;
    let begin = Cursor::parse(&sse.last_event_id());
    assert_eq!(begin.0.len(), 6, "{begin}");
    for id in [
        "evil",
        "",
        "\0",
        "a\nid: b",
        "\u{1f514}",
        "u~1-0",
        "u~99999999999999-0",
        "b~99999999999999-0",
    ] {
        for raw in [
            json!({"id": id, "type": "raw", "data": 1}),
            json!({"id": id, "prev": "u~0-0", "type": "raw", "data": 1}),
            json!({"type": "raw", "prev": id, "id": id, "data": {"id": id}}),
        ] {
            client.publish(&format!("ws:user:{user}"), raw.to_string()).await;
            let (_, message) = sse.message(PATIENCE).await;
            assert_eq!(message.json(), raw);
            assert_eq!(Cursor::parse(&message.id), begin, "{raw}");
        }
    }
    put(&place.replica, &for_user(user, "one")).await;
    for group in groups {
        put(&place.replica, &for_group(group, "two")).await;
    }
    put(&place.replica, &for_all("last")).await;
    sse.through("last").await;
    let end = Cursor::parse(&sse.last_event_id());
    assert!(begin.0.iter().all(|(tag, position)| end.0[tag] > *position), "{begin} to {end}");
    let body = sse.body();
    let ids = body.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"id"));
    let mut count = 0;
    for line in ids {
        assert!(line.len() > 4, "an empty id: {:?}", String::from_utf8_lossy(line));
        assert!(line.iter().all(|byte| (0x20..0x7f).contains(byte)), "{line:?}");
        count += 1;
    }
    assert!(count >= 7, "{count} ids");
}

/// Characters of four bytes over the borders of chunks and segments, and the largest event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e09_encoding() {
    let replica = Replica::start().await;
    let mut sse = Sse::open(&alice(&replica)).await;
    let limit = 64 * 1024;
    for pad in 0..4 {
        let room = limit - r#"{"mk":""}"#.len() - pad;
        let text = format!("{}{}", "x".repeat(pad), "\u{1f514}".repeat(room / 4));
        put(&replica, &for_user("alice", &text)).await;
        let (_, message) = sse.message(PATIENCE).await;
        let json = message.json();
        let got = json["data"]["mk"].as_str().expect("a text");
        assert_eq!(Sha256::digest(got), Sha256::digest(&text), "{pad}");
    }
    let body = sse.body();
    assert!(std::str::from_utf8(&body).is_ok());
    assert!(!body.windows(3).any(|three| three == "\u{feff}".as_bytes()), "a byte order mark");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_is_the_whole_cursor_and_moves_with_every_kept_event() {
    let replica = Replica::start().await;
    let jwt = Jwt::of("alice").groups(&["staff", "b:c"]).sign();
    // The tab compares the id of each message with the cursor that it keeps by itself.
    let mut tab = Tab::open(&Dial::to(&replica).sse().query(&jwt)).await;
    assert_eq!(tab.cursor.0.len(), 4, "{}", tab.cursor);
    let mut ids = BTreeSet::from([tab.cursor.to_string()]);
    for n in 0..10 {
        let marker = n.to_string();
        for event in [for_user("alice", &marker), for_all(&marker), for_group("b:c", &marker)] {
            put(&replica, &event).await;
            tab.next().await;
            ids.insert(tab.cursor.to_string());
        }
    }
    assert_eq!(ids.len(), 31);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_is_a_message_that_changes_nothing() {
    let replica = Builder::production().set("limits.heartbeat", "300ms").spawn().await;
    let mut sse = Sse::open(&alice(&replica)).await;
    assert_eq!(sse.welcome["heartbeat_ms"], 300);
    put(&replica, &for_user("alice", "one")).await;
    sse.through("one").await;
    let position = sse.last_event_id();
    // Nothing ever comes from this client, which is not held against it.
    for _ in 0..6 {
        let (_, seen) = sse.next(Duration::from_secs(2)).await;
        let Seen::Message(message) = seen else { panic!("{seen:?}") };
        let ping = Message {
            data: r#"{"type":"ping"}"#.into(),
            id: position.clone(),
            event: "message".into(),
        };
        assert_eq!(message, ping);
    }
    put(&replica, &for_user("alice", "two")).await;
    sse.through("two").await;
}

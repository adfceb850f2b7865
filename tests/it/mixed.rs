//! Replicas of this version and of the one before on one Redis. The older one's part is played here,
//! to the letter: it keeps nothing and gives no ids, and shares everything else.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::{Jwt, now, token},
    redis::{RedisClient, RedisServer, Resp},
    tab::{Tab, answer, for_all, for_group, for_user, marker, put, quick, with},
    until,
};

/// The older replica, by the name under which it holds its lease.
const OLDER: &str = "01a21185a11e71cea9a15cd89ff660c1";
const SEAT: &str = "01a21183e31677e9930ac65d414f0144";

fn dial(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).query(&token(user))
}

/// An event as the version before publishes it.
fn older(except: &[&str], marker: &str) -> String {
    let except = match except {
        [] => String::new(),
        users => format!(r#","except":{}"#, json!(users)),
    };
    format!(r#"{{"belfry":{{"v":1{except}}},"type":"test","data":{{"mk": "{marker}"}}}}"#)
}

/// The name of a request, as the version before makes it.
fn name(key: &str, target: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in ["tests", key].iter().chain(target) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    format!("ws:idempotency:{}", URL_SAFE_NO_PAD.encode(digest.finalize()))
}

/// And what it remembers under it.
fn done(body: &str) -> String {
    format!("{} {{}}", URL_SAFE_NO_PAD.encode(Sha256::digest(body)))
}

fn nothing_to_complain_about(replica: &Replica) {
    let log = replica.log();
    let complaint = log
        .lines()
        .filter(|line| line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#))
        // It depends on the machine.
        .find(|line| !line.contains("open files"));
    assert_eq!(complaint, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_older_one_publishes_arrives_without_a_place() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut old = redis.client().await;
    let mut tabs = Vec::new();
    for user in ["alice", "bob"] {
        tabs.push((user, Tab::open(&dial(&replica, user)).await));
        tabs.push((user, Tab::open(&dial(&replica, user).sse()).await));
    }
    put(&replica, &for_all("1")).await;
    old.publish("ws:broadcast", older(&[], "2")).await;
    old.publish("ws:broadcast", older(&["alice"], "3")).await;
    put(&replica, &for_all("4")).await;
    old.publish("ws:user:alice", older(&[], "5")).await;
    old.publish("ws:user:bob", older(&[], "5")).await;
    for (user, tab) in &mut tabs {
        let wanted: &[&str] =
            if *user == "bob" { &["1", "2", "3", "4", "5"] } else { &["1", "2", "4", "5"] };
        for mk in wanted {
            let text = tab.text(PATIENCE).await;
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(marker(&frame), *mk);
            let is_new = ["1", "4"].contains(mk);
            assert_eq!(frame["id"].is_string(), is_new, "{frame}");
            if !is_new {
                assert_eq!(text, format!(r#"{{"type":"test","data":{{"mk": "{mk}"}}}}"#));
            }
        }
    }
    // What it publishes is not kept, so after a gap more of it may be missing.
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for (_, tab) in &mut tabs {
        let word = tab.next_word("belfry.resync").await;
        assert_eq!(word["lost"], json!(["u", "b"]), "{word}");
    }
    // The chain has not suffered, and those who come back are not told of what nobody kept.
    put(&replica, &for_all("6")).await;
    for (_, tab) in &mut tabs {
        assert_eq!(marker(&tab.next().await), "6");
    }
}

/// What the older one makes of a message: it reads the head, takes of it what it knows, and hands
/// on what comes after.
fn read_by_the_older_one(message: &[u8]) -> (Value, String) {
    let text = std::str::from_utf8(message).expect("UTF-8");
    let rest = text.strip_prefix(r#"{"belfry":"#).expect("the head comes first");
    assert!(rest.starts_with(r#"{"v":1"#), "{text}");
    let mut heads = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let head = heads.next().expect("a head").expect("JSON");
    let tail = rest[heads.byte_offset()..].strip_prefix(',').expect("members after the head");
    (head, format!("{{{tail}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_one_delivers_what_is_published_here() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut bob = Tab::open(&dial(&replica, "bob")).await;
    let mut old = RedisClient::connect(redis.address()).await;
    old.command(&[b"SUBSCRIBE", b"ws:user:bob"]).await;
    for event in [
        for_user("bob", "plain"),
        with(for_user("bob", "sender"), "sender", "tab-1"),
        with(for_user("bob", "live"), "transient", true),
        with(for_user("bob", "ttl"), "ttl_seconds", 60),
        json!({"to": {"users": ["bob", "alice"]}, "type": "test", "data": {"mk": "list"}}),
    ] {
        answer(&replica, &event).await;
        let (head, frame) = read_by_the_older_one(&old.message().await);
        assert!(head.get("except").is_none(), "{head}");
        assert_eq!(frame, bob.text(PATIENCE).await);
    }
    let mut old = RedisClient::connect(redis.address()).await;
    old.command(&[b"SUBSCRIBE", b"ws:broadcast"]).await;
    let excepted = with(for_all("not alice"), "except", json!({"users": ["alice", "a\"b"]}));
    put(&replica, &excepted).await;
    loop {
        // Probes of the broadcast channel may come first; the older one knows them.
        let (head, frame) = read_by_the_older_one(&old.message().await);
        if head["probe"].is_string() {
            continue;
        }
        assert_eq!(head["except"], json!(["alice", "a\"b"]));
        assert_eq!(frame, bob.text(PATIENCE).await);
        break;
    }
    nothing_to_complain_about(&replica);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_done_once_by_either() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let in_group = Dial::to(&replica).query(&Jwt::of("alice").groups(&["staff"]).sign());
    let mut alice = Tab::open(&in_group).await;
    // By the older one first.
    for (event, target) in [
        (for_user("alice", "older"), ["user", "alice"]),
        (for_group("staff", "older"), ["group", "staff"]),
        (for_all("older"), ["broadcast", ""]),
    ] {
        let body = event.to_string();
        redis.cli(&["SET", &name("first", &target), &done(&body), "PX", "300000"]);
        let answer = replica.post_once(body.clone(), "first").await;
        assert_eq!((answer.status, answer.text.as_str()), (202, "{}"), "{answer:?}");
        let other = body.replace("older", "another");
        replica.post_once(other, "first").await.is_problem(422);
    }
    put(&replica, &for_user("alice", "the first that comes")).await;
    assert_eq!(marker(&alice.next().await), "the first that comes");
    // By this one first: the older one compares what stands before the blank, and answers with what
    // stands behind it.
    let body = for_user("alice", "newer").to_string();
    let answer = replica.post_once(body.clone(), "second").await;
    let held = redis.cli(&["GET", &name("second", &["user", "alice"])]);
    let (fingerprint, remembered) = held.split_once(' ').expect("a blank");
    assert_eq!(Some(fingerprint), done(&body).split(' ').next());
    assert_eq!(serde_json::from_str::<Value>(remembered).expect("JSON"), answer.json());
    assert_eq!(marker(&alice.next().await), "newer");
    nothing_to_complain_about(&replica);
}

/// To the older one anything under the name of a list says that all of it was published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_was_not_published_is_not_taken_for_done_by_the_older_one() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    redis.cli(&["SET", "ws:user:alice", "not a stream"]);
    redis.cli(&["SET", "ws:user:bob", "not a stream"]);
    let list = json!({"to": {"users": ["bob", "alice"]}, "type": "test", "data": {"mk": "list"}});
    let name = name("k", &["users", "alice", "bob"]);
    replica.post_once(list.to_string(), "k").await.is_problem(503);
    assert_eq!(redis.cli(&["EXISTS", &name]), "0");
    // And what the older one says of its own lists harms nobody.
    redis.cli(&["DEL", "ws:user:alice", "ws:user:bob"]);
    redis.cli(&["SET", &name, &done(&list.to_string()), "PX", "300000"]);
    let answer = replica.post_once(list.to_string(), "k").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let again = replica.post_once(list.to_string(), "k").await;
    assert_eq!(again.text, answer.text);
}

/// Takes a seat as the older one does, and holds its lease.
fn sits(redis: &RedisServer, seat: &str) {
    let ms = format!("{}000", now());
    redis.cli(&["ZADD", "ws:replicas", &ms, OLDER]);
    redis.cli(&[
        "ZADD",
        "ws:seats:alice",
        &format!("{}000", now() - 60),
        &format!("{OLDER}:{seat}"),
    ]);
    redis.cli(&["PEXPIRE", "ws:seats:alice", "180000"]);
}

async fn connections(replica: &Replica) -> u64 {
    let answer = replica.api("GET", "/v1/users/alice", None).await;
    answer.json()["connections"].as_u64().unwrap_or_else(|| panic!("{answer:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_of_the_older_one_count_as_long_as_it_lives() {
    let redis = RedisServer::start().await;
    let builder = Builder::production().set("limits.connections_per_user", "2");
    let replica = quick(builder, &redis).spawn().await;
    sits(&redis, SEAT);
    until("its seat counts", PATIENCE, async || {
        // Its lease is renewed, as it would do it.
        sits(&redis, SEAT);
        (connections(&replica).await == 1).then_some(())
    })
    .await;
    assert_eq!(answer(&replica, &for_user("alice", "1")).await["online"], true);
    let mut control = RedisClient::connect(redis.address()).await;
    control.command(&[b"SUBSCRIBE", b"ws:control"]).await;
    let _first = dial(&replica, "alice").open().await;
    assert_eq!(connections(&replica).await, 2);
    // One too many: the oldest is the other one's, which gets an order that it knows.
    let _second = dial(&replica, "alice").open().await;
    let order = loop {
        let (head, frame) = read_by_the_older_one(&control.message().await);
        if head["order"].is_object() {
            assert_eq!(frame, r#"{"type":"belfry.order"}"#);
            break head["order"].clone();
        }
    };
    assert_eq!(
        (&order["connection"], &order["cause"]),
        (&json!(SEAT), &json!("replaced")),
        "{order}"
    );
    assert_eq!(connections(&replica).await, 2);
    // It dies, and with its lease its seats.
    sits(&redis, "01a21183e31b746cb33b2cdd3ebb1cc3");
    redis.cli(&["ZREM", "ws:replicas", OLDER]);
    until("its seat counts no more", PATIENCE, async || {
        (connections(&replica).await == 2).then_some(())
    })
    .await;
    nothing_to_complain_about(&replica);
}

/// Publishes an order as the older one does; how many connections were closed, by the answer.
async fn order(redis: &RedisServer, members: &str) -> u64 {
    let mut control = RedisClient::connect(redis.address()).await;
    control.command(&[b"SUBSCRIBE", b"ws:control"]).await;
    let nonce = "01a21185a47a777a936f46e59d3c91f3";
    let given = format!("{}000", now());
    let order = format!(r#"{{{members},"cause":"revoked","given":{given},"nonce":"{nonce}"}}"#);
    let mut client = redis.client().await;
    let added = [b"XADD".as_slice(), b"ws:control", b"*", b"order", order.as_bytes()];
    let Resp::Bulk(Some(id)) = client.command(&added).await else { panic!("no id") };
    let id = String::from_utf8(id).expect("an id");
    let message =
        format!(r#"{{"belfry":{{"v":1,"id":"{id}","order":{order}}},"type":"belfry.order"}}"#);
    client.publish("ws:control", message).await;
    loop {
        let (head, _) = read_by_the_older_one(&control.message().await);
        if head["ack"]["order"] == nonce {
            assert!(head["ack"]["replica"].is_string(), "{head}");
            return head["ack"]["closed"].as_u64().expect("a count");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_revocations_and_tickets_of_the_older_one_are_honoured() {
    let redis = RedisServer::start().await;
    let replica = quick(Builder::production(), &redis).spawn().await;
    let mut one = dial(&replica, "alice").open().await;
    assert_eq!(order(&redis, r#""user":"alice""#).await, 1);
    assert_eq!(one.end(PATIENCE).await.code, 4403);
    // A session, hashed, and revoked: those who come with it are refused.
    let session = format!("{:x}", Sha256::digest("s1"));
    let with_session = Dial::to(&replica).query(&Jwt::of("bob").claim("sid", "s1").sign());
    let mut two = with_session.open().await;
    redis.cli(&["SET", &format!("ws:revoked:session:sha256:{session}"), "1", "PX", "86400000"]);
    let members = format!(r#""session":"sha256:{session}""#);
    assert_eq!(order(&redis, &members).await, 1);
    assert_eq!(two.end(PATIENCE).await.code, 4403);
    with_session.is_refused("a session that the older one revoked").await;
    // A ticket, under the hash of what the client brings.
    let ticket = &URL_SAFE_NO_PAD.encode([7; 32]);
    let hash = format!("{:x}", Sha256::digest(ticket));
    let held = format!(r#"{{"user":"tina","groups":["staff"],"issued":{}000}}"#, now());
    let key = format!("ws:ticket:{hash}");
    redis.cli(&["SET", &key, &held, "PX", "30000"]);
    let mut dial = Dial::to(&replica);
    dial.path = format!("{}?ticket={ticket}", dial.path);
    let ws = dial.open().await;
    assert_eq!((&ws.welcome["user"], &ws.welcome["groups"]), (&json!("tina"), &json!(["staff"])));
    assert_eq!(redis.cli(&["EXISTS", &key]), "0", "it is good for once");
    nothing_to_complain_about(&replica);
}

//! Who gets an event: exactly those it is for, each once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    app::{Builder, Replica},
    client::{Dial, Ws, mark},
    jwt::{Jwt, token},
    redis::RedisServer,
    tally,
};

/// Connects every name, publishes to each by HTTP and, on Redis, by a raw PUBLISH, and checks
/// that each got its own and nothing else.
async fn is_diagonal(replica: &Replica, redis: Option<&RedisServer>, names: &[&str]) {
    let mut sockets = Vec::new();
    for name in names {
        let ws = Dial::to(replica).query(&token(name)).open().await;
        assert_eq!(ws.welcome["user"], *name);
        sockets.push(ws);
    }
    for (index, name) in names.iter().enumerate() {
        replica.to_user(name, &format!("http-{index}")).await;
    }
    if let Some(redis) = redis {
        let mut client = redis.client().await;
        for (index, name) in names.iter().enumerate() {
            let event = json!({"type": "raw", "data": {"mk": format!("redis-{index}")}});
            let heard = client.publish(&format!("ws:user:{name}"), event.to_string()).await;
            assert!(heard >= 1, "nobody listens on ws:user:{name}");
        }
    }
    replica.to_all("last").await;
    for (index, ws) in sockets.iter_mut().enumerate() {
        let markers = ws.markers_before("last").await;
        let mut wanted = vec![format!("http-{index}")];
        if redis.is_some() {
            wanted.push(format!("redis-{index}"));
        }
        assert_eq!(markers, wanted, "user {:?}", names[index]);
    }
}

/// The same for groups, whose members are users of other names.
async fn groups_are_diagonal(replica: &Replica, names: &[&str]) {
    let mut sockets = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let jwt = Jwt::of(&format!("member-{index}")).groups(&[name]).sign();
        sockets.push(Dial::to(replica).query(&jwt).open().await);
    }
    for (index, name) in names.iter().enumerate() {
        replica.to_group(name, &format!("group-{index}")).await;
        // A user of that name is somebody else.
        replica.to_user(name, "wrong").await;
    }
    replica.to_all("last").await;
    for (index, ws) in sockets.iter_mut().enumerate() {
        assert_eq!(ws.markers_before("last").await, [format!("group-{index}")], "{names:?}");
    }
}

const COLONS: [&str; 19] = [
    "tenant:42",
    "42",
    "a:b:c",
    "c",
    "b:c",
    ":x",
    "x:",
    ":",
    "::",
    "ws:user:42",
    "user:42",
    "*",
    "?",
    "a[bc]",
    "a/b",
    "{a}",
    "..",
    "a%3Ab",
    "a b",
];

const SCRIPTS: [&str; 17] = [
    "jos\u{e9}",
    "jose\u{301}",
    "jose",
    "Bob",
    "bob",
    "BOB",
    "bob ",
    " bob",
    "bo\u{200d}b",
    "bo\u{200b}b",
    "\u{feff}bob",
    "🔔",
    "👩\u{200d}💻",
    "👩💻",
    "ﬁ",
    "fi",
    "Ω",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d01_colons_and_other_signs_in_user_ids() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    is_diagonal(&replica, Some(&redis), &COLONS).await;
    groups_are_diagonal(&replica, &COLONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d01_the_same_in_memory() {
    let replica = Replica::start().await;
    is_diagonal(&replica, None, &COLONS).await;
    groups_are_diagonal(&replica, &COLONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d01_another_prefix() {
    let redis = RedisServer::start().await;
    let one = Builder::production().redis(&redis).set("redis.prefix", "app:").spawn().await;
    let two = Builder::production().redis(&redis).set("redis.prefix", "app:2:").spawn().await;
    let mut at_one = Dial::to(&one).query(&token("x")).open().await;
    let mut at_two = Dial::to(&two).query(&token("x")).open().await;
    one.to_user("x", "one").await;
    two.to_user("x", "two").await;
    let mut client = redis.client().await;
    for channel in ["ws:user:x", "user:x", "app:user:x2", "app:3:user:x", "ws:broadcast"] {
        assert_eq!(client.publish(channel, "{}").await, i64::from(channel == "app:user:x2"));
    }
    one.to_all("last").await;
    two.to_all("last").await;
    assert_eq!(at_one.markers_before("last").await, ["one"]);
    assert_eq!(at_two.markers_before("last").await, ["two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d03_unicode_and_case() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    is_diagonal(&replica, Some(&redis), &SCRIPTS).await;
    groups_are_diagonal(&replica, &SCRIPTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d03_names_that_are_refused_at_both_ends() {
    let replica = Replica::start().await;
    for name in ["", "a\u{0}b", "a\nb", "a\u{7f}", "a\u{85}", &"x".repeat(257), &"é".repeat(129)] {
        Dial::to(&replica).query(&token(name)).is_refused(&format!("{name:?}")).await;
        let body = |to: Value| json!({"to": to, "type": "test", "data": 1}).to_string();
        replica.post(body(json!({"user": name}))).await.is_at_fault("/to/user");
        replica.post(body(json!({"group": name}))).await.is_at_fault("/to/group");
        replica.post(body(json!({"users": ["a", name]}))).await.is_at_fault("/to/users/1");
        let except = json!({
            "to": {"broadcast": true}, "except": {"users": ["a", "b", name]}, "type": "test", "data": 1
        });
        replica.post(except.to_string()).await.is_at_fault("/except/users/2");
    }
}

fn to_users(users: &[&str], marker: &str) -> Value {
    json!({"to": {"users": users}, "type": "test", "data": {"mk": marker}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d07_several_users() {
    let redis = RedisServer::start().await;
    let replica = Builder::production().redis(&redis).spawn().await;
    let mut tabs = Vec::new();
    for user in ["u1", "u1", "u2", "u3"] {
        tabs.push(Dial::to(&replica).query(&token(user)).open().await);
    }
    replica.event(&to_users(&["u1", "u1", "u2"], "twice")).await;
    let many: Vec<String> = (0..998).map(|index| format!("n{index}")).collect();
    let mut thousand: Vec<&str> = many.iter().map(String::as_str).collect();
    thousand.extend(["u1", "u2"]);
    replica.event(&to_users(&thousand, "thousand")).await;
    let nobody = to_users(&[], "refused");
    replica.post(nobody.to_string()).await.is_at_fault("/to/users");
    thousand.push("u3");
    let over = to_users(&thousand, "refused");
    replica.post(over.to_string()).await.is_at_fault("/to/users");
    let ten_thousand = to_users(&vec!["u1"; 10_000], "refused");
    replica.post(ten_thousand.to_string()).await.is_at_fault("/to/users");
    let mixed = to_users(&["u1", "u2", "u3", "", "u1"], "refused");
    replica.post(mixed.to_string()).await.is_at_fault("/to/users/3");
    let mixed = json!({"to": {"users": ["u1", 5]}, "type": "test", "data": {"mk": "refused"}});
    replica.post(mixed.to_string()).await.is_problem(422);
    replica.to_all("last").await;
    for (index, ws) in tabs.iter_mut().enumerate() {
        let wanted: &[&str] = if index == 3 { &[] } else { &["twice", "thousand"] };
        assert_eq!(ws.markers_before("last").await, wanted, "tab {index}");
    }
}

fn except(to: &Value, users: &[&str], marker: &str) -> Value {
    json!({"to": to, "except": {"users": users}, "type": "test", "data": {"mk": marker}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_except_over_two_replicas() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(
        Builder::production().redis(&redis).spawn(),
        Builder::production().redis(&redis).spawn(),
    );
    let replicas = [&one, &two];
    let tab = async |user: &str, index: usize| {
        let jwt = Jwt::of(user).groups(&["everyone"]).sign();
        Dial::to(replicas[index % 2]).query(&jwt).open().await
    };
    let mut xs: Vec<Ws> = Vec::new();
    for index in 0..3 {
        xs.push(tab("x", index).await);
    }
    let mut colon = tab("tenant:x", 1).await;
    let mut others: Vec<Ws> = Vec::new();
    for index in 0..20 {
        others.push(tab(&format!("other-{index}"), index).await);
    }
    let all = json!({"broadcast": true});
    let group = json!({"group": "everyone"});
    let events = [
        except(&all, &["x"], "not-x"),
        except(&group, &["x"], "group-not-x"),
        except(&all, &["tenant:x"], "not-colon"),
        except(&all, &["x", "tenant:x", "x"], "neither"),
        except(&all, &["nobody-here"], "unknown"),
        except(&all, &["X", "x ", "tenant"], "near-misses"),
        except(&json!({"user": "x"}), &["x"], "to-x-not-x"),
        except(&json!({"users": ["x", "tenant:x"]}), &["x"], "users-not-x"),
    ];
    for (index, event) in events.iter().enumerate() {
        replicas[index % 2].event(event).await;
    }
    one.to_all("last").await;
    let wanted: BTreeSet<_> = ["not-colon", "unknown", "near-misses"].into();
    for ws in &mut xs {
        let got = ws.markers_before("last").await;
        assert_eq!(got.iter().map(String::as_str).collect::<BTreeSet<_>>(), wanted);
        assert_eq!(got.len(), wanted.len(), "{got:?}");
    }
    let got = colon.markers_before("last").await;
    let wanted: BTreeSet<_> =
        ["not-x", "group-not-x", "unknown", "near-misses", "users-not-x"].into();
    assert_eq!(got.iter().map(String::as_str).collect::<BTreeSet<_>>(), wanted);
    assert_eq!(got.len(), wanted.len(), "{got:?}");
    let mut frames = BTreeSet::new();
    for ws in &mut others {
        let texts = ws.through("\"last\"").await;
        let counts = tally(texts.iter().map(|text| mark(text)));
        let wanted =
            ["not-x", "group-not-x", "not-colon", "neither", "unknown", "near-misses", "last"];
        assert_eq!(counts, wanted.iter().map(|marker| ((*marker).to_owned(), 1)).collect());
        frames.extend(texts);
    }
    // Everyone got the same bytes, and nobody learns who was left out.
    assert_eq!(frames.len(), 7, "{frames:?}");
    let leaks = |text: &String| text.contains("belfry") || text.contains("except");
    assert!(!frames.iter().any(leaks), "{frames:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_odd_values_of_except() {
    let replica = Replica::start().await;
    let mut x = Dial::to(&replica).query(&token("x")).open().await;
    for (odd, pointer) in [
        (json!(""), "/except"),
        (json!("x"), "/except"),
        (json!(["x"]), "/except"),
        (json!(5), "/except"),
        (json!({"user": "x"}), "/except/user"),
        (json!({"groups": ["x"]}), "/except/groups"),
        (json!({"users": "x"}), "/except/users"),
        (json!({"users": null}), "/except/users"),
        (json!({"users": [""]}), "/except/users/0"),
        (json!({"users": ["x"], "sessions": []}), "/except/sessions"),
    ] {
        let body =
            json!({"to": {"broadcast": true}, "except": odd, "type": "t", "data": {"mk": "bad"}});
        let answer = replica.post(body.to_string()).await;
        println!("{odd}: {}", answer.text);
        answer.is_at_fault(pointer);
    }
    // Nobody is left out: refused, or said and done.
    for odd in [json!(null), json!({"users": []}), json!({})] {
        let body =
            json!({"to": {"broadcast": true}, "except": odd, "type": "t", "data": {"mk": "none"}});
        let answer = replica.post(body.to_string()).await;
        match answer.status {
            202 => assert!(x.event("none").await.contains("none")),
            _ => {
                answer.is_problem(422);
            }
        }
    }
    replica.to_user("x", "last").await;
    assert!(x.markers_before("last").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_overlapping_subscriptions_deliver_once() {
    let redis = RedisServer::start().await;
    let replica =
        Builder::production().redis(&redis).set("limits.queue_bytes", "4MiB").spawn().await;
    // A user, a group and a prefix of both that share a name.
    let jwt = Jwt::of("same").groups(&["same", "user:same", "broadcast"]).sign();
    let mut ws = Dial::to(&replica).query(&jwt).open().await;
    let mut client = redis.client().await;
    let event =
        |marker: String| json!({"type": "t", "data": {"mk": marker}}).to_string().into_bytes();
    let channels = ["ws:broadcast", "ws:user:same", "ws:group:same", "ws:group:user:same"];
    let messages = (0..1_000).map(|n| (channels[n % 4], event(format!("{n}"))));
    client.publish_all(messages).await;
    replica.to_all("last").await;
    let got = ws.markers_before("last").await;
    let counts = tally(got);
    assert_eq!(counts, (0..1_000).map(|n| (n.to_string(), 1)).collect());
    // Not on the wire twice either: one subscription of each kind.
    let heard = client.publish("ws:user:same", event("one".into())).await;
    assert_eq!(heard, 1, "Redis sends each message to this replica once");
    assert_eq!(client.publish("ws:broadcast", event("one".into())).await, 1);
    assert_eq!(client.publish("ws:group:same", event("one".into())).await, 1);
}

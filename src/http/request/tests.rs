use std::time::Duration;

use super::*;

const LONGEST: Duration = Duration::from_secs(3600);

pub(super) fn limits() -> Limits {
    Limits {
        connections: 1,
        heartbeat: Duration::from_secs(25),
        inbound_bytes: 1,
        queue_bytes: 1,
        queue_events: 1,
        groups: 1,
        data_bytes: 200,
        body_bytes: 1000,
        batch_bytes: 1000,
        connections_per_user: 0,
        user_policy: crate::config::UserPolicy::Oldest,
    }
}

fn good(body: &str) -> Publish {
    parse(body.as_bytes(), &limits(), LONGEST).unwrap()
}

/// The status, and the pointers at fault.
fn bad(body: &str) -> (u16, Vec<String>) {
    let problem = parse(body.as_bytes(), &limits(), LONGEST).unwrap_err();
    let pointers = problem.members().iter().map(|member| member.pointer.clone()).collect();
    (problem.status().as_u16(), pointers)
}

#[test]
fn the_example_of_the_contract() {
    let event = good(
        r#"{ "to": {"user": "alice"}, "type": "certificate_processed", "data": {"id": 7, "status": "done"} }"#,
    );
    assert_eq!(event.to, [Channel::User(UserId::new("alice").unwrap())]);
    assert_eq!(event.kind, "certificate_processed");
    assert_eq!(event.data.get(), r#"{"id": 7, "status": "done"}"#);
}

#[test]
fn data_is_kept_as_written() {
    for data in [
        "null",
        "12345678901234567890.10e+5",
        r#"{"b":1,"a":1.0,"b":2}"#,
        r#""\u0041\ud800\/""#,
        "[ 1 ,\n\t2 ]",
    ] {
        let event = good(&format!(r#"{{"to":{{"group":"g"}},"type":"t","data":{data}}}"#));
        assert_eq!(event.data.get(), data);
    }
}

#[test]
fn users_come_once_each() {
    let event =
        good(r#"{"to":{"users":["a","b","a"]},"type":"t","data":1,"except":{"users":["c","c"]}}"#);
    assert_eq!(event.to.len(), 2);
    assert_eq!(event.except.len(), 1);
    assert_eq!(event.target, Target::Users);
}

#[test]
fn an_exception_is_no_recipient() {
    let body = r#"{"to":{"users":["a","b"]},"type":"t","data":1,"except":{"users":["b"]}}"#;
    assert_eq!(good(body).to, [Channel::User(UserId::new("a").unwrap())]);
    let body = r#"{"to":{"user":"b"},"type":"t","data":1,"except":{"users":["b"]}}"#;
    assert!(good(body).to.is_empty());
}

#[test]
fn a_life_is_no_longer_than_that_of_the_channel() {
    let body = |ttl| format!(r#"{{"to":{{"user":"a"}},"type":"t","data":1,"ttl_seconds":{ttl}}}"#);
    assert_eq!(good(&body("3600")).keep, Keep::For(LONGEST));
    for ttl in ["0", "-1", "1.5", "\"60\"", "3601", "1e9", "99999999999999999999"] {
        assert_eq!(bad(&body(ttl)), (422, vec!["/ttl_seconds".to_owned()]), "{ttl}");
    }
}

#[test]
fn every_fault_is_named_at_once() {
    let (status, pointers) = bad(
        r#"{"to":{"user":""},"type":"ping","exept":{},"sender":7,"transient":"yes","except":{"user":"x"}}"#,
    );
    assert_eq!(status, 422);
    assert_eq!(
        pointers,
        [
            "/exept",
            "/to/user",
            "/type",
            "/data",
            "/except/user",
            "/except/users",
            "/sender",
            "/transient"
        ]
    );
}

#[test]
fn targets_are_exactly_one() {
    for (to, pointer) in [
        ("null", "/to"),
        ("[]", "/to"),
        ("{}", "/to"),
        (r#"{"user":"a","broadcast":true}"#, "/to"),
        (r#"{"broadcast":false}"#, "/to/broadcast"),
        (r#"{"broadcast":1}"#, "/to/broadcast"),
        (r#"{"users":[]}"#, "/to/users"),
        (r#"{"users":"a"}"#, "/to/users"),
        (r#"{"users":["a",7]}"#, "/to/users/1"),
        (r#"{"users":["a",""]}"#, "/to/users/1"),
        (r#"{"user":7}"#, "/to/user"),
        (r#"{"user":"a\u0000"}"#, "/to/user"),
        (r#"{"usr":"a"}"#, "/to/usr"),
        (r#"{"a/b~c":1}"#, "/to/a~1b~0c"),
    ] {
        let (status, pointers) = bad(&format!(r#"{{"to":{to},"type":"t","data":1}}"#));
        assert_eq!((status, pointers), (422, vec![pointer.to_owned()]), "{to}");
    }
}

#[test]
fn exceptions_are_never_guessed() {
    for except in ["null", "\"x\"", "[]", "{}", r#"{"users":null}"#, r#"{"users":[""]}"#] {
        let body =
            format!(r#"{{"to":{{"broadcast":true}},"type":"t","data":1,"except":{except}}}"#);
        assert_eq!(bad(&body).0, 422, "{except}");
    }
    let none = good(r#"{"to":{"broadcast":true},"type":"t","data":1,"except":{"users":[]}}"#);
    assert!(none.except.is_empty());
}

#[test]
fn a_session_is_an_id_of_some_length_or_a_hash() {
    let read = |text: &str| {
        let mut faults = Faults::default();
        let value = RawValue::from_string(serde_json::to_string(text).unwrap()).unwrap();
        let key = session_key(&mut faults, "/session", &value);
        assert_eq!(key.is_none(), !faults.0.is_empty(), "{text}");
        key
    };
    let longest = "é".repeat(256);
    assert_eq!(read(&longest), Some(SessionKey::of(&longest)));
    let key = SessionKey::of("s-1");
    assert_eq!(read(&key.to_string()), Some(key));
    for bad in ["", &format!("{longest}x"), "a\n", "sha256:", "sha256:12", &format!("{key}0")] {
        assert_eq!(read(bad), None, "{bad}");
    }
}

#[test]
fn types_have_their_rule() {
    for (kind, legal) in [
        ("x".to_owned(), true),
        ("pings".to_owned(), true),
        ("belfry".to_owned(), true),
        ("é".repeat(128), true),
        ("é".repeat(129), false),
        (String::new(), false),
        ("ping".to_owned(), false),
        ("belfry.welcome".to_owned(), false),
        (r"a\n".to_owned(), false),
    ] {
        let body = format!(r#"{{"to":{{"user":"a"}},"type":"{kind}","data":1}}"#);
        assert_eq!(parse(body.as_bytes(), &limits(), LONGEST).is_ok(), legal, "{kind}");
    }
}

#[test]
fn what_is_no_json_is_400() {
    for body in ["", "{", "{'a':1}", "nul", "{}{}", "\u{feff}{}"] {
        assert_eq!(bad(body).0, 400, "{body}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(bad(&deep).0, 400);
    assert_eq!(bad(&format!(r#"{{"to":{deep}"#)).0, 400);
}

#[test]
fn what_is_no_object_is_422() {
    for body in ["null", "[]", "7", r#""x""#] {
        assert_eq!(bad(body), (422, vec![String::new()]), "{body}");
    }
    let twice = r#"{"to":{"user":"a"},"to":{"user":"b"},"type":"t","data":1}"#;
    assert_eq!(bad(twice).0, 422);
}

#[test]
fn depth_has_a_limit_and_no_price() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let limits = Limits { data_bytes: 1 << 20, ..limits() };
    let body = |n| format!(r#"{{"to":{{"user":"a"}},"type":"t","data":{}}}"#, nested(n));
    assert!(parse(body(128).as_bytes(), &limits, LONGEST).is_ok());
    assert_eq!(parse(body(129).as_bytes(), &limits, LONGEST).unwrap_err().status(), 422);
    assert_eq!(parse(body(100_000).as_bytes(), &limits, LONGEST).unwrap_err().status(), 422);
    let outside = format!(r#"{{"to":{},"x":{}}}"#, nested(100_000), nested(100_000));
    assert_eq!(parse(outside.as_bytes(), &limits, LONGEST).unwrap_err().status(), 422);
    assert_eq!(depth(r#"{"a":"[[[","b":["\"[["]}"#), 2);
}

#[test]
fn data_has_its_own_limit() {
    let body = |n| format!(r#"{{"to":{{"user":"a"}},"type":"t","data":"{}"}}"#, "x".repeat(n));
    assert!(parse(body(198).as_bytes(), &limits(), LONGEST).is_ok());
    assert_eq!(bad(&body(199)).0, 413);
}

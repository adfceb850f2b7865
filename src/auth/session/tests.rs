//! A store made by hand: what it holds, how often it was asked, and when it answers.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::*;
use crate::{
    bus::BusError,
    config::{Sources, load::load},
};

struct Fake {
    held: Mutex<Result<Option<Held>, BusError>>,
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    /// Answers wait until this is true.
    open: watch::Sender<bool>,
}

impl Fake {
    fn new(held: Option<Held>) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Ok(held)),
            asked: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            open: watch::Sender::new(true),
        })
    }

    fn holds(&self, held: Result<Option<Held>, BusError>) {
        *self.held.lock().unwrap() = held;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Sessions for Fake {
    fn look_up<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<Option<Held>, BusError>> {
        async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_at_once.fetch_max(now, Ordering::Relaxed);
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
            self.at_once.fetch_sub(1, Ordering::Relaxed);
            self.held.lock().unwrap().clone()
        }
        .boxed()
    }
}

fn config() -> Config {
    load(&Sources::default()).unwrap()
}

fn cookies(store: &Arc<Fake>) -> Arc<Cookies> {
    Arc::new(Cookies::new(&config(), Arc::clone(store) as Arc<dyn Sessions>))
}

fn json(text: &str) -> Held {
    Held::Text(text.as_bytes().to_vec())
}

fn hash(fields: &[(&str, &str)]) -> Held {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Held::Fields(fields.iter().map(owned).collect())
}

fn reader(user: &str, groups: &str, issued: &str) -> Reader {
    let mut config = config();
    config.auth.session.user_field = user.to_owned();
    config.auth.session.groups_field = Some(groups.to_owned());
    config.auth.session.issued_field = Some(issued.to_owned());
    config.limits.groups = 3;
    Reader::new(&config)
}

fn session(user: &str, groups: &[&str], issued: Option<u64>) -> Session {
    Session {
        user: UserId::new(user).unwrap(),
        groups: groups.iter().map(|name| Group::new(name).unwrap()).collect(),
        issued: issued.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
    }
}

#[test]
fn sessions_that_hold() {
    let plain = reader("user_id", "groups", "issued_at");
    for (held, expected) in [
        (json(r#"{"user_id":"alice"}"#), session("alice", &[], None)),
        (json(r#"{"user_id":42,"groups":null}"#), session("42", &[], None)),
        (json(r#"{"user_id":-1}"#), session("-1", &[], None)),
        (
            json(r#"{"user_id":18446744073709551615,"x":[{}]}"#),
            session("18446744073709551615", &[], None),
        ),
        (json(r#"{"user_id":"a:b*","groups":["g","h","g"]}"#), session("a:b*", &["g", "h"], None)),
        (json(r#"{"user_id":"a","issued_at":7}"#), session("a", &[], Some(7))),
        (json(r#"{"user_id":"a","issued_at":"2026-01-01"}"#), session("a", &[], None)),
        (json(r#"{"user_id":"a","issued_at":-7}"#), session("a", &[], None)),
        (hash(&[("user_id", "alice")]), session("alice", &[], None)),
        (hash(&[("user_id", "42"), ("groups", "")]), session("42", &[], None)),
        (
            hash(&[("user_id", "a"), ("groups", r#"["g","h, i"]"#), ("issued_at", "7")]),
            session("a", &["g", "h, i"], Some(7)),
        ),
        (hash(&[("user_id", "a"), ("groups", "g, h,")]), session("a", &["g", "h"], None)),
        (hash(&[("user_id", "a"), ("issued_at", "soon")]), session("a", &[], None)),
    ] {
        assert_eq!(plain.session(&held), Ok(expected), "{held:?}");
    }
    let pointers = reader("/data/user/id", "/data/a~1b", "/data/times/0");
    let inner = r#"{"user":{"id":7},"a/b":["g"],"times":[9]}"#;
    let expected = || Ok(session("7", &["g"], Some(9)));
    assert_eq!(pointers.session(&json(&format!(r#"{{"data":{inner}}}"#))), expected());
    assert_eq!(pointers.session(&hash(&[("data", inner)])), expected());
    let escaped = reader("/a~1b", "/x~01", "/y");
    let held = json(r#"{"a/b":"alice","x~1":["g"],"y":1}"#);
    assert_eq!(escaped.session(&held), Ok(session("alice", &["g"], Some(1))));
}

#[test]
fn a_login_that_is_still_to_come_says_nothing() {
    let mut reader = reader("user_id", "groups", "issued_at");
    reader.leeway = Duration::from_secs(30);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let issued = |at: String| {
        let text = reader.session(&json(&format!(r#"{{"user_id":"a","issued_at":{at}}}"#)));
        let field = reader.session(&hash(&[("user_id", "a"), ("issued_at", &at)]));
        assert_eq!(text, field);
        text.unwrap().issued
    };
    let seconds = now.as_secs();
    for at in [seconds - 60, seconds, seconds + 20] {
        assert_eq!(issued(at.to_string()), Some(UNIX_EPOCH + Duration::from_secs(at)));
    }
    for at in [u128::from(seconds + 60), now.as_millis(), now.as_micros()] {
        assert_eq!(issued(at.to_string()), None, "{at}");
    }
}

#[test]
fn sessions_that_do_not() {
    let plain = reader("user_id", "groups", "issued_at");
    for held in [
        json("{}"),
        json(r#"{"user_id":null}"#),
        json(r#"{"user_id":""}"#),
        json(r#"{"user":{"user_id":"a"}}"#),
        hash(&[("groups", "g")]),
        hash(&[("user_id", "")]),
    ] {
        assert_eq!(plain.session(&held), Err(Fault::NoUser), "{held:?}");
    }
    for held in [
        json(""),
        json("null"),
        json("[]"),
        json("\"alice\""),
        json("{\"user_id\":\"a\"} x"),
        Held::Text(b"\x80\x04\x95".to_vec()),
        json(&format!("{{\"user_id\":\"a\",\"x\":{}}}", "[".repeat(100_000))),
        json(&format!("{{\"user_id\":\"{}\"}}", "x".repeat(1 << 20))),
        json(r#"{"user_id":1.5}"#),
        json(r#"{"user_id":18446744073709551616}"#),
        json(r#"{"user_id":1e3}"#),
        json(r#"{"user_id":true}"#),
        json(r#"{"user_id":["a"]}"#),
        json(r#"{"user_id":"a","groups":"g"}"#),
        json(r#"{"user_id":"a","groups":{"g":1}}"#),
        json(r#"{"user_id":"a","groups":[1]}"#),
        hash(&[("user_id", "a"), ("groups", "[1]")]),
        hash(&[("user_id", "a"), ("groups", "[")]),
        Held::Other,
    ] {
        let fault = plain.session(&held);
        assert!(matches!(fault, Err(Fault::Form(_))), "{fault:?}");
    }
    let control = plain.session(&json(r#"{"user_id":"a\n"}"#));
    assert_eq!(control, Err(Fault::User(NameError::Control)));
    let many = plain.session(&json(r#"{"user_id":"a","groups":["a","b","c","d"]}"#));
    assert_eq!(many, Err(Fault::Groups(groups::Fault::TooMany(3))));
    let empty = plain.session(&json(r#"{"user_id":"a","groups":[""]}"#));
    assert_eq!(empty, Err(Fault::Groups(groups::Fault::Name(NameError::Empty))));
    let deep = reader("/data/id", "groups", "issued_at").session(&hash(&[("data", "x")]));
    assert!(matches!(deep, Err(Fault::Form(_))));
}

#[tokio::test]
async fn only_ids_are_looked_up() {
    let store = Fake::new(Some(json(r#"{"user_id":"a"}"#)));
    let cookies = cookies(&store);
    for id in ["", "a\0b", "a\n", "\u{7f}", &"x".repeat(513)] {
        let failure = cookies.principal(id, true).await.unwrap_err();
        assert_eq!(failure, Failure::Fault(Fault::Id));
    }
    assert_eq!(store.asked(), 0);
    let principal = cookies.principal(&"x".repeat(512), true).await.unwrap();
    assert_eq!(principal.session, Some(SessionKey::of(&"x".repeat(512))));
    assert!(principal.cookie.is_some() && principal.expires.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_was_just_seen_is_not_asked_again() {
    let store = Fake::new(Some(json(r#"{"user_id":"a"}"#)));
    let cookies = cookies(&store);
    for _ in 0..10 {
        cookies.principal("s", true).await.unwrap();
    }
    assert_eq!(store.asked(), 1);
    tokio::time::advance(KNOWN).await;
    cookies.principal("s", true).await.unwrap();
    assert_eq!(store.asked(), 2);
    // A second look at an open connection is never spared, and whoever comes next profits.
    store.holds(Ok(None));
    assert_eq!(cookies.principal("s", false).await.unwrap_err(), Fault::Gone.into());
    assert_eq!(store.asked(), 3);
    assert_eq!(cookies.principal("s", true).await.unwrap_err(), Fault::Gone.into());
    assert_eq!(store.asked(), 3);
    tokio::time::advance(UNKNOWN).await;
    store.holds(Ok(Some(json(r#"{"user_id":"b"}"#))));
    assert_eq!(cookies.principal("s", true).await.unwrap().user.as_str(), "b");
    // Word of its end outweighs what is known.
    store.holds(Ok(None));
    cookies.forget(&[SessionKey::of("s")]);
    assert_eq!(cookies.principal("s", true).await.unwrap_err(), Fault::Gone.into());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_remembered() {
    let store = Fake::new(None);
    let cookies = cookies(&store);
    store.holds(Err(BusError::Away("not connected".to_owned())));
    assert_eq!(cookies.principal("s", true).await.unwrap_err(), Failure::Away);
    store.holds(Ok(Some(json(r#"{"user_id":"a"}"#))));
    assert!(cookies.principal("s", true).await.is_ok());
    // No answer is no answer either, and does not last for ever.
    store.open.send_replace(false);
    let begun = Instant::now();
    assert_eq!(cookies.principal("t", true).await.unwrap_err(), Failure::Away);
    assert_eq!(begun.elapsed(), DEADLINE);
    // The look that came to nothing is not joined.
    store.open.send_replace(true);
    assert!(cookies.principal("t", true).await.is_ok());
}

#[tokio::test]
async fn a_wave_queues_and_shares() {
    let store = Fake::new(Some(json(r#"{"user_id":"a"}"#)));
    store.open.send_replace(false);
    let cookies = cookies(&store);
    let mut waiting = Vec::new();
    for n in 0..1_000 {
        for _ in 0..3 {
            let cookies = Arc::clone(&cookies);
            waiting
                .push(tokio::spawn(async move { cookies.principal(&n.to_string(), true).await }));
        }
    }
    while store.asked() < AT_ONCE {
        tokio::task::yield_now().await;
    }
    store.open.send_replace(true);
    for look in waiting {
        assert!(look.await.unwrap().is_ok());
    }
    assert_eq!(store.asked(), 1_000);
    assert!(store.most_at_once.load(Ordering::Relaxed) <= AT_ONCE);
}

#[tokio::test(start_paused = true)]
async fn look_ups_that_are_left_keep_no_place() {
    let store = Fake::new(Some(json(r#"{"user_id":"a"}"#)));
    store.open.send_replace(false);
    let cookies = cookies(&store);
    let handshakes: Vec<_> = (0..AT_ONCE)
        .map(|n| {
            let cookies = Arc::clone(&cookies);
            tokio::spawn(async move { cookies.principal(&n.to_string(), true).await })
        })
        .collect();
    while store.asked() < AT_ONCE {
        tokio::task::yield_now().await;
    }
    for handshake in &handshakes {
        handshake.abort();
    }
    store.open.send_replace(true);
    let begun = Instant::now();
    assert!(cookies.principal("next", true).await.is_ok());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn memory_has_a_bound() {
    let store = Fake::new(None);
    let cookies = cookies(&store);
    for n in 0..MOST + 100 {
        cookies.principal(&n.to_string(), true).await.unwrap_err();
    }
    assert!(cookies.known().looks.len() <= MOST);
}

#[test]
fn a_hash_is_asked_for_what_matters() {
    let mut config = config();
    assert_eq!(fields(&config), ["user_id", "groups", "issued_at"]);
    config.auth.session.user_field = "/data/user".to_owned();
    config.auth.session.groups_field = Some("/data/groups".to_owned());
    config.auth.session.issued_field = None;
    assert_eq!(fields(&config), ["data"]);
}

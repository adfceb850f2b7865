//! The form of an event on a channel.
//!
//! A message is the JSON object that browsers get. What only replicas need rides in front of it,
//! in a leading member that is cut off again (contract §6):
//!
//! ```text
//! {"belfry":{"v":1,"except":["mallory"]},"type":"greeting","data":{"text":"hello"}}
//!  └──────────────── head ──────────────┘└────────────── for browsers ────────────┘
//! ```
//!
//! A kept event begins with its id and the one before it, which the broker puts between head and
//! type, since it alone knows them:
//!
//! ```text
//! {"belfry":{"v":1},"id":"u~1732406400000-0","prev":"u~0-0","type":"greeting","data":{}}
//! ```
//!
//! Only the exact head that Belfry writes is taken for its own. Anything else that is a JSON object
//! is a neighbour's, and is delivered as it came.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::orders::{Ack, Given, OrderId, Wire};
use crate::{
    event::{Channel, Position, Tag, UserId, parse_id},
    frame::{Frame, Mark},
    history::Kept,
};

/// How every head begins; a version follows.
const OPENING: &[u8] = br#"{"belfry":{"v":"#;
/// The version of the head that this build writes and reads.
const VERSION: u32 = 1;
/// What follows the opening in a head that says nothing but its version.
const PLAIN: &[u8] = b"1},";

/// The head of [`Parts`] in an event that says nothing in it but its version.
const PLAIN_HEAD: &[u8] = br#"{"belfry":{"v":1"#;
/// Bytes of an event beside its texts and its data, unless the texts have escapes.
const AROUND: usize = r#"{"type":"","data":,"sender":""}"#.len();

/// What a back end asked to be published, ready to be written.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// `type`: what happened.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// `data`: byte for byte as the back end wrote it.
    pub data: &'a RawValue,
    /// The tab that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<&'a str>,
}

/// How an order is put together around its place and its own JSON. Redis does it, which alone
/// knows the place in time.
pub const ORDER: [&str; 3] =
    [r#"{"belfry":{"v":1,"id":""#, r#"","order":"#, r#"},"type":"belfry.order"}"#];

#[derive(Debug, Default, Serialize, Deserialize)]
struct Head {
    v: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    except: Vec<String>,
    /// Milliseconds since 1970 after which an event is not replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    /// It is for those who are connected now, and nobody else is to have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    transient: bool,
    /// What is kept here is word of a loss.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    loss: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe: Option<String>,
    /// The place of an order that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<Wire>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ack: Option<Ack>,
}

/// A message that was read from a channel.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// An event of a back end, published by a replica.
    Event {
        /// For whom it is not.
        except: Vec<UserId>,
        /// After this moment, in milliseconds since 1970, it is not replayed.
        until: Option<u64>,
        /// It is word of a loss.
        loss: bool,
        /// It is not kept because its publisher said so.
        transient: bool,
        /// Its channel's tag, its place and the one before; `None` if it is not kept.
        place: Option<(Tag, Position, Position)>,
        /// What browsers get, without its opening brace, which was the head's.
        members: &'a str,
    },
    /// A replica's own probe.
    Probe(String),
    /// An order to close connections.
    Order(Box<Given>),
    /// A replica has carried one out.
    Ack(Ack),
    /// A neighbour's JSON object, to be delivered as it came.
    Raw(&'a str),
}

/// Why a message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// Not UTF-8, or not one JSON object, or a head that is none.
    Invalid,
    /// The head of another version.
    Version(u32),
}

/// What the broker puts the message of an event together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The head up to where `until` and its closing brace go.
    pub head: Bytes,
    /// What browsers get after the id, without an opening brace.
    pub members: Bytes,
}

impl Parts {
    /// The message of an event that is not kept.
    #[must_use]
    pub fn transient(&self) -> Bytes {
        self.join("", "")
    }

    /// The message of an event at this place.
    #[must_use]
    pub fn kept(&self, tag: &Tag, at: Position, prev: Position, until: Option<u64>) -> Bytes {
        let until = until.map(|until| format!(r#","until":{until}"#)).unwrap_or_default();
        self.join(&until, &format!(r#""id":"{tag}~{at}","prev":"{tag}~{prev}","#))
    }

    fn join(&self, until: &str, place: &str) -> Bytes {
        let parts = [&self.head, until.as_bytes(), b"},", place.as_bytes(), &self.members];
        parts.concat().into()
    }
}

/// Writes an event for a channel. `transient`: its publisher does not want it kept.
///
/// # Errors
/// Never for strings and valid JSON; the signature is the serialiser's.
pub fn encode(
    event: &Event<'_>,
    except: &[UserId],
    transient: bool,
) -> Result<Parts, serde_json::Error> {
    let head = if except.is_empty() && !transient {
        Bytes::from_static(PLAIN_HEAD)
    } else {
        let except = except.iter().map(|user| user.as_str().to_owned()).collect();
        let head = Head { v: VERSION, except, transient, ..Head::default() };
        let head = serde_json::to_string(&head)?;
        format!(r#"{{"belfry":{}"#, head.strip_suffix('}').unwrap_or_default()).into()
    };
    let texts = event.kind.len() + event.sender.map_or(0, str::len);
    let mut object = Vec::with_capacity(AROUND + texts + event.data.get().len());
    serde_json::to_writer(&mut object, event)?;
    Ok(Parts { head, members: Bytes::from(object).slice(1..) })
}

/// Word of a loss in the channel of this tag, to be kept there.
#[must_use]
pub fn loss(tag: &Tag) -> Parts {
    Parts {
        head: Bytes::from_static(br#"{"belfry":{"v":1,"loss":true"#),
        members: format!(
            r#""type":"belfry.resync","lost":["{tag}"],"reason":"{}"}}"#,
            crate::event::GapReason::BrokerLost.label()
        )
        .into(),
    }
}

/// A message of this channel as it is kept; `None` if it is not one of a kept event.
#[must_use]
pub fn kept(channel: &Channel, message: &[u8]) -> Option<Kept> {
    let Decoded::Event { except, until, loss, place: Some((tag, at, prev)), members, .. } =
        decode(message).ok()?
    else {
        return None;
    };
    (tag == Tag::of(channel)).then(|| Kept {
        at,
        prev,
        except: except.into(),
        until,
        loss,
        frame: Frame::text(&format!("{{{members}")).at(Mark { tag, at }),
    })
}

/// The place at the beginning of what browsers get: `"id":"…","prev":"…",`.
fn place(members: &str) -> Option<(Tag, Position, Position)> {
    let rest = members.strip_prefix(r#""id":""#)?;
    let (id, rest) = rest.split_once('"')?;
    let (prev, _) = rest.strip_prefix(r#","prev":""#)?.split_once(r#"","#)?;
    let ((tag, at), (same, prev)) = (parse_id(id)?, parse_id(prev)?);
    (tag == same && prev < at).then_some((tag, at, prev))
}

/// Writes a probe. A neighbour who forwards it to browsers does no harm: clients ignore types of
/// Belfry that they do not know (contract §3).
///
/// # Errors
/// As [`encode`].
pub fn encode_probe(id: &str) -> Result<Bytes, serde_json::Error> {
    let head = Head { v: VERSION, probe: Some(id.to_owned()), ..Head::default() };
    join(&head, br#"{"type":"belfry.probe"}"#)
}

/// Writes an order; `order` is its own JSON, `id` its place if it is kept. As harmless to browsers
/// as a probe.
#[must_use]
pub fn encode_order(id: Option<OrderId>, order: &str) -> Bytes {
    let [before, between, after] = ORDER;
    match id {
        Some(id) => format!("{before}{id}{between}{order}{after}").into(),
        None => format!(r#"{{"belfry":{{"v":1,"order":{order}{after}"#).into(),
    }
}

/// Writes an acknowledgement.
///
/// # Errors
/// As [`encode`].
pub fn encode_ack(ack: Ack) -> Result<Bytes, serde_json::Error> {
    join(&Head { v: VERSION, ack: Some(ack), ..Head::default() }, br#"{"type":"belfry.ack"}"#)
}

fn join(head: &Head, object: &[u8]) -> Result<Bytes, serde_json::Error> {
    let mut wire = br#"{"belfry":"#.to_vec();
    serde_json::to_writer(&mut wire, head)?;
    wire.push(b',');
    wire.extend_from_slice(object.get(1..).unwrap_or_default());
    Ok(wire.into())
}

/// Reads a message from a channel. Whatever stands in it, the outcome is one of these.
///
/// # Errors
/// Says why the message cannot be delivered to anyone.
pub fn decode(payload: &[u8]) -> Result<Decoded<'_>, Poison> {
    let text = std::str::from_utf8(payload).map_err(|_| Poison::Invalid)?;
    let Some(rest) = payload.strip_prefix(OPENING) else {
        return object(text).map(|()| Decoded::Raw(text));
    };
    let (head, tail) = match rest.strip_prefix(PLAIN) {
        Some(tail) => (Head { v: VERSION, ..Head::default() }, tail),
        None => split(payload)?,
    };
    if head.v != VERSION {
        return Err(Poison::Version(head.v));
    }
    if let Some(id) = head.probe {
        return Ok(Decoded::Probe(id));
    }
    if let Some(order) = head.order {
        let given = order.read(head.id.as_deref()).ok_or(Poison::Invalid)?;
        return Ok(Decoded::Order(Box::new(given)));
    }
    if let Some(ack) = head.ack {
        return Ok(Decoded::Ack(ack));
    }
    // The whole is one object and the head one of its members, so the rest, in braces, is one too.
    // An event has a type at least; an empty object is none of ours.
    object(text)?;
    let members = std::str::from_utf8(tail).map_err(|_| Poison::Invalid)?;
    if !members.starts_with('"') {
        return Err(Poison::Invalid);
    }
    let except = head.except.iter().map(|user| UserId::new(user)).collect::<Result<_, _>>();
    Ok(Decoded::Event {
        except: except.map_err(|_| Poison::Invalid)?,
        until: head.until,
        loss: head.loss,
        transient: head.transient,
        place: place(members),
        members,
    })
}

/// The head, and what follows the comma after it.
fn split(payload: &[u8]) -> Result<(Head, &[u8]), Poison> {
    let inner = payload.get(br#"{"belfry":"#.len()..).unwrap_or_default();
    let mut stream = serde_json::Deserializer::from_slice(inner).into_iter::<Head>();
    let Some(Ok(head)) = stream.next() else {
        // A head of the future may hold anything, but says its version first.
        return Err(version(payload).map_or(Poison::Invalid, Poison::Version));
    };
    let tail = inner.get(stream.byte_offset()..).unwrap_or_default();
    Ok((head, tail.strip_prefix(b",").ok_or(Poison::Invalid)?))
}

/// The version in a head that is not understood; `None` if it is our own, or none.
fn version(payload: &[u8]) -> Option<u32> {
    let digits = payload.strip_prefix(OPENING)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    let version = std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()?;
    (version != VERSION).then_some(version)
}

/// Whether this is one JSON object. Nesting costs no stack: skipping a value is a loop in `serde_json`.
fn object(text: &str) -> Result<(), Poison> {
    if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        return Err(Poison::Invalid);
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text).map(drop).map_err(|_| Poison::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    #[test]
    fn an_event_comes_back_as_browsers_get_it() {
        let data = raw(r#"{"b":1,"a":12345678901234567890.10,  "c":"\u0041"}"#);
        let event = Event { kind: "x", data: &data, sender: None };
        let wire = encode(&event, &[], false).unwrap().transient();
        assert!(wire.starts_with(br#"{"belfry":{"v":1},"type":"x""#));
        let members = format!(r#""type":"x","data":{data}}}"#);
        assert_eq!(decode(&wire), Ok(unkept(&[], &members)));
        let wire = encode(&event, &[], true).unwrap().transient();
        assert!(matches!(decode(&wire), Ok(Decoded::Event { transient: true, place: None, .. })));
    }

    #[test]
    fn a_kept_event_has_its_place() {
        let data = raw("{}");
        let event = Event { kind: "x", data: &data, sender: None };
        let parts = encode(&event, &[user("bob")], false).unwrap();
        let alice = Channel::User(user("alice"));
        let (prev, at) = (Position::new(4, 2), Position::new(5, 0));
        let wire = parts.kept(&Tag::User, at, prev, Some(900));
        let kept = kept(&alice, &wire).unwrap();
        assert_eq!((kept.prev, kept.at, kept.until, kept.loss), (prev, at, Some(900), false));
        assert_eq!(*kept.except, [user("bob")]);
        assert_eq!(
            &kept.frame.json().unwrap()[..],
            br#"{"id":"u~5-0","prev":"u~4-2","type":"x","data":{}}"#
        );
        assert!(super::kept(&Channel::Broadcast, &wire).is_none(), "another channel's tag");
        assert!(super::kept(&alice, &parts.transient()).is_none());
        let word = loss(&Tag::Broadcast).kept(&Tag::Broadcast, at, prev, None);
        assert!(super::kept(&Channel::Broadcast, &word).unwrap().loss);
    }

    #[test]
    fn only_a_place_as_we_write_it_is_one() {
        let event = |place: &str| format!(r#"{{"belfry":{{"v":1}},{place}"type":"x"}}"#);
        let has = |place: &str| match decode(event(place).as_bytes()) {
            Ok(Decoded::Event { place, .. }) => place.is_some(),
            other => panic!("{other:?}"),
        };
        assert!(has(r#""id":"u~5-0","prev":"u~4-0","#));
        for place in [
            "",
            r#""id":"u~5-0","#,
            r#""id":"u~5-0","prev":"b~4-0","#,
            r#""id":"u~5-0","prev":"u~5-0","#,
            r#""id":"u~4-0","prev":"u~5-0","#,
            r#""prev":"u~4-0","id":"u~5-0","#,
            r#""id": "u~5-0","prev":"u~4-0","#,
            r#""id":"5-0","prev":"4-0","#,
            r#""id":7,"prev":"u~4-0","#,
        ] {
            assert!(!has(place), "{place}");
        }
    }

    fn unkept<'a>(except: &[UserId], members: &'a str) -> Decoded<'a> {
        let (until, loss, transient, place) = (None, false, false, None);
        Decoded::Event { except: except.to_vec(), until, loss, transient, place, members }
    }

    #[test]
    fn except_is_cut_off() {
        let data = raw("null");
        let event = Event { kind: "x", data: &data, sender: Some("tab-1") };
        let except = [user("a\"]},b"), user("tenant:42")];
        let wire = encode(&event, &except, false).unwrap().transient();
        let members = r#""type":"x","data":null,"sender":"tab-1"}"#;
        assert_eq!(decode(&wire), Ok(unkept(&except, members)));
    }

    #[test]
    fn a_probe_is_no_event() {
        let wire = encode_probe("r:1").unwrap();
        assert_eq!(decode(&wire), Ok(Decoded::Probe("r:1".into())));
        assert!(serde_json::from_slice::<serde_json::Value>(&wire).is_ok());
    }

    #[test]
    fn an_order_is_no_event() {
        let json = r#"{"user":"a","cause":"revoked","given":1}"#;
        for id in [None, OrderId::parse("5-7")] {
            let wire = encode_order(id, json);
            let Ok(Decoded::Order(given)) = decode(&wire) else { panic!("{wire:?}") };
            assert_eq!(given.id, id);
            assert!(serde_json::from_slice::<serde_json::Value>(&wire).is_ok());
        }
        for json in [
            "{}",
            "7",
            r#"{"user":"a","cause":"none","given":1}"#,
            r#"{"user":7}"#,
            r#"{"user":"a","cause":"revoked","given":1,"more":1}"#,
        ] {
            assert_eq!(decode(&encode_order(None, json)), Err(Poison::Invalid), "{json}");
        }
        let ack = Ack { order: "n".into(), replica: "r".into(), closed: 3 };
        assert_eq!(decode(&encode_ack(ack.clone()).unwrap()), Ok(Decoded::Ack(ack)));
    }

    #[test]
    fn a_neighbours_object_is_left_alone() {
        for text in [
            r#"{"type":"x",  "data":{"b":1,"a":1.0}}"#,
            " {}\n",
            r#"{"belfry":1}"#,
            r#"{"belfry": {"v":1},"type":"x"}"#,
            r#"{"type":"x","belfry":{"v":1,"except":["a"]}}"#,
            r#"{"belfry":{"v":"1"},"type":"x"}"#.replace("\"v\":\"1\"", "\"w\":1").as_str(),
        ] {
            assert_eq!(decode(text.as_bytes()), Ok(Decoded::Raw(text)), "{text}");
        }
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(decode(deep.as_bytes()), Ok(Decoded::Raw(&deep)));
        assert_eq!(decode("[".repeat(100_000).as_bytes()), Err(Poison::Invalid));
    }

    #[test]
    fn poison_is_named() {
        for (bytes, expected) in [
            (&b"\xff\xfe"[..], Poison::Invalid),
            (b"", Poison::Invalid),
            (b"hello", Poison::Invalid),
            (b"[1]", Poison::Invalid),
            (b"null", Poison::Invalid),
            (b"{\"a\":1", Poison::Invalid),
            (b"{} {}", Poison::Invalid),
            (br#"{"belfry":{"v":1}}"#, Poison::Invalid),
            (br#"{"belfry":{"v":1},"#, Poison::Invalid),
            (br#"{"belfry":{"v":1},}"#, Poison::Invalid),
            (br#"{"belfry":{"v":1},garbage"#, Poison::Invalid),
            (br#"{"belfry":{"v":1,"except":["a"#, Poison::Invalid),
            (br#"{"belfry":{"v":1,"except":[7]},"type":"x"}"#, Poison::Invalid),
            (br#"{"belfry":{"v":1,"except":[""]},"type":"x"}"#, Poison::Invalid),
            (br#"{"belfry":{"v":"1"},"type":"x"}"#, Poison::Invalid),
            (br#"{"belfry":{"v":2},"type":"x"}"#, Poison::Version(2)),
            (br#"{"belfry":{"v":3,"new":{"a":[]}},"type":"x"}"#, Poison::Version(3)),
            (br#"{"belfry":{"v":4,"except":7},"type":"x"}"#, Poison::Version(4)),
            (br#"{"belfry":{"v":99999999999},"type":"x"}"#, Poison::Invalid),
        ] {
            assert_eq!(decode(bytes), Err(expected), "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Decoded::Raw(text)) = decode(&bytes) {
                prop_assert_eq!(text.as_bytes(), &bytes[..]);
            }
        }

        /// Whatever follows a genuine opening, browsers only ever get a JSON object.
        #[test]
        fn only_objects_get_through(tail in r#"[\{\}\[\]",:a-z0-9 \\]{0,40}"#) {
            let text = format!("{{\"belfry\":{{\"v\":1}},{tail}");
            let json = match decode(text.as_bytes()) {
                Ok(Decoded::Event { members, .. }) => Some(format!("{{{members}")),
                Ok(Decoded::Raw(json)) => Some(json.to_owned()),
                _ => None,
            };
            if let Some(json) = json {
                prop_assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&json).is_ok());
            }
        }

        #[test]
        fn every_user_can_be_excepted(id in "[^\\p{Cc}]{1,60}") {
            let data = raw("[]");
            let event = Event { kind: "x", data: &data, sender: None };
            let wire = encode(&event, &[user(&id)], false).unwrap().transient();
            let members = r#""type":"x","data":[]}"#;
            prop_assert_eq!(decode(&wire), Ok(unkept(&[user(&id)], members)));
        }
    }
}

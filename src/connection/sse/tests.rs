use proptest::{collection::vec, prelude::*};
use serde_json::Value;
use tokio::time::Instant;

use super::*;
use crate::{
    event::{Group, Position, Tag},
    frame::{Mark, Notice},
};

/// What the standard's parser makes of a whole stream, line by line: its messages with the last id,
/// and the last time to come back.
fn read(stream: &[u8]) -> (Vec<(String, String)>, Option<u64>) {
    let text = std::str::from_utf8(stream).unwrap();
    let lines = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut messages, mut data, mut id, mut retry) = (Vec::new(), None, String::new(), None);
    for line in lines.split('\n') {
        let (field, value) = line.split_once(": ").unwrap_or((line, ""));
        match field {
            "" => messages.extend(data.take().map(|data: String| (data, id.clone()))),
            "data" => match &mut data {
                Some(data) => *data = format!("{data}\n{value}"),
                None => data = Some(value.to_owned()),
            },
            "id" => value.clone_into(&mut id),
            "retry" => retry = Some(value.parse().unwrap()),
            other => panic!("a field {other:?} in {text:?}"),
        }
    }
    assert_eq!(data, None, "an unfinished message in {text:?}");
    (messages, retry)
}

fn written(writer: &mut Writer, frames: &[Frame]) -> Vec<u8> {
    let mut stream = BytesMut::new();
    for frame in frames {
        writer.write(frame, &mut stream);
    }
    stream.to_vec()
}

fn event(json: &str, tag: &Tag, at: Position) -> Frame {
    Frame::event(json, Instant::now()).at(Mark { tag: tag.clone(), at })
}

/// Writes JSON with this white space around its tokens, each piece in its turn.
fn spaced(value: &Value, space: &mut impl Iterator<Item = String>, text: &mut String) {
    let push = |token: &str, text: &mut String, space: &mut dyn Iterator<Item = String>| {
        text.push_str(&space.next().unwrap());
        text.push_str(token);
        text.push_str(&space.next().unwrap());
    };
    match value {
        Value::Array(items) => {
            push("[", text, space);
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    push(",", text, space);
                }
                spaced(item, space, text);
            }
            push("]", text, space);
        }
        Value::Object(members) => {
            push("{", text, space);
            for (n, (name, member)) in members.iter().enumerate() {
                if n > 0 {
                    push(",", text, space);
                }
                push(&Value::from(name.as_str()).to_string(), text, space);
                push(":", text, space);
                spaced(member, space, text);
            }
            push("}", text, space);
        }
        leaf => push(&leaf.to_string(), text, space),
    }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "(\n|\r|\r\n|data: |id: x|event: |: )*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever stands in an event and between its members, a browser gets one message with it.
    #[test]
    fn any_json_comes_out_as_it_went_in(
        value in json(),
        spaces in vec("[ \t\r\n]{0,3}", 1..40),
    ) {
        let mut text = String::new();
        spaced(&value, &mut spaces.into_iter().cycle(), &mut text);
        let stream = written(&mut Writer::default(), &[Frame::text(&text)]);
        let (messages, retry) = read(&stream);
        prop_assert_eq!(messages.len(), 1);
        prop_assert_eq!(&serde_json::from_str::<Value>(&messages[0].0).unwrap(), &value);
        prop_assert_eq!((messages[0].1.as_str(), retry), ("", None));
    }
}

#[test]
fn the_id_says_where_the_client_stands() {
    let group = Tag::group(&Group::new("a,b~ü").unwrap());
    let begin = Cursor::parse("u~5-0,b~6-1").unwrap();
    let welcome = Frame::text(r#"{"type":"belfry.welcome"}"#).resets(begin);
    let frames = [
        welcome,
        Frame::text(r#"{"type":"raw"}"#),
        event("{}", &Tag::User, Position::new(7, 0)),
        Frame::heartbeat(),
        event("{}", &group, Position::new(8, 2)),
        Frame::skip(&Tag::Broadcast, Position::new(9, 0), Position::new(6, 1)),
        Frame::text("{}").resets(Cursor::parse("u~20-0").unwrap()),
    ];
    let stream = written(&mut Writer::default(), &frames);
    let (messages, _) = read(&stream);
    let ids: Vec<&str> = messages.iter().map(|(_, id)| id.as_str()).collect();
    let [some, all] = ["6-1", "9-0"].map(|b| format!("u~7-0,b~{b},{group}~8-2"));
    assert_eq!(
        ids,
        ["u~5-0,b~6-1", "u~5-0,b~6-1", "u~7-0,b~6-1", "u~7-0,b~6-1", &some, &all, "u~20-0"]
    );
    // Only those that move it bear a line, and all of them fit a header.
    let text = String::from_utf8(stream).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("id")).collect();
    assert_eq!(lines.len(), 5);
    assert!(text.is_ascii());
}

#[test]
fn where_nothing_is_kept_there_is_no_id() {
    let welcome = Frame::text("{}").resets(Cursor::default());
    assert_eq!(written(&mut Writer::default(), &[welcome]), b"data: {}\n\n");
}

#[test]
fn what_is_websockets_own_is_not_written() {
    let frames = [Frame::pong(b"x"), Frame::close(1012, "restart"), Frame::close_empty()];
    assert!(written(&mut Writer::default(), &frames).is_empty());
    let ping = written(&mut Writer::default(), &[Frame::heartbeat()]);
    assert_eq!(ping, b"data: {\"type\":\"ping\"}\n\n");
}

#[test]
fn the_time_to_come_back_comes_first_and_again_at_the_end() {
    let mut writer = Writer { retry: Some(1500), ..Writer::default() };
    let first = written(&mut writer, &[Notice::Live {}.frame(), Notice::Live {}.frame()]);
    let live = "data: {\"type\":\"belfry.live\"}\n\n";
    assert_eq!(String::from_utf8(first).unwrap(), format!("retry: 1500\n{live}{live}"));
    let last = written(&mut writer, &frame::farewell(CloseCause::Restart, Some(700), None));
    assert_eq!(read(&last).1, Some(700));
    assert_eq!(read(&goodbye(CloseCause::TooMany, 60_000)).1, Some(60_000));
    let [stay, _] = frame::farewell(CloseCause::Replaced, None, None);
    let (messages, retry) = read(&written(&mut writer, &[stay]));
    assert!(retry.is_some_and(|wait| wait > 3_600_000), "{retry:?}");
    let goodbye: Value = serde_json::from_str(&messages[0].0).unwrap();
    assert_eq!((&goodbye["code"], &goodbye["retry_after_ms"]), (&4409.into(), &Value::Null));
}

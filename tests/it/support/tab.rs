//! Tabs that resume: a cursor kept as a client keeps it, over either transport, and the bodies of
//! what is published to them.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::{
    PATIENCE,
    app::{Builder, Replica},
    client::{Dial, Ws},
    redis::RedisServer,
    sse::Sse,
    until,
};

/// Where a channel's history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Redis,
}

/// A replica with what it needs.
pub struct Place {
    pub replica: Replica,
    pub redis: Option<RedisServer>,
}

impl Kind {
    pub async fn start(self, builder: Builder) -> Place {
        match self {
            Self::Memory => Place { replica: builder.spawn().await, redis: None },
            Self::Redis => {
                let redis = RedisServer::start().await;
                Place { replica: quick(builder, &redis).spawn().await, redis: Some(redis) }
            }
        }
    }
}

/// On this Redis, noticing an outage fast.
pub fn quick(builder: Builder, redis: &RedisServer) -> Builder {
    builder
        .redis(redis)
        .set("redis.probe_interval", "500ms")
        .set("redis.probe_timeout", "1s")
        .set("ready.redis_grace", "2s")
}

/// An event for one user, whose data holds a marker.
pub fn for_user(user: &str, marker: &str) -> Value {
    json!({"to": {"user": user}, "type": "test", "data": {"mk": marker}})
}

/// The same for a group.
pub fn for_group(group: &str, marker: &str) -> Value {
    json!({"to": {"group": group}, "type": "test", "data": {"mk": marker}})
}

/// The same for everyone.
pub fn for_all(marker: &str) -> Value {
    json!({"to": {"broadcast": true}, "type": "test", "data": {"mk": marker}})
}

/// With another member.
pub fn with(mut event: Value, name: &str, value: impl Into<Value>) -> Value {
    event[name] = value.into();
    event
}

/// Publishes; the answer of the 202.
pub async fn answer(replica: &Replica, event: &Value) -> Value {
    let answer = replica.post(event.to_string()).await;
    assert_eq!(answer.status, 202, "{event}: {answer:?}");
    answer.json()
}

/// Publishes what is kept; its id.
pub async fn put(replica: &Replica, event: &Value) -> String {
    let answer = answer(replica, event).await;
    answer["id"].as_str().unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
}

/// The tag of a group's channel.
pub fn group_tag(name: &str) -> String {
    format!("g={}", URL_SAFE_NO_PAD.encode(name))
}

/// A stream id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub ms: u64,
    pub n: u64,
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (ms, n) = text.split_once('-').ok_or_else(|| format!("no dash in {text:?}"))?;
        match (number(ms), number(n)) {
            (Some(ms), Some(n)) => Ok(Self { ms, n }),
            _ => Err(format!("no stream id: {text:?}")),
        }
    }
}

impl Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

/// Splits `<tag>~<ms>-<n>`.
#[track_caller]
pub fn split(id: &str) -> (&str, Position) {
    let (tag, position) = id.split_once('~').unwrap_or_else(|| panic!("no tag in {id:?}"));
    let known = match tag.strip_prefix("g=") {
        Some(name) => URL_SAFE_NO_PAD.decode(name).is_ok(),
        None => tag == "u" || tag == "b",
    };
    assert!(known, "no such tag: {id:?}");
    (tag, position.parse().unwrap_or_else(|error| panic!("{error} in {id:?}")))
}

/// The text member of a frame.
pub fn member<'a>(frame: &'a Value, name: &str) -> Option<&'a str> {
    frame[name].as_str()
}

/// How an event follows a position (contract §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Next,
    Repeat,
    Gap,
    /// Not kept: it has no place.
    None,
}

/// A position per channel, kept current as a client does it: the entry with the same tag is
/// replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub BTreeMap<String, Position>);

impl Cursor {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut entries = BTreeMap::new();
        for entry in text.split(',').filter(|_| !text.is_empty()) {
            let (tag, position) = split(entry);
            let before = entries.insert(tag.to_owned(), position);
            assert!(before.is_none(), "{tag} twice in {text:?}");
        }
        Self(entries)
    }

    /// The tags in it.
    pub fn tags(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// The same with another position of this channel.
    pub fn at(mut self, tag: &str, position: Position) -> Self {
        self.0.insert(tag.into(), position);
        self
    }

    /// The same with this channel only.
    pub fn only(mut self, tag: &str) -> Self {
        self.0.retain(|key, _| key == tag);
        self
    }

    /// Takes what a frame says about positions. Only what comes next moves it.
    #[track_caller]
    pub fn take(&mut self, frame: &Value) -> Step {
        match member(frame, "type") {
            Some("belfry.welcome") => {
                *self = Self::parse(member(frame, "cursor").expect("a cursor in the welcome"));
                return Step::None;
            }
            Some("belfry.resync") => {
                let cursor = member(frame, "cursor").expect("a cursor in the resync");
                self.0.extend(Self::parse(cursor).0);
                return Step::None;
            }
            _ => {}
        }
        let Some(id) = member(frame, "id") else {
            assert!(frame.get("prev").is_none(), "prev without id: {frame}");
            return Step::None;
        };
        let prev = member(frame, "prev").unwrap_or_else(|| panic!("id without prev: {frame}"));
        let ((tag, id), (same, prev)) = (split(id), split(prev));
        assert_eq!(tag, same, "prev is of another channel: {frame}");
        let now = *self.0.get(tag).unwrap_or_else(|| panic!("no position of {tag}: {frame}"));
        if id <= now {
            Step::Repeat
        } else if prev <= now {
            self.0.insert(tag.into(), id);
            Step::Next
        } else {
            Step::Gap
        }
    }
}

impl Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (tag, position)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{tag}~{position}")?;
        }
        Ok(())
    }
}

/// Either transport.
pub enum Line {
    Ws(Ws),
    Sse(Sse),
}

/// A connection that keeps its cursor and fails at the first gap or repeat.
pub struct Tab {
    pub line: Line,
    pub welcome: Value,
    pub cursor: Cursor,
    /// Every kept event so far, as it came, in order.
    pub events: Vec<String>,
}

impl Tab {
    /// Connects over WebSocket, or over Server-Sent Events where the path says so; reads the
    /// welcome.
    pub async fn open(dial: &Dial) -> Self {
        let (line, welcome) = if dial.path.contains("/sse/") {
            let sse = Sse::open(dial).await;
            let welcome = sse.welcome.clone();
            (Line::Sse(sse), welcome)
        } else {
            let ws = dial.open().await;
            let welcome = ws.welcome.clone();
            (Line::Ws(ws), welcome)
        };
        let mut cursor = Cursor::default();
        cursor.take(&welcome);
        if let Line::Sse(sse) = &line {
            let first = sse.first.as_ref().expect("it was read");
            // Without a cursor there is no id, and a browser keeps the one that it has.
            if !welcome["cursor"].as_str().expect("text").is_empty() {
                assert_eq!(Cursor::parse(&first.id), cursor, "{first:?}");
            }
        }
        Self { line, welcome, cursor, events: Vec::new() }
    }

    /// Connects where this event is past: what was accepted just before may still be on its way,
    /// and then comes to those who connect meanwhile.
    pub async fn open_past(dial: &Dial, id: &str) -> Self {
        let (tag, position) = split(id);
        until(&format!("{id} is past"), PATIENCE, async || {
            let tab = Self::open(dial).await;
            (tab.cursor.0[tag] >= position).then_some(tab)
        })
        .await
    }

    /// The same after this cursor; on SSE it goes in the header.
    pub async fn resume(dial: &Dial, cursor: &str) -> Self {
        if dial.path.contains("/sse/") {
            return Self::open(&dial.clone().header("Last-Event-ID", cursor)).await;
        }
        Self::open(&dial.clone().since(cursor)).await
    }

    /// `resumed` of the welcome, and what it calls lost.
    pub fn resumed(&self) -> (Option<bool>, Vec<&str>) {
        let lost = self.welcome["lost"].as_array();
        let lost = lost.into_iter().flatten().filter_map(Value::as_str).collect();
        (self.welcome["resumed"].as_bool(), lost)
    }

    /// Everything was there.
    #[track_caller]
    pub fn is_whole(&self) {
        assert_eq!(self.resumed(), (Some(true), vec![]), "{}", self.welcome);
        assert!(self.welcome.get("lost").is_none_or(Value::is_null), "{}", self.welcome);
    }

    /// Exactly these channels are lost.
    #[track_caller]
    pub fn has_lost(&self, tags: &[&str]) {
        let (resumed, mut lost) = self.resumed();
        lost.sort_unstable();
        assert_eq!((resumed, lost), (Some(false), tags.to_vec()), "{}", self.welcome);
    }

    /// The next frame as it came, pings left out. Its place is checked.
    pub async fn text(&mut self, within: Duration) -> String {
        self.timed(within).await.1
    }

    /// The same with its moment.
    pub async fn timed(&mut self, within: Duration) -> (Instant, String) {
        let (when, text, id) = match &mut self.line {
            Line::Ws(ws) => {
                let (when, text) = ws.text(within).await;
                (when, text, None)
            }
            Line::Sse(sse) => {
                let (when, message) = sse.message(within).await;
                assert_eq!(message.event, "message", "{message:?}");
                (when, message.data, Some(message.id))
            }
        };
        let frame: Value = serde_json::from_str(&text).expect("JSON");
        let before = self.cursor.clone();
        let step = self.cursor.take(&frame);
        assert!(matches!(step, Step::Next | Step::None), "{step:?} after {before}: {text}");
        if let Some(id) = id.filter(|_| self.cursor != Cursor::default()) {
            assert_eq!(Cursor::parse(&id), self.cursor, "the id of {text}");
        }
        if step == Step::Next && !text.contains("\"belfry.skip\"") {
            self.events.push(text.clone());
        }
        (when, text)
    }

    /// The same as JSON.
    pub async fn next(&mut self) -> Value {
        serde_json::from_str(&self.text(PATIENCE).await).expect("JSON")
    }

    /// Everything up to `belfry.live`, without it.
    pub async fn replay(&mut self) -> Vec<Value> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await;
            if frame["type"] == "belfry.live" {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// The markers of the events up to `belfry.live`; skips are `-`.
    pub async fn replayed(&mut self) -> Vec<String> {
        self.replay().await.iter().map(marker).collect()
    }

    /// The markers of the events before the one marked `last`; skips are `-`, other words of
    /// Belfry's are left out.
    pub async fn before(&mut self, last: &str) -> Vec<String> {
        let mut markers = Vec::new();
        let start = Instant::now();
        loop {
            let text = self.text(PATIENCE.saturating_sub(start.elapsed()).max(PATIENCE / 3)).await;
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            let kind = member(&frame, "type").unwrap_or_default();
            if kind.starts_with("belfry.") && kind != "belfry.skip" {
                continue;
            }
            let marker = marker(&frame);
            if marker == last {
                return markers;
            }
            markers.push(marker);
        }
    }

    /// The next frame of this `belfry.*` type; it fails at anything but other words before it.
    pub async fn next_word(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            let found = member(&frame, "type").unwrap_or_default();
            if found == kind {
                return frame;
            }
            assert!(found.starts_with("belfry."), "before {kind}: {frame}");
        }
    }

    /// Waits for the end, before which nothing more comes.
    pub async fn ends(&mut self) {
        let texts = match &mut self.line {
            Line::Ws(ws) => ws.end(PATIENCE).await.texts,
            Line::Sse(sse) => {
                let end = sse.end(PATIENCE).await;
                assert!(end.whole, "cut off");
                end.texts
            }
        };
        assert!(texts.is_empty(), "{texts:?}");
    }

    /// Drops the connection; the cursor that is left.
    pub fn leave(self) -> String {
        self.cursor.to_string()
    }
}

/// The marker of an event; `-` for a skip.
#[track_caller]
pub fn marker(frame: &Value) -> String {
    if frame["type"] == "belfry.skip" {
        let members = frame.as_object().map(serde_json::Map::len);
        assert_eq!(members, Some(3), "more than type, id and prev: {frame}");
        return "-".into();
    }
    let marker = frame["data"]["mk"].as_str();
    marker.unwrap_or_else(|| panic!("neither an event nor a skip: {frame}")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_follows_a_chain() {
        let mut cursor = Cursor::default();
        cursor.take(&json!({"type": "belfry.welcome", "cursor": "u~5-0,b~0-0"}));
        let event = |id: &str, prev: &str| json!({"id": id, "prev": prev, "type": "t"});
        for (id, prev, step) in [
            ("u~5-0", "u~3-0", Step::Repeat),
            ("u~5-1", "u~5-0", Step::Next),
            ("u~7-0", "u~6-0", Step::Gap),
            ("u~10-0", "u~4-9", Step::Next),
            ("b~9-0", "b~0-0", Step::Next),
            ("u~9-0", "u~4-0", Step::Repeat),
        ] {
            assert_eq!(cursor.take(&event(id, prev)), step, "{id} after {prev}");
        }
        assert_eq!(cursor.take(&json!({"type": "t"})), Step::None);
        assert_eq!(cursor.to_string(), "b~9-0,u~10-0");
        cursor.take(&json!({"type": "belfry.resync", "lost": ["u"], "cursor": "u~99-1"}));
        assert_eq!(cursor.to_string(), "b~9-0,u~99-1");
        assert_eq!(Cursor::parse("").to_string(), "");
    }
}

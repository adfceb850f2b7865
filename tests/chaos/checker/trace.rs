//! What one client saw. It follows cursors as contract §4 says and drops nothing by itself: a
//! repeat, a hole or a wrong cursor is a breach.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    breach::{Breaches, Kind},
    cast::{Channel, Seat},
    position::{Position, parse_cursor, parse_id},
};

/// When and where a client sees something.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Milliseconds since the run began.
    pub ms: u32,
    pub replica: usize,
    /// The last fault before it.
    pub after: &'static str,
}

/// An event that came.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    pub at: Position,
    pub mark: u32,
    pub ms: u32,
}

/// What the server said is missing: everything after `from`, up to `to`.
#[derive(Clone, Debug)]
pub struct Gap {
    pub from: Position,
    pub to: Position,
    pub cause: String,
    pub ms: u32,
}

/// A client's way through one channel.
#[derive(Clone, Debug)]
pub struct Course {
    /// Where its first welcome put it.
    pub start: Position,
    pub at: Position,
    pub got: Vec<Receipt>,
    pub gaps: Vec<Gap>,
}

/// What a frame means for the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    GoOn,
    Goodbye { code: u16, reason: String, retry: Option<u64> },
}

/// A frame of a channel.
struct Step {
    channel: Channel,
    id: Position,
    /// It was received before.
    again: bool,
}

pub struct Trace {
    pub seat: Seat,
    pub courses: BTreeMap<Channel, Course>,
    pub breaches: Breaches,
    pub skips: u64,
    pub resumes: u64,
    tags: BTreeMap<String, Channel>,
    opening: bool,
}

impl Trace {
    pub fn new(seat: Seat) -> Self {
        let tags = seat.channels().into_iter().collect();
        Self {
            seat,
            courses: BTreeMap::new(),
            breaches: Breaches::default(),
            skips: 0,
            resumes: 0,
            tags,
            opening: true,
        }
    }

    /// Did a first welcome come? Then this client has a cursor to come back with.
    pub fn begun(&self) -> bool {
        !self.courses.is_empty()
    }

    /// The positions as a cursor.
    pub fn cursor(&self) -> String {
        let entries = self
            .tags
            .iter()
            .filter_map(|(tag, channel)| Some(format!("{tag}~{}", self.courses.get(channel)?.at)));
        entries.collect::<Vec<_>>().join(",")
    }

    /// A connection is open; its first frame is the welcome, or a goodbye.
    pub fn opens(&mut self) {
        self.opening = true;
    }

    pub fn breach(&mut self, kind: Kind, moment: Moment, what: &str) {
        let Moment { ms, replica, after } = moment;
        let at = f64::from(ms) / 1000.0;
        let what = format!("{at:8.3} s, {} at replica {replica}, after {after}: {what}", self.seat);
        self.breaches.add(kind, what);
    }

    /// Takes a frame in.
    pub fn hear(&mut self, frame: &Value, moment: Moment) -> Told {
        let kind = frame["type"].as_str().unwrap_or_default();
        if std::mem::take(&mut self.opening) && !matches!(kind, "belfry.welcome" | "belfry.goodbye")
        {
            self.breach(Kind::Protocol, moment, &format!("the first frame is {frame}"));
        }
        match kind {
            "belfry.welcome" => self.welcome(frame, moment),
            "belfry.resync" => self.resync(frame, moment),
            "belfry.skip" => {
                self.skips += 1;
                if let Some(step) = self.follow(frame, moment) {
                    self.moves(step.channel, step.id);
                }
            }
            "belfry.goodbye" => {
                let code = frame["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                let reason = frame["reason"].as_str().unwrap_or_default().to_owned();
                let retry = frame["retry_after_ms"].as_u64();
                return Told::Goodbye { code: code.unwrap_or_default(), reason, retry };
            }
            own if own.starts_with("belfry.") || own == "ping" => {}
            _ => self.event(frame, moment),
        }
        Told::GoOn
    }

    /// The server's idea of the cursor, which SSE sends in the `id:` line.
    pub fn compare(&mut self, cursor: &str, moment: Moment) {
        let own: BTreeMap<String, Position> = self
            .tags
            .iter()
            .filter_map(|(tag, channel)| Some((tag.clone(), self.courses.get(channel)?.at)))
            .collect();
        if parse_cursor(cursor).as_ref() != Some(&own) {
            let own = self.cursor();
            self.breach(Kind::Cursor, moment, &format!("id: {cursor:?}, but it is at {own}"));
        }
    }

    fn moves(&mut self, channel: Channel, at: Position) {
        if let Some(course) = self.courses.get_mut(&channel) {
            course.at = course.at.max(at);
        }
    }

    /// The cursor in a frame, if it is one for the channels of this client.
    fn cursor_in(
        &mut self,
        frame: &Value,
        moment: Moment,
    ) -> Option<Vec<(String, Channel, Position)>> {
        let cursor = frame["cursor"].as_str().and_then(parse_cursor);
        let known = cursor.filter(|cursor| cursor.keys().eq(self.tags.keys()));
        if known.is_none() {
            self.breach(Kind::Protocol, moment, &format!("not a cursor of all channels: {frame}"));
        }
        let tags = &self.tags;
        Some(known?.into_iter().map(|(tag, at)| (tag.clone(), tags[&tag], at)).collect())
    }

    fn welcome(&mut self, frame: &Value, moment: Moment) {
        let Some(cursor) = self.cursor_in(frame, moment) else { return };
        let resumed = &frame["resumed"];
        let lost = lost(frame);
        if !self.begun() {
            if !resumed.is_null() {
                self.breach(Kind::Protocol, moment, &format!("nothing was asked for: {frame}"));
            }
            for (_, channel, at) in cursor {
                let course = Course { start: at, at, got: Vec::new(), gaps: Vec::new() };
                self.courses.insert(channel, course);
            }
            return;
        }
        self.resumes += 1;
        if resumed.as_bool() != Some(lost.is_empty()) {
            let what = format!("`resumed` and `lost` do not fit what was asked: {frame}");
            self.breach(Kind::Protocol, moment, &what);
        }
        self.adopt(cursor, &lost, "welcome", moment);
    }

    fn resync(&mut self, frame: &Value, moment: Moment) {
        let Some(cursor) = self.cursor_in(frame, moment) else { return };
        let lost = lost(frame);
        if lost.is_empty() {
            self.breach(Kind::Protocol, moment, &format!("nothing is lost: {frame}"));
        }
        let reason = frame["reason"].as_str().unwrap_or("no reason").to_owned();
        self.adopt(cursor, &lost, &format!("resync ({reason})"), moment);
    }

    /// Takes the server's cursor for its own, as a client does. It may only differ in the channels
    /// that are given up.
    fn adopt(
        &mut self,
        cursor: Vec<(String, Channel, Position)>,
        lost: &[&str],
        notice: &str,
        moment: Moment,
    ) {
        for (tag, channel, to) in cursor {
            let Some(course) = self.courses.get_mut(&channel) else { continue };
            let from = std::mem::replace(&mut course.at, to);
            if lost.contains(&tag.as_str()) {
                let cause = format!("{notice} after {}", moment.after);
                course.gaps.push(Gap { from, to, cause, ms: moment.ms });
            } else if from != to {
                let what = format!("{notice}: {tag} moved from {from} to {to}, and is not lost");
                self.breach(Kind::Cursor, moment, &what);
            }
        }
    }

    /// Checks that the frame follows the position; `None` where it is not a frame of a channel.
    fn follow(&mut self, frame: &Value, moment: Moment) -> Option<Step> {
        let part = |name: &str| frame[name].as_str().and_then(parse_id);
        let (Some((tag, id)), Some((same, prev))) = (part("id"), part("prev")) else {
            self.breach(Kind::Protocol, moment, &format!("no id or no prev: {}", clip(frame)));
            return None;
        };
        let course = self.tags.get(tag).and_then(|channel| {
            Some((*channel, self.courses.get(channel).filter(|_| tag == same)?))
        });
        let Some((channel, course)) = course else {
            let what = format!("of no channel of this client: {}", clip(frame));
            self.breach(Kind::Stray, moment, &what);
            return None;
        };
        let at = course.at;
        // A position may have been taken back by an announcement, so it alone does not tell.
        let behind = course.got.last().is_some_and(|last| id <= last.at);
        let again = behind && course.got.iter().rev().any(|receipt| receipt.at == id);
        if again {
            let what = format!("{tag}~{id} (prev {prev}) again, at position {at}");
            self.breach(Kind::Duplicated, moment, &what);
        } else if id <= at {
            let what = format!("{tag}~{id} (prev {prev}) at position {at}");
            self.breach(Kind::OutOfOrder, moment, &what);
        } else if prev > at {
            let what = format!("{tag}~{id} follows {prev}, but the position is {at}");
            self.breach(Kind::Hole, moment, &what);
        }
        Some(Step { channel, id, again })
    }

    fn event(&mut self, frame: &Value, moment: Moment) {
        let Some(Step { channel, id, again }) = self.follow(frame, moment) else { return };
        let mark = frame["data"]["mk"].as_u64().and_then(|mark| u32::try_from(mark).ok());
        let Some(mark) = mark else {
            self.breach(Kind::Stray, moment, &format!("it bears no mark: {}", clip(frame)));
            return;
        };
        let Some(course) = self.courses.get_mut(&channel) else { return };
        if !again {
            course.got.push(Receipt { at: id, mark, ms: moment.ms });
        }
        self.moves(channel, id);
    }
}

/// The beginning of a frame, for a message.
fn clip(frame: &Value) -> String {
    frame.to_string().chars().take(200).collect()
}

fn lost(frame: &Value) -> Vec<&str> {
    let lost = frame["lost"].as_array().map(Vec::as_slice).unwrap_or_default();
    lost.iter().filter_map(Value::as_str).collect()
}

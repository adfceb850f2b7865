//! Where an event stands in its channel, and how far a client has seen each of its channels
//! (contract §4).

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{Channel, Group};

/// A cursor names one position a channel; longer ones are nobody's.
const ENTRIES: usize = 1100;

/// A place in a channel: milliseconds since 1970 and a count within them, the id of a Redis stream
/// entry. As a client's position: everything up to it is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Milliseconds since 1970, by the broker's clock.
    pub ms: u64,
    /// Tells those of one millisecond apart.
    pub n: u64,
}

impl Position {
    /// Before every event; the `prev` of one before which none is remembered.
    pub const ZERO: Self = Self { ms: 0, n: 0 };

    /// The place right before this one.
    #[must_use]
    pub fn before(self) -> Self {
        match self.n.checked_sub(1) {
            Some(n) => Self { n, ..self },
            None if self.ms > 0 => Self { ms: self.ms - 1, n: u64::MAX },
            None => self,
        }
    }

    /// The place `n` in the millisecond `ms`.
    #[must_use]
    pub fn new(ms: u64, n: u64) -> Self {
        Self { ms, n }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

/// A text that is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position, which is written 1732406400000-0")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (ms, n) = text.split_once('-').ok_or(NotAPosition)?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| plain).ok_or(NotAPosition)
        };
        Ok(Self { ms: number(ms)?, n: number(n)? })
    }
}

/// What names a channel to one client: `u` the user's own, `b` broadcast, `g=<base64url(name)>` a
/// group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// The client's own user.
    User,
    /// Everyone.
    Broadcast,
    /// A group, by its encoded name.
    Group(std::sync::Arc<str>),
}

impl Tag {
    /// The tag of a group.
    #[must_use]
    pub fn group(group: &Group) -> Self {
        Self::Group(URL_SAFE_NO_PAD.encode(group.as_str()).into())
    }

    /// How clients know this channel.
    #[must_use]
    pub fn of(channel: &Channel) -> Self {
        match channel {
            Channel::User(_) => Self::User,
            Channel::Group(group) => Self::group(group),
            Channel::Broadcast => Self::Broadcast,
        }
    }

    /// The id of the event at this position of the channel.
    #[must_use]
    pub fn id(&self, at: Position) -> String {
        format!("{self}~{at}")
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "u" => Some(Self::User),
            "b" => Some(Self::Broadcast),
            _ => {
                let name = text.strip_prefix("g=")?;
                let name = String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok()?;
                Some(Self::group(&Group::new(&name).ok()?))
            }
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("u"),
            Self::Broadcast => f.write_str("b"),
            Self::Group(name) => write!(f, "g={name}"),
        }
    }
}

/// Reads an event's id, `<tag>~<ms>-<n>`.
#[must_use]
pub fn parse_id(text: &str) -> Option<(Tag, Position)> {
    let (tag, at) = text.split_once('~')?;
    Some((Tag::parse(tag)?, at.parse().ok()?))
}

/// A position per channel, as a client keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(Vec<(Tag, Position)>);

impl Cursor {
    /// Reads a comma-separated list of positions. A channel that stands there twice is taken by
    /// the lower one: to repeat is better than to leave out. One with something else than a position
    /// is [`Position::ZERO`], of which nothing is ever proven; what names no channel is left out.
    ///
    /// `None`: there is no position in it at all.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut cursor = Self::default();
        for entry in text.split(',').take(ENTRIES) {
            let (tag, at) = entry.split_once('~').unwrap_or((entry, ""));
            let Some(tag) = Tag::parse(tag) else { continue };
            let at = at.parse().unwrap_or(Position::ZERO);
            match cursor.entry(&tag) {
                Some(known) => *known = (*known).min(at),
                None => cursor.0.push((tag, at)),
            }
        }
        cursor.0.iter().any(|(_, at)| *at != Position::ZERO).then_some(cursor)
    }

    /// The position of a channel.
    #[must_use]
    pub fn get(&self, tag: &Tag) -> Option<Position> {
        self.0.iter().find(|(known, _)| known == tag).map(|(_, at)| *at)
    }

    /// Whether it names no channel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the position of a channel.
    pub fn set(&mut self, tag: Tag, at: Position) {
        match self.entry(&tag) {
            Some(known) => *known = at,
            None => self.0.push((tag, at)),
        }
    }

    /// The newest moment in it, in milliseconds since 1970.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.0.iter().map(|(_, at)| at.ms).max()
    }

    fn entry(&mut self, tag: &Tag) -> Option<&mut Position> {
        self.0.iter_mut().find(|(known, _)| known == tag).map(|(_, at)| at)
    }
}

impl FromIterator<(Tag, Position)> for Cursor {
    fn from_iter<I: IntoIterator<Item = (Tag, Position)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (tag, at)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{tag}~{at}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_numbers() {
        for (text, at) in [("5-0", (5, 0)), ("1732406400000-4", (1_732_406_400_000, 4))] {
            let at = Position::new(at.0, at.1);
            assert_eq!(text.parse(), Ok(at));
            assert_eq!(at.to_string(), text);
        }
        assert!(Position::new(9, 0) < Position::new(10, 0));
        assert!(Position::new(9, 9) < Position::new(9, 10));
        for text in ["", "5", "-", "5-", "-5", "+5-0", "5-+0", "5-0-0", " 5-0", "5-0x"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text:?}");
        }
        assert!("18446744073709551616-0".parse::<Position>().is_err());
    }

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let text = "u~1732406400000-0,b~1732406399000-4,g=w6Q6LA~5-0";
        let cursor = Cursor::parse(text).unwrap();
        assert_eq!(cursor.to_string(), text);
        let group = Tag::group(&Group::new("ä:,").unwrap());
        assert_eq!(cursor.get(&group), Some(Position::new(5, 0)));
        assert_eq!(cursor.newest(), Some(1_732_406_400_000));
    }

    #[test]
    fn what_is_no_cursor() {
        let texts = "|,|u|u~|u~1|x~1-0|u ~1-0|g=~1-0|g=!~1-0|u~1-0;b~1-0|~1-0|g=AA~1-0|u~0-0";
        for text in texts.split('|') {
            assert_eq!(Cursor::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn one_bad_position_is_one_lost_channel() {
        for (text, cursor) in [
            ("u~x,b~5-0", "u~0-0,b~5-0"),
            ("b~5-0,u", "b~5-0,u~0-0"),
            ("b~5-0,x~1-0,", "b~5-0"),
            ("u~7-0,b~5-0,u~7", "u~0-0,b~5-0"),
        ] {
            assert_eq!(Cursor::parse(text).unwrap().to_string(), cursor, "{text:?}");
        }
    }

    #[test]
    fn the_lower_of_two_positions_counts() {
        let mut cursor = Cursor::parse("u~7-0,u~5-0,u~6-0").unwrap();
        assert_eq!(cursor.get(&Tag::User), Some(Position::new(5, 0)));
        cursor.set(Tag::User, Position::new(9, 1));
        cursor.set(Tag::Broadcast, Position::new(1, 0));
        assert_eq!(cursor.to_string(), "u~9-1,b~1-0");
    }
}

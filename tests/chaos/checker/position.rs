//! Ids, positions and cursors as contract §4 writes them, read by code of the checker's own.

use std::{collections::BTreeMap, fmt};

/// A place in a channel; numbers are compared, not texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub ms: u64,
    pub n: u64,
}

impl Position {
    pub fn parse(text: &str) -> Option<Self> {
        let (ms, n) = text.split_once('-')?;
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse().ok())?
        };
        Some(Self { ms: number(ms)?, n: number(n)? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

/// `<tag>~<ms>-<n>`
pub fn parse_id(text: &str) -> Option<(&str, Position)> {
    let (tag, at) = text.split_once('~')?;
    Some((tag, Position::parse(at)?))
}

/// A cursor as a position per tag; `None` where it is malformed or names a tag twice.
pub fn parse_cursor(text: &str) -> Option<BTreeMap<String, Position>> {
    let mut cursor = BTreeMap::new();
    for entry in text.split(',') {
        let (tag, at) = parse_id(entry)?;
        if cursor.insert(tag.to_owned(), at).is_some() {
            return None;
        }
    }
    Some(cursor)
}

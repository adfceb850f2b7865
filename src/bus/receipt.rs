//! What a publisher is told, in the form in which it is remembered under its idempotency key: the
//! JSON of the answer (contract §5).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::{Position, Tag, parse_id};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The event's id, for browsers; `None` if it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the user has a connection on any replica; `None` if that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// It was done before, and nothing was done now.
    #[serde(skip)]
    pub again: bool,
}

impl Receipt {
    /// For an event at this place of a channel.
    #[must_use]
    pub fn new(tag: &Tag, at: Option<Position>, online: Option<bool>) -> Self {
        Self { id: at.map(|at| tag.id(at)), online, again: false }
    }

    /// Reads what was remembered; what cannot be read says nothing.
    #[must_use]
    pub fn remembered(answer: &str) -> Self {
        let known: Self = serde_json::from_str(answer).unwrap_or_default();
        Self { again: true, ..known }
    }

    /// The event's place.
    #[must_use]
    pub fn at(&self) -> Option<Position> {
        parse_id(self.id.as_deref()?).map(|(_, at)| at)
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two plain members have no way to fail.
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_went() {
        let at = Some(Position::new(5, 1));
        let receipt = Receipt::new(&Tag::User, at, Some(true));
        assert_eq!(receipt.to_string(), r#"{"id":"u~5-1","online":true}"#);
        let known = Receipt::remembered(&receipt.to_string());
        assert_eq!((known.at(), known.online, known.again), (at, Some(true), true));
        for nothing in ["{}", "", "7"] {
            assert_eq!(Receipt::remembered(nothing).id, None, "{nothing}");
        }
    }
}

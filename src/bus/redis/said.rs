//! What `publish.lua` says of one event.

use fred::types::Value;

use crate::{bus::BusError, event::Position};

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It was kept and published.
    New {
        /// Its place and the one before it; `None` if it is not kept.
        place: Option<(Position, Position)>,
        /// Whether its user is online, if that was asked for.
        online: Option<bool>,
        /// When it is over, in milliseconds since 1970.
        until: Option<u64>,
    },
    /// It was done before, and answered with this.
    Again(String),
    /// Its request is another one than that of this key.
    Conflict,
}

impl Said {
    /// Reads one line.
    ///
    /// # Errors
    /// The server's own error where it refused this one, which is then not kept and not published;
    /// [`BusError::Away`] where the line cannot be read.
    pub(super) fn read(line: &Value) -> Result<Self, BusError> {
        let line = line.as_bytes_str().unwrap_or_default();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "new" => Self::new(rest),
            "again" => Some(Self::Again(rest.to_owned())),
            "conflict" => Some(Self::Conflict),
            "error" => return Err(BusError::Refused(rest.to_owned())),
            _ => None,
        }
        .ok_or_else(|| BusError::Away(format!("a script answered {line:?}")))
    }

    fn new(rest: &str) -> Option<Self> {
        let mut words = rest.split(' ');
        let mut next = || words.next().map(|word| Some(word).filter(|word| *word != "-"));
        let (at, prev, online, until) = (next()?, next()?, next()?, next()?);
        let place = match (at, prev) {
            (Some(at), Some(prev)) => Some((at.parse().ok()?, prev.parse().ok()?)),
            _ => None,
        };
        let until = until.map(|until| until.parse().ok()).map_or(Some(None), |read| read.map(Some));
        Some(Self::New { place, online: online.map(|online| online == "1"), until: until? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_there_is_to_know() {
        let read = |line: &str| Said::read(&line.into());
        let place = Some((Position::new(5, 1), Position::ZERO));
        assert_eq!(
            read("new 5-1 0-0 1 77").unwrap(),
            Said::New { place, online: Some(true), until: Some(77) }
        );
        assert_eq!(
            read("new 5-1 0-0 0 -").unwrap(),
            Said::New { place, online: Some(false), until: None }
        );
        assert_eq!(
            read("new - - - -").unwrap(),
            Said::New { place: None, online: None, until: None }
        );
        assert_eq!(
            read(r#"again {"id":"u~5-1"}"#).unwrap(),
            Said::Again(r#"{"id":"u~5-1"}"#.to_owned())
        );
        assert_eq!(read("conflict").unwrap(), Said::Conflict);
    }

    #[test]
    fn a_refusal_is_the_servers_own_and_nonsense_says_nothing() {
        let read = |line: &str| Said::read(&line.into()).unwrap_err();
        assert!(
            matches!(read("error OOM no room"), BusError::Refused(why) if why == "OOM no room")
        );
        for line in ["", "new", "new 5-1", "new x 0-0 1 -", "new 5-1 0-0 1 soon", "old 1"] {
            assert!(matches!(read(line), BusError::Away(_)), "{line}");
        }
        assert!(matches!(Said::read(&Value::Null).unwrap_err(), BusError::Away(_)));
    }
}

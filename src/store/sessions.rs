//! The sessions of a back end, as they lie in its store: looked up, and never written.

use std::{collections::HashMap, fmt};

use futures_util::future::BoxFuture;

use crate::{bus::BusError, event::SessionKey};

/// What a key holds.
#[derive(Clone, PartialEq, Eq)]
pub enum Held {
    /// A string, of whatever bytes.
    Text(Vec<u8>),
    /// The fields of a hash that were asked for and are there.
    Fields(HashMap<String, String>),
    /// Something else: a list, or fields that are not text.
    Other,
}

/// Without what a back end keeps of its users, which is not ours to show.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Fields(fields) => write!(f, "Fields({:?})", fields.keys()),
            Self::Other => f.write_str("Other"),
        }
    }
}

/// Looks sessions up.
pub trait Sessions: Send + Sync {
    /// What is held under the session's id; `None` if there is no such key. Resolves within the
    /// command timeout.
    fn look_up<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Held>, BusError>>;
}

/// Word of sessions that are gone, where the store gives it.
pub trait Endings: Send {
    /// The next ones, some at once where many go. `None`: no more word will come. Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Option<Vec<SessionKey>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_not_shown() {
        let fields = [("user".to_owned(), "hush".to_owned())].into();
        assert_eq!(format!("{:?}", Held::Fields(fields)), r#"Fields(["user"])"#);
        assert_eq!(format!("{:?}", Held::Text(b"hush".to_vec())), "Text(4 bytes)");
    }
}

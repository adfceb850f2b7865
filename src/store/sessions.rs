//! The sessions of a back end, as they lie in its store: looked up, and never written.

use std::collections::HashMap;

use futures_util::future::BoxFuture;

use crate::{bus::BusError, event::SessionKey};

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// A string, of whatever bytes.
    Text(Vec<u8>),
    /// The fields of a hash that were asked for and are there.
    Fields(HashMap<String, String>),
    /// Something else: a list, or fields that are not text.
    Other,
}

/// Looks sessions up.
pub trait Sessions: Send + Sync {
    /// What is held under the session's id; `None` if there is no such key. Resolves within the
    /// command timeout.
    fn look_up<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Held>, BusError>>;

    /// Whether looking up is tried at all.
    fn is_up(&self) -> bool;
}

/// Word of sessions that are gone, where the store gives it.
pub trait Endings: Send {
    /// The next ones, some at once where many go. `None`: no more word will come. Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Option<Vec<SessionKey>>>;
}

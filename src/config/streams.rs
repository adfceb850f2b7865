//! The two optional streams between Belfry and back ends: `[inbound]` and `[publish_stream]`.

use super::{fault::Problem, reader::Reader};

/// A stream that is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Entries that it may hold; the oldest go.
    pub max_messages: usize,
}

/// More than a stream of messages that nobody has read yet is good for.
const MOST: usize = 100_000_000;

/// Reads one; `None`: it is off.
pub(super) fn read(reader: &mut Reader, section: &str, has_redis: bool) -> Option<Stream> {
    let key = format!("{section}.enabled");
    let enabled = reader.choice(&key, &[("true", true), ("false", false)], false);
    let max_messages = reader.count(&format!("{section}.max_messages"), 1..=MOST);
    if enabled && !has_redis && reader.is_good("redis.url") {
        let what = "is a stream in Redis, and there is no Redis";
        reader.fault(&key, Problem::new(what, "set redis.url, or leave it off"));
    }
    enabled.then_some(Stream { max_messages })
}

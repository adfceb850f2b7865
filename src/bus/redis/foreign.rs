//! Keys of other programs where a channel's own belong.
//!
//! Redis refuses every command on such a key with `WRONGTYPE` (redis.io, "RESP simple errors"). That
//! is the end of this channel's history, and of no other. Only an operator can mend it.

use std::sync::{Mutex, PoisonError};

use super::names::Names;
use crate::{event::Channel, throttle::Throttle};

/// Whether Redis refused something because a key is of another type. Before version 7 the code
/// stands inside of the text where a script was refused.
pub(super) fn is_foreign(reason: &str) -> bool {
    reason.contains("WRONGTYPE")
}

/// Tells an operator, at most once a second for each of the two.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    readings: Mutex<Throttle>,
    events: Mutex<Throttle>,
}

impl Complaints {
    /// What a channel keeps could not be read.
    pub(super) fn unread(&self, names: &Names, channel: &Channel, reason: &str) {
        tell(&self.readings, names, channel, reason, "what a channel keeps cannot be read");
    }

    /// An event was not published.
    pub(super) fn unpublished(&self, names: &Names, channel: &Channel, reason: &str) {
        tell(&self.events, names, channel, reason, "an event was refused");
    }
}

fn tell(throttle: &Mutex<Throttle>, names: &Names, channel: &Channel, reason: &str, what: &str) {
    // Every change is whole, so a poisoned lock is as good as new.
    let Some(more) = throttle.lock().unwrap_or_else(PoisonError::into_inner).check() else {
        return;
    };
    let (kind, keys) = names.pattern(channel);
    tracing::warn!(
        kind,
        keys,
        reason,
        more_since_last_line = more,
        "{what}, because another program has a key in its channel's place: find it (redis-cli \
         --scan --pattern, TYPE is not stream) and delete or rename it"
    );
}

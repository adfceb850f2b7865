//! What the scripts are called with.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fred::types::Value;

use super::{
    names::{Keys, Names},
    recent::Entry,
    scripts::Call,
};
use crate::{
    bus::{Ask, Destination, Keep, Message, Once, Post, envelope::Parts},
    event::{Channel, Position, Tag},
    history::Bounds,
    store::IDEMPOTENCY_TTL,
};

/// Knows how keys are called, and how much is kept.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) names: Arc<Names>,
    pub(super) bounds: Bounds,
}

/// What `publish.lua` does with an event.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Kept,
    Transient,
    Probe,
}

/// Goes where an event goes.
struct Sent<'a> {
    channel: String,
    keys: Keys,
    /// Of a user's seats.
    seats: Option<String>,
    tag: Tag,
    event: &'a Parts,
    mode: Mode,
    life: Option<Duration>,
    /// The key under which it is remembered, and the fingerprint.
    once: Option<(String, &'a str)>,
    online: Option<&'a [String]>,
}

impl Calls {
    pub(super) fn keeps(&self) -> bool {
        self.bounds.events > 0
    }

    /// Keeps and publishes an event.
    pub(super) fn publish(&self, post: &Post) -> Call {
        let (mode, life) = match post.keep {
            Keep::Kept if self.keeps() => (Mode::Kept, None),
            Keep::For(life) if self.keeps() => (Mode::Kept, Some(life)),
            _ => (Mode::Transient, None),
        };
        let keys = self.names.keys(&post.to);
        let seats = match &post.to {
            Channel::User(user) => Some(self.names.seats(user)),
            _ => None,
        };
        let remember = |once: &Once| self.names.idempotency(&keys.stream, &once.key);
        let once = post.once.as_ref();
        self.send(Sent {
            channel: self.names.channel(&Destination::Events(post.to.clone())),
            once: once.map(|once| (remember(once), once.fingerprint.as_str())),
            online: post.online.as_deref().filter(|_| seats.is_some()),
            keys,
            seats,
            tag: Tag::of(&post.to),
            event: &post.event,
            mode,
            life,
        })
    }

    /// Proves that events of this kind of channel can be kept and published, and leaves nothing
    /// behind but the message. `None`: the payload has no head.
    pub(super) fn probe(&self, message: &Message) -> Option<Call> {
        let end = message.payload.windows(2).position(|pair| pair == b"},")?;
        let head = std::str::from_utf8(message.payload.get(..end)?).ok()?;
        let event = Parts { head: head.to_owned(), members: message.payload.slice(end + 2..) };
        let keys = self.names.probe_keys(&message.to);
        let keeps = self.keeps();
        Some(self.send(Sent {
            channel: self.names.channel(&message.to),
            seats: keeps.then(|| self.names.probe_seats(&keys.stream)),
            once: keeps.then(|| (self.names.probe_idempotency(&keys.stream), "probe")),
            online: keeps.then_some(&[]),
            keys,
            tag: Tag::User,
            event: &event,
            mode: if keeps { Mode::Probe } else { Mode::Transient },
            life: None,
        }))
    }

    fn send(&self, sent: Sent<'_>) -> Call {
        let mode = match sent.mode {
            Mode::Kept => "kept",
            Mode::Transient => "transient",
            Mode::Probe => "probe",
        };
        let (request, fingerprint) = sent.once.unzip();
        // A cluster wants every key to be one of the slot, also those that are not used.
        let stream = || sent.keys.stream.clone();
        let (request, seats) = (request.unwrap_or_else(stream), sent.seats.unwrap_or_else(stream));
        let mut arguments = vec![
            sent.channel.into(),
            text(&sent.event.head),
            Value::Bytes(sent.event.members.clone()),
            sent.tag.to_string().into(),
            mode.into(),
            sent.life.map(millis).unwrap_or_default().into(),
            self.bounds.events.to_string().into(),
            self.bounds.bytes.to_string().into(),
            millis(self.bounds.ttl).into(),
            millis(self.bounds.meta_ttl).into(),
            text(fingerprint.unwrap_or_default()),
            millis(IDEMPOTENCY_TTL).into(),
            if sent.online.is_some() { "1" } else { "0" }.into(),
        ];
        arguments.extend(sent.online.unwrap_or_default().iter().map(|name| text(name)));
        let Keys { stream, last, epoch } = sent.keys;
        Call { keys: vec![stream, last, request, seats, epoch], arguments, whole: false }
    }

    /// Reads what a channel keeps.
    pub(super) fn read(&self, ask: &Ask) -> Call {
        let Keys { stream, last, epoch } = self.names.keys(&ask.channel);
        // Nothing comes after the last place there is, and Redis calls the question an error.
        let after = ask.after.filter(|after| *after < Position::new(u64::MAX, u64::MAX));
        let arguments = vec![
            after.map(|after| after.to_string()).unwrap_or_default().into(),
            // One more shows whether there is more.
            ask.most.saturating_add(1).min(1 << 30).to_string().into(),
            millis(self.bounds.meta_ttl).into(),
        ];
        Call { keys: vec![stream, last, epoch], arguments, whole: false }
    }

    /// Looks where channels stand, all of one server. `None`: there are none.
    pub(super) fn glance<'a>(&self, channels: impl Iterator<Item = &'a Channel>) -> Option<Call> {
        let mut keys = Vec::with_capacity(1 + 2 * channels.size_hint().0);
        for channel in channels {
            let Keys { stream, last, epoch } = self.names.keys(channel);
            if keys.is_empty() {
                keys.push(epoch);
            }
            keys.extend([stream, last]);
        }
        let arguments = vec![millis(self.bounds.meta_ttl).into()];
        (!keys.is_empty()).then_some(Call { keys, arguments, whole: false })
    }

    /// How long what is remembered of channels lives, as an argument.
    pub(super) fn meta_ttl(&self) -> Value {
        millis(self.bounds.meta_ttl).into()
    }

    /// Puts an event back.
    pub(super) fn restore(&self, entry: &Entry, force: bool) -> Call {
        let Keys { stream, last, epoch } = self.names.keys(&entry.channel);
        let arguments = vec![
            self.names.channel(&Destination::Events(entry.channel.clone())).into(),
            entry.at.to_string().into(),
            entry.prev.to_string().into(),
            Value::Bytes(entry.message.clone().unwrap_or_default()),
            self.bounds.events.to_string().into(),
            millis(self.bounds.ttl).into(),
            millis(self.bounds.meta_ttl).into(),
            if force { "1" } else { "0" }.into(),
        ];
        Call { keys: vec![stream, last, epoch], arguments, whole: false }
    }
}

fn text(text: &str) -> Value {
    Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

/// At least 1: Redis takes no other expiry. A number in Lua is exact up to the highest.
pub(super) fn millis(time: Duration) -> String {
    time.as_millis().clamp(1, 1 << 52).to_string()
}

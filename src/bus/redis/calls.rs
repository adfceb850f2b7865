//! What the scripts are called with.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fred::types::Value;

use super::{
    names::{Keys, Names},
    recent::Entry,
    scripts::Call,
};
use crate::{
    bus::{Ask, Destination, Keep, Message, Post},
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
const KEPT: &str = "kept";
const TRANSIENT: &str = "transient";
const PROBE: &str = "probe";

/// Room for the names of one event's keys.
const NAMES: usize = 192;

/// One event's part of a call.
struct Part {
    /// Stream, last id, request and seats.
    keys: [Value; 4],
    /// `None`: called like the stream.
    channel: Option<Value>,
    head: Bytes,
    members: Bytes,
    tag: Value,
    mode: &'static str,
    life: Option<Duration>,
    fingerprint: Value,
    asks: bool,
}

/// Puts words together in one piece of memory, of which each is a view.
struct Words(BytesMut);

impl Words {
    fn word(&mut self, pieces: &[&str]) -> Value {
        for piece in pieces {
            self.0.extend_from_slice(piece.as_bytes());
        }
        Value::Bytes(self.0.split().freeze())
    }
}

impl Calls {
    pub(super) fn keeps(&self) -> bool {
        self.bounds.events > 0
    }

    /// Keeps and publishes events: all with one call, which on a cluster must be of one slot. The
    /// answers stand in their order ([`Said`](super::said::Said)).
    pub(super) fn publish(&self, posts: &[&Post]) -> Call {
        let mut words = Words(BytesMut::with_capacity(NAMES * posts.len()));
        // The newest list of replicas is the best, for all of them.
        let live = posts.iter().rev().find_map(|post| post.online.as_deref());
        let mut call = None;
        for post in posts {
            let stream = self.names.stream(&post.to);
            let call = call.get_or_insert_with(|| {
                self.begin(self.names.epoch(&stream), live.unwrap_or_default(), posts.len())
            });
            add(call, self.part(&mut words, &stream, post));
        }
        call.unwrap_or_default()
    }

    fn part(&self, words: &mut Words, stream: &str, post: &Post) -> Part {
        let (mode, life) = match post.keep {
            Keep::Kept if self.keeps() => (KEPT, None),
            Keep::For(life) if self.keeps() => (KEPT, Some(life)),
            _ => (TRANSIENT, None),
        };
        let user = match &post.to {
            Channel::User(user) => Some(user.as_str()),
            Channel::Group(_) | Channel::Broadcast => None,
        };
        let own = words.word(&[stream]);
        let mut beside = |kind, name| words.word(&self.names.pieces(stream, kind, name));
        let last = beside("last", None);
        // A cluster wants every key to be one of the slot, also those that are not used.
        let once = post.once.as_ref();
        let request =
            once.map_or_else(|| own.clone(), |once| beside("idempotency", Some(&once.key)));
        let seats = user.map_or_else(|| own.clone(), |user| beside("seats", Some(user)));
        let tag = match Tag::of(&post.to) {
            Tag::User => Value::from_static_str("u"),
            Tag::Broadcast => Value::from_static_str("b"),
            tag @ Tag::Group(_) => words.word(&[&tag.to_string()]),
        };
        Part {
            keys: [own, last, request, seats],
            channel: None,
            head: post.event.head.clone(),
            members: post.event.members.clone(),
            tag,
            mode,
            life,
            fingerprint: once.map_or_else(nothing, |once| words.word(&[&once.fingerprint])),
            asks: user.is_some() && post.online.is_some(),
        }
    }

    /// Proves that events of this kind of channel can be kept and published, and leaves nothing
    /// behind but the message. `None`: the payload has no head.
    pub(super) fn probe(&self, message: &Message) -> Option<Call> {
        let end = message.payload.windows(2).position(|pair| pair == b"},")?;
        let Keys { stream, last, epoch } = self.names.probe_keys(&message.to);
        let keeps = self.keeps();
        let (request, seats) = if keeps {
            (self.names.probe_idempotency(&stream), self.names.probe_seats(&stream))
        } else {
            (stream.clone(), stream.clone())
        };
        let mut call = self.begin(epoch, &[], 1);
        add(
            &mut call,
            Part {
                keys: [stream.into(), last.into(), request.into(), seats.into()],
                channel: Some(self.names.channel(&message.to).into()),
                head: message.payload.slice(..end),
                members: message.payload.slice(end + 2..),
                tag: Value::from_static_str("u"),
                mode: if keeps { PROBE } else { TRANSIENT },
                life: None,
                fingerprint: if keeps { Value::from_static_str(PROBE) } else { nothing() },
                asks: keeps,
            },
        );
        Some(call)
    }

    /// A call for so many events, with what is the same for all of them.
    fn begin(&self, epoch: String, live: &[String], events: usize) -> Call {
        let mut keys = Vec::with_capacity(1 + 4 * events);
        keys.push(epoch.into());
        let mut arguments = Vec::with_capacity(6 + live.len() + 8 * events);
        arguments.extend([
            self.bounds.events.to_string().into(),
            self.bounds.bytes.to_string().into(),
            millis(self.bounds.ttl).into(),
            millis(self.bounds.meta_ttl).into(),
            millis(IDEMPOTENCY_TTL).into(),
            live.len().to_string().into(),
        ]);
        arguments.extend(live.iter().map(|name| text(name)));
        Call { keys, arguments, whole: false }
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
        Call { keys: vec![stream.into(), last.into(), epoch.into()], arguments, whole: false }
    }

    /// Looks where channels stand, all of one server. `None`: there are none.
    pub(super) fn glance<'a>(&self, channels: impl Iterator<Item = &'a Channel>) -> Option<Call> {
        let mut keys = Vec::with_capacity(1 + 2 * channels.size_hint().0);
        for channel in channels {
            let Keys { stream, last, epoch } = self.names.keys(channel);
            if keys.is_empty() {
                keys.push(epoch.into());
            }
            keys.extend([stream.into(), last.into()]);
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
            Value::Bytes(entry.message().unwrap_or_default()),
            self.bounds.events.to_string().into(),
            millis(self.bounds.ttl).into(),
            millis(self.bounds.meta_ttl).into(),
            if force { "1" } else { "0" }.into(),
        ];
        Call { keys: vec![stream.into(), last.into(), epoch.into()], arguments, whole: false }
    }
}

fn add(call: &mut Call, part: Part) {
    call.keys.extend(part.keys);
    call.arguments.extend([
        part.channel.unwrap_or_else(nothing),
        Value::Bytes(part.head),
        Value::Bytes(part.members),
        part.tag,
        Value::from_static_str(part.mode),
        part.life.map_or_else(nothing, |life| millis(life).into()),
        part.fingerprint,
        Value::from_static_str(if part.asks { "1" } else { "0" }),
    ]);
}

fn nothing() -> Value {
    Value::Bytes(Bytes::new())
}

fn text(text: &str) -> Value {
    Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

/// At least 1: Redis takes no other expiry. A number in Lua is exact up to the highest.
pub(super) fn millis(time: Duration) -> String {
    time.as_millis().clamp(1, 1 << 52).to_string()
}

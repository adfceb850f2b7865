//! [`Publisher`] on Redis: `publish.lua` for what is kept, `PUBLISH` for the rest, both pipelined.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use fred::{interfaces::PubsubInterface, types::Value};
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    commands::{Commands, Turn, pipelined},
    names::{Keys, Names},
    scripts::{Call, Scripts},
};
use crate::{
    bus::{
        BusError, Destination, Keep, Message, Post, Posted, Publisher, Receipt, envelope::Parts,
    },
    event::{Channel, Tag},
    history::Bounds,
    store::IDEMPOTENCY_TTL,
};

/// Puts messages on Redis. See [`commands`](super::commands) for what happens while it is away.
#[derive(Clone, Debug)]
pub struct RedisPublisher {
    pub(super) commands: Arc<Commands>,
    pub(super) names: Arc<Names>,
    pub(super) scripts: Arc<Scripts>,
    /// What is kept of a channel.
    pub(super) bounds: Bounds,
}

/// A place under way stands for so many bytes, so that `redis.inflight` bounds memory as well.
const PLACE_BYTES: usize = 4 * 1024;

/// The places that messages of these lengths take.
fn weight(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.map(|bytes| 1 + bytes / PLACE_BYTES).sum()
}

impl RedisPublisher {
    async fn send(&self, turn: &Turn<'_>, messages: Vec<Message>) -> Result<(), BusError> {
        let publish = |Message { to, payload }| {
            let channel = self.names.channel(&to);
            turn.run(|client| async move { client.publish::<i64, _, _>(channel, payload).await })
        };
        let answers = pipelined(messages.into_iter().map(publish)).await;
        answers.into_iter().map(|answer| answer.map(drop)).collect()
    }

    async fn post_all(&self, posts: Vec<Post>) -> Vec<Result<Posted, BusError>> {
        let length = |post: &Post| post.event.head.len() + post.event.members.len();
        let turn = match self.commands.turn(weight(posts.iter().map(length))).await {
            Ok(turn) => turn,
            Err(error) => return posts.iter().map(|_| Err(error.clone())).collect(),
        };
        let calls: Vec<Call> = posts
            .iter()
            .zip(first_of_several(&posts))
            .map(|(post, whole)| Call { whole, ..self.call(post) })
            .collect();
        let answers = self.scripts.publish.run::<Vec<String>>(&turn, &calls).await;
        posts.iter().zip(answers).map(|(post, answer)| read(&Tag::of(&post.to), answer?)).collect()
    }

    fn call(&self, post: &Post) -> Call {
        let keeps = self.bounds.events > 0;
        let (mode, life) = match post.keep {
            Keep::Kept if keeps => (Mode::Kept, None),
            Keep::For(life) if keeps => (Mode::Kept, Some(life)),
            _ => (Mode::Transient, None),
        };
        let keys = self.names.keys(&post.to);
        let request = post.once.as_ref();
        let idempotency = match request {
            Some(once) => self.names.idempotency(&keys.stream, &once.key),
            None => keys.stream.clone(),
        };
        let seats = match &post.to {
            Channel::User(user) => self.names.seats(user),
            _ => keys.stream.clone(),
        };
        let channel = self.names.channel(&Destination::Events(post.to.clone()));
        let online = post.online.as_ref().filter(|_| matches!(post.to, Channel::User(_)));
        let mut arguments = self.arguments(&channel, &post.event, &Tag::of(&post.to), mode, life);
        arguments.push(text(request.map_or("", |once| &once.fingerprint)));
        arguments.push(millis(IDEMPOTENCY_TTL).into());
        arguments.push(text(if online.is_some() { "1" } else { "0" }));
        arguments.extend(online.iter().flat_map(|live| live.iter()).map(|name| text(name)));
        Call { keys: listed(keys, idempotency, seats), arguments, whole: false }
    }

    /// What stands before the request.
    fn arguments(
        &self,
        channel: &str,
        event: &Parts,
        tag: &Tag,
        mode: Mode,
        life: Option<Duration>,
    ) -> Vec<Value> {
        vec![
            text(channel),
            text(&event.head),
            Value::Bytes(event.members.clone()),
            text(&tag.to_string()),
            text(mode.label()),
            text(&life.map(millis).unwrap_or_default()),
            self.bounds.events.to_string().into(),
            self.bounds.bytes.to_string().into(),
            millis(self.bounds.ttl).into(),
            millis(self.bounds.meta_ttl).into(),
        ]
    }
}

/// What the script does with an event.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Kept,
    Transient,
}

impl Mode {
    fn label(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Transient => "transient",
        }
    }
}

/// In the order in which the script takes them.
fn listed(keys: Keys, idempotency: String, seats: String) -> Vec<String> {
    vec![keys.stream, keys.last, idempotency, seats, keys.epoch]
}

fn text(text: &str) -> Value {
    Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

pub(super) fn millis(time: Duration) -> String {
    // Redis takes no more, nor 0 as an expiry; and a number in Lua is exact up to here.
    time.as_millis().clamp(1, 1 << 52).to_string()
}

/// Which posts are the first of several to one channel. With the text of the script they cannot be
/// refused for want of it while one behind them is not, so the channel's order holds.
fn first_of_several(posts: &[Post]) -> Vec<bool> {
    let mut later = HashSet::new();
    let mut first: Vec<bool> = Vec::with_capacity(posts.len());
    for post in posts.iter().rev() {
        first.push(!later.insert(&post.to));
    }
    first.reverse();
    first
}

/// Reads the script's answer.
fn read(tag: &Tag, answer: Vec<String>) -> Result<Posted, BusError> {
    let mut answer = answer.into_iter();
    let mut next = || answer.next().unwrap_or_default();
    match next().as_str() {
        "new" => {
            let (id, _prev, online) = (next(), next(), next());
            Ok(Posted::Done(Receipt {
                id: (!id.is_empty()).then(|| format!("{tag}~{id}")),
                online: (!online.is_empty()).then(|| online == "1"),
                again: false,
            }))
        }
        "again" => Ok(Posted::Done(Receipt::remembered(&next()))),
        "conflict" => Ok(Posted::Conflict),
        other => Err(BusError::Away(format!("a script answered {other:?}"))),
    }
}

impl Publisher for RedisPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let lengths = messages.iter().map(|message| message.payload.len());
            let turn = self.commands.turn(weight(lengths)).await?;
            self.send(&turn, messages).await
        }
        .boxed()
    }

    fn post(&self, posts: Vec<Post>) -> BoxFuture<'_, Vec<Result<Posted, BusError>>> {
        self.post_all(posts).boxed()
    }

    fn probe(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let turn = self.commands.any_turn(2).await?;
            // Both are on their way before either is answered.
            let published = self.send(&turn, vec![message]).boxed();
            let answers = pipelined([turn.check().boxed(), published].into_iter()).await;
            answers.into_iter().collect()
        }
        .boxed()
    }

    fn is_up(&self) -> bool {
        self.commands.is_up()
    }
}

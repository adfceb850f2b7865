//! [`Publisher`] on Redis: `publish.lua` for events, `PUBLISH` for words between replicas, both
//! pipelined.

use std::{collections::HashSet, sync::Arc};

use fred::interfaces::PubsubInterface;
use futures_util::future::{BoxFuture, FutureExt};

use super::{
    calls::Calls,
    commands::{Commands, Turn},
    foreign::is_foreign,
    glance::Glances,
    pipeline::pipelined,
    recent::{Entry, Recent},
    scripts::{Call, Scripts},
    setup::Server,
};
use crate::{
    bus::{BusError, Message, Post, Posted, Publisher, Receipt},
    event::Tag,
};

/// Puts messages on Redis. See [`commands`](super::commands) for what happens while it is away.
#[derive(Clone, Debug)]
pub struct RedisPublisher {
    pub(super) commands: Arc<Commands>,
    pub(super) calls: Arc<Calls>,
    pub(super) scripts: Arc<Scripts>,
    /// What was acknowledged lately.
    pub(super) recent: Arc<Recent>,
    /// What is known of the server.
    pub(super) server: Arc<Server>,
    /// Where handshakes ask where their channels stand.
    pub(super) glances: Glances,
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
            let channel = self.calls.names.channel(&to);
            turn.run(|client| async move { client.publish::<i64, _, _>(channel, payload).await })
        };
        let mut answers = pipelined(messages.into_iter().map(publish)).await.into_iter();
        answers.try_for_each(|answer| answer.map(drop))
    }

    async fn post_all(&self, posts: Vec<Post>) -> Vec<Result<Posted, BusError>> {
        let length = |post: &Post| post.event.head.len() + post.event.members.len();
        let turn = match self.commands.turn(weight(posts.iter().map(length))).await {
            Ok(turn) => turn,
            Err(error) => return posts.iter().map(|_| Err(error.clone())).collect(),
        };
        let first = first_of_several(&posts);
        let call = |(post, whole)| Call { whole, ..self.calls.publish(post) };
        let calls: Vec<Call> = posts.iter().zip(first).map(call).collect();
        let answers = self.scripts.publish.run(&turn, &calls).await;
        let read = |(post, answer): (&Post, Result<_, _>)| match answer {
            Ok(answer) => self.read(post, answer),
            Err(error) => {
                if let BusError::Refused(reason) = &error
                    && is_foreign(reason)
                {
                    self.server.complaints.unpublished(&self.calls.names, &post.to, reason);
                }
                Err(error)
            }
        };
        posts.iter().zip(answers).map(read).collect()
    }

    /// Reads the script's answer.
    fn read(&self, post: &Post, answer: Vec<String>) -> Result<Posted, BusError> {
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or_default();
        match next().as_str() {
            "new" => {
                let (at, prev, online, until) = (next(), next(), next(), next());
                let tag = Tag::of(&post.to);
                let at = at.parse().ok();
                if let (Some(at), Ok(prev)) = (at, prev.parse()) {
                    let message = post.event.kept(&tag, at, prev, until.parse().ok());
                    let channel = post.to.clone();
                    self.recent.add(Entry { channel, at, prev, message: Some(message) });
                }
                let online = (!online.is_empty()).then(|| online == "1");
                Ok(Posted::Done(Receipt::new(&tag, at, online)))
            }
            "again" => Ok(Posted::Done(Receipt::remembered(&next()))),
            "conflict" => Ok(Posted::Conflict),
            other => Err(BusError::Away(format!("a script answered {other:?}"))),
        }
    }

    /// Says which rights it takes, if that is what is wrong.
    pub(super) fn explain(&self, error: BusError) -> BusError {
        match error {
            BusError::Refused(reason) if is_about_rights(&reason) => {
                let rights = self.calls.names.acl_hint();
                BusError::Refused(format!("{reason}; it takes these rights: {rights}"))
            }
            other => other,
        }
    }

    async fn prove(&self, message: Message) -> Result<(), BusError> {
        let Some(call) = self.calls.probe(&message) else {
            return Err(BusError::Refused("a probe without a head".to_owned()));
        };
        let turn = self.commands.any_turn(1).await?;
        let mut answers = self.scripts.publish.run::<Vec<String>>(&turn, &[call]).await;
        match answers.pop() {
            Some(Ok(answer)) if answer.first().is_some_and(|word| word == "new") => {
                // Not on a connection that is still being set up: what it has to put back would be
                // forgotten after a long outage.
                if self.commands.is_up() {
                    self.recent.tidy();
                    self.server.pulse.beat(&turn, &self.calls).await?;
                }
                Ok(())
            }
            Some(Err(error)) => Err(self.explain(error)),
            answer => Err(BusError::Away(format!("a probe was answered {answer:?}"))),
        }
    }
}

/// Redis 7 has no code for it inside of a script.
fn is_about_rights(reason: &str) -> bool {
    reason.starts_with("NOPERM") || reason.contains("user executing the script")
}

/// Which posts are the first of several to one channel. With the text of the script they cannot be
/// refused for want of it while one behind them is not, so the channel's order holds.
fn first_of_several(posts: &[Post]) -> Vec<bool> {
    let mut seen = HashSet::new();
    let several: HashSet<_> =
        posts.iter().map(|post| &post.to).filter(|to| !seen.insert(*to)).collect();
    let mut begun = HashSet::new();
    posts.iter().map(|post| several.contains(&post.to) && begun.insert(&post.to)).collect()
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
        self.prove(message).boxed()
    }

    fn is_up(&self) -> bool {
        self.commands.is_up()
    }

    fn warning(&self) -> Option<String> {
        self.server.warning()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        bus::{Keep, envelope::Parts},
        event::{Channel, UserId},
    };

    #[test]
    fn the_first_of_several_is_marked_and_no_other() {
        let post = |name: &str| Post {
            to: Channel::User(UserId::new(name).unwrap()),
            event: Parts { head: String::new(), members: Bytes::new() },
            keep: Keep::Kept,
            once: None,
            online: None,
        };
        let marks = |names: &[&str]| {
            first_of_several(&names.iter().map(|name| post(name)).collect::<Vec<_>>())
        };
        assert_eq!(marks(&["a", "b", "a", "c", "a"]), [true, false, false, false, false]);
        assert_eq!(marks(&["b", "a", "a", "b"]), [true, true, false, false]);
    }
}

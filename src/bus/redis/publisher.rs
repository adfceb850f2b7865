//! [`Publisher`] on Redis: `PUBLISH`, pipelined.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use fred::interfaces::PubsubInterface;
use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};

use super::{
    commands::{Commands, Turn},
    names::Names,
};
use crate::{
    bus::{BusError, Message, Post, Posted, Publisher},
    history::Bounds,
};

/// Puts messages on Redis. See [`commands`](super::commands) for what happens while it is away.
#[derive(Clone, Debug)]
pub struct RedisPublisher {
    pub(super) commands: Arc<Commands>,
    pub(super) names: Arc<Names>,
    /// What is kept of a channel.
    pub(super) bounds: Bounds,
}

impl RedisPublisher {
    /// Sends all, and waits for all answers: dropping a command would not unsend it.
    async fn send(&self, turn: &Turn<'_>, messages: Vec<Message>) -> Result<(), BusError> {
        let mut answers = FuturesUnordered::new();
        let mut result = Ok(());
        for Message { to, payload } in messages {
            let channel = self.names.channel(&to);
            let mut publish =
                Box::pin(turn.run(|client| async move {
                    client.publish::<i64, _, _>(channel, payload).await
                }));
            // The first poll hands the command to the connection, so polling each once, here,
            // keeps the order of the messages.
            match poll_fn(|cx| Poll::Ready(publish.as_mut().poll(cx))).await {
                Poll::Ready(answer) => result = result.and(answer.map(drop)),
                Poll::Pending => answers.push(publish),
            }
        }
        while let Some(answer) = answers.next().await {
            result = result.and(answer.map(drop));
        }
        result
    }
}

/// A place under way stands for so many bytes, so that `redis.inflight` bounds memory as well.
const PLACE_BYTES: usize = 4 * 1024;

/// The places that these messages take.
fn weight(messages: &[Message]) -> usize {
    messages.iter().map(|message| 1 + message.payload.len() / PLACE_BYTES).sum()
}

impl Publisher for RedisPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let turn = self.commands.turn(weight(&messages)).await?;
            self.send(&turn, messages).await
        }
        .boxed()
    }

    fn post(&self, posts: Vec<Post>) -> BoxFuture<'_, Vec<Result<Posted, BusError>>> {
        let refused = || Err(BusError::Refused("not built".to_owned()));
        std::future::ready(posts.iter().map(|_| refused()).collect()).boxed()
    }

    fn probe(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let turn = self.commands.any_turn(2).await?;
            // Both are on their way before either is answered.
            let mut check: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(turn.check());
            let checked = poll_fn(|cx| Poll::Ready(check.as_mut().poll(cx))).await;
            let published = self.send(&turn, vec![message]).await;
            let checked = match checked {
                Poll::Ready(checked) => checked,
                Poll::Pending => check.await,
            };
            checked.and(published)
        }
        .boxed()
    }

    fn is_up(&self) -> bool {
        self.commands.is_up()
    }
}

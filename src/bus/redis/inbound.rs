//! [`Inbound`] on Redis: a stream of bounded length.

use std::sync::Arc;

use bytes::Bytes;
use fred::interfaces::LuaInterface;
use futures_util::future::{BoxFuture, FutureExt};

use super::{Redis, commands::Commands};
use crate::bus::{
    BusError,
    inbound::{Inbound, Said},
};

/// One script for a batch, so that it is written whole and in order, or not at all.
const APPEND: &str = "for n = 2, #ARGV, 3 do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*',
    'user', ARGV[n], 'connection', ARGV[n + 1], 'message', ARGV[n + 2])
end";

/// A batch takes a place for so many of its bytes, as publishes do.
const PLACE_BYTES: usize = 4 * 1024;

/// The stream `inbound`.
#[derive(Debug)]
pub struct RedisInbound {
    commands: Arc<Commands>,
    key: String,
    max_messages: usize,
}

impl Redis {
    /// The stream under this prefix that holds so many messages.
    #[must_use]
    pub fn inbound(&self, prefix: &str, max_messages: usize) -> RedisInbound {
        let commands = Arc::clone(&self.commands);
        RedisInbound { commands, key: format!("{prefix}inbound"), max_messages }
    }
}

impl Inbound for RedisInbound {
    fn append<'a>(&'a self, said: &'a [Said]) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let mut arguments = vec![Bytes::from(self.max_messages.to_string())];
            let mut bytes = 0;
            for Said { user, connection, message } in said {
                bytes += message.len();
                arguments.push(Bytes::copy_from_slice(user.as_str().as_bytes()));
                arguments.push(connection.to_string().into());
                arguments.push(message.clone());
            }
            let turn = self.commands.turn(1 + bytes / PLACE_BYTES).await?;
            let key = self.key.clone();
            turn.run(|client| async move { client.eval(APPEND, key, arguments).await }).await
        }
        .boxed()
    }
}

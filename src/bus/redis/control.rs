//! [`Control`] on Redis: a stream and a channel of the same name.

use bytes::Bytes;
use fred::interfaces::LuaInterface;
use futures_util::future::{BoxFuture, FutureExt};

use super::RedisPublisher;
use crate::bus::{
    BusError, Destination,
    control::{Control, PAGE},
    envelope,
    orders::OrderId,
};

/// Kept first and published last, so that a full server refuses before anyone has heard it.
const GIVE: &str =
    "local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', '10000', '*', 'order', ARGV[1])
redis.call('EXPIRE', KEYS[1], 3600)
redis.call('PUBLISH', KEYS[1], ARGV[2] .. id .. ARGV[3] .. ARGV[1] .. ARGV[4])
return id";

/// Ids and orders in turn.
const KEPT: &str = "local read = redis.call('XREAD', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], ARGV[1])
local flat = {}
if read then
  for _, entry in ipairs(read[1][2]) do
    flat[#flat + 1] = entry[1]
    flat[#flat + 1] = entry[2][2]
  end
end
return flat";

impl RedisPublisher {
    async fn on_control<T: fred::types::FromValue>(
        &self,
        script: &'static str,
        arguments: Vec<String>,
    ) -> Result<T, BusError> {
        let key = self.names.channel(&Destination::Control);
        let turn = self.commands.turn(1).await?;
        turn.run(|client| async move { client.eval(script, key, arguments).await }).await
    }
}

impl Control for RedisPublisher {
    fn give(&self, order: String) -> BoxFuture<'_, Result<(), BusError>> {
        async move {
            let [before, between, after] = envelope::ORDER.map(str::to_owned);
            self.on_control::<String>(GIVE, vec![order, before, between, after]).await.map(drop)
        }
        .boxed()
    }

    fn kept(&self, after: OrderId) -> BoxFuture<'_, Result<Vec<(OrderId, Bytes)>, BusError>> {
        async move {
            let arguments = vec![after.to_string(), PAGE.to_string()];
            let flat: Vec<Option<String>> = self.on_control(KEPT, arguments).await?;
            let mut pairs = flat.into_iter();
            let mut orders = Vec::new();
            while let (Some(id), Some(order)) = (pairs.next(), pairs.next()) {
                if let Some(id) = id.as_deref().and_then(OrderId::parse) {
                    let order = order.unwrap_or_default();
                    orders.push((id, envelope::encode_order(Some(id), &order)));
                }
            }
            Ok(orders)
        }
        .boxed()
    }
}

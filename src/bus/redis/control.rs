//! [`Control`] on Redis: a stream and a channel of the same name.

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::{RedisPublisher, scripts::eval};
use crate::bus::{
    BusError, Destination,
    control::{Control, Kept, PAGE},
    envelope,
    orders::OrderId,
};

/// Kept first and published last, so that a full server refuses before anyone has heard it.
const GIVE: &str =
    "local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', '10000', '*', 'order', ARGV[1])
redis.call('EXPIRE', KEYS[1], 3600)
redis.call('PUBLISH', KEYS[1], ARGV[2] .. id .. ARGV[3] .. ARGV[1] .. ARGV[4])
return id";

/// Whether there is a hole, then ids and orders in turn.
///
/// There is one if the last place is gone while later ones are kept, or none is. Only where it is
/// over an hour old and the stream was never full may it have gone by itself, with the whole stream
/// and with no order after it.
const KEPT: &str = "local hole = '0'
if ARGV[1] ~= '0-0' and #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  local last = tonumber(string.match(ARGV[1], '^%d+'))
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local clock = redis.call('TIME')
  local next = first and tonumber(string.match(first[1], '^%d+'))
    or clock[1] * 1000 + math.floor(clock[2] / 1000)
  local full = redis.call('XLEN', KEYS[1]) >= 10000
  if next >= last and (full or next - last < 3600000) then hole = '1' end
end
local read = redis.call('XREAD', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], ARGV[1])
local flat = {hole}
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
        let key = self.calls.names.channel(&Destination::Control);
        let turn = self.commands.turn(1).await?;
        let arguments = arguments.into_iter().map(Into::into).collect();
        turn.run(|client| eval(client, script, vec![key], arguments)).await
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

    fn kept(&self, after: OrderId) -> BoxFuture<'_, Result<Kept, BusError>> {
        async move {
            let arguments = vec![after.to_string(), PAGE.to_string()];
            // Bytes: anyone who may write to the stream may put anything there.
            let flat: Vec<Bytes> = self.on_control(KEPT, arguments).await?;
            let mut flat = flat.into_iter();
            let hole = flat.next().is_some_and(|hole| hole == "1");
            let mut orders = Vec::new();
            while let (Some(id), Some(order)) = (flat.next(), flat.next()) {
                let Some(id) = std::str::from_utf8(&id).ok().and_then(OrderId::parse) else {
                    continue;
                };
                // What is no text is no message either, and is counted where it is read.
                let order = match std::str::from_utf8(&order) {
                    Ok(text) => envelope::encode_order(Some(id), text),
                    Err(_) => order,
                };
                orders.push((id, order));
            }
            Ok(Kept { orders, hole })
        }
        .boxed()
    }
}

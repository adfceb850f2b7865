//! Tickets on Redis: a key each, written with its end and taken with `GETDEL`.

use fred::{
    interfaces::KeysInterface,
    types::{Expiration, Value},
};
use futures_util::future::{BoxFuture, FutureExt};

use super::{RedisStore, millis};
use crate::{
    bus::BusError,
    store::tickets::{TICKET_TTL, Tickets},
};

impl Tickets for RedisStore {
    fn put_ticket<'a>(
        &'a self,
        name: &'a str,
        value: String,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let key = format!("{}{name}", self.tickets);
            let ttl = Expiration::PX(millis(TICKET_TTL));
            let turn = self.commands.turn(1).await?;
            turn.run(|client| async move {
                client.set::<Value, _, _>(key, value, Some(ttl), None, false).await
            })
            .await
            .map(drop)
        }
        .boxed()
    }

    fn take_ticket<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        async move {
            let key = format!("{}{name}", self.tickets);
            let turn = self.commands.turn(1).await?;
            turn.run(|client| async move { client.getdel(key).await }).await
        }
        .boxed()
    }
}

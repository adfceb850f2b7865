//! [`History`] on Redis.

use futures_util::future::{BoxFuture, FutureExt};

use super::RedisPublisher;
use crate::{
    bus::{Ask, BusError, History},
    event::UserId,
    history::Reading,
};

impl History for RedisPublisher {
    fn keeps(&self) -> bool {
        self.bounds.events > 0
    }

    fn read(&self, _asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>> {
        std::future::ready(Err(BusError::Refused("not built".to_owned()))).boxed()
    }

    fn erase<'a>(&'a self, _user: &'a UserId) -> BoxFuture<'a, Result<(), BusError>> {
        std::future::ready(Err(BusError::Refused("not built".to_owned()))).boxed()
    }
}

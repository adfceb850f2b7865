//! Room for each user over all replicas, and what was revoked.

use crate::event::{ConnectionId, Principal};

/// The seats. Shared by all workers.
#[derive(Debug, Default)]
pub struct Seats {}

/// One connection's place among its user's; dropping it gives it back.
#[derive(Debug)]
pub struct Seat {}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSeat {
    /// The user has too many connections, and the newest is the one to go.
    TooMany,
    /// The session or the user's credentials were revoked.
    Revoked,
    /// It cannot be known: the store is away.
    Away,
}

impl Seats {
    /// Takes a seat for a connection of this id. `None`: seats are not counted.
    ///
    /// # Errors
    /// See [`NoSeat`].
    pub async fn take(
        &self,
        _id: ConnectionId,
        _principal: &Principal,
    ) -> Result<Option<Seat>, NoSeat> {
        Ok(None)
    }
}

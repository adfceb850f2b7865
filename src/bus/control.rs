//! Orders on the control channel: given to all replicas at once, and kept for an hour for those
//! that did not hear them.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BusError, orders::OrderId};

/// What is kept after a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The oldest [`PAGE`] orders, as messages; anything may be in them.
    pub orders: Vec<(OrderId, Bytes)>,
    /// Orders between that place and the first of these are not kept any more.
    pub hole: bool,
}

/// So many orders are read at once in a repair.
pub const PAGE: usize = 256;

/// The road of orders. Every method resolves within the command timeout.
pub trait Control: Send + Sync {
    /// Keeps an order and publishes it with its place; `order` is what stands under `order` in the
    /// head of the message (see [`envelope::encode_order`](super::envelope::encode_order)).
    ///
    /// # Errors
    /// [`BusError::Away`]: whether replicas hear it cannot be known.
    fn give(&self, order: String) -> BoxFuture<'_, Result<(), BusError>>;

    /// What is kept after this place.
    fn kept(&self, after: OrderId) -> BoxFuture<'_, Result<Kept, BusError>>;
}

//! Belfry, a notification gateway: back ends POST an event, every browser tab of the user it is
//! for has it a moment later.
//!
//! The road of one event, in the order in which a stranger reads it:
//! 1. [`http::events`] takes it from a back end and checks it;
//! 2. [`bus`] keeps it and carries it to every replica, this one included;
//! 3. [`bus::subscriber`] receives it, encodes it once, and hands it on if it follows the one before;
//! 4. [`registry`] finds the connections it is for, one shard per worker;
//! 5. [`outbox`] queues it for a connection, and [`connection::websocket`] or [`connection::sse`]
//!    writes it.
//!
//! What was missed comes out of the [`history`]: a replica fills its gaps with it, and a connection
//! that comes back replays it.
//!
//! Arrows run one way: `main → cli → app → http → {auth, connection, gate, seats} → bus, store →
//! registry → history, outbox → frame, telemetry → event, config`.

pub mod app;
pub mod auth;
pub mod bus;
pub mod cli;
pub mod config;
pub mod connection;
pub mod event;
pub mod frame;
pub mod gate;
pub mod history;
pub mod http;
pub mod lifecycle;
pub mod net;
pub mod outbox;
pub mod rate;
pub mod registry;
pub mod rotation;
pub mod seats;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod throttle;
pub mod timer;
pub mod tls;

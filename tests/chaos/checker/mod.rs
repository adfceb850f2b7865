//! The delivery checker. It shares no code with Belfry and knows only what the contract says: real
//! replicas, a real Redis, clients that follow cursors, publishers that retry until they have a
//! 202, and faults in between. In the end every client must have got exactly the events that were
//! accepted, in order, none twice; what it did not get must have been announced.
//!
//! [`run`] conducts; [`trace`] is what one client saw; [`ledger`] compares.

pub mod breach;
pub mod cast;
pub mod dice;
pub mod faults;
pub mod follower;
pub mod ledger;
pub mod line;
pub mod position;
pub mod publisher;
pub mod report;
pub mod run;
pub mod stage;
pub mod trace;
pub mod world;

//! Belfry seen from outside: real processes, a real Redis, clients that share no code with it.
//!
//! Every file holds one section of promises. A test takes its own free ports and its own folder,
//! waits for conditions and never sleeps for luck, so all of them run in any order and at once.

// Helpers of tests, which fail by panicking; the lints that spare `#[test]` functions do not see
// that. The queues of test clients hold what a test publishes, which is bounded by the test.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::string_slice,
    reason = "a test that fails by panicking fails well"
)]

#[path = "../chaos/checker/mod.rs"]
mod checker;
mod support;

mod addressing;
mod arrows;
mod auth;
mod backchannel;
mod batch;
mod bench;
mod broker;
mod chaos;
mod cli;
mod cloudevents;
mod credentials;
mod delivery;
mod disconnect;
mod documents;
mod drain;
mod gaps;
mod gate;
mod http_api;
mod idempotency;
mod inbound;
mod ingest;
mod jwt;
mod kept;
mod limits_user;
mod liveness;
mod logs;
mod loss;
mod mixed;
mod ops;
mod presence;
mod protocol;
mod redis;
mod repair;
mod resume;
mod security;
mod sessions;
mod slow;
mod sse;
mod sse_smoke;
mod stalled;
mod stranger;
mod takeover;
mod tickets;
mod tls;
mod unwilling;

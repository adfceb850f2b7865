//! Server-Sent Events: the same stream by another road, read by a browser's rules.

mod ends;
mod format;
mod parity;
mod refused;
mod source;

//! How far back a Redis has gone.
//!
//! Replicas put back what they published in the last seconds before a loss. A server that comes back
//! with older data than that (a snapshot without an append-only file, a replica that was far behind)
//! has lost more, and its own data cannot show it: what is left there looks whole. So its clock is
//! written into it again and again. Where the last time that is left in it is too long before the last one
//! it had acknowledged, its data begins anew: positions from before prove nothing any more.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{calls::Calls, commands::Turn, scripts};
use crate::bus::BusError;

/// So much may be missing, in milliseconds: with the time between two beats it stays below the five
/// seconds for which events are remembered.
const COVERED: u64 = 3_000;

const BEAT: &str = "local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
redis.call('SET', KEYS[1], now, 'PX', ARGV[1])
return now";

/// ARGV: the last beat that was acknowledged, what may be missing, the TTL. Whoever comes next finds a
/// new beat, so the data begins anew once.
const CHECK: &str = "local held = tonumber(redis.call('GET', KEYS[1]) or '0')
if held + ARGV[2] >= tonumber(ARGV[1]) then return 0 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('SET', KEYS[2], string.format('%.0f', now - 1), 'PX', ARGV[3])
redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', ARGV[3])
return 1";

/// The last beat that was acknowledged here, by the server's clock in milliseconds; 0: none.
#[derive(Debug, Default)]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    /// Writes the time. On a cluster, where each slot would need its own, nothing is done.
    ///
    /// # Errors
    /// As any command.
    pub(super) async fn beat(&self, turn: &Turn<'_>, calls: &Calls) -> Result<(), BusError> {
        let Some((pulse, _)) = calls.names.pulse() else { return Ok(()) };
        let arguments = vec![calls.meta_ttl()];
        let run = |client| scripts::eval::<String>(client, BEAT, vec![pulse], arguments);
        let now = turn.run(run).await?;
        self.0.fetch_max(now.parse().unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    /// Whether this server has lost more than can be put back; then its data begins anew.
    ///
    /// # Errors
    /// As any command.
    pub(super) async fn check(&self, turn: &Turn<'_>, calls: &Calls) -> Result<bool, BusError> {
        let acknowledged = self.0.load(Ordering::Relaxed);
        let (Some((pulse, epoch)), 1..) = (calls.names.pulse(), acknowledged) else {
            return Ok(false);
        };
        let arguments =
            vec![acknowledged.to_string().into(), COVERED.to_string().into(), calls.meta_ttl()];
        let run = |client| scripts::eval::<i64>(client, CHECK, vec![pulse, epoch], arguments);
        let anew = turn.run(run).await? == 1;
        if anew {
            // The clock of another server may be behind.
            self.0.store(0, Ordering::Relaxed);
        }
        Ok(anew)
    }
}

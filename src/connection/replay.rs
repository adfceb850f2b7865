//! Brings a connection from where it is to where this replica is, at the pace of its socket.
//!
//! While a channel is behind, its live events pass this connection by: they are read again. Once a
//! reading has brought everything that was handed out here, the channel goes live, with no hole and
//! no repeat at the seam. So a replay of any length fits through an outbox of any size.

use std::{rc::Rc, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::time::sleep;

use crate::{
    bus::replays::Replays,
    event::{Channel, GapReason},
    frame::Notice,
    history::{Claim, Proof, Reading},
    outbox::{Outbox, Push},
    registry::Registration,
};

/// Between two tries while the broker is away.
const RETRY: Duration = Duration::from_millis(500);
/// Between two readings that brought nothing, although something was handed out.
const SOON: Duration = Duration::from_millis(50);
/// So many of them, and what is missing counts as lost: other replicas put back what the broker has
/// lost within this time.
const PATIENCE: usize = 40;

/// What a replay needs.
pub(super) struct Replay {
    pub(super) registration: Rc<Registration>,
    pub(super) outbox: Rc<Outbox>,
    pub(super) replays: Arc<Replays>,
    /// The client asked for it, and is told when it is done.
    pub(super) asked: bool,
}

impl Replay {
    /// Runs until every channel is live, or lost with a word.
    pub(super) async fn run(self) {
        for channel in self.registration.behind() {
            self.catch_up(&channel).await;
        }
        if self.asked {
            let live = Notice::Live {}.frame();
            self.outbox.room(live.len()).await;
            let (Push::Queued | Push::Overflow(_) | Push::Closed) = self.outbox.deliver(&live);
        }
    }

    async fn catch_up(&self, channel: &Channel) {
        let mut in_vain = 0;
        while !self.registration.join(channel) {
            let Some(at) = self.registration.at(channel) else { return };
            let reading = self.read(channel).await;
            let (follow, whole) = match reading.proof(channel, Claim::Own(at)) {
                Proof::Whole => (reading.kept.len(), true),
                Proof::Lost(follow) => (follow, false),
            };
            for kept in reading.kept.iter().take(follow) {
                self.outbox.room(kept.frame.len()).await;
                if kept.loss {
                    return self.registration.lose(channel, GapReason::BrokerLost);
                }
                self.registration.replay(channel, kept, reading.now);
            }
            if follow > 0 && whole {
                in_vain = 0;
                continue;
            }
            // What was handed out is not there (yet): the broker may have lost its last writes, and
            // whoever published them puts them back.
            in_vain += 1;
            let ahead = reading.last.is_some_and(|last| last >= at);
            if !whole && ahead || in_vain > PATIENCE {
                return self.registration.lose(channel, GapReason::ChainBroken);
            }
            sleep(SOON).await;
        }
    }

    /// The next page, whenever the broker has it.
    async fn read(&self, channel: &Channel) -> Reading {
        loop {
            let at = self.registration.at(channel).unwrap_or_default();
            match self.replays.page(channel, at, self.registration.upto(channel)).await {
                Ok(reading) => return reading,
                Err(error) => {
                    tracing::debug!(%error, "a replay waits for the broker");
                    sleep(RETRY.mul_f64(rand::rng().random_range(0.75..1.25))).await;
                }
            }
        }
    }
}

//! The phase of this process, and the signals that move it.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_rt::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// Where a process stands between its start and its exit (design: leaving, step by step).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Listening, but not proved yet.
    Starting = 0,
    /// At work.
    Ready = 1,
    /// Not ready any more, so that the router takes us out; everything else goes on.
    Draining = 2,
    /// New connections are refused, open ones are closed one after another.
    Leaving = 3,
}

impl Phase {
    /// The name in `/readyz` and in logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Leaving => "leaving",
        }
    }
}

/// The phase, shared by everyone who asks. It only moves forward.
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8);

impl Lifecycle {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            2 => Phase::Draining,
            _ => Phase::Leaving,
        }
    }

    /// Moves on to `phase`, unless it is there or further.
    pub fn advance(&self, phase: Phase) {
        let before = self.0.fetch_max(phase as u8, Ordering::AcqRel);
        if before < phase as u8 {
            tracing::info!(phase = phase.label(), "lifecycle");
        }
    }
}

/// Learns when a task without which the process cannot do its job has ended by a panic. A worker
/// whose mailbox or timer task is gone keeps its sockets and serves nobody, which no probe sees.
#[derive(Clone, Debug, Default)]
pub struct Vital(Arc<VitalState>);

#[derive(Debug, Default)]
struct VitalState {
    ended: AtomicBool,
    what: OnceLock<&'static str>,
    bell: Notify,
}

/// Held by such a task.
#[derive(Debug)]
pub struct Guard {
    vital: Vital,
    what: &'static str,
}

impl Vital {
    /// For a task of this name.
    #[must_use]
    pub fn guard(&self, what: &'static str) -> Guard {
        Guard { vital: self.clone(), what }
    }

    /// Waits for the first that ends, and names it.
    pub async fn ended(&self) -> &'static str {
        loop {
            let bell = self.0.bell.notified();
            if self.0.ended.load(Ordering::Acquire) {
                return self.0.what.get().copied().unwrap_or("task");
            }
            bell.await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Tasks also end with their worker, in order, when the process stops.
        if std::thread::panicking() {
            self.vital.0.what.get_or_init(|| self.what);
            self.vital.0.ended.store(true, Ordering::Release);
            self.vital.0.bell.notify_waiters();
        }
    }
}

/// Requests that are being answered.
#[derive(Clone, Debug, Default)]
pub struct Underway(Arc<AtomicUsize>);

/// One of them.
#[derive(Debug)]
pub struct Answering(Underway);

impl Underway {
    /// One more, until it is dropped.
    #[must_use]
    pub fn begin(&self) -> Answering {
        self.0.fetch_add(1, Ordering::AcqRel);
        Answering(self.clone())
    }

    /// Waits until there is none, or for this long.
    pub async fn settled(&self, patience: Duration) {
        let settled = async {
            while self.0.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(LOOK).await;
            }
            // The last answer is still on its way to the socket.
            tokio::time::sleep(LOOK * 5).await;
        };
        if tokio::time::timeout(patience, settled).await.is_err() {
            tracing::warn!("requests to the API are cut off by the end of this replica");
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How often the end of a replica looks whether it may come.
const LOOK: Duration = Duration::from_millis(10);

/// SIGTERM and SIGINT, which mean the same here: leave.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Takes the signals over from the system's default.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_vital_task_is_told() {
        let vital = Vital::default();
        drop(vital.guard("quiet end"));
        let guard = vital.guard("wheel");
        let task = tokio::spawn(async move {
            let _guard = guard;
            panic!("on purpose");
        });
        assert_eq!(vital.ended().await, "wheel");
        assert!(task.await.is_err());
    }

    #[test]
    fn phases_only_move_forward() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        lifecycle.advance(Phase::Draining);
        lifecycle.advance(Phase::Ready);
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }
}

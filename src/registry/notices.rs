//! Tells connections of losses, each at its own moment, so that pages do not reload in step.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::BinaryHeap,
    rc::{Rc, Weak},
    time::Duration,
};

use rand::Rng as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::shard::Shard;

/// Reloads after a loss are spread over this long.
const SPREAD: Duration = Duration::from_secs(2);

/// Who is to be told, and when.
#[derive(Default)]
pub(super) struct Notices {
    plan: RefCell<BinaryHeap<Reverse<(Instant, usize)>>>,
    bell: Rc<Notify>,
}

impl Notices {
    /// The connection of this key is to be told.
    pub(super) fn plan(&self, key: usize) {
        let at = Instant::now() + SPREAD.mul_f64(rand::rng().random());
        self.plan.borrow_mut().push(Reverse((at, key)));
        self.bell.notify_one();
    }

    fn next(&self) -> Option<Instant> {
        self.plan.borrow().peek().map(|Reverse((at, _))| *at)
    }

    fn due(&self) -> Option<usize> {
        let mut plan = self.plan.borrow_mut();
        plan.peek().filter(|Reverse((at, _))| *at <= Instant::now())?;
        let Reverse((_, key)) = plan.pop()?;
        if plan.is_empty() {
            // A crowd was told; the memory of it goes.
            *plan = BinaryHeap::new();
        }
        Some(key)
    }

    pub(super) fn bell(&self) -> Rc<Notify> {
        Rc::clone(&self.bell)
    }
}

/// Runs as long as the shard.
pub(super) async fn run(shard: Weak<Shard>, bell: Rc<Notify>) {
    loop {
        let Some(next) = shard.upgrade().map(|shard| shard.notices.next()) else { return };
        match next {
            None => bell.notified().await,
            Some(at) => tokio::select! {
                () = sleep_until(at) => {}
                () = bell.notified() => continue,
            },
        }
        let Some(shard) = shard.upgrade() else { return };
        while let Some(key) = shard.notices.due() {
            shard.tell(key);
        }
    }
}

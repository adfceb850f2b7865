//! A connection for commands, and its circuit breaker. The publisher and the store share one;
//! looking sessions up has its own, which may go to another server.
//!
//! While the server is away, every command is refused at once and nothing is queued: an outage
//! costs no memory, and what was refused is not delivered later by surprise. The breaker opens
//! when a connection is lost, when a command was not answered in time, or when the server turns
//! out to be a read-only replica; the connection is then thrown away with all that waits in its
//! buffers, and the breaker closes after a new one has taken a write.
//!
//! What cannot be excluded: bytes that the kernel had already sent, or that a hung server had
//! already received, when we gave up. Such a server may still execute those commands when it
//! wakes; at most `redis.inflight` of them. That is what [`BusError::Away`] says: it cannot be
//! known.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use fred::{
    clients::{Client, WithOptions},
    error::{Error, ErrorKind},
    interfaces::{ClientLike, ClusterInterface, KeysInterface},
    types::config::{Options, Server},
};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    Up,
    link::{Change, Link, LinkSettings, Role, introduce},
    quiet::Quiet,
    setup::Setup,
};
use crate::bus::BusError;

/// Sends commands, or refuses them.
#[derive(Debug)]
pub(crate) struct Commands {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Current>,
    up: Up,
    /// The number of the newest connection that has been given up.
    condemned: AtomicU64,
    /// Rung when `condemned` grows.
    condemn: Notify,
    permits: Semaphore,
    inflight: u32,
    timeout: Duration,
    role: Role,
    check: Check,
}

/// How a connection proves that it is of use.
#[derive(Debug)]
pub(super) enum Check {
    /// The server takes writes: it is a master. The key never exists, and deleting it is a write
    /// that stores nothing. Then it is set up, where events go over it.
    Write(String, Option<Setup>),
    /// The server answers; for connections that only read, which any replica will do for.
    Answer,
}

impl Check {
    async fn run(&self, client: WithOptions<Client>) -> Result<(), Error> {
        match self {
            Self::Write(key, _) => client.del::<(), _>(key).await,
            Self::Answer => client.ping::<()>(None).await,
        }
    }
}

struct Current {
    client: Client,
    /// Counts connections, so that a late failure of an old one does not condemn the new one.
    number: u64,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The right to send commands: some of the `redis.inflight` places, and the time that is left.
pub(crate) struct Turn<'a> {
    shared: &'a Shared,
    current: Arc<Current>,
    deadline: Instant,
    /// `None` for what belongs to the connection itself.
    _places: Option<SemaphorePermit<'a>>,
}

impl Commands {
    pub(super) fn start(
        settings: Arc<LinkSettings>,
        inflight: usize,
        role: Role,
        check: Check,
    ) -> Self {
        let (link, _) = Link::open(&settings, role);
        let inflight = u32::try_from(inflight.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            current: ArcSwap::from_pointee(Current { client: link.client.clone(), number: 1 }),
            up: Up::default(),
            condemned: AtomicU64::new(0),
            condemn: Notify::new(),
            permits: Semaphore::new(inflight as usize),
            inflight,
            timeout: settings.command_timeout,
            role,
            check,
        });
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared), settings, link));
        Self { shared, supervisor }
    }

    /// Whether commands are sent at all.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.up.get()
    }

    /// Waits for places for `count` commands (all of them, where there are fewer). The command
    /// timeout runs from here.
    pub(crate) async fn turn(&self, count: usize) -> Result<Turn<'_>, BusError> {
        self.refuse_while_down()?;
        let turn = self.any_turn(count).await?;
        // It may have gone down while we waited.
        self.refuse_while_down()?;
        Ok(turn)
    }

    /// The same, also while the breaker is open.
    pub(crate) async fn any_turn(&self, count: usize) -> Result<Turn<'_>, BusError> {
        let deadline = Instant::now() + self.shared.timeout;
        let places = u32::try_from(count).unwrap_or(u32::MAX).clamp(1, self.shared.inflight);
        match timeout_at(deadline, self.shared.permits.acquire_many(places)).await {
            Ok(Ok(places)) => Ok(Turn {
                shared: &self.shared,
                current: self.shared.current.load_full(),
                deadline,
                _places: Some(places),
            }),
            Ok(Err(closed)) => Err(BusError::Away(closed.to_string())),
            Err(_) => Err(BusError::Away("too many commands are waiting for it".to_owned())),
        }
    }

    /// A turn for those who wait no longer than this, and hold the places for it themselves.
    pub(super) fn turn_until(&self, deadline: Instant) -> Result<Turn<'_>, BusError> {
        self.refuse_while_down()?;
        let current = self.shared.current.load_full();
        Ok(Turn { shared: &self.shared, current, deadline, _places: None })
    }

    fn refuse_while_down(&self) -> Result<(), BusError> {
        if self.is_up() { Ok(()) } else { Err(BusError::Away("not connected".to_owned())) }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Turn<'_> {
    /// Runs one command; it is bounded by the turn's deadline, sent at most once, and not queued
    /// for a connection that does not stand. A failure that says something about the connection
    /// opens the breaker.
    pub(crate) async fn run<T, F, Fut>(&self, command: F) -> Result<T, BusError>
    where
        F: FnOnce(WithOptions<Client>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.run_on(None, command).await
    }

    /// When its time is over.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Heeds what a refusal inside of an answer says about the server, as [`run`](Self::run) does
    /// with one that is the answer.
    pub(super) fn heed<T>(&self, part: Result<T, BusError>) -> Result<T, BusError> {
        if let Err(BusError::Refused(reason)) = &part
            && is_unfit(reason)
        {
            self.shared.give_up(self.current.number);
        }
        part
    }

    /// The same, on one server of a cluster.
    pub(super) async fn run_on<T, F, Fut>(
        &self,
        node: Option<Server>,
        command: F,
    ) -> Result<T, BusError>
    where
        F: FnOnce(WithOptions<Client>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let options = Options { cluster_node: node, ..options(left, true) };
        let client = self.current.client.with_options(&options);
        command(client).await.map_err(|error| self.shared.judge(&error, self.current.number))
    }

    /// What the server's refusal of a part of a command means; one that says something about the
    /// connection opens the breaker.
    pub(crate) fn refused(&self, reason: String) -> BusError {
        if is_unfit(&reason) {
            self.shared.give_up(self.current.number);
        }
        BusError::Refused(reason)
    }

    /// The servers of a cluster that hold slots; where there is no cluster, the one there is.
    pub(super) fn masters(&self) -> Vec<Option<Server>> {
        match self.current.client.cached_cluster_state() {
            Some(state) => state.unique_primary_nodes().into_iter().map(Some).collect(),
            None => vec![None],
        }
    }

    /// A turn on the same connection, with the whole time. For what belongs to the connection
    /// itself, is done in pieces, and has no one who waits.
    pub(super) fn renewed(&self) -> Turn<'_> {
        Turn {
            shared: self.shared,
            current: Arc::clone(&self.current),
            deadline: Instant::now() + self.shared.timeout,
            _places: None,
        }
    }
}

impl Shared {
    fn judge(&self, error: &Error, number: u64) -> BusError {
        let failure = classify(error);
        match &failure {
            BusError::Away(_) => self.give_up(number),
            BusError::Refused(reason) if is_unfit(reason) => self.give_up(number),
            BusError::Refused(_) => {}
        }
        failure
    }

    fn give_up(&self, number: u64) {
        // While it is down, the supervisor is already at work on the next connection; a probe that
        // fails meanwhile says nothing about that one.
        if self.current.load().number == number && self.up.take(number) {
            self.condemned.fetch_max(number, Ordering::AcqRel);
            self.condemn.notify_one();
        }
    }

    async fn condemned(&self, number: u64) {
        while self.condemned.load(Ordering::Acquire) < number {
            self.condemn.notified().await;
        }
    }
}

fn options(timeout: Duration, fail_fast: bool) -> Options {
    Options {
        // Zero would mean for ever.
        timeout: Some(timeout.max(Duration::from_millis(1))),
        max_attempts: Some(1),
        fail_fast,
        ..Options::default()
    }
}

/// Tells an answer of the server from a failure on the way. An error reply begins with a code in
/// capitals (redis.io, RESP simple errors); fred's own errors are sentences.
pub(crate) fn classify(error: &Error) -> BusError {
    let details = error.details().to_owned();
    let code = details.split(' ').next().unwrap_or_default();
    let is_code = code.len() > 1 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let local = matches!(error.kind(), ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Canceled);
    if is_code && !local { BusError::Refused(details) } else { BusError::Away(details) }
}

/// Refusals that concern the server, not the command: this one is no good at all, another
/// (after a failover), or the same a little later, may be.
fn is_unfit(reason: &str) -> bool {
    ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS"]
        .iter()
        .any(|code| reason.starts_with(code))
}

/// How long to wait before another look at a server that is reachable and unfit.
const UNFIT_PAUSE: Duration = Duration::from_millis(500);

/// Keeps one usable connection, for ever.
async fn supervise(shared: Arc<Shared>, settings: Arc<LinkSettings>, mut link: Link) {
    let mut number = 1;
    let mut quiet = Quiet::default();
    loop {
        let reason = live(&shared, &mut link, number, &mut quiet).await;
        shared.up.set(None);
        quiet.warn(|again| {
            let role = shared.role.label();
            tracing::warn!(role, %reason, again, "the Redis connection is given up");
        });
        drop(link);
        (link, _) = Link::open(&settings, shared.role);
        number += 1;
        shared.current.store(Arc::new(Current { client: link.client.clone(), number }));
    }
}

/// From connecting to the end of one connection; the result says why.
async fn live(shared: &Shared, link: &mut Link, number: u64, quiet: &mut Quiet) -> String {
    let role = shared.role.label();
    loop {
        match link.change().await {
            Change::Connected => break,
            Change::Failed(reason) => quiet.warn(|again| {
                tracing::warn!(role, %reason, again, "cannot connect to Redis");
            }),
            Change::Lost(reason) => return reason,
        }
    }
    // fred reports a connection just before it counts it as connected, hence not `fail_fast`.
    let client = link.client.with_options(&options(shared.timeout, false));
    match shared.check.run(client).await.map_err(|error| classify(&error)) {
        Ok(()) => {}
        Err(BusError::Refused(reason)) if !is_unfit(&reason) => {
            if matches!(shared.check, Check::Write(..)) {
                tracing::warn!(%reason, "Redis refuses DEL: a read-only replica cannot be told from a master");
            }
        }
        Err(BusError::Away(reason)) => return reason,
        Err(BusError::Refused(reason)) => {
            tokio::time::sleep(UNFIT_PAUSE).await;
            return reason;
        }
    }
    if let Check::Write(_, Some(setup)) = &shared.check {
        let turn = Turn {
            shared,
            current: shared.current.load_full(),
            deadline: Instant::now() + shared.timeout,
            _places: None,
        };
        match setup.run(&turn).await {
            Ok(()) => {}
            Err(BusError::Away(reason)) => return reason,
            Err(BusError::Refused(reason)) => {
                tokio::time::sleep(UNFIT_PAUSE).await;
                return reason;
            }
        }
    }
    shared.up.set(Some(number));
    quiet.reset();
    tracing::info!(role, "connected to Redis");
    introduce(&link.client, shared.role).await;
    loop {
        tokio::select! {
            change = link.change() => match change {
                Change::Lost(reason) | Change::Failed(reason) => return reason,
                // Another node of a cluster.
                Change::Connected => {}
            },
            () = shared.condemned(number) => return "a command failed".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_failures() {
        let refused = |kind, text: &'static str| {
            matches!(classify(&Error::new(kind, text)), BusError::Refused(_))
        };
        assert!(refused(ErrorKind::Unknown, "NOPERM this user has no permissions"));
        assert!(refused(
            ErrorKind::Unknown,
            "READONLY You can't write against a read only replica."
        ));
        assert!(refused(ErrorKind::Auth, "NOAUTH Authentication required."));
        assert!(refused(ErrorKind::Unknown, "ERR unknown command"));
        assert!(!refused(ErrorKind::Unknown, "Client is not initialized."));
        assert!(!refused(ErrorKind::Canceled, "Connection closed unexpectedly."));
        assert!(!refused(ErrorKind::Timeout, "Request timed out."));
        assert!(!refused(ErrorKind::IO, "OS error"));
    }
}

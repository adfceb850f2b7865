//! [`Feed`] on Redis: one connection that subscribes to everything, again after every loss.

use std::{sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientLike, PubsubInterface},
};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, sleep_until},
};

use super::{
    Up,
    commands::classify,
    link::{Change, Link, LinkSettings, Role, introduce},
    names::Names,
    quiet::Quiet,
};
use crate::bus::{BusError, Feed, Incoming};

/// Waits between two tries to subscribe while Redis refuses: the first, and the longest.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// The subscription of this replica.
pub struct RedisFeed {
    settings: Arc<LinkSettings>,
    names: Arc<Names>,
    up: Up,
    link: Link,
    messages: Receiver<fred::types::Message>,
    phase: Phase,
    /// Whether the subscription ever stood.
    again: bool,
    patience: Duration,
    /// Log lines about the connection, and about rights, which need somebody's hand.
    quiet: Quiet,
    refusals: Quiet,
}

enum Phase {
    /// Waiting for the link.
    Connecting,
    /// `SUBSCRIBE` is under way; kept here so that [`Feed::next`] can be dropped meanwhile.
    Subscribing(BoxFuture<'static, Result<(), Error>>),
    /// Redis refused; tries again at this moment.
    Refused(Instant),
    /// The subscription stands.
    Standing,
}

/// What one wait brought.
enum Step {
    Subscribed(Result<(), Error>),
    Message(Result<fred::types::Message, RecvError>),
    Link(Change),
    TryAgain,
}

impl std::fmt::Debug for RedisFeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisFeed").field("up", &self.up).finish_non_exhaustive()
    }
}

impl RedisFeed {
    pub(super) fn start(settings: Arc<LinkSettings>, names: Arc<Names>, up: Up) -> Self {
        let (link, messages) = Link::open(&settings, Role::Subscriber);
        Self {
            settings,
            names,
            up,
            link,
            messages,
            phase: Phase::Connecting,
            again: false,
            patience: PATIENCE.0,
            quiet: Quiet::default(),
            refusals: Quiet::default(),
        }
    }

    /// Waits for one thing. Cancel safe: every branch is, or lives in `self`.
    async fn step(&mut self) -> Step {
        let progress = async {
            match &mut self.phase {
                Phase::Subscribing(subscribing) => Step::Subscribed(subscribing.await),
                Phase::Refused(until) => {
                    sleep_until(*until).await;
                    Step::TryAgain
                }
                Phase::Connecting | Phase::Standing => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            step = progress => step,
            // Before changes of the link: what was received before a loss is worth having.
            message = self.messages.recv() => Step::Message(message),
            change = self.link.change() => Step::Link(change),
        }
    }

    fn handle(&mut self, step: Step) -> Option<Incoming> {
        match step {
            Step::Message(Ok(message)) => Some(self.read(message)),
            Step::Message(Err(RecvError::Lagged(count))) => Some(Incoming::Lagged(count)),
            Step::Message(Err(RecvError::Closed)) => self.lose("the client has closed".to_owned()),
            Step::Link(Change::Connected) => {
                // In a cluster it comes once for each node; one subscription is enough.
                if matches!(self.phase, Phase::Connecting) {
                    self.subscribe();
                }
                None
            }
            Step::Link(Change::Failed(reason)) => {
                self.quiet.warn(|again| {
                    tracing::warn!(role = "subscriber", %reason, again, "cannot connect to Redis");
                });
                None
            }
            Step::Link(Change::Lost(reason)) => self.lose(reason),
            // On a new connection: after a refusal fred's count of answers is out of step, and what
            // Redis says to a later subscribe would be taken for something else.
            Step::TryAgain => {
                self.reopen();
                None
            }
            Step::Subscribed(Ok(())) => {
                self.phase = Phase::Standing;
                self.patience = PATIENCE.0;
                self.up.set(true);
                self.quiet.reset();
                self.refusals.reset();
                let again = std::mem::replace(&mut self.again, true);
                tracing::info!(role = "subscriber", again, "subscribed");
                Some(Incoming::Subscribed { again })
            }
            Step::Subscribed(Err(error)) => match classify(&error) {
                BusError::Refused(reason) => {
                    self.refusals.warn(|again| {
                        tracing::error!(
                            role = "subscriber", %reason, again, rights = self.names.acl_hint(),
                            "Redis refuses the subscription"
                        );
                    });
                    self.phase = Phase::Refused(Instant::now() + self.patience);
                    self.patience = (self.patience * 2).min(PATIENCE.1);
                    Some(Incoming::Lost(format!("Redis refuses the subscription: {reason}")))
                }
                BusError::Away(reason) => self.lose(reason),
            },
        }
    }

    fn read(&self, message: fred::types::Message) -> Incoming {
        // fred makes a string of what is UTF-8; both are views of the same bytes.
        match (self.names.destination(&message.channel), message.value.into_bytes()) {
            (Some(from), Some(payload)) => Incoming::Message { from, payload },
            _ => Incoming::Unaddressed,
        }
    }

    fn subscribe(&mut self) {
        let subscribing = subscribe(self.link.client.clone(), Arc::clone(&self.names));
        self.phase = Phase::Subscribing(subscribing.boxed());
    }

    /// The connection is of no more use. Only the loss of a subscription that stood is news.
    fn lose(&mut self, reason: String) -> Option<Incoming> {
        let stood = matches!(self.phase, Phase::Standing);
        self.quiet.warn(|again| {
            tracing::warn!(role = "subscriber", %reason, again, "the Redis connection is given up");
        });
        self.reopen();
        stood.then_some(Incoming::Lost(reason))
    }

    /// Throws the connection away, without a word to the server, and begins anew.
    fn reopen(&mut self) {
        self.up.set(false);
        self.phase = Phase::Connecting;
        (self.link, self.messages) = Link::open(&self.settings, Role::Subscriber);
    }
}

impl Feed for RedisFeed {
    fn next(&mut self) -> BoxFuture<'_, Option<Incoming>> {
        async move {
            loop {
                let step = self.step().await;
                if let Some(incoming) = self.handle(step) {
                    return Some(incoming);
                }
            }
        }
        .boxed()
    }

    fn restart(&mut self) -> BoxFuture<'_, ()> {
        self.reopen();
        std::future::ready(()).boxed()
    }
}

/// Subscribes, and waits until the server has done so.
///
/// fred calls a subscription done when it is written, and drops the server's answer. The `PING`
/// behind it is answered after it, in RESP3 on the same connection. The commands go out as one
/// pipeline, so that the `PING` already waits when the first answer comes: fred then hands a
/// refused subscription (`NOPERM`), which it cannot place otherwise, to the `PING`.
async fn subscribe(client: Client, names: Arc<Names>) -> Result<(), Error> {
    let pipeline = client.pipeline();
    for pattern in names.patterns() {
        pipeline.psubscribe(pattern).await?;
    }
    pipeline.subscribe(names.exact().to_vec()).await?;
    pipeline.ping::<()>(None).await?;
    let answer = pipeline.last::<String>().await?;
    if answer == "PONG" {
        introduce(&client, Role::Subscriber).await;
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Protocol, format!("PING was answered with {answer}")))
    }
}

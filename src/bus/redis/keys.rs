//! Word of keys that go: keyspace notifications (redis.io, "Redis keyspace notifications"), where
//! the server has them on.
//!
//! They are a hint that saves a wait, and nothing rests on them: they are fire and forget, a
//! cluster's nodes only tell of their own keys, and many servers have them off.

use std::{sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    types::KeyspaceEvent,
};
use tokio::{
    sync::{
        broadcast::{Receiver, error::RecvError},
        mpsc,
    },
    task::JoinHandle,
};

use super::{
    commands::classify,
    link::{Change, Link, LinkSettings, Role, introduce},
    quiet::Quiet,
};
use crate::bus::BusError;

/// Keys that may wait to be taken; after that the server's messages wait, and are dropped in the
/// end.
const WAITING: usize = 4_096;
/// Between two tries to subscribe while Redis refuses.
const PATIENCE: Duration = Duration::from_secs(30);
/// The events after which a key is no more.
const GONE: [&str; 4] = ["del", "expired", "evicted", "rename_from"];

/// The keys under a prefix that go, as far as the server tells.
#[derive(Debug)]
pub(crate) struct Removals {
    removed: mpsc::Receiver<String>,
    task: JoinHandle<()>,
}

impl Removals {
    pub(super) fn start(settings: Arc<LinkSettings>, prefix: &str) -> Self {
        let (sender, removed) = mpsc::channel(WAITING);
        let database = settings.config.load().database.unwrap_or(0);
        let names = Names { database, prefix: prefix.to_owned() };
        Self { removed, task: tokio::spawn(watch(settings, names, sender)) }
    }

    /// The next one, without the prefix. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.removed.recv().await
    }

    /// The same, if it is there already.
    pub(crate) fn ready(&mut self) -> Option<String> {
        self.removed.try_recv().ok()
    }
}

impl Drop for Removals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is listened to. A server may tell by key (`K`), by event (`E`), or both, and then it says
/// the same twice.
struct Names {
    database: u8,
    prefix: String,
}

impl Names {
    fn patterns(&self) -> Vec<String> {
        let Self { database, prefix } = self;
        let mut patterns = vec![format!("__keyspace@{database}__:{prefix}*")];
        patterns.extend(GONE.iter().map(|event| format!("__keyevent@{database}__:{event}")));
        patterns
    }

    /// The key that went, without the prefix.
    fn removed<'a>(&self, database: u8, key: &'a str, event: &str) -> Option<&'a str> {
        let gone = database == self.database && GONE.contains(&event);
        key.strip_prefix(&self.prefix).filter(|_| gone)
    }
}

async fn watch(settings: Arc<LinkSettings>, names: Names, removed: mpsc::Sender<String>) {
    let mut quiet = Quiet::default();
    loop {
        let (mut link, _) = Link::open(&settings, Role::SessionEvents);
        // fred sorts these messages out of the rest by their channels.
        let mut events = link.client.keyspace_event_rx();
        let reason = live(&mut link, &mut events, &names, &removed, &mut quiet).await;
        // The connection for look-ups has the same trouble and says so louder.
        tracing::debug!(role = Role::SessionEvents.label(), %reason, "a Redis connection is given up");
        if removed.is_closed() {
            return;
        }
    }
}

/// From connecting to the end of one connection; the result says why.
async fn live(
    link: &mut Link,
    events: &mut Receiver<KeyspaceEvent>,
    names: &Names,
    removed: &mpsc::Sender<String>,
    refusals: &mut Quiet,
) -> String {
    loop {
        match link.change().await {
            Change::Connected => break,
            Change::Failed(_) => {}
            Change::Lost(reason) => return reason,
        }
    }
    let mut again = Box::pin(tokio::time::sleep(Duration::ZERO));
    let mut subscribed = false;
    loop {
        let event = tokio::select! {
            biased;
            () = removed.closed() => return "nobody listens".to_owned(),
            event = events.recv() => event,
            change = link.change() => match change {
                Change::Connected => continue,
                Change::Failed(reason) | Change::Lost(reason) => return reason,
            },
            () = &mut again, if !subscribed => {
                match subscribe(&link.client, names).await.map_err(|error| classify(&error)) {
                    Ok(()) => subscribed = true,
                    Err(BusError::Refused(reason)) => {
                        refusals.warn(|_| {
                            let rights = names.patterns().join(" &");
                            tracing::info!(
                                %reason, rights = format!("&{rights} +psubscribe +ping"),
                                "Redis does not let us hear of sessions that end; \
                                 they are found by looking again"
                            );
                        });
                        again.set(tokio::time::sleep(PATIENCE));
                    }
                    Err(BusError::Away(reason)) => return reason,
                }
                continue;
            }
        };
        match event {
            Ok(KeyspaceEvent { db, operation, key }) => {
                let key = key.as_str().and_then(|key| names.removed(db, key, &operation));
                if let Some(key) = key
                    && removed.send(key.to_owned()).await.is_err()
                {
                    return "nobody listens".to_owned();
                }
            }
            Err(RecvError::Lagged(count)) => {
                tracing::debug!(count, "word of sessions that ended was dropped");
            }
            Err(RecvError::Closed) => return "the client has closed".to_owned(),
        }
    }
}

/// As in [`feed`](super::feed): the `PING` behind it proves that it stands.
async fn subscribe(client: &Client, names: &Names) -> Result<(), Error> {
    let pipeline = client.pipeline();
    for pattern in names.patterns() {
        pipeline.psubscribe(pattern).await?;
    }
    pipeline.ping::<()>(None).await?;
    pipeline.last::<()>().await?;
    introduce(client, Role::SessionEvents).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_go_and_only_ours() {
        let names = Names { database: 3, prefix: "session:".to_owned() };
        for (database, key, event, removed) in [
            (3, "session:abc", "del", Some("abc")),
            (3, "session:a:b", "expired", Some("a:b")),
            (3, "session:abc", "evicted", Some("abc")),
            (3, "session:abc", "rename_from", Some("abc")),
            (3, "session:abc", "rename_to", None),
            (3, "session:abc", "set", None),
            (3, "session:abc", "expire", None),
            (3, "sessions:abc", "del", None),
            (3, "other:session:abc", "del", None),
            (0, "session:abc", "del", None),
        ] {
            assert_eq!(names.removed(database, key, event), removed, "{database} {key} {event}");
        }
    }
}

//! Word of keys that go: keyspace notifications (redis.io, "Redis keyspace notifications"), where
//! the server has them on.
//!
//! They are a hint that saves a wait, and nothing rests on them: they are fire and forget, a
//! cluster's nodes only tell of their own keys, and many servers have them off.

use std::{sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientLike, PubsubInterface},
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
        let names = Names::new(settings.config.database.unwrap_or(0), prefix);
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
    /// Before the prefix, in the channel of a key.
    space: String,
    /// Before the event, in the channel of an event.
    event: String,
    prefix: String,
}

impl Names {
    fn new(database: u8, prefix: &str) -> Self {
        Self {
            space: format!("__keyspace@{database}__:"),
            event: format!("__keyevent@{database}__:"),
            prefix: prefix.to_owned(),
        }
    }

    fn patterns(&self) -> Vec<String> {
        let mut patterns = vec![format!("{}{}*", self.space, self.prefix)];
        patterns.extend(GONE.iter().map(|event| format!("{}{event}", self.event)));
        patterns
    }

    /// The key that went, without the prefix.
    fn removed<'a>(&self, channel: &'a str, payload: &'a str) -> Option<&'a str> {
        let (key, event) = match channel.strip_prefix(&self.space) {
            Some(key) => (key, payload),
            None => (payload, channel.strip_prefix(&self.event)?),
        };
        key.strip_prefix(&self.prefix).filter(|_| GONE.contains(&event))
    }
}

async fn watch(settings: Arc<LinkSettings>, names: Names, removed: mpsc::Sender<String>) {
    let mut quiet = Quiet::default();
    loop {
        let (mut link, mut messages) = Link::open(&settings, Role::SessionEvents);
        let reason = live(&mut link, &mut messages, &names, &removed, &mut quiet).await;
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
    messages: &mut Receiver<fred::types::Message>,
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
        let message = tokio::select! {
            biased;
            () = removed.closed() => return "nobody listens".to_owned(),
            message = messages.recv() => message,
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
        match message {
            Ok(message) => {
                let payload = message.value.as_str();
                let key = payload.as_deref().and_then(|text| names.removed(&message.channel, text));
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
        let names = Names::new(3, "session:");
        for (channel, payload, removed) in [
            ("__keyspace@3__:session:abc", "del", Some("abc")),
            ("__keyspace@3__:session:a:b", "expired", Some("a:b")),
            ("__keyspace@3__:session:abc", "set", None),
            ("__keyspace@3__:session:abc", "expire", None),
            ("__keyspace@3__:other:abc", "del", None),
            ("__keyspace@0__:session:abc", "del", None),
            ("__keyevent@3__:del", "session:abc", Some("abc")),
            ("__keyevent@3__:evicted", "session:abc", Some("abc")),
            ("__keyevent@3__:rename_from", "session:abc", Some("abc")),
            ("__keyevent@3__:rename_to", "session:abc", None),
            ("__keyevent@3__:del", "sessions:abc", None),
            ("elsewhere", "session:abc", None),
        ] {
            assert_eq!(names.removed(channel, payload), removed, "{channel} {payload}");
        }
    }
}

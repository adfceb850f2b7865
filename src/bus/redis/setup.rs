//! What is done on a new connection before it counts as up: the server is shown the scripts, asked
//! who it is and how it makes room, and given back what another one may have lost.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fred::{interfaces::ClientLike, types::Value};

use super::{
    calls::Calls,
    commands::Turn,
    foreign::Complaints,
    pulse::Pulse,
    recent::{Entry, Recent, Snapshot},
    said::Said,
    scripts::{Call, Scripts},
};
use crate::{
    bus::{BusError, Keep, Post, envelope},
    event::{Channel, Tag},
};

/// Events that are put back in one round trip.
const AT_ONCE: usize = 512;
/// How often, and how long in between, an event waits for the one before it, which another replica
/// may be about to put back: as long as the replicas' tries to connect may lie apart.
const PATIENCE: (usize, Duration) = (30, Duration::from_millis(50));

/// After a loss, nothing new is published for this long: as long as other replicas may need to
/// connect.
const SETTLING: Duration = Duration::from_secs(1);

/// What is known of the server.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// It drops keys to make room, so that a missing key proves nothing.
    forgetful: AtomicBool,
    state: Mutex<State>,
    /// Its time, as far as it was acknowledged.
    pub(super) pulse: Pulse,
    /// What an operator was told of keys of other programs.
    pub(super) complaints: Complaints,
}

#[derive(Debug, Default)]
struct State {
    /// Who it is; changes when it restarts, and when another takes its place.
    identity: Option<String>,
    warning: Option<String>,
    /// It was said that nothing can be known.
    complained: bool,
}

impl Server {
    /// Whether a missing key proves nothing.
    pub(super) fn is_forgetful(&self) -> bool {
        self.forgetful.load(Ordering::Acquire)
    }

    /// What an operator should change.
    pub(super) fn warning(&self) -> Option<String> {
        self.state().warning.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what `INFO` says; whether this is another server than the last, as far as it is
    /// known.
    fn learn(&self, info: Option<&str>) -> bool {
        let mut state = self.state();
        let Some(info) = info else {
            state.identity = None;
            return true;
        };
        let policies: HashSet<&str> =
            fields(info, "maxmemory_policy:").filter(|policy| *policy != "noeviction").collect();
        let forgetful = !policies.is_empty();
        self.forgetful.store(forgetful, Ordering::Release);
        let warning = forgetful.then(|| {
            let policies: Vec<&str> = policies.into_iter().collect();
            format!(
                "maxmemory-policy is {}: Redis may drop what is kept, and a missing key proves \
                 nothing; it should be noeviction",
                policies.join(", ")
            )
        });
        if let Some(why) = warning.as_ref().filter(|why| state.warning.as_ref() != Some(*why)) {
            tracing::warn!(why, "Redis is not set up for keeping events");
        }
        state.warning = warning;
        let mut identity: Vec<&str> = fields(info, "run_id:").collect();
        identity.extend(fields(info, "master_replid:"));
        let identity = Some(identity.join(" ")).filter(|identity| !identity.is_empty());
        let same = identity.is_some() && identity == state.identity;
        state.identity = identity;
        !same
    }
}

fn fields<'a>(info: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    info.lines().filter_map(move |line| line.strip_prefix(name)).map(str::trim)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) calls: Arc<Calls>,
    pub(super) scripts: Arc<Scripts>,
    pub(super) recent: Arc<Recent>,
    pub(super) server: Arc<Server>,
}

/// What became of events that were acknowledged.
#[derive(Debug, Default)]
struct Tally {
    there: usize,
    back: usize,
    /// All data is younger: whoever has a position from before is told.
    older: usize,
    lost: usize,
    channels: HashSet<Channel>,
}

impl Setup {
    /// Does all of it.
    ///
    /// # Errors
    /// The connection is of no use.
    pub(super) async fn run(&self, turn: &Turn<'_>) -> Result<(), BusError> {
        self.show(turn).await?;
        let info = self.ask(turn).await?;
        if self.server.learn(info.as_deref()) {
            if self.server.pulse.check(turn, &self.calls).await? {
                tracing::error!(
                    "Redis has lost more than its last seconds: all clients are told to reload; \
                     it should have an append-only file"
                );
            }
            let restored = self.restore(turn).await;
            if restored.is_err() {
                // The next connection begins again.
                self.server.state().identity = None;
            }
            return restored;
        }
        Ok(())
    }

    async fn show(&self, turn: &Turn<'_>) -> Result<(), BusError> {
        let scripts = [&self.scripts.publish, &self.scripts.read, &self.scripts.glance];
        for (node, script) in
            turn.masters().into_iter().flat_map(|n| scripts.map(|s| (n.clone(), s)))
        {
            match turn.run_on(node, |client| script.load(client)).await {
                Err(BusError::Refused(reason)) => {
                    // The first call shows it as well.
                    tracing::debug!(%reason, "Redis refuses SCRIPT LOAD");
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// `INFO` of the server, or of all masters of a cluster.
    async fn ask(&self, turn: &Turn<'_>) -> Result<Option<String>, BusError> {
        let mut all = String::new();
        for node in turn.masters() {
            match turn.run_on(node, |client| async move { client.info(None).await }).await {
                Ok::<String, _>(info) => all.push_str(&info),
                Err(BusError::Refused(reason)) => {
                    if !std::mem::replace(&mut self.server.state().complained, true) {
                        tracing::warn!(
                            %reason,
                            "Redis refuses INFO: its maxmemory-policy is trusted to be noeviction"
                        );
                    }
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(all))
    }

    async fn restore(&self, turn: &Turn<'_>) -> Result<(), BusError> {
        let Snapshot { mut entries, forgotten } = self.recent.snapshot();
        if forgotten > 0 {
            tracing::warn!(
                forgotten,
                "events came too fast to be remembered; a loss of them in Redis is not told"
            );
        }
        if entries.is_empty() {
            return Ok(());
        }
        let mut tally = Tally::default();
        for pass in 0..=PATIENCE.0 {
            let force = pass == PATIENCE.0;
            let mut waiting = Vec::new();
            for some in entries.chunks(AT_ONCE) {
                self.put_back(turn, some, force, &mut tally, &mut waiting).await?;
            }
            entries = waiting;
            if entries.is_empty() {
                break;
            }
            tokio::time::sleep(PATIENCE.1).await;
        }
        let Tally { there, back, older, lost, channels } = tally;
        let told = channels.len();
        self.tell(turn, channels).await?;
        self.recent.renew();
        if back + older + lost > 0 {
            tracing::warn!(there, back, older, lost, told, "Redis had lost acknowledged events");
            // Others may be about to put theirs back, and a newer event would be in their way.
            tokio::time::sleep(SETTLING).await;
        } else {
            tracing::info!(there, "another Redis has all acknowledged events");
        }
        Ok(())
    }

    async fn put_back(
        &self,
        turn: &Turn<'_>,
        entries: &[Entry],
        force: bool,
        tally: &mut Tally,
        waiting: &mut Vec<Entry>,
    ) -> Result<(), BusError> {
        // The first shows the script to the server, so none behind it can overtake it.
        let call = |(n, entry)| Call { whole: n == 0, ..self.calls.restore(entry, force) };
        let calls: Vec<Call> = entries.iter().enumerate().map(call).collect();
        let answers = self.scripts.restore.run::<String>(&turn.renewed(), &calls).await;
        for (entry, answer) in entries.iter().zip(answers) {
            match answer?.as_str() {
                "there" => tally.there += 1,
                "back" => tally.back += 1,
                "older" => tally.older += 1,
                "wait" => waiting.push(entry.clone()),
                _ => {
                    tally.lost += 1;
                    tally.channels.insert(entry.channel.clone());
                }
            }
        }
        Ok(())
    }

    /// Keeps word of the loss in these channels, for those who come back later.
    async fn tell(&self, turn: &Turn<'_>, channels: HashSet<Channel>) -> Result<(), BusError> {
        let post = |to: Channel| {
            let event = envelope::loss(&Tag::of(&to));
            let post = Post { to, event, keep: Keep::Kept, once: None, online: None };
            self.calls.publish(&[&post])
        };
        let calls: Vec<Call> = channels.into_iter().map(post).collect();
        for some in calls.chunks(AT_ONCE) {
            let turn = turn.renewed();
            for answer in self.scripts.publish.run::<Value>(&turn, some).await {
                turn.heed(Said::read(&answer?))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_known_by_its_ids() {
        let info = |run, replid, policy| {
            Some(format!(
                "# Server\r\nrun_id:{run}\r\nmaxmemory_policy:{policy}\r\nmaster_replid:{replid}\r\n"
            ))
        };
        let server = Server::default();
        let learn = |info: Option<String>| server.learn(info.as_deref());
        assert!(learn(info("a", "b", "noeviction")));
        assert!(!learn(info("a", "b", "noeviction")));
        assert!(learn(info("a", "c", "noeviction")));
        assert!(learn(info("d", "c", "noeviction")));
        assert!(learn(None) && learn(info("d", "c", "noeviction")));
        assert!(!server.is_forgetful() && server.warning().is_none());
        assert!(!learn(info("d", "c", "allkeys-lru")));
        assert!(server.is_forgetful() && server.warning().unwrap().contains("allkeys-lru"));
        assert!(!learn(info("d", "c", "noeviction")));
        assert!(!server.is_forgetful() && server.warning().is_none());
    }
}

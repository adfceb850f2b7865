//! From requests that hold to the bus, and back to what publishers are told.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    internal::{Call, State},
    problem::{Kind, Member, Problem},
    request::Publish,
    waves::Waves,
};
use crate::{
    bus::{BusError, Keep, Once, Post, Posted, Receipt, envelope},
    config::Scope,
    event::Channel,
    store::{Claim, IDEMPOTENCY_TTL},
    telemetry::Target,
};

/// One event, and what it is done once under.
pub(super) struct Wanted {
    pub(super) event: Publish,
    pub(super) once: Option<Once>,
}

/// What a publisher is told of one event.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    /// It went to one channel; or to nobody, where it excepts its only user.
    One(Receipt),
    /// It went to a list of users.
    Each {
        /// Those it was published to.
        events: Vec<ToUser>,
    },
}

/// One user of a list.
#[derive(Debug, Serialize)]
pub(super) struct ToUser {
    user: String,
    #[serde(flatten)]
    receipt: Receipt,
}

/// The scope that an event needs.
pub(super) fn scope(event: &Publish) -> Scope {
    if event.target == Target::Broadcast { Scope::Broadcast } else { Scope::Publish }
}

/// The line that every broadcast leaves.
pub(super) fn audit(call: &Call<'_>, event: &Publish) {
    if event.target == Target::Broadcast {
        let key = call.name();
        tracing::info!(target: "audit", action = "broadcast", key, r#type = event.kind);
    }
}

/// Publishes all of them, in order. The answers stand in the order of the events.
pub(super) async fn send(state: &State, wanted: Vec<Wanted>) -> Vec<Result<Answer, Problem>> {
    let begun = Instant::now();
    let mut waves = Waves::new(&*state.publisher);
    // So many posts belong to each event, unless it could not be written.
    let mut shares = Vec::with_capacity(wanted.len());
    for Wanted { event, once } in &wanted {
        shares.push(match prepare(state, event, once.as_ref()) {
            Ok(own) => {
                let share = own.len();
                waves.add(own).await;
                Ok(share)
            }
            Err(problem) => Err(problem),
        });
    }
    let mut receipts = waves.finish().await.into_iter().map(receipt);
    let took = begun.elapsed();
    let answers = wanted.iter().zip(shares).map(|(Wanted { event, .. }, share)| {
        // All of an event's own are taken, also after one that failed.
        let own: Vec<_> = receipts.by_ref().take(share?).collect();
        let answer = own.into_iter().collect::<Result<_, _>>().map(|own| answer(event, own));
        state.metrics.published(event.target, answer.is_ok(), took);
        answer
    });
    answers.collect()
}

/// One post for each channel that the event goes to.
pub(super) fn prepare(
    state: &State,
    event: &Publish,
    once: Option<&Once>,
) -> Result<Vec<Post>, Problem> {
    // A list of users is addressed without its exceptions, so they need not ride along.
    let except: &[_] = if event.target.names_users() { &[] } else { &event.except };
    let said =
        envelope::Event { kind: &event.kind, data: &event.data, sender: event.sender.as_deref() };
    let transient = event.keep == Keep::Transient;
    let parts = envelope::encode(&said, except, transient).map_err(|error| {
        tracing::error!(%error, "an event could not be written");
        Problem::new(Kind::Internal)
    })?;
    let keep = if state.history.keeps() { event.keep } else { Keep::Transient };
    let online = event.target.names_users().then(|| state.seats.alive());
    let post = |to: &Channel| Post {
        to: to.clone(),
        event: parts.clone(),
        keep,
        once: once.map(|once| once.of(to)),
        online: online.clone(),
    };
    Ok(event.to.iter().map(post).collect())
}

fn receipt(answer: Result<Posted, BusError>) -> Result<Receipt, Problem> {
    match answer {
        Ok(Posted::Done(receipt)) => Ok(receipt),
        Ok(Posted::Conflict) => Err(conflict()),
        Err(error) => Err(away(&error)),
    }
}

fn answer(event: &Publish, receipts: Vec<Receipt>) -> Answer {
    if event.target != Target::Users {
        return Answer::One(receipts.into_iter().next().unwrap_or_default());
    }
    let events = event.to.iter().zip(receipts).filter_map(|(to, receipt)| match to {
        Channel::User(user) => Some(ToUser { user: user.as_str().to_owned(), receipt }),
        _ => None,
    });
    Answer::Each { events: events.collect() }
}

/// The key was used for another request.
pub(super) fn conflict() -> Problem {
    Problem::invalid(vec![Member {
        pointer: String::new(),
        detail: "differs from what this idempotency key came with first".to_owned(),
    }])
}

pub(super) fn away(error: &BusError) -> Problem {
    tracing::debug!(%error, "a publish failed");
    Problem::unavailable()
}

/// A name and a fingerprint, put together from parts of any length. Hashed, so that neither can be
/// as long or as odd as it likes in a key of the store.
pub(super) struct Digest(Sha256);

impl Digest {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Of one part alone, as replicas of every version write the fingerprint of a body.
    pub(super) fn of(part: impl AsRef<[u8]>) -> Self {
        Self(Sha256::new().chain_update(part))
    }

    pub(super) fn add(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    /// The target; the same users in another order are the same.
    pub(super) fn target(self, event: &Publish) -> Self {
        let mut names: Vec<&str> = event.to.iter().map(name).collect();
        names.sort_unstable();
        names.into_iter().fold(self.add(event.target.label()), Self::add)
    }

    /// Base64 is as good as hexadecimal for a key, and shorter.
    pub(super) fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.finalize())
    }
}

fn name(channel: &Channel) -> &str {
    match channel {
        Channel::User(user) => user.as_str(),
        Channel::Group(group) => group.as_str(),
        Channel::Broadcast => "",
    }
}

/// Sees to it that a request of several parts is refused as a whole under a key of another: each
/// part has a key of its own, and those that were done first would be refused, the others not.
///
/// # Errors
/// 422 where the key belongs to another request, 503 where that cannot be known.
pub(super) async fn claim(state: &State, key: &str, fingerprint: &str) -> Result<(), Problem> {
    match state.store.claim(key, fingerprint, IDEMPOTENCY_TTL).await {
        // It stays claimed: who comes with the same request goes on to its parts.
        Ok(Claim::Fresh | Claim::Pending) => Ok(()),
        Ok(Claim::Done { fingerprint: first, .. }) if first == fingerprint => Ok(()),
        Ok(Claim::Done { .. }) => Err(conflict()),
        Err(error) => Err(away(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart() {
        let text = |parts: &[&str]| parts.iter().fold(Digest::new(), Digest::add).text();
        assert_ne!(text(&["ab", "c"]), text(&["a", "bc"]));
        assert_ne!(text(&["a", ""]), text(&["a"]));
        assert_eq!(text(&["a"]).len(), 43);
    }
    /// A retry may reach a replica of the version before, or come from one.
    #[test]
    fn the_fingerprint_of_a_body_is_that_of_the_version_before() {
        assert_eq!(Digest::of("{}").text(), "RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o");
    }
}

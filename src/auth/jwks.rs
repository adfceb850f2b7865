//! An issuer's published keys (RFC 7517 §5), kept fresh in the background.
//!
//! One task, [`Jwks::run`], does all the fetching, so there is never more than one request to an
//! issuer at once, whatever clients send. A token whose key is not known asks that task for a look
//! and waits for it a little, so that a rotation costs a moment and refuses nobody; what bounds the
//! looks is `auth.jwks.floor`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::Rng as _;
use reqwest::{Client, redirect};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::keys::{self, Key, Tried};
use crate::{
    config::{self, Profile},
    telemetry::{JwksRefresh, Metrics},
};

/// A larger answer is no key set.
const SET_BYTES: usize = 256 * 1024;
/// How long a token may wait for its key.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a failed look the next comes this soon, and then after twice the time, up to the floor.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Names of keys that are remembered as not there.
const MISSING: usize = 256;

/// The keys of one issuer.
pub struct Jwks {
    /// The table of the configuration that names it, for people.
    section: String,
    url: String,
    https_only: bool,
    settings: config::Jwks,
    state: watch::Sender<State>,
    wanted: Notify,
    /// Names of keys that were asked for and not there at the last look: until the floor allows
    /// another look they are refused at once, and cause none.
    missing: Mutex<VecDeque<String>>,
}

#[derive(Clone)]
struct State {
    keys: Arc<[Key]>,
    /// A look is under way.
    busy: bool,
    /// The last look that ended: when it began, and whether it brought keys.
    last: Option<(Instant, bool)>,
    /// When the last look began that a token asked for.
    asked: Option<Instant>,
}

/// Whether more could still become known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The keys are at least as new as the question.
    Certain,
    /// The issuer was not asked again, or did not answer: it may have a newer key.
    Uncertain,
}

impl Jwks {
    /// The set at `url`, not fetched yet.
    #[must_use]
    pub fn new(section: &str, url: &str, profile: Profile, settings: &config::Jwks) -> Self {
        // Busy from the start: the first look is about to begin.
        let state = State { keys: Arc::new([]), busy: true, last: None, asked: None };
        Self {
            section: section.to_owned(),
            url: url.to_owned(),
            https_only: profile == Profile::Production,
            settings: settings.clone(),
            state: watch::Sender::new(state),
            wanted: Notify::new(),
            missing: Mutex::default(),
        }
    }

    /// Whether this is the set of that table, at that place.
    #[must_use]
    pub fn is(&self, section: &str, url: &str) -> bool {
        self.section == section && self.url == url
    }

    /// Judges the keys, and once more when there are newer ones, until the verdict cannot change or
    /// patience ends.
    pub async fn judge(
        &self,
        kid: Option<&str>,
        verdict: impl Fn(&[Key]) -> Tried,
    ) -> (Tried, Certainty) {
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        let mut states = self.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            let tried = verdict(&state.keys);
            // A key that is named and there does not change. One without a name may stand in for
            // any, but the one that is meant may still come.
            let there = || kid.is_some_and(|kid| state.keys.iter().any(|key| key.is_named(kid)));
            if tried == Tried::Match || (tried == Tried::Mismatch && there()) {
                return (tried, Certainty::Certain);
            }
            match state.last {
                Some((at, true)) if at >= begun => {
                    if let Some(kid) = kid {
                        self.remember_missing(kid);
                    }
                    return (tried, Certainty::Certain);
                }
                Some((at, false)) if at >= begun => return (tried, Certainty::Uncertain),
                _ => {}
            }
            // When a token may next cause a look.
            let floor = state.asked.map(|at| at + self.settings.floor);
            // While a look is under way, what was missing before it may be in it.
            let recent = !state.busy && floor.is_some_and(|at| at > begun);
            if recent && kid.is_some_and(|kid| self.is_missing(kid)) {
                return (tried, Certainty::Certain);
            }
            if !state.busy {
                self.wanted.notify_one();
                if floor.is_some_and(|at| at > deadline) {
                    return (tried, Certainty::Uncertain);
                }
            }
            match timeout_at(deadline, states.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return (tried, Certainty::Uncertain),
            }
        }
    }

    fn is_missing(&self, kid: &str) -> bool {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|name| name == kid)
    }

    fn remember_missing(&self, kid: &str) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if !missing.iter().any(|name| name == kid) {
            if missing.len() == MISSING {
                missing.pop_front();
            }
            missing.push_back(kid.to_owned());
        }
    }

    /// Looks now, then again and again. Never returns.
    pub async fn run(&self, metrics: Option<&Metrics>) {
        let mut due = Instant::now();
        let mut asked = None;
        let mut wanted = false;
        let mut failures = 0_u32;
        let mut client = None;
        loop {
            let allowed = asked.map_or_else(Instant::now, |at: Instant| at + self.settings.floor);
            let at = if wanted { due.min(allowed) } else { due };
            tokio::select! {
                biased;
                () = sleep_until(at) => {}
                () = self.wanted.notified(), if !wanted => {
                    wanted = true;
                    continue;
                }
            }
            let begun = Instant::now();
            if wanted {
                asked = Some(begun);
                wanted = false;
            }
            self.state.send_modify(|state| {
                state.busy = true;
                state.asked = asked;
            });
            let fetched = self.fetch(&mut client).await;
            self.tell(&fetched, failures, metrics);
            if fetched.is_ok() {
                failures = 0;
                // What was missing may have come.
                self.missing.lock().unwrap_or_else(PoisonError::into_inner).clear();
            } else {
                failures = failures.saturating_add(1);
            }
            due = Instant::now() + self.pause(failures);
            self.state.send_modify(|state| {
                state.busy = false;
                state.last = Some((begun, fetched.is_ok()));
                if let Ok(keys) = fetched {
                    state.keys = keys.into();
                }
            });
        }
    }

    /// The time to the next look, spread so that replicas do not come together.
    fn pause(&self, failures: u32) -> Duration {
        let pause = match failures.checked_sub(1) {
            None => self.settings.refresh,
            Some(doublings) => FIRST_RETRY
                .saturating_mul(2_u32.saturating_pow(doublings.min(16)))
                .min(self.settings.floor.max(FIRST_RETRY))
                .min(self.settings.refresh),
        };
        pause.mul_f64(rand::rng().random_range(0.9..1.1))
    }

    fn tell(
        &self,
        fetched: &Result<Vec<Key>, Unfetched>,
        failures: u32,
        metrics: Option<&Metrics>,
    ) {
        let issuer = self.section.as_str();
        let result = match fetched {
            Ok(keys) => {
                if failures > 0 {
                    tracing::info!(issuer, keys = keys.len(), "the issuer's keys are here again");
                }
                JwksRefresh::Ok
            }
            Err(why) => {
                // Once, however long it stays away.
                if failures == 0 {
                    tracing::warn!(issuer, %why, "no keys from the issuer; those known stay in use");
                }
                match why {
                    Unfetched::Away(_) | Unfetched::Status(_) => JwksRefresh::Failed,
                    Unfetched::TooLarge | Unfetched::Invalid(_) => JwksRefresh::Invalid,
                }
            }
        };
        if let Some(metrics) = metrics {
            metrics.jwks_refresh(result);
        }
    }

    async fn fetch(&self, client: &mut Option<Client>) -> Result<Vec<Key>, Unfetched> {
        let client = match client {
            Some(client) => client,
            none => none.insert(self.client()?),
        };
        let request = client.get(&self.url).header("accept", "application/json");
        let mut response = request.send().await?;
        if response.status().as_u16() != 200 {
            return Err(Unfetched::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > SET_BYTES {
                return Err(Unfetched::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        keys::published(&body).map_err(Unfetched::Invalid)
    }

    /// It goes where the configuration says and nowhere else: no redirect, no proxy from the
    /// environment; and it keeps no connection, because looks are minutes apart.
    fn client(&self) -> Result<Client, reqwest::Error> {
        Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .https_only(self.https_only)
            .timeout(self.settings.timeout)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("belfry/", env!("CARGO_PKG_VERSION")))
            .build()
    }
}

/// Why a look brought nothing.
#[derive(Debug, thiserror::Error)]
enum Unfetched {
    #[error("no answer: {0}")]
    Away(String),
    #[error("the status is {0}, not 200")]
    Status(u16),
    #[error("the answer is over {SET_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Invalid(&'static str),
}

impl From<reqwest::Error> for Unfetched {
    /// With its causes, of which the last says the most, and without the URL.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self::Away(text)
    }
}

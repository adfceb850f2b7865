//! The actor that reads the stream while this replica holds the lease.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Entry, Ingest, Job};
use crate::{
    bus::{BusError, Post, Posted, Publisher, Wave},
    telemetry::{DropReason, Metrics},
    throttle::Throttle,
};

/// How long a replica has the stream to itself without saying so again.
pub(in crate::bus) const LEASE: Duration = Duration::from_secs(5);
/// How often it says so, and how often the others ask.
const RENEW: Duration = Duration::from_secs(1);
/// It stops by itself this long before the others may begin, for clocks and pauses.
const MARGIN: Duration = Duration::from_secs(1);
/// A read that failed may still be carried out this long, and take entries: what is unfinished is only
/// looked at after it, so that it comes before what follows.
const LATE: Duration = Duration::from_secs(1);
/// Channels of the entries that are read into memory at once, beside those of the last entry.
const CHANNELS: usize = 256;
/// Waits after a failure: the first, and the longest.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Publishes what comes, in order.
pub struct Reader<P> {
    stream: Arc<dyn Ingest>,
    publisher: Arc<dyn Publisher>,
    /// Makes a job of an entry; the error says why it is none.
    parse: P,
    metrics: Metrics,
    /// The lease is ours until then.
    until: Instant,
    /// When to ask for it again.
    renew: Instant,
    rejections: Throttle,
    complaints: Throttle,
}

/// What became of a number of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All are done.
    Done,
    /// Some are to be tried again.
    Again,
    /// The lease is another's now.
    Lost,
}

impl<P: Fn(&Entry) -> Result<Job, String>> Reader<P> {
    /// An actor that has not begun.
    pub fn new(
        stream: Arc<dyn Ingest>,
        publisher: Arc<dyn Publisher>,
        parse: P,
        metrics: Metrics,
    ) -> Self {
        let now = Instant::now();
        let (rejections, complaints) = Default::default();
        Self { stream, publisher, parse, metrics, until: now, renew: now, rejections, complaints }
    }

    /// Reads for as long as it is polled.
    pub async fn run(mut self) {
        loop {
            if self.holds().await {
                tracing::info!("this replica reads the publish stream");
                self.work().await;
                self.metrics.publish_backlog(0);
                tracing::info!("this replica reads the publish stream no more");
            }
            sleep(RENEW).await;
        }
    }

    /// Whether the lease is ours, asking again where it is time to.
    async fn holds(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.renew {
            self.renew = now + RENEW;
            match self.stream.hold().await {
                Ok(true) => self.until = now + LEASE - MARGIN,
                Ok(false) => self.until = now,
                Err(error) => self.complain(&error),
            }
        }
        Instant::now() < self.until
    }

    /// Until the lease is lost.
    async fn work(&mut self) {
        let mut patience = PATIENCE.0;
        // What a replica before us left, also this one.
        let mut behind = true;
        let mut tidied = None;
        while self.holds().await {
            if tidied.is_none_or(|at: Instant| at.elapsed() >= RENEW) {
                tidied = Some(Instant::now());
                self.trim().await;
                // One that lost the lease may have taken entries a moment later.
                behind = true;
            }
            let read =
                if behind { self.stream.unfinished().await } else { self.stream.next().await };
            let outcome = match read {
                Ok(entries) if entries.is_empty() => {
                    behind = false;
                    Outcome::Done
                }
                Ok(entries) => self.publish(entries).await,
                Err(error) => {
                    self.complain(&error);
                    sleep(LATE).await;
                    Outcome::Again
                }
            };
            match outcome {
                Outcome::Done => patience = PATIENCE.0,
                Outcome::Again => {
                    behind = true;
                    sleep(patience).await;
                    patience = (patience * 2).min(PATIENCE.1);
                }
                Outcome::Lost => return,
            }
        }
    }

    async fn trim(&self) {
        match self.stream.trim().await {
            Ok(backlog) => {
                self.metrics.publish_backlog(backlog.entries);
                if backlog.trimmed > 0 {
                    self.metrics.dropped(DropReason::PublishTrimmed, backlog.trimmed);
                    tracing::warn!(
                        trimmed = backlog.trimmed,
                        "events in the publish stream are dropped: too many wait"
                    );
                }
            }
            Err(error) => self.complain(&error),
        }
    }

    async fn publish(&mut self, entries: Vec<Entry>) -> Outcome {
        let mut entries = entries.into_iter();
        loop {
            // In parts, so that a page of long lists of users is not all in memory.
            let (mut jobs, mut done, mut channels) = (Vec::new(), Vec::new(), 0);
            while channels < CHANNELS
                && let Some(entry) = entries.next()
            {
                if entry.fields.is_empty() {
                    tracing::debug!(entry = entry.id, "trimmed before it was published");
                    done.push(entry.id);
                    continue;
                }
                match (self.parse)(&entry) {
                    Ok(job) => {
                        channels += job.posts.len();
                        jobs.push((entry.id, job));
                    }
                    Err(why) => {
                        self.reject(&entry.id, &why);
                        done.push(entry.id);
                    }
                }
            }
            if jobs.is_empty() && done.is_empty() {
                return Outcome::Done;
            }
            if !self.holds().await {
                return Outcome::Lost;
            }
            let outcome = self.post(jobs, &mut done).await;
            if outcome == Outcome::Lost {
                return outcome;
            }
            if let Err(error) = self.stream.done(done).await {
                self.complain(&error);
                return Outcome::Again;
            }
            if outcome == Outcome::Again {
                return outcome;
            }
        }
    }

    /// Publishes. Entries that are not to be tried again are added to `done`.
    async fn post(&mut self, jobs: Vec<(String, Job)>, done: &mut Vec<String>) -> Outcome {
        let begun = Instant::now();
        let (mut owners, mut posts) = (Vec::with_capacity(jobs.len()), Vec::new());
        for (id, Job { target, posts: own }) in jobs {
            owners.push((id, target, own.len()));
            posts.extend(own);
        }
        let Some(answers) = self.post_all(posts).await else { return Outcome::Lost };
        let mut answers = answers.into_iter();
        let mut outcome = Outcome::Done;
        for (id, target, count) in owners {
            let answers: Vec<_> = answers.by_ref().take(count).collect();
            let verdict = verdict(&answers);
            let accepted = matches!(verdict, Verdict::Done);
            self.metrics.published(target, accepted, begun.elapsed());
            match verdict {
                Verdict::Done => done.push(id),
                Verdict::Never(why) => {
                    self.reject(&id, why);
                    done.push(id);
                }
                Verdict::Again(error) => {
                    self.complain(error);
                    outcome = Outcome::Again;
                }
            }
        }
        outcome
    }

    /// The answers, in the order of the posts; `None`: the lease was lost before all were sent.
    async fn post_all(&mut self, posts: Vec<Post>) -> Option<Vec<Result<Posted, BusError>>> {
        let (mut wave, mut answers) = (Wave::default(), Vec::with_capacity(posts.len()));
        for post in posts {
            if let Some(full) = wave.add(post) {
                answers.extend(self.publisher.post(full).await);
                if !self.holds().await {
                    return None;
                }
            }
        }
        if let Some(rest) = wave.rest() {
            answers.extend(self.publisher.post(rest).await);
        }
        Some(answers)
    }

    fn reject(&self, entry: &str, why: &str) {
        self.metrics.dropped(DropReason::PublishInvalid, 1);
        if let Some(held_back) = self.rejections.check() {
            tracing::warn!(entry, why, held_back, "an entry of the publish stream is dropped");
        }
    }

    fn complain(&self, error: &BusError) {
        if let Some(held_back) = self.complaints.check() {
            tracing::warn!(%error, held_back, "the publish stream waits");
        }
    }
}

/// What is to become of an entry.
enum Verdict<'a> {
    Done,
    /// It will be the same next time.
    Never(&'a str),
    Again(&'a BusError),
}

fn verdict(answers: &[Result<Posted, BusError>]) -> Verdict<'_> {
    let mut verdict = Verdict::Done;
    for answer in answers {
        match answer {
            Ok(Posted::Done(_)) => {}
            Ok(Posted::Conflict) => {
                return Verdict::Never("its key came with another event first");
            }
            // A key of this name that is no stream: nothing else is in the way, and it must not
            // hold up the rest. Any other refusal is Redis's own trouble (full, read-only, no
            // right), which passes.
            Err(BusError::Refused(reason)) if reason.starts_with("WRONGTYPE") => {
                return Verdict::Never(reason);
            }
            Err(error) => verdict = Verdict::Again(error),
        }
    }
    verdict
}

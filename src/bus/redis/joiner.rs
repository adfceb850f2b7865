//! Joins the posts of many requests: those that come while a few others are on their way to Redis,
//! or in the same turn of the loop, go together with one call of `publish.lua`. A call costs Redis
//! and us more than an event does.
//!
//! One task takes all posts in their order, so that those of one channel keep it. Who comes alone
//! goes alone, and at once.

use std::sync::Arc;

use fred::types::Value;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, poll_immediate},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    calls::Calls,
    commands::Commands,
    foreign::is_foreign,
    recent::{Entry, Event, Recent},
    said::Said,
    scripts::Scripts,
    setup::Server,
};
use crate::{
    bus::{BusError, Post, Posted, Receipt},
    event::Tag,
};

/// Events of one call: with more, Redis would keep others waiting for longer than a millisecond,
/// and there is not much left to be saved.
const EVENTS: usize = 32;
/// And their bytes, beside the last one.
const BYTES: usize = 256 * 1024;

/// With so many calls under way, posts wait for one of them to be answered, or for a call to be
/// full: under load calls get larger, and not more. With few, nobody waits.
const UNDERWAY: usize = 4;

/// What became of posts, in their order.
pub(super) type Answers = Vec<Result<Posted, BusError>>;

/// Some posts that go with one call.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) posts: Vec<Post>,
    /// The call brings the text of the script.
    pub(super) whole: bool,
    /// Who waits for the answers waits no longer than this.
    pub(super) deadline: Instant,
    pub(super) answers: oneshot::Sender<Answers>,
}

fn bytes(post: &Post) -> usize {
    post.event.head.len() + post.event.members.len()
}

/// Divides posts among calls, in their order. On a cluster each has its own, since a call may name
/// keys of one slot only.
pub(super) fn divide(posts: Vec<Post>, cluster: bool) -> Vec<Vec<Post>> {
    let most = if cluster { 1 } else { EVENTS };
    let mut all: Vec<Vec<Post>> = Vec::with_capacity(posts.len().div_ceil(most));
    let mut room = 0;
    for post in posts {
        let size = bytes(&post);
        match all.last_mut() {
            Some(last) if last.len() < most && room > 0 => last.push(post),
            _ => {
                room = BYTES;
                all.push(vec![post]);
            }
        }
        room = room.saturating_sub(size);
    }
    all
}

/// Jobs that are still to be sent, in their order.
#[derive(Default)]
struct Waiting(Vec<Job>);

impl Waiting {
    /// Takes the first ones, as many as one call is good for.
    fn group(&mut self) -> Vec<Job> {
        let (count, _) = self.first();
        self.0.drain(..count).collect()
    }

    /// Takes the first.
    fn one(&mut self) -> Vec<Job> {
        let count = self.0.len().min(1);
        self.0.drain(..count).collect()
    }

    /// There is no room for another in the call of the first ones.
    fn is_full(&self) -> bool {
        self.first().1
    }

    /// How many of them one call is good for, and whether it has no room for more.
    fn first(&self) -> (usize, bool) {
        let (mut events, mut size) = (0, 0);
        for (count, job) in self.0.iter().enumerate() {
            events += job.posts.len();
            size += job.posts.iter().map(bytes).sum::<usize>();
            if count > 0 && (events > EVENTS || size > BYTES) {
                return (count, true);
            }
        }
        (self.0.len(), events >= EVENTS || size >= BYTES)
    }
}

/// The task. It ends when nobody can send it anything any more.
pub(super) struct Joiner {
    pub(super) commands: Arc<Commands>,
    pub(super) calls: Arc<Calls>,
    pub(super) scripts: Arc<Scripts>,
    pub(super) recent: Arc<Recent>,
    pub(super) server: Arc<Server>,
}

impl Joiner {
    /// Runs until the last sender of `jobs` is gone, and everything is answered.
    pub(super) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let cluster = self.calls.names.is_cluster();
        let mut underway: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut waiting = Waiting::default();
        let mut open = true;
        while open || !underway.is_empty() {
            tokio::select! {
                biased;
                // Answers first: who gets one may come with the next post, which then goes along.
                Some(()) = underway.next() => {}
                taken = jobs.recv_many(&mut waiting.0, EVENTS), if open => open = taken > 0,
            }
            while waiting.is_full() || cluster || !open || underway.len() < UNDERWAY {
                let group = if cluster { waiting.one() } else { waiting.group() };
                if group.is_empty() {
                    break;
                }
                let mut call = self.carry_out(group).boxed();
                // The first poll hands it to the connection.
                if poll_immediate(&mut call).await.is_none() {
                    underway.push(call);
                }
            }
        }
    }

    async fn carry_out(&self, jobs: Vec<Job>) {
        let mut answers = self.call(&jobs).await.into_iter();
        for Job { posts, answers: to, .. } in jobs {
            let own = answers.by_ref().take(posts.len()).collect();
            if to.send(own).is_err() {
                tracing::trace!("a publisher did not wait for its answer");
            }
        }
    }

    async fn call(&self, jobs: &[Job]) -> Answers {
        let posts: Vec<&Post> = jobs.iter().flat_map(|job| &job.posts).collect();
        let whole = jobs.iter().any(|job| job.whole);
        // Each of those who wait has a look at the time of their own.
        let deadline = jobs.iter().map(|job| job.deadline).max().unwrap_or_else(Instant::now);
        let all = |error: &BusError| posts.iter().map(|_| Err(error.clone())).collect();
        if deadline <= Instant::now() {
            // Nobody waits any more. A command without time would only fail, and its connection
            // would be given up for it.
            return all(&BusError::Away("too many posts are waiting for it".to_owned()));
        }
        let turn = match self.commands.turn_until(deadline) {
            Ok(turn) => turn,
            Err(error) => return all(&error),
        };
        let script = &self.scripts.publish;
        match script.run_one::<Vec<Value>>(&turn, whole, || self.calls.publish(&posts)).await {
            Ok(lines) if lines.len() == posts.len() => {
                let read = |(post, line): (&Post, &Value)| match turn.heed(Said::read(line)) {
                    Ok(said) => Ok(self.read(post, said)),
                    Err(error) => {
                        if let BusError::Refused(reason) = &error
                            && is_foreign(reason)
                        {
                            let complaints = &self.server.complaints;
                            complaints.unpublished(&self.calls.names, &post.to, reason);
                        }
                        Err(error)
                    }
                };
                posts.iter().copied().zip(&lines).map(read).collect()
            }
            Ok(lines) => all(&BusError::Away(format!("a script answered {} lines", lines.len()))),
            Err(error) => all(&error),
        }
    }

    fn read(&self, post: &Post, said: Said) -> Posted {
        match said {
            Said::New { place, online, until } => {
                let tag = Tag::of(&post.to);
                if let Some((at, prev)) = place {
                    let event = Some(Event { parts: post.event.clone(), until });
                    self.recent.add(Entry { channel: post.to.clone(), at, prev, event });
                }
                Posted::Done(Receipt::new(&tag, place.map(|(at, _)| at), online))
            }
            Said::Again(answer) => Posted::Done(Receipt::remembered(&answer)),
            Said::Conflict => Posted::Conflict,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        bus::{Keep, envelope::Parts},
        event::Channel,
    };

    fn posts(count: usize, bytes: usize) -> Vec<Post> {
        let members = Bytes::from(vec![b'x'; bytes]);
        let post = Post {
            to: Channel::Broadcast,
            event: Parts { head: Bytes::new(), members },
            keep: Keep::Kept,
            once: None,
            online: None,
        };
        vec![post; count]
    }

    fn waiting(jobs: &[(usize, usize)]) -> Waiting {
        let job = |(count, bytes): &(usize, usize)| Job {
            posts: posts(*count, *bytes),
            whole: false,
            deadline: Instant::now(),
            answers: oneshot::channel().0,
        };
        Waiting(jobs.iter().map(job).collect())
    }

    #[test]
    fn jobs_are_joined_in_their_order_and_none_is_split() {
        let groups = |jobs: &[(usize, usize)]| {
            let mut waiting = waiting(jobs);
            let next = || Some(waiting.group()).filter(|group| !group.is_empty());
            let counts = |group: Vec<Job>| group.iter().map(|job| job.posts.len()).collect();
            std::iter::from_fn(next).map(counts).collect::<Vec<Vec<usize>>>()
        };
        assert!(groups(&[]).is_empty());
        assert_eq!(groups(&[(1, 1), (2, 1), (3, 1)]), [[1, 2, 3]]);
        let (some, more) = (EVENTS - 1, 2);
        assert_eq!(groups(&[(some, 1), (1, 1), (more, 1)]), [vec![some, 1], vec![more]]);
        assert_eq!(groups(&[(some, 1), (more, 1), (1, 1)]), [vec![some], vec![more, 1]]);
        assert_eq!(groups(&[(1, BYTES), (1, 1), (1, BYTES)]), [[1], [1], [1]]);
        assert_eq!(waiting(&[(2, 1), (1, 1)]).one().len(), 1);
        assert!(waiting(&[]).one().is_empty());
    }

    #[test]
    fn a_call_is_full_once_no_more_would_fit() {
        assert!(!waiting(&[]).is_full());
        assert!(!waiting(&[(EVENTS - 1, 1)]).is_full());
        assert!(waiting(&[(EVENTS, 1)]).is_full());
        assert!(waiting(&[(EVENTS - 1, 1), (2, 1)]).is_full());
        assert!(waiting(&[(1, BYTES)]).is_full());
    }

    #[test]
    fn calls_are_bounded_in_events_and_in_bytes() {
        let lengths = |count, bytes, cluster| {
            divide(posts(count, bytes), cluster).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert!(lengths(0, 1, false).is_empty());
        assert_eq!(lengths(1, 2 * BYTES, false), [1]);
        assert_eq!(lengths(2 * EVENTS + 1, 1, false), [EVENTS, EVENTS, 1]);
        assert_eq!(lengths(6, BYTES / 2, false), [2, 2, 2]);
        assert_eq!(lengths(3, 1, true), [1, 1, 1]);
    }
}

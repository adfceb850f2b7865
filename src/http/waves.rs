//! Many posts of one request, sent one part after another.
//!
//! A batch may name a million users. All at once they would take every place on the way to the bus
//! from others, this replica's own probe among them, hold gigabytes, and outlast the time that one
//! call of the bus has, for which its connection would be given up.

use crate::bus::{BusError, Post, Posted, Publisher};

/// Posts that go to the bus at once.
const POSTS: usize = 512;
/// And their bytes, beside the last one.
const BYTES: usize = 4 * 1024 * 1024;

/// Sends what is added to it.
pub(super) struct Waves<'a> {
    publisher: &'a dyn Publisher,
    posts: Vec<Post>,
    bytes: usize,
    answers: Vec<Result<Posted, BusError>>,
    /// Nothing of a whole wave got through: what follows would only wait in vain, and in all for
    /// much longer than a request may take while the bus is away.
    away: Option<BusError>,
}

impl<'a> Waves<'a> {
    /// Nothing yet.
    pub(super) fn new(publisher: &'a dyn Publisher) -> Self {
        Self { publisher, posts: Vec::new(), bytes: 0, answers: Vec::new(), away: None }
    }

    /// Sends these after those before, now or with those that follow.
    pub(super) async fn add(&mut self, posts: Vec<Post>) {
        for post in posts {
            self.bytes += post.event.head.len() + post.event.members.len();
            self.posts.push(post);
            if self.posts.len() >= POSTS || self.bytes >= BYTES {
                self.send().await;
            }
        }
    }

    /// Sends the rest. The answers stand in the order of the posts, each for itself.
    pub(super) async fn finish(mut self) -> Vec<Result<Posted, BusError>> {
        if !self.posts.is_empty() {
            self.send().await;
        }
        self.answers
    }

    async fn send(&mut self) {
        let posts = std::mem::take(&mut self.posts);
        self.bytes = 0;
        if let Some(error) = &self.away {
            self.answers.extend(posts.iter().map(|_| Err(error.clone())));
            return;
        }
        let answers = self.publisher.post(posts).await;
        if answers.iter().all(|answer| matches!(answer, Err(BusError::Away(_)))) {
            self.away = answers.iter().find_map(|answer| answer.as_ref().err().cloned());
        }
        self.answers.extend(answers);
    }
}

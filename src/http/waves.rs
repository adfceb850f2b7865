//! The posts of one request, sent in waves: a batch may name a million users.

use crate::bus::{BusError, Post, Posted, Publisher, Wave};

/// Sends what is added to it.
pub(super) struct Waves<'a> {
    publisher: &'a dyn Publisher,
    next: Wave,
    answers: Vec<Result<Posted, BusError>>,
    /// Nothing of a whole wave got through: what follows would only wait in vain, and in all for
    /// much longer than a request may take while the bus is away.
    away: Option<BusError>,
}

impl<'a> Waves<'a> {
    /// Nothing yet.
    pub(super) fn new(publisher: &'a dyn Publisher) -> Self {
        Self { publisher, next: Wave::default(), answers: Vec::new(), away: None }
    }

    /// Sends these after those before, now or with those that follow.
    pub(super) async fn add(&mut self, posts: Vec<Post>) {
        for post in posts {
            if let Some(wave) = self.next.add(post) {
                self.send(wave).await;
            }
        }
    }

    /// Sends the rest. The answers stand in the order of the posts, each for itself.
    pub(super) async fn finish(mut self) -> Vec<Result<Posted, BusError>> {
        if let Some(wave) = self.next.rest() {
            self.send(wave).await;
        }
        self.answers
    }

    async fn send(&mut self, posts: Vec<Post>) {
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

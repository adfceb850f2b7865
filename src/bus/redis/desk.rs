//! What many ask at once, asked together.
//!
//! While an answer is on its way, what others ask waits for it, and then goes in one go. So a
//! question that comes alone goes at once, and in a crowd the cost of asking is shared.

use std::{fmt, future::Future};

use tokio::sync::{mpsc, oneshot};

use crate::bus::BusError;

/// Questions that go together at most.
const MOST: usize = 256;

type Answer<A> = Result<A, BusError>;
type Asker<A> = oneshot::Sender<Answer<A>>;

/// Where questions are left. Clones lead to the same desk.
pub(crate) struct Desk<Q, A>(mpsc::Sender<(Q, Asker<A>)>);

impl<Q, A> Clone for Desk<Q, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q, A> fmt::Debug for Desk<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

impl<Q: Send + 'static, A: Send + 'static> Desk<Q, A> {
    /// A desk whose questions `ask` finds the answers to, in their order. It runs on the tokio
    /// runtime it is opened in, and closes with its last clone.
    pub(crate) fn open<F, Fut>(ask: F) -> Self
    where
        F: Fn(Vec<Q>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<Answer<A>>> + Send,
    {
        // More wait in front of it.
        let (sender, mut left) = mpsc::channel(MOST);
        tokio::spawn(async move {
            let mut some: Vec<(Q, Asker<A>)> = Vec::new();
            while left.recv_many(&mut some, MOST).await > 0 {
                let (questions, askers): (Vec<Q>, Vec<Asker<A>>) = some.drain(..).unzip();
                for (asker, answer) in askers.into_iter().zip(ask(questions).await) {
                    // One who does not wait any more needs no answer.
                    drop(asker.send(answer));
                }
            }
        });
        Self(sender)
    }

    /// Leaves a question and waits for its answer: one round trip, or two where another is under
    /// way.
    ///
    /// # Errors
    /// What the desk answers, or that it has closed.
    pub(crate) async fn ask(&self, question: Q) -> Answer<A> {
        let closed = || BusError::Away("nobody asks it any more".to_owned());
        let (asker, answer) = oneshot::channel();
        self.0.send((question, asker)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn the_first_goes_alone_and_the_rest_together() {
        let (asked, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
        let (log, open) = (Arc::clone(&asked), Arc::clone(&gate));
        let desk = Desk::open(move |questions: Vec<usize>| {
            log.lock().unwrap().push(questions.len());
            let open = Arc::clone(&open);
            async move {
                open.acquire().await.unwrap().forget();
                questions.into_iter().map(|n| Ok(n * 10)).collect()
            }
        });
        let first = tokio::spawn({
            let desk = desk.clone();
            async move { desk.ask(1).await }
        });
        while asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let rest = tokio::spawn(async move { join_all((2..9).map(|n| desk.ask(n))).await });
        tokio::task::yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap().unwrap(), 10);
        let answers: Vec<usize> = rest.await.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (2..9).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!(*asked.lock().unwrap(), [1, 7]);
    }

    #[tokio::test]
    async fn one_who_has_gone_is_passed_over() {
        let desk = Desk::open(|questions: Vec<u8>| async { questions.into_iter().map(Ok).collect() });
        drop(tokio::spawn({
            let desk = desk.clone();
            async move { drop(tokio::time::timeout(std::time::Duration::ZERO, desk.ask(1)).await) }
        }));
        assert_eq!(desk.ask(2).await.unwrap(), 2);
    }
}

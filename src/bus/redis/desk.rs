//! What many ask at once, asked together.
//!
//! While an answer is on its way, what others ask waits for it, and then goes in one go. So a
//! question that comes alone goes at once, and in a crowd the cost of asking is shared.

use std::{fmt, future::Future, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::bus::BusError;

/// Questions that go together at most.
const MOST: usize = 256;

/// So many together are a crowd.
const CROWD: usize = 4;
/// Behind a crowd, those who come next wait this long for company: to ask costs more than to find
/// the answer, and in a crowd a handshake waits longer than that for its worker.
const COMPANY: Duration = Duration::from_millis(1);

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
            loop {
                let count = left.recv_many(&mut some, MOST).await;
                if count == 0 {
                    return;
                }
                let (questions, askers): (Vec<Q>, Vec<Asker<A>>) = some.drain(..).unzip();
                for (asker, answer) in askers.into_iter().zip(ask(questions).await) {
                    // One who does not wait any more needs no answer.
                    drop(asker.send(answer));
                }
                if count >= CROWD {
                    sleep(COMPANY).await;
                }
            }
        });
        Self(sender)
    }

    /// Leaves a question and waits for its answer: one round trip, or two and a millisecond where
    /// another is under way.
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
    use tokio::{
        sync::Semaphore,
        time::{Instant, timeout},
    };

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

    #[tokio::test(start_paused = true)]
    async fn only_a_crowd_waits_for_company() {
        let desk =
            Desk::open(|questions: Vec<u8>| async { questions.into_iter().map(Ok).collect() });
        let begun = Instant::now();
        for n in 0..9 {
            assert_eq!(desk.ask(n).await.unwrap(), n);
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let crowd = join_all((0..CROWD).map(|_| desk.ask(1)));
        assert!(crowd.await.into_iter().all(|answer| answer.is_ok()));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        desk.ask(1).await.unwrap();
        assert_eq!(begun.elapsed(), COMPANY);
        desk.ask(1).await.unwrap();
        assert_eq!(begun.elapsed(), COMPANY);
    }

    #[tokio::test]
    async fn one_who_has_gone_is_passed_over() {
        let desk =
            Desk::open(|questions: Vec<u8>| async { questions.into_iter().map(Ok).collect() });
        drop(tokio::spawn({
            let desk = desk.clone();
            async move { drop(timeout(Duration::ZERO, desk.ask(1)).await) }
        }));
        assert_eq!(desk.ask(2).await.unwrap(), 2);
    }
}

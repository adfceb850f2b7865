//! Many commands in one go.

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

use futures_util::{StreamExt, future::maybe_done, stream::FuturesOrdered};

/// Runs all; each is polled once, in order, before any is waited for. The first poll hands a command
/// to the connection, so they are sent in that order and together. The answers stand in that order,
/// and all are waited for: dropping a command would not unsend it.
pub(super) async fn pipelined<T>(
    commands: impl Iterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    let mut running = FuturesOrdered::new();
    for command in commands {
        let mut command = Box::pin(maybe_done(command));
        let done = poll_fn(|cx| Poll::Ready(command.as_mut().poll(cx).is_ready())).await;
        running.push_back(async move {
            if !done {
                command.as_mut().await;
            }
            command.as_mut().take_output()
        });
    }
    running.filter_map(std::future::ready).collect().await
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn all_begin_before_any_is_waited_for() {
        let log = RefCell::new(Vec::new());
        let command = |n: usize| {
            let log = &log;
            async move {
                log.borrow_mut().push(n);
                for _ in 0..10 - n {
                    tokio::task::yield_now().await;
                }
                n * 10
            }
        };
        let answers = pipelined((0..10).map(command)).await;
        assert_eq!(answers, (0..10).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!(*log.borrow(), (0..10).collect::<Vec<_>>());
    }
}

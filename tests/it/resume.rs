//! Coming back: ids, the chain of them, cursors, and what follows a cursor (contract §4).
//!
//! Where nothing else is said, a test runs in memory and on Redis: the promises are the same.

/// Runs these functions of the module around once in memory and once on Redis.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::support::tab::Kind::Memory).await;
            })+
        }

        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::support::tab::Kind::Redis).await;
            })+
        }
    };
}

mod bounds;
mod chain;
mod cursor;
mod lost;
mod seam;
mod slow;
mod twice;

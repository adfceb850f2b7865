//! One-time tickets: put once, taken once, by whichever replica comes first.
//!
//! A ticket itself is kept nowhere: it is known by its SHA-256, so that who can read the store
//! cannot connect with what stands there. What it stands for lies in the clear for its 30 s, and
//! that may be the id of a session, which the same Redis commonly holds anyway.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use crate::bus::BusError;

/// How long a ticket is good for (contract §2).
pub const TICKET_TTL: Duration = Duration::from_secs(30);

/// Keeps tickets. Every method resolves within the command timeout.
pub trait Tickets: Send + Sync {
    /// Keeps what a ticket stands for, for [`TICKET_TTL`]. `name` is the ticket's SHA-256 as text.
    fn put_ticket<'a>(
        &'a self,
        name: &'a str,
        value: String,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// What a ticket stands for, once; `None`: it is used, over, or was never sold.
    fn take_ticket<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>>;
}

/// So many tickets are remembered at most in memory.
const MOST: usize = 100_000;

/// Tickets of one replica.
#[derive(Default)]
pub struct MemoryTickets(Mutex<State>);

#[derive(Default)]
struct State {
    tickets: HashMap<String, (Instant, String)>,
    swept: Option<Instant>,
}

/// Without what tickets stand for: among it are the ids of sessions.
impl fmt::Debug for MemoryTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTickets").finish_non_exhaustive()
    }
}

impl MemoryTickets {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No code that holds it panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tickets for MemoryTickets {
    fn put_ticket<'a>(
        &'a self,
        name: &'a str,
        value: String,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        async move {
            let now = Instant::now();
            let mut state = self.state();
            // It looks at every ticket, so at most once a second.
            if state.swept.is_none_or(|swept| now >= swept + Duration::from_secs(1)) {
                state.swept = Some(now);
                state.tickets.retain(|_, (end, _)| *end > now);
            }
            if state.tickets.len() >= MOST {
                return Err(BusError::Refused("too many tickets are remembered".to_owned()));
            }
            state.tickets.insert(name.to_owned(), (now + TICKET_TTL, value));
            Ok(())
        }
        .boxed()
    }

    fn take_ticket<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        async move {
            let found = self.state().tickets.remove(name);
            Ok(found.filter(|(end, _)| *end > Instant::now()).map(|(_, value)| value))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_and_in_time() {
        let tickets = MemoryTickets::default();
        tickets.put_ticket("a", "x".to_owned()).await.unwrap();
        tickets.put_ticket("b", "y".to_owned()).await.unwrap();
        assert_eq!(format!("{tickets:?}"), "MemoryTickets { .. }");
        assert_eq!(tickets.take_ticket("a").await.unwrap().as_deref(), Some("x"));
        assert_eq!(tickets.take_ticket("a").await.unwrap(), None);
        tokio::time::advance(TICKET_TTL).await;
        assert_eq!(tickets.take_ticket("b").await.unwrap(), None);
        tickets.put_ticket("c", "z".to_owned()).await.unwrap();
        tokio::time::advance(TICKET_TTL).await;
        tickets.put_ticket("d", "z".to_owned()).await.unwrap();
        assert_eq!(tickets.state().tickets.len(), 1, "what is over is forgotten");
    }
}

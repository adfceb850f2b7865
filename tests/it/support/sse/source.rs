//! A browser's `EventSource`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Duration, Instant},
};

use super::{Message, PING, Seen, Sse};
use crate::support::{
    client::{Dial, is_belfrys_own, mark},
    until,
};

/// What browsers wait before they come back, unless a stream says otherwise (Chromium: 3 s).
const RETRY: Duration = Duration::from_secs(3);

/// `readyState` of an [`EventSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    Open,
    /// It does not come back: the status that it got.
    Closed(u16),
}

/// An attempt to connect.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub at: Instant,
    /// `Last-Event-ID`, if there was one to send.
    pub last_event_id: Option<String>,
}

struct Source {
    state: watch::Sender<State>,
    attempts: Mutex<Vec<Attempt>>,
    messages: mpsc::UnboundedSender<(Instant, Message)>,
}

/// A browser's `EventSource`: it comes back for ever after a network error or the end of a stream,
/// and stops for ever at any answer but `200 text/event-stream`. Dropping it closes it.
pub struct EventSource {
    source: Arc<Source>,
    seen: mpsc::UnboundedReceiver<(Instant, Message)>,
    ahead: VecDeque<(Instant, Message)>,
    task: AbortHandle,
}

impl Drop for EventSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EventSource {
    /// `new EventSource(url)`
    pub fn new(dial: Dial) -> Self {
        let (messages, seen) = mpsc::unbounded_channel();
        let state = watch::channel(State::Connecting).0;
        let source = Arc::new(Source { state, attempts: Mutex::new(Vec::new()), messages });
        let task = tokio::spawn(source.clone().run(dial)).abort_handle();
        Self { source, seen, ahead: VecDeque::new(), task }
    }

    pub fn state(&self) -> State {
        *self.source.state.borrow()
    }

    pub fn attempts(&self) -> Vec<Attempt> {
        self.source.attempts.lock().expect("no panic while held").clone()
    }

    /// Waits until it is in this state.
    pub async fn is(&self, state: State, within: Duration) {
        until(&format!("the source is {state:?}"), within, async || {
            (self.state() == state).then_some(())
        })
        .await;
    }

    /// The next message that is not a ping.
    pub async fn message(&mut self, within: Duration) -> (Instant, Message) {
        let start = Instant::now();
        loop {
            if let Some(found) = self.ahead.pop_front() {
                return found;
            }
            let left = within.saturating_sub(start.elapsed());
            let next = tokio::time::timeout(left, self.seen.recv()).await;
            let state = self.state();
            let next = next.unwrap_or_else(|_| panic!("nothing within {within:?}, {state:?}"));
            let next = next.unwrap_or_else(|| panic!("the source ended: {state:?}"));
            if next.1.data != PING {
                self.ahead.push_back(next);
            }
        }
    }

    /// The markers `data.mk` of all events up to the one marked `last`, without it; Belfry's own
    /// words are passed over.
    pub async fn markers_before(&mut self, last: &str, within: Duration) -> Vec<String> {
        let start = Instant::now();
        let mut markers = Vec::new();
        loop {
            let left = within.saturating_sub(start.elapsed());
            let (_, message) = self.message(left).await;
            if is_belfrys_own(&message.data) {
                continue;
            }
            let marker = mark(&message.data);
            if marker == last {
                return markers;
            }
            markers.push(marker);
        }
    }
}

impl Source {
    async fn run(self: Arc<Self>, dial: Dial) {
        let mut retry = RETRY;
        let mut last_event_id = String::new();
        loop {
            let mut again = dial.clone();
            if !last_event_id.is_empty() {
                again.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("last-event-id"));
                again = again.header("Last-Event-ID", last_event_id.as_str());
            }
            let header = (!last_event_id.is_empty()).then(|| last_event_id.clone());
            let attempt = Attempt { at: Instant::now(), last_event_id: header };
            self.attempts.lock().expect("no panic while held").push(attempt);
            match Sse::dial(&again, None).await {
                // The standard: a network error makes it come back.
                Err(_) => {}
                Ok(Err(reply)) => {
                    self.state.send_replace(State::Closed(reply.status));
                    return;
                }
                Ok(Ok(mut sse)) => {
                    self.state.send_replace(State::Open);
                    loop {
                        let Some((at, seen)) = sse.seen.recv().await else { break };
                        match seen {
                            Seen::Message(message) => {
                                if self.messages.send((at, message)).is_err() {
                                    return;
                                }
                            }
                            Seen::End(_) => break,
                        }
                    }
                    if let Some(wait) = sse.retry() {
                        retry = Duration::from_millis(wait);
                    }
                    last_event_id = sse.last_event_id();
                }
            }
            self.state.send_replace(State::Connecting);
            tokio::time::sleep(retry).await;
        }
    }
}

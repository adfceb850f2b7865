//! The end of a connection, whatever its peer does.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use super::{Inbound, Received, live::millis};
use crate::{
    event::{Advice, CloseCause},
    frame::{self, Frame},
    net::Link,
    outbox::{Outbox, Signal},
};

/// How long a peer has to answer a close and to read what is left, before it is reset.
const FAREWELL: Duration = Duration::from_secs(5);
/// What a peer may still say before its close, in messages and pieces of them. They are for nobody, so
/// more is not decoded any more, only discarded: that costs less, also of those who were never let in.
const UNHEARD: u32 = 1000;

/// When a client that does not speak comes back with a new credential.
const RENEWED: Duration = Duration::from_secs(1);

/// How a connection ends.
pub(super) enum End {
    /// We close.
    Ours(CloseCause, Option<String>),
    /// The client closed, with this code.
    Theirs(Option<u16>),
}

impl End {
    /// What it is counted as.
    pub(super) fn cause(&self) -> CloseCause {
        match self {
            Self::Ours(cause, _) => *cause,
            Self::Theirs(_) => CloseCause::Normal,
        }
    }
}

/// Says goodbye, waits for the peer's own close or its end, and sees to it that the socket goes
/// whatever the peer does.
pub(super) async fn part<I: Inbound>(end: End, inbound: &mut I, outbox: &Outbox, link: &Link) {
    let deadline = Instant::now() + FAREWELL;
    let answered = match &end {
        End::Ours(CloseCause::Gone, _) => true,
        End::Ours(cause, detail) => {
            let slow = *cause == CloseCause::SlowConsumer;
            let retry_after = retry_after(*cause, I::SPEAKS);
            let last = frame::farewell(*cause, retry_after, detail.as_deref());
            outbox.finish(last, slow);
            false
        }
        End::Theirs(code) => {
            let answer = match code {
                Some(code) => Frame::close(*code, ""),
                None => Frame::close_empty(),
            };
            outbox.finish([answer], false);
            true
        }
    };
    let ended = match answered {
        true => Ended::Closed,
        false if !I::SPEAKS => Ended::Mute,
        false => closed_by_peer(inbound, outbox, deadline).await,
    };
    match ended {
        Ended::Closed => {
            outbox.end();
            link.finish();
        }
        // The peer may still be sending. Closing over unread input would reset the connection and
        // the peer never see the code, so input is read and discarded for a while before the close.
        // Nor may the socket end before all is handed to it, which only the end of the body tells.
        Ended::Faulted | Ended::Mute => outbox.end(),
        Ended::Silent => link.reset(),
    }
    let linger = matches!(ended, Ended::Faulted);
    let told = async {
        if I::SPEAKS {
            while outbox.signalled().await != Signal::Gone {}
        } else {
            // A body that has ended is gone, and its last bytes may still wait for the peer.
            link.closed().await;
        }
    };
    let gone = async {
        tokio::select! { () = told => {}, () = inbound.close(linger) => {} }
    };
    if tokio::time::timeout_at(deadline, gone).await.is_err() {
        link.reset();
    }
}

/// How a peer took our close.
enum Ended {
    /// It closed as well, or is gone.
    Closed,
    /// What it sends cannot be understood, or is not listened to any more.
    Faulted,
    /// It cannot answer.
    Mute,
    /// Neither in time.
    Silent,
}

async fn closed_by_peer(inbound: &mut impl Inbound, outbox: &Outbox, deadline: Instant) -> Ended {
    let closed = async {
        for _ in 0..UNHEARD {
            tokio::select! {
                biased;
                signal = outbox.signalled() => if signal == Signal::Gone { return Ended::Closed },
                received = inbound.next() => match received {
                    Some(Received::Close(_) | Received::Fault(CloseCause::Gone)) => {
                        return Ended::Closed;
                    }
                    None | Some(Received::Fault(_)) => return Ended::Faulted,
                    Some(_) => {}
                },
            }
        }
        Ended::Faulted
    };
    tokio::time::timeout_at(deadline, closed).await.unwrap_or(Ended::Silent)
}

/// When to come back, spread over half to one and a half of the advice. A client that does not speak
/// is told no more than this: it comes back with the credential that it has by then, and the answer
/// to its request says whether that holds.
fn retry_after(cause: CloseCause, speaks: bool) -> Option<u64> {
    let middle = match cause.advice() {
        Advice::Return(middle) => middle,
        Advice::Renew if !speaks => RENEWED,
        Advice::Renew | Advice::Stay => return None,
    };
    Some(millis(middle.mul_f64(rand::rng().random_range(0.5..1.5))))
}

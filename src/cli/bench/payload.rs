//! The data of a measured event, and what a frame is to someone who measures.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The type of all events of this command.
pub(super) const KIND: &str = "bench";

/// Keeps loads that run beside each other apart: only events with our own mark count.
#[derive(Debug, Serialize, Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    run: Cow<'a, str>,
    /// Counts from 0 in each channel.
    n: u64,
    /// Nanoseconds from the start of the run to the moment from which the latency counts.
    at: u64,
}

/// The data of event `n` as JSON of `size` bytes, or a few more where less do not hold it.
pub(super) fn write(run: &str, n: u64, at: u64, size: usize) -> String {
    let mut text = format!(r#"{{"run":"{run}","n":{n},"at":{at},"pad":""#);
    let pad = size.saturating_sub(text.len() + 2);
    text.extend(std::iter::repeat_n('x', pad));
    text.push_str("\"}");
    text
}

/// What came in a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Welcome,
    /// The heartbeat's JSON frame.
    Ping,
    /// An event of this run.
    Event {
        n: u64,
        at: u64,
    },
    /// Anything else: other people's events, and frames that need no answer.
    Other,
}

/// Reads a frame; `run` is our own mark.
pub(super) fn read(frame: &str, run: &str) -> Heard {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        r#type: Option<Cow<'a, str>>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    let Ok(head) = serde_json::from_str::<Head<'_>>(frame) else { return Heard::Other };
    match head.r#type.as_deref() {
        Some(KIND) => {
            let data = head.data.and_then(|data| serde_json::from_str::<Data<'_>>(data.get()).ok());
            match data {
                Some(data) if data.run == run => Heard::Event { n: data.n, at: data.at },
                _ => Heard::Other,
            }
        }
        Some("belfry.welcome") => Heard::Welcome,
        Some("ping") => Heard::Ping,
        _ => Heard::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for size in [0, 200, 4096] {
            let data = write("r1", 7, 1_234_567_890_123, size);
            assert_eq!(data.len(), size.max(write("r1", 7, 1_234_567_890_123, 0).len()));
            let frame = format!(r#"{{"id":"b~1-0","prev":"b~0-0","type":"bench","data":{data}}}"#);
            assert_eq!(read(&frame, "r1"), Heard::Event { n: 7, at: 1_234_567_890_123 });
            assert_eq!(read(&frame, "r2"), Heard::Other, "an event of another run");
        }
    }

    #[test]
    fn other_frames_are_told_apart() {
        for (frame, heard) in [
            (r#"{"type":"belfry.welcome","user":"a"}"#, Heard::Welcome),
            (r#"{"type":"ping"}"#, Heard::Ping),
            (r#"{"type":"belfry.live"}"#, Heard::Other),
            (r#"{"type":"bench","data":{"n":1}}"#, Heard::Other),
            (r#"{"type":"other","data":{"run":"r","n":1,"at":1}}"#, Heard::Other),
            ("[]", Heard::Other),
        ] {
            assert_eq!(read(frame, "r"), heard, "{frame}");
        }
    }
}

//! The body of `POST /v1/events/batch`.

use serde_json::value::RawValue;

use super::{
    Faults,
    members::{Few, few, only},
};
use crate::http::problem::Problem;

/// Events that one request may bring.
pub(in crate::http) const EVENTS: usize = 1000;

/// The events, each still to be checked.
///
/// # Errors
/// 400 where it is not JSON, else 422 with every member at fault.
pub(in crate::http) fn parse(body: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    only(body, "events", events)
}

/// A list of events, unparsed.
pub(super) fn events<'a>(
    faults: &mut Faults,
    pointer: &str,
    list: &'a RawValue,
) -> Option<Vec<&'a RawValue>> {
    match few(list, EVENTS) {
        Ok(events) => return Some(events),
        Err(Few::NoList) => faults.add(pointer, "must be a list of events"),
        Err(Few::TooMany) => faults.add(pointer, format!("must have at most {EVENTS} events")),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_bounded_and_its_events_are_not_looked_at() {
        assert_eq!(parse(br#"{"events":[1,{"a":[]},"x"]}"#).unwrap().len(), 3);
        assert!(parse(br#"{"events":[]}"#).unwrap().is_empty());
        let list = |count: usize| format!(r#"{{"events":[{}]}}"#, vec!["1"; count].join(","));
        assert_eq!(parse(list(EVENTS).as_bytes()).unwrap().len(), EVENTS);
        for (body, pointer) in [
            (list(EVENTS + 1), "/events"),
            ("{}".to_owned(), "/events"),
            (r#"{"events":{}}"#.to_owned(), "/events"),
            (r#"{"events":[],"more":1}"#.to_owned(), "/more"),
            ("[]".to_owned(), ""),
            (r#"{"events":[],"events":[]}"#.to_owned(), ""),
        ] {
            let problem = parse(body.as_bytes()).unwrap_err();
            assert_eq!(problem.members()[0].pointer, pointer, "{body}");
        }
        // One that is broken breaks the whole: where it ends cannot be known.
        assert_eq!(parse(br#"{"events":[1,{"a":]}"#).unwrap_err().status(), 400);
        let deep = format!(r#"{{"events":[{}{}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(parse(deep.as_bytes()).unwrap().len(), 1);
    }
}

//! An entry of the publish stream is read like the body of `POST /v1/events`.

use bytes::Bytes;

use super::{
    events,
    internal::State,
    posting::{self, Digest},
    problem::{Kind, Problem},
    request,
};
use crate::{
    bus::ingest::{Entry, Job},
    telemetry::Target,
};

/// Whose idempotency keys those of the stream are: no API key can be called so.
const CALLER: &str = ":publish";

/// What this entry asks for.
///
/// # Errors
/// Why it is no event.
pub fn job(state: &State, entry: &Entry) -> Result<Job, String> {
    let Fields { event: body, key } = Fields::of(entry)?;
    let told = |problem: Problem| problem.told();
    if body.len() > state.limits.body_bytes {
        return Err(told(Problem::new(Kind::TooLarge)));
    }
    let event = request::parse(body, &state.limits, state.history_ttl).map_err(told)?;
    if event.target == Target::Broadcast {
        tracing::info!(
            target: "audit", action = "broadcast", entry = entry.id, r#type = event.kind,
            "by the publish stream"
        );
    }
    // An entry without a key goes by its id, and by what it says: where the stream was deleted, the
    // same id may come again.
    let key = key.map_or_else(
        || format!("entry:{}:{}", entry.id, Digest::new().add(body).text()),
        |key| format!("key:{key}"),
    );
    let once = events::once(&key, CALLER, &event, body);
    let mut posts = posting::prepare(state, &event, Some(&once)).map_err(told)?;
    for post in &mut posts {
        // Nobody waits for the answer.
        post.online = None;
    }
    Ok(Job { target: event.target, posts })
}

/// The fields of an entry.
struct Fields<'a> {
    event: &'a Bytes,
    key: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(entry: &'a Entry) -> Result<Self, String> {
        let (mut event, mut key) = (None::<&Bytes>, None::<&Bytes>);
        for (name, value) in &entry.fields {
            let place = match &name[..] {
                b"event" => &mut event,
                b"idempotency_key" => &mut key,
                _ => return Err("it has a field beside event and idempotency_key".to_owned()),
            };
            if place.replace(value).is_some() {
                return Err("it has a field twice".to_owned());
            }
        }
        let event = event.ok_or("it has no field event")?;
        let key = key.map(|key| events::legal_key(key).ok_or("its idempotency_key is no good"));
        Ok(Self { event, key: key.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fields: &[(&'static str, &'static str)]) -> Entry {
        let fields = fields.iter().map(|(name, value)| (Bytes::from(*name), Bytes::from(*value)));
        Entry { id: "1-0".into(), fields: fields.collect() }
    }

    #[test]
    fn fields() {
        let good = entry(&[("idempotency_key", "k"), ("event", "{}")]);
        let read = Fields::of(&good).unwrap();
        assert_eq!((&read.event[..], read.key), (&b"{}"[..], Some("k")));
        for bad in [
            entry(&[("idempotency_key", "k")]),
            entry(&[("event", "{}"), ("event", "{}")]),
            entry(&[("event", "{}"), ("idempotency-key", "k")]),
            entry(&[("event", "{}"), ("idempotency_key", "")]),
            entry(&[("event", "{}"), ("idempotency_key", "sch\u{fc}ssel")]),
        ] {
            assert!(Fields::of(&bad).is_err(), "{bad:?}");
        }
    }
}

//! The body of `POST /v1/events`, checked member by member so that every fault is named at once.

use std::{collections::HashSet, time::Duration};

use serde_json::value::RawValue;

use super::problem::{Kind, Problem};
use crate::{
    bus::Keep,
    config::Limits,
    event::{Channel, Group, NameError, SENDER_CHARS, SessionKey, TYPE_CHARS, UserId},
    telemetry::Target,
};

pub(super) mod batch;
pub(super) mod cloudevent;
mod members;
pub(super) mod presence;
pub(super) mod ticket;

pub(super) use members::{Faults, whole};
use members::{Few, few, required};

/// Users that one request may name, as recipients or as exceptions.
const USERS: usize = 1000;
/// Longest id of a session, in bytes, like that of a session cookie.
const SESSION_BYTES: usize = 512;
/// Nesting that `data` may have (contract §5).
const LEVELS: usize = 128;

/// A request that holds.
#[derive(Debug)]
pub struct Publish {
    /// Where it goes: one channel, or one per user, each once and without the exceptions.
    pub to: Vec<Channel>,
    /// The kind of target.
    pub target: Target,
    /// Who does not get it.
    pub except: Vec<UserId>,
    /// The event's type.
    pub kind: String,
    /// Its data, as written.
    pub data: Box<RawValue>,
    /// The tab that caused it.
    pub sender: Option<String>,
    /// Whether it is kept.
    pub keep: Keep,
}

/// Checks a body.
///
/// `longest` is the most that an event may live (`history.ttl`).
///
/// # Errors
/// 400 where it is not JSON, 413 where `data` is too large, else 422 with every member at fault.
pub fn parse(body: &[u8], limits: &Limits, longest: Duration) -> Result<Publish, Problem> {
    // Skipping values takes no stack, so that nesting is no danger here; what is parsed by type
    // further down has its own bound.
    event(whole(body)?, limits, longest)
}

/// Checks one event, which may be one of many; pointers begin at it.
///
/// # Errors
/// 413 where `data` is too large, else 422 with every member at fault.
pub(super) fn event(
    whole: &RawValue,
    limits: &Limits,
    longest: Duration,
) -> Result<Publish, Problem> {
    let mut faults = Faults::default();
    let Some(mut members) = faults.object("", whole) else {
        return Err(Problem::invalid(faults.0));
    };
    let mut take = |name: &str| members.0.remove(name);
    let (to, kind, data) = (take("to"), take("type"), take("data"));
    let (except, sender, transient) = (take("except"), take("sender"), take("transient"));
    let ttl = take("ttl_seconds");
    faults.unknown("", members);

    let to = required(&mut faults, "/to", to).and_then(|value| target(&mut faults, value));
    let kind =
        required(&mut faults, "/type", kind).and_then(|value| event_type(&mut faults, value));
    let data = required(&mut faults, "/data", data);
    if let Some(data) = data {
        nesting(&mut faults, "/data", data);
    }
    let except = except.map_or_else(Vec::new, |value| exceptions(&mut faults, value));
    let life = ttl.and_then(|value| {
        let seconds = faults.parse("/ttl_seconds", value, "a whole number of seconds")?;
        let life = Duration::from_secs(seconds);
        if life.is_zero() || life > longest {
            let longest = longest.as_secs();
            faults.add("/ttl_seconds", format!("must be 1 to {longest} (history.ttl)"));
        }
        Some(life)
    });
    let sender = sender.and_then(|value| {
        let sender: String = faults.parse("/sender", value, "a string")?;
        if sender.is_empty() || sender.chars().count() > SENDER_CHARS {
            faults.add("/sender", format!("must have 1 to {SENDER_CHARS} characters"));
        }
        Some(sender)
    });
    let transient = transient
        .is_some_and(|value| faults.parse("/transient", value, "true or false") == Some(true));
    if let Some(data) = data {
        fits(data, limits)?;
    }
    match (to, kind, data) {
        (Some((target, to)), Some(kind), Some(data)) if faults.0.is_empty() => {
            let data = data.to_owned();
            let excepted: HashSet<&UserId> = except.iter().collect();
            let reached =
                |to: &Channel| !matches!(to, Channel::User(user) if excepted.contains(user));
            let to = to.into_iter().filter(reached).collect();
            let keep = match life {
                _ if transient => Keep::Transient,
                Some(life) => Keep::For(life),
                None => Keep::Kept,
            };
            Ok(Publish { to, target, except, kind, data, sender, keep })
        }
        _ => Err(Problem::invalid(faults.0)),
    }
}

/// Checks how deep `data` is nested.
fn nesting(faults: &mut Faults, pointer: &str, data: &RawValue) {
    if depth(data.get()) > LEVELS {
        faults.add(pointer, format!("must not be nested deeper than {LEVELS} levels"));
    }
}

/// Checks the size of `data`.
fn fits(data: &RawValue, limits: &Limits) -> Result<(), Problem> {
    let bytes = limits.data_bytes;
    if data.get().len() <= bytes {
        return Ok(());
    }
    Err(Problem::new(Kind::TooLarge).detail(format!("`data` is over {bytes} bytes")))
}

fn target(faults: &mut Faults, value: &RawValue) -> Option<(Target, Vec<Channel>)> {
    const ONE: &str = "must have exactly one of user, users, group, broadcast";
    let mut members = faults.object("/to", value)?;
    let user = members.0.remove("user");
    let users = members.0.remove("users");
    let group = members.0.remove("group");
    let broadcast = members.0.remove("broadcast");
    let unknown = !members.0.is_empty();
    faults.unknown("/to", members);
    match (user, users, group, broadcast) {
        (Some(user), None, None, None) => {
            let user = name(faults, "/to/user", user, UserId::new)?;
            Some((Target::User, vec![Channel::User(user)]))
        }
        (None, Some(users), None, None) => {
            let users = user_list(faults, "/to/users", users)?;
            if users.is_empty() {
                faults.add("/to/users", "must not be empty");
            }
            Some((Target::Users, users.into_iter().map(Channel::User).collect()))
        }
        (None, None, Some(group), None) => {
            let group = name(faults, "/to/group", group, Group::new)?;
            Some((Target::Group, vec![Channel::Group(group)]))
        }
        (None, None, None, Some(broadcast)) => {
            if broadcast.get() != "true" {
                faults.add("/to/broadcast", "must be true");
            }
            Some((Target::Broadcast, vec![Channel::Broadcast]))
        }
        (None, None, None, None) if unknown => None,
        _ => {
            faults.add("/to", ONE);
            None
        }
    }
}

fn exceptions(faults: &mut Faults, value: &RawValue) -> Vec<UserId> {
    let Some(mut members) = faults.object("/except", value) else { return Vec::new() };
    let users = members.0.remove("users");
    faults.unknown("/except", members);
    required(faults, "/except/users", users)
        .and_then(|users| user_list(faults, "/except/users", users))
        .unwrap_or_default()
}

/// The list without its repetitions.
fn user_list(faults: &mut Faults, pointer: &str, value: &RawValue) -> Option<Vec<UserId>> {
    let list = match few(value, USERS) {
        Ok(list) => list,
        Err(Few::NoList) => {
            faults.add(pointer, "must be a list of user ids");
            return None;
        }
        Err(Few::TooMany) => {
            faults.add(pointer, format!("must have at most {USERS} user ids"));
            return None;
        }
    };
    let mut seen = HashSet::new();
    let mut users = Vec::with_capacity(list.len());
    for (n, id) in list.into_iter().enumerate() {
        if let Some(user) = name(faults, &format!("{pointer}/{n}"), id, UserId::new)
            && seen.insert(user.clone())
        {
            users.push(user);
        }
    }
    Some(users)
}

pub(super) fn name<T>(
    faults: &mut Faults,
    pointer: &str,
    value: &RawValue,
    new: impl Fn(&str) -> Result<T, NameError>,
) -> Option<T> {
    let text: String = faults.parse(pointer, value, "a string")?;
    match new(&text) {
        Ok(name) => Some(name),
        Err(error) => {
            faults.add(pointer, error.to_string());
            None
        }
    }
}

/// A session's id, or `sha256:<hex>` of it; what begins like a hash is no id.
pub(super) fn session_key(
    faults: &mut Faults,
    pointer: &str,
    value: &RawValue,
) -> Option<SessionKey> {
    let id: String = faults.parse(pointer, value, "a string")?;
    if id.is_empty() || id.len() > SESSION_BYTES || id.chars().any(char::is_control) {
        let legal = format!("must have 1 to {SESSION_BYTES} bytes and no control characters");
        faults.add(pointer, legal);
        return None;
    }
    if !id.starts_with("sha256:") {
        return Some(SessionKey::of(&id));
    }
    let key = SessionKey::parse(&id);
    if key.is_none() {
        faults.add(pointer, "must have 64 hexadecimal digits after `sha256:`");
    }
    key
}

fn event_type(faults: &mut Faults, value: &RawValue) -> Option<String> {
    let kind: String = faults.parse("/type", value, "a string")?;
    legal_type(faults, "/type", &kind);
    Some(kind)
}

fn legal_type(faults: &mut Faults, pointer: &str, kind: &str) {
    if kind.is_empty() || kind.chars().count() > TYPE_CHARS {
        faults.add(pointer, format!("must have 1 to {TYPE_CHARS} characters"));
    } else if kind.chars().any(char::is_control) {
        faults.add(pointer, "must not contain control characters");
    } else if kind == "ping" || kind.starts_with("belfry.") {
        faults.add(pointer, "is reserved: `ping` and `belfry.*` are the gateway's own");
    }
}

/// The deepest nesting of valid JSON; a scalar has none.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            b'[' | b'{' if !string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests;

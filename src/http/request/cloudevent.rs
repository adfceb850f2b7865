//! An event in the form of CloudEvents 1.0 (the specification, its JSON event format and its HTTP
//! protocol binding, all v1.0.2).

use std::collections::BTreeMap;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;

use super::{Faults, Publish, fits, legal_type, members::escape, nesting, whole};
use crate::{
    bus::Keep,
    config::Limits,
    event::{Channel, Group, NameError, UserId},
    http::{percent, problem::Problem},
    telemetry::Target,
};

/// What headers with attributes begin with.
const PREFIX: &str = "ce-";
/// The attributes that every event has; a request with one of them in a header is in binary mode.
const REQUIRED: [&str; 4] = ["specversion", "type", "source", "id"];

/// An event that holds.
#[derive(Debug)]
pub(in crate::http) struct CloudEvent {
    pub(in crate::http) publish: Publish,
    /// With the id, what tells it from every other event.
    pub(in crate::http) source: String,
    pub(in crate::http) id: String,
}

/// The value of an attribute, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    True,
    Other,
}

type Attributes = BTreeMap<String, Value>;

/// Whether a request is an event in binary mode.
pub(in crate::http) fn is_binary(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().filter_map(|name| name.as_str().strip_prefix(PREFIX));
    names.any(|name| REQUIRED.contains(&name))
}

/// Checks an event in structured mode.
///
/// # Errors
/// 400 where it is not JSON, 413 where its data is too large, else 422.
pub(in crate::http) fn structured(body: &[u8], limits: &Limits) -> Result<CloudEvent, Problem> {
    let whole = whole(body)?;
    let mut faults = Faults::default();
    let event = document(&mut faults, "", whole, limits)?;
    event.filter(|_| faults.0.is_empty()).ok_or_else(|| Problem::invalid(faults.0))
}

/// Checks events in batched mode: all, or none.
///
/// # Errors
/// As [`structured`]; pointers begin with the number of the event.
pub(in crate::http) fn batch(body: &[u8], limits: &Limits) -> Result<Vec<CloudEvent>, Problem> {
    let whole = whole(body)?;
    let mut faults = Faults::default();
    let list = super::batch::events(&mut faults, "", whole).unwrap_or_default();
    let mut events = Vec::with_capacity(list.len());
    for (n, item) in list.into_iter().enumerate() {
        events.extend(document(&mut faults, &format!("/{n}"), item, limits)?);
    }
    if faults.0.is_empty() { Ok(events) } else { Err(Problem::invalid(faults.0)) }
}

/// Checks an event in binary mode: attributes in headers, data in the body.
///
/// # Errors
/// 413 where its data is too large, else 422.
pub(in crate::http) fn binary(
    headers: &HeaderMap,
    media_type: Option<&str>,
    body: &[u8],
    limits: &Limits,
) -> Result<CloudEvent, Problem> {
    let mut faults = Faults::default();
    let mut attributes = Attributes::new();
    for (name, value) in headers {
        attribute_of(&mut faults, &mut attributes, name, value);
    }
    if let Some(media_type) = media_type {
        attributes.insert("datacontenttype".to_owned(), Value::Text(media_type.to_owned()));
    }
    let data: Option<&RawValue> = if body.is_empty() {
        None
    } else {
        let data = serde_json::from_slice(body).ok();
        if data.is_none() {
            faults.add("/data", "is not JSON");
        }
        data
    };
    let event = event(&mut faults, "", attributes, data, limits)?;
    event.filter(|_| faults.0.is_empty()).ok_or_else(|| Problem::invalid(faults.0))
}

/// HTTP binding §3.1.3.2: a quoted value is taken out of its quotes, and then percent-decoded once.
fn attribute_of(
    faults: &mut Faults,
    attributes: &mut Attributes,
    header: &HeaderName,
    value: &HeaderValue,
) {
    let Some(name) = header.as_str().strip_prefix(PREFIX) else { return };
    if !legal_name(faults, "", name) {
        return;
    }
    let pointer = format!("/{name}");
    let Some(text) = percent::decode(&unquoted(value.as_bytes())) else {
        faults.add(pointer, "is not UTF-8");
        return;
    };
    if attributes.insert(name.to_owned(), Value::Text(text)).is_some() {
        faults.add(pointer, "stands there twice");
    }
}

/// A quoted string without its quotes (RFC 9110 §5.6.4); anything else as it is.
fn unquoted(value: &[u8]) -> Vec<u8> {
    let [b'"', inner @ .., b'"'] = value else { return value.to_vec() };
    let mut escaped = false;
    let plain = |byte: &u8| {
        escaped = *byte == b'\\' && !escaped;
        !escaped
    };
    inner.iter().copied().filter(plain).collect()
}

/// Names have lower-case letters and digits (specification, "Naming Conventions").
fn legal_name(faults: &mut Faults, prefix: &str, name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = !name.is_empty() && name.bytes().all(legal);
    if !good {
        let detail = "is no name of an attribute, which has lower-case letters and digits";
        faults.add(format!("{prefix}/{}", escape(name)), detail);
    }
    good
}

/// One JSON document (JSON event format §3).
fn document(
    faults: &mut Faults,
    prefix: &str,
    value: &RawValue,
    limits: &Limits,
) -> Result<Option<CloudEvent>, Problem> {
    let Some(mut members) = faults.object(prefix, value) else { return Ok(None) };
    let data = members.0.remove("data");
    if members.0.remove("data_base64").is_some() {
        faults.add(format!("{prefix}/data_base64"), "is not JSON: data must be in `data`");
    }
    let mut attributes = Attributes::new();
    for (name, value) in members.0 {
        // A null is an attribute that is not set.
        if legal_name(faults, prefix, &name) && value.get() != "null" {
            attributes.insert(name.into_owned(), json_value(value.get()));
        }
    }
    event(faults, prefix, attributes, data, limits)
}

fn json_value(json: &str) -> Value {
    match json {
        "true" => Value::True,
        _ => serde_json::from_str(json).map_or(Value::Other, Value::Text),
    }
}

/// What all modes have in common. It holds if no fault was found.
fn event(
    faults: &mut Faults,
    prefix: &str,
    mut attributes: Attributes,
    data: Option<&RawValue>,
    limits: &Limits,
) -> Result<Option<CloudEvent>, Problem> {
    let [version, kind, source, id] =
        REQUIRED.map(|name| text(faults, prefix, &mut attributes, name));
    if version.is_some_and(|version| version != "1.0") {
        faults.add(format!("{prefix}/specversion"), "must be 1.0");
    }
    if let Some(kind) = &kind {
        legal_type(faults, &format!("{prefix}/type"), kind);
    }
    let target = target(faults, prefix, &mut attributes);
    if let Some(kind) = attributes.remove("datacontenttype")
        && !matches!(&kind, Value::Text(kind) if is_json(kind))
    {
        let detail = "must be JSON: application/json, or a type that ends with +json";
        faults.add(format!("{prefix}/datacontenttype"), detail);
    }
    if let Some(data) = data {
        nesting(faults, &format!("{prefix}/data"), data);
        fits(data, limits)?;
    }
    let (Some(kind), Some(source), Some(id), Some((target, to))) = (kind, source, id, target)
    else {
        return Ok(None);
    };
    let publish = Publish {
        to: vec![to],
        target,
        except: Vec::new(),
        kind,
        // An event need not have any.
        data: data.unwrap_or(RawValue::NULL).to_owned(),
        sender: None,
        keep: Keep::Kept,
    };
    Ok(Some(CloudEvent { publish, source, id }))
}

/// A required attribute.
fn text(
    faults: &mut Faults,
    prefix: &str,
    attributes: &mut Attributes,
    name: &str,
) -> Option<String> {
    let detail = match attributes.remove(name) {
        Some(Value::Text(text)) if !text.is_empty() => return Some(text),
        Some(_) => "must be a string, and not empty",
        None => "is required",
    };
    faults.add(format!("{prefix}/{name}"), detail);
    None
}

fn target(
    faults: &mut Faults,
    prefix: &str,
    attributes: &mut Attributes,
) -> Option<(Target, Channel)> {
    let mut take = |name| attributes.remove(name);
    match (take("user"), take("group"), take("broadcast")) {
        (Some(user), None, None) => {
            let user = name(faults, format!("{prefix}/user"), user, UserId::new)?;
            Some((Target::User, Channel::User(user)))
        }
        (None, Some(group), None) => {
            let group = name(faults, format!("{prefix}/group"), group, Group::new)?;
            Some((Target::Group, Channel::Group(group)))
        }
        (None, None, Some(broadcast)) => {
            let on = broadcast == Value::True || broadcast == Value::Text("true".to_owned());
            if !on {
                faults.add(format!("{prefix}/broadcast"), "must be true");
            }
            on.then_some((Target::Broadcast, Channel::Broadcast))
        }
        _ => {
            let detail = "must have exactly one of the attributes user, group, broadcast";
            faults.add(prefix, detail);
            None
        }
    }
}

fn name<T>(
    faults: &mut Faults,
    pointer: String,
    value: Value,
    new: impl Fn(&str) -> Result<T, NameError>,
) -> Option<T> {
    let Value::Text(text) = value else {
        faults.add(pointer, "must be a string");
        return None;
    };
    match new(&text) {
        Ok(name) => Some(name),
        Err(error) => {
            faults.add(pointer, error.to_string());
            None
        }
    }
}

/// Whether data of this media type is JSON (JSON event format §3.1.1).
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

#[cfg(test)]
mod tests;

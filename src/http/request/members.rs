//! JSON read member by member, so that every fault has its place.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};

use serde::{Deserialize, de};
use serde_json::value::RawValue;

use crate::http::problem::{Kind, Member, Problem};

/// Faults that one answer names; a body can hold tens of thousands.
const FAULTS: usize = 100;

/// The members of an object in the order of their names, values unparsed; twice is an error.
pub(in crate::http) struct Members<'a>(pub(in crate::http) BTreeMap<Cow<'a, str>, &'a RawValue>);

/// A member's name, a view of the text where that has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        from.deserialize_str(Visitor)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Members<'de>, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'_>, &RawValue>()? {
                    match members.entry(name) {
                        Entry::Vacant(place) => {
                            place.insert(value);
                        }
                        Entry::Occupied(first) => {
                            let twice = format_args!("`{}` stands there twice", first.key());
                            return Err(de::Error::custom(twice));
                        }
                    }
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// What is found wrong with a body.
#[derive(Default)]
pub(in crate::http) struct Faults(pub(in crate::http) Vec<Member>);

impl Faults {
    pub(in crate::http) fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        if self.0.len() < FAULTS {
            self.0.push(Member { pointer: pointer.into(), detail: detail.into() });
        }
    }

    pub(in crate::http) fn object<'a>(
        &mut self,
        pointer: &str,
        value: &'a RawValue,
    ) -> Option<Members<'a>> {
        match serde_json::from_str(value.get()) {
            Ok(members) => Some(members),
            Err(error) => {
                self.add(pointer, without_position(&error));
                None
            }
        }
    }

    pub(in crate::http) fn parse<'a, T: Deserialize<'a>>(
        &mut self,
        pointer: &str,
        value: &'a RawValue,
        expected: &str,
    ) -> Option<T> {
        let parsed = serde_json::from_str(value.get()).ok();
        if parsed.is_none() {
            self.add(pointer, format!("must be {expected}"));
        }
        parsed
    }

    pub(in crate::http) fn unknown(&mut self, pointer: &str, members: Members<'_>) {
        for name in members.0.into_keys() {
            self.add(format!("{pointer}/{}", escape(&name)), "is not a known member");
        }
    }
}

/// The body as one JSON value, unparsed.
pub(in crate::http) fn whole(body: &[u8]) -> Result<&RawValue, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Problem::new(Kind::NotJson).detail(place)
    })
}

/// What a body says that is an object with this one member.
///
/// # Errors
/// 400 where it is not JSON, else 422 with every member at fault.
pub(super) fn only<'a, T>(
    body: &'a [u8],
    member: &str,
    read: impl FnOnce(&mut Faults, &str, &'a RawValue) -> Option<T>,
) -> Result<T, Problem> {
    let whole = whole(body)?;
    let mut faults = Faults::default();
    let Some(mut members) = faults.object("", whole) else {
        return Err(Problem::invalid(faults.0));
    };
    let value = members.0.remove(member);
    faults.unknown("", members);
    let pointer = format!("/{member}");
    let said =
        required(&mut faults, &pointer, value).and_then(|value| read(&mut faults, &pointer, value));
    match said {
        Some(said) if faults.0.is_empty() => Ok(said),
        _ => Err(Problem::invalid(faults.0)),
    }
}

pub(super) fn required<'a>(
    faults: &mut Faults,
    pointer: &str,
    value: Option<&'a RawValue>,
) -> Option<&'a RawValue> {
    if value.is_none() {
        faults.add(pointer, "is required");
    }
    value
}

/// Why a value is not a list of a few.
pub(super) enum Few {
    NoList,
    TooMany,
}

/// The items of a list, unparsed. No more than `most` are held.
pub(super) fn few(value: &RawValue, most: usize) -> Result<Vec<&RawValue>, Few> {
    struct Visitor(usize);
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Result<Vec<&'de RawValue>, Few>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == self.0 {
                    while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                    return Ok(Err(Few::TooMany));
                }
                items.push(item);
            }
            Ok(Ok(items))
        }
    }
    let mut json = serde_json::Deserializer::from_str(value.get());
    de::Deserializer::deserialize_seq(&mut json, Visitor(most)).unwrap_or(Err(Few::NoList))
}

/// A member's name in a JSON Pointer (RFC 6901 §3), cut where it is long.
pub(super) fn escape(name: &str) -> String {
    name.chars().take(64).collect::<String>().replace('~', "~0").replace('/', "~1")
}

/// The message of `serde_json` without its "at line …": the position is that within the member.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text.get(..end).unwrap_or_default().chars().take(200).collect()
}

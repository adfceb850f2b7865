//! `[auth.issuers.<name>]`: any number of tables with the keys of `[auth.jwt]`.
//!
//! `config/default.toml` lists the keys that exist, and cannot list names that operators choose;
//! so each name that a layer uses gets its keys, with the defaults of `[auth.jwt]`.

use std::collections::BTreeSet;

use config::{Map, Value};

/// Goes before the name.
pub const PREFIX: &str = "auth.issuers.";
/// Where the keys of a table are documented.
const MODEL: &str = "auth.jwt.";
/// One number for all issuers, so no key of theirs.
const SHARED: &str = "leeway";
/// Whoever names an issuer says what it signs with.
const NO_DEFAULT: &str = "algorithms";

/// The name and the rest of a key of such a table.
fn parts(key: &str) -> Option<(&str, &str)> {
    let (name, field) = key.strip_prefix(PREFIX)?.split_once('.')?;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    (!name.is_empty() && name.len() <= 64 && name.chars().all(legal)).then_some((name, field))
}

/// The names in use among these keys, in order.
pub fn names<'a>(keys: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    keys.filter_map(|key| parts(key)).map(|(name, _)| name.to_owned()).collect()
}

/// Adds the keys of every table that `used` names to the defaults.
pub fn add_defaults<'a>(defaults: &mut Map<String, Value>, used: impl Iterator<Item = &'a String>) {
    let model: Vec<(String, Value)> = defaults
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(MODEL)?.to_owned(), value.clone())))
        .filter(|(field, _)| field != SHARED)
        .collect();
    for name in names(used) {
        for (field, value) in &model {
            let value = match field.as_str() {
                NO_DEFAULT => Value::new(Some(&"default".to_owned()), ""),
                _ => value.clone(),
            };
            defaults.insert(format!("{PREFIX}{name}.{field}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_an_environment_can_write() {
        let keys = [
            "auth.issuers.a.issuer",
            "auth.issuers.a.secret",
            "auth.issuers.b_2-c.x",
            "auth.issuers.B.issuer",
            "auth.issuers.a.b.c",
            "auth.issuers..issuer",
            "auth.issuers.é.issuer",
            "auth.issuers.alone",
            "auth.jwt.issuer",
        ]
        .map(str::to_owned);
        assert_eq!(names(keys.iter()).into_iter().collect::<Vec<_>>(), ["a", "b_2-c"]);
    }
}

//! Keys that do not exist: a typo must never be silence.

use std::collections::BTreeSet;

use super::fault::{Fault, Problem};

/// Says that there is no such key, and which one was probably meant.
pub fn fault(key: &str, origin: &str, known: &BTreeSet<String>) -> Fault {
    let section = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
    };
    let problem = if known.iter().any(|known| section(key, known)) {
        Problem::new("is a section, not a key", "set the keys in it")
    } else if let Some(known) = known.iter().find(|known| section(known, key)) {
        Problem::new(format!("{known} is a key, not a section"), "give it one value")
    } else {
        let advice = match closest(key, known) {
            Some(near) if origin.starts_with("environment ") => {
                format!("did you mean BELFRY__{}?", near.to_ascii_uppercase().replace('.', "__"))
            }
            Some(near) => format!("did you mean {near}?"),
            None => "`belfry config` lists the keys that exist".to_owned(),
        };
        Problem::new("is not a known key", advice)
    };
    let printable: String = key.chars().flat_map(char::escape_debug).collect();
    problem.at(&printable, origin)
}

/// The known key that was probably meant: few edits away, or of the same name in another section.
fn closest<'a>(key: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    let name = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let (edits, near) = known.iter().map(|known| (distance(key, known), known)).min()?;
    if edits <= (key.chars().count() / 4).max(2) {
        return Some(near);
    }
    known.iter().find(|known| name(known) == name(key)).map(String::as_str)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<String> {
        ["auth.jwt.secret", "limits.heartbeat", "limits.queue_bytes", "redis.url"]
            .map(str::to_owned)
            .into()
    }

    #[test]
    fn the_nearest_key_is_suggested() {
        for (key, near) in [
            ("limits.hartbeat", Some("limits.heartbeat")),
            ("limit.heartbeat", Some("limits.heartbeat")),
            ("redis.uri", Some("redis.url")),
            ("queue_bytes", Some("limits.queue_bytes")),
            ("auth.secret", Some("auth.jwt.secret")),
            ("colour.of.the.sky", None),
        ] {
            assert_eq!(closest(key, &known()), near, "{key}");
        }
    }

    #[test]
    fn the_advice_is_written_as_the_key_was() {
        let told = |key, origin| fault(key, origin, &known()).to_string();
        assert_eq!(
            told("limits.hartbeat", "environment BELFRY__LIMITS__HARTBEAT"),
            "limits.hartbeat (environment BELFRY__LIMITS__HARTBEAT): is not a known key; \
             did you mean BELFRY__LIMITS__HEARTBEAT?"
        );
        assert!(told("redis.uri", "file x").ends_with("did you mean redis.url?"));
        assert!(told("limits", "file x").contains("is a section, not a key"));
        assert!(told("redis.url.host", "file x").contains("redis.url is a key, not a section"));
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("é", "e", 1)] {
            assert_eq!(distance(a, b), edits);
            assert_eq!(distance(b, a), edits);
        }
    }
}

//! From text to types: every value is read once, checked, and noted with its origin for
//! `belfry config`. A fault does not stop the reading, so that all of them are found.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration};

use super::{
    fault::{Fault, Problem},
    layers::{Raw, Text},
    units,
};

/// One line of `belfry config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The dotted key.
    pub key: String,
    /// The value in force as TOML writes it, with secrets redacted.
    pub value: String,
    /// Where it came from.
    pub origin: String,
}

/// Reads the merged layers key by key.
pub struct Reader {
    values: BTreeMap<String, Raw>,
    /// What was read, in the order of reading.
    pub settings: Vec<Setting>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

impl Reader {
    /// Starts with the faults that were found on the way here.
    pub fn new(values: BTreeMap<String, Raw>, faults: Vec<Fault>) -> Self {
        Self { values, settings: Vec::new(), faults }
    }

    /// Every key that has a value.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.values.keys()
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> &str {
        self.values.get(key).map_or("default", |raw| &raw.origin)
    }

    /// Adds a fault of a key, with its origin.
    pub fn fault(&mut self, key: &str, problem: Problem) {
        let fault = problem.at(key, self.origin(key));
        self.faults.push(fault);
    }

    /// Whether nothing is wrong with a key so far.
    pub fn is_good(&self, key: &str) -> bool {
        !self.faults.iter().any(|fault| fault.key == key)
    }

    /// Notes a value in force for `belfry config`.
    pub fn note(&mut self, key: &str, value: String) {
        let origin = self.origin(key).to_owned();
        self.settings.push(Setting { key: key.to_owned(), value, origin });
    }

    /// The text of a key that holds one value.
    pub fn text(&mut self, key: &str) -> Option<String> {
        match self.values.get(key).map(|raw| raw.text.clone()) {
            Some(Text::One(text)) => Some(text),
            Some(Text::Many(_)) => {
                self.fault(key, Problem::new("is a list", "give one value"));
                None
            }
            // The key was in a layer and could not be read, which is a fault already.
            None if !self.faults.is_empty() => None,
            None => {
                self.fault(key, Problem::new("has no default", "please report this"));
                None
            }
        }
    }

    /// The values of a key that holds a list: an array, or text with commas. The empty text is
    /// the empty list.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        match self.values.get(key).map(|raw| raw.text.clone()) {
            Some(Text::Many(texts)) => texts.iter().map(|text| text.trim().to_owned()).collect(),
            Some(Text::One(text)) if text.trim().is_empty() => Vec::new(),
            Some(Text::One(text)) => text.split(',').map(|text| text.trim().to_owned()).collect(),
            None => self.text(key).into_iter().collect(),
        }
    }

    /// One value, read by `parse`; `show` writes it as TOML. `otherwise` stands in where there is
    /// a fault, and is never seen outside, because then nothing is returned.
    pub fn value<T>(
        &mut self,
        key: &str,
        otherwise: T,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let Some(text) = self.text(key) else {
            return otherwise;
        };
        match parse(&text) {
            Ok(value) => {
                self.note(key, show(&value));
                value
            }
            Err(problem) => {
                self.fault(key, problem);
                otherwise
            }
        }
    }

    /// A list, each entry read by `parse`; all bad entries are named.
    pub fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Problem>,
        show: impl Fn(&T) -> String,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for text in self.texts(key) {
            match parse(&text) {
                Ok(value) => values.push(value),
                Err(problem) => self.fault(key, problem),
            }
        }
        self.note(key, quoted_list(values.iter().map(show)));
        values
    }

    /// Text that `check` accepts.
    pub fn string(&mut self, key: &str, check: impl FnOnce(&str) -> Result<(), Problem>) -> String {
        let parse = |text: &str| check(text).map(|()| text.to_owned());
        self.value(key, String::new(), parse, |text| quoted(text))
    }

    /// One of a closed set of names.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], otherwise: T) -> T {
        let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        let parse = |text: &str| {
            choices.iter().find(|(name, _)| *name == text).copied().ok_or_else(|| {
                Problem::new(
                    format!("{text:?} is not known"),
                    format!("write {}", any_of(&names())),
                )
            })
        };
        self.value(key, ("", otherwise), parse, |(name, _)| quoted(name)).1
    }

    /// A duration within limits.
    pub fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        let parse = |text: &str| {
            let duration = units::parse_duration(text).map_err(|error| {
                Problem::new(format!("{text:?} {error}"), "write 25s, 5m, 1h30m or 1500ms")
            })?;
            within(duration, &range, units::format_duration)
        };
        let show = |value: &Duration| quoted(&units::format_duration(*value));
        self.value(key, *range.start(), parse, show)
    }

    /// A number of bytes within limits.
    pub fn size(&mut self, key: &str, range: RangeInclusive<usize>) -> usize {
        let parse = |text: &str| {
            let bytes = units::parse_size(text).map_err(|error| {
                Problem::new(format!("{text:?} {error}"), "write 4096, 256KiB or 1MiB")
            })?;
            within(bytes, &range, units::format_size)
        };
        self.value(key, *range.start(), parse, |value| quoted(&units::format_size(*value)))
    }

    /// A count within limits.
    pub fn count(&mut self, key: &str, range: RangeInclusive<usize>) -> usize {
        let parse = |text: &str| {
            let count: usize = text.trim().parse().map_err(|_| {
                let advice = format!("write one from {} to {}", range.start(), range.end());
                Problem::new(format!("{text:?} is not a whole number"), advice)
            })?;
            within(count, &range, |count| count.to_string())
        };
        self.value(key, *range.start(), parse, usize::to_string)
    }
}

fn within<T: PartialOrd + Copy>(
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) -> Result<T, Problem> {
    if range.contains(&value) {
        return Ok(value);
    }
    let side = if value < *range.start() { "small" } else { "large" };
    Err(Problem::new(
        format!("{} is too {side}", show(value)),
        format!("write {} to {}", show(*range.start()), show(*range.end())),
    ))
}

/// `a`, `a or b`, `a, b or c`.
pub fn any_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<Vec<_>>().concat())
}

/// A TOML array of basic strings.
pub fn quoted_list<S: Display>(texts: impl Iterator<Item = S>) -> String {
    let texts: Vec<String> = texts.map(|text| quoted(&text.to_string())).collect();
    format!("[{}]", texts.join(", "))
}

//! The layers of contract §7, one over the other, each value with the place it came from.
//!
//! `config/default.toml` is also the list of the keys that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
};

use config::{FileFormat, Format as _, Map, Source, Value, ValueKind};

use super::{
    Profile,
    fault::{Fault, Problem},
    issuers, unknown,
};

/// The built-in defaults; documents every key.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");
const DEVELOPMENT_TOML: &str = include_str!("../../config/development.toml");
const PRODUCTION_TOML: &str = include_str!("../../config/production.toml");

/// The keys whose values are secret, or tell of secrets. Each has a twin `…_file` that names a
/// file with the value.
pub const SECRETS: [&str; 5] = [
    "redis.url",
    "auth.session.redis_url",
    "auth.jwt.secret",
    "auth.jwt.secret_previous",
    "api.keys",
];

/// Everything that a configuration is made from. Tests build it by hand; a process calls
/// [`Sources::from_process`].
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The environment, other programs' variables included.
    pub env: BTreeMap<String, OsString>,
    /// `--config FILE`
    pub file: Option<PathBuf>,
    /// What flags set; the last one for a key wins.
    pub flags: Vec<Flag>,
}

/// A setting given by a flag.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As it was written: `--bind`, `--set`.
    pub name: &'static str,
    /// The key it sets.
    pub key: String,
    /// The value, in the same form as in the environment.
    pub value: String,
}

impl Sources {
    /// Takes the environment of this process; the only place of the crate that does.
    #[must_use]
    pub fn from_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        // A name that is not Unicode is none of ours.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        Self { env, file, flags }
    }

    /// The value of a variable, where it is set, not empty and Unicode.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name)?.to_str().filter(|value| !value.is_empty())
    }

    /// The profile that `BELFRY_PROFILE` names; development where it is not set.
    ///
    /// # Errors
    /// Anything but the two names, the empty string included: a typo must not turn production
    /// into development.
    pub fn profile(&self) -> Result<Profile, Fault> {
        let Some(name) = self.env.get("BELFRY_PROFILE") else {
            return Ok(Profile::Development);
        };
        match name.to_str() {
            Some("development") => Ok(Profile::Development),
            Some("production") => Ok(Profile::Production),
            _ => Err(Problem::new(
                format!("{:?} is not a profile", name.to_string_lossy()),
                "write development or production",
            )
            .at("BELFRY_PROFILE", "environment BELFRY_PROFILE")),
        }
    }
}

/// One layer: known keys with their values, none of them a table.
#[derive(Clone, Debug, Default)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// What is in force for a key, not parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The value, or the values of an array.
    pub text: Text,
    /// Where it came from.
    pub origin: String,
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// A scalar.
    One(String),
    /// A TOML array of scalars.
    Many(Vec<String>),
}

/// Lays all layers over one another. Faults are added to `faults`, and what can still be read is
/// returned, so that the caller can look for more.
pub fn merge(
    sources: &Sources,
    profile: Profile,
    faults: &mut Vec<Fault>,
) -> BTreeMap<String, Raw> {
    let mut defaults = toml(DEFAULT_TOML, "default", faults);
    let profile = match profile {
        Profile::Development => toml(DEVELOPMENT_TOML, "profile development", faults),
        Profile::Production => toml(PRODUCTION_TOML, "profile production", faults),
    };
    let over = [profile, file(sources, faults), environment(sources, faults), flags(sources)];
    issuers::add_defaults(&mut defaults, over.iter().flat_map(Map::keys));
    let known: BTreeSet<String> = defaults.keys().cloned().collect();
    let mut layers: Vec<Layer> = std::iter::once(defaults)
        .chain(over)
        .map(|values| only_known(values, &known, faults))
        .collect();
    settle_secret_files(&mut layers, &known, faults);

    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    let merged = builder.build().and_then(|merged| merged.collect());
    match merged {
        Ok(values) => flatten(values)
            .into_iter()
            .filter_map(|(key, value)| match raw(&value) {
                Ok(raw) => Some((key, raw)),
                Err(problem) => {
                    faults.push(problem.at(&key, origin(&value)));
                    None
                }
            })
            .collect(),
        Err(error) => {
            let problem = Problem::new(error.to_string(), "please report this");
            faults.push(problem.at("configuration", "all layers"));
            BTreeMap::new()
        }
    }
}

fn toml(text: &str, origin: &str, faults: &mut Vec<Fault>) -> Map<String, Value> {
    match FileFormat::Toml.parse(Some(&origin.to_owned()), text) {
        Ok(values) => flatten(values),
        Err(error) => {
            let problem = Problem::new(without_source(&error.to_string()), "correct the TOML");
            faults.push(problem.at("--config", origin));
            Map::new()
        }
    }
}

/// A TOML error quotes the line at fault, which may hold a secret: only its place and its reason
/// are kept.
fn without_source(error: &str) -> String {
    let mut lines = error.lines().filter(|line| !line.trim().is_empty() && !line.contains('|'));
    let place = lines.next().unwrap_or("not TOML").to_owned();
    match lines.next_back() {
        Some(reason) => format!("{place}: {}", reason.trim()),
        None => place,
    }
}

fn file(sources: &Sources, faults: &mut Vec<Fault>) -> Map<String, Value> {
    let Some(path) = &sources.file else {
        return Map::new();
    };
    let origin = format!("file {}", path.display());
    match std::fs::read_to_string(path) {
        Ok(text) => toml(&text, &origin, faults),
        Err(error) => {
            let problem = Problem::new(format!("cannot be read: {error}"), "check the path");
            faults.push(problem.at("--config", &origin));
            Map::new()
        }
    }
}

fn environment(sources: &Sources, faults: &mut Vec<Fault>) -> Map<String, Value> {
    let mut values = Map::new();
    for (name, value) in &sources.env {
        let Some(rest) = name.strip_prefix("BELFRY__") else {
            continue;
        };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let origin = format!("environment {name}");
        match value.to_str() {
            Some(value) => {
                values.insert(key, Value::new(Some(&origin), value));
            }
            None => faults.push(Problem::new("is not Unicode", "write UTF-8").at(&key, &origin)),
        }
    }
    values
}

fn flags(sources: &Sources) -> Map<String, Value> {
    let value = |flag: &Flag| Value::new(Some(&format!("flag {}", flag.name)), flag.value.as_str());
    sources.flags.iter().map(|flag| (flag.key.clone(), value(flag))).collect()
}

/// Turns tables into dotted keys. An empty table says nothing.
fn flatten(values: Map<String, Value>) -> Map<String, Value> {
    let mut flat = Map::new();
    for (key, value) in values {
        match value.kind {
            ValueKind::Table(table) => {
                let inner = flatten(table).into_iter();
                flat.extend(inner.map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            _ => {
                flat.insert(key, value);
            }
        }
    }
    flat
}

/// Takes the keys that do not exist out, and names each as a fault.
fn only_known(
    mut values: Map<String, Value>,
    known: &BTreeSet<String>,
    faults: &mut Vec<Fault>,
) -> Layer {
    let unknown: BTreeSet<String> =
        values.keys().filter(|key| !known.contains(*key)).cloned().collect();
    for key in unknown {
        if let Some(value) = values.remove(&key) {
            faults.push(unknown::fault(&key, origin(&value), known));
        }
    }
    Layer(values)
}

/// A secret and the file with it are two ways to give one setting: in one layer only one may be
/// used, and the higher layer wins over the lower one whichever it uses.
fn settle_secret_files(layers: &mut [Layer], known: &BTreeSet<String>, faults: &mut Vec<Fault>) {
    let of_issuers = issuers::names(known.iter()).into_iter().flat_map(|name| {
        ["secret", "secret_previous"].map(|field| format!("{}{name}.{field}", issuers::PREFIX))
    });
    for key in SECRETS.map(str::to_owned).into_iter().chain(of_issuers) {
        let key = key.as_str();
        let twin = format!("{key}_file");
        let mut decided: Option<String> = None;
        for Layer(values) in layers.iter_mut().rev() {
            if let Some(keep) = &decided {
                let drop = if keep == key { twin.as_str() } else { key };
                // The built-in default is empty and stays, so that the key exists.
                if values.get(drop).is_some_and(|value| !is_empty(value)) {
                    values.remove(drop);
                }
                continue;
            }
            let plain = values.get(key).filter(|value| !is_empty(value));
            let file = values.get(&twin).filter(|value| !is_empty(value));
            match (plain, file) {
                (Some(plain), Some(file)) => {
                    let what = format!("{key} is given too, by {}", origin(plain));
                    faults.push(Problem::new(what, "give one of the two").at(&twin, origin(file)));
                    decided = Some(key.to_owned());
                    values.remove(&twin);
                }
                (Some(_), None) => decided = Some(key.to_owned()),
                (None, Some(_)) => decided = Some(twin.clone()),
                (None, None) => {}
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match &value.kind {
        ValueKind::String(text) => text.is_empty(),
        ValueKind::Array(values) => values.is_empty(),
        _ => false,
    }
}

fn origin(value: &Value) -> &str {
    match &value.kind {
        // An array bears none itself where it came out of a merge.
        ValueKind::Array(values) => {
            value.origin().or_else(|| values.first().and_then(Value::origin))
        }
        _ => value.origin(),
    }
    .unwrap_or("unknown")
}

fn raw(value: &Value) -> Result<Raw, Problem> {
    let text = match &value.kind {
        ValueKind::Array(values) => {
            Text::Many(values.iter().map(scalar).collect::<Result<_, _>>()?)
        }
        _ => Text::One(scalar(value)?),
    };
    Ok(Raw { text, origin: origin(value).to_owned() })
}

fn scalar(value: &Value) -> Result<String, Problem> {
    match &value.kind {
        ValueKind::String(text) => Ok(text.clone()),
        ValueKind::Boolean(value) => Ok(value.to_string()),
        ValueKind::I64(value) => Ok(value.to_string()),
        ValueKind::I128(value) => Ok(value.to_string()),
        ValueKind::U64(value) => Ok(value.to_string()),
        ValueKind::U128(value) => Ok(value.to_string()),
        ValueKind::Float(value) => Ok(value.to_string()),
        ValueKind::Nil | ValueKind::Table(_) | ValueKind::Array(_) => {
            Err(Problem::new("is neither a value nor a list of values", "write a string"))
        }
    }
}

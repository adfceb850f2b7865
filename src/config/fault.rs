//! What is wrong with the configuration, told so that a person can put it right.

use std::fmt;

/// One thing that is wrong. It never bears the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key at fault, as in `config/default.toml`, or the variable or flag where there is none.
    pub key: String,
    /// Where its value came from: `default`, `file /etc/belfry.toml`, `environment BELFRY__…`.
    pub origin: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}; {}", self.key, self.origin, self.problem, self.advice)
    }
}

/// All that is wrong, at once; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a fault:")?,
            n => write!(f, "the configuration has {n} faults:")?,
        }
        for fault in &self.0 {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// What is wrong with a value, before it is known whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

impl Problem {
    /// Both halves of the sentence.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into() }
    }

    /// Names the key and the place.
    #[must_use]
    pub fn at(self, key: &str, origin: &str) -> Fault {
        Fault {
            key: key.to_owned(),
            origin: origin.to_owned(),
            problem: self.what,
            advice: self.advice,
        }
    }
}

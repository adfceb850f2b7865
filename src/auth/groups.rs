//! Which of the groups that somebody names are taken.

use super::jwt::glob;
use crate::{
    config::Config,
    event::{Group, NameError},
};

/// Why a list of groups does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A name is not legal.
    #[error("a group's name {0}")]
    Name(#[from] NameError),
    /// More than `limits.groups`.
    #[error("there are more than {0} groups (limits.groups)")]
    TooMany(usize),
}

/// The rule, as configured.
#[derive(Clone, Debug)]
pub struct Rule {
    allow: Vec<String>,
    most: usize,
}

impl Rule {
    /// `auth.groups.allow` and `limits.groups`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { allow: config.auth.groups_allow.clone(), most: config.limits.groups }
    }

    /// Those of `names` that the patterns allow, each once.
    ///
    /// # Errors
    /// When a name is not legal, or too many are left.
    pub fn take<S: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Vec<Group>, Fault> {
        let mut groups = Vec::new();
        for name in names {
            let name = name.as_ref();
            let group = Group::new(name)?;
            let allowed = self.allow.iter().any(|pattern| glob(pattern, name));
            if allowed && !groups.contains(&group) {
                groups.push(group);
            }
            if groups.len() > self.most {
                return Err(Fault::TooMany(self.most));
            }
        }
        Ok(groups)
    }
}

//! `belfry key`

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, builder::PossibleValuesParser};
use rand::{TryRngCore as _, rngs::OsRng};

use super::failure::{self, Failure};
use crate::config::{Scope, gate::Rate, rules, secrets};

/// Bytes of randomness in a key.
const KEY_BYTES: usize = 32;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    belfry key --name billing\n  \
    belfry key --name billing --scope publish --scope read --rate 100/s\n\n\
    Prints two lines: the key, which is for the back end and shown only here, and the entry for\n\
    api.keys (BELFRY__API__KEYS, or a line of the file that BELFRY__API__KEYS_FILE names), which\n\
    bears only its hash.")]
pub(super) struct Key {
    /// Whose key it is: a name for logs and metrics
    #[arg(long)]
    name: String,
    /// What it may do; may be repeated. None given: everything but tickets
    #[arg(long = "scope", value_name = "SCOPE",
          value_parser = PossibleValuesParser::new(Scope::ALL.map(Scope::label)))]
    scopes: Vec<String>,
    /// How many requests each replica takes from it, such as 100/s or 30/m. None given: no limit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<Rate>,
}

fn rate(text: &str) -> Result<Rate, String> {
    Rate::parse(text).ok_or_else(|| "write 100/s or 30/m".to_owned())
}

impl Key {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut bytes = [0; KEY_BYTES];
        OsRng
            .try_fill_bytes(&mut bytes)
            .map_err(|error| Failure::new(format!("no randomness: {error}")))?;
        let (key, entry) = self.make(bytes)?;
        failure::print(&key)?;
        failure::print(&entry)?;
        failure::status(&format!(
            "\nThe first line is the key: give it to {name}, it is not shown again.\n\
             The second is the entry for api.keys.",
            name = self.name
        ));
        Ok(())
    }

    /// The key and its entry in `api.keys`.
    fn make(&self, bytes: [u8; KEY_BYTES]) -> Result<(String, String), Failure> {
        let key = format!("bk_{}", URL_SAFE_NO_PAD.encode(bytes));
        let mut entry = format!("{}:{}", self.name, secrets::hex(&secrets::hash(&key)));
        if !self.scopes.is_empty() {
            entry.push(':');
            entry.push_str(&self.scopes.join("+"));
        }
        if let Some(rate) = self.rate {
            entry = format!("{entry}:{rate}");
        }
        // The configuration must accept what is printed here.
        rules::api_key(&entry)
            .map_err(|problem| Failure::new(format!("the key {}", problem.what)))?;
        Ok((key, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_what_the_configuration_reads() {
        let scopes = vec!["publish".to_owned(), "read".to_owned()];
        let (key, entry) = Key { name: "billing".to_owned(), scopes, rate: Rate::parse("9/s") }
            .make([7; 32])
            .unwrap();
        assert_eq!(key, "bk_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        let read = rules::api_key(&entry).unwrap();
        assert_eq!(read.name, "billing");
        assert_eq!(read.hash, secrets::hash(&key));
        assert_eq!(read.scopes, [Scope::Publish, Scope::Read]);
        assert_eq!(read.rate, Rate::parse("9/s"));
    }

    #[test]
    fn a_name_that_the_configuration_refuses_is_refused_here() {
        let failure =
            Key { name: "a b".to_owned(), scopes: vec![], rate: None }.make([7; 32]).unwrap_err();
        assert!(failure.to_string().contains("bad name"), "{failure}");
    }
}

//! Which back end is calling, and what it may do.

use std::sync::Arc;

use actix_http::header::{self, HeaderMap};
use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::bearer_token;
use crate::config::{ApiKey, Scope};

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The key's name.
    pub name: Arc<str>,
    scopes: Vec<Scope>,
}

impl Caller {
    /// Whether the key may do this.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// The configured keys; they can be replaced while they are in use.
pub struct ApiKeys(ArcSwap<Vec<ApiKey>>);

impl ApiKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self(ArcSwap::from_pointee(keys))
    }

    /// Uses other keys from now on: they were rotated.
    pub fn replace(&self, keys: Vec<ApiKey>) {
        self.0.store(Arc::new(keys));
    }

    /// Whose key the request bears. Every configured key is compared, each in constant time, so
    /// that the time of an answer says nothing about which came close.
    #[must_use]
    pub fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let mut values = headers.get_all(header::AUTHORIZATION);
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let key = bearer_token(value.to_str().ok()?)?;
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let mut found = None;
        for candidate in self.0.load().iter() {
            if bool::from(candidate.hash.ct_eq(&hash)) {
                found = Some(Caller {
                    name: candidate.name.as_str().into(),
                    scopes: candidate.scopes.clone(),
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use actix_http::header::HeaderValue;

    use super::*;

    fn keys() -> ApiKeys {
        ApiKeys::new(vec![ApiKey {
            name: "billing".into(),
            hash: Sha256::digest(b"secret").into(),
            scopes: vec![Scope::Publish],
        }])
    }

    fn caller(values: &[&'static str]) -> Option<Caller> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        keys().caller(&headers)
    }

    #[test]
    fn the_right_key_names_its_owner() {
        let caller = caller(&["Bearer secret"]).unwrap();
        assert_eq!(&*caller.name, "billing");
        assert!(caller.may(Scope::Publish));
        assert!(!caller.may(Scope::Broadcast));
    }

    #[test]
    fn everything_else_names_nobody() {
        for values in [
            &[][..],
            &["secret"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer wrong"],
            &["Basic secret"],
            &["Bearer secret", "Bearer secret"],
        ] {
            assert_eq!(caller(values), None, "{values:?}");
        }
    }
}

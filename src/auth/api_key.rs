//! Which back end is calling, and what it may do.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use actix_http::header::{self, HeaderMap};
use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::bearer_token;
use crate::{
    config::{
        ApiKey, Scope,
        gate::{Period, Rate},
    },
    rate::Bucket,
};

/// Who is calling.
#[derive(Clone)]
pub struct Caller {
    /// The key's name.
    pub name: Arc<str>,
    scopes: Vec<Scope>,
    rate: Option<Arc<Bucket>>,
}

impl Caller {
    /// Whether the key may do this.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Counts one request against the key's rate.
    ///
    /// # Errors
    /// When it has had its share; how long until it may call again.
    pub fn call(&self) -> Result<(), Duration> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.take(NonZeroU32::MIN))
    }
}

/// The configured keys; they can be replaced while they are in use.
pub struct ApiKeys(ArcSwap<Vec<Entry>>);

struct Entry {
    key: ApiKey,
    rate: Option<Arc<Bucket>>,
}

impl Entry {
    /// A key that was there before, with the same rate, has used what it has used.
    fn new(key: ApiKey, before: &[Self]) -> Self {
        let same = before.iter().find(|old| old.key.hash == key.hash && old.key.rate == key.rate);
        let rate = match same {
            Some(old) => old.rate.clone(),
            None => key.rate.map(|rate| Arc::new(bucket(rate))),
        };
        Self { key, rate }
    }
}

fn bucket(rate: Rate) -> Bucket {
    let period = match rate.per {
        Period::Second => Duration::from_secs(1),
        Period::Minute => Duration::from_secs(60),
    };
    Bucket::new(rate.count, period, rate.count)
}

impl ApiKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self(ArcSwap::from_pointee(keys.into_iter().map(|key| Entry::new(key, &[])).collect()))
    }

    /// Uses other keys from now on: they were rotated.
    pub fn replace(&self, keys: Vec<ApiKey>) {
        let before = self.0.load();
        let keys = keys.into_iter().map(|key| Entry::new(key, &before)).collect();
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
        for Entry { key: candidate, rate } in self.0.load().iter() {
            if bool::from(candidate.hash.ct_eq(&hash)) {
                found = Some(Caller {
                    name: candidate.name.as_str().into(),
                    scopes: candidate.scopes.clone(),
                    rate: rate.clone(),
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

    fn key(secret: &str, rate: Option<&str>) -> ApiKey {
        ApiKey {
            name: "billing".into(),
            hash: Sha256::digest(secret).into(),
            scopes: vec![Scope::Publish],
            rate: rate.and_then(Rate::parse),
        }
    }

    fn ask(keys: &ApiKeys, values: &[&'static str]) -> Option<Caller> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        keys.caller(&headers)
    }

    fn caller(values: &[&'static str]) -> Option<Caller> {
        ask(&ApiKeys::new(vec![key("secret", None)]), values)
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
            assert!(caller(values).is_none(), "{values:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_outlives_a_rotation_of_other_keys() {
        let keys = ApiKeys::new(vec![key("secret", Some("2/m"))]);
        let call = || ask(&keys, &["Bearer secret"]).unwrap().call();
        assert_eq!((call(), call()), (Ok(()), Ok(())));
        assert_eq!(call(), Err(Duration::from_secs(30)));
        keys.replace(vec![key("other", None), key("secret", Some("2/m"))]);
        assert_eq!(call(), Err(Duration::from_secs(30)));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(call(), Ok(()));
        assert!(call().is_err());
        // Another rate is another promise.
        keys.replace(vec![key("secret", Some("3/m"))]);
        assert_eq!(call(), Ok(()));
        keys.replace(vec![key("secret", None)]);
        assert!((0..1_000).all(|_| call().is_ok()));
    }
}

//! Tokens made by hand, so that every wrong one can be made too.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde_json::{Map, Value, json};
use sha2::{Sha256, Sha384, Sha512};

/// The secret that replicas under test are started with.
pub const SECRET: &str = "correct-horse-battery-staple-0123456789-abcdefghijklmnopqrstuvwxyz";

/// Seconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_secs()).expect("a clock before the year 292 billion")
}

/// A good token of `user` for an hour.
pub fn token(user: &str) -> String {
    Jwt::of(user).sign()
}

/// A token under construction: good until it is changed.
#[derive(Clone, Debug)]
pub struct Jwt {
    header: Map<String, Value>,
    claims: Map<String, Value>,
    secret: Vec<u8>,
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

impl Jwt {
    /// HS256, an hour to live, the right secret.
    pub fn of(user: &str) -> Self {
        Self {
            header: object(json!({"alg": "HS256", "typ": "JWT"})),
            claims: object(json!({"sub": user, "exp": now() + 3600})),
            secret: SECRET.as_bytes().to_vec(),
        }
    }

    /// Sets a claim.
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.into(), value.into());
        self
    }

    /// Removes a claim.
    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// Sets a member of the header.
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.into(), value.into());
        self
    }

    /// Ends so many seconds from now.
    pub fn expires_in(self, seconds: i64) -> Self {
        self.claim("exp", now() + seconds)
    }

    /// Names groups.
    pub fn groups(self, groups: &[&str]) -> Self {
        self.claim("groups", json!(groups))
    }

    /// Signs with another secret.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = secret.as_ref().to_vec();
        self
    }

    /// `<header>.<claims>`
    pub fn unsigned(&self) -> String {
        let part = |map: &Map<String, Value>| {
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(map).expect("JSON"))
        };
        format!("{}.{}", part(&self.header), part(&self.claims))
    }

    /// With an HMAC-SHA-256, whatever the header says.
    pub fn sign(&self) -> String {
        let text = self.unsigned();
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("any key length");
        mac.update(text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    /// With an HMAC-SHA-384.
    pub fn sign_384(&self) -> String {
        let text = self.unsigned();
        let mut mac = Hmac::<Sha384>::new_from_slice(&self.secret).expect("any key length");
        mac.update(text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    /// With an HMAC-SHA-512.
    pub fn sign_512(&self) -> String {
        let text = self.unsigned();
        let mut mac = Hmac::<Sha512>::new_from_slice(&self.secret).expect("any key length");
        mac.update(text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    /// A good token of exactly `bytes` bytes, padded with a claim and a member of the header.
    pub fn sized(user: &str, bytes: usize) -> String {
        for in_header in 0..4 {
            let base = Self::of(user).header("x", "h".repeat(in_header)).claim("pad", "");
            let short = base.sign().len();
            assert!(bytes > short + 4, "too small for a token: {bytes}");
            let about = (bytes - short) / 4 * 3;
            for pad in about.saturating_sub(4)..about + 5 {
                let token = base.clone().claim("pad", "p".repeat(pad)).sign();
                if token.len() == bytes {
                    return token;
                }
            }
        }
        panic!("no token of {bytes} bytes");
    }
}

//! Keys that check signatures, each bound to what it is and, where known, to one algorithm.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};

use crate::config::{Jwt, KeyKind, PUBLIC_KEYS};

/// Signatures that one token may cost: without a `kid` every key of its kind is tried.
const TRIES: usize = PUBLIC_KEYS;
/// Keys that are taken from one set.
const KEYS: usize = 256;
/// Shortest RSA modulus, in bytes: 2048 bits (RFC 7518 §3.3).
const RSA_BYTES: usize = 256;
/// RFC 7518 wants no padding; some issuers write it all the same.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One key.
#[derive(Clone)]
pub struct Key {
    /// Its name, where it has one. A key without may be meant by any `kid`.
    kid: Option<String>,
    kind: KeyKind,
    /// The only algorithm it may be used for, where the issuer says so.
    algorithm: Option<Algorithm>,
    material: DecodingKey,
}

impl Key {
    /// Whether this is its name.
    #[must_use]
    pub fn is_named(&self, kid: &str) -> bool {
        self.kid.as_deref() == Some(kid)
    }
}

/// What a token says of its signature.
#[derive(Clone, Copy)]
pub struct Signed<'a> {
    /// An algorithm that is accepted.
    pub algorithm: Algorithm,
    /// Which key, if it says so.
    pub kid: Option<&'a str>,
    /// The bytes that are signed.
    pub message: &'a [u8],
    /// The signature, in base64url.
    pub signature: &'a str,
}

/// What came of trying keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// One of them made the signature.
    Match,
    /// There are some that may have, and none did.
    Mismatch,
    /// None of them is meant.
    Absent,
}

/// Whether one of these keys made the signature.
#[must_use]
pub fn try_keys(keys: &[Key], signed: Signed<'_>) -> Tried {
    let mut tried = Tried::Absent;
    for key in keys.iter().filter(|key| key.may_have_made(signed)).take(TRIES) {
        let Signed { algorithm, message, signature, .. } = signed;
        // An error is a key or a signature of no use, which is no match.
        if crypto::verify(signature, message, &key.material, algorithm).is_ok_and(|matches| matches)
        {
            return Tried::Match;
        }
        tried = Tried::Mismatch;
    }
    tried
}

impl Key {
    fn may_have_made(&self, signed: Signed<'_>) -> bool {
        let named = match (&self.kid, signed.kid) {
            (Some(own), Some(kid)) => own == kid,
            _ => true,
        };
        named
            && KeyKind::of(signed.algorithm) == Some(self.kind)
            && self.algorithm.is_none_or(|algorithm| algorithm == signed.algorithm)
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }
}

/// The keys that the configuration itself holds: the secrets, the newer first, and PEM files.
#[must_use]
pub fn configured(jwt: &Jwt) -> Vec<Key> {
    let secrets = [&jwt.secret, &jwt.secret_previous].into_iter().flatten().map(|secret| Key {
        kid: None,
        kind: KeyKind::Hmac,
        algorithm: None,
        material: DecodingKey::from_secret(secret.expose_secret().as_bytes()),
    });
    let public = jwt.public_keys.iter().map(|public| Key {
        kid: None,
        kind: public.kind,
        algorithm: None,
        material: public.key.clone(),
    });
    secrets.chain(public).collect()
}

/// The keys of a JWK set (RFC 7517 §5) that can check a signature. What is meant for something
/// else, not understood or not sound is left out, and so is every `oct`: a secret that is
/// published is none.
///
/// # Errors
/// It is no JWK set, or no key of it is of use.
pub fn published(set: &[u8]) -> Result<Vec<Key>, &'static str> {
    let set: Map<String, Value> =
        serde_json::from_slice(set).map_err(|_| "the answer is not a JSON object")?;
    let Some(Value::Array(list)) = set.get("keys") else {
        return Err("the answer has no list `keys`");
    };
    let keys: Vec<Key> = list.iter().filter_map(jwk).take(KEYS).collect();
    if keys.is_empty() { Err("no key in the set can check a signature") } else { Ok(keys) }
}

/// A JSON Web Key; `None` where it is of no use here.
fn jwk(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let use_ = jwk.get("use").is_none_or(|of| of == "sig");
    let verifies = |ops: &Vec<Value>| ops.iter().any(|op| op == "verify");
    let ops = jwk.get("key_ops").is_none_or(|ops| ops.as_array().is_some_and(verifies));
    if !use_ || !ops {
        return None;
    }
    let algorithm = match jwk.get("alg") {
        None => None,
        Some(name) => Some(name.as_str()?.parse::<Algorithm>().ok()?),
    };
    let kid = match jwk.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str()?.to_owned()),
    };
    let (kind, material) = match (text("kty")?, text("crv")) {
        ("RSA", _) => (KeyKind::Rsa, rsa(text("n")?, text("e")?)?),
        ("EC", Some("P-256")) => (KeyKind::P256, point(text("x")?, text("y")?, 32)?),
        ("EC", Some("P-384")) => (KeyKind::P384, point(text("x")?, text("y")?, 48)?),
        ("OKP", Some("Ed25519")) => {
            let x = BASE64URL.decode(text("x")?).ok().filter(|x| x.len() == 32)?;
            (KeyKind::Ed25519, DecodingKey::from_ed_der(&x))
        }
        _ => return None,
    };
    let fits = algorithm.is_none_or(|algorithm| KeyKind::of(algorithm) == Some(kind));
    fits.then_some(Key { kid, kind, algorithm, material })
}

fn rsa(n: &str, e: &str) -> Option<DecodingKey> {
    // Some issuers write the sign byte of DER too.
    let number = |text: &str| {
        let bytes = BASE64URL.decode(text).ok()?;
        let first = bytes.iter().position(|byte| *byte != 0)?;
        Some(bytes.get(first..)?.to_vec())
    };
    let (n, e) = (number(n)?, number(e)?);
    (n.len() >= RSA_BYTES).then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

/// An uncompressed point (SEC 1 §2.3.3).
fn point(x: &str, y: &str, length: usize) -> Option<DecodingKey> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let bytes = BASE64URL.decode(coordinate).ok()?;
        // RFC 7518 §6.2.1.2 wants the full length; some issuers drop leading zeros.
        point.resize(point.len() + length.checked_sub(bytes.len())?, 0);
        point.extend(bytes);
    }
    Some(DecodingKey::from_ec_der(&point))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(keys: &Value) -> Result<Vec<KeyKind>, &'static str> {
        let set = json!({"keys": keys}).to_string();
        published(set.as_bytes()).map(|keys| keys.iter().map(Key::kind).collect())
    }

    fn bytes(length: usize) -> String {
        BASE64URL.encode(vec![7; length])
    }

    #[test]
    fn what_can_check_a_signature_is_taken() {
        let rsa = json!({"kty": "RSA", "n": bytes(256), "e": "AQAB", "kid": "1", "use": "sig"});
        let p256 = json!({"kty": "EC", "crv": "P-256", "x": bytes(32), "y": bytes(31)});
        let p384 = json!({"kty": "EC", "crv": "P-384", "x": bytes(48), "y": bytes(48),
            "key_ops": ["verify"], "alg": "ES384"});
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": bytes(32), "alg": "EdDSA", "new": {}});
        assert_eq!(
            kinds(&json!([rsa, p256, p384, ed])).unwrap(),
            [KeyKind::Rsa, KeyKind::P256, KeyKind::P384, KeyKind::Ed25519]
        );
    }

    #[test]
    fn everything_else_is_left_out() {
        let good = json!({"kty": "OKP", "crv": "Ed25519", "x": bytes(32)});
        let n = bytes(256);
        for other in [
            json!({"kty": "oct", "k": bytes(64), "alg": "HS256"}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "use": "enc"}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "use": 1}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "key_ops": ["encrypt"]}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "key_ops": "verify"}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RSA-OAEP"}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "HS256"}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "ES256"}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": 5}),
            json!({"kty": "RSA", "n": n, "e": "AQAB", "kid": 5}),
            json!({"kty": "RSA", "n": bytes(128), "e": "AQAB"}),
            json!({"kty": "RSA", "n": "!", "e": "AQAB"}),
            json!({"kty": "RSA", "e": "AQAB"}),
            json!({"kty": "EC", "crv": "P-521", "x": bytes(66), "y": bytes(66)}),
            json!({"kty": "EC", "crv": "secp256k1", "x": bytes(32), "y": bytes(32)}),
            json!({"kty": "EC", "crv": "P-256", "x": bytes(33), "y": bytes(32)}),
            json!({"kty": "OKP", "crv": "X25519", "x": bytes(32)}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": bytes(31)}),
            json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "x"}),
            json!({"kty": 7}),
            json!("key"),
            json!(null),
        ] {
            assert_eq!(kinds(&json!([other, good])).unwrap(), [KeyKind::Ed25519], "{other}");
            assert!(kinds(&json!([other])).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_no_set_is_an_error() {
        for set in ["", "[]", "{}", "{\"keys\":{}}", "{\"keys\":[]}", "<html>"] {
            assert!(published(set.as_bytes()).is_err(), "{set}");
        }
    }
}

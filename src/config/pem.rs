//! Public keys in PEM (RFC 7468), with what each may be used for.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey};

use super::fault::Problem;

/// What a key is, and so which algorithms may use it: a key never serves another kind, whatever a
/// token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A shared secret: HS256, HS384, HS512.
    Hmac,
    /// RS* and PS*.
    Rsa,
    /// The curve P-256: ES256.
    P256,
    /// The curve P-384: ES384.
    P384,
    /// `EdDSA`.
    Ed25519,
}

impl KeyKind {
    /// The kind that an algorithm needs; `None` for one that is not supported.
    #[must_use]
    pub fn of(algorithm: Algorithm) -> Option<Self> {
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Some(Self::Hmac),
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => Some(Self::Rsa),
            Algorithm::ES256 => Some(Self::P256),
            Algorithm::ES384 => Some(Self::P384),
            Algorithm::EdDSA => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// One key from a PEM file.
#[derive(Clone, Debug)]
pub struct PublicKey {
    /// What it is.
    pub kind: KeyKind,
    /// The key, ready for use.
    pub key: DecodingKey,
    /// As it stands in the file.
    pem: String,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

/// Most public keys in the files of one issuer: none has a name in PEM, so a token may cost as many
/// checks.
pub const PUBLIC_KEYS: usize = 16;

/// A DER-encoded RSA key of 2048 bits has at least this many bytes; shorter ones are not secure,
/// and no signature of theirs would be accepted.
const RSA_BYTES: usize = 266;
/// The object identifiers of the curves, in DER (RFC 5480 §2.1.1.1).
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

const BEGIN: &str = "-----BEGIN ";

/// Whether a text is PEM, or has some in it: then it is no shared secret.
#[must_use]
pub fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

/// All public keys of a text; what stands between them is ignored (RFC 7468 §2).
///
/// # Errors
/// No key, or one that is private, broken, too short or of an unknown kind; by position.
pub fn public_keys(text: &str) -> Result<Vec<PublicKey>, Problem> {
    let mut keys = Vec::new();
    for (i, block) in blocks(text).enumerate() {
        let key = public_key(block).map_err(|problem| {
            Problem::new(format!("key {} {}", i + 1, problem.what), problem.advice)
        })?;
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(Problem::new(
            "has no PEM in it",
            "give a file with -----BEGIN PUBLIC KEY----- and what follows",
        ));
    }
    Ok(keys)
}

/// From each BEGIN to the next, or to the end.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut starts: Vec<usize> = text.match_indices(BEGIN).map(|(at, _)| at).collect();
    starts.push(text.len());
    (1..starts.len()).filter_map(move |i| text.get(starts[i - 1]..starts[i]))
}

fn public_key(block: &str) -> Result<PublicKey, Problem> {
    let label = block.strip_prefix(BEGIN).and_then(|rest| rest.split_once("-----"));
    let Some((label, rest)) = label else {
        return Err(Problem::new("has no label", "copy the file anew"));
    };
    let advice = match label {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => "",
        "CERTIFICATE" => "`openssl x509 -pubkey -noout -in FILE` takes the public key out",
        private if private.ends_with("PRIVATE KEY") => {
            "keep the private key with the issuer; `openssl pkey -pubout -in FILE` makes the public"
        }
        _ => "give a PUBLIC KEY",
    };
    if !advice.is_empty() {
        let label: String = label.chars().take(40).flat_map(char::escape_debug).collect();
        return Err(Problem::new(format!("is a {label}"), advice));
    }
    let end = format!("-----END {label}-----");
    let body = rest.split_once(&end).map(|(body, _)| body);
    let der = body
        .map(|body| body.split_whitespace().collect::<String>())
        .and_then(|body| STANDARD.decode(body).ok())
        .ok_or_else(|| Problem::new("is cut or garbled", "copy the file anew"))?;
    let pem = block.split_once(&end).map_or(block, |(before, _)| before).to_owned() + &end;
    let (kind, key) = decode(label, &der, pem.as_bytes())?;
    Ok(PublicKey { kind, key, pem })
}

fn decode(label: &str, der: &[u8], pem: &[u8]) -> Result<(KeyKind, DecodingKey), Problem> {
    if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
        if key.try_get_as_bytes().map_or(0, <[u8]>::len) < RSA_BYTES {
            return Err(Problem::new("is RSA of less than 2048 bits", "make a longer key"));
        }
        return Ok((KeyKind::Rsa, key));
    }
    if label == "PUBLIC KEY" {
        if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            return Ok((KeyKind::Ed25519, key));
        }
        if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            let length = key.try_get_as_bytes().map_or(0, <[u8]>::len);
            let on = |curve: &[u8]| der.windows(curve.len()).any(|part| part == curve);
            if length == 65 && on(P256) {
                return Ok((KeyKind::P256, key));
            }
            if length == 97 && on(P384) {
                return Ok((KeyKind::P384, key));
            }
            return Err(Problem::new(
                "is on a curve that is not supported, or compressed",
                "use P-256 (ES256), P-384 (ES384) or Ed25519 (EdDSA)",
            ));
        }
    }
    Err(Problem::new("is no RSA, EC or Ed25519 key", "give a public key of one of these kinds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const P256_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\n\
        q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\n\
        -----END PUBLIC KEY-----\n";
    const ED_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";

    #[test]
    fn one_file_has_several_keys_with_words_between() {
        let keys = public_keys(&format!("old:\n{P256_PEM}\nnew:\r\n{ED_PEM}")).unwrap();
        let kinds: Vec<KeyKind> = keys.iter().map(|key| key.kind).collect();
        assert_eq!(kinds, [KeyKind::P256, KeyKind::Ed25519]);
    }

    #[test]
    fn what_is_no_public_key_is_named() {
        for (text, says) in [
            ("", "no PEM"),
            ("let me in", "no PEM"),
            ("-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----", "PRIVATE KEY"),
            ("-----BEGIN EC PRIVATE KEY-----\nMC4=\n-----END EC PRIVATE KEY-----", "PRIVATE"),
            ("-----BEGIN CERTIFICATE-----\nMC4=\n-----END CERTIFICATE-----", "CERTIFICATE"),
            ("-----BEGIN PUBLIC KEY-----\nMC4=", "cut or garbled"),
            ("-----BEGIN PUBLIC KEY-----\nMC4=\n-----END PUBLIC KEY-----", "is no RSA"),
            ("-----BEGIN PUBLIC KEY", "no label"),
        ] {
            let problem = public_keys(text).unwrap_err();
            assert!(problem.what.contains(says), "{text}: {problem:?}");
        }
        let second = public_keys(&format!("{ED_PEM}-----BEGIN PUBLIC KEY-----\nMC4=")).unwrap_err();
        assert!(second.what.starts_with("key 2 "), "{second:?}");
    }

    #[test]
    fn each_algorithm_has_one_kind() {
        assert_eq!(KeyKind::of(Algorithm::PS384), Some(KeyKind::Rsa));
        assert_eq!(KeyKind::of(Algorithm::ES384), Some(KeyKind::P384));
        assert_eq!(KeyKind::of(Algorithm::HS512), Some(KeyKind::Hmac));
    }
}

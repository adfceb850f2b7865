//! Keys and signatures made by the `openssl` program, which shares no code with the gateway.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::jwt::Jwt;

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Every algorithm with a key pair, and its kind.
pub const ALGORITHMS: [(&str, Kind); 9] = [
    ("RS256", Kind::Rsa),
    ("RS384", Kind::Rsa),
    ("RS512", Kind::Rsa),
    ("PS256", Kind::Rsa),
    ("PS384", Kind::Rsa),
    ("PS512", Kind::Rsa),
    ("ES256", Kind::P256),
    ("ES384", Kind::P384),
    ("EdDSA", Kind::Ed25519),
];

/// A private key in a folder of its own.
pub struct KeyPair {
    pub kind: Kind,
    dir: TempDir,
}

fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tests need the openssl program");
    child.stdin.take().expect("piped").write_all(input).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {args:?}: {errors}");
    output.stdout
}

impl KeyPair {
    pub fn new(kind: Kind) -> Self {
        let (algorithm, option) = match kind {
            Kind::Rsa => ("RSA", Some("rsa_keygen_bits:2048")),
            Kind::P256 => ("EC", Some("ec_paramgen_curve:P-256")),
            Kind::P384 => ("EC", Some("ec_paramgen_curve:P-384")),
            Kind::Ed25519 => ("ED25519", None),
        };
        Self::generate(kind, algorithm, option)
    }

    /// RSA of 1024 bits.
    pub fn short() -> Self {
        Self::generate(Kind::Rsa, "RSA", Some("rsa_keygen_bits:1024"))
    }

    fn generate(kind: Kind, algorithm: &str, option: Option<&str>) -> Self {
        let pair = Self { kind, dir: tempfile::tempdir().expect("a folder") };
        let private = pair.file("private.pem");
        let mut args = vec!["genpkey", "-algorithm", algorithm, "-out", &private];
        args.extend(option.into_iter().flat_map(|option| ["-pkeyopt", option]));
        openssl(&args, b"");
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &pair.public_file()], b"");
        pair
    }

    fn file(&self, name: &str) -> String {
        let path: PathBuf = self.dir.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// The path of the public key.
    pub fn public_file(&self) -> String {
        self.file("public.pem")
    }

    /// The path of the private key.
    pub fn private_file(&self) -> String {
        self.file("private.pem")
    }

    pub fn public_pem(&self) -> String {
        std::fs::read_to_string(self.public_file()).expect("written")
    }

    /// `SubjectPublicKeyInfo`
    pub fn public_der(&self) -> Vec<u8> {
        let pem = self.public_pem();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        STANDARD.decode(body).expect("PEM")
    }

    /// The public key as a JWK, with this `kid`.
    pub fn jwk(&self, kid: &str) -> Value {
        let mut jwk = self.bare_jwk();
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// The same without `kid`, `use` and `alg`.
    pub fn bare_jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let der = self.public_der();
        let point = |length: usize| {
            let (x, y) = der[der.len() - 2 * length..].split_at(length);
            (text(x), text(y))
        };
        match self.kind {
            Kind::Rsa => {
                let args = ["rsa", "-pubin", "-in", &self.public_file(), "-modulus", "-noout"];
                let modulus = String::from_utf8(openssl(&args, b"")).expect("text");
                let hex = modulus.trim().trim_start_matches("Modulus=");
                let n: Vec<u8> = (0..hex.len() / 2)
                    .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
                    .collect();
                json!({"kty": "RSA", "n": text(&n), "e": "AQAB"})
            }
            Kind::P256 => {
                let (x, y) = point(32);
                json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
            }
            Kind::P384 => {
                let (x, y) = point(48);
                json!({"kty": "EC", "crv": "P-384", "x": x, "y": y})
            }
            Kind::Ed25519 => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(&der[der.len() - 32..])})
            }
        }
    }

    /// Signs with an algorithm of the key's kind, which is put into the header.
    pub fn sign(&self, algorithm: &str, jwt: &Jwt) -> String {
        self.sign_as(algorithm, &jwt.clone().header("alg", algorithm))
    }

    /// Signs whatever the header says.
    pub fn sign_as(&self, algorithm: &str, jwt: &Jwt) -> String {
        let message = jwt.unsigned();
        let private = self.file("private.pem");
        let digest = format!("-sha{}", &algorithm[2..]);
        let mut args = vec!["dgst", &digest, "-sign", &private];
        let signature = match &algorithm[..2] {
            "RS" => openssl(&args, message.as_bytes()),
            "PS" => {
                args.extend(["-sigopt", "rsa_padding_mode:pss"]);
                args.extend(["-sigopt", "rsa_pss_saltlen:digest"]);
                openssl(&args, message.as_bytes())
            }
            "ES" => {
                let der = openssl(&args, message.as_bytes());
                raw_ecdsa(&der, if self.kind == Kind::P256 { 32 } else { 48 })
            }
            "Ed" => {
                let text = tempfile::NamedTempFile::new_in(self.dir.path()).expect("a file");
                std::fs::write(text.path(), &message).expect("written");
                let path = text.path().to_str().expect("UTF-8");
                openssl(&["pkeyutl", "-sign", "-inkey", &private, "-rawin", "-in", path], b"")
            }
            other => panic!("no algorithm {other}"),
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// `SEQUENCE { INTEGER r, INTEGER s }` to two numbers of a fixed length (RFC 7518 §3.4).
fn raw_ecdsa(der: &[u8], length: usize) -> Vec<u8> {
    assert!(der[0] == 0x30 && der[1] < 0x80, "a short sequence");
    let mut rest = &der[2..];
    let mut raw = Vec::new();
    for _ in 0..2 {
        assert_eq!(rest[0], 2, "an integer");
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        let number = if number.len() > length { &number[1..] } else { number };
        raw.resize(raw.len() + length - number.len(), 0);
        raw.extend_from_slice(number);
        rest = after;
    }
    raw
}

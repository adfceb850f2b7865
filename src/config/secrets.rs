//! The JWT secret and the API keys: checked in the same way whether they come from a layer, from
//! a file at start, or from that file again after it changed.

use std::{fs::File, io::Read as _, path::Path};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};

use super::{
    ApiKey, Jwt, Profile, PublicKey,
    fault::{Faults, Problem},
    pem, rules,
};

/// The secret that `config/development.toml` sets. Everyone knows it.
pub const DEVELOPMENT_SECRET: &str = "belfry-development-secret-that-everyone-knows";

/// The API key whose hash `config/development.toml` sets. Everyone knows it.
pub const DEVELOPMENT_KEY: &str = "belfry-development-key";

/// Shortest JWT secret in production, in bytes: RFC 7518 §3.2 asks for as many as HS256 puts out.
pub const SECRET_BYTES: usize = 32;

/// Longest file with a secret, in bytes: a wrong path must not fill the memory.
const FILE_BYTES: u64 = 1 << 20;

/// What is kept of an API key.
#[must_use]
pub fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The bytes in lower-case hexadecimal, as `api.keys` has them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

/// Reads the address of a Redis from its file, with the checks that apply at start.
///
/// # Errors
/// Names the path, never the address.
pub fn redis_url(path: &Path) -> Result<SecretString, Faults> {
    let url = read(path).and_then(|url| {
        rules::redis_url(&url)?;
        Ok(SecretString::from(url))
    });
    url.map_err(|problem| at(path, "redis.url", vec![problem]))
}

/// Reads a JWT secret from its file, with the checks that apply at start.
///
/// # Errors
/// Names the path, never the secret.
pub fn jwt_secret(path: &Path, profile: Profile) -> Result<SecretString, Faults> {
    secret_of(path, "secret_file", profile)
}

fn secret_of(path: &Path, key: &str, profile: Profile) -> Result<SecretString, Faults> {
    let secret = read(path).and_then(|secret| {
        check_jwt_secret(&secret, profile)?;
        Ok(SecretString::from(secret))
    });
    secret.map_err(|problem| at(path, key, vec![problem]))
}

/// Reads the secret before the present one from its file. `None`: the file is gone or empty, so
/// the rotation is over, and that secret is withdrawn.
fn previous(path: &Path, profile: Profile) -> Result<Option<SecretString>, Faults> {
    if is_empty(path) || matches!(path.try_exists(), Ok(false)) {
        return Ok(None);
    }
    secret_of(path, "secret_previous_file", profile).map(Some)
}

/// Whether the file is there and says nothing.
pub(super) fn is_empty(path: &Path) -> bool {
    text(path).is_ok_and(|text| text.is_empty())
}

/// Reads all files with keys of one issuer again. `None`: they say what they said. A file with the
/// previous secret that is gone or empty says that there is none any more.
///
/// # Errors
/// Names the first file that is no good. The caller goes on with the keys it has.
pub fn issuer_again(jwt: &Jwt, profile: Profile) -> Result<Option<Jwt>, Faults> {
    let mut new = jwt.clone();
    if let Some(path) = &jwt.secret_file {
        new.secret = Some(jwt_secret(path, profile)?);
    }
    if let Some(path) = &jwt.secret_previous_file {
        new.secret_previous = previous(path, profile)?;
    }
    if !jwt.public_key_files.is_empty() {
        new.public_keys = Vec::new();
        for path in &jwt.public_key_files {
            add_public_keys(&mut new.public_keys, path)
                .map_err(|problem| at(path, "public_key_files", vec![problem]))?;
        }
    }
    let same = same(new.secret.as_ref(), jwt.secret.as_ref())
        && same(new.secret_previous.as_ref(), jwt.secret_previous.as_ref())
        && new.public_keys == jwt.public_keys;
    Ok((!same).then_some(new))
}

fn same(a: Option<&SecretString>, b: Option<&SecretString>) -> bool {
    a.map(ExposeSecret::expose_secret) == b.map(ExposeSecret::expose_secret)
}

/// The public keys of a PEM file, added to those of the files before.
pub(super) fn add_public_keys(keys: &mut Vec<PublicKey>, path: &Path) -> Result<(), Problem> {
    let here = |what: &str| format!("{}: {what}", path.display());
    let more = pem::public_keys(&read(path)?)
        .map_err(|problem| Problem::new(here(&problem.what), problem.advice))?;
    if keys.len() + more.len() > pem::PUBLIC_KEYS {
        let what = here(&format!("these are more than {} keys", pem::PUBLIC_KEYS));
        return Err(Problem::new(what, "take the old ones out, or use jwks_url"));
    }
    keys.extend(more);
    Ok(())
}

/// Reads the API keys from their file again, with the checks that apply at start.
///
/// # Errors
/// Names the path and all bad entries. The caller goes on with the keys it has.
pub fn api_keys(path: &Path, profile: Profile) -> Result<Vec<ApiKey>, Faults> {
    let text = read(path).map_err(|problem| at(path, "api.keys", vec![problem]))?;
    parse_api_keys(&entries(&text), profile).map_err(|problems| at(path, "api.keys", problems))
}

fn at(path: &Path, key: &str, problems: Vec<Problem>) -> Faults {
    let origin = format!("file {}", path.display());
    Faults(problems.into_iter().map(|problem| problem.at(key, &origin)).collect())
}

/// The text of a file without its last line end. An empty one is a fault.
pub(super) fn read(path: &Path) -> Result<String, Problem> {
    let text = text(path)?;
    if text.is_empty() {
        let what = format!("{} is empty", path.display());
        return Err(Problem::new(what, "write the value into it"));
    }
    Ok(text)
}

fn text(path: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES + 1).read_to_string(&mut text));
    if let Err(error) = read {
        let what = format!("{} cannot be read: {error}", path.display());
        return Err(Problem::new(what, "check the path and who may read it"));
    }
    if text.len() as u64 > FILE_BYTES {
        let what = format!("{} is over {FILE_BYTES} bytes", path.display());
        return Err(Problem::new(what, "check the path"));
    }
    if text.ends_with('\n') {
        text.truncate(text.len() - 1);
        if text.ends_with('\r') {
            text.truncate(text.len() - 1);
        }
    }
    Ok(text)
}

/// The entries of a file with API keys: one a line or several with commas; `#` starts a comment.
pub(super) fn entries(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What the profile asks of a JWT secret. A public key is never one: everyone knows it, and could
/// sign with it.
pub(super) fn check_jwt_secret(secret: &str, profile: Profile) -> Result<(), Problem> {
    if pem::is_pem(secret) {
        return Err(Problem::new(
            "is a key in PEM, which is no shared secret",
            "name the file in public_key_files, and an algorithm such as RS256",
        ));
    }
    let what = match profile {
        Profile::Production if secret == DEVELOPMENT_SECRET => {
            "is the development secret, which everyone knows".to_owned()
        }
        Profile::Production if secret.len() < SECRET_BYTES => {
            format!("is {} bytes long, and production asks for {SECRET_BYTES}", secret.len())
        }
        Profile::Development | Profile::Production => return Ok(()),
    };
    Err(Problem::new(what, SECRET_ADVICE))
}

/// Production without any key for tokens.
pub(super) fn no_jwt_key() -> Problem {
    Problem::new("is not set, so no token could be checked", SECRET_ADVICE)
}

const SECRET_ADVICE: &str = "set BELFRY__AUTH__JWT__SECRET_FILE to a file with the secret that signs your tokens \
     (`openssl rand -base64 48` makes a new one), or use public_key_files or jwks_url";

/// Reads all entries and names all bad ones, by position and never by content.
pub(super) fn parse_api_keys(
    entries: &[String],
    profile: Profile,
) -> Result<Vec<ApiKey>, Vec<Problem>> {
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut problems = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let here = |what: &str| format!("entry {} {what}", i + 1);
        match rules::api_key(entry) {
            Err(problem) => problems.push(Problem::new(here(&problem.what), problem.advice)),
            Ok(key) if keys.iter().any(|other| other.name == key.name) => {
                let what = here(&format!("has the name {:?} once more", key.name));
                problems.push(Problem::new(what, "give every key its own name"));
            }
            Ok(key) if keys.iter().any(|other| other.hash == key.hash) => {
                let what = here(&format!("{:?} is the key of another name", key.name));
                problems.push(Problem::new(what, "give every back end its own key"));
            }
            Ok(key) if profile == Profile::Production && key.hash == hash(DEVELOPMENT_KEY) => {
                let what = here("is the development key, which everyone knows");
                problems.push(Problem::new(what, "make one with `belfry key --name billing`"));
            }
            Ok(key) => keys.push(key),
        }
    }
    if profile == Profile::Production && entries.is_empty() {
        problems.push(Problem::new(
            "is empty, so nobody could publish",
            "make a key with `belfry key --name billing` and set BELFRY__API__KEYS",
        ));
    }
    if problems.is_empty() { Ok(keys) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Scope;

    fn key_line(name: &str, key: &str, scopes: &str) -> String {
        format!("{name}:{}{scopes}", hex(&hash(key)))
    }

    #[test]
    fn one_line_end_is_cut_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for (written, read_back) in
            [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("0123", "0123")]
        {
            fs::write(&path, written).unwrap();
            let secret = jwt_secret(&path, Profile::Development).unwrap();
            assert_eq!(secret.expose_secret(), read_back);
        }
    }

    #[test]
    fn a_file_that_cannot_serve_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let fault = |path: &Path| jwt_secret(path, Profile::Development).unwrap_err().to_string();
        assert!(fault(&path).contains(&format!("{} cannot be read", path.display())));
        fs::write(&path, "\n").unwrap();
        assert!(fault(&path).contains("is empty"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(fault(&path).contains("cannot be read"));
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(fault(&path).contains("is over 1048576 bytes"));
    }

    #[test]
    fn a_changed_secret_meets_the_same_rules() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for bad in ["short", DEVELOPMENT_SECRET] {
            fs::write(&path, bad).unwrap();
            let faults = jwt_secret(&path, Profile::Production).unwrap_err().to_string();
            assert!(!faults.contains(bad), "{faults}");
        }
        fs::write(&path, "x".repeat(32)).unwrap();
        assert!(jwt_secret(&path, Profile::Production).is_ok());
    }

    #[test]
    fn a_previous_secret_is_withdrawn_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (now, before) = ("n".repeat(32), "b".repeat(32));
        fs::write(path("now"), &before).unwrap();
        fs::write(path("before"), &before).unwrap();
        let mut jwt =
            crate::config::load::load(&crate::config::Sources::default()).unwrap().auth.jwt;
        jwt.secret_file = Some(path("now"));
        jwt.secret_previous_file = Some(path("before"));
        let again = |jwt: &Jwt| issuer_again(jwt, Profile::Production);
        let old = again(&jwt).unwrap().unwrap();
        assert!(again(&old).unwrap().is_none());
        // The new secret is taken along with it.
        fs::write(path("now"), &now).unwrap();
        for empty in [Some(""), Some("\n"), Some("\r\n"), None] {
            match empty {
                Some(text) => fs::write(path("before"), text).unwrap(),
                None => fs::remove_file(path("before")).unwrap(),
            }
            let new = again(&old).unwrap().unwrap();
            assert_eq!(new.secret.as_ref().unwrap().expose_secret(), now, "{empty:?}");
            assert!(new.secret_previous.is_none(), "{empty:?}");
            assert!(again(&new).unwrap().is_none(), "{empty:?}");
        }
        // The next rotation begins, and what is no secret is none either.
        fs::write(path("before"), &before).unwrap();
        assert!(again(&old).unwrap().unwrap().secret_previous.is_some());
        fs::write(path("before"), "short").unwrap();
        let faults = again(&old).unwrap_err().to_string();
        assert!(faults.contains("secret_previous_file"), "{faults}");
        // The present secret cannot be withdrawn so.
        fs::write(path("before"), "").unwrap();
        fs::write(path("now"), "").unwrap();
        assert!(again(&old).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn a_file_of_keys_has_lines_commas_and_comments() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let (a, b, c) = (
            key_line("a", "1", ""),
            key_line("b", "2", ":publish"),
            key_line("c", "3", ":read+tickets+read"),
        );
        fs::write(&path, format!("# back ends\n{a} , {b}\n\n{c} # who asks\r\n")).unwrap();
        let keys = api_keys(&path, Profile::Production).unwrap();
        let scopes: Vec<_> = keys.iter().map(|key| (&*key.name, key.scopes.clone())).collect();
        assert_eq!(
            scopes,
            [
                ("a", Scope::DEFAULT.to_vec()),
                ("b", vec![Scope::Publish]),
                ("c", vec![Scope::Read, Scope::Tickets]),
            ]
        );
        assert_eq!(keys[0].hash, hash("1"));
    }

    #[test]
    fn a_rate_stands_last() {
        for (rest, scopes, rate) in [
            (":publish:100/s", vec![Scope::Publish], Some("100/s")),
            (":30/m", Scope::DEFAULT.to_vec(), Some("30/m")),
            (":read", vec![Scope::Read], None),
            ("", Scope::DEFAULT.to_vec(), None),
        ] {
            let keys = parse_api_keys(&[key_line("a", "1", rest)], Profile::Production).unwrap();
            assert_eq!(keys[0].scopes, scopes, "{rest}");
            assert_eq!(keys[0].rate.map(|rate| rate.to_string()).as_deref(), rate, "{rest}");
        }
    }

    #[test]
    fn bad_keys_are_named_by_position_and_never_shown() {
        let good = key_line("a", "1", "");
        for (entry, says) in [
            ("bk_plain-secret-key".to_owned(), "entry 2 is not name:hash"),
            ("b:bk_plain-secret-key".to_owned(), "entry 2 has no SHA-256"),
            (format!("b:{}", "g".repeat(64)), "entry 2 has no SHA-256"),
            (format!("b:{}", "é".repeat(32)), "entry 2 has no SHA-256"),
            (key_line("", "2", ""), "entry 2 has a bad name"),
            (key_line("b c", "2", ""), "entry 2 has a bad name"),
            (key_line("b", "2", ":"), "unknown scope \"\""),
            (key_line("b", "2", ":publish+all"), "unknown scope \"all\""),
            (key_line("b", "2", ":publish:10"), "has a bad rate \"10\""),
            (key_line("b", "2", ":publish:0/s"), "has a bad rate \"0/s\""),
            (key_line("b", "2", ":10/h"), "has a bad rate \"10/h\""),
            (key_line("b", "2", ":10/s:publish"), "unknown scope \"10/s\""),
            (key_line("b", "2", ":publish:10/s:x"), "has a part after its rate"),
            (key_line("a", "2", ""), "has the name \"a\" once more"),
            (key_line("b", "1", ""), "is the key of another name"),
        ] {
            let problems =
                parse_api_keys(&[good.clone(), entry.clone()], Profile::Development).unwrap_err();
            let text = format!("{problems:?}").replace('\\', "");
            assert_eq!(problems.len(), 1, "{text}");
            assert!(text.contains(says), "{entry}: {text}");
            assert!(!text.contains("plain-secret"), "{text}");
        }
    }

    #[test]
    fn production_refuses_no_keys_and_the_development_key() {
        for entries in [vec![], vec![key_line("a", DEVELOPMENT_KEY, "")]] {
            assert!(parse_api_keys(&entries, Profile::Production).is_err());
            assert!(parse_api_keys(&entries, Profile::Development).is_ok());
        }
    }
}

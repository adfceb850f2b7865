//! `[auth.jwt]` and `[auth.issuers.<name>]`: whose tokens are accepted, and what checks them.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;

use super::{file_of, needs_one, note_file, redacted, secret};
use crate::config::{
    Auth, Issuer, Jwt, KeyKind, Profile, fault::Problem, issuers as names, reader::Reader, rules,
    secrets,
};

/// `[auth.jwt]`
pub(super) fn own(reader: &mut Reader, profile: Profile) -> Jwt {
    let mut own = table(reader, profile, "auth.jwt");
    own.leeway = reader.duration("auth.jwt.leeway", Duration::ZERO..=Duration::from_secs(600));
    own
}

/// Production that takes tokens has something to check them with.
pub(super) fn some_key(reader: &mut Reader, profile: Profile, auth: &Auth) {
    let keys = auth.jwt.has_keys() || !auth.issuers.is_empty();
    let tokens = auth.methods.iter().any(|method| method.is_token());
    if profile == Profile::Production && tokens && !keys && !keys_are_at_fault(reader) {
        reader.fault("auth.jwt.secret", secrets::no_jwt_key());
    }
}

/// A door for logout tokens has something to check them with.
pub(super) fn back_channel(reader: &mut Reader, auth: &Auth) {
    let key = "auth.backchannel.public";
    if auth.backchannel_public
        && !auth.jwt.has_keys()
        && auth.issuers.is_empty()
        && !keys_are_at_fault(reader)
    {
        let what = "is true, and there is no issuer whose logout tokens could be checked";
        let advice =
            "set the keys of [auth.jwt] or of a table of [auth.issuers], or leave it false";
        reader.fault(key, Problem::new(what, advice));
    }
}

/// Keys that could not be read are not missing ones.
fn keys_are_at_fault(reader: &Reader) -> bool {
    let of_keys = |key: &str| key.starts_with("auth.jwt.") || key.starts_with("auth.issuers.");
    reader.faults.iter().any(|fault| of_keys(&fault.key))
}

/// The keys and rules of one issuer: `[auth.jwt]`, or a table of its own with the same keys.
fn table(reader: &mut Reader, profile: Profile, section: &str) -> Jwt {
    let key = |name: &str| format!("{section}.{name}");
    let optional = |text: String| if text.is_empty() { None } else { Some(text) };
    let (secret, secret_file) = jwt_secret(reader, &key("secret"), profile);
    let (secret_previous, secret_previous_file) =
        previous_secret(reader, &key("secret_previous"), profile);
    let path = |text: &str| Ok(PathBuf::from(text));
    let files = reader.list(&key("public_key_files"), path, |path| path.display().to_string());
    let mut public_keys = Vec::new();
    for file in &files {
        if let Err(problem) = secrets::add_public_keys(&mut public_keys, file) {
            reader.fault(&key("public_key_files"), problem);
        }
    }
    let url = |url: &str| if url.is_empty() { Ok(()) } else { rules::jwks_url(url, profile) };
    let jwt = Jwt {
        secret,
        secret_file,
        secret_previous,
        secret_previous_file,
        public_key_files: files,
        public_keys,
        jwks_url: optional(reader.string(&key("jwks_url"), url)),
        algorithms: reader.list(&key("algorithms"), rules::algorithm, |a| format!("{a:?}")),
        issuer: optional(reader.string(&key("issuer"), |_| Ok(()))),
        audience: reader.list(&key("audience"), |text| Ok(text.to_owned()), String::clone),
        leeway: Duration::ZERO,
        user_claim: reader.string(&key("user_claim"), rules::claim),
        session_claim: reader.string(&key("session_claim"), rules::claim),
        groups_claim: reader.string(&key("groups_claim"), rules::claim),
    };
    if jwt.algorithms.is_empty() {
        needs_one(reader, &key("algorithms"), "so no token could be accepted", "RS256");
    }
    keys_and_algorithms(reader, section, &jwt);
    claims(reader, section, &jwt);
    jwt
}

fn jwt_secret(
    reader: &mut Reader,
    key: &str,
    profile: Profile,
) -> (Option<SecretString>, Option<PathBuf>) {
    let (secret, file) = match secret(reader, key) {
        Some((secret, file)) => (Some(secret), file),
        None => (None, None),
    };
    if let Some(Err(problem)) = secret.as_deref().map(|s| secrets::check_jwt_secret(s, profile)) {
        reader.fault(key, problem);
    }
    reader.note(key, redacted(secret.is_some()));
    note_file(reader, &format!("{key}_file"));
    (secret.map(SecretString::from), file)
}

/// The same, but an empty file is no fault: so a secret is withdrawn while the gateway runs, and it
/// must start again afterwards.
fn previous_secret(
    reader: &mut Reader,
    key: &str,
    profile: Profile,
) -> (Option<SecretString>, Option<PathBuf>) {
    match file_of(reader, key) {
        Some(path) if secrets::is_empty(&path) => {
            reader.note(key, redacted(false));
            note_file(reader, &format!("{key}_file"));
            (None, Some(path))
        }
        _ => jwt_secret(reader, key, profile),
    }
}

/// Every algorithm has a key, and every key an algorithm: anything else is a mistake that would
/// only show when a token is refused.
fn keys_and_algorithms(reader: &mut Reader, section: &str, jwt: &Jwt) {
    let key = |name: &str| format!("{section}.{name}");
    let good = ["secret", "secret_file", "public_key_files", "jwks_url", "algorithms"];
    if !jwt.has_keys() || !good.iter().all(|name| reader.is_good(&key(name))) {
        return;
    }
    let published = jwt.jwks_url.is_some();
    for algorithm in &jwt.algorithms {
        let kind = KeyKind::of(*algorithm);
        let (there, advice) = match kind {
            Some(KeyKind::Hmac) => (jwt.secret.is_some(), "set secret, or leave it out"),
            _ => (
                published || jwt.public_keys.iter().any(|key| Some(key.kind) == kind),
                "name a file with its key in public_key_files, set jwks_url, or leave it out",
            ),
        };
        if !there {
            let what = format!("{algorithm:?} has no key");
            reader.fault(&key("algorithms"), Problem::new(what, advice));
        }
    }
    let kinds: Vec<_> = jwt.algorithms.iter().filter_map(|a| KeyKind::of(*a)).collect();
    if published && kinds.iter().all(|kind| *kind == KeyKind::Hmac) {
        let what = "is set, and no algorithm in algorithms uses such keys";
        reader.fault(&key("jwks_url"), Problem::new(what, "name what the issuer signs with"));
    }
    if let Some(unused) = jwt.public_keys.iter().find(|key| !kinds.contains(&key.kind)) {
        let what = format!("has a key ({:?}) that no algorithm in algorithms uses", unused.kind);
        let advice = "name what the issuer signs with, or take the key out";
        reader.fault(&key("public_key_files"), Problem::new(what, advice));
    }
}

/// No two settings may take their value from one claim.
fn claims(reader: &mut Reader, section: &str, jwt: &Jwt) {
    let claims = [&jwt.user_claim, &jwt.session_claim, &jwt.groups_claim];
    for (i, name) in claims.iter().enumerate() {
        let standard = ["exp", "nbf", "iat", "iss", "aud"].contains(&name.as_str());
        if !name.is_empty() && (standard || claims[..i].contains(name)) {
            let key = ["user_claim", "session_claim", "groups_claim"][i];
            let what = format!("the claim {name:?} says something else already");
            reader.fault(&format!("{section}.{key}"), Problem::new(what, "name another claim"));
        }
    }
}

pub(super) fn issuers(reader: &mut Reader, profile: Profile, own: &Jwt) -> Vec<Issuer> {
    let mut taken: Vec<String> = own.issuer.iter().cloned().collect();
    let mut issuers = Vec::new();
    for name in names::names(reader.keys()) {
        let section = format!("{}{name}", names::PREFIX);
        let mut jwt = table(reader, profile, &section);
        jwt.leeway = own.leeway;
        let key = format!("{section}.issuer");
        match &jwt.issuer {
            Some(issuer) if taken.contains(issuer) => {
                let what = "is the issuer of another table too";
                reader.fault(&key, Problem::new(what, "give every issuer one table"));
            }
            Some(issuer) => taken.push(issuer.clone()),
            None if reader.is_good(&key) => {
                let what = "is not set, so it cannot be known whose tokens these are";
                reader.fault(&key, Problem::new(what, "write the `iss` of its tokens"));
            }
            None => {}
        }
        if !jwt.has_keys() && reader.faults.iter().all(|f| !f.key.starts_with(&section)) {
            let what = "has neither secret nor public_key_files nor jwks_url";
            reader.fault(&section, Problem::new(what, "say where its keys are"));
        }
        issuers.push(Issuer { name, jwt });
    }
    issuers
}

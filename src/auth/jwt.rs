//! JSON Web Tokens (RFC 7519), checked with jsonwebtoken and a few rules that it leaves to us.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header, errors::ErrorKind,
};
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};

pub use super::logout::Logout;
use crate::{
    config::Config,
    event::{Group, NameError, Principal, SessionKey, UserId},
};

/// The rule that a token breaks. The text never repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than `auth.token_bytes`.
    #[error("the token is longer than {0} bytes (auth.token_bytes)")]
    TooLong(usize),
    /// Not three parts of base64url that hold JSON.
    #[error("this is not a JSON Web Token")]
    Malformed,
    /// The header names an algorithm that is not accepted.
    #[error("the algorithm is not one of auth.jwt.algorithms")]
    Algorithm,
    /// RFC 7515 §4.1.11: extensions that must be understood, and are not.
    #[error("the header has `crit`, and no extension is supported")]
    Critical,
    /// No key is configured.
    #[error("no key is configured (auth.jwt.secret)")]
    NoKey,
    /// The signature is not ours.
    #[error("the signature does not match")]
    Signature,
    /// A claim that is required is missing.
    #[error("the claim `{0}` is missing")]
    Missing(String),
    /// A claim has the wrong JSON type.
    #[error("the claim `{0}` has the wrong type")]
    Type(String),
    /// `exp` and the leeway have passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf`, less the leeway, is still to come.
    #[error("the token is not valid yet (`nbf`)")]
    NotYet,
    /// `iss` is another.
    #[error("the issuer is not auth.jwt.issuer")]
    Issuer,
    /// `aud` is for others.
    #[error("the audience is not auth.jwt.audience")]
    Audience,
    /// The claim that names the user holds no legal user id.
    #[error("the user id {0}")]
    User(NameError),
    /// A group's name is not legal.
    #[error("a group's name {0}")]
    Group(NameError),
    /// More groups than `limits.groups`.
    #[error("the token names more than {0} groups (limits.groups)")]
    Groups(usize),
}

impl Fault {
    /// A word from a closed set, for `belfry.renewal_failed` and metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYet => "not_yet_valid",
            _ => "invalid",
        }
    }
}

/// Checks tokens against one configuration.
pub struct Verifier {
    key: Option<DecodingKey>,
    validation: Validation,
    settings: Settings,
}

struct Settings {
    token_bytes: usize,
    algorithms: Vec<Algorithm>,
    user_claim: String,
    session_claim: String,
    groups_claim: String,
    groups_allow: Vec<String>,
    groups: usize,
}

impl Verifier {
    /// A verifier for these settings.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let auth = &config.auth;
        let jwt = &auth.jwt;
        let mut validation = Validation::default();
        // Only this family: `decode` refuses a list of several, and the key is of one.
        let hmac = |alg: &Algorithm| alg.family() == AlgorithmFamily::Hmac;
        validation.algorithms.clear();
        validation.algorithms.extend(jwt.algorithms.iter().copied().filter(hmac));
        validation.leeway = jwt.leeway.as_secs();
        validation.validate_nbf = true;
        validation.validate_aud = jwt.audience.is_some();
        let mut required = vec!["exp"];
        if let Some(issuer) = &jwt.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &jwt.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        Self {
            key: jwt
                .secret
                .as_ref()
                .map(|secret| DecodingKey::from_secret(secret.expose_secret().as_bytes())),
            settings: Settings {
                token_bytes: auth.token_bytes,
                algorithms: validation.algorithms.clone(),
                user_claim: jwt.user_claim.clone(),
                session_claim: jwt.session_claim.clone(),
                groups_claim: jwt.groups_claim.clone(),
                groups_allow: auth.groups_allow.clone(),
                groups: config.limits.groups,
            },
            validation,
        }
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// Names the first rule that fails.
    pub fn verify(&self, token: &str) -> Result<Principal, Fault> {
        self.settings.principal(&self.claims(token)?)
    }

    /// Who has logged out, as a logout token says.
    ///
    /// # Errors
    /// Names the first rule that fails.
    pub fn logout(&self, token: &str) -> Result<Logout, Fault> {
        Logout::read(&self.claims(token)?, &self.settings.user_claim)
    }

    /// What a good token claims; the claims of Belfry's own are not looked at.
    fn claims(&self, token: &str) -> Result<Map<String, Value>, Fault> {
        let settings = &self.settings;
        if token.len() > settings.token_bytes {
            return Err(Fault::TooLong(settings.token_bytes));
        }
        let header = decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::Json(_) if names_an_algorithm(token) => Fault::Algorithm,
            kind => fault(kind),
        })?;
        if header.crit.is_some() {
            return Err(Fault::Critical);
        }
        if !settings.algorithms.contains(&header.alg) {
            return Err(Fault::Algorithm);
        }
        let key = self.key.as_ref().ok_or(Fault::NoKey)?;
        decode::<Map<String, Value>>(token, key, &self.validation)
            .map(|token| token.claims)
            .map_err(|error| fault(error.kind()))
    }
}

impl Settings {
    fn principal(&self, claims: &Map<String, Value>) -> Result<Principal, Fault> {
        for claim in ["nbf", "iat"] {
            if claims.get(claim).is_some_and(|value| moment(value).is_none()) {
                return Err(Fault::Type(claim.to_owned()));
            }
        }
        let expires = claims.get("exp").ok_or_else(|| Fault::Missing("exp".to_owned()))?;
        let expires = moment(expires).ok_or_else(|| Fault::Type("exp".to_owned()))?;
        let user = text(claims, &self.user_claim)?
            .ok_or_else(|| Fault::Missing(self.user_claim.clone()))?;
        Ok(Principal {
            user: UserId::new(user).map_err(Fault::User)?,
            session: text(claims, &self.session_claim)?.map(SessionKey::of),
            groups: self.groups(claims)?,
            expires: Some(expires),
            issued: claims.get("iat").and_then(moment),
            cookie: None,
        })
    }

    fn groups(&self, claims: &Map<String, Value>) -> Result<Vec<Group>, Fault> {
        let wrong = || Fault::Type(self.groups_claim.clone());
        let list = match claims.get(&self.groups_claim) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(wrong()),
        };
        let mut groups = Vec::new();
        for name in list {
            let name = name.as_str().ok_or_else(wrong)?;
            let group = Group::new(name).map_err(Fault::Group)?;
            let allowed = self.groups_allow.iter().any(|pattern| glob(pattern, name));
            if allowed && !groups.contains(&group) {
                groups.push(group);
            }
            if groups.len() > self.groups {
                return Err(Fault::Groups(self.groups));
            }
        }
        Ok(groups)
    }
}

pub(super) fn text<'a>(
    claims: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, Fault> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Fault::Type(name.to_owned())),
    }
}

/// A `NumericDate` (RFC 7519 §2): seconds since the epoch, a fraction allowed. Dates beyond what a
/// clock can say count as the furthest one it can.
pub(super) fn moment(value: &Value) -> Option<SystemTime> {
    let seconds = value.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)?;
    let ahead = Duration::try_from_secs_f64(seconds).unwrap_or(FURTHEST).min(FURTHEST);
    UNIX_EPOCH.checked_add(ahead)
}

/// A thousand years.
const FURTHEST: Duration = Duration::from_secs(1000 * 366 * 24 * 60 * 60);

/// Whether `name` matches a pattern in which `*` stands for anything.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            let Some(at) = rest.find(part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

/// Whether the header is JSON with an `alg`: then it is the algorithm that is not understood
/// (`none`, for instance), and not the token.
fn names_an_algorithm(token: &str) -> bool {
    use base64::Engine as _;
    let header = token.split('.').next().unwrap_or_default();
    base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(header)
        .ok()
        .and_then(|json| serde_json::from_slice::<Map<String, Value>>(&json).ok())
        .is_some_and(|header| header.get("alg").is_some_and(Value::is_string))
}

fn fault(kind: &ErrorKind) -> Fault {
    match kind {
        ErrorKind::ExpiredSignature => Fault::Expired,
        ErrorKind::ImmatureSignature => Fault::NotYet,
        ErrorKind::InvalidIssuer => Fault::Issuer,
        ErrorKind::InvalidAudience => Fault::Audience,
        ErrorKind::InvalidSignature => Fault::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => Fault::Algorithm,
        ErrorKind::MissingRequiredClaim(claim) => Fault::Missing(claim.clone()),
        ErrorKind::InvalidClaimFormat(claim) => Fault::Type(claim.clone()),
        _ => Fault::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, matches) in [
            ("*", "", true),
            ("*", "anything", true),
            ("team-*", "team-a", true),
            ("team-*", "steam-a", false),
            ("*-a", "team-a", true),
            ("*-a", "team-b", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("a*a", "a", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(glob(pattern, name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn numeric_dates() {
        let date = |json: &str| moment(&serde_json::from_str(json).unwrap());
        assert_eq!(date("0"), Some(UNIX_EPOCH));
        assert_eq!(date("1.5"), Some(UNIX_EPOCH + Duration::from_millis(1500)));
        assert!(date("1e300").is_some());
        assert!(date("18446744073709551615").is_some());
        assert_eq!(date("-1"), None);
        assert_eq!(date("\"1\""), None);
    }
}

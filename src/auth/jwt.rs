//! JSON Web Tokens (RFC 7519): which issuer's token it is, whether that issuer signed it, and what
//! it says. The cryptography is jsonwebtoken's, the rules are all here.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

pub use super::{fault::Fault, logout::Logout};
use super::{
    jwks::{Certainty, Jwks},
    keys::{self, Key, Signed, Tried},
};
use crate::{
    config::{self, Config},
    event::{Group, Principal, SessionKey, UserId},
    telemetry::Metrics,
};

/// The member of `events` that makes a token an order to log someone out (OpenID Connect
/// Back-Channel Logout 1.0 §2.4).
pub const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Longest `kid`, in bytes. Names of keys are short, and unknown ones are remembered.
const KID_BYTES: usize = 256;

/// What a token says.
pub type Claims = Map<String, Value>;

/// Checks tokens against one configuration.
pub struct Verifier {
    token_bytes: usize,
    groups_allow: Vec<String>,
    groups: usize,
    /// Each with its own `issuer`, but for the first, which may have none.
    issuers: Vec<Issuer>,
}

/// One issuer: its keys and the rules for its tokens.
pub struct Issuer {
    section: String,
    rules: config::Jwt,
    keys: Vec<Key>,
    jwks: Option<Arc<Jwks>>,
}

impl Issuer {
    /// The table of the configuration that names it: `auth.jwt`, or `auth.issuers.<name>`.
    #[must_use]
    pub fn section(&self) -> &str {
        &self.section
    }

    /// The rules for its tokens.
    #[must_use]
    pub fn rules(&self) -> &config::Jwt {
        &self.rules
    }
}

/// A token whose signature and general claims hold.
pub struct Verified<'a> {
    /// Who issued it.
    pub issuer: &'a Issuer,
    /// What it says.
    pub claims: Claims,
    /// When it ends.
    pub expires: SystemTime,
}

impl Verifier {
    /// A verifier for these settings. Key sets are not fetched before [`follow`](Self::follow) runs.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::with(config, &[])
    }

    /// One for other settings, which goes on with the key sets of this one that are still named:
    /// a rotated secret must not cost what was fetched.
    #[must_use]
    pub fn renewed(&self, config: &Config) -> Self {
        Self::with(config, &self.key_sets())
    }

    fn with(config: &Config, key_sets: &[Arc<Jwks>]) -> Self {
        let auth = &config.auth;
        let issuer = |section: String, rules: &config::Jwt| Issuer {
            keys: keys::configured(rules),
            jwks: rules.jwks_url.as_ref().map(|url| {
                let known = key_sets.iter().find(|known| known.is(&section, url)).cloned();
                known.unwrap_or_else(|| {
                    Arc::new(Jwks::new(&section, url, config.profile, &auth.jwks))
                })
            }),
            rules: rules.clone(),
            section,
        };
        let own = std::iter::once(("auth.jwt".to_owned(), &auth.jwt));
        let more =
            auth.issuers.iter().map(|more| (format!("auth.issuers.{}", more.name), &more.jwt));
        Self {
            token_bytes: auth.token_bytes,
            groups_allow: auth.groups_allow.clone(),
            groups: config.limits.groups,
            issuers: own.chain(more).map(|(section, rules)| issuer(section, rules)).collect(),
        }
    }

    fn key_sets(&self) -> Vec<Arc<Jwks>> {
        self.issuers.iter().filter_map(|issuer| issuer.jwks.clone()).collect()
    }

    /// Keeps the key sets fresh. Never returns where there are any; to be spawned.
    pub async fn follow(&self, metrics: Option<&Metrics>) {
        let key_sets = self.key_sets();
        join_all(key_sets.iter().map(|set| set.run(metrics))).await;
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// Names the first rule that fails; [`Fault::Away`] where that cannot be known now.
    pub async fn verify(&self, token: &str) -> Result<Principal, Fault> {
        let verified = self.claims(token).await?;
        if is_logout(&verified.claims) {
            return Err(Fault::Logout);
        }
        self.principal(&verified)
    }

    /// Who has logged out, as a logout token says.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub async fn logout(&self, token: &str) -> Result<Logout, Fault> {
        let Verified { issuer, claims, .. } = self.claims(token).await?;
        Logout::read(&claims, &issuer.rules.user_claim, issuer.rules.leeway)
    }

    /// What a token says, whatever it is for: signature, issuer, audience and times hold.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub async fn claims(&self, token: &str) -> Result<Verified<'_>, Fault> {
        if token.len() > self.token_bytes {
            return Err(Fault::TooLong(self.token_bytes));
        }
        let parts = Parts::of(token)?;
        if parts.header.contains_key("crit") {
            return Err(Fault::Critical);
        }
        let claims = object(parts.claims)?;
        let issuer = self.issuer(&claims)?;
        let algorithm = parts.algorithm().filter(|alg| issuer.rules.algorithms.contains(alg));
        let algorithm = algorithm.ok_or(Fault::Algorithm)?;
        let Parts { message, signature, .. } = parts;
        let signed = Signed { algorithm, kid: parts.kid()?, message, signature };
        issuer.signed(signed).await?;
        let expires = issuer.times(&claims, SystemTime::now())?;
        issuer.audience(&claims)?;
        Ok(Verified { issuer, claims, expires })
    }

    /// The issuer whose table has the token's `iss`; else the one that asks for none. The token is
    /// not checked yet, and so only chooses who checks it.
    fn issuer(&self, claims: &Claims) -> Result<&Issuer, Fault> {
        let iss = text(claims, "iss")?;
        let is = |issuer: &&Issuer| iss.is_some() && issuer.rules.issuer.as_deref() == iss;
        let named = self.issuers.iter().find(is);
        let default =
            || self.issuers.iter().find(|i| i.rules.issuer.is_none() && i.rules.has_keys());
        match named.or_else(default) {
            Some(issuer) => Ok(issuer),
            // Nobody can check it.
            None if !self.issuers.iter().any(|issuer| issuer.rules.has_keys()) => Err(Fault::NoKey),
            None if iss.is_none() => Err(Fault::Missing("iss".to_owned())),
            None => Err(Fault::Issuer),
        }
    }

    /// The table that a token is checked by, for people.
    #[must_use]
    pub fn section(&self, token: &str) -> Option<&str> {
        let claims = object(Parts::of(token).ok()?.claims).ok()?;
        self.issuer(&claims).ok().map(Issuer::section)
    }

    fn principal(&self, verified: &Verified<'_>) -> Result<Principal, Fault> {
        let Verified { issuer, claims, expires } = verified;
        let rules = &issuer.rules;
        let user = text(claims, &rules.user_claim)?
            .ok_or_else(|| Fault::Missing(rules.user_claim.clone()))?;
        Ok(Principal {
            user: UserId::new(user).map_err(Fault::User)?,
            session: text(claims, &rules.session_claim)?.map(SessionKey::of),
            groups: self.groups(claims, &rules.groups_claim)?,
            expires: Some(*expires),
            issued: claims.get("iat").and_then(moment),
            cookie: None,
        })
    }

    fn groups(&self, claims: &Claims, claim: &str) -> Result<Vec<Group>, Fault> {
        let wrong = || Fault::Type(claim.to_owned());
        let list = match claims.get(claim) {
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

impl Issuer {
    /// Whether one of its keys made the signature.
    async fn signed(&self, signed: Signed<'_>) -> Result<(), Fault> {
        if !self.rules.has_keys() {
            return Err(Fault::NoKey);
        }
        let configured = keys::try_keys(&self.keys, signed);
        let hmac = config::KeyKind::of(signed.algorithm) == Some(config::KeyKind::Hmac);
        let (tried, certainty) = match &self.jwks {
            Some(set) if configured != Tried::Match && !hmac => {
                set.judge(signed.kid, |keys| keys::try_keys(keys, signed)).await
            }
            _ => (configured, Certainty::Certain),
        };
        match (tried, certainty) {
            (Tried::Match, _) => Ok(()),
            (Tried::Mismatch, _) => Err(Fault::Signature),
            (Tried::Absent, Certainty::Uncertain) => Err(Fault::Away),
            (Tried::Absent, Certainty::Certain) if configured == Tried::Mismatch => {
                Err(Fault::Signature)
            }
            (Tried::Absent, Certainty::Certain) => Err(Fault::UnknownKey),
        }
    }

    /// One leeway for all times; returns the end.
    fn times(&self, claims: &Claims, now: SystemTime) -> Result<SystemTime, Fault> {
        let leeway = self.rules.leeway;
        let time = |claim: &str| match claims.get(claim) {
            None => Ok(None),
            Some(value) => moment(value).map(Some).ok_or_else(|| Fault::Type(claim.to_owned())),
        };
        let (expires, not_before, issued) = (time("exp")?, time("nbf")?, time("iat")?);
        let expires = expires.ok_or_else(|| Fault::Missing("exp".to_owned()))?;
        if expires + leeway <= now {
            return Err(Fault::Expired);
        }
        let ahead = |at: Option<SystemTime>| at.is_some_and(|at| at > now + leeway);
        if ahead(not_before) {
            return Err(Fault::NotYet);
        }
        if ahead(issued) {
            return Err(Fault::Future);
        }
        Ok(expires)
    }

    /// RFC 7519 §4.1.3: a text, or a list of texts of which one is ours.
    fn audience(&self, claims: &Claims) -> Result<(), Fault> {
        let wrong = || Fault::Type("aud".to_owned());
        let theirs: Vec<&str> = match claims.get("aud") {
            None if self.rules.audience.is_empty() => return Ok(()),
            None => return Err(Fault::Missing("aud".to_owned())),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(list)) => {
                list.iter().map(|one| one.as_str().ok_or_else(wrong)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(wrong()),
        };
        let ours = &self.rules.audience;
        if ours.is_empty() || ours.iter().any(|one| theirs.contains(&one.as_str())) {
            return Ok(());
        }
        Err(Fault::Audience)
    }
}

/// A token taken apart; nothing of it is checked yet.
struct Parts<'a> {
    header: Map<String, Value>,
    claims: &'a str,
    message: &'a [u8],
    signature: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, Fault> {
        let (message, signature) = token.rsplit_once('.').ok_or(Fault::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Fault::Malformed)?;
        // The alphabet has no dot, so a fourth part is refused here.
        let header = object(header)?;
        Ok(Self { header, claims, message: message.as_bytes(), signature })
    }

    /// An algorithm whose name is known; `none` is not.
    fn algorithm(&self) -> Option<Algorithm> {
        self.header.get("alg")?.as_str()?.parse().ok()
    }

    /// The key that the header names. Keys that it brings along (`jwk`, `x5c`) or points to (`jku`,
    /// `x5u`) are the word of whoever made the token, and are never looked at.
    fn kid(&self) -> Result<Option<&str>, Fault> {
        match self.header.get("kid") {
            None => Ok(None),
            Some(Value::String(kid)) if kid.len() <= KID_BYTES => Ok(Some(kid)),
            Some(_) => Err(Fault::UnknownKey),
        }
    }
}

/// A part that holds a JSON object, in base64url without padding (RFC 7515 §2).
fn object(part: &str) -> Result<Map<String, Value>, Fault> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Fault::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| Fault::Malformed)
}

/// Whether it is an order to log someone out.
#[must_use]
pub fn is_logout(claims: &Claims) -> bool {
    claims.get("events").is_some_and(|events| events.get(LOGOUT_EVENT).is_some())
}

pub(super) fn text<'a>(claims: &'a Claims, name: &str) -> Result<Option<&'a str>, Fault> {
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
pub(super) fn glob(pattern: &str, name: &str) -> bool {
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

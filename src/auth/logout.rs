//! Logout tokens (OpenID Connect Back-Channel Logout 1.0, §2.4 and §2.6), after their signature,
//! `iss`, `aud` and `exp` have been checked like those of any token.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::jwt::{Fault, LOGOUT_EVENT, moment, text};
use crate::event::{SessionKey, Subject, UserId};

/// A token may be good for this long at most: it is remembered until it is over, so that it is
/// carried out once. The specification advises two minutes (§4).
const LONGEST: Duration = Duration::from_secs(3600);

/// What a logout token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logout {
    /// The session that has ended; or the user, all of whose sessions have.
    pub subject: Subject,
    /// `jti`: one token is used once.
    pub id: String,
    /// `iss`: whose `jti` it is.
    pub issuer: String,
    /// Taken until then: `exp` and the leeway.
    pub until: SystemTime,
}

impl Logout {
    /// Reads the claims of a token that was verified. `user` is the claim that names users; `leeway`
    /// is what the verifier grants after `exp`.
    ///
    /// # Errors
    /// Names the first rule that fails.
    pub fn read(claims: &Map<String, Value>, user: &str, leeway: Duration) -> Result<Self, Fault> {
        let required = |name: &str| {
            text(claims, name)?
                .filter(|text| !text.is_empty())
                .ok_or_else(|| Fault::Missing(name.to_owned()))
        };
        let time = |name: &str| {
            let value = claims.get(name).ok_or_else(|| Fault::Missing(name.to_owned()))?;
            moment(value).ok_or_else(|| Fault::Type(name.to_owned()))
        };
        let issuer = required("iss")?.to_owned();
        if !claims.contains_key("aud") {
            return Err(Fault::Missing("aud".to_owned()));
        }
        time("iat")?;
        let end = time("exp")?;
        if end.duration_since(SystemTime::now()).is_ok_and(|left| left > LONGEST + leeway) {
            return Err(Fault::LongLived);
        }
        let until = end + leeway;
        let id = required("jti")?.to_owned();
        let event = claims.get("events").and_then(|events| events.get(LOGOUT_EVENT));
        if !event.is_some_and(Value::is_object) {
            return Err(Fault::Missing("events".to_owned()));
        }
        // It would be an ID token, which must not log anyone out.
        if claims.contains_key("nonce") {
            return Err(Fault::Type("nonce".to_owned()));
        }
        let session = text(claims, "sid")?.filter(|id| !id.is_empty());
        let subject = text(claims, "sub")?;
        let subject = match (session, text(claims, user)?.or(subject.filter(|_| user == "sub"))) {
            (Some(session), _) => Subject::Session(SessionKey::of(session)),
            (None, Some(id)) => Subject::User(UserId::new(id).map_err(Fault::User)?),
            (None, None) => return Err(Fault::Missing("sid".to_owned())),
        };
        Ok(Self { subject, id, issuer, until })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LEEWAY: Duration = Duration::from_secs(30);

    fn read(change: impl Fn(&mut Map<String, Value>)) -> Result<Logout, Fault> {
        let mut claims = json!({
            "iss": "i", "aud": "a", "iat": 1, "exp": 2, "jti": "j", "sid": "s", "sub": "u",
            "events": {LOGOUT_EVENT: {}},
        });
        change(claims.as_object_mut().unwrap());
        Logout::read(claims.as_object().unwrap(), "sub", LEEWAY)
    }

    #[test]
    fn the_session_goes_before_the_user() {
        assert_eq!(read(|_| {}).unwrap().subject, Subject::Session(SessionKey::of("s")));
        let user = read(|claims| drop(claims.remove("sid"))).unwrap();
        assert_eq!(user.subject, Subject::User(UserId::new("u").unwrap()));
        read(|claims| drop(claims.remove("sub"))).unwrap();
    }

    #[test]
    fn it_is_taken_until_the_leeway_is_over_and_not_for_long() {
        let ending = |ahead: u64| {
            let end = SystemTime::now() + Duration::from_secs(ahead);
            let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            read(|claims| drop(claims.insert("exp".to_owned(), json!(end))))
        };
        let left = ending(120).unwrap().until.duration_since(SystemTime::now()).unwrap();
        assert!((148..=150).contains(&left.as_secs()), "{left:?}");
        assert!(ending(3600).is_ok());
        assert_eq!(ending(3660), Err(Fault::LongLived));
    }

    #[test]
    fn every_rule_is_kept() {
        for claim in ["iss", "aud", "iat", "exp", "jti", "events"] {
            let fault = read(|claims| drop(claims.remove(claim)));
            assert_eq!(fault, Err(Fault::Missing(claim.to_owned())));
        }
        let neither = |claims: &mut Map<String, Value>| {
            claims.remove("sid");
            claims.remove("sub");
        };
        assert!(read(neither).is_err());
        for (claim, value) in [
            ("nonce", json!("n")),
            ("events", json!({LOGOUT_EVENT: true})),
            ("events", json!({"other": {}})),
            ("events", json!(LOGOUT_EVENT)),
            ("jti", json!("")),
            ("jti", json!(7)),
            ("sid", json!(7)),
            ("sub", json!(7)),
            ("iat", json!("1")),
        ] {
            let set = |claims: &mut Map<String, Value>| {
                claims.insert(claim.to_owned(), value.clone());
            };
            assert!(read(set).is_err(), "{claim}: {value}");
        }
    }
}

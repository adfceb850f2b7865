//! The body of `POST /v1/tickets`.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{Faults, name, required, session_key, whole};
use crate::{
    auth::groups::{Fault, Rule},
    event::{Group, SessionKey, UserId},
    http::problem::Problem,
};

/// Longest `expires_in_seconds`: 30 days.
const LONGEST: u64 = 30 * 24 * 60 * 60;

/// An order that holds.
#[derive(Debug)]
pub(in crate::http) struct Ticket {
    /// Whose it is.
    pub(in crate::http) user: UserId,
    /// Those of the groups that `auth.groups.allow` lets through.
    pub(in crate::http) groups: Vec<Group>,
    /// By which the connection can be closed.
    pub(in crate::http) session: Option<SessionKey>,
    /// When the connection ends; `None`: it has no end of its own.
    pub(in crate::http) expires_in: Option<Duration>,
}

/// Checks a body.
///
/// # Errors
/// 400 where it is not JSON, else 422 with every member at fault.
pub(in crate::http) fn parse(body: &[u8], rule: &Rule) -> Result<Ticket, Problem> {
    let whole = whole(body)?;
    let mut faults = Faults::default();
    let Some(mut members) = faults.object("", whole) else {
        return Err(Problem::invalid(faults.0));
    };
    let mut take = |name: &str| members.0.remove(name);
    let (user, groups) = (take("user"), take("groups"));
    let (session, expires) = (take("session"), take("expires_in_seconds"));
    faults.unknown("", members);
    let user = required(&mut faults, "/user", user)
        .and_then(|value| name(&mut faults, "/user", value, UserId::new));
    let groups = groups.map_or_else(Vec::new, |value| group_list(&mut faults, value, rule));
    let session = session.and_then(|value| session_key(&mut faults, "/session", value));
    let expires_in = expires.and_then(|value| {
        let legal = |seconds: &u64| (1..=LONGEST).contains(seconds);
        let expected = format!("a whole number from 1 to {LONGEST}");
        let seconds = serde_json::from_str(value.get()).ok().filter(legal);
        if seconds.is_none() {
            faults.add("/expires_in_seconds", format!("must be {expected}"));
        }
        seconds.map(Duration::from_secs)
    });
    match user {
        Some(user) if faults.0.is_empty() => Ok(Ticket { user, groups, session, expires_in }),
        _ => Err(Problem::invalid(faults.0)),
    }
}

fn group_list(faults: &mut Faults, value: &RawValue, rule: &Rule) -> Vec<Group> {
    let Some(list) = faults.parse::<Vec<&RawValue>>("/groups", value, "a list of group names")
    else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for (n, entry) in list.into_iter().enumerate() {
        names.extend(name(faults, &format!("/groups/{n}"), entry, Group::new));
    }
    match rule.take(names.iter().map(Group::as_str)) {
        Ok(groups) => groups,
        Err(fault @ (Fault::TooMany(_) | Fault::Name(_))) => {
            faults.add("/groups", fault.to_string());
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load::load};

    fn rule() -> Rule {
        let mut config = load(&Sources::default()).unwrap();
        config.auth.groups_allow = vec!["team:*".to_owned()];
        config.limits.groups = 2;
        Rule::new(&config)
    }

    #[test]
    fn what_holds() {
        let ticket = parse(br#"{"user":"alice"}"#, &rule()).unwrap();
        assert_eq!(ticket.user.as_str(), "alice");
        assert!(ticket.groups.is_empty() && ticket.session.is_none());
        assert_eq!(ticket.expires_in, None);
        let key = SessionKey::of("s1");
        for session in ["s1", &key.to_string()] {
            let body = format!(
                r#"{{"user":"a","groups":["team:a","admins","team:a","team:b"],"session":"{session}","expires_in_seconds":60}}"#
            );
            let ticket = parse(body.as_bytes(), &rule()).unwrap();
            assert_eq!(ticket.groups.len(), 2);
            assert_eq!(ticket.session, Some(key));
            assert_eq!(ticket.expires_in, Some(Duration::from_secs(60)));
        }
    }

    #[test]
    fn every_fault_is_named() {
        for (body, pointers) in [
            ("{}", &["/user"][..]),
            (r#"{"usr":"a"}"#, &["/usr", "/user"]),
            (r#"{"user":7}"#, &["/user"]),
            (r#"{"user":""}"#, &["/user"]),
            (r#"{"user":"a","user":"b"}"#, &[""]),
            ("[]", &[""]),
            (r#"{"user":"a","groups":"b"}"#, &["/groups"]),
            (r#"{"user":"a","groups":null}"#, &["/groups"]),
            (r#"{"user":"a","groups":["team:a",1,""]}"#, &["/groups/1", "/groups/2"]),
            (r#"{"user":"a","groups":["team:a","team:b","team:c"]}"#, &["/groups"]),
            (r#"{"user":"a","session":""}"#, &["/session"]),
            (r#"{"user":"a","session":1}"#, &["/session"]),
            (r#"{"user":"a","session":"a\u0000"}"#, &["/session"]),
            (r#"{"user":"a","session":"sha256:12"}"#, &["/session"]),
            (r#"{"user":"a","expires_in_seconds":0}"#, &["/expires_in_seconds"]),
            (r#"{"user":"a","expires_in_seconds":1.5}"#, &["/expires_in_seconds"]),
            (r#"{"user":"a","expires_in_seconds":"60"}"#, &["/expires_in_seconds"]),
            (r#"{"user":"a","expires_in_seconds":2592001}"#, &["/expires_in_seconds"]),
        ] {
            let problem = parse(body.as_bytes(), &rule()).unwrap_err();
            let found: Vec<&str> =
                problem.members().iter().map(|member| member.pointer.as_str()).collect();
            assert_eq!((problem.status().as_u16(), &found[..]), (422, pointers), "{body}");
        }
        for body in ["", "{", "nul"] {
            assert_eq!(parse(body.as_bytes(), &rule()).unwrap_err().status(), 400, "{body}");
        }
    }
}

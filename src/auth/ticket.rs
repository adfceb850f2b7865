//! One-time tickets, for whoever cannot put a credential into a handshake: they stand for the
//! credential that bought them, with its user, end, session and groups.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    bus::BusError,
    config::Config,
    event::{Group, Principal, SessionKey, UserId},
    store::Store,
};

/// Random bytes in a ticket.
const BYTES: usize = 32;

/// Sells tickets and takes them back.
pub struct Office {
    store: Arc<dyn Store>,
    leeway: Duration,
}

/// What lies in the store under a ticket's hash.
#[derive(Serialize, Deserialize)]
struct Paper {
    user: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// Milliseconds since 1970, like `issued`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued: Option<u64>,
    /// The id of the session, so that the connection can be held to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cookie: Option<String>,
}

impl Office {
    /// An office whose tickets are good on every replica that shares `store`.
    #[must_use]
    pub fn new(config: &Config, store: Arc<dyn Store>) -> Self {
        Self { store, leeway: config.auth.jwt.leeway }
    }

    /// A new ticket for this principal: 32 random bytes as base64url.
    pub(super) async fn sell(&self, principal: &Principal) -> Result<String, BusError> {
        let mut bytes = [0; BYTES];
        rand::rng().fill_bytes(&mut bytes);
        let ticket = URL_SAFE_NO_PAD.encode(bytes);
        let paper = serde_json::to_string(&Paper::of(principal))
            .map_err(|error| BusError::Refused(error.to_string()))?;
        self.store.put_ticket(&name(&ticket), paper).await?;
        Ok(ticket)
    }

    /// Whom a ticket stands for, once. `None`: it is used, over, or none.
    pub(super) async fn redeem(&self, ticket: &str) -> Result<Option<Principal>, BusError> {
        let bytes = URL_SAFE_NO_PAD.decode(ticket).ok();
        if bytes.is_none_or(|bytes| bytes.len() != BYTES) {
            return Ok(None);
        }
        let Some(paper) = self.store.take_ticket(&name(ticket)).await? else { return Ok(None) };
        let principal = serde_json::from_str::<Paper>(&paper).ok().and_then(Paper::principal);
        if principal.is_none() {
            tracing::warn!("a ticket in the store is not understood: another version's?");
        }
        Ok(principal.filter(|principal| {
            principal.expires.is_none_or(|end| end + self.leeway > SystemTime::now())
        }))
    }
}

/// The ticket's name in the store.
fn name(ticket: &str) -> String {
    format!("{:x}", Sha256::digest(ticket.as_bytes()))
}

impl Paper {
    fn of(principal: &Principal) -> Self {
        Self {
            user: principal.user.as_str().to_owned(),
            groups: principal.groups.iter().map(|group| group.as_str().to_owned()).collect(),
            session: principal.session.map(|session| session.to_string()),
            expires: principal.expires.and_then(millis),
            issued: principal.issued.and_then(millis),
            cookie: principal.cookie.as_ref().map(|id| id.expose_secret().to_owned()),
        }
    }

    fn principal(self) -> Option<Principal> {
        Some(Principal {
            user: UserId::new(&self.user).ok()?,
            session: match self.session {
                Some(session) => Some(SessionKey::parse(&session)?),
                None => None,
            },
            groups: self
                .groups
                .iter()
                .map(|name| Group::new(name))
                .collect::<Result<_, _>>()
                .ok()?,
            expires: self.expires.map(moment),
            issued: self.issued.map(moment),
            cookie: self.cookie.map(SecretString::from),
        })
    }
}

/// `None` only for times before 1970, which no credential has.
fn millis(at: SystemTime) -> Option<u64> {
    u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn moment(millis: u64) -> SystemTime {
    // Only what `millis` wrote comes here.
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn office() -> Office {
        let store = Arc::new(MemoryStore::default());
        Office { store, leeway: Duration::from_secs(30) }
    }

    fn alice(expires: Option<SystemTime>) -> Principal {
        Principal {
            user: UserId::new("alice").unwrap(),
            session: Some(SessionKey::of("s1")),
            groups: vec![Group::new("staff").unwrap()],
            expires,
            issued: Some(UNIX_EPOCH + Duration::from_millis(1_234)),
            cookie: Some("s1".into()),
        }
    }

    #[tokio::test]
    async fn everything_is_inherited_once() {
        let office = office();
        let end = UNIX_EPOCH + Duration::from_secs(4_102_444_800);
        let ticket = office.sell(&alice(Some(end))).await.unwrap();
        assert_eq!(ticket.len(), 43);
        let taken = office.redeem(&ticket).await.unwrap().unwrap();
        assert_eq!(format!("{taken:?}"), format!("{:?}", alice(Some(end))));
        assert_eq!(taken.cookie.unwrap().expose_secret(), "s1");
        assert!(office.redeem(&ticket).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_end_that_has_passed_is_not_bought_off() {
        let office = office();
        for (ago, good) in [(10, true), (40, false)] {
            let end = SystemTime::now() - Duration::from_secs(ago);
            let ticket = office.sell(&alice(Some(end))).await.unwrap();
            assert_eq!(office.redeem(&ticket).await.unwrap().is_some(), good, "{ago}");
        }
    }

    #[tokio::test]
    async fn what_is_no_ticket() {
        let office = office();
        let other = URL_SAFE_NO_PAD.encode([7; 32]);
        for ticket in ["", "x", "a:b*c", &"x".repeat(10_000), &other, &format!("{other}=")] {
            assert!(office.redeem(ticket).await.unwrap().is_none(), "{ticket}");
        }
    }
}

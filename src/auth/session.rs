//! Session cookies: whose session an id names, as its back end's store says.
//!
//! A reconnect wave brings thousands of cookies at once. They queue here and not in Redis: so many
//! are looked up at a time, those of one session share a look, and what was just seen is good for
//! a moment. An open connection is held to what the store says now, so its look passes all that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use secrecy::SecretString;
use serde_json::Value;
use tokio::{sync::Semaphore, time::Instant};

use super::groups;
use crate::{
    config::Config,
    event::{Group, NameError, Principal, SessionKey, UserId},
    store::sessions::{Held, Sessions},
};

/// Longest session id, in bytes.
const ID_BYTES: usize = 512;
/// Longest session that is read as JSON, in bytes.
const SESSION_BYTES: usize = 1 << 20;
/// Look-ups at once.
const AT_ONCE: usize = 256;
/// Longest wait for a look-up, its place in the queue included.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long it is known that a session is there, and that it is not.
const KNOWN: Duration = Duration::from_secs(2);
const UNKNOWN: Duration = Duration::from_millis(500);
/// Sessions of which something is known; beyond it, each is looked up.
const MOST: usize = 16_384;
/// How often what is known no more is thrown out.
const SWEEP: Duration = Duration::from_secs(1);
/// Between two lines about sessions that are not understood.
const QUIET: Duration = Duration::from_secs(30);

/// Why a session does not hold. No text repeats what is in it, nor its id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Empty, too long, or with a control character.
    #[error("the cookie holds no session id")]
    Id,
    /// It is over, or never was.
    #[error("there is no such session")]
    Gone,
    /// It is kept in another form than configured.
    #[error("the session {0} (auth.session.*)")]
    Form(&'static str),
    /// Nobody has logged in to it.
    #[error("the session names no user (auth.session.user_field)")]
    NoUser,
    /// It names a user as none may be called.
    #[error("the user id {0}")]
    User(#[from] NameError),
    /// Its groups do not hold.
    #[error("{0}")]
    Groups(#[from] groups::Fault),
}

/// Why there is no principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The session does not hold.
    Fault(Fault),
    /// It cannot be known: the store is away.
    Away,
}

impl<F: Into<Fault>> From<F> for Failure {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

/// What a session says.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    user: UserId,
    groups: Vec<Group>,
    issued: Option<SystemTime>,
}

type Outcome = Result<Arc<Session>, Failure>;
type Look = Shared<BoxFuture<'static, Outcome>>;

/// Looks sessions up.
pub struct Cookies {
    name: String,
    store: Arc<dyn Sessions>,
    reader: Arc<Reader>,
    places: Arc<Semaphore>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    looks: HashMap<SessionKey, (Instant, Look)>,
    swept: Option<Instant>,
}

impl Cookies {
    /// Looks up in `store`, and reads what is there as configured.
    #[must_use]
    pub fn new(config: &Config, store: Arc<dyn Sessions>) -> Self {
        Self {
            name: config.auth.session.cookie.clone(),
            store,
            reader: Arc::new(Reader::new(config)),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            known: Mutex::default(),
        }
    }

    /// The cookie's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whose session this is. `cached`: as it was a moment ago is good enough.
    pub(super) async fn principal(&self, id: &str, cached: bool) -> Result<Principal, Failure> {
        if id.is_empty() || id.len() > ID_BYTES || id.chars().any(char::is_control) {
            return Err(Fault::Id.into());
        }
        let key = SessionKey::of(id);
        let look = self.look(key, id, cached);
        let session = tokio::time::timeout(DEADLINE, look).await.unwrap_or(Err(Failure::Away))?;
        Ok(Principal {
            user: session.user.clone(),
            session: Some(key),
            groups: session.groups.clone(),
            // It lives as long as its key, which is looked at again and again.
            expires: None,
            issued: session.issued,
            cookie: Some(SecretString::from(id)),
        })
    }

    /// What is known of these sessions is true no more.
    pub(super) fn forget(&self, sessions: &[SessionKey]) {
        let mut known = self.known();
        for session in sessions {
            known.looks.remove(session);
        }
    }

    /// A look that is under way or was just had, or a new one.
    fn look(&self, key: SessionKey, id: &str, cached: bool) -> Look {
        let now = Instant::now();
        let mut known = self.known();
        if known.swept.is_none_or(|swept| now >= swept + SWEEP) {
            known.swept = Some(now);
            known.looks.retain(|_, (begun, look)| is_good(look, now.duration_since(*begun)));
        }
        if cached
            && let Some((begun, look)) = known.looks.get(&key)
            && is_good(look, now.duration_since(*begun))
        {
            return look.clone();
        }
        let look = self.begin(id.to_owned());
        if known.looks.len() < MOST || known.looks.contains_key(&key) {
            known.looks.insert(key, (now, look.clone()));
        }
        look
    }

    fn begin(&self, id: String) -> Look {
        let (store, reader) = (Arc::clone(&self.store), Arc::clone(&self.reader));
        let places = Arc::clone(&self.places);
        let look = async move {
            let _place = places.acquire().await.map_err(|_| Failure::Away)?;
            match store.look_up(&id).await {
                Ok(Some(held)) => reader.read(&held).map(Arc::new),
                Ok(None) => Err(Fault::Gone.into()),
                Err(error) => {
                    tracing::debug!(%error, "a session could not be looked up");
                    Err(Failure::Away)
                }
            }
        };
        // A task of its own: whoever asked may leave, and a look that nobody drives would keep its
        // place. The deadline bounds how many there are.
        let look = tokio::spawn(tokio::time::timeout(DEADLINE, look));
        async move {
            match look.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(Failure::Away),
                Err(error) => {
                    tracing::debug!(%error, "a look at a session was cut short");
                    Err(Failure::Away)
                }
            }
        }
        .boxed()
        .shared()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a look that began so long ago still says how it is.
fn is_good(look: &Look, age: Duration) -> bool {
    match look.peek() {
        None | Some(Ok(_)) => age < KNOWN,
        Some(Err(Failure::Fault(_))) => age < UNKNOWN,
        Some(Err(Failure::Away)) => false,
    }
}

/// Reads what is held under a session's key.
struct Reader {
    user: Field,
    groups: Option<Field>,
    issued: Option<Field>,
    rule: groups::Rule,
    leeway: Duration,
    /// Sessions that are not understood.
    odd: Told,
    /// Sessions that begin in the future.
    ahead: Told,
}

/// When somebody was last told of something that concerns every session.
#[derive(Default)]
struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is time to tell again.
    fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if due {
            *told = Some(now);
        }
        due
    }
}

/// Where something stands in a session: a member of the object, or a field of the hash, and from
/// there on a JSON Pointer.
#[derive(Debug, PartialEq, Eq)]
struct Field {
    name: String,
    rest: String,
}

/// What stands there.
enum Found {
    /// In a hash: text, of which nothing else is known.
    Text(String),
    Json(Value),
}

/// The names of the fields of a hash that matter under this configuration.
#[must_use]
pub fn fields(config: &Config) -> Vec<String> {
    let reader = Reader::new(config);
    let mut names = vec![reader.user.name];
    for field in [reader.groups, reader.issued].into_iter().flatten() {
        if !names.contains(&field.name) {
            names.push(field.name);
        }
    }
    names
}

impl Field {
    /// A name, or a JSON Pointer (RFC 6901), which begins with a slash.
    fn parse(text: &str) -> Self {
        let Some(pointer) = text.strip_prefix('/') else {
            return Self { name: text.to_owned(), rest: String::new() };
        };
        let at = pointer.find('/').unwrap_or(pointer.len());
        let (name, rest) = pointer.split_at(at);
        Self { name: name.replace("~1", "/").replace("~0", "~"), rest: rest.to_owned() }
    }

    fn find(&self, held: &Object<'_>) -> Result<Option<Found>, Fault> {
        match held {
            Object::Json(object) => {
                let value = object.get(&self.name).and_then(|value| value.pointer(&self.rest));
                Ok(value.filter(|value| !value.is_null()).cloned().map(Found::Json))
            }
            Object::Fields(fields) => match fields.get(&self.name) {
                None => Ok(None),
                Some(text) if self.rest.is_empty() => Ok(Some(Found::Text(text.clone()))),
                Some(text) => {
                    let value: Value = serde_json::from_str(text)
                        .map_err(|_| Fault::Form("has a field that holds no JSON"))?;
                    let value = value.pointer(&self.rest);
                    Ok(value.filter(|value| !value.is_null()).cloned().map(Found::Json))
                }
            },
        }
    }
}

enum Object<'a> {
    Json(Value),
    Fields(&'a HashMap<String, String>),
}

impl Reader {
    fn new(config: &Config) -> Self {
        let session = &config.auth.session;
        Self {
            user: Field::parse(&session.user_field),
            groups: session.groups_field.as_deref().map(Field::parse),
            issued: session.issued_field.as_deref().map(Field::parse),
            rule: groups::Rule::new(config),
            leeway: config.auth.jwt.leeway,
            odd: Told::default(),
            ahead: Told::default(),
        }
    }

    fn read(&self, held: &Held) -> Result<Session, Failure> {
        let session = self.session(held);
        if let Err(Fault::Form(what)) = &session
            && self.odd.is_due()
        {
            // Whoever set the gateway up has to know: nobody gets in.
            tracing::warn!("a session {what}; compare it with auth.session in the configuration");
        }
        Ok(session?)
    }

    /// A time of login that has not come yet (milliseconds, say, where seconds are meant) would be
    /// newer than every revocation; it says nothing.
    fn issued(&self, at: SystemTime) -> Option<SystemTime> {
        let ahead = at.duration_since(SystemTime::now()).unwrap_or_default();
        if ahead <= self.leeway {
            return Some(at);
        }
        if self.ahead.is_due() {
            tracing::warn!(
                "a session says that its login is still to come, so it counts as older than any \
                 revocation of its user; auth.session.issued_field has seconds since 1970, not \
                 milliseconds"
            );
        }
        None
    }

    fn session(&self, held: &Held) -> Result<Session, Fault> {
        let object = match held {
            Held::Text(text) if text.len() > SESSION_BYTES => {
                return Err(Fault::Form("is over 1 MiB"));
            }
            Held::Text(text) => match serde_json::from_slice(text) {
                Ok(value @ Value::Object(_)) => Object::Json(value),
                _ => return Err(Fault::Form("is no JSON object")),
            },
            Held::Fields(fields) => Object::Fields(fields),
            Held::Other => return Err(Fault::Form("is of another type in Redis")),
        };
        let user = match self.user.find(&object)? {
            None => return Err(Fault::NoUser),
            Some(Found::Text(text) | Found::Json(Value::String(text))) => text,
            // Numbers that JSON readers round would make two users one.
            Some(Found::Json(Value::Number(id))) if id.is_i64() || id.is_u64() => id.to_string(),
            Some(Found::Json(_)) => {
                return Err(Fault::Form("has a user id that is neither text nor an integer"));
            }
        };
        if user.is_empty() {
            return Err(Fault::NoUser);
        }
        let find = |field: &Option<Field>| match field {
            Some(field) => field.find(&object),
            None => Ok(None),
        };
        Ok(Session {
            user: UserId::new(&user)?,
            groups: match find(&self.groups)? {
                None => Vec::new(),
                Some(found) => self.rule.take(names(found)?)?,
            },
            issued: find(&self.issued)?.and_then(moment).and_then(|at| self.issued(at)),
        })
    }
}

/// The names in a list.
fn names(found: Found) -> Result<Vec<String>, Fault> {
    const NO_LIST: Fault = Fault::Form("has groups that are no list of texts");
    let list = match found {
        Found::Text(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str(&text).map_err(|_| NO_LIST)?
        }
        Found::Text(text) => {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            return Ok(names.map(str::to_owned).collect());
        }
        Found::Json(value) => value,
    };
    serde_json::from_value(list).map_err(|_| NO_LIST)
}

/// Seconds since 1970, a fraction allowed. What is none says nothing.
fn moment(found: Found) -> Option<SystemTime> {
    let seconds = match found {
        Found::Text(text) => text.trim().parse().ok(),
        Found::Json(value) => value.as_f64(),
    }?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

#[cfg(test)]
mod tests;

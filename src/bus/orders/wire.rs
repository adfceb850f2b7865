//! How an order and its acknowledgement stand in the head of a message on the control channel.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::event::{CloseCause, ConnectionId, Order, SessionKey, Subject, UserId};

/// The place of a kept order among the others: a stream id of Redis, compared as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderId(u64, u64);

impl OrderId {
    /// The place of the order with this number, where orders are only counted.
    pub(in crate::bus) fn at(number: u64) -> Self {
        Self(number, 0)
    }

    /// Whether it can have been given out by now: ids begin with Redis's time in milliseconds, and
    /// its clock may be ahead of ours by this much. One further ahead is a neighbour's invention.
    #[must_use]
    pub fn is_past(self, now: SystemTime) -> bool {
        let latest = now.duration_since(UNIX_EPOCH).unwrap_or_default() + AHEAD;
        u128::from(self.0) <= latest.as_millis()
    }

    /// Reads what [`Display`](fmt::Display) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (millis, count) = text.split_once('-')?;
        Some(Self(millis.parse().ok()?, count.parse().ok()?))
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// See [`OrderId::is_past`].
const AHEAD: Duration = Duration::from_secs(5);

/// An order as it is heard by every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its place in the stream; `None` if it is not kept.
    pub id: Option<OrderId>,
    /// The name under which it is acknowledged; `None` if nobody waits.
    pub nonce: Option<String>,
    /// What is to be done.
    pub order: Order,
}

/// A replica has carried an order out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The order's nonce.
    pub order: String,
    /// Who.
    pub replica: String,
    /// Connections that it closed.
    pub closed: u64,
}

/// [`Order`] in JSON: exactly one of the first three members. One that is not known may be an
/// exception, so an order with such a member is none.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::bus) struct Wire {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    except_connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    except_session: Option<String>,
    cause: String,
    /// Milliseconds since 1970.
    given: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

impl Wire {
    pub(super) fn new(order: &Order, nonce: Option<&str>) -> Self {
        let mut wire = Self {
            except_connection: order.except_connection.map(|id| id.to_string()),
            except_session: order.except_session.map(|session| session.to_string()),
            cause: order.cause.label().to_owned(),
            given: millis(order.given),
            nonce: nonce.map(str::to_owned),
            ..Self::default()
        };
        match &order.subject {
            Subject::User(user) => wire.user = Some(user.as_str().to_owned()),
            Subject::Session(session) => wire.session = Some(session.to_string()),
            Subject::Connection(id) => wire.connection = Some(id.to_string()),
        }
        wire
    }

    /// `None` if it does not hold together: an order that is not understood whole is not carried
    /// out in part.
    pub(in crate::bus) fn read(self, id: Option<&str>) -> Option<Given> {
        let subject = match (self.user, self.session, self.connection) {
            (Some(user), None, None) => Subject::User(UserId::new(&user).ok()?),
            (None, Some(session), None) => Subject::Session(SessionKey::parse(&session)?),
            (None, None, Some(id)) => Subject::Connection(ConnectionId::parse(&id)?),
            _ => return None,
        };
        // An order may say nothing but these; the rest is between a connection and its replica.
        let cause = [CloseCause::Revoked, CloseCause::Replaced]
            .into_iter()
            .find(|cause| cause.label() == self.cause)?;
        let order = Order {
            subject,
            except_connection: read(self.except_connection.as_deref(), ConnectionId::parse).ok()?,
            except_session: read(self.except_session.as_deref(), SessionKey::parse).ok()?,
            cause,
            given: UNIX_EPOCH.checked_add(Duration::from_millis(self.given))?,
        };
        Some(Given { id: read(id, OrderId::parse).ok()?, nonce: self.nonce, order })
    }
}

/// An error where something stands that cannot be read.
fn read<T>(text: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ()> {
    text.map(|text| parse(text).ok_or(())).transpose()
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(subject: Subject) -> Order {
        Order {
            subject,
            except_connection: Some(ConnectionId::new()),
            except_session: Some(SessionKey::of("s")),
            cause: CloseCause::Revoked,
            given: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        }
    }

    #[test]
    fn an_order_comes_back_as_it_went() {
        for subject in [
            Subject::User(UserId::new("a\"b:c").unwrap()),
            Subject::Session(SessionKey::of("x")),
            Subject::Connection(ConnectionId::new()),
        ] {
            let order = order(subject);
            let text = serde_json::to_string(&Wire::new(&order, Some("n"))).unwrap();
            let wire: Wire = serde_json::from_str(&text).unwrap();
            let id = OrderId::parse("17-3");
            let given = Given { id, nonce: Some("n".to_owned()), order };
            assert_eq!(wire.read(Some("17-3")), Some(given), "{text}");
        }
    }

    #[test]
    fn what_is_no_whole_order_is_none() {
        let session = SessionKey::of("x");
        for (text, id) in [
            (r#"{"cause":"revoked","given":1}"#.to_owned(), None),
            (r#"{"user":"","cause":"revoked","given":1}"#.to_owned(), None),
            (r#"{"user":"a","cause":"restart","given":1}"#.to_owned(), None),
            (r#"{"user":"a","given":1}"#.to_owned(), None),
            (format!(r#"{{"user":"a","session":"{session}","cause":"revoked","given":1}}"#), None),
            (r#"{"session":"raw","cause":"revoked","given":1}"#.to_owned(), None),
            (r#"{"user":"a","except_session":"x","cause":"revoked","given":1}"#.to_owned(), None),
            (r#"{"user":"a","cause":"revoked","given":1}"#.to_owned(), Some("x")),
        ] {
            let wire: Wire = serde_json::from_str(&text).unwrap();
            assert_eq!(wire.read(id), None, "{text}");
        }
    }

    #[test]
    fn a_member_that_is_not_known_is_not_passed_over() {
        let text = r#"{"user":"a","cause":"revoked","given":1,"except_user_agent":"x"}"#;
        assert!(serde_json::from_str::<Wire>(text).is_err());
    }

    #[test]
    fn places_are_numbers() {
        let id = |text| OrderId::parse(text).unwrap();
        assert!(id("9-0") < id("10-0"));
        assert!(id("10-2") < id("10-11"));
        assert_eq!(id("10-11").to_string(), "10-11");
        assert_eq!(OrderId::parse("10"), None);
        assert_eq!(OrderId::parse("-1-1"), None);
    }
}

//! Who takes part in a run.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// Where an event goes; users and groups by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    User(usize),
    Group(usize),
    Broadcast,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Broadcast => f.write_str("broadcast"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Events,
}

/// One client: a tab of a user.
#[derive(Clone, Debug)]
pub struct Seat {
    pub number: usize,
    pub user: usize,
    pub groups: Vec<usize>,
    pub transport: Transport,
}

impl Seat {
    /// The tags by which this client knows its channels, and the channels.
    pub fn channels(&self) -> Vec<(String, Channel)> {
        let mut channels =
            vec![("u".to_owned(), Channel::User(self.user)), ("b".to_owned(), Channel::Broadcast)];
        for &group in &self.groups {
            let tag = format!("g={}", URL_SAFE_NO_PAD.encode(group_name(group)));
            channels.push((tag, Channel::Group(group)));
        }
        channels
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::WebSocket => "ws",
            Transport::Events => "sse",
        };
        write!(f, "{transport} {} of user {}", self.number, self.user)
    }
}

/// The id of a user; some bear what is legal and odd.
pub fn user_name(user: usize) -> String {
    match user % 8 {
        3 => format!("tenant:{user}*"),
        5 => format!("Ünï cödé {user}"),
        6 => format!("{{braces}}/{user}"),
        _ => format!("user-{user}"),
    }
}

pub fn group_name(group: usize) -> String {
    if group.is_multiple_of(2) {
        format!("group-{group}")
    } else {
        format!("gruppe {group} ü:{{}}")
    }
}

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub replicas: usize,
    pub users: usize,
    pub groups: usize,
    pub websockets: usize,
    pub event_streams: usize,
    pub publishers: usize,
    /// Requests of all publishers in a second.
    pub rate: usize,
    pub heartbeat: Duration,
}

impl Size {
    /// All clients: of two or three tabs of a user, on either transport. Every other user is in one
    /// group, and every sixth in another as well.
    pub fn seats(&self) -> Vec<Seat> {
        (0..self.websockets + self.event_streams)
            .map(|number| {
                let user = number % self.users;
                let mut groups = Vec::new();
                if user.is_multiple_of(2) {
                    groups.push(user / 2 % self.groups);
                }
                if user.is_multiple_of(6) {
                    groups.push((user / 2 + 1) % self.groups);
                }
                let transport =
                    if number < self.websockets { Transport::WebSocket } else { Transport::Events };
                Seat { number, user, groups, transport }
            })
            .collect()
    }
}

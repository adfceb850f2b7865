//! Channel names on Redis (contract §6): the fixed prefix, the kind, and then everything to the
//! end is the name. Nothing is escaped and nothing is split, so `a:b` and `b` never meet.

use crate::{
    bus::Destination,
    event::{Channel, Group, UserId},
};

/// Ends the name of a probe channel. No user or group can be called so: it bears a control
/// character.
const PROBE: &str = "\u{1}probe";

/// The names of one deployment.
#[derive(Clone, Debug)]
pub(super) struct Names {
    user: String,
    group: String,
    broadcast: String,
    control: String,
    idempotency: String,
}

impl Names {
    /// Names under `prefix` (`redis.prefix`, which is free of pattern characters).
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            user: format!("{prefix}user:"),
            group: format!("{prefix}group:"),
            broadcast: format!("{prefix}broadcast"),
            control: format!("{prefix}control"),
            idempotency: format!("{prefix}idempotency:"),
        }
    }

    /// The key under which a request that was done once is remembered.
    pub(super) fn idempotency(&self, key: &str) -> String {
        format!("{}{key}", self.idempotency)
    }

    /// The channel of a destination.
    pub(super) fn channel(&self, to: &Destination) -> String {
        match to {
            Destination::Events(Channel::User(user)) => format!("{}{}", self.user, user.as_str()),
            Destination::Events(Channel::Group(group)) => {
                format!("{}{}", self.group, group.as_str())
            }
            Destination::Events(Channel::Broadcast) => self.broadcast.clone(),
            Destination::Control => self.control.clone(),
            Destination::UserProbe => format!("{}{PROBE}", self.user),
            Destination::GroupProbe => format!("{}{PROBE}", self.group),
        }
    }

    /// The destination of a channel; `None` if it names no legal user or group.
    pub(super) fn destination(&self, channel: &str) -> Option<Destination> {
        if let Some(name) = channel.strip_prefix(&self.user) {
            if name == PROBE {
                return Some(Destination::UserProbe);
            }
            return UserId::new(name).ok().map(|id| Destination::Events(Channel::User(id)));
        }
        if let Some(name) = channel.strip_prefix(&self.group) {
            if name == PROBE {
                return Some(Destination::GroupProbe);
            }
            return Group::new(name).ok().map(|g| Destination::Events(Channel::Group(g)));
        }
        if channel == self.broadcast {
            Some(Destination::Events(Channel::Broadcast))
        } else if channel == self.control {
            Some(Destination::Control)
        } else {
            None
        }
    }

    /// What is subscribed by pattern. The patterns and [`exact`](Self::exact) never match the
    /// same channel, so no message comes twice.
    pub(super) fn patterns(&self) -> [String; 2] {
        [format!("{}*", self.user), format!("{}*", self.group)]
    }

    /// What is subscribed by name.
    pub(super) fn exact(&self) -> [String; 2] {
        [self.broadcast.clone(), self.control.clone()]
    }

    /// The ACL rule that a Redis user needs. Redis compares a pattern with the patterns of the
    /// rule letter by letter, so a wider one does not cover it (redis.io, ACL).
    pub(super) fn acl_hint(&self) -> String {
        let [user, group] = self.patterns();
        let [broadcast, control] = self.exact();
        format!("&{user} &{group} &{broadcast} &{control} +psubscribe +subscribe +ping")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> Destination {
        Destination::Events(Channel::User(UserId::new(id).unwrap()))
    }

    fn group(name: &str) -> Destination {
        Destination::Events(Channel::Group(Group::new(name).unwrap()))
    }

    #[test]
    fn a_name_comes_back_as_it_went() {
        let names = Names::new("ws:");
        for to in [
            user("alice"),
            user(":"),
            user("group:x"),
            user("ws:user:a"),
            user("*"),
            user(" "),
            user("broadcast"),
            group("alice"),
            group("a:b:c"),
            Destination::Events(Channel::Broadcast),
            Destination::Control,
            Destination::UserProbe,
            Destination::GroupProbe,
        ] {
            assert_eq!(names.destination(&names.channel(&to)), Some(to));
        }
    }

    #[test]
    fn other_names_address_nobody() {
        let names = Names::new("ws:");
        let long = format!("ws:user:{}", "x".repeat(257));
        for channel in
            ["ws:user:", "ws:group:", "ws:user:\u{1}", "ws:user:a\n", "ws:broadcast2", "x", &long]
        {
            assert_eq!(names.destination(channel), None, "{channel:?}");
        }
    }
}

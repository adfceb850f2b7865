//! Channel names on Redis (contract §6): the fixed prefix, the kind, and then everything to the
//! end is the name. Nothing is escaped and nothing is split, so `a:b` and `b` never meet.

use super::slots::Slots;
use crate::{
    bus::Destination,
    event::{Channel, Group, UserId},
};

/// Ends the name of a probe channel. No user or group can be called so: it bears a control
/// character.
const PROBE: &str = "\u{1}probe";

/// The commands that Belfry uses on its own keys and channels, as an ACL rule.
pub(crate) const COMMANDS: &str = "+ping +info +select +client|id +client|setname +subscribe \
    +psubscribe +publish +eval +evalsha +script|load +time +get +set +getdel +del +exists +hmget \
    +hset +expire +pexpire +pttl +xadd +xdel +xlen +xrange +xread +xrevrange +xtrim +zadd +zcard \
    +zrange +zrangebyscore +zrem +zremrangebyrank +zremrangebyscore";

/// The names of one deployment.
#[derive(Debug)]
pub(crate) struct Names {
    prefix: String,
    user: String,
    group: String,
    broadcast: String,
    control: String,
    /// On a cluster.
    slots: Option<Slots>,
}

/// The keys that belong to a channel, all of one slot.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// What is kept.
    pub(super) stream: String,
    /// The last id.
    pub(super) last: String,
    /// When the data began. On a cluster each slot has its own, since each may be lost alone.
    pub(super) epoch: String,
}

impl Names {
    /// Names under `prefix` (`redis.prefix`, which is free of pattern characters).
    pub(crate) fn new(prefix: &str, cluster: bool) -> Self {
        Self {
            prefix: prefix.to_owned(),
            user: format!("{prefix}user:"),
            group: format!("{prefix}group:"),
            broadcast: format!("{prefix}broadcast"),
            control: format!("{prefix}control"),
            slots: cluster.then(Slots::default),
        }
    }

    /// Whether keys of different users may lie on different servers, so that a call may name keys of
    /// one slot only.
    pub(crate) fn is_cluster(&self) -> bool {
        self.slots.is_some()
    }

    /// The key of this name under the prefix.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What kind of channel this is, and a pattern for the streams of all of that kind: which one it
    /// is may say who somebody is, and has no place in a log.
    pub(super) fn pattern(&self, channel: &Channel) -> (&'static str, String) {
        match channel {
            Channel::User(_) => ("user", format!("{}*", self.user)),
            Channel::Group(_) => ("group", format!("{}*", self.group)),
            Channel::Broadcast => ("broadcast", self.broadcast.clone()),
        }
    }

    /// The keys of a channel.
    pub(super) fn keys(&self, channel: &Channel) -> Keys {
        self.keys_of(self.channel(&Destination::Events(channel.clone())))
    }

    /// Where the server's own time is written, and its epoch; `None` on a cluster, which has one of
    /// these for each slot.
    pub(super) fn pulse(&self) -> Option<(String, String)> {
        self.slots.is_none().then(|| (self.key("pulse"), self.key("epoch")))
    }

    /// The keys of probes on a channel: they need the same rights as those of events, and have
    /// nothing to do with what is kept there.
    pub(super) fn probe_keys(&self, to: &Destination) -> Keys {
        let channel = self.channel(to);
        match to {
            Destination::UserProbe | Destination::GroupProbe => self.keys_of(channel),
            Destination::Events(_) | Destination::Control => {
                self.keys_of(format!("{channel}{PROBE}"))
            }
        }
    }

    fn keys_of(&self, stream: String) -> Keys {
        let channel = stream.strip_prefix(&self.prefix).unwrap_or(&stream);
        let last = self.beside(&stream, "last", channel);
        let epoch = self.epoch(&stream);
        Keys { stream, last, epoch }
    }

    /// The stream of a channel, which is called like the channel.
    pub(super) fn stream(&self, channel: &Channel) -> String {
        match channel {
            Channel::User(user) => [&self.user, user.as_str()].concat(),
            Channel::Group(group) => [&self.group, group.as_str()].concat(),
            Channel::Broadcast => self.broadcast.clone(),
        }
    }

    /// The key of this kind beside a stream, in pieces: put together it is
    /// [`beside`](Self::beside). `None` for the name: that of the stream's channel.
    pub(super) fn pieces<'a>(
        &'a self,
        stream: &'a str,
        kind: &'a str,
        name: Option<&'a str>,
    ) -> [&'a str; 6] {
        let name = name.or_else(|| stream.strip_prefix(&self.prefix)).unwrap_or(stream);
        match &self.slots {
            Some(slots) => [&self.prefix, kind, ":{", slots.tag_for(stream), "}:", name],
            None => [&self.prefix, kind, ":", name, "", ""],
        }
    }

    /// The key of the epoch of a stream.
    pub(super) fn epoch(&self, stream: &str) -> String {
        match &self.slots {
            Some(slots) => self.key(&format!("epoch:{{{}}}", slots.tag_for(stream))),
            None => self.key("epoch"),
        }
    }

    /// The key under which a request that was done once is remembered, beside this stream.
    pub(super) fn idempotency(&self, stream: &str, key: &str) -> String {
        self.beside(stream, "idempotency", key)
    }

    /// The key of a user's seats.
    pub(crate) fn seats(&self, user: &UserId) -> String {
        let stream = format!("{}{}", self.user, user.as_str());
        self.beside(&stream, "seats", user.as_str())
    }

    /// As [`idempotency`](Self::idempotency), for probes.
    pub(super) fn probe_idempotency(&self, stream: &str) -> String {
        self.idempotency(stream, PROBE)
    }

    /// As [`seats`](Self::seats), for probes.
    pub(super) fn probe_seats(&self, stream: &str) -> String {
        self.beside(stream, "seats", PROBE)
    }

    /// `<prefix><kind>:<name>`, in the slot of a stream.
    fn beside(&self, stream: &str, kind: &str, name: &str) -> String {
        self.pieces(stream, kind, Some(name)).concat()
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
    pub(crate) fn acl_hint(&self) -> String {
        let [user, group] = self.patterns();
        let [broadcast, control] = self.exact();
        let prefix = &self.prefix;
        format!("~{prefix}* &{user} &{group} &{broadcast} &{control} {COMMANDS}")
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
        let names = Names::new("ws:", false);
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
        let names = Names::new("ws:", false);
        let long = format!("ws:user:{}", "x".repeat(257));
        for channel in
            ["ws:user:", "ws:group:", "ws:user:\u{1}", "ws:user:a\n", "ws:broadcast2", "x", &long]
        {
            assert_eq!(names.destination(channel), None, "{channel:?}");
        }
    }

    #[test]
    fn what_belongs_to_a_channel_lies_in_its_slot() {
        let names = Names::new("ws:", true);
        let slot = |key: &str| fred::util::redis_keyslot(key.as_bytes());
        for name in
            ["alice", "{a}", "a{b}c", "{", "}", "{}", "}{", "{}{x}", "a:b", "{u}:last", "é{🔔}"]
        {
            for to in [user(name), group(name)] {
                let Destination::Events(channel) = &to else { continue };
                let stream = names.channel(&to);
                let keys = names.keys(channel);
                assert_eq!(keys.stream, stream);
                assert_eq!(slot(&keys.last), slot(&stream), "{keys:?}");
                assert_eq!(slot(&keys.epoch), slot(&stream), "{keys:?}");
                assert_eq!(slot(&names.idempotency(&stream, "x")), slot(&stream));
            }
            let id = UserId::new(name).unwrap();
            assert_eq!(slot(&names.seats(&id)), slot(&names.channel(&user(name))));
        }
        for to in [Destination::Control, Destination::UserProbe, Destination::GroupProbe] {
            let keys = names.probe_keys(&to);
            assert_eq!(slot(&keys.last), slot(&keys.stream));
        }
    }

    #[test]
    fn without_a_cluster_names_are_plain() {
        let names = Names::new("ws:", false);
        let alice = UserId::new("alice").unwrap();
        let keys = names.keys(&Channel::User(alice.clone()));
        assert_eq!(
            [&*keys.stream, &*keys.last, &*keys.epoch],
            ["ws:user:alice", "ws:last:user:alice", "ws:epoch"]
        );
        assert_eq!(names.seats(&alice), "ws:seats:alice");
        assert_eq!(names.idempotency(&keys.stream, "x"), "ws:idempotency:x");
    }
}

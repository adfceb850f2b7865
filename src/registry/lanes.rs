//! One connection's way along each of its channels.

use std::cell::Cell;

use super::tracks::Hold;
use crate::event::{Channel, Cursor, Position, Tag};

/// Where a connection begins in a channel.
#[derive(Debug)]
pub struct Start {
    /// Keeps the channel's track.
    pub hold: Hold,
    /// Everything up to here is seen.
    pub at: Position,
    /// Up to here something was published before the connection came, so it belongs to what is
    /// replayed, and not to what is live.
    pub upto: Position,
}

/// What becomes of a kept event that comes to this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It goes out, unless it was seen.
    Live,
    /// A replay will bring it, in its order.
    Behind,
    /// A replay will bring it, after the word of a loss that is still to be said.
    Lost,
}

#[derive(Debug)]
pub(super) struct Lane {
    hold: Hold,
    pub(super) at: Cell<Position>,
    pub(super) upto: Cell<Position>,
    pub(super) way: Cell<Way>,
}

impl Lane {
    pub(super) fn new(start: Start) -> Self {
        let lane = Self {
            hold: start.hold,
            at: Cell::new(start.at),
            upto: Cell::new(start.upto),
            way: Cell::new(Way::Behind),
        };
        lane.join();
        lane
    }

    pub(super) fn channel(&self) -> &Channel {
        self.hold.channel()
    }

    /// Goes live if nothing was handed out that this connection does not have. Whatever comes to
    /// the shard later is newer: this runs on its thread, and nothing comes in between.
    pub(super) fn join(&self) -> bool {
        let level = self.upto.get() <= self.at.get()
            && self.hold.position().is_none_or(|at| at <= self.at.get());
        if level {
            self.way.set(Way::Live);
        }
        level
    }

    /// What is missing cannot be had, and the client goes on from here: also where that is lower, as
    /// after a loss of all data and on a clock that is behind, because all that is new comes after
    /// it. Until the client is told, events wait in the history.
    pub(super) fn lose(&self, to: Position) {
        self.at.set(to);
        self.upto.set(Position::ZERO);
        self.way.set(Way::Lost);
    }

    /// Up to where the channel was handed out.
    pub(super) fn handed_out(&self) -> Position {
        self.hold.position().unwrap_or_default()
    }

    /// Takes an event that comes live; whether it goes out.
    pub(super) fn take(&self, at: Position) -> bool {
        let next = self.way.get() == Way::Live && at > self.at.get();
        if next {
            self.at.set(at);
        }
        next
    }
}

/// The lanes of a connection: its user's, everyone's, and those of its groups, in this order.
#[derive(Debug, Default)]
pub(super) struct Lanes(pub(super) Box<[Lane]>);

impl Lanes {
    pub(super) fn new(starts: impl IntoIterator<Item = Start>) -> Self {
        Self(starts.into_iter().map(Lane::new).collect())
    }

    pub(super) fn of(&self, channel: &Channel) -> Option<&Lane> {
        match channel {
            Channel::User(_) => self.0.first(),
            Channel::Broadcast => self.0.get(1),
            Channel::Group(_) => self.0.iter().skip(2).find(|lane| lane.channel() == channel),
        }
    }

    /// Where this connection stands. Channels that nothing is known of are left out.
    pub(super) fn cursor(&self) -> Cursor {
        let known = self.0.iter().filter(|lane| lane.hold.position().is_some());
        known.map(|lane| (Tag::of(lane.channel()), lane.at.get())).collect()
    }

    /// Takes the lanes of these groups over, and begins those that are new.
    pub(super) fn set_groups(&mut self, kept: impl Fn(&Channel) -> bool, new: Vec<Start>) {
        let mut lanes = std::mem::take(&mut self.0).into_vec();
        let mut n = 0;
        lanes.retain(|lane| {
            n += 1;
            n <= 2 || kept(lane.channel())
        });
        for start in new {
            if !lanes.iter().any(|lane| lane.channel() == start.hold.channel()) {
                lanes.push(Lane::new(start));
            }
        }
        self.0 = lanes.into();
    }
}

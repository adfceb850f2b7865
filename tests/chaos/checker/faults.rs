//! Which faults come when: the same for the same seed.

use std::{fmt, time::Duration};

use super::dice::Dice;

/// Something that goes wrong with a part that clients do not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `CLIENT KILL TYPE pubsub`
    PubSubKilled,
    /// `kill -9`, and back after a while.
    RedisKilled { down: Duration },
    /// The same, and what Redis wrote to its AOF last is gone too, as when a machine loses power
    /// before an fsync.
    RedisLostTail { tail: Duration, down: Duration },
    /// SIGSTOP, SIGCONT.
    RedisPaused { pause: Duration },
    /// One replica cannot reach Redis.
    Unreachable { replica: usize, how: Severed, lasts: Duration },
    /// `kill -9`, and back after a while.
    ReplicaKilled { replica: usize, down: Duration },
    /// SIGTERM, and back when it has left.
    ReplicaDrained { replica: usize, down: Duration },
}

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severed {
    /// Connections end, and no new ones come to be.
    Cut,
    /// Nothing passes, and the connections look healthy.
    Stalled,
    /// What Redis says does not arrive, what the replica says does.
    Deaf,
    /// The other way round.
    Mute,
}

impl Fault {
    pub fn name(&self) -> &'static str {
        match self {
            Self::PubSubKilled => "pub/sub connections killed",
            Self::RedisKilled { .. } => "redis killed",
            Self::RedisLostTail { .. } => "redis lost its last writes",
            Self::RedisPaused { .. } => "redis paused",
            Self::Unreachable { how: Severed::Cut, .. } => "redis cut off from a replica",
            Self::Unreachable { how: Severed::Stalled, .. } => "redis stalled to a replica",
            Self::Unreachable { how: Severed::Deaf, .. } => "redis unheard by a replica",
            Self::Unreachable { how: Severed::Mute, .. } => "redis not hearing a replica",
            Self::ReplicaKilled { .. } => "replica killed",
            Self::ReplicaDrained { .. } => "replica drained",
        }
    }

    fn ends_a_replica(&self) -> bool {
        matches!(self, Self::ReplicaKilled { .. } | Self::ReplicaDrained { .. })
    }

    fn kills_redis(&self) -> bool {
        matches!(self, Self::RedisKilled { .. } | Self::RedisLostTail { .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::PubSubKilled => Ok(()),
            Self::RedisKilled { down } => write!(f, ", down for {down:?}"),
            Self::RedisLostTail { tail, down } => write!(f, " ({tail:?}), down for {down:?}"),
            Self::RedisPaused { pause } => write!(f, " for {pause:?}"),
            Self::Unreachable { replica, lasts, .. } => write!(f, " ({replica}) for {lasts:?}"),
            Self::ReplicaKilled { replica, down } | Self::ReplicaDrained { replica, down } => {
                write!(f, " ({replica}), down for {down:?}")
            }
        }
    }
}

/// A fault after a pause since the end of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub pause: Duration,
    pub fault: Fault,
}

/// How fast faults follow each other, and how long they last.
#[derive(Clone, Copy, Debug)]
pub struct Tempo {
    pub pause: (Duration, Duration),
    pub outage: (Duration, Duration),
    /// Between two faults of clients.
    pub clients: (Duration, Duration),
    /// How long a client does not read, or is half open.
    pub stall: (Duration, Duration),
}

/// The time between the end of a replica and the end of Redis, whichever is first. Redis may lose
/// what it was told in the last second before it dies (AOF `everysec`), and the replica that has
/// the 202 for it puts it back, for which it keeps it 5 s. If both die together, nobody has it: the
/// one loss that nothing announces (docs/delivery.md), which a run must not provoke.
const APART: Duration = Duration::from_secs(6);

/// What the AOF loses: no more than what `everysec` leaves to be written.
const LEAST_TAIL: Duration = Duration::from_millis(100);
const MOST_TAIL: Duration = Duration::from_secs(1);

/// The faults of a run, without end.
pub struct Schedule {
    dice: Dice,
    tempo: Tempo,
    replicas: usize,
    forgetful: bool,
    bag: Vec<usize>,
    /// Time since a replica ended, and since Redis was killed; at least.
    since_replica: Duration,
    since_redis: Duration,
}

impl Schedule {
    /// `forgetful`: Redis may lose its last writes.
    pub fn new(seed: u64, tempo: Tempo, replicas: usize, forgetful: bool) -> Self {
        Self {
            dice: Dice::new(seed, 1),
            tempo,
            replicas,
            forgetful,
            bag: Vec::new(),
            since_replica: APART,
            since_redis: APART,
        }
    }

    fn draw(&mut self, number: usize) -> Fault {
        let (short, long) = self.tempo.outage;
        let lasts = self.dice.between(short, long);
        let replica = self.dice.below(self.replicas);
        let how = |how| Fault::Unreachable { replica, how, lasts };
        match number {
            0 => Fault::PubSubKilled,
            1 => Fault::RedisKilled { down: lasts },
            2 => {
                let tail = self.dice.between(LEAST_TAIL, MOST_TAIL);
                Fault::RedisLostTail { tail, down: lasts }
            }
            3 => Fault::RedisPaused { pause: lasts },
            4 => how(Severed::Cut),
            5 => how(Severed::Stalled),
            6 => how(Severed::Deaf),
            7 => how(Severed::Mute),
            8 => Fault::ReplicaKilled { replica, down: lasts },
            _ => Fault::ReplicaDrained { replica, down: lasts },
        }
    }

    /// How long to wait at least, so that Redis and a replica do not die together.
    fn wait(&self, fault: &Fault) -> Duration {
        let since = if fault.kills_redis() {
            self.since_replica
        } else if fault.ends_a_replica() {
            self.since_redis
        } else {
            APART
        };
        APART.saturating_sub(since)
    }
}

impl Iterator for Schedule {
    type Item = Step;

    /// Every kind once, in some order, and again.
    fn next(&mut self) -> Option<Step> {
        if self.bag.is_empty() {
            self.bag = (0..10).filter(|number| *number != 2 || self.forgetful).collect();
            self.dice.shuffle(&mut self.bag);
        }
        let (short, long) = self.tempo.pause;
        let pause = self.dice.between(short, long);
        let drawn: Vec<Fault> = (0..self.bag.len()).map(|at| self.draw(self.bag[at])).collect();
        // The first that may come now; if none may, the first.
        let at = drawn.iter().position(|fault| self.wait(fault) <= pause).unwrap_or_default();
        let fault = drawn[at];
        self.bag.remove(at);
        let pause = pause.max(self.wait(&fault));
        self.since_replica += pause;
        self.since_redis += pause;
        if fault.kills_redis() {
            self.since_redis = Duration::ZERO;
        }
        if fault.ends_a_replica() {
            self.since_replica = Duration::ZERO;
        }
        Some(Step { pause, fault })
    }
}

/// Something that goes wrong with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// The connection breaks after so many more bytes: inside a frame.
    Cut { after: usize },
    /// It does not read for a while.
    Stalled { lasts: Duration },
    /// The client is gone and the network does not say so: the socket stays, and the client comes
    /// back by another.
    HalfOpen { lasts: Duration },
}

impl Mishap {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "client cut inside a frame",
            Self::Stalled { .. } => "client stalled",
            Self::HalfOpen { .. } => "client half open",
        }
    }
}

/// The mishaps of a run, without end: after a pause, to which client.
pub struct Mishaps {
    dice: Dice,
    tempo: Tempo,
    clients: usize,
}

impl Mishaps {
    pub fn new(seed: u64, tempo: Tempo, clients: usize) -> Self {
        Self { dice: Dice::new(seed, 2), tempo, clients }
    }
}

impl Iterator for Mishaps {
    type Item = (Duration, usize, Mishap);

    fn next(&mut self) -> Option<Self::Item> {
        let (short, long) = self.tempo.clients;
        let pause = self.dice.between(short, long);
        let (short, long) = self.tempo.stall;
        let lasts = self.dice.between(short, long);
        let mishap = match self.dice.below(4) {
            0 | 1 => Mishap::Cut { after: 1 + self.dice.below(300) },
            2 => Mishap::Stalled { lasts },
            _ => Mishap::HalfOpen { lasts },
        };
        Some((pause, self.dice.below(self.clients), mishap))
    }
}

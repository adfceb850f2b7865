//! What publishers sent and were told, and the verdict over all clients.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    breach::{Breaches, Kind},
    cast::Channel,
    position::Position,
    trace::{Course, Trace},
};

/// Whom an event is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    User(usize),
    Users(Vec<usize>),
    Group(usize),
    Broadcast,
}

impl To {
    pub fn channels(&self) -> Vec<Channel> {
        match self {
            Self::User(user) => vec![Channel::User(*user)],
            Self::Users(users) => users.iter().copied().map(Channel::User).collect(),
            Self::Group(group) => vec![Channel::Group(*group)],
            Self::Broadcast => vec![Channel::Broadcast],
        }
    }
}

/// The 202 of a publish.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub ids: Vec<(Channel, Position)>,
    /// When, in the order of all that was begun and accepted.
    order: u64,
    ms: u32,
    replica: usize,
}

/// One event that a back end wants delivered; its number is the mark in its data.
#[derive(Clone, Debug)]
pub struct Publication {
    pub to: To,
    /// Users who must not get it.
    pub except: Vec<usize>,
    pub accepted: Option<Accepted>,
    begun: u64,
}

/// What counts as a breach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Redis may lose the last of what it acknowledged: gaps may be announced then.
    pub forgetful: bool,
}

#[derive(Default)]
pub struct Ledger {
    pub publications: Vec<Publication>,
    /// Found while publishing.
    pub breaches: Breaches,
    /// Deaths of Redis, in the order of all that was begun and accepted.
    deaths: Vec<u64>,
    clock: u64,
}

impl Ledger {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A publish begins; its mark.
    pub fn begin(&mut self, to: To, except: Vec<usize>) -> u32 {
        let begun = self.tick();
        self.publications.push(Publication { to, except, accepted: None, begun });
        u32::try_from(self.publications.len() - 1).expect("fewer than 2^32 events")
    }

    /// The first 202 to it.
    pub fn accept(&mut self, mark: u32, ids: Vec<(Channel, Position)>, ms: u32, replica: usize) {
        let order = self.tick();
        let publication = &mut self.publications[mark as usize];
        publication.accepted = Some(Accepted { ids, order, ms, replica });
    }

    /// Redis died; what it knew of the last moments may be gone with it.
    pub fn redis_died(&mut self) {
        let order = self.tick();
        self.deaths.push(order);
    }

    /// Did Redis die since this publish was begun?
    pub fn redis_died_since(&self, mark: u32) -> bool {
        let begun = self.publications[mark as usize].begun;
        self.deaths.iter().any(|died| *died > begun)
    }

    fn redis_died_before_the_answer(&self, publication: &Publication) -> bool {
        let answered = publication.accepted.as_ref().map_or(u64::MAX, |accepted| accepted.order);
        self.deaths.iter().any(|died| (publication.begun..answered).contains(died))
    }

    /// The last accepted position of each channel.
    pub fn tops(&self) -> BTreeMap<Channel, Position> {
        let mut tops = BTreeMap::new();
        for (channel, at) in self.accepted().flat_map(|(_, accepted)| &accepted.ids) {
            let top: &mut Position = tops.entry(*channel).or_default();
            *top = (*top).max(*at);
        }
        tops
    }

    fn accepted(&self) -> impl Iterator<Item = (u32, &Accepted)> {
        let marks = 0_u32..;
        marks
            .zip(&self.publications)
            .filter_map(|(mark, publication)| Some((mark, publication.accepted.as_ref()?)))
    }

    /// The accepted events of each channel in the order of their ids.
    fn by_channel(&self) -> BTreeMap<Channel, Vec<(Position, u32)>> {
        let mut channels: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (mark, accepted) in self.accepted() {
            for (channel, at) in &accepted.ids {
                channels.entry(*channel).or_default().push((*at, mark));
            }
        }
        for events in channels.values_mut() {
            events.sort_unstable();
        }
        channels
    }
}

/// How often gaps of one cause were announced, and how many events were in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    pub gaps: u64,
    /// Missing, all told.
    pub events: u64,
    /// Of these, so many were missing already when the client had got later ones.
    pub late: u64,
}

/// How late an announcement may be. Where Redis lost an event and has taken in later ones before
/// the replica that published the lost one was back, clients get the later ones, then the word.
/// Some of them only get it when they come back themselves.
const LATEST: u32 = 60_000;

/// The outcome of a run.
#[derive(Debug, Default)]
pub struct Verdict {
    pub breaches: Breaches,
    pub gaps: BTreeMap<String, Announced>,
    /// Publishes that got a 202, and those that never did.
    pub accepted: u64,
    pub unanswered: u64,
    /// Events in channels that these publishes made.
    pub events: u64,
    /// Events that each client got.
    pub delivered: Vec<u64>,
    /// Publishes without a 202 of which some client got an event.
    pub unknown: BTreeSet<u32>,
    /// Publishes that became two events because Redis died and forgot the first attempt.
    pub forgotten: BTreeSet<u32>,
    pub skips: u64,
    pub resumes: u64,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.breaches.is_empty()
    }
}

/// Compares what was accepted with what each client got.
pub fn judge<'a>(
    ledger: &Ledger,
    traces: impl IntoIterator<Item = &'a Trace>,
    policy: Policy,
) -> Verdict {
    let mut verdict = Verdict { breaches: ledger.breaches.clone(), ..Verdict::default() };
    let channels = ledger.by_channel();
    verdict.accepted = ledger.accepted().count() as u64;
    verdict.unanswered = ledger.publications.len() as u64 - verdict.accepted;
    verdict.events = channels.values().map(|events| events.len() as u64).sum();
    for (channel, events) in &channels {
        in_order(ledger, *channel, events, &mut verdict.breaches);
    }
    for trace in traces {
        verdict.breaches.absorb(&trace.breaches);
        verdict.skips += trace.skips;
        verdict.resumes += trace.resumes;
        if !trace.begun() {
            verdict.breaches.add(Kind::Protocol, format!("{} was never welcomed", trace.seat));
        }
        let mut delivered = 0;
        for (channel, course) in &trace.courses {
            let events = channels.get(channel).map(Vec::as_slice).unwrap_or_default();
            let mut reading =
                Reading { ledger, trace, channel: *channel, policy, verdict: &mut verdict };
            delivered += reading.course(course, events);
        }
        verdict.delivered.push(delivered);
    }
    verdict
}

/// A publish that began after another's 202 comes after it in their channel.
fn in_order(
    ledger: &Ledger,
    channel: Channel,
    events: &[(Position, u32)],
    breaches: &mut Breaches,
) {
    let mut latest: Option<(u64, Position, u32)> = None;
    let mut before: Option<(Position, u32)> = None;
    for &(at, mark) in events {
        if let Some((_, twin)) = before.filter(|(before, _)| *before == at) {
            let what = format!("{channel}: {at} is the id of {twin} and of {mark}");
            breaches.add(Kind::Protocol, what);
        }
        before = Some((at, mark));
        let publication = &ledger.publications[mark as usize];
        let Some(accepted) = &publication.accepted else { continue };
        if let Some((_, earlier, other)) = latest.filter(|(begun, ..)| *begun > accepted.order) {
            let what = format!(
                "{channel}: {other} was published after the 202 to {mark}, and its id {earlier} is \
                 before {at}"
            );
            breaches.add(Kind::Overtaken, what);
        }
        if latest.is_none_or(|(begun, ..)| publication.begun > begun) {
            latest = Some((publication.begun, at, mark));
        }
    }
}

/// One client's way through one channel, beside the channel's accepted events.
struct Reading<'a> {
    ledger: &'a Ledger,
    trace: &'a Trace,
    channel: Channel,
    policy: Policy,
    verdict: &'a mut Verdict,
}

impl Reading<'_> {
    /// How many events came.
    fn course(&mut self, course: &Course, accepted: &[(Position, u32)]) -> u64 {
        let mut got = course.got.clone();
        got.sort_unstable_by_key(|receipt| receipt.at);
        let mut covered = vec![Announced::default(); course.gaps.len()];
        let from = accepted.partition_point(|(at, _)| *at <= course.start);
        let mut expected = accepted[from..].iter().peekable();
        let mut strange: BTreeMap<u32, u64> = BTreeMap::new();
        for receipt in &got {
            while let Some(&(at, mark)) = expected.next_if(|(at, _)| *at < receipt.at) {
                self.missing(course, at, mark, &mut covered);
            }
            match expected.next_if(|(at, _)| *at == receipt.at) {
                Some(&(at, mark)) if mark == receipt.mark => {
                    if self.excepted(mark) {
                        let what = format!("{at}, mark {mark}");
                        self.breach(Kind::Excepted, receipt.ms, &what);
                    }
                }
                Some(&(at, mark)) => {
                    let what = format!("{at} is the id of {mark}, but came with {}", receipt.mark);
                    self.breach(Kind::Stray, receipt.ms, &what);
                }
                None => {
                    let times = strange.entry(receipt.mark).or_default();
                    *times += 1;
                    let again = *times > 1;
                    self.not_accepted(receipt.mark, receipt.at, receipt.ms, again);
                }
            }
        }
        for &(at, mark) in expected {
            self.missing(course, at, mark, &mut covered);
        }
        for (gap, events) in course.gaps.iter().zip(covered) {
            let announced = self.verdict.gaps.entry(gap.cause.clone()).or_default();
            announced.gaps += 1;
            announced.events += events.events;
            announced.late += events.late;
            if !self.policy.forgetful {
                let events = events.events;
                let what = format!("{} to {}, {}, {events} events", gap.from, gap.to, gap.cause);
                self.breach(Kind::Announced, gap.ms, &what);
            }
        }
        got.len() as u64
    }

    fn excepted(&self, mark: u32) -> bool {
        self.ledger.publications[mark as usize].except.contains(&self.trace.seat.user)
    }

    fn missing(&mut self, course: &Course, at: Position, mark: u32, covered: &mut [Announced]) {
        if self.excepted(mark) {
            return;
        }
        let inside = course.gaps.iter().position(|gap| gap.from < at && at <= gap.to);
        if let Some(gap) = inside {
            covered[gap].events += 1;
            return;
        }
        let passed = course.got.iter().filter(|receipt| receipt.at > at).map(|got| got.ms).min();
        let late = passed.and_then(|passed| {
            let in_time = passed..=passed + LATEST;
            course.gaps.iter().position(|gap| at <= gap.to && in_time.contains(&gap.ms))
        });
        if let Some(gap) = late {
            covered[gap].events += 1;
            covered[gap].late += 1;
            return;
        }
        let Some(accepted) = &self.ledger.publications[mark as usize].accepted else { return };
        let last = course.got.iter().filter(|receipt| receipt.at < at).max_by_key(|got| got.at);
        let next = course.got.iter().filter(|receipt| receipt.at > at).min_by_key(|got| got.at);
        let tell = |receipt: Option<&super::trace::Receipt>| {
            receipt.map_or("none".to_owned(), |receipt| {
                format!("{} at {:.3} s", receipt.at, f64::from(receipt.ms) / 1000.0)
            })
        };
        let what = format!(
            "{at}, mark {mark}, accepted by replica {}; the client got before it {}, after it {}",
            accepted.replica,
            tell(last),
            tell(next),
        );
        self.breach(Kind::Lost, accepted.ms, &what);
    }

    /// An event under an id for which no publisher has a 202.
    fn not_accepted(&mut self, mark: u32, at: Position, ms: u32, again: bool) {
        let Some(publication) = self.ledger.publications.get(mark as usize) else {
            self.breach(Kind::Stray, ms, &format!("{at}: nobody published {mark}"));
            return;
        };
        if !publication.to.channels().contains(&self.channel) {
            self.breach(Kind::Stray, ms, &format!("{at}: {mark} is for {:?}", publication.to));
            return;
        }
        if self.excepted(mark) {
            self.breach(Kind::Excepted, ms, &format!("{at}, mark {mark}"));
        }
        if publication.accepted.is_none() && !again {
            self.verdict.unknown.insert(mark);
        } else if self.policy.forgetful && self.ledger.redis_died_before_the_answer(publication) {
            // The first attempt was published and then lost by Redis together with its idempotency
            // key, before the publisher had its answer: its retry is a new event.
            self.verdict.forgotten.insert(mark);
        } else {
            let ids = publication.accepted.as_ref().map(|accepted| &accepted.ids);
            let id = ids.and_then(|ids| ids.iter().find(|(channel, _)| *channel == self.channel));
            let id = id.map_or("none".to_owned(), |(_, id)| id.to_string());
            self.breach(Kind::Doubled, ms, &format!("{at}, mark {mark}; its 202 says {id}"));
        }
    }

    fn breach(&mut self, kind: Kind, ms: u32, what: &str) {
        let at = f64::from(ms) / 1000.0;
        let what = format!("{at:8.3} s, {}, {}: {what}", self.trace.seat, self.channel);
        self.verdict.breaches.add(kind, what);
    }
}

//! What a connection has to read before it can go live: where it begins, and page after page of
//! what it missed.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Semaphore;

use super::{Ask, BusError, History, PAGE};
use crate::{
    event::{Channel, Cursor, Position, Tag},
    history::{Claim, Proof, Reading},
    registry::{
        Start,
        tracks::{Before, Held, Hold, Tracks},
    },
};

/// Replays that read from the broker at once; more wait, so that a wave of reconnects does not
/// crowd out what is published.
const READERS: usize = 64;
/// A channel that a cursor does not name is replayed from so long before the cursor's newest
/// moment (contract §4).
const BEFORE: u64 = 10_000;
/// Events of a whole history that are read in one go, as long as they are small: whoever reads it
/// stands in line with all those who read pages for themselves until the ring is there.
const STRIDE: usize = 8 * PAGE;
/// So many bytes in one go are small: twice as many take no connection to the broker for long.
const SMALL: usize = 256 * 1024;
/// Tries to read a whole history for a ring, while events go on coming.
const TRIES: usize = 5;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing: it begins now.
    Now,
    /// What follows this cursor.
    After(Cursor),
    /// Something that cannot be read: nothing is proven to it.
    Unreadable,
}

impl Since {
    /// Reads what the client sent, if anything.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None | Some("") => Self::Now,
            Some(text) => Cursor::parse(text).map_or(Self::Unreadable, Self::After),
        }
    }
}

/// Where a connection begins.
#[derive(Debug)]
pub struct Opening {
    /// In each channel, in the order in which they were asked for.
    pub starts: Vec<Start>,
    /// Everything after the client's cursor follows; `None`: it asked for nothing.
    pub resumed: Option<bool>,
    /// The channels where that cannot be proven.
    pub lost: Vec<Tag>,
    /// What the client begins with; empty where nothing is kept.
    pub cursor: Cursor,
}

/// See the module. Shared by all workers.
pub struct Replays {
    history: Arc<dyn History>,
    tracks: Arc<Tracks>,
    readers: Semaphore,
    /// Channels whose rings are being loaded; others read for themselves meanwhile.
    loading: Mutex<HashSet<Channel>>,
}

impl Replays {
    /// Reads from this history.
    #[must_use]
    pub fn new(history: Arc<dyn History>, tracks: Arc<Tracks>) -> Self {
        Self { history, tracks, readers: Semaphore::new(READERS), loading: Mutex::default() }
    }

    /// Finds out where a connection begins in each of its channels, in one round trip to the
    /// broker at most. From here on, what is published there is not missed.
    ///
    /// # Errors
    /// The broker is away.
    pub async fn open(&self, channels: &[Channel], since: &Since) -> Result<Opening, BusError> {
        let holds: Vec<Hold> = channels.iter().map(|channel| self.tracks.hold(channel)).collect();
        if !self.history.keeps() {
            let asked = *since != Since::Now;
            let lost = channels.iter().filter(|_| asked).map(Tag::of).collect();
            let start = |hold| Start { hold, at: Position::ZERO, upto: Position::ZERO };
            return Ok(Opening {
                starts: holds.into_iter().map(start).collect(),
                resumed: asked.then_some(false),
                lost,
                cursor: Cursor::default(),
            });
        }
        let claims: Vec<Option<Claim>> =
            channels.iter().map(|channel| claim(channel, since)).collect();
        let (readings, lasts) = self.readings(&holds, &claims).await?;
        let mut opening = Opening {
            starts: Vec::with_capacity(holds.len()),
            resumed: None,
            lost: Vec::new(),
            cursor: Cursor::default(),
        };
        let read = readings.into_iter().zip(lasts);
        for ((hold, claim), (reading, last)) in holds.into_iter().zip(claims).zip(read) {
            let now = match &reading {
                Some(reading) => {
                    let position = reading.position(hold.channel());
                    hold.start(position);
                    self.tracks.learn_epoch(reading.epoch);
                    self.tracks.renew(hold.channel(), position);
                    hold.beginning().unwrap_or(position)
                }
                None => hold.position().unwrap_or_default(),
            };
            let claim = claim.zip(reading.as_ref()).map(|(claim, reading)| within(claim, reading));
            let whole = match (claim, &reading) {
                (Some(claim), Some(reading)) => {
                    reading.proof(hold.channel(), claim) == Proof::Whole
                }
                (Some(_), None) | (None, _) => false,
            };
            let tag = Tag::of(hold.channel());
            let at = match (claim, &reading) {
                // A moment is no place, and nothing could be proven from it later.
                (Some(Claim::Moment(_)), Some(reading)) if whole => reading.begin(hold.channel()),
                (Some(claim), _) if whole => claim.at(),
                _ => now,
            };
            if !whole && *since != Since::Now {
                opening.lost.push(tag.clone());
            }
            opening.cursor.set(tag, at);
            let upto = last.filter(|_| whole).unwrap_or_default();
            opening.starts.push(Start { hold, at, upto });
        }
        opening.resumed = (*since != Since::Now).then_some(opening.lost.is_empty());
        Ok(opening)
    }

    /// The readings that are needed: for what a client claims, and for channels of which nothing
    /// is known on this replica. With each, the channel's last id: a ring has the events, but may be
    /// a moment behind it.
    async fn readings(
        &self,
        holds: &[Hold],
        claims: &[Option<Claim>],
    ) -> Result<(Vec<Option<Reading>>, Vec<Option<Position>>), BusError> {
        let mut lasts = vec![None; holds.len()];
        let mut readings: Vec<Option<Reading>> = Vec::with_capacity(holds.len());
        let mut asks = Vec::new();
        for (hold, claim) in holds.iter().zip(claims) {
            let channel = hold.channel();
            let after = claim.map(Claim::at);
            let ring = match after {
                Some(after) => {
                    self.load_ring(channel).await?;
                    self.in_ring(channel, after)
                }
                None => None,
            };
            if after.is_some() || hold.beginning().is_none() {
                let after = after.filter(|_| ring.is_none());
                asks.push(Ask { channel: channel.clone(), after, most: PAGE });
            }
            readings.push(ring);
        }
        if asks.is_empty() {
            return Ok((readings, lasts));
        }
        let asked: Vec<usize> = holds
            .iter()
            .enumerate()
            .filter(|(_, hold)| asks.iter().any(|ask| ask.channel == *hold.channel()))
            .map(|(n, _)| n)
            .collect();
        for (n, reading) in asked.into_iter().zip(self.history.begin(asks).await?) {
            if let (Some(slot), Some(last)) = (readings.get_mut(n), lasts.get_mut(n)) {
                *last = reading.last;
                slot.get_or_insert(reading);
            }
        }
        Ok((readings, lasts))
    }

    /// The next page after this place; it ends at `upto` at the earliest, if there is so much.
    ///
    /// # Errors
    /// The broker is away.
    pub async fn page(
        &self,
        channel: &Channel,
        after: Position,
        upto: Position,
    ) -> Result<Reading, BusError> {
        let enough = |reading: &Reading| reading.more || reading.last >= Some(upto);
        if let Some(reading) = self.in_ring(channel, after).filter(enough) {
            return Ok(reading);
        }
        let closed = |_| BusError::Away("this replica is ending".to_owned());
        let _reader = self.readers.acquire().await.map_err(closed)?;
        self.load_ring(channel).await?;
        match self.in_ring(channel, after).filter(enough) {
            Some(reading) => Ok(reading),
            None => self.read(channel, after, PAGE).await,
        }
    }

    async fn read(
        &self,
        channel: &Channel,
        after: Position,
        most: usize,
    ) -> Result<Reading, BusError> {
        let ask = Ask { channel: channel.clone(), after: Some(after), most };
        let mut readings = self.history.read(vec![ask]).await?;
        readings.pop().ok_or_else(|| BusError::Away("it has not answered".to_owned()))
    }

    /// A ring needs no other proof than the broker's data: what is in it was handed out here.
    fn in_ring(&self, channel: &Channel, after: Position) -> Option<Reading> {
        let Held { kept, more, last, before } = self.tracks.ring(channel, after, PAGE, now())?;
        let Before { epoch, silent_since } = before;
        Some(Reading { kept, more, last, epoch, silent_since, now: now() })
    }

    /// Reads the whole history of a channel, for all those who will ask for parts of it, unless
    /// that was done, is being done, or is not worth it.
    async fn load_ring(&self, channel: &Channel) -> Result<(), BusError> {
        let known = self.tracks.position(channel).is_some();
        if !known || !self.tracks.wants_ring(channel) || !self.loading().insert(channel.clone()) {
            return Ok(());
        }
        let _loading = Loading { replays: self, channel };
        self.fill_ring(channel).await
    }

    fn loading(&self) -> MutexGuard<'_, HashSet<Channel>> {
        // Every change is whole, so a poisoned lock is as good as new.
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fill_ring(&self, channel: &Channel) -> Result<(), BusError> {
        let mut history = Vec::new();
        let mut at = Position::ZERO;
        let (mut most, mut limit) = (PAGE, STRIDE);
        for _ in 0..TRIES {
            let Some(begun) = self.tracks.position(channel) else { break };
            let (last, before) = loop {
                let page = match self.read(channel, at, most).await {
                    Ok(page) => page,
                    Err(error) if most == PAGE => return Err(error),
                    // It may have been too much for the time that a reading has.
                    Err(_) => {
                        (most, limit) = (PAGE, PAGE);
                        continue;
                    }
                };
                at = page.kept.last().map_or(at, |last| last.at);
                let bytes: usize = page.kept.iter().map(|kept| kept.frame.len()).sum();
                most = if bytes < SMALL { limit.min(most * 2) } else { PAGE };
                history.extend(page.kept);
                if !page.more {
                    let Reading { last, epoch, silent_since, .. } = page;
                    break (last, Before { epoch, silent_since });
                }
            };
            self.tracks.set_ring(channel, history.clone(), last, begun, before);
            if !self.tracks.wants_ring(channel) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// A ring is being loaded, as long as this lives: whoever loads it may be dropped meanwhile.
struct Loading<'a> {
    replays: &'a Replays,
    channel: &'a Channel,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.replays.loading().remove(self.channel);
    }
}

/// Where the data began less than that time before a cursor's newest moment, it is asked for since
/// then.
fn within(claim: Claim, reading: &Reading) -> Claim {
    match claim {
        Claim::Moment(at) if at.ms < reading.epoch && at.ms + BEFORE >= reading.epoch => {
            Claim::Moment(Position::new(reading.epoch, 0))
        }
        claim => claim,
    }
}

/// What a client claims to have of a channel.
fn claim(channel: &Channel, since: &Since) -> Option<Claim> {
    let Since::After(cursor) = since else { return None };
    if let Some(at) = cursor.get(&Tag::of(channel)) {
        return Some(Claim::Client(at));
    }
    let newest = cursor.newest()?.min(now());
    Some(Claim::Moment(Position::new(newest.saturating_sub(BEFORE), 0)))
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures_util::future::{BoxFuture, FutureExt as _};

    use super::*;
    use crate::{
        bus::{
            Keep, Post, Posted, Publisher as _, envelope,
            memory::{Capacity, MemoryBus, MemoryFeed, MemoryPublisher},
        },
        event::UserId,
        registry::tracks::Source,
        testing::KEEPING,
    };

    const ALL: Channel = Channel::Broadcast;

    /// Nobody reads the feed: what is published is kept, and handed out where a test says so.
    struct Place {
        bus: Arc<MemoryPublisher>,
        tracks: Arc<Tracks>,
        replays: Replays,
        _feed: MemoryFeed,
    }

    impl Place {
        fn new() -> Self {
            let (bus, feed) = MemoryBus::new(Capacity::default(), KEEPING, Arc::default());
            let (bus, tracks) = (Arc::new(bus), Tracks::new(KEEPING));
            let replays = Replays::new(Arc::clone(&bus) as _, Arc::clone(&tracks));
            Self { bus, tracks, replays, _feed: feed }
        }

        async fn publish(&self) -> Position {
            let data = serde_json::value::RawValue::from_string("1".to_owned()).unwrap();
            let event = envelope::Event { kind: "t", data: &data, sender: None };
            let event = envelope::encode(&event, &[], false).unwrap();
            let post = Post { to: ALL, event, keep: Keep::Kept, once: None, online: None };
            match self.bus.post(vec![post]).await.pop() {
                Some(Ok(Posted::Done(receipt))) => receipt.at().unwrap(),
                other => panic!("{other:?}"),
            }
        }

        async fn hand_out(&self, after: Position) {
            let reading = self.replays.read(&ALL, after, PAGE).await.unwrap();
            for kept in &reading.kept {
                self.tracks.advance(&ALL, kept, Source::Live);
            }
        }
    }

    #[tokio::test]
    async fn what_was_published_and_not_handed_out_yet_is_replayed() {
        let place = Place::new();
        let channels = [Channel::User(UserId::new("alice").unwrap()), ALL];
        let opening = place.replays.open(&channels, &Since::Now).await.unwrap();
        let begin = opening.starts[1].at;
        place.publish().await;
        let second = place.publish().await;
        place.hand_out(begin).await;
        // The first one who asks has the ring loaded.
        let since = Since::After(opening.cursor.clone());
        assert_eq!(place.replays.open(&channels, &since).await.unwrap().resumed, Some(true));
        assert!(place.tracks.ring(&ALL, second, 9, 0).is_some());
        let third = place.publish().await;
        for at in [begin, second] {
            let mut cursor = opening.cursor.clone();
            cursor.set(Tag::Broadcast, at);
            let again = place.replays.open(&channels, &Since::After(cursor)).await.unwrap();
            assert_eq!((again.resumed, again.starts[1].upto), (Some(true), third), "{at}");
            let page = place.replays.page(&ALL, at, third).await.unwrap();
            assert_eq!(page.kept.last().unwrap().at, third, "{at}");
        }
    }

    /// Remembers how much it was asked for in each reading, and has no time for more than this.
    struct Counting {
        history: Arc<MemoryPublisher>,
        most: usize,
        asked: Mutex<Vec<usize>>,
    }

    impl History for Counting {
        fn keeps(&self) -> bool {
            true
        }

        fn read(&self, asks: Vec<Ask>) -> BoxFuture<'_, Result<Vec<Reading>, BusError>> {
            self.asked.lock().unwrap().extend(asks.iter().map(|ask| ask.most));
            if asks.iter().any(|ask| ask.most > self.most) {
                return ready(Err(BusError::Away("too slow".to_owned()))).boxed();
            }
            self.history.read(asks)
        }

        fn erase<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Result<(), BusError>> {
            self.history.erase(user)
        }
    }

    #[tokio::test]
    async fn a_ring_of_small_events_is_read_in_long_strides_where_there_is_time_for_them() {
        for (most, asked) in [
            (STRIDE, vec![PAGE, 2 * PAGE, 4 * PAGE]),
            (2 * PAGE, vec![PAGE, 2 * PAGE, 4 * PAGE, PAGE, PAGE]),
        ] {
            let place = Place::new();
            let _opening = place.replays.open(&[ALL], &Since::Now).await.unwrap();
            let begin = place.tracks.position(&ALL).unwrap();
            let mut last = begin;
            for _ in 0..290 {
                last = place.publish().await;
            }
            place.tracks.jump(&ALL, last);
            let counting = Arc::new(Counting { history: place.bus, most, asked: Mutex::default() });
            let replays = Replays::new(Arc::clone(&counting) as _, Arc::clone(&place.tracks));
            let page = replays.page(&ALL, begin, last).await.unwrap();
            assert_eq!((page.kept.len(), page.more), (PAGE, true));
            assert!(place.tracks.ring(&ALL, begin, 9, 0).is_some());
            assert_eq!(*counting.asked.lock().unwrap(), asked);
        }
    }

    #[tokio::test]
    async fn a_channel_that_is_not_named_begins_shortly_before() {
        let place = Place::new();
        let alice = Channel::User(UserId::new("alice").unwrap());
        let channels = [alice.clone(), ALL];
        let opening = place.replays.open(&channels, &Since::Now).await.unwrap();
        let at = place.publish().await;
        let only = Cursor::from_iter([(Tag::User, opening.cursor.get(&Tag::User).unwrap())]);
        let again = place.replays.open(&channels, &Since::After(only)).await.unwrap();
        assert_eq!(again.resumed, Some(true));
        assert!(again.starts[1].at < at);
        // What it was given to begin with is as good as any other cursor.
        let since = Since::After(again.cursor);
        let again = place.replays.open(&channels, &since).await.unwrap();
        assert_eq!(again.resumed, Some(true), "{since:?}");
        let future = Cursor::from_iter([(Tag::User, Position::new(u64::MAX, 0))]);
        let again = place.replays.open(&channels, &Since::After(future)).await.unwrap();
        assert_eq!(again.lost, [Tag::User]);
        assert!(again.starts.iter().all(|start| start.at <= at));
    }
}

//! What is kept on Redis when Redis is full, forgetful, without a right, restarted or replaced.

use super::*;
use crate::{
    bus::{
        Incoming, Message,
        suite::{SOON, eventually, probe},
    },
    history::Bounds,
    testing::RedisServer,
};

async fn with(bounds: Bounds) -> Bus {
    Bus::on(RedisServer::running().await, "", bounds).ready().await
}

impl Bus {
    async fn says(&mut self, words: &[&str]) -> String {
        self.server().command(words).await
    }

    /// All keys and what they hold, to see that nothing has changed.
    async fn everything(&mut self) -> String {
        const ALL: &str = "local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  if key ~= 'ws:epoch' then
    local held = redis.call('TYPE', key).ok == 'stream'
      and cjson.encode(redis.call('XRANGE', key, '-', '+')) or redis.call('GET', key)
    all[#all + 1] = key .. '=' .. held
  end
end
table.sort(all)
return table.concat(all, ' ')";
        self.says(&["EVAL", ALL, "0"]).await
    }
}

fn refused(answer: &Result<Posted, BusError>, why: &str) {
    assert!(matches!(answer, Err(BusError::Refused(said)) if said.contains(why)), "{answer:?}");
}

fn short() -> Bounds {
    Bounds { ttl: Duration::from_millis(300), ..BOUNDS }
}

#[tokio::test]
async fn a_last_id_outlives_its_event() {
    let mut bus = with(short()).await;
    let first = bus.keep(alice(), "1").await;
    assert_eq!(bus.read(alice(), Some(Position::ZERO), 9).await.kept.len(), 1);
    let server = bus.server();
    eventually("the stream is gone", SOON, || async {
        server.command(&["EXISTS", "ws:user:alice"]).await == ":0\r\n"
    })
    .await;
    let reading = bus.read(alice(), Some(first), 9).await;
    assert_eq!((reading.kept.len(), reading.last), (0, Some(first)));
    assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Whole);
    let second = bus.keep(alice(), "2").await;
    let reading = bus.read(alice(), Some(first), 9).await;
    assert_eq!((reading.kept[0].at, reading.kept[0].prev), (second, first));
}

#[tokio::test]
async fn a_clock_behind_the_last_id_still_makes_later_ones() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    let far = Position::new(first.ms + 3_600_000, 7);
    bus.says(&["SET", "ws:last:user:alice", &format!("{far} 0 0")]).await;
    let next = bus.keep(alice(), "2").await;
    assert_eq!(next, Position::new(far.ms, 8));
    assert_eq!(bus.keep(alice(), "3").await, Position::new(far.ms, 9));
    let reading = bus.read(alice(), Some(far), 9).await;
    assert_eq!(reading.kept[0].prev, far);
    assert_eq!(reading.proof(&alice(), Claim::Client(far)), Proof::Whole);
}

/// A channel without a last id begins after the epoch, whatever the clock says.
#[tokio::test]
async fn ids_are_later_than_the_epoch() {
    let mut bus = with(BOUNDS).await;
    let now = bus.read(alice(), None, 0).await.now;
    bus.says(&["SET", "ws:epoch", &(now + 3_600_000).to_string()]).await;
    let given = bus.read(alice(), None, 0).await.position(&alice());
    let at = bus.keep(alice(), "1").await;
    assert_eq!(at, Position::new(now + 3_600_001, 0));
    assert!(at > given);
}

#[tokio::test]
async fn a_lost_last_id_is_found_in_the_stream() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    bus.says(&["DEL", "ws:last:user:alice"]).await;
    assert_eq!(bus.read(alice(), None, 0).await.last, Some(first));
    bus.keep(alice(), "2").await;
    assert_eq!(bus.read(alice(), Some(first), 9).await.kept[0].prev, first);
    bus.says(&["DEL", "ws:last:user:alice"]).await;
    bus.history.erase(&UserId::new("alice").unwrap()).await.unwrap();
    assert!(bus.read(alice(), None, 0).await.last.unwrap() > first);
}

#[tokio::test]
async fn after_a_flush_nothing_from_before_is_whole() {
    let mut bus = with(BOUNDS).await;
    let quiet = bus.read(user("bob"), None, 0).await;
    let given = quiet.position(&user("bob"));
    let first = bus.keep(alice(), "1").await;
    let epoch = bus.read(alice(), None, 0).await.epoch;
    assert!(epoch < first.ms);
    // Within the same millisecond the same id would be given out again.
    while bus.read(alice(), None, 0).await.now <= first.ms {}
    bus.says(&["FLUSHALL"]).await;
    // An event before anyone reads: still not before the epoch.
    let next = bus.keep(alice(), "2").await;
    let reading = bus.read(alice(), Some(first), 9).await;
    assert!(reading.epoch > epoch && reading.epoch < next.ms, "{reading:?}");
    assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Lost(0));
    let after = bus.read(alice(), Some(next), 9).await;
    assert_eq!(after.proof(&alice(), Claim::Client(next)), Proof::Whole);
    let bob = bus.read(user("bob"), Some(given), 9).await;
    assert_eq!(bob.proof(&user("bob"), Claim::Client(given)), Proof::Lost(0));
}

#[tokio::test]
async fn a_full_redis_refuses_and_nothing_is_half_done() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    bus.event().await;
    let before = bus.everything().await;
    bus.says(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let request = Post { once: Some(once("k", "f")), ..post(alice(), "2") };
    refused(&bus.post(request.clone()).await, "OOM");
    refused(&bus.post(post(user("new"), "2")).await, "OOM");
    let transient = Post { keep: Keep::Transient, ..request.clone() };
    refused(&bus.post(transient).await, "OOM");
    assert!(bus.publisher.is_up());
    bus.is_silent().await;
    assert_eq!(bus.everything().await, before);
    bus.says(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert!(!bus.done(request).await.again);
    assert_eq!(bus.read(alice(), Some(first), 9).await.kept[0].prev, first);
}

#[tokio::test]
async fn a_missing_right_refuses_and_nothing_is_half_done() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    bus.event().await;
    let before = bus.everything().await;
    for (take, give) in [
        (&["-publish"][..], &["+publish"][..]),
        (&["-xadd"][..], &["+xadd"][..]),
        (&["-set"][..], &["+set"][..]),
        (&["-pexpire"][..], &["+pexpire"][..]),
    ] {
        let rule = |words: &[&'static str]| [&["ACL", "SETUSER", "default"][..], words].concat();
        assert_eq!(bus.says(&rule(take)).await, "+OK\r\n");
        let request = Post { once: Some(once("k", "f")), ..post(alice(), "2") };
        refused(&bus.post(request.clone()).await, "user executing the script");
        refused(&bus.post(post(user("new"), "2")).await, "user executing the script");
        let refused = bus.publisher.probe(probe(Destination::UserProbe)).await;
        let Err(BusError::Refused(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("rights") && why.contains("&ws:user:*"), "{why}");
        assert!(bus.publisher.is_up());
        assert_eq!(bus.says(&rule(give)).await, "+OK\r\n");
        bus.is_silent().await;
        // The last id may bear the one that was taken back.
        let last = bus.says(&["GET", "ws:last:user:alice"]).await;
        assert!(last.contains(&format!("{first} ")), "{last}");
        let after = bus.everything().await;
        let kept = |all: &str| all.split(' ').filter(|part| !part.contains("last:")).count();
        assert_eq!(kept(&after), kept(&before) + usize::from(after.contains("0 1")), "{after}");
    }
    assert_eq!(bus.keep(alice(), "3").await, bus.read(alice(), None, 0).await.last.unwrap());
    let reading = bus.read(alice(), Some(first), 9).await;
    assert_eq!((reading.kept.len(), reading.kept[0].prev), (1, first));
    assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Whole);
}

/// The id of an event that was taken back is not given out again, though the clock stands still.
#[tokio::test]
async fn what_was_taken_back_does_not_block_the_channel() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    let far = Position::new(first.ms + 3_600_000, 0);
    bus.says(&["XADD", "ws:user:alice", &far.to_string(), "m", "x"]).await;
    bus.says(&["SET", "ws:last:user:alice", &format!("{far} 0 0")]).await;
    bus.says(&["ACL", "SETUSER", "default", "resetchannels", "&ws:control"]).await;
    refused(&bus.post(post(alice(), "2")).await, "user executing the script");
    bus.says(&["ACL", "SETUSER", "default", "allchannels"]).await;
    assert_eq!(bus.keep(alice(), "3").await, Position::new(far.ms, 2));
    assert_eq!(bus.read(alice(), Some(far), 9).await.kept[0].prev, far);
}

#[tokio::test]
async fn a_read_only_redis_refuses_and_is_left() {
    let mut bus = with(BOUNDS).await;
    let other = RedisServer::running().await;
    bus.says(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    refused(&bus.post(Post { keep: Keep::Transient, ..post(alice(), "1") }).await, "READONLY");
    assert!(bus.post(post(alice(), "1")).await.is_err());
    assert!(!bus.publisher.is_up());
    bus.says(&["REPLICAOF", "NO", "ONE"]).await;
    bus.up().await;
    bus.keep(alice(), "2").await;
}

/// What the version before this one has written, and publishes.
#[tokio::test]
async fn the_version_before_is_understood() {
    let mut bus = with(BOUNDS).await;
    bus.says(&["SET", "ws:idempotency:k", "f {}", "PX", "300000"]).await;
    let request = Post { once: Some(once("k", "f")), ..post(alice(), "1") };
    let receipt = bus.done(request).await;
    assert_eq!(receipt, Receipt { again: true, ..Receipt::default() });
    let other = Post { once: Some(once("k", "g")), ..post(alice(), "1") };
    assert_eq!(bus.post(other).await.unwrap(), Posted::Conflict);
    bus.says(&["PUBLISH", "ws:user:alice", r#"{"belfry":{"v":1},"type":"t","data":1}"#]).await;
    assert_eq!(bus.event().await.1, None);
    bus.is_silent().await;
}

#[tokio::test]
async fn every_key_of_an_event_ends() {
    let mut bus = with(BOUNDS).await;
    let request =
        Post { once: Some(once("k", "f")), online: Some([].into()), ..post(alice(), "1") };
    bus.done(request).await;
    bus.read(alice(), None, 0).await;
    bus.publisher.probe(probe(Destination::GroupProbe)).await.unwrap();
    let ttl = |millis: &str| millis.trim_start_matches(':').trim().parse::<i64>().unwrap();
    let hour = 3_600_000;
    for (key, most) in [
        ("ws:user:alice", hour),
        ("ws:last:user:alice", 24 * hour),
        ("ws:epoch", 24 * hour),
        ("ws:pulse", 24 * hour),
        ("ws:idempotency:k", 300_000),
    ] {
        let left = ttl(&bus.says(&["PTTL", key]).await);
        assert!(left > most - 60_000 && left <= most, "{key}: {left}");
    }
    assert_eq!(bus.says(&["DBSIZE"]).await, ":5\r\n");
    // The epoch is renewed by whoever reads.
    bus.says(&["PEXPIRE", "ws:epoch", "1000"]).await;
    bus.read(alice(), None, 0).await;
    assert!(ttl(&bus.says(&["PTTL", "ws:epoch"]).await) > hour);
}

#[tokio::test]
async fn old_events_go_by_their_age() {
    let mut bus = with(Bounds { ttl: Duration::from_secs(3_600), ..BOUNDS }).await;
    let now = bus.read(alice(), None, 0).await.now;
    for n in 0..250 {
        let id = format!("{}-{n}", now - 7_200_000);
        bus.says(&["XADD", "ws:user:alice", &id, "c", "1", "m", "old"]).await;
    }
    bus.keep(alice(), "1").await;
    let left = bus.says(&["XLEN", "ws:user:alice"]).await;
    let left: usize = left.trim_start_matches(':').trim().parse().unwrap();
    assert!(left < 110, "whole nodes of the stream go: {left}");
}

/// Small events after many big ones: the bytes are those that are kept, not those that ever were.
#[tokio::test]
async fn bytes_are_counted_as_they_are_kept() {
    let bus = with(Bounds { events: 100, bytes: 64 * 1024, ..BOUNDS }).await;
    for n in 0..3_000 {
        bus.keep(alice(), &format!("\"{n:0>width$}\"", width = n % 700)).await;
    }
    let reading = bus.read(alice(), Some(Position::ZERO), 10_000).await;
    let bytes: usize = reading.kept.iter().map(|kept| kept.frame.len()).sum();
    assert!((16_000..=64 * 1024).contains(&bytes), "{bytes} in {}", reading.kept.len());
    let big = format!("\"{}\"", "x".repeat(70_000));
    let at = bus.keep(alice(), &big).await;
    let reading = bus.read(alice(), Some(Position::ZERO), 10_000).await;
    assert_eq!((reading.kept.len(), reading.last), (0, Some(at)), "larger than all of it");
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_shown_them() {
    let mut bus = with(BOUNDS).await;
    assert!(bus.says(&["INFO", "memory"]).await.contains("number_of_cached_scripts:3"));
    for n in 0..3 {
        bus.says(&["SCRIPT", "FLUSH"]).await;
        let posts = (0..10).map(|m| post(alice(), &(n * 10 + m).to_string())).collect();
        for answer in bus.publisher.post(posts).await {
            answer.unwrap();
        }
        bus.says(&["SCRIPT", "FLUSH"]).await;
        assert_eq!(bus.read(alice(), Some(Position::ZERO), 99).await.kept.len(), (n + 1) * 10);
    }
    for n in 0..30 {
        assert!(bus.event().await.2.ends_with(&format!(":{n}}}")), "{n}");
    }
}

#[tokio::test]
async fn a_policy_that_evicts_proves_nothing_and_is_told() {
    let mut server = RedisServer::absent();
    server.start().await;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let mut bus = Bus::on(server, "", BOUNDS).ready().await;
    assert!(bus.publisher.warning().unwrap().contains("allkeys-lru"));
    let reading = bus.read(alice(), None, 0).await;
    assert_eq!(reading.silent_since, u64::MAX);
    let given = reading.position(&alice());
    assert_eq!(reading.proof(&alice(), Claim::Client(given)), Proof::Lost(0));
    let at = bus.keep(alice(), "1").await;
    let reading = bus.read(alice(), Some(at), 9).await;
    assert_eq!(reading.proof(&alice(), Claim::Client(at)), Proof::Whole, "a key that is there");
    bus.says(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    bus.says(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    eventually("the next connection sees it", SOON, || async {
        bus.publisher.is_up() && bus.publisher.warning().is_none()
    })
    .await;
}

/// A server that answers no INFO is trusted.
#[tokio::test]
async fn without_info_it_works_all_the_same() {
    let mut bus = Bus::on(RedisServer::absent(), "", BOUNDS);
    bus.server().start().await;
    bus.says(&["ACL", "SETUSER", "default", "-info", "-script"]).await;
    let bus = bus.ready().await;
    assert_eq!(bus.publisher.warning(), None);
    bus.keep(alice(), "1").await;
}

/// Reads until the subscription stands again, and the publisher is up.
async fn back(bus: &mut Bus) -> Vec<(Position, Position)> {
    bus.up().await;
    let mut events = Vec::new();
    bus.publish(&Destination::Control, "marker").await.unwrap();
    let mut again = false;
    loop {
        match bus.next().await {
            Incoming::Message { payload, .. } if payload == "marker" => return events,
            Incoming::Message { payload, .. } => {
                if let Ok(envelope::Decoded::Event { place: Some((_, at, prev)), .. }) =
                    envelope::decode(&payload)
                {
                    events.push((at, prev));
                }
            }
            Incoming::Subscribed { .. } => {
                again = true;
                bus.publish(&Destination::Control, "marker").await.unwrap();
            }
            Incoming::Lost(_) => {}
            other => panic!("{other:?} {again}"),
        }
    }
}

impl Bus {
    /// Ends the server as a crash would, and starts it with the data it saved last.
    async fn crash(&mut self) {
        self.server().kill();
        let publisher = Arc::clone(&self.publisher);
        eventually("its loss is noticed", SOON, || async { !publisher.is_up() }).await;
        self.server().start().await;
    }
}

#[tokio::test]
async fn what_redis_lost_is_put_back_under_its_own_id() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    bus.says(&["SAVE"]).await;
    let second = bus.keep(alice(), "2").await;
    let third = bus.keep(alice(), "3").await;
    let other = bus.keep(Channel::Broadcast, "4").await;
    let before = bus.read(alice(), Some(Position::ZERO), 9).await;
    bus.crash().await;
    bus.up().await;
    let after = bus.read(alice(), Some(Position::ZERO), 9).await;
    let places = |reading: &Reading| -> Vec<_> {
        reading.kept.iter().map(|kept| (kept.at, kept.prev)).collect()
    };
    assert_eq!(places(&after), places(&before));
    assert_eq!(after.last, Some(third));
    let rest = bus.read(alice(), Some(first), 9).await;
    assert_eq!(rest.proof(&alice(), Claim::Client(first)), Proof::Whole);
    assert!(after.kept.iter().all(|kept| !kept.loss));
    let broadcast = bus.read(Channel::Broadcast, Some(Position::ZERO), 9).await;
    assert_eq!(broadcast.last, Some(other));
    // And once more: nothing was missing this time.
    bus.says(&["SAVE"]).await;
    bus.crash().await;
    bus.up().await;
    assert_eq!(places(&bus.read(alice(), Some(Position::ZERO), 9).await), places(&before));
    let next = bus.keep(alice(), "5").await;
    assert!(next > third && second < third);
}

/// More is lost than anyone remembers, and what is left looks whole: all of it begins anew.
#[tokio::test]
async fn a_redis_that_went_far_back_proves_nothing_from_before() {
    let mut bus = with(BOUNDS).await;
    let probe =
        || Message { to: Destination::Control, payload: envelope::encode_probe("r:1").unwrap() };
    let first = bus.keep(alice(), "1").await;
    bus.publisher.probe(probe()).await.unwrap();
    bus.says(&["SAVE"]).await;
    for (away, whole) in [(0, true), (6, false)] {
        let lost = bus.keep(alice(), "2").await;
        for _ in 0..away {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bus.publisher.probe(probe()).await.unwrap();
        }
        bus.crash().await;
        bus.up().await;
        let after = bus.read(alice(), Some(first), 9).await;
        let proof = after.proof(&alice(), Claim::Client(first));
        assert_eq!(proof == Proof::Whole, whole, "{away} {after:?}");
        assert_eq!(after.kept.iter().any(|kept| kept.at == lost), whole, "{away}");
    }
    let next = bus.keep(alice(), "3").await;
    let after = bus.read(alice(), Some(next), 9).await;
    assert_eq!(after.proof(&alice(), Claim::Client(next)), Proof::Whole, "it goes on from there");
}

/// Longer than events are remembered while all is well; and the subscriber's probes go over the new
/// connection while it is still being set up.
#[tokio::test]
async fn what_redis_lost_is_put_back_after_a_long_outage() {
    let mut bus = with(BOUNDS).await;
    bus.keep(alice(), "0").await;
    bus.says(&["SAVE"]).await;
    let posts: Vec<Post> = (0..3_000).map(|n| post(user(&format!("user-{n}")), "1")).collect();
    assert!(bus.publisher.post(posts).await.iter().all(Result::is_ok));
    bus.server().kill();
    let publisher = Arc::clone(&bus.publisher);
    eventually("its loss is noticed", SOON, || async { !publisher.is_up() }).await;
    tokio::time::sleep(Duration::from_millis(5_200)).await;
    let probing = tokio::spawn(async move {
        let payload = envelope::encode_probe("r:1").unwrap();
        loop {
            let message = Message { to: Destination::Control, payload: payload.clone() };
            // It fails until there is a server.
            drop(publisher.probe(message).await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    bus.server().start().await;
    bus.up().await;
    probing.abort();
    for n in [0, 1_500, 2_999] {
        let reading = bus.read(user(&format!("user-{n}")), Some(Position::ZERO), 9).await;
        assert_eq!(reading.kept.len(), 1, "{n}");
    }
}

/// Another replica has published in the meantime, without knowing of the lost event.
#[tokio::test]
async fn a_loss_that_cannot_be_mended_is_kept_as_word_of_it() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    bus.says(&["SAVE"]).await;
    let lost = bus.keep(alice(), "2").await;
    let trimmed = bus.keep(user("bob"), "2").await;
    let only = bus.keep(user("carol"), "2").await;
    // While this replica cannot connect, another does.
    bus.server().kill();
    let publisher = Arc::clone(&bus.publisher);
    eventually("its loss is noticed", SOON, || async { !publisher.is_up() }).await;
    bus.server().start_as("127.0.0.2", &[]).await;
    let newer = Position::new(lost.ms + 60_000, 0);
    let message = said("3").kept(&Tag::User, newer, first, None);
    let message = std::str::from_utf8(&message).unwrap();
    // What others put there shows nothing, neither before an event nor where there is none.
    let strange = Position::new(lost.ms + 30_000, 0).to_string();
    for channel in ["ws:user:alice", "ws:user:carol"] {
        bus.says(&["XADD", channel, &strange, "m", "garbage"]).await;
    }
    bus.says(&["XADD", "ws:user:alice", &newer.to_string(), "c", "900", "m", message]).await;
    bus.says(&["SET", "ws:last:user:alice", &format!("{newer} 900 0")]).await;
    // Of this one a later event shows that it was there.
    let later = Position::new(trimmed.ms + 60_000, 0);
    let message = said("3").kept(&Tag::User, later, trimmed, None);
    let message = std::str::from_utf8(&message).unwrap();
    bus.says(&["XADD", "ws:user:bob", &later.to_string(), "c", "900", "m", message]).await;
    bus.says(&["SET", "ws:last:user:bob", &format!("{later} 900 0")]).await;
    bus.says(&["SAVE"]).await;
    bus.server().kill();
    bus.server().start().await;
    bus.up().await;
    let reading = bus.read(alice(), Some(first), 9).await;
    let losses: Vec<bool> = reading.kept.iter().map(|kept| kept.loss).collect();
    assert_eq!(losses, [false, true], "once, after what stood there");
    assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Whole);
    assert!(bus.read(user("bob"), Some(Position::ZERO), 9).await.kept.iter().all(|k| !k.loss));
    let reading = bus.read(user("carol"), Some(Position::ZERO), 9).await;
    assert!(reading.kept.iter().any(|kept| kept.loss && kept.at > only), "{reading:?}");
    // Said once, however often Redis restarts.
    bus.says(&["SAVE"]).await;
    bus.crash().await;
    bus.up().await;
    assert_eq!(bus.read(alice(), Some(first), 9).await.kept.len(), 2);
}

/// The data is younger than what was acknowledged: the epoch tells everyone.
#[tokio::test]
async fn an_empty_redis_is_told_by_its_epoch() {
    let mut bus = with(BOUNDS).await;
    let first = bus.keep(alice(), "1").await;
    bus.event().await;
    bus.crash().await;
    let again = back(&mut bus).await;
    assert_eq!(again, [], "nothing from before its data");
    let reading = bus.read(alice(), Some(first), 9).await;
    assert_eq!(reading.proof(&alice(), Claim::Client(first)), Proof::Lost(0));
    let next = bus.keep(alice(), "2").await;
    let reading = bus.read(alice(), Some(next), 9).await;
    assert_eq!(reading.proof(&alice(), Claim::Client(next)), Proof::Whole);
}

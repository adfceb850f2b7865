//! The delivery checker: that it can fail, and a short run of it.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use crate::checker::{
    breach::Kind,
    cast::{Channel, Seat, Size, Transport},
    faults::{Fault, Mishaps, Schedule, Tempo},
    ledger::{Announced, Ledger, Policy, To, Verdict, judge},
    position::{Position, parse_cursor, parse_id},
    report::report,
    run::{Plan, run},
    trace::{Moment, Told, Trace},
    world::{Fsync, Making},
};

const FORGETFUL: Policy = Policy { forgetful: true };
const STRICT: Policy = Policy { forgetful: false };

fn at(ms: u64) -> Position {
    Position { ms, n: 0 }
}

/// One client of user 0 without a group, and what was published to that user.
struct Scene {
    ledger: Ledger,
    trace: Trace,
    /// The time.
    ms: u32,
}

impl Scene {
    /// The client stands at 10 in its own channel and in the broadcast.
    fn new() -> Self {
        let seat = Seat { number: 0, user: 0, groups: Vec::new(), transport: Transport::WebSocket };
        let mut scene = Self { ledger: Ledger::default(), trace: Trace::new(seat), ms: 0 };
        scene.hears(&json!({"type": "belfry.welcome", "cursor": "u~10-0,b~10-0", "resumed": null}));
        scene
    }

    /// A publish to user 0 that is accepted under this id.
    fn accepted(&mut self, id: u64) -> u32 {
        let mark = self.ledger.begin(To::User(0), Vec::new());
        self.ledger.accept(mark, vec![(Channel::User(0), at(id))], 0, 0);
        mark
    }

    fn hears(&mut self, frame: &Value) {
        let moment = Moment { ms: self.ms, replica: 0, after: "a test" };
        assert_eq!(self.trace.hear(frame, moment), Told::GoOn);
    }

    fn gets(&mut self, prev: u64, id: u64, mark: u32) {
        let (prev, id) = (format!("u~{prev}-0"), format!("u~{id}-0"));
        self.hears(&json!({"id": id, "prev": prev, "type": "chaos", "data": {"mk": mark}}));
    }

    fn judge(&self, policy: Policy) -> Verdict {
        judge(&self.ledger, [&self.trace], policy)
    }

    /// The breaches, and no others.
    #[track_caller]
    fn is(&self, policy: Policy, expected: &[(Kind, u64)]) -> Verdict {
        let verdict = self.judge(policy);
        let found: Vec<_> = verdict.breaches.counts.iter().map(|(k, n)| (*k, *n)).collect();
        assert_eq!(found, expected, "{verdict:?}");
        assert_eq!(verdict.holds(), expected.is_empty());
        verdict
    }
}

#[test]
fn a_whole_history_holds() {
    let mut scene = Scene::new();
    let marks = [20, 30, 40].map(|id| scene.accepted(id));
    for (mark, (prev, id)) in marks.into_iter().zip([(0, 20), (20, 30), (30, 40)]) {
        scene.gets(prev, id, mark);
    }
    let verdict = scene.is(STRICT, &[]);
    assert_eq!((verdict.accepted, verdict.events, verdict.delivered), (3, 3, vec![3]));
}

#[test]
fn a_lost_event_is_found_also_where_the_chain_hides_it() {
    let mut scene = Scene::new();
    let marks = [20, 30, 40].map(|id| scene.accepted(id));
    scene.gets(10, 20, marks[0]);
    // As if 30 had never been.
    scene.gets(20, 40, marks[2]);
    scene.is(FORGETFUL, &[(Kind::Lost, 1)]);
}

#[test]
fn a_lost_event_at_the_end_is_found() {
    let mut scene = Scene::new();
    let first = scene.accepted(20);
    scene.accepted(30);
    scene.gets(10, 20, first);
    scene.is(FORGETFUL, &[(Kind::Lost, 1)]);
}

#[test]
fn a_hole_in_the_chain_is_found() {
    let mut scene = Scene::new();
    let marks = [20, 30, 40].map(|id| scene.accepted(id));
    scene.gets(10, 20, marks[0]);
    scene.gets(30, 40, marks[2]);
    scene.is(FORGETFUL, &[(Kind::Lost, 1), (Kind::Hole, 1)]);
}

#[test]
fn what_was_before_the_client_is_not_lost() {
    let mut scene = Scene::new();
    scene.accepted(5);
    scene.accepted(10);
    scene.is(STRICT, &[]);
}

#[test]
fn a_repeat_is_found() {
    let mut scene = Scene::new();
    let mark = scene.accepted(20);
    scene.gets(10, 20, mark);
    scene.gets(10, 20, mark);
    let verdict = scene.is(FORGETFUL, &[(Kind::Duplicated, 1)]);
    assert_eq!(verdict.delivered, [1]);
}

#[test]
fn a_repeat_after_a_resync_that_goes_back_is_found() {
    let mut scene = Scene::new();
    let mark = scene.accepted(20);
    scene.gets(10, 20, mark);
    let cursor = "u~15-0,b~10-0";
    scene.hears(&json!({"type": "belfry.resync", "lost": ["u"], "cursor": cursor}));
    scene.gets(15, 20, mark);
    scene.is(FORGETFUL, &[(Kind::Duplicated, 1)]);
}

#[test]
fn disorder_is_found() {
    let mut scene = Scene::new();
    let marks = [20, 30].map(|id| scene.accepted(id));
    scene.gets(10, 30, marks[1]);
    scene.gets(10, 20, marks[0]);
    scene.is(FORGETFUL, &[(Kind::OutOfOrder, 1)]);
}

#[test]
fn ids_that_do_not_follow_the_order_of_publishes_are_found() {
    let mut scene = Scene::new();
    let first = scene.accepted(30);
    let second = scene.accepted(20);
    scene.gets(10, 20, second);
    scene.gets(20, 30, first);
    scene.is(FORGETFUL, &[(Kind::Overtaken, 1)]);
}

#[test]
fn ids_of_publishes_at_the_same_time_may_be_in_either_order() {
    let mut scene = Scene::new();
    let first = scene.ledger.begin(To::User(0), Vec::new());
    let second = scene.ledger.begin(To::User(0), Vec::new());
    scene.ledger.accept(first, vec![(Channel::User(0), at(30))], 0, 0);
    scene.ledger.accept(second, vec![(Channel::User(0), at(20))], 0, 0);
    scene.gets(10, 20, second);
    scene.gets(20, 30, first);
    scene.is(STRICT, &[]);
}

#[test]
fn an_announced_gap_is_counted_with_its_cause_and_no_loss() {
    let mut scene = Scene::new();
    let marks = [20, 30, 40].map(|id| scene.accepted(id));
    scene.gets(10, 20, marks[0]);
    let resync = json!({
        "type": "belfry.resync", "lost": ["u"], "cursor": "u~30-0,b~10-0", "reason": "history",
    });
    scene.hears(&resync);
    scene.gets(30, 40, marks[2]);
    let verdict = scene.is(FORGETFUL, &[]);
    let gap = Announced { gaps: 1, events: 1, late: 0 };
    assert_eq!(
        verdict.gaps.into_iter().collect::<Vec<_>>(),
        [("resync (history) after a test".to_owned(), gap)]
    );
    // Where Redis forgets nothing there is no excuse.
    scene.is(STRICT, &[(Kind::Announced, 1)]);
}

#[test]
fn a_gap_covers_its_channel_and_its_part_only() {
    let mut scene = Scene::new();
    let first = scene.accepted(20);
    scene.accepted(30);
    scene.gets(10, 20, first);
    let resync = json!({"type": "belfry.resync", "lost": ["b"], "cursor": "u~20-0,b~99-0"});
    scene.hears(&resync);
    let resync = json!({"type": "belfry.resync", "lost": ["u"], "cursor": "u~25-0,b~99-0"});
    scene.hears(&resync);
    scene.is(FORGETFUL, &[(Kind::Lost, 1)]);
}

#[test]
fn a_gap_may_be_announced_a_little_later_and_not_much() {
    for (late, expected) in [(59_000, &[][..]), (61_000, &[(Kind::Lost, 1)])] {
        let mut scene = Scene::new();
        let marks = [20, 30, 40].map(|id| scene.accepted(id));
        scene.gets(10, 20, marks[0]);
        scene.ms = 1_000;
        scene.gets(20, 40, marks[2]);
        scene.ms += late;
        scene.hears(&json!({"type": "belfry.resync", "lost": ["u"], "cursor": "u~50-0,b~10-0"}));
        let verdict = scene.is(FORGETFUL, expected);
        let told = u64::from(expected.is_empty());
        let gap = Announced { gaps: 1, events: told, late: told };
        assert_eq!(verdict.gaps["resync (no reason) after a test"], gap);
    }
}

#[test]
fn a_gap_that_was_announced_before_is_no_excuse_for_a_loss() {
    let mut scene = Scene::new();
    scene.hears(&json!({"type": "belfry.resync", "lost": ["u"], "cursor": "u~25-0,b~10-0"}));
    scene.ms = 1_000;
    let marks = [30, 40].map(|id| scene.accepted(id));
    scene.gets(25, 40, marks[1]);
    scene.is(FORGETFUL, &[(Kind::Lost, 1)]);
}

#[test]
fn a_welcome_that_gives_a_channel_up_announces() {
    let mut scene = Scene::new();
    let marks = [20, 30, 40].map(|id| scene.accepted(id));
    scene.gets(10, 20, marks[0]);
    scene.trace.opens();
    scene.hears(&json!({
        "type": "belfry.welcome", "cursor": "u~30-0,b~10-0", "resumed": false, "lost": ["u"],
    }));
    scene.gets(30, 40, marks[2]);
    let verdict = scene.is(FORGETFUL, &[]);
    assert_eq!(verdict.gaps["welcome after a test"], Announced { gaps: 1, events: 1, late: 0 });
}

#[test]
fn a_welcome_that_moves_the_cursor_without_a_word_is_found() {
    let mut scene = Scene::new();
    scene.accepted(20);
    scene.trace.opens();
    scene.hears(&json!({"type": "belfry.welcome", "cursor": "u~20-0,b~10-0", "resumed": true}));
    scene.is(FORGETFUL, &[(Kind::Lost, 1), (Kind::Cursor, 1)]);
}

#[test]
fn a_welcome_that_contradicts_itself_is_found() {
    for (resumed, lost) in
        [(json!(null), json!([])), (json!(true), json!(["u"])), (json!(false), json!([]))]
    {
        let mut scene = Scene::new();
        scene.trace.opens();
        scene.hears(&json!({
            "type": "belfry.welcome", "cursor": "u~10-0,b~10-0", "resumed": resumed, "lost": lost,
        }));
        scene.is(FORGETFUL, &[(Kind::Protocol, 1)]);
    }
}

#[test]
fn a_cursor_that_is_not_where_the_client_is_is_found() {
    let mut scene = Scene::new();
    let mark = scene.accepted(20);
    scene.gets(10, 20, mark);
    let moment = Moment { ms: 0, replica: 0, after: "a test" };
    scene.trace.compare("b~10-0,u~20-0", moment);
    scene.is(STRICT, &[]);
    scene.trace.compare("u~10-0,b~10-0", moment);
    scene.is(FORGETFUL, &[(Kind::Cursor, 1)]);
}

#[test]
fn the_excepted_get_a_skip_and_nothing_else() {
    let mut scene = Scene::new();
    let mark = scene.ledger.begin(To::Broadcast, vec![0, 7]);
    scene.ledger.accept(mark, vec![(Channel::Broadcast, at(20))], 0, 0);
    scene.hears(&json!({"type": "belfry.skip", "id": "b~20-0", "prev": "b~10-0"}));
    scene.is(STRICT, &[]);

    let mut scene = Scene::new();
    let mark = scene.ledger.begin(To::Broadcast, vec![0, 7]);
    scene.ledger.accept(mark, vec![(Channel::Broadcast, at(20))], 0, 0);
    scene.hears(&json!({"id": "b~20-0", "prev": "b~10-0", "type": "chaos", "data": {"mk": mark}}));
    scene.is(FORGETFUL, &[(Kind::Excepted, 1)]);
}

#[test]
fn a_skip_in_place_of_an_event_is_a_loss() {
    let mut scene = Scene::new();
    scene.accepted(20);
    scene.hears(&json!({"type": "belfry.skip", "id": "u~20-0", "prev": "u~10-0"}));
    scene.is(FORGETFUL, &[(Kind::Lost, 1)]);
}

#[test]
fn what_nobody_published_is_found() {
    let mut scene = Scene::new();
    scene.gets(10, 20, 77);
    let other = scene.ledger.begin(To::User(1), Vec::new());
    scene.gets(20, 30, other);
    scene.hears(&json!({"type": "chaos", "data": {"mk": 1}}));
    scene.is(FORGETFUL, &[(Kind::Stray, 2), (Kind::Protocol, 1)]);
}

#[test]
fn an_event_under_another_events_id_is_found() {
    let mut scene = Scene::new();
    scene.accepted(20);
    let second = scene.accepted(30);
    scene.gets(10, 20, second);
    scene.gets(20, 30, second);
    scene.is(FORGETFUL, &[(Kind::Stray, 1)]);
}

#[test]
fn without_a_202_an_event_may_come_once() {
    let mut scene = Scene::new();
    let mark = scene.ledger.begin(To::User(0), Vec::new());
    scene.gets(10, 20, mark);
    let verdict = scene.is(STRICT, &[]);
    assert_eq!((verdict.unanswered, verdict.unknown.len()), (1, 1));
    scene.gets(20, 30, mark);
    scene.is(FORGETFUL, &[(Kind::Doubled, 1)]);
}

#[test]
fn one_publish_under_two_ids_is_found_unless_redis_died_meanwhile() {
    for (dies, policy, doubled) in
        [(false, FORGETFUL, true), (true, FORGETFUL, false), (true, STRICT, true)]
    {
        let mut scene = Scene::new();
        let mark = scene.ledger.begin(To::User(0), Vec::new());
        scene.gets(10, 20, mark);
        if dies {
            scene.ledger.redis_died();
        }
        scene.ledger.accept(mark, vec![(Channel::User(0), at(30))], 0, 0);
        scene.gets(20, 30, mark);
        let expected: &[_] = if doubled { &[(Kind::Doubled, 1)] } else { &[] };
        let verdict = scene.is(policy, expected);
        assert_eq!(verdict.forgotten.len(), usize::from(!doubled));
    }
}

#[test]
fn a_client_that_was_never_welcomed_is_found() {
    let mut scene = Scene::new();
    scene.trace = Trace::new(scene.trace.seat.clone());
    scene.is(STRICT, &[(Kind::Protocol, 1)]);
}

#[test]
fn an_event_before_the_welcome_is_found() {
    let mut scene = Scene::new();
    let mark = scene.accepted(20);
    scene.trace.opens();
    scene.gets(10, 20, mark);
    scene.is(STRICT, &[(Kind::Protocol, 1)]);
}

#[test]
fn positions_are_numbers_and_cursors_name_a_tag_once() {
    assert_eq!(parse_id("g=YQ~9-10"), Some(("g=YQ", Position { ms: 9, n: 10 })));
    assert!(Position { ms: 9, n: 9 } < Position { ms: 9, n: 10 });
    assert!(parse_id("u~9-10").map(|(_, at)| at) < parse_id("u~10-2").map(|(_, at)| at));
    for bad in ["", "u", "u~1", "u~1-", "u~+1-0", "u~1-0,", "u~1-0,u~2-0"] {
        assert_eq!(parse_cursor(bad), None, "{bad:?}");
    }
}

#[test]
fn the_same_seed_makes_the_same_faults() {
    let faults = |seed| Schedule::new(seed, TEMPO, 3, true).take(200).collect::<Vec<_>>();
    assert_eq!(faults(7), faults(7));
    assert_ne!(faults(7), faults(8));
    let mishaps = |seed| Mishaps::new(seed, TEMPO, 100).take(200).collect::<Vec<_>>();
    assert_eq!(mishaps(7), mishaps(7));
    assert_ne!(mishaps(7), mishaps(8));
}

#[test]
fn redis_and_a_replica_never_die_together() {
    for seed in 0..100 {
        let mut since = [Duration::from_secs(60); 2];
        for step in Schedule::new(seed, TEMPO, 3, true).take(100) {
            since = since.map(|since| since + step.pause);
            let (own, other) = match step.fault {
                Fault::RedisKilled { .. } | Fault::RedisLostTail { .. } => (0, 1),
                Fault::ReplicaKilled { .. } | Fault::ReplicaDrained { .. } => (1, 0),
                _ => continue,
            };
            assert!(since[other] >= Duration::from_secs(6), "seed {seed}: {step:?}");
            since[own] = Duration::ZERO;
        }
    }
}

#[test]
fn every_kind_of_fault_comes_and_none_that_forgets_where_nothing_may_be_lost() {
    for forgetful in [true, false] {
        let faults = Schedule::new(1, TEMPO, 3, forgetful).take(10);
        let mut names: Vec<_> = faults.map(|step| step.fault.name()).collect();
        names.truncate(9 + usize::from(forgetful));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 9 + usize::from(forgetful), "{names:?}");
        assert_eq!(names.contains(&"redis lost its last writes"), forgetful);
    }
}

/// The seed of the short run: Redis and a replica that may not die close to each other are far
/// apart in it, so all kinds of fault fit in.
const SEED: u64 = 4;

const SIZE: Size = Size {
    replicas: 3,
    users: 9,
    groups: 2,
    websockets: 14,
    event_streams: 6,
    publishers: 4,
    rate: 40,
    heartbeat: Duration::from_secs(2),
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const TEMPO: Tempo = Tempo {
    pause: (ms(700), ms(1_500)),
    outage: (ms(200), ms(1_800)),
    clients: (ms(300), ms(1_000)),
    stall: (ms(2_000), ms(6_000)),
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_in_a_short_run() {
    let plan = Plan {
        seed: SEED,
        size: SIZE,
        tempo: TEMPO,
        duration: Duration::from_secs(28),
        making: Making {
            fsync: Fsync::Everysec,
            no_repair: false,
            logs: Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos-short"),
            level: "info".into(),
        },
    };
    let outcome = run(&plan).await;
    let text = report(&outcome);
    println!("{text}");
    assert!(outcome.verdict.holds(), "logs in {}:\n{text}", plan.making.logs.display());
    std::fs::remove_dir_all(&plan.making.logs).expect("the folder of the logs");
}

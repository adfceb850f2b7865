//! The conductor of a run: everyone on stage, faults, an end in peace, the verdict.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    breach::Kind,
    cast::Size,
    faults::{Mishap, Mishaps, Schedule, Tempo},
    follower::Follower,
    ledger::{Policy, Verdict, judge},
    publisher::Publisher,
    stage::Stage,
    world::{Fsync, Making, World},
};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub size: Size,
    pub tempo: Tempo,
    pub duration: Duration,
    pub making: Making,
}

/// The verdict, and what happened on the way.
pub struct Outcome {
    pub verdict: Verdict,
    pub faults: BTreeMap<&'static str, u64>,
    /// How connections ended for the clients.
    pub ends: BTreeMap<String, u64>,
    /// Why the replicas that are there in the end closed connections.
    pub closes: BTreeMap<String, u64>,
    /// What each client is called.
    pub clients: Vec<String>,
}

/// Until the first welcome of every client, and until every publish in the end has its 202.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until everyone has everything in the end.
const SETTLE: Duration = Duration::from_secs(45);
/// As long as nothing may come any more after that.
const QUIET: Duration = Duration::from_secs(2);

/// Runs it from beginning to end.
pub async fn run(plan: &Plan) -> Outcome {
    let mut world = World::start(plan.size, &plan.making).await;
    let stage = Arc::new(Stage::new(plan.seed, plan.size, world.addresses()));
    // Everyone goes home, however this ends.
    let _over = stage.over.clone().drop_guard();
    let mut tasks = JoinSet::new();
    let mut orders = Vec::new();
    for seat in plan.size.seats() {
        let (sender, receiver) = mpsc::channel(2);
        orders.push(sender);
        tasks.spawn(Follower::new(stage.clone(), seat, receiver).run());
    }
    let began = wait_for(PATIENCE, || {
        (0..stage.seats()).all(|seat| stage.trace(seat).begun()).then_some(())
    });
    match began.await {
        Some(()) => stage.say(&format!("{} clients are connected", stage.seats())),
        None => stage.say("not all clients were welcomed"),
    }
    let mut publishers = JoinSet::new();
    for number in 0..plan.size.publishers {
        publishers.spawn(Publisher::new(stage.clone(), number).run());
    }
    let mut faults = BTreeMap::new();
    let until = Instant::now() + plan.duration;
    let mut mishaps = BTreeMap::new();
    tokio::join!(
        disturb(plan, &mut world, &stage, until, &mut faults),
        molest(plan, &orders, until, &mut mishaps),
    );
    faults.extend(mishaps);
    settle(&stage, &world, &mut publishers).await;
    let verdict = conclude(plan, &stage);
    stage.over.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client does not panic");
    }
    let closes = world.closes().await;
    world.end(&stage).await;
    let clients = (0..stage.seats()).map(|seat| stage.trace(seat).seat.to_string()).collect();
    Outcome { verdict, faults, ends: stage.ends(), closes, clients }
}

/// One fault after another, each undone before the next.
async fn disturb(
    plan: &Plan,
    world: &mut World,
    stage: &Stage,
    until: Instant,
    faults: &mut BTreeMap<&'static str, u64>,
) {
    let forgetful = plan.making.fsync == Fsync::Everysec;
    for step in Schedule::new(plan.seed, plan.tempo, plan.size.replicas, forgetful) {
        if Instant::now() + step.pause >= until {
            break;
        }
        sleep(step.pause).await;
        stage.fault(step.fault.name());
        stage.say(&step.fault.to_string());
        world.apply(step.fault, stage).await;
        stage.say("  undone");
        *faults.entry(step.fault.name()).or_default() += 1;
    }
    tokio::time::sleep_until(until).await;
}

/// Meanwhile, clients have their own troubles.
async fn molest(
    plan: &Plan,
    orders: &[mpsc::Sender<Mishap>],
    until: Instant,
    mishaps: &mut BTreeMap<&'static str, u64>,
) {
    for (pause, client, mishap) in Mishaps::new(plan.seed, plan.tempo, orders.len()) {
        if Instant::now() + pause >= until {
            break;
        }
        sleep(pause).await;
        // A client that has not got over its last two is left in peace.
        if orders[client].try_send(mishap).is_ok() {
            *mishaps.entry(mishap.name()).or_default() += 1;
        }
    }
}

async fn wait_for<T>(within: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + within;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if Instant::now() >= until {
            return None;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// All that was begun is accepted, every client has what it is owed, and nothing more comes.
async fn settle(stage: &Stage, world: &World, publishers: &mut JoinSet<()>) {
    stage.fault("the last fault");
    stage.no_more.cancel();
    let finished = timeout(PATIENCE, async {
        while let Some(ended) = publishers.join_next().await {
            ended.expect("a publisher does not panic");
        }
    });
    match finished.await {
        Ok(()) => stage.say("everything is accepted"),
        Err(_) => stage.say("not everything was accepted in time"),
    }
    let ready_until = Instant::now() + PATIENCE;
    loop {
        let not_ready = world.not_ready().await;
        if not_ready.is_empty() {
            break;
        }
        if Instant::now() >= ready_until {
            let what = format!("not ready in the end: replicas {not_ready:?}");
            stage.ledger().breaches.add(Kind::Replica, what);
            break;
        }
        sleep(Duration::from_millis(200)).await;
    }
    let tops = stage.ledger().tops();
    let arrived = || {
        let behind = (0..stage.seats()).filter(|seat| {
            let trace = stage.trace(*seat);
            let mut courses = trace.courses.iter();
            courses.any(|(channel, course)| tops.get(channel).is_some_and(|top| course.at < *top))
        });
        behind.count()
    };
    match wait_for(SETTLE, || (arrived() == 0).then_some(())).await {
        Some(()) => stage.say("everyone is at the end"),
        None => stage.say(&format!("{} clients never got to the end", arrived())),
    }
    let received = || (0..stage.seats()).map(|seat| count(stage, seat)).sum::<usize>();
    let mut before = received();
    let mut since = Instant::now();
    let quiet = wait_for(PATIENCE, || {
        let now = received();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() >= QUIET).then_some(())
    });
    if quiet.await.is_none() {
        stage.say("it never became quiet");
    }
}

fn count(stage: &Stage, seat: usize) -> usize {
    stage.trace(seat).courses.values().map(|course| course.got.len() + course.gaps.len()).sum()
}

fn conclude(plan: &Plan, stage: &Stage) -> Verdict {
    let policy = Policy { forgetful: plan.making.fsync == Fsync::Everysec };
    let traces: Vec<_> = (0..stage.seats()).map(|seat| stage.trace(seat)).collect();
    let mut verdict = judge(&stage.ledger(), traces.iter().map(|trace| &**trace), policy);
    if verdict.delivered.contains(&0) {
        verdict
            .breaches
            .add(Kind::Protocol, "a client got nothing at all: this run proves nothing");
    }
    verdict
}

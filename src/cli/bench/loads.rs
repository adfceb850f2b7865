//! The loads, each a short story told with the same few parts.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::failure::Failure,
    board::{Board, Channel, bump},
    crowd::{self, Crowd, Ramp, Size},
    dial::Dialer,
    lane::Api,
    process::{Used, Watched},
    publisher::{Pace, Plan, Published, publish},
    report::{Connections, Cycles, Deliveries, Generator, Memory, Publishing, Report, Server},
};
use crate::event::{Group, UserId};

/// Events before the measuring, so that everything is warm.
const WARM_UP: u64 = 20;
/// What a server gets to give memory back after its connections have gone.
const SETTLE: Duration = Duration::from_secs(2);

/// Where a load goes, and what watches it.
pub(super) struct Scene {
    pub(super) dialer: Rc<Dialer>,
    pub(super) api: Rc<Api>,
    pub(super) watched: Watched,
    pub(super) stop: CancellationToken,
    /// The mark of this run.
    pub(super) run: String,
    /// Events to all go to this group instead of everyone.
    pub(super) group: Option<Group>,
}

impl Scene {
    fn board(&self) -> Result<Rc<Board>, Failure> {
        Board::new(self.run.clone(), self.stop.clone()).map(Rc::new)
    }

    fn user(&self, n: usize) -> Result<UserId, Failure> {
        UserId::new(&format!("bench-{}-{n}", self.run))
            .map_err(|error| Failure::new(error.to_string()))
    }

    fn users(&self, count: usize) -> Result<Vec<UserId>, Failure> {
        (0..count).map(|n| self.user(n)).collect()
    }

    fn server(&self, used: Used, per: Option<(&'static str, u64)>) -> Option<Server> {
        let seconds = used.server.as_secs_f64();
        (!self.watched.is_empty()).then(|| Server {
            cpu_seconds: seconds,
            busy: seconds / used.wall.as_secs_f64().max(f64::EPSILON),
            cpu_us: per.filter(|(_, n)| *n > 0).map(|(_, n)| seconds * 1e6 / n as f64),
            per: per.map(|(what, _)| what),
            memory: None,
        })
    }

    /// Waits, or until it is time to end.
    async fn pass(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

fn generator(used: Used) -> Generator {
    let seconds = used.own.as_secs_f64();
    let busy = seconds / used.wall.as_secs_f64().max(f64::EPSILON);
    Generator { cpu_seconds: seconds, busy }
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

fn connections(ramp: &Ramp, board: &Board, asked: usize, alive: u64) -> Connections {
    let took = ramp.took.get();
    Connections {
        asked: asked as u64,
        opened: ramp.opened.get(),
        alive,
        retried: ramp.retried.get(),
        seconds: took.as_secs_f64(),
        per_second: per_second(ramp.opened.get(), took),
        connect: ramp.latency.borrow().quantiles(),
        failed: ramp.failed.borrow().counts().clone(),
        ended: ramp.ended.borrow().counts().clone(),
        pings: board.pings.get(),
    }
}

fn publishing(published: &Published) -> Publishing {
    let took = published.took.get();
    Publishing {
        sent: published.sent.get(),
        accepted: published.accepted.get(),
        refused: published.refused.borrow().counts().clone(),
        seconds: took.as_secs_f64(),
        accepted_per_second: per_second(published.accepted.get(), took),
        answer: published.answers.borrow().quantiles(),
    }
}

/// Opens connections and holds them.
pub(super) async fn idle(scene: &Scene, size: Size, hold: Duration) -> Result<Report, Failure> {
    let board = scene.board()?;
    let before = scene.watched.memory()?;
    let users = scene.users(size.connections)?;
    let nothing = Rc::new(Channel::new(String::new()));
    let who = |n: usize| (users[n].clone(), nothing.clone());
    let crowd = Crowd::open(&board, &scene.dialer, size, who).await?;
    let mark = scene.watched.mark()?;
    scene.pass(hold).await;
    let used = mark.used(&scene.watched)?;
    let (open, alive) = (scene.watched.memory()?, crowd.alive());
    let ramp = crowd.close().await;
    let mut server = scene.server(used, None);
    if let Some(server) = &mut server {
        scene.pass(SETTLE).await;
        let grown = open.saturating_sub(before) as f64;
        server.memory = Some(Memory {
            before,
            open,
            closed: scene.watched.memory()?,
            per_connection: grown / alive.max(1) as f64,
        });
    }
    Ok(Report {
        load: "idle",
        title: format!("idle, {} connections for {hold:?}", size.connections),
        interrupted: scene.stop.is_cancelled(),
        connections: Some(connections(&ramp, &board, size.connections, alive)),
        server,
        generator: Some(generator(used)),
        ..Report::default()
    })
}

/// To all connections at once.
pub(super) async fn fanout(scene: &Scene, size: Size, plan: &Plan) -> Result<Report, Failure> {
    let to = match &scene.group {
        Some(group) => serde_json::json!({ "group": group.as_str() }),
        None => serde_json::json!({ "broadcast": true }),
    };
    let all = Rc::new(Channel::new(to.to_string()));
    let users = scene.users(size.connections)?;
    let channels = vec![all.clone()];
    let how = pace(plan);
    let to = if scene.group.is_some() { " by group" } else { "" };
    let title = format!("fan-out{to}, {how}, {} connections", size.connections);
    let who = |n: usize| (users[n].clone(), all.clone());
    deliver(scene, size, plan, ("fanout", title), &channels, who).await
}

/// To the tabs of one user after another.
pub(super) async fn direct(
    scene: &Scene,
    size: Size,
    tabs: usize,
    plan: &Plan,
) -> Result<Report, Failure> {
    let users = scene.users(size.connections.div_ceil(tabs))?;
    let channels: Vec<_> = users
        .iter()
        .map(|user| serde_json::json!({ "user": user.as_str() }).to_string())
        .map(|to| Rc::new(Channel::new(to)))
        .collect();
    let how = pace(plan);
    let title = format!("direct, {how}, {} users with {tabs} tabs", users.len());
    let who = |n: usize| (users[n / tabs].clone(), channels[n / tabs].clone());
    deliver(scene, size, plan, ("direct", title), &channels, who).await
}

fn pace(plan: &Plan) -> String {
    match plan.pace {
        Pace::Window(1) => "one at a time".to_owned(),
        Pace::Window(window) => format!("{window} under way"),
        Pace::Rate(rate) => format!("{rate}/s"),
        Pace::Flat => "flat out".to_owned(),
    }
}

async fn deliver(
    scene: &Scene,
    size: Size,
    plan: &Plan,
    (load, title): (&'static str, String),
    channels: &[Rc<Channel>],
    who: impl Fn(usize) -> (UserId, Rc<Channel>),
) -> Result<Report, Failure> {
    let board = scene.board()?;
    let crowd = Crowd::open(&board, &scene.dialer, size, who).await?;
    let warm_up = Plan {
        pace: Pace::Window(1),
        batch: 1,
        events: WARM_UP.min(plan.events),
        duration: plan.patience * 2,
        ..plan.clone()
    };
    let warm = publish(&board, &scene.api, channels, &warm_up).await?;
    if let Some(reason) = warm.refused.borrow().counts().keys().next() {
        return Err(Failure::new(format!("the API refuses events: {reason}")));
    }
    board.clear();
    let (start, mark) = (Instant::now(), scene.watched.mark()?);
    let published = publish(&board, &scene.api, channels, plan).await?;
    let used = mark.used(&scene.watched)?;
    let took = board.last().saturating_duration_since(start);
    let (delivered, alive) = (board.delivered.get(), crowd.alive());
    let (lost, ramp) = (crowd.lost(), crowd.close().await);
    let latency = board.latency.borrow();
    let server = scene.server(used, Some(("delivery", delivered)));
    Ok(Report {
        load,
        title,
        interrupted: scene.stop.is_cancelled(),
        connections: Some(connections(&ramp, &board, size.connections, alive)),
        publishing: Some(publishing(&published)),
        deliveries: Some(Deliveries {
            expected: delivered + lost,
            delivered,
            lost,
            repeated: board.repeated.get(),
            out_of_order: board.out_of_order.get(),
            foreign: board.foreign.get(),
            seconds: took.as_secs_f64(),
            per_second: per_second(delivered, took),
            latency: latency.quantiles(),
            histogram: latency.bars(),
        }),
        server,
        generator: Some(generator(used)),
        ..Report::default()
    })
}

/// Comes and goes, `at_once` at a time.
pub(super) async fn churn(
    scene: &Scene,
    at_once: usize,
    most: u64,
    duration: Duration,
) -> Result<Report, Failure> {
    let board = scene.board()?;
    let ramp = Rc::new(Ramp::new()?);
    let (start, mark) = (Instant::now(), scene.watched.mark()?);
    let (left, done) = (Rc::new(Cell::new(most)), Rc::new(Cell::new(0_u64)));
    let mut tasks = JoinSet::new();
    for n in 0..at_once {
        let user = scene.user(n)?;
        let (board, dialer, ramp) = (board.clone(), scene.dialer.clone(), ramp.clone());
        let (left, done) = (left.clone(), done.clone());
        tasks.spawn_local(async move {
            while start.elapsed() < duration && left.get() > 0 && !board.stop.is_cancelled() {
                left.set(left.get() - 1);
                // One that failed for good would fail again at once.
                let Some(socket) = crowd::enter(&board, &dialer, &ramp, &user).await else {
                    return;
                };
                crowd::leave(socket).await;
                bump(&done);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    let (used, took) = (mark.used(&scene.watched)?, start.elapsed());
    ramp.took.set(took);
    let done = done.get();
    Ok(Report {
        load: "churn",
        title: format!("churn, {at_once} at a time"),
        interrupted: scene.stop.is_cancelled(),
        connections: Some(connections(&ramp, &board, usize::try_from(done).unwrap_or(0), 0)),
        cycles: Some(Cycles {
            done,
            seconds: took.as_secs_f64(),
            per_second: per_second(done, took),
        }),
        server: scene.server(used, Some(("cycle", done))),
        generator: Some(generator(used)),
        ..Report::default()
    })
}

/// Events for users who are not there: what the API takes.
pub(super) async fn accept(scene: &Scene, users: usize, plan: &Plan) -> Result<Report, Failure> {
    let board = scene.board()?;
    let channels: Vec<_> = scene
        .users(users)?
        .iter()
        .map(|user| serde_json::json!({ "user": user.as_str() }).to_string())
        .map(|to| Rc::new(Channel::new(to)))
        .collect();
    let warm_up = Plan { pace: Pace::Flat, batch: 1, events: WARM_UP, ..plan.clone() };
    let warm = publish(&board, &scene.api, &channels, &warm_up).await?;
    if let Some(reason) = warm.refused.borrow().counts().keys().next() {
        return Err(Failure::new(format!("the API refuses events: {reason}")));
    }
    let mark = scene.watched.mark()?;
    let published = publish(&board, &scene.api, &channels, plan).await?;
    let used = mark.used(&scene.watched)?;
    let server = scene.server(used, Some(("event", published.accepted.get())));
    let (how, lanes) = (pace(plan), plan.lanes.min(users));
    let batch = match plan.batch {
        1 => "single POSTs".to_owned(),
        batch => format!("batches of {batch}"),
    };
    Ok(Report {
        load: "publish",
        title: format!("publish, {batch}, {how}, {lanes} connections"),
        interrupted: scene.stop.is_cancelled(),
        publishing: Some(publishing(&published)),
        server,
        generator: Some(generator(used)),
        ..Report::default()
    })
}

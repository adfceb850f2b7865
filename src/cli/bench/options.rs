//! The loads on the command line: their sizes, their bounds, and what each becomes.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{
    super::{failure::Failure, token::ttl},
    crowd::Size,
    loads::{self, Scene},
    publisher::{BATCH, Pace, Plan},
    report::Report,
};

/// The most connections of one process: more than the ports of one address.
const CONNECTIONS: u64 = 200_000;
/// The longest load.
const LONGEST: Duration = Duration::from_secs(3600);
/// The largest data of an event (contract §5), in bytes.
const DATA: u64 = 64 * 1024;
/// Events of `all` a second, where they come at a rate.
const ALL_BROADCASTS: f64 = 20.0;
const ALL_EVENTS: f64 = 1_500.0;

#[derive(Debug, Subcommand)]
pub(super) enum Mode {
    /// Open connections and hold them: connect rate, memory and CPU of standing connections
    Idle(Idle),
    /// Send each event to all connections
    Fanout(Fanout),
    /// Send each event to the tabs of one user
    Direct(Direct),
    /// Connect, be welcomed, leave, again and again
    Churn(Churn),
    /// Send events for users who are not there: what the API accepts
    Publish(Accept),
    /// All of them, one after another, in about a minute and a half
    All(All),
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connections")]
pub(super) struct Opening {
    /// How many
    #[arg(long, default_value_t = 1000, value_parser = count(CONNECTIONS))]
    connections: u64,
    /// Handshakes under way at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count(4096))]
    at_once: u64,
    /// New connections a second at most [default: as fast as they come]
    #[arg(long, value_name = "N", value_parser = rate)]
    connect_rate: Option<f64>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Events")]
pub(super) struct Sending {
    /// How long, such as 10s; the load ends by itself
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = count(100_000_000))]
    events: u64,
    /// So many a second, whatever comes of them
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = count(DATA))]
    size: u64,
    /// Live only: events are not kept
    #[arg(long)]
    transient: bool,
    /// Silence after which what has not come is lost
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    patience: Duration,
}

#[derive(Args, Debug)]
pub(super) struct Idle {
    #[command(flatten)]
    connections: Opening,
    /// How long they stand, such as 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
}

#[derive(Args, Debug)]
pub(super) struct Fanout {
    #[command(flatten)]
    connections: Opening,
    #[command(flatten)]
    events: Sending,
    /// Events under way at most: 1 is one at a time, more come in bursts of half the window
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = count(BATCH as u64),
        conflicts_with = "rate"
    )]
    window: u64,
}

#[derive(Args, Debug)]
pub(super) struct Direct {
    #[command(flatten)]
    connections: Opening,
    #[command(flatten)]
    events: Sending,
    /// Connections of each user
    #[arg(long, default_value_t = 2, value_parser = count(32))]
    tabs: u64,
    /// Events under way at most, flat out
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        value_parser = count(100_000),
        conflicts_with = "rate"
    )]
    window: u64,
    /// Connections to the API; the events of one user keep to one of them
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count(1024))]
    publishers: u64,
}

#[derive(Args, Debug)]
pub(super) struct Churn {
    /// Connections under way at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count(4096))]
    at_once: u64,
    /// How long, such as 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How many times at most
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = count(100_000_000))]
    cycles: u64,
}

#[derive(Args, Debug)]
pub(super) struct Accept {
    #[command(flatten)]
    events: Sending,
    /// Kept-alive connections to the API, each with one request under way
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = count(1024),
        visible_alias = "window"
    )]
    publishers: u64,
    /// Events in one request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(BATCH as u64))]
    batch: u64,
    /// Users the events are for
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = count(CONNECTIONS))]
    users: u64,
}

#[derive(Args, Debug)]
pub(super) struct All {
    #[command(flatten)]
    connections: Opening,
    /// How long each load lasts, such as 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
}

fn count(most: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=most)
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=1e6).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.01 to 1000000".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match ttl(text)? {
        time if time <= LONGEST => Ok(time),
        _ => Err("must be at most 1h".to_owned()),
    }
}

/// All counts here have been bounded far below.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl Opening {
    fn size(&self) -> Size {
        Size {
            connections: size(self.connections),
            at_once: size(self.at_once),
            rate: self.connect_rate,
        }
    }
}

impl Sending {
    fn plan(&self, pace: Pace, batch: usize, lanes: usize) -> Plan {
        Plan {
            pace: self.rate.map_or(pace, Pace::Rate),
            batch,
            lanes,
            events: self.events,
            duration: self.duration,
            size: size(self.size),
            transient: self.transient,
            patience: self.patience,
        }
    }
}

/// A burst is half of what may be under way, so that one is on its way while the next is made.
fn burst(events: &Sending, window: usize) -> Plan {
    let batch = if events.rate.is_some() { 1 } else { window.div_ceil(2) };
    events.plan(Pace::Window(window), batch, 1)
}

impl Mode {
    /// Connections that stand at the same time, those to the API included.
    pub(super) fn connections(&self) -> u64 {
        match self {
            Self::Idle(Idle { connections, .. })
            | Self::Fanout(Fanout { connections, .. })
            | Self::All(All { connections, .. }) => connections.connections + connections.at_once,
            Self::Direct(direct) => {
                direct.connections.connections + direct.connections.at_once + direct.publishers
            }
            // Twice: with tickets, each has a connection to the API beside it.
            Self::Churn(churn) => churn.at_once * 2,
            Self::Publish(accept) => accept.publishers,
        }
    }

    /// Runs it against `scene`; each report is also shown to `done` as it is made.
    pub(super) async fn run(
        &self,
        scene: &Scene,
        done: impl Fn(&Report),
    ) -> Result<Vec<Report>, Failure> {
        let report = match self {
            Self::Idle(idle) => loads::idle(scene, idle.connections.size(), idle.duration).await?,
            Self::Fanout(fanout) => {
                let plan = burst(&fanout.events, size(fanout.window));
                loads::fanout(scene, fanout.connections.size(), &plan).await?
            }
            Self::Direct(direct) => {
                let pace = Pace::Window(size(direct.window));
                let plan = direct.events.plan(pace, 1, size(direct.publishers));
                let tabs = size(direct.tabs);
                loads::direct(scene, direct.connections.size(), tabs, &plan).await?
            }
            Self::Churn(churn) => {
                loads::churn(scene, size(churn.at_once), churn.cycles, churn.duration).await?
            }
            Self::Publish(accept) => {
                let plan =
                    accept.events.plan(Pace::Flat, size(accept.batch), size(accept.publishers));
                loads::accept(scene, size(accept.users), &plan).await?
            }
            Self::All(all) => return all.run(scene, done).await,
        };
        Ok(vec![report])
    }
}

impl All {
    async fn run(&self, scene: &Scene, done: impl Fn(&Report)) -> Result<Vec<Report>, Failure> {
        let crowd = self.connections.size();
        let plan = |pace, batch, lanes| Plan {
            pace,
            batch,
            lanes,
            events: u64::MAX,
            duration: self.duration,
            size: 200,
            transient: false,
            patience: Duration::from_secs(3),
        };
        let mut reports = Vec::new();
        for step in 0..9 {
            let report = match step {
                0 => loads::idle(scene, crowd, self.duration).await?,
                1 => loads::fanout(scene, crowd, &plan(Pace::Window(1), 1, 1)).await?,
                2 => loads::fanout(scene, crowd, &plan(Pace::Window(32), 16, 1)).await?,
                3 => loads::fanout(scene, crowd, &plan(Pace::Rate(ALL_BROADCASTS), 1, 1)).await?,
                4 => loads::direct(scene, crowd, 2, &plan(Pace::Rate(ALL_EVENTS), 1, 16)).await?,
                5 => loads::direct(scene, crowd, 2, &plan(Pace::Window(256), 1, 16)).await?,
                6 => loads::churn(scene, crowd.at_once, u64::MAX, self.duration).await?,
                7 => loads::accept(scene, 1000, &plan(Pace::Flat, 1, 32)).await?,
                _ => loads::accept(scene, 1000, &plan(Pace::Flat, 500, 4)).await?,
            };
            done(&report);
            reports.push(report);
            if scene.stop.is_cancelled() {
                break;
            }
        }
        Ok(reports)
    }
}

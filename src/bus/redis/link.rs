//! One connection's life as a fred client.
//!
//! A [`Link`] tries for ever to connect. Once it was connected it is good for that one connection:
//! when the connection is lost or does not answer, the owner drops the link, and with it whatever
//! still sits in fred's buffers, and opens a new one. So nothing is ever sent again behind our
//! back, and a server that hangs cannot hold the reconnection up, as it does when fred is asked
//! to reconnect or quit in order.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientInterface, ClientLike, EventInterface},
    socket2::TcpKeepalive,
    types::{
        Message, RespVersion,
        config::{
            Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, Server, TcpConfig,
            UnresponsiveConfig,
        },
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    task::JoinHandle,
};

use super::ConnectError;
use crate::config;

/// What a connection is for; names it in `CLIENT LIST` and in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Commands: publishing and the store.
    Publisher,
    /// The subscription, and nothing else.
    Subscriber,
    /// Looking sessions up, possibly on another server.
    Sessions,
    /// Word of sessions' keys that go.
    SessionEvents,
    /// Waiting for entries of the publish stream, and nothing else.
    PublishStream,
}

impl Role {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Subscriber => "subscriber",
            Self::Sessions => "sessions",
            Self::SessionEvents => "session-events",
            Self::PublishStream => "publish-stream",
        }
    }

    /// How many messages (and errors, reconnections, …) fred keeps for us between two reads.
    ///
    /// fred allocates eight rings of this many slots, about 13 MB in all for the subscriber. What
    /// is in them comes on top: at most this many messages, so 1 GB if all were 64 KiB events and
    /// the subscriber actor stood still; it never awaits a socket, and in practice reads them
    /// down to a few.
    fn ring(self) -> usize {
        match self {
            Self::Publisher | Self::Sessions | Self::PublishStream => 32,
            Self::Subscriber => 16_384,
            // What is missed is found by the next look at the session.
            Self::SessionEvents => 1_024,
        }
    }
}

/// Everything that links are made from, checked once.
#[derive(Debug)]
pub(super) struct LinkSettings {
    pub(super) config: ArcSwap<Config>,
    connect_timeout: Duration,
    pub(super) command_timeout: Duration,
}

/// A server that is asked and silent for this long is taken for dead. Also the bound on fred's
/// own commands (`HELLO`, `SELECT`, …).
const UNRESPONSIVE: Duration = Duration::from_secs(2);

impl LinkSettings {
    /// Also follows the file that the address came from: a new one, with a new password, is used
    /// from the next connection on.
    pub(super) fn new(settings: &config::Redis) -> Result<Arc<Self>, ConnectError> {
        let links = Arc::new(Self {
            config: ArcSwap::from_pointee(Self::parse(&settings.url)?),
            connect_timeout: settings.connect_timeout,
            command_timeout: settings.command_timeout,
        });
        if let Some(file) = settings.url_file.clone() {
            tokio::spawn(follow(Arc::downgrade(&links), file));
        }
        Ok(links)
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.config.load().server.is_clustered()
    }

    fn parse(url: &SecretString) -> Result<Config, ConnectError> {
        // fred's errors about addresses say what is wrong, never the address, which may bear a
        // password.
        let mut config = Config::from_url(url.expose_secret())
            .map_err(|error| ConnectError(error.details().to_owned()))?;
        // A subscriber may send other commands (PING) only in RESP3.
        config.version = RespVersion::RESP3;
        // The first connection is tried for ever, like the rest.
        config.fail_fast = false;
        Ok(config)
    }

    fn connection(&self) -> ConnectionConfig {
        ConnectionConfig {
            connection_timeout: self.connect_timeout,
            internal_command_timeout: UNRESPONSIVE,
            // Above 0 a full queue refuses fred's own reconnect order and ends its task.
            max_command_buffer_len: 0,
            max_command_attempts: 1,
            reconnect_on_auth_error: true,
            // Not on READONLY or LOADING: it fails every command under way with the error of one.
            reconnect_errors: Vec::new(),
            // It would set a random name, and fail the connection where ACLs forbid it.
            auto_client_setname: false,
            unresponsive: UnresponsiveConfig {
                max_timeout: Some(UNRESPONSIVE),
                interval: Duration::from_millis(500),
            },
            tcp: TcpConfig {
                nodelay: Some(true),
                keepalive: Some(
                    TcpKeepalive::new()
                        .with_time(Duration::from_secs(5))
                        .with_interval(Duration::from_secs(5))
                        .with_retries(2),
                ),
                user_timeout: Some(Duration::from_secs(10)),
                ..TcpConfig::default()
            },
            ..ConnectionConfig::default()
        }
    }
}

/// How often the file with the address is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Ends when nobody connects with these settings any more.
async fn follow(links: Weak<LinkSettings>, file: PathBuf) {
    let mut complained = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(links) = links.upgrade() else { return };
        let path = file.clone();
        // Off the event loop: the file may sit on a slow volume.
        let read = tokio::task::spawn_blocking(move || config::secrets::redis_url(&path)).await;
        let new = match read {
            Ok(Ok(url)) => LinkSettings::parse(&url).map_err(|error| error.to_string()),
            Ok(Err(faults)) => Err(faults.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match new {
            Ok(new) => {
                complained = false;
                if new != **links.config.load() {
                    links.config.store(Arc::new(new));
                    tracing::info!(target: "audit", action = "rotated", what = "redis.url");
                }
            }
            Err(why) if !complained => {
                complained = true;
                tracing::error!(why, "the address of Redis is no good; the last one stays");
            }
            Err(_) => {}
        }
    }
}

/// A client on its way to a connection, or with one.
pub(super) struct Link {
    pub(super) client: Client,
    connects: Receiver<Server>,
    errors: Receiver<(Error, Option<Server>)>,
    router: JoinHandle<Result<(), Error>>,
    connected: bool,
}

/// What happened to a link.
#[derive(Debug)]
pub(super) enum Change {
    /// It has its connection.
    Connected,
    /// A try to connect failed; more follow.
    Failed(String),
    /// It is of no more use.
    Lost(String),
}

impl Link {
    /// Starts connecting in the background, after 100 to 300 ms (so a server that accepts and
    /// hangs up is not hammered) and then up to once a second, for ever. Needs a tokio runtime,
    /// whose thread then does the link's reading and writing. The receiver yields what the
    /// client's subscriptions bring.
    pub(super) fn open(settings: &LinkSettings, role: Role) -> (Self, Receiver<Message>) {
        let mut policy = ReconnectPolicy::new_exponential(0, 100, 1_000, 2);
        policy.set_jitter(200);
        let client = Client::new(
            Config::clone(&settings.config.load()),
            Some(PerformanceConfig {
                default_command_timeout: settings.command_timeout,
                broadcast_channel_capacity: role.ring(),
                ..PerformanceConfig::default()
            }),
            Some(settings.connection()),
            Some(policy),
        );
        // Before `connect`: a broadcast channel has no past.
        let (messages, connects, errors) =
            (client.message_rx(), client.reconnect_rx(), client.error_rx());
        let router = client.connect();
        (Self { client, connects, errors, router, connected: false }, messages)
    }

    /// The next change. Cancel safe.
    pub(super) async fn change(&mut self) -> Change {
        tokio::select! {
            biased;
            connect = self.connects.recv() => match connect {
                // In a cluster it comes once for each node.
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    self.connected = true;
                    Change::Connected
                }
                Err(RecvError::Closed) => Change::Lost("the client has closed".to_owned()),
            },
            error = self.errors.recv() => {
                let reason = match error {
                    Ok((error, _)) => error.details().to_owned(),
                    Err(RecvError::Lagged(_)) => "many errors".to_owned(),
                    Err(RecvError::Closed) => "the client has closed".to_owned(),
                };
                if self.connected { Change::Lost(reason) } else { Change::Failed(reason) }
            }
            // Its tries never end by themselves, but a task can end for reasons nobody foresaw.
            end = &mut self.router => Change::Lost(match end {
                Ok(Ok(())) => "the client has ended".to_owned(),
                Ok(Err(error)) => error.details().to_owned(),
                Err(error) => error.to_string(),
            }),
        }
    }
}

/// Puts our name into `CLIENT LIST`. Nothing needs it, so a refusal changes nothing.
pub(super) async fn introduce(client: &Client, role: Role) {
    let name = format!("belfry-{}", role.label());
    if let Err(error) = client.client_setname(name).await {
        tracing::debug!(role = role.label(), %error, "no name for the Redis connection");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Closes the socket without a word to the server, and drops fred's queue.
        self.router.abort();
    }
}

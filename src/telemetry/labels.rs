//! The words that stand in labels: each set is closed.

/// Why a message went nowhere. Each is one value of `messages_dropped_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// From a client: a binary message.
    InboundBinary,
    /// From a client: text that is not one JSON object.
    InboundInvalid,
    /// From a client: a JSON object that nothing here consumes.
    InboundUnread,
    /// From a client: more of them came than Redis took.
    InboundFull,
    /// From a client: Redis was away, or refused it.
    InboundAway,
    /// From the publish stream: no event, or one that can never be published.
    PublishInvalid,
    /// From the publish stream: more waited in it than it may hold.
    PublishTrimmed,
    /// From the bus: not UTF-8, or not one JSON object.
    BusInvalid,
    /// From the bus: over the size limit.
    BusTooBig,
    /// From the bus: a channel that names no legal user or group.
    BusUnaddressed,
    /// From the bus: the head of a version that this replica does not know.
    BusVersion,
    /// From the bus: a worker's mailbox was full.
    WorkerLagged,
}

impl DropReason {
    /// Every one of them.
    pub(super) const ALL: [Self; 12] = [
        Self::InboundBinary,
        Self::InboundInvalid,
        Self::InboundUnread,
        Self::InboundFull,
        Self::InboundAway,
        Self::PublishInvalid,
        Self::PublishTrimmed,
        Self::BusInvalid,
        Self::BusTooBig,
        Self::BusUnaddressed,
        Self::BusVersion,
        Self::WorkerLagged,
    ];

    /// The word in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::InboundBinary => "inbound_binary",
            Self::InboundInvalid => "inbound_invalid",
            Self::InboundUnread => "inbound_unread",
            Self::InboundFull => "inbound_full",
            Self::InboundAway => "inbound_away",
            Self::PublishInvalid => "publish_invalid",
            Self::PublishTrimmed => "publish_trimmed",
            Self::BusInvalid => "bus_invalid",
            Self::BusTooBig => "bus_too_big",
            Self::BusUnaddressed => "bus_unaddressed",
            Self::BusVersion => "bus_version",
            Self::WorkerLagged => "worker_lagged",
        }
    }
}

/// How a browser is connected: the label `transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `GET /ws/notifications`
    WebSocket,
    /// `GET /sse/notifications`: Server-Sent Events.
    Sse,
}

impl Transport {
    /// Both of them.
    pub(super) const ALL: [Self; 2] = [Self::WebSocket, Self::Sse];

    /// The word in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
        }
    }
}

/// What became of an attempt to connect: `connects_total{result}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectResult {
    /// Upgraded and registered.
    Accepted,
    /// Not a valid upgrade.
    BadRequest,
    /// A foreign Origin.
    Origin,
    /// No credential, or one that does not hold.
    Unauthorized,
    /// The process is full.
    Full,
    /// This replica is leaving.
    Draining,
    /// Too many requests to connect.
    Busy,
    /// Its address has too many connections.
    Crowded,
    /// The user has too many connections.
    TooMany,
    /// The broker is away.
    Away,
}

impl ConnectResult {
    /// Every one of them.
    pub(super) const ALL: [Self; 10] = [
        Self::Accepted,
        Self::BadRequest,
        Self::Origin,
        Self::Unauthorized,
        Self::Full,
        Self::Draining,
        Self::Busy,
        Self::Crowded,
        Self::TooMany,
        Self::Away,
    ];

    /// The word in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::BadRequest => "bad_request",
            Self::Origin => "origin",
            Self::Unauthorized => "unauthorized",
            Self::Full => "full",
            Self::Draining => "draining",
            Self::Busy => "busy",
            Self::Crowded => "address",
            Self::TooMany => "too_many",
            Self::Away => "away",
        }
    }
}

/// What became of a look at an issuer's keys: `jwks_refreshes_total{result}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwksRefresh {
    /// There are keys.
    Ok,
    /// No answer, or a status that is none.
    Failed,
    /// An answer that holds no usable key.
    Invalid,
}

impl JwksRefresh {
    /// Every one of them.
    pub(super) const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Invalid];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
        }
    }
}

/// What an event was addressed to: `events_published_total{target}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One user.
    User,
    /// A list of users.
    Users,
    /// A group.
    Group,
    /// Everyone.
    Broadcast,
}

impl Target {
    /// Whether it is a list of users (of one, maybe), and not a set that only replicas know.
    #[must_use]
    pub fn names_users(self) -> bool {
        matches!(self, Self::User | Self::Users)
    }

    /// Every one of them.
    pub(super) const ALL: [Self; 4] = [Self::User, Self::Users, Self::Group, Self::Broadcast];

    /// The word in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Users => "users",
            Self::Group => "group",
            Self::Broadcast => "broadcast",
        }
    }
}
/// The connections to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Publishes, and keeps what replicas share.
    Publisher,
    /// Receives.
    Subscriber,
}

impl Role {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Subscriber => "subscriber",
        }
    }
}
/// The status codes that the API answers with.
pub(super) fn code(code: u16) -> &'static str {
    match code {
        200 => "200",
        202 => "202",
        204 => "204",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        413 => "413",
        415 => "415",
        422 => "422",
        429 => "429",
        500 => "500",
        503 => "503",
        _ => "other",
    }
}

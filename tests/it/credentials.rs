//! Every credential with every fault, and what was seen to become of it: `docs/credentials.md`.

use std::{
    fmt::Write as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{Duration, sleep};

use crate::{
    sessions::{PAGE, set},
    support::{
        PATIENCE,
        app::{API_KEY, Builder, Replica},
        client::{Dial, Seen, Ws},
        jwt::{Jwt, now},
        redis::RedisServer,
        until,
    },
};

/// Where a credential stands, in the order in which they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Subprotocol,
    Bearer,
    Ticket,
    Query,
    Cookie,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::Subprotocol, Self::Bearer, Self::Ticket, Self::Query, Self::Cookie];
    /// What a ticket may be bought with.
    const CURRENCIES: [Self; 3] = [Self::Bearer, Self::Query, Self::Cookie];

    fn title(self) -> &'static str {
        match self {
            Self::Subprotocol => "subprotocol",
            Self::Bearer => "bearer",
            Self::Ticket => "ticket",
            Self::Query => "query",
            Self::Cookie => "cookie",
        }
    }

    fn is_token(self) -> bool {
        !matches!(self, Self::Ticket | Self::Cookie)
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Missing,
    Empty,
    Malformed,
    TooLong,
    Expired,
    ExpiredBehind,
    NotYet,
    Signature,
    Algorithm,
    Unsigned,
    Unknown,
    Used,
    SessionGone,
    SessionShape,
    RevokedSession,
    RevokedUser,
    Twice,
    BesideGood,
    OriginForeign,
    OriginNull,
    OriginMissing,
    UserFull,
    AddressFull,
    Away,
    AwayForged,
}

use Fault::{
    AddressFull, Algorithm, Away, AwayForged, BesideGood, Empty, Expired, ExpiredBehind, Malformed,
    Missing, NotYet, OriginForeign, OriginMissing, OriginNull, RevokedSession, RevokedUser,
    SessionGone, SessionShape, Signature, TooLong, Twice, Unknown, Unsigned, Used, UserFull,
};

impl Fault {
    /// Those that Redis is needed for.
    const PRESENT: [Self; 24] = [
        Self::None,
        Missing,
        Empty,
        Malformed,
        TooLong,
        Expired,
        ExpiredBehind,
        NotYet,
        Signature,
        Algorithm,
        Unsigned,
        Unknown,
        Used,
        SessionGone,
        SessionShape,
        RevokedSession,
        RevokedUser,
        Twice,
        BesideGood,
        OriginForeign,
        OriginNull,
        OriginMissing,
        UserFull,
        AddressFull,
    ];
    const AWAY: [Self; 2] = [Away, AwayForged];

    fn title(self) -> &'static str {
        match self {
            Self::None => "valid",
            Missing => "missing",
            Empty => "empty",
            Malformed => "malformed",
            TooLong => "too long",
            Expired => "expired",
            ExpiredBehind => "the token that bought it has expired",
            NotYet => "not yet valid",
            Signature => "wrong signature",
            Algorithm => "algorithm not configured",
            Unsigned => "algorithm `none`",
            Unknown => "never given out",
            Used => "used before",
            SessionGone => "its session is gone",
            SessionShape => "its session has another shape than configured",
            RevokedSession => "its session is revoked",
            RevokedUser => "its user is revoked",
            Twice => "twice",
            BesideGood => "malformed, beside a good cookie",
            OriginForeign => "valid, `Origin` of another site",
            OriginNull => "valid, `Origin: null`",
            OriginMissing => "valid, no `Origin`",
            UserFull => "valid, the user has too many connections (`refuse`)",
            AddressFull => "valid, the address has too many connections",
            Away => "valid, Redis is away",
            AwayForged => "forged or never given out, Redis is away",
        }
    }

    fn origin(self) -> Option<&'static str> {
        match self {
            OriginForeign => Some("https://evil.example"),
            OriginNull => Some("null"),
            OriginMissing => None,
            _ => Some(PAGE),
        }
    }

    /// How long it takes to show.
    fn ripens(self) -> Duration {
        match self {
            // What was seen of a session is good for two seconds.
            SessionGone | SessionShape => Duration::from_millis(2_200),
            // The token's last second, and the leeway.
            ExpiredBehind => Duration::from_millis(2_500),
            _ => Duration::ZERO,
        }
    }
}

/// Where a credential is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Close,
    Http,
    Tickets,
}

impl Door {
    const ALL: [Self; 3] = [Self::Close, Self::Http, Self::Tickets];

    fn title(self) -> &'static str {
        match self {
            Self::Close => "`GET /ws/notifications`, `auth.reject = \"close\"`",
            Self::Http => "`GET /ws/notifications`, `auth.reject = \"http\"`",
            Self::Tickets => "`POST /ws/tickets`",
        }
    }

    fn kinds(self) -> &'static [Kind] {
        if self == Self::Tickets { &Kind::CURRENCIES } else { &Kind::ALL }
    }
}

/// What the promises say, whatever was seen.
fn promised(fault: Fault, kind: Kind, door: Door) -> &'static str {
    let accepted = if door == Door::Tickets { "200" } else { "101" };
    match fault {
        Fault::None => accepted,
        OriginMissing if kind != Kind::Cookie => accepted,
        OriginForeign | OriginNull | OriginMissing => "403",
        // No one is logged out because Redis is away. A signature needs no Redis.
        Away => "503 + Retry-After",
        AwayForged if !kind.is_token() => "503 + Retry-After",
        AddressFull => "429 + Retry-After",
        UserFull => match door {
            Door::Close => "101, 4429 too_many",
            Door::Http => "429 + Retry-After",
            Door::Tickets => accepted,
        },
        _ if door == Door::Close => "101, 1008 unauthorized",
        _ => "401",
    }
}

/// A credential, ready to be shown, and those who are there already.
struct Shown {
    dial: Dial,
    _others: Vec<Ws>,
}

struct World {
    redis: RedisServer,
    close: Replica,
    http: Replica,
    count: AtomicUsize,
}

impl World {
    async fn new() -> Self {
        let redis = RedisServer::start().await;
        let builder = Builder::production()
            .redis(&redis)
            .set("auth.origins", PAGE)
            .set("auth.jwt.leeway", "1s")
            .set("limits.connections_per_user", "1")
            .set("limits.user_policy", "refuse")
            .set("limits.connections_per_address", "1")
            .set("public.trusted_proxies", "127.0.0.0/8");
        let close = builder.clone().spawn().await;
        let http = builder.set("auth.reject", "http").spawn().await;
        let world = Self { redis, close, http, count: AtomicUsize::new(0) };
        for door in [Door::Close, Door::Http] {
            until("sessions are looked up", PATIENCE, async || {
                let dial = world.bearing(door, Kind::Cookie, "nobody").origin(PAGE);
                (world.outcome(door, &dial).await != "503 + Retry-After").then_some(())
            })
            .await;
        }
        world
    }

    fn replica(&self, door: Door) -> &Replica {
        if door == Door::Http { &self.http } else { &self.close }
    }

    /// A name that nobody else has: limits count each cell of the table by itself.
    fn name(&self) -> String {
        format!("n{}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// From an address that nobody else has.
    fn dial(&self, door: Door) -> Dial {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        Dial::to(self.replica(door))
            .header("X-Forwarded-For", format!("198.18.{}.{}", n / 256, n % 256))
    }

    fn bearing(&self, door: Door, kind: Kind, credential: &str) -> Dial {
        with(self.dial(door), kind, credential)
    }

    async fn session(&self, id: &str, user: &str) {
        set(&self.redis, id, &json!({"user_id": user})).await;
    }

    /// What a token, a ticket or a session of this user and session is in the place of its kind.
    async fn good(&self, kind: Kind, user: &str, session: &str) -> String {
        let token = Jwt::of(user).claim("sid", session).sign();
        match kind {
            Kind::Ticket => self.bought(Kind::Bearer, &token).await,
            Kind::Cookie => {
                self.session(session, user).await;
                session.to_owned()
            }
            _ => token,
        }
    }

    async fn bought(&self, with: Kind, credential: &str) -> String {
        let dial = self.bearing(Door::Tickets, with, credential).origin(PAGE);
        let (answer, text) = self.buy(&dial).await;
        assert_eq!(answer, "200", "{text}");
        let body: Value = serde_json::from_str(&text).expect("JSON");
        body["ticket"].as_str().expect("a text").to_owned()
    }

    async fn revoke(&self, subject: &Value) {
        let mut order = subject.clone();
        order["revoke"] = json!(true);
        let request = self.close.http.post(format!("http://{}/v1/disconnect", self.close.internal));
        let request = request
            .header("authorization", format!("Bearer {API_KEY}"))
            .header("content-type", "application/json")
            .body(order.to_string());
        assert_eq!(request.send().await.expect("an answer").status().as_u16(), 200);
    }

    async fn key_ends(&self, key: &str) {
        let mut client = self.redis.client().await;
        assert_eq!(client.words(&format!("PEXPIRE {key} 1")).await.int(), 1, "{key}");
        until("the key has gone", PATIENCE, async || {
            (client.words(&format!("EXISTS {key}")).await.int() == 0).then_some(())
        })
        .await;
    }

    /// What is shown; `None` where this kind cannot have this fault.
    async fn credential(&self, fault: Fault, kind: Kind, user: &str, id: &str) -> Option<String> {
        let jwt = Jwt::of(user).claim("sid", id);
        Some(match fault {
            Missing | Empty => String::new(),
            // Whatever stands in the cookie is an id.
            Malformed | BesideGood if kind != Kind::Cookie => "nonsense".to_owned(),
            TooLong if kind == Kind::Cookie => "x".repeat(513),
            TooLong if kind == Kind::Ticket => "x".repeat(9_000),
            TooLong => Jwt::sized(user, 12 * 1024 + 1),
            Expired if kind.is_token() => jwt.expires_in(-600).sign(),
            Expired => {
                let credential = self.good(kind, user, id).await;
                let ticket = || format!("ws:ticket:{:x}", Sha256::digest(credential.as_bytes()));
                let session = || format!("session:{id}");
                self.key_ends(&if kind == Kind::Ticket { ticket() } else { session() }).await;
                credential
            }
            ExpiredBehind if kind == Kind::Ticket => {
                self.bought(Kind::Bearer, &jwt.expires_in(1).sign()).await
            }
            NotYet if kind.is_token() => jwt.claim("nbf", now() + 600).sign(),
            Signature | AwayForged if kind.is_token() => jwt.secret("x".repeat(64)).sign(),
            Algorithm if kind.is_token() => jwt.header("alg", "HS384").sign_384(),
            Unsigned if kind.is_token() => {
                format!("{}.", jwt.header("alg", "none").unsigned())
            }
            Unknown | AwayForged if kind == Kind::Ticket => "A".repeat(43),
            Unknown | AwayForged if kind == Kind::Cookie => id.to_owned(),
            Used if kind == Kind::Ticket => {
                let ticket = self.good(kind, user, id).await;
                self.bearing(Door::Close, kind, &ticket).open().await.close().await;
                ticket
            }
            SessionGone | SessionShape if !kind.is_token() => {
                self.session(id, user).await;
                let ticket = self.bought(Kind::Cookie, id).await;
                if fault == SessionGone {
                    self.redis.client().await.words(&format!("DEL session:{id}")).await;
                } else {
                    set(&self.redis, id, &json!([user])).await;
                }
                if kind == Kind::Ticket { ticket } else { id.to_owned() }
            }
            RevokedSession | RevokedUser => {
                let credential = self.good(kind, user, id).await;
                let session = fault == RevokedSession;
                self.revoke(&if session { json!({"session": id}) } else { json!({"user": user}) })
                    .await;
                credential
            }
            Fault::None
            | Twice
            | OriginForeign
            | OriginNull
            | OriginMissing
            | UserFull
            | AddressFull
            | Away => self.good(kind, user, id).await,
            _ => return None,
        })
    }

    /// The credential with its fault, and what stands around it.
    async fn prepare(&self, fault: Fault, kind: Kind, door: Door) -> Option<Shown> {
        let (user, id) = (self.name(), self.name());
        let credential = self.credential(fault, kind, &user, &id).await?;
        let bare = self.dial(door);
        let mut others = Vec::new();
        let mut dial = match (fault, kind) {
            (Missing, Kind::Subprotocol) => {
                bare.clone().header("Sec-WebSocket-Protocol", "belfry.v1")
            }
            (Missing, Kind::Cookie) => bare.clone().header("Cookie", "theme=dark"),
            (Missing, _) => bare.clone(),
            _ => with(bare.clone(), kind, &credential),
        };
        match fault {
            Twice => dial = with(dial, kind, &credential),
            BesideGood => {
                self.session(&id, &user).await;
                dial = with(dial, Kind::Cookie, &id);
            }
            UserFull => {
                let other = self.good(Kind::Bearer, &user, &self.name()).await;
                others.push(self.bearing(Door::Close, Kind::Bearer, &other).open().await);
            }
            AddressFull => {
                let other = self.good(Kind::Bearer, &self.name(), &self.name()).await;
                others.push(bare.bearer(&other).open().await);
            }
            _ => {}
        }
        if let Some(origin) = fault.origin() {
            dial = dial.origin(origin);
        }
        Some(Shown { dial, _others: others })
    }

    async fn outcome(&self, door: Door, dial: &Dial) -> String {
        if door == Door::Tickets { self.buy(dial).await.0 } else { connect(dial).await }
    }

    /// `POST /ws/tickets` with the credential of a dial: the outcome, and the body.
    async fn buy(&self, dial: &Dial) -> (String, String) {
        let path = dial.path.replace("/ws/notifications", "/ws/tickets");
        let mut request = self.close.http.post(format!("http://{}{path}", dial.address));
        for (name, value) in &dial.headers {
            request = request.header(name, value);
        }
        let response = request.send().await.expect("an answer");
        let retry =
            response.headers().get("retry-after").map(|value| value.to_str().map(str::to_owned));
        let retry = retry.map(|value| value.expect("ASCII"));
        (status(response.status().as_u16(), retry), response.text().await.expect("a whole answer"))
    }

    /// Fills in what comes of these faults, a row after the other.
    async fn observe(&self, faults: &[Fault], seen: &mut Vec<(Fault, Kind, Door, String)>) {
        for fault in faults {
            let mut row = Vec::new();
            for door in Door::ALL {
                for kind in door.kinds() {
                    if let Some(shown) = self.prepare(*fault, *kind, door).await {
                        row.push((*kind, door, shown));
                    }
                }
            }
            sleep(fault.ripens()).await;
            for (kind, door, shown) in row {
                let outcome = self.outcome(door, &shown.dial).await;
                seen.push((*fault, kind, door, outcome));
            }
        }
    }
}

fn with(dial: Dial, kind: Kind, credential: &str) -> Dial {
    match kind {
        Kind::Subprotocol => dial.subprotocol(credential),
        Kind::Bearer => dial.bearer(credential),
        Kind::Query => dial.query(credential),
        Kind::Ticket => {
            let mut dial = dial;
            let sign = if dial.path.contains('?') { '&' } else { '?' };
            dial.path = format!("{}{sign}ticket={credential}", dial.path);
            dial
        }
        Kind::Cookie => dial.header("Cookie", format!("theme=dark; session_id={credential}")),
    }
}

fn status(status: u16, retry_after: Option<String>) -> String {
    match retry_after {
        Some(seconds) => {
            assert!(seconds.parse::<u32>().is_ok(), "Retry-After: {seconds}");
            format!("{status} + Retry-After")
        }
        None => status.to_string(),
    }
}

async fn connect(dial: &Dial) -> String {
    let mut ws = match dial.try_connect().await {
        Err(refusal) => return status(refusal.status, refusal.retry_after),
        Ok(ws) => ws,
    };
    match ws.next(PATIENCE).await.1 {
        Seen::Text(text) if text.contains("belfry.welcome") => "101".to_owned(),
        Seen::Text(goodbye) => {
            let goodbye: Value = serde_json::from_str(&goodbye).expect("JSON");
            let end = ws.end(PATIENCE).await;
            assert_eq!(goodbye["type"], "belfry.goodbye", "{goodbye}");
            assert_eq!(
                (&goodbye["code"], &goodbye["reason"]),
                (&json!(end.code), &json!(end.reason))
            );
            format!("101, {} {}", end.code, end.reason)
        }
        other => panic!("neither a welcome nor a goodbye: {other:?}"),
    }
}

fn render(seen: &[(Fault, Kind, Door, String)]) -> String {
    let mut page = String::from(
        "# Every credential, every fault\n\n\
         What becomes of each kind of credential with each fault, as a test saw it on a real replica with a real\n\
         Redis (`tests/it/credentials.rs`). The test fails when this page says something else; `BELFRY_BLESS=1 cargo\n\
         test --test it every_credential` writes it anew. What the outcomes mean to a client is in\n\
         [authentication.md](authentication.md#refusals-and-codes). A dash: this kind cannot have that fault.\n\n\
         Requests come from a page on the list, and the profile is `production` (in `development` a refused `Origin`\n\
         completes the upgrade and is told in the reason of 1008). `101` alone is an open connection; `101, 1008 …` is\n\
         an upgrade, a `belfry.goodbye` and a close.\n",
    );
    for door in Door::ALL {
        let _ = write!(page, "\n## {}\n\n| credential |", door.title());
        for kind in door.kinds() {
            let _ = write!(page, " {} |", kind.title());
        }
        let _ = writeln!(page, "\n|---|{}", "---|".repeat(door.kinds().len()));
        for fault in Fault::PRESENT.iter().chain(&Fault::AWAY) {
            let cells: Vec<&str> = door
                .kinds()
                .iter()
                .map(|kind| {
                    seen.iter()
                        .find(|(f, k, d, _)| (f, k, *d) == (fault, kind, door))
                        .map_or("–", |(.., outcome)| outcome.as_str())
                })
                .collect();
            if cells.iter().any(|cell| *cell != "–") {
                let _ = writeln!(page, "| {} | {} |", fault.title(), cells.join(" | "));
            }
        }
        if door == Door::Tickets {
            page +=
                "\nA token in the subprotocol and another ticket are not looked at here: `401`.\n";
        }
    }
    page
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_credential_with_every_fault() {
    let mut world = World::new().await;
    let mut seen = Vec::new();
    world.observe(&Fault::PRESENT, &mut seen).await;
    for kind in [Kind::Subprotocol, Kind::Ticket] {
        let shown = world.prepare(Fault::None, kind, Door::Tickets).await.expect("a dial");
        assert_eq!(world.outcome(Door::Tickets, &shown.dial).await, "401", "{kind:?}");
    }

    // What Redis is needed for is made before it goes.
    let mut rows = Vec::new();
    for fault in Fault::AWAY {
        for door in Door::ALL {
            for kind in door.kinds() {
                let shown = world.prepare(fault, *kind, door).await.expect("every kind has it");
                rows.push((fault, *kind, door, shown));
            }
        }
    }
    world.redis.kill();
    for door in [Door::Close, Door::Http] {
        let token = Jwt::of("alice").sign();
        until("the outage is noticed", PATIENCE, async || {
            let dial = world.bearing(door, Kind::Bearer, &token);
            (connect(&dial).await == "503 + Retry-After").then_some(())
        })
        .await;
    }
    for (fault, kind, door, shown) in rows {
        let outcome = world.outcome(door, &shown.dial).await;
        seen.push((fault, kind, door, outcome));
    }

    let broken: Vec<String> = seen
        .iter()
        .filter(|(fault, kind, door, outcome)| outcome != promised(*fault, *kind, *door))
        .map(|(fault, kind, door, outcome)| {
            let promised = promised(*fault, *kind, *door);
            format!("{} {kind:?} {door:?}: {outcome}, but {promised} is promised", fault.title())
        })
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));

    let page = render(&seen);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/credentials.md");
    if std::env::var_os("BELFRY_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/credentials.md says something else than was seen; BELFRY_BLESS=1 writes it anew:\n{page}"
    );
}

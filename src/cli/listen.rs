//! `belfry listen`

use std::{num::NonZero, pin::pin, time::Duration};

use clap::{ArgGroup, Args};
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Url;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        handshake::client::Request,
        http::HeaderValue,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    failure::{self, Failure},
    remote, token,
};
use crate::{
    config::{Sources, load},
    event::{Group, UserId},
};

/// Where browsers connect in development.
pub(super) const DEFAULT_URL: &str = "ws://127.0.0.1:8080/ws/notifications";

/// The route that upgrades (contract §2).
const PATH: &str = "/ws/notifications";

/// How long a token that is made on the way is good for.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Longest wait for the upgrade, and for the other side's Close.
const PATIENCE: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("who").required(true).args(["token", "user"]),
    after_help = "Examples:\n  \
        belfry listen --user alice\n  \
        belfry listen --token \"$(belfry token --user alice --group team-a)\" --count 1\n  \
        belfry listen --token eyJhbGciOi… --url wss://app.example | jq .data\n\n\
        Every frame is one line on standard output, exactly as it came; what happens to the\n\
        connection is told on standard error. Ctrl-C ends it."
)]
pub(super) struct Listen {
    /// The token to connect with
    #[arg(long, value_name = "JWT")]
    token: Option<String>,
    /// Connect as this user, with a token signed by the secret of the configuration in force
    #[arg(long, value_parser = token::user)]
    user: Option<UserId>,
    /// A group for that token; may be repeated
    #[arg(long = "group", value_name = "GROUP", value_parser = token::group, conflicts_with = "token")]
    groups: Vec<Group>,
    #[arg(
        long,
        help = "The public listener, ws:// or wss:// [default: ws://127.0.0.1:8080/ws/notifications]"
    )]
    url: Option<String>,
    /// Stop after so many events; Belfry's own frames do not count
    #[arg(long, value_name = "N")]
    count: Option<NonZero<u64>>,
    #[command(flatten)]
    trust: remote::Trust,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Listen {
    pub(super) fn run(self, sources: &Sources) -> Result<(), Failure> {
        let token = match (self.token, self.user) {
            (Some(token), _) => token,
            (None, Some(user)) => {
                let auth = load::load(sources)?.auth;
                token::sign(&auth, &user, &self.groups, None, TOKEN_TTL)?
            }
            // clap asks for one of them.
            (None, None) => return Err(Failure::new("give a --token or a --user")),
        };
        // BELFRY_URL is the internal API for `publish`: only a WebSocket URL in it is for us.
        let ours = |url: &&str| url.starts_with("ws://") || url.starts_with("wss://");
        let url = self.url.as_deref().or_else(|| sources.var("BELFRY_URL").filter(ours));
        let url = String::from(endpoint(url.unwrap_or(DEFAULT_URL))?);
        let trust = self.trust.rustls(sources)?.map(Connector::Rustls);
        remote::block_on(listen(&url, token.trim(), trust, self.count, failure::print))
    }
}

/// The upgrade's URL: `ws` or `wss`, with the route at the end of its path.
pub(super) fn endpoint(text: &str) -> Result<Url, Failure> {
    let bad = || {
        Failure::new(format!("{text:?} is not the URL of a public listener, such as {DEFAULT_URL}"))
    };
    let mut url = Url::parse(text).map_err(|_| bad())?;
    let scheme = match url.scheme() {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => return Err(bad()),
    };
    url.set_scheme(scheme).map_err(|()| bad())?;
    if !url.path().ends_with(PATH) {
        url.set_path(&format!("{}{PATH}", url.path().trim_end_matches('/')));
    }
    Ok(url)
}

fn request(url: &str, token: &str) -> Result<Request, Failure> {
    let bad = |error: &dyn std::fmt::Display| Failure::new(format!("cannot connect: {error}"));
    let mut request = url.into_client_request().map_err(|error| bad(&error))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| bad(&"the token has characters that no token has"))?;
    bearer.set_sensitive(true);
    request.headers_mut().insert("authorization", bearer);
    Ok(request)
}

/// Connects and hands every frame to `out`, until there is an end.
async fn listen(
    url: &str,
    token: &str,
    trust: Option<Connector>,
    count: Option<NonZero<u64>>,
    mut out: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let request = request(url, token)?;
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let connecting = connect_async_tls_with_config(request, None, false, trust);
    let connected = tokio::select! {
        connected = tokio::time::timeout(PATIENCE, connecting) => connected,
        _ = &mut interrupt => return Ok(()),
    };
    let mut socket = match connected {
        Ok(Ok((socket, _))) => socket,
        Ok(Err(error)) => return Err(refused(url, &error)),
        Err(_) => {
            return Err(Failure::new(format!("no answer from {url} in {PATIENCE:?}")));
        }
    };
    failure::status(&format!("connected to {url}"));
    let mut left = count.map(NonZero::get);
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            _ = &mut interrupt => return goodbye(socket).await,
        };
        match message {
            Some(Ok(Message::Text(frame))) => {
                out(&frame)?;
                match kind(&frame) {
                    // The protocol's own Ping, which comes with it, is answered by tungstenite.
                    Kind::Ping => send_pong(&mut socket).await?,
                    Kind::Own => {}
                    Kind::Event => {
                        left = left.map(|left| left - 1);
                        if left == Some(0) {
                            return goodbye(socket).await;
                        }
                    }
                }
            }
            Some(Ok(Message::Close(close))) => {
                let ended = ended(close.as_ref());
                return goodbye(socket).await.and(ended);
            }
            Some(Ok(Message::Binary(bytes))) => {
                failure::status(&format!("a binary message of {} bytes", bytes.len()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                return Err(Failure::new(format!("the connection broke: {error}")));
            }
            None => return Err(Failure::new("the connection ended without a close")),
        }
    }
}

async fn send_pong(socket: &mut Socket) -> Result<(), Failure> {
    let pong = Message::text(r#"{"type":"pong"}"#);
    socket.send(pong).await.map_err(|error| Failure::new(format!("the connection broke: {error}")))
}

/// Closes as RFC 6455 §7 asks, without waiting long for the other side.
async fn goodbye(mut socket: Socket) -> Result<(), Failure> {
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // It is over either way, and what the peer makes of it is no concern of this command.
    tokio::time::timeout(GOODBYE, async {
        if socket.close(Some(close)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    })
    .await
    .unwrap_or_default();
    Ok(())
}

/// Why there is no connection.
fn refused(url: &str, error: &Error) -> Failure {
    match error {
        Error::Http(response) => {
            let body = response.body().as_deref().unwrap_or_default();
            let retry = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
            let body = String::from_utf8_lossy(body);
            let told = remote::describe(&response.status().to_string(), retry, &body);
            Failure::new(format!("the upgrade was refused: {told}"))
        }
        Error::Io(_) => {
            Failure::new(format!("cannot reach {url}: {error}; is `belfry serve` running?"))
        }
        _ => Failure::new(format!("cannot connect to {url}: {error}")),
    }
}

/// What a frame is to someone who counts events.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Event,
    Ping,
    /// `belfry.*`
    Own,
}

fn kind(frame: &str) -> Kind {
    #[derive(Deserialize)]
    struct Head {
        r#type: Option<String>,
    }
    // What a neighbour of the gateway published may have any type, or none.
    match serde_json::from_str::<Head>(frame).ok().and_then(|head| head.r#type).as_deref() {
        Some("ping") => Kind::Ping,
        Some(name) if name.starts_with("belfry.") => Kind::Own,
        _ => Kind::Event,
    }
}

/// A close by the server: the end where it is the normal one, else a failure with its meaning.
fn ended(close: Option<&CloseFrame>) -> Result<(), Failure> {
    let (code, reason) = match close {
        Some(close) => (u16::from(close.code), close.reason.as_str()),
        None => (1005, ""),
    };
    let space = if reason.is_empty() { "" } else { " " };
    let told = format!("closed by the server: {code}{space}{reason}: {}", meaning(code));
    if code == 1000 {
        failure::status(&told);
        Ok(())
    } else {
        Err(Failure::new(told))
    }
}

/// What the client should make of a close code (contract §3).
fn meaning(code: u16) -> &'static str {
    match code {
        1000 => "it is over",
        1002 => "this client broke the protocol",
        1003 => "this client sent a type of message that is not accepted",
        1007 => "this client sent text that is not UTF-8",
        1008 => "the credential was refused; `belfry token check` says why",
        1009 => "this client sent a message over limits.inbound_bytes",
        1011 => "the server has a fault; come back later",
        1012 => "the server restarts; come back in a moment",
        1013 => "the server has too much to do, or this client reads too slowly; come back later",
        4401 => "the token or the session has ended; get a new one",
        4403 => "the credential was revoked",
        4408 => "this client did not answer pings",
        4409 => "another connection of this user took the place",
        4429 => "too many connections or messages; come back in a minute",
        1005 => "no code was given",
        _ => "no meaning is known",
    }
}

#[cfg(test)]
mod tests;

//! Opening one connection as a browser would, and why there may be none.

use std::{cell::RefCell, io, rc::Rc, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use reqwest::Url;
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        handshake::client::Request,
        http::HeaderValue,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use super::{
    super::{failure::Failure, remote, token},
    lane::{Addresses, Api, Lane},
    payload::{Heard, read},
};
use crate::{
    config::Auth,
    event::{Group, UserId},
};

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Longest wait for each step of a handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a signed token is good for: longer than the longest load.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Eagerly allocated for each connection. Thousands of them stand in one process, and most of
/// their events are small.
const BUFFER: usize = 2 * 1024;
/// No event is larger (contract §5), its frame included.
const MESSAGE: usize = 1 << 20;
/// Where a server does not say when to come back.
pub(super) const LATER: Duration = Duration::from_secs(1);

/// How a connection shows whose it is.
pub(super) enum Credentials {
    /// A token signed with the secret of the configuration in force.
    Signed(Box<Auth>),
    /// A ticket bought from the API, on one of a few connections kept for that.
    Bought { api: Rc<Api>, lanes: RefCell<Vec<Lane>> },
}

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(super) enum Refused {
    /// Worth another attempt after this time.
    Later(Duration, String),
    /// Nobody answers: worth another attempt where others have been answered.
    Away(String),
    /// It would be the same again.
    Never(String),
}

/// Opens connections to one public listener.
pub(super) struct Dialer {
    url: Url,
    addresses: Addresses,
    connector: Connector,
    credentials: Credentials,
    group: Option<Group>,
    /// The mark of this run.
    run: String,
}

impl Dialer {
    /// # Errors
    /// The name in `url` has no address, or there is no TLS where it is needed.
    pub(super) async fn new(
        url: Url,
        tls: impl FnOnce() -> Result<Arc<ClientConfig>, Failure>,
        credentials: Credentials,
        group: Option<Group>,
        run: String,
    ) -> Result<Self, Failure> {
        let connector = match url.scheme() {
            "wss" => Connector::Rustls(tls()?),
            _ => Connector::Plain,
        };
        Ok(Self { addresses: Addresses::of(&url).await?, url, connector, credentials, group, run })
    }

    /// Handshake, credential and welcome.
    pub(super) async fn open(&self, user: &UserId) -> Result<Socket, Refused> {
        let request = self.request(user).await?;
        let stream = within("connect", self.addresses.connect()).await?.map_err(|e| broken(&e))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(MESSAGE)
            .max_message_size(Some(MESSAGE))
            .max_frame_size(Some(MESSAGE));
        let connector = Some(self.connector.clone());
        // In a box: with TLS it is large, and over long before the connection is.
        let upgrading =
            Box::pin(client_async_tls_with_config(request, stream, Some(config), connector));
        let (mut socket, _) = within("upgrade", upgrading).await?.map_err(|e| refused(&e))?;
        loop {
            match within("welcome", socket.next()).await? {
                Some(Ok(Message::Text(frame))) if read(&frame, &self.run) == Heard::Welcome => {
                    return Ok(socket);
                }
                Some(Ok(Message::Close(close))) => return Err(closed(close.as_ref())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(refused(&error)),
                None => return Err(Refused::Later(LATER, "ended without a close".to_owned())),
            }
        }
    }

    async fn request(&self, user: &UserId) -> Result<Request, Refused> {
        let never = |error: &dyn std::fmt::Display| Refused::Never(error.to_string());
        match &self.credentials {
            Credentials::Signed(auth) => {
                let token = token::sign(auth, user, self.group.as_slice(), None, TOKEN_TTL)
                    .map_err(|error| never(&error))?;
                let mut request =
                    self.url.as_str().into_client_request().map_err(|error| never(&error))?;
                let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|error| never(&error))?;
                bearer.set_sensitive(true);
                request.headers_mut().insert("authorization", bearer);
                Ok(request)
            }
            Credentials::Bought { api, lanes } => {
                let free = lanes.borrow_mut().pop();
                let mut lane = free.unwrap_or_else(|| Lane::new(api.clone()));
                let bought = buy(&mut lane, user, self.group.as_slice()).await;
                lanes.borrow_mut().push(lane);
                let mut url = self.url.clone();
                url.query_pairs_mut().append_pair("ticket", &bought?);
                url.as_str().into_client_request().map_err(|error| never(&error))
            }
        }
    }
}

/// `POST /v1/tickets`
async fn buy(lane: &mut Lane, user: &UserId, groups: &[Group]) -> Result<String, Refused> {
    #[derive(Deserialize)]
    struct Sold {
        ticket: String,
    }
    let groups: Vec<&str> = groups.iter().map(Group::as_str).collect();
    let body = serde_json::json!({ "user": user.as_str(), "groups": groups }).to_string();
    let answer = lane
        .post("/v1/tickets", body.into())
        .await
        .map_err(|error| Refused::Later(LATER, format!("no ticket: {error}")))?;
    if !answer.status.is_success() {
        let told = format!("no ticket: {}", answer.refusal());
        return Err(match answer.status.as_u16() {
            429 | 503 => Refused::Later(wait(answer.retry_after.as_deref()), told),
            _ => Refused::Never(told),
        });
    }
    serde_json::from_slice::<Sold>(&answer.body)
        .map(|sold| sold.ticket)
        .map_err(|_| Refused::Never("no ticket in the answer".to_owned()))
}

async fn within<T>(step: &str, work: impl Future<Output = T>) -> Result<T, Refused> {
    timeout(PATIENCE, work)
        .await
        .map_err(|_| Refused::Later(Duration::ZERO, format!("no {step} within {PATIENCE:?}")))
}

fn wait(retry_after: Option<&str>) -> Duration {
    retry_after.and_then(|text| text.parse().ok()).map_or(LATER, Duration::from_secs)
}

fn refused(error: &Error) -> Refused {
    match error {
        Error::Http(response) => {
            let retry = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
            let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default());
            let told = remote::describe(&response.status().to_string(), None, &body);
            match response.status().as_u16() {
                429 | 503 => Refused::Later(wait(retry), told),
                _ => Refused::Never(told),
            }
        }
        Error::Io(error) => broken(error),
        error => Refused::Later(LATER, error.to_string()),
    }
}

/// A fault of the network, or a limit of this machine.
fn broken(error: &io::Error) -> Refused {
    // EMFILE and ENFILE have no kind of their own.
    match (error.kind(), error.raw_os_error()) {
        (_, Some(24)) => Refused::Never(
            "this process may not open more files: raise `ulimit -n` where the load runs"
                .to_owned(),
        ),
        (_, Some(23)) => Refused::Never("this machine has no more open files".to_owned()),
        (io::ErrorKind::AddrNotAvailable, _) => Refused::Never(
            "this machine has no free port left towards that address \
             (net.ipv4.ip_local_port_range): run from more machines"
                .to_owned(),
        ),
        // What rustls makes of a certificate that it does not trust.
        (io::ErrorKind::InvalidData, _) => Refused::Never(format!("TLS: {error}")),
        _ => Refused::Away(error.to_string()),
    }
}

/// A close before the welcome, by the table of contract §3.
fn closed(close: Option<&CloseFrame>) -> Refused {
    let Some(close) = close else {
        return Refused::Later(LATER, "closed: 1005".to_owned());
    };
    let code = u16::from(close.code);
    let told = format!("closed: {code} {}", close.reason);
    match code {
        1011..=1013 => Refused::Later(LATER, told),
        _ => Refused::Never(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_this_machine_are_told_and_final() {
        for (code, word) in [(24, "ulimit -n"), (23, "open files"), (99, "ip_local_port_range")] {
            match broken(&io::Error::from_raw_os_error(code)) {
                Refused::Never(told) => assert!(told.contains(word), "{told}"),
                other => panic!("{other:?}"),
            }
        }
        let reset = broken(&io::ErrorKind::ConnectionReset.into());
        assert!(matches!(reset, Refused::Away(_)), "{reset:?}");
        let certificate = broken(&io::ErrorKind::InvalidData.into());
        assert!(matches!(certificate, Refused::Never(_)), "{certificate:?}");
    }

    #[test]
    fn a_close_says_whether_to_come_back() {
        let close = |code: u16| closed(Some(&CloseFrame { code: code.into(), reason: "x".into() }));
        for code in [1011, 1012, 1013] {
            assert!(matches!(close(code), Refused::Later(..)), "{code}");
        }
        for code in [1008, 4403, 4409, 4429] {
            assert!(matches!(close(code), Refused::Never(_)), "{code}");
        }
        assert_eq!(wait(Some("3")), Duration::from_secs(3));
        assert_eq!(wait(Some("soon")), LATER);
    }
}

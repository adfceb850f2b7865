//! One kept-alive connection to the HTTP API, with one request under way.
//!
//! hyper's own connection and not a client with a pool: the load may be thousands of requests each
//! second, and which connection a request takes decides its order.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::{failure::Failure, remote};

/// Longer than the 2 s within which the API answers, whatever Redis does.
const PATIENCE: Duration = Duration::from_secs(10);

/// The HTTP API of a deployment, and the right to use it.
pub(super) struct Api {
    addresses: Addresses,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    host: HeaderValue,
    /// Before each route; empty or beginning with a slash.
    base: String,
    bearer: HeaderValue,
}

/// An answer of the API.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<String>,
    pub(super) body: Bytes,
}

impl Answer {
    /// Puts an answer that is an error into words.
    pub(super) fn refusal(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        remote::describe(&self.status.to_string(), self.retry_after.as_deref(), &body)
    }
}

/// All addresses of a name, taken in turns.
#[derive(Debug)]
pub(super) struct Addresses {
    all: Vec<SocketAddr>,
    next: Cell<usize>,
}

impl Addresses {
    /// Looks the host of `url` up, once for the whole run.
    pub(super) async fn of(url: &Url) -> Result<Self, Failure> {
        let bad = |what: &dyn std::fmt::Display| Failure::new(format!("cannot use {url}: {what}"));
        let host = url.host_str().ok_or_else(|| bad(&"no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| bad(&"no port"))?;
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((plain, port)).await.map_err(|error| bad(&error))?;
        let all: Vec<_> = found.collect();
        if all.is_empty() {
            return Err(bad(&"the name has no address"));
        }
        Ok(Self { all, next: Cell::new(0) })
    }

    /// Opens a TCP connection to the next address, with Nagle's algorithm off.
    pub(super) async fn connect(&self) -> std::io::Result<TcpStream> {
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        // Never empty.
        let address = self.all.get(turn % self.all.len()).copied();
        let address = address.ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Api {
    /// The API at `url`, `http://` or `https://`, with its key.
    ///
    /// # Errors
    /// The URL is not one of an API, its name has no address, or the key has characters that no
    /// key has.
    pub(super) async fn new(
        url: &Url,
        key: &str,
        tls: impl FnOnce() -> Result<Arc<ClientConfig>, Failure>,
    ) -> Result<Self, Failure> {
        let bad = |what: &dyn std::fmt::Display| Failure::new(format!("cannot use {url}: {what}"));
        let name = url.host_str().ok_or_else(|| bad(&"no host"))?;
        let tls = if url.scheme() == "https" {
            let server = ServerName::try_from(name.to_owned()).map_err(|error| bad(&error))?;
            Some((TlsConnector::from(tls()?), server))
        } else {
            None
        };
        let host = match url.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        let mut bearer = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| Failure::new("the API key has characters that no key has"))?;
        bearer.set_sensitive(true);
        Ok(Self {
            addresses: Addresses::of(url).await?,
            tls,
            host: HeaderValue::from_str(&host).map_err(|error| bad(&error))?,
            base: url.path().trim_end_matches('/').to_owned(),
            bearer,
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = self.addresses.connect().await.map_err(|error| error.to_string())?;
        let opened = match &self.tls {
            None => open(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                open(stream.map_err(|error| error.to_string())?).await
            }
        };
        opened.map_err(|error| remote::chain(&error))
    }

    fn request(&self, route: &str, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        Request::post(format!("{}{route}", self.base))
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.bearer.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, concat!("belfry/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| error.to_string())
    }
}

async fn open<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the sender. What goes wrong on the connection, the request that waits is told.
    tokio::task::spawn_local(async { connection.await.unwrap_or_default() });
    Ok(sender)
}

/// A connection that is opened when it is needed, and again when it has ended.
pub(super) struct Lane {
    api: Rc<Api>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Lane {
    pub(super) fn new(api: Rc<Api>) -> Self {
        Self { api, sender: None }
    }

    /// Sends one request and reads its answer.
    ///
    /// # Errors
    /// There was no answer within 10 s, or the connection broke: what became of the request cannot
    /// be known. The text says why.
    pub(super) async fn post(&mut self, route: &str, body: Bytes) -> Result<Answer, String> {
        // Taken out meanwhile: whoever gives up in between leaves no half-read answer behind.
        let sender = self.sender.take();
        let exchange = exchange(&self.api, sender, route, body);
        let (answer, sender) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| format!("no answer within {PATIENCE:?}"))??;
        self.sender = Some(sender);
        Ok(answer)
    }
}

async fn exchange(
    api: &Api,
    sender: Option<SendRequest<Full<Bytes>>>,
    route: &str,
    body: Bytes,
) -> Result<(Answer, SendRequest<Full<Bytes>>), String> {
    let request = api.request(route, body)?;
    let mut kept = sender;
    // The server may have ended a connection that was quiet; nothing was sent on it yet.
    let alive = match &mut kept {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    let mut sender = match kept {
        Some(sender) if alive => sender,
        _ => api.connect().await?,
    };
    let response = sender.send_request(request).await.map_err(|error| remote::chain(&error))?;
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| remote::chain(&error))?;
    Ok((Answer { status, retry_after, body: body.to_bytes() }, sender))
}

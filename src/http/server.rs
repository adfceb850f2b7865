//! The two servers, and their sockets.
//!
//! The public one is built from `actix_server` and `HttpService` and not with `HttpServer`, because
//! its connections need a socket that can be cut ([`Socket`]), and so that a transport that takes
//! the socket over at the upgrade can stand beside actix-ws.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{
    HttpServiceBuilder, KeepAlive, Protocol, Request, Response, ServiceConfig,
    body::BoxBody,
    error::DispatchError,
    h1::{ExpectHandler, UpgradeHandler},
};
use actix_server::Server;
use actix_service::{
    IntoServiceFactory as _, Service, ServiceFactory, ServiceFactoryExt as _, apply_fn_factory,
    fn_service, map_config,
};
use actix_web::{
    App,
    dev::AppConfig,
    middleware::{Condition, from_fn},
    rt::net::TcpStream,
    web,
};
use futures_util::future::LocalBoxFuture;
use socket2::{Domain, Protocol as SocketProtocol, Socket as RawSocket, Type};

use super::{internal, public, takeover::takeover};
use crate::{
    auth::{Authenticator, Rechecked},
    config::{WebSockets, gate::Inbound},
    connection::{Allowance, Credentials, Settings, Standing, scratch::Scratch},
    event::Principal,
    net::Socket,
    seats::Seats,
    timer::Wheel,
    tls::{Stream, Tls, Turns},
};

/// Idle time after which a connection that serves plain requests is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A request's head must be complete within this (slowloris).
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// After a refusal or a close, input is read and discarded this long, so that the peer reads the
/// answer instead of a reset.
const LINGER: Duration = Duration::from_secs(2);
/// Sockets beyond our own limit that a worker still accepts, so that it can say why it refuses.
const SPARE: usize = 512;

/// Binds a listener whose backlog holds a reconnect wave.
///
/// # Errors
/// The system's, with the address.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let bind = || {
        let socket =
            RawSocket::new(Domain::for_address(address), Type::STREAM, Some(SocketProtocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(|error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

/// How the public server is set up.
pub struct PublicServer {
    /// Threads.
    pub workers: usize,
    /// Goes before every route.
    pub base_path: String,
    /// Connections of the process.
    pub connections: usize,
    /// What the workers share.
    pub state: Arc<public::State>,
    /// Silence after which a client is pinged.
    pub heartbeat: Duration,
    /// Granted after a credential's end.
    pub leeway: Duration,
    /// How often a session cookie is looked up again.
    pub recheck: Duration,
    /// What one client may send; `None`: as much as it likes.
    pub inbound: Option<Inbound>,
    /// `None`: plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// What bears `WebSocket`, where there is no TLS.
    pub transport: WebSockets,
}

/// Runs connections of a service over sockets.
///
/// Everything that HTTP needs is in a box of its own: `actix_server` would keep room for it twice in
/// the task of each connection, and as long as that lives. Where an upgrade has handed its socket
/// over, the box is gone, and the connection goes on with what it needs itself.
fn over_sockets<S>(
    service: S,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()>
where
    S: ServiceFactory<Socket, Config = (), Response = (), Error = DispatchError, InitError = ()>,
{
    apply_fn_factory(service, |tcp: TcpStream, service: &S::Service| {
        let socket = Socket::new(tcp).map_err(DispatchError::Io);
        let http = socket.map(|socket| (socket.link(), Box::pin(service.call(socket))));
        async move {
            let (link, http) = http?;
            let done = http.await;
            if let Some(next) = link.next() {
                next.await;
            }
            done
        }
    })
}

/// What a connection is asked for before HTTP begins.
fn sockets(
    tls: Option<Arc<Tls>>,
) -> impl ServiceFactory<
    Socket,
    Config = (),
    Response = (Stream, Protocol, Option<SocketAddr>),
    Error = DispatchError,
    InitError = (),
> {
    let turns = Turns::default();
    fn_service(move |socket: Socket| {
        let (tls, turns) = (tls.clone(), turns.clone());
        async move {
            let peer = socket.peer().ok();
            let stream = match tls {
                None => Stream::Plain(socket),
                // Boxed: the state of a TLS handshake is kilobytes, which a plain connection would
                // hold to its end, since actix keeps this future's place for the connection's.
                Some(tls) => Box::pin(tls.accept(socket, &turns)).await.map_err(|error| {
                    tracing::debug!(%error, "no TLS connection");
                    DispatchError::Io(error)
                })?,
            };
            Ok((stream, Protocol::Http1, peer))
        }
    })
}

/// HTTP as both listeners speak it.
fn http<S>(address: SocketAddr) -> HttpServiceBuilder<Stream, S, ExpectHandler, UpgradeHandler>
where
    S: ServiceFactory<Request, Config = ()>,
    S::Error: Into<Response<BoxBody>> + 'static,
    S::InitError: std::fmt::Debug,
    <S::Service as Service<Request>>::Future: 'static,
{
    HttpServiceBuilder::default()
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(LINGER)
        .local_addr(address)
}

impl PublicServer {
    /// Starts it on this listener.
    ///
    /// # Errors
    /// The system's.
    pub fn start(self, listener: TcpListener) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let Self {
            workers,
            base_path,
            connections,
            state,
            heartbeat,
            leeway,
            recheck,
            inbound,
            tls,
            transport,
        } = self;
        let server = Server::build()
            .workers(workers)
            // Of each worker, so that all of them together stay within it.
            .max_concurrent_connections((connections + SPARE).div_ceil(workers))
            .shutdown_timeout(1)
            .disable_signals();
        let takes_sockets = transport == WebSockets::Direct && tls.is_none();
        let path = base_path.clone();
        let set_up = move || {
            let worker = worker(&state, takes_sockets, heartbeat, leeway, recheck, inbound);
            let worker = web::Data::new(worker);
            let base_path = base_path.clone();
            let app = App::new()
                .app_data(worker.clone())
                .configure(move |config| public::routes(&base_path, config));
            let app = app.into_factory().map_err(|error| error.error_response());
            let http = http(address).h1_allow_half_closed(false).on_connect_ext(
                |stream: &Stream, extensions| {
                    extensions.insert(stream.link());
                },
            );
            // No handler asks for the host, so the default configuration does.
            (http, map_config(app, |()| AppConfig::default()), worker)
        };
        let server = if takes_sockets {
            server.listen("public", listener, move || {
                let (http, app, worker) = set_up();
                let takeover = takeover(worker, path.clone());
                over_sockets(sockets(None).and_then(http.upgrade(takeover).finish(app)))
            })
        } else {
            server.listen("public", listener, move || {
                let (http, app, _) = set_up();
                over_sockets(sockets(tls.clone()).and_then(http.finish(app)))
            })
        };
        Ok(server?.run())
    }
}

/// Looks after the credentials of open connections.
struct Open {
    authenticator: Arc<Authenticator>,
    seats: Arc<Seats>,
}

impl Credentials for Open {
    fn renew(&self, token: String) -> LocalBoxFuture<'static, Result<Principal, &'static str>> {
        let (authenticator, seats) = (Arc::clone(&self.authenticator), Arc::clone(&self.seats));
        Box::pin(async move {
            if !authenticator.takes_tokens() {
                return Err("not_accepted");
            }
            let principal = authenticator.verify(&token).await.map_err(|fault| fault.label())?;
            match seats.revoked(&principal).await {
                Ok(false) => Ok(principal),
                Ok(true) => Err("revoked"),
                Err(_) => Err("unavailable"),
            }
        })
    }

    fn recheck(&self, principal: &Principal) -> LocalBoxFuture<'static, Standing> {
        let (authenticator, principal) = (Arc::clone(&self.authenticator), principal.clone());
        Box::pin(async move {
            match authenticator.recheck(&principal).await {
                Rechecked::Holds(now) => Standing::Holds(Box::new(now)),
                Rechecked::Ended => Standing::Ended,
                Rechecked::Unknown => Standing::Unknown,
            }
        })
    }
}

/// Made on the worker's own thread.
fn worker(
    state: &Arc<public::State>,
    takes_sockets: bool,
    heartbeat: Duration,
    leeway: Duration,
    recheck: Duration,
    inbound: Option<Inbound>,
) -> public::Worker {
    let credentials = Rc::new(Open {
        authenticator: Arc::clone(&state.authenticator),
        seats: Arc::clone(&state.seats),
    });
    let metrics = state.metrics.clone();
    let inbound = inbound.map(|Inbound { per_second, burst }| Allowance { per_second, burst });
    public::Worker {
        shard: state.registry.attach(),
        wheel: Wheel::spawn(state.registry.vital("timer wheel of a worker")),
        settings: Rc::new(Settings {
            heartbeat,
            leeway,
            credentials,
            recheck,
            metrics,
            inbound,
            outlet: state.outlet.clone(),
            replays: Arc::clone(&state.replays),
        }),
        state: Arc::clone(state),
        scratch: Rc::new(Scratch::default()),
        takes_sockets,
        http: ServiceConfig::default(),
    }
}

/// Starts the internal server: a listener, workers and limits of its own, so that health and
/// metrics answer while the public one is at its limit.
///
/// # Errors
/// The system's.
pub fn start_internal(
    listener: TcpListener,
    workers: usize,
    state: web::Data<internal::State>,
    tls: Option<Arc<Tls>>,
) -> io::Result<Server> {
    let address = listener.local_addr()?;
    let mutual = tls.as_ref().is_some_and(|tls| tls.is_mutual());
    let server = Server::build().workers(workers).shutdown_timeout(5).disable_signals().listen(
        "internal",
        listener,
        move || {
            let app = App::new()
                .app_data(state.clone())
                .wrap(Condition::new(mutual, from_fn(internal::only_vouched_for)))
                .configure(internal::routes);
            let app = app.into_factory().map_err(|error| error.error_response());
            let http = http(address)
                .on_connect_ext(|stream: &Stream, extensions| {
                    if stream.is_vouched_for() {
                        extensions.insert(internal::VouchedFor);
                    }
                })
                .finish(map_config(app, |()| AppConfig::default()));
            over_sockets(sockets(tls.clone()).and_then(http))
        },
    )?;
    Ok(server.run())
}

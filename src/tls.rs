//! TLS on our own listeners, over the socket that can be cut.
//!
//! A handshake is the most expensive thing that a stranger can ask for, so each worker does one
//! expensive step of one handshake and then lets its connections have a turn: a wave of clients
//! that return together takes longer, and those who are connected do not notice.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use arc_swap::ArcSwap;
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{
    config::tls::Tls as Files,
    net::{Link, Socket},
};

/// A handshake must be complete within this.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes that may be under way on one listener, each from the client's hello on; who comes beyond is
/// disconnected and comes back. Those who have not said that much cost a socket each, and are not
/// counted here: the silent must not keep out those who speak.
const HANDSHAKES: usize = 4096;
/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// What one listener's handshakes are made with. Shared by its workers.
pub struct Tls {
    files: Files,
    /// What the files held before they were read.
    held: Contents,
    config: ArcSwap<ServerConfig>,
    under_way: Semaphore,
}

/// One worker's turns in its handshakes.
#[derive(Clone)]
pub struct Turns(Rc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Rc::new(Semaphore::new(1)))
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn new(files: Files) -> Result<Self, String> {
        let held = contents(&files);
        let config = load(&files)?;
        Ok(Self {
            files,
            held,
            config: ArcSwap::from_pointee(config),
            under_way: Semaphore::new(HANDSHAKES),
        })
    }

    /// Whether clients are asked for certificates.
    #[must_use]
    pub fn is_mutual(&self) -> bool {
        self.files.client_ca_file.is_some()
    }

    /// Does the handshake on an accepted connection.
    ///
    /// # Errors
    /// When it fails or takes too long, or when too many are under way.
    pub async fn accept(&self, socket: Socket, turns: &Turns) -> io::Result<Stream> {
        match timeout(HANDSHAKE, self.shake(socket, turns)).await {
            Ok(stream) => Ok(Stream::Secure(Box::new(stream?))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "a slow TLS handshake")),
        }
    }

    async fn shake(&self, socket: Socket, turns: &Turns) -> io::Result<TlsStream<Socket>> {
        // A client that sends nothing waits here, and in nobody's way.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let Ok(_room) = self.under_way.try_acquire() else {
            return Err(io::Error::other("too many TLS handshakes at once"));
        };
        // The semaphore is never closed.
        let turn = turns.0.acquire().await.map_err(io::Error::other)?;
        // The key exchange and the signature; what follows is cheap.
        let mut accept = pin!(hello.into_stream(self.config.load_full()));
        let first = poll_fn(|cx| Poll::Ready(accept.as_mut().poll(cx))).await;
        yield_now().await;
        drop(turn);
        match first {
            Poll::Ready(done) => done,
            Poll::Pending => accept.await,
        }
    }
}

fn load(files: &Files) -> Result<ServerConfig, String> {
    files.load().map_err(|faults| {
        let told: Vec<String> = faults.into_iter().map(|(_, problem)| problem.what).collect();
        told.join("; ")
    })
}

/// Follows the files of these listeners. What they said before stays in force until they are
/// whole again; connections that are open keep what they were made with.
pub async fn watch(listeners: Vec<(&'static str, Arc<Tls>)>) {
    let mut seen: Vec<Contents> = listeners.iter().map(|(_, tls)| tls.held.clone()).collect();
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !listeners.is_empty() {
        tick.tick().await;
        for ((listener, tls), seen) in listeners.iter().zip(&mut seen) {
            // Off the event loop: a file may sit on a slow volume.
            let (files, before) = (tls.files.clone(), seen.clone());
            let look = move || {
                let now = contents(&files);
                (now != before).then(|| (load(&files), now))
            };
            let loaded = match tokio::task::spawn_blocking(look).await {
                Ok(None) => continue,
                Ok(Some((loaded, now))) => {
                    *seen = now;
                    loaded
                }
                Err(error) => Err(error.to_string()),
            };
            match loaded {
                Ok(config) => {
                    tls.config.store(Arc::new(config));
                    tracing::info!(target: "audit", action = "rotated", what = "tls", listener);
                }
                Err(why) => tracing::error!(
                    why,
                    listener,
                    "the files of TLS are no good; what they said before stays in force"
                ),
            }
        }
    }
}

/// What the files hold; `None` for one that cannot be read or is not configured.
type Contents = [Option<Vec<u8>>; 3];

fn contents(files: &Files) -> Contents {
    let paths = [Some(&files.cert_file), Some(&files.key_file), files.client_ca_file.as_ref()];
    paths.map(|path| std::fs::read(path?).ok())
}

/// A connection of either kind.
pub enum Stream {
    /// As it is.
    Plain(Socket),
    /// Encrypted. Boxed, so that plain connections do not pay for its size.
    Secure(Box<TlsStream<Socket>>),
}

impl Stream {
    /// The handle of the socket below.
    #[must_use]
    pub fn link(&self) -> Link {
        match self {
            Self::Plain(socket) => socket.link(),
            Self::Secure(stream) => stream.get_ref().0.link(),
        }
    }

    /// Whether the client showed a certificate, which then was checked.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Secure(stream) => stream.get_ref().1.peer_certificates().is_some(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            // Below TLS an end of file without its alert is an attack, and an error; here it is us.
            Self::Secure(stream) if stream.get_ref().0.link().is_finishing() => Poll::Ready(Ok(())),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Secure(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
        task::{JoinHandle, LocalSet, spawn_local},
    };
    use tokio_rustls::TlsConnector;

    use super::*;

    /// A listener with room for so many handshakes, and a client that trusts it.
    struct Bench {
        tls: Arc<Tls>,
        turns: Turns,
        listener: TcpListener,
        client: Arc<ClientConfig>,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        async fn with_room(handshakes: usize) -> Self {
            let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let [cert_file, key_file] = ["cert", "key"].map(|name| dir.path().join(name));
            std::fs::write(&cert_file, own.cert.pem()).unwrap();
            std::fs::write(&key_file, own.signing_key.serialize_pem()).unwrap();
            let mut tls = Tls::new(Files { cert_file, key_file, client_ca_file: None }).unwrap();
            tls.under_way = Semaphore::new(handshakes);
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(own.cert.pem().as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(aws_lc_rs::default_provider());
            let client = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (tls, client) = (Arc::new(tls), Arc::new(client));
            Self { tls, turns: Turns::default(), listener, client, _dir: dir }
        }

        /// Both ends of a new connection: the client's, and what becomes of ours.
        async fn connect(&self) -> (TcpStream, JoinHandle<io::Result<Stream>>) {
            let theirs = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
            let ours = Socket::new(self.listener.accept().await.unwrap().0).unwrap();
            let (tls, turns) = (Arc::clone(&self.tls), self.turns.clone());
            (theirs, spawn_local(async move { tls.accept(ours, &turns).await }))
        }

        async fn is_served(&self) -> bool {
            let (theirs, ours) = self.connect().await;
            let name = ServerName::try_from("localhost").unwrap();
            let theirs = TlsConnector::from(Arc::clone(&self.client)).connect(name, theirs).await;
            theirs.is_ok() && ours.await.unwrap().is_ok()
        }

        fn hello(&self) -> Vec<u8> {
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            hello
        }
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_nobody_out() {
        let test = async {
            let bench = Bench::with_room(2).await;
            let mut open = Vec::new();
            for n in 0..20 {
                let (mut theirs, ours) = bench.connect().await;
                if n % 2 == 0 {
                    theirs.write_all(&bench.hello()[..20]).await.unwrap();
                }
                open.push((theirs, ours));
            }
            assert!(bench.is_served().await);
            assert!(open.iter().all(|(_, ours)| !ours.is_finished()), "they have time left");
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn handshakes_beyond_the_bound_are_refused() {
        let test = async {
            let bench = Bench::with_room(2).await;
            let mut open = Vec::new();
            for _ in 0..2 {
                let (mut theirs, ours) = bench.connect().await;
                theirs.write_all(&bench.hello()).await.unwrap();
                // The answer to the hello is there, so the handshake is under way.
                theirs.readable().await.unwrap();
                open.push((theirs, ours));
            }
            assert!(!bench.is_served().await);
            let (theirs, ours) = open.pop().unwrap();
            drop(theirs);
            assert!(ours.await.unwrap().is_err());
            assert!(bench.is_served().await);
        };
        LocalSet::new().run_until(test).await;
    }
}

//! An accepted socket that can be cut.
//!
//! actix-http has no write timeout and cannot close a peer that stopped reading: its dispatcher
//! waits in a flush before it arms any timer (actix/actix-web#2441, closed as "won't fix"). So the
//! public listener hands it this socket instead, and whoever holds the [`Link`] can end it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::{Shutdown, SocketAddr},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use actix_rt::net::TcpStream;
use futures_util::future::LocalBoxFuture;
use socket2::{SockRef, TcpKeepalive};

/// Unacknowledged or unsendable data for this long ends the connection in the kernel. It is the
/// net under our own deadlines, so it is longer than they are; a shorter one also kills readers
/// that are slow but alive. The kernel looks every few seconds only, so that whoever takes nothing
/// is gone after 45 s.
const USER_TIMEOUT: Duration = Duration::from_secs(40);
/// Bytes that the kernel takes beyond what the peer's window lets it send. The default is megabytes,
/// in front of a queue that is bounded for a reason; and a peer that reads slowly must still get to
/// the close behind them.
const UNSENT: u32 = 64 * 1024;
/// Idle time before the kernel asks whether the peer still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Writes that may be tried in a row while the peer takes nothing. What is queued for one peer is
/// bounded, so more of them mean that it is sending what nobody reads: once actix has buffered
/// enough of that, it would try without a pause.
const IN_VAIN: u32 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    None,
    /// Behave as if the peer had closed: flush, then FIN.
    Finish,
    /// Fail at once, and send a reset.
    Reset,
}

/// The handle of a socket. Lives on the socket's thread.
#[derive(Clone)]
pub struct Link(Rc<LinkState>);

struct LinkState {
    tcp: Weak<TcpStream>,
    /// The socket is no longer HTTP's.
    taken: Cell<bool>,
    /// Someone waits until HTTP has written what it had to.
    awaited: Cell<bool>,
    next: Cell<Option<LocalBoxFuture<'static, ()>>>,
    wish: Cell<Wish>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
    closed: Cell<bool>,
    watcher: RefCell<Option<Waker>>,
}

impl Link {
    /// Waits until HTTP has handed over to the socket what it had to write, answers to earlier
    /// requests: what it still holds when the socket is taken is lost. For its own handlers.
    pub async fn written(&self) {
        let mut asked = false;
        poll_fn(|_| {
            // HTTP flushes after it has asked its handler, and then asks it again.
            if !std::mem::replace(&mut asked, true) {
                self.0.awaited.set(true);
            }
            if self.0.awaited.get() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Takes the socket away from HTTP: whatever that still wants to read or write fails, and so it
    /// ends. `None` when the socket is closed or taken. Not for a socket that bears TLS.
    #[must_use]
    pub fn take(&self) -> Option<Taken> {
        let tcp = self.0.tcp.upgrade().filter(|_| !self.0.taken.replace(true))?;
        Some(Taken { tcp, link: self.clone() })
    }

    /// Names what goes on once HTTP is done with this connection, by a transport that has taken its
    /// socket.
    pub fn hand_over(&self, next: LocalBoxFuture<'static, ()>) {
        self.0.next.set(Some(next));
    }

    /// What goes on, if HTTP has handed the connection over.
    #[must_use]
    pub fn next(&self) -> Option<LocalBoxFuture<'static, ()>> {
        self.0.next.take()
    }

    /// What was handed over is still written, then the socket closes.
    pub fn finish(&self) {
        if self.0.wish.get() == Wish::None {
            self.set(Wish::Finish);
        }
    }

    /// The socket closes now, whatever is still to be written.
    pub fn reset(&self) {
        self.set(Wish::Reset);
    }

    /// Waits until the socket is closed. For one task at a time.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            if self.0.closed.get() {
                return Poll::Ready(());
            }
            *self.0.watcher.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether it was cut.
    pub(crate) fn is_reset(&self) -> bool {
        self.0.wish.get() == Wish::Reset
    }

    /// Whether it was asked to close after what was handed over.
    pub(crate) fn is_finishing(&self) -> bool {
        self.0.wish.get() == Wish::Finish
    }

    fn set(&self, wish: Wish) {
        self.0.wish.set(wish);
        for waker in [&self.0.reader, &self.0.writer] {
            if let Some(waker) = waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

/// See the module.
pub struct Socket {
    tcp: Rc<TcpStream>,
    link: Link,
    in_vain: u32,
}

/// A socket that was taken away from HTTP.
pub struct Taken {
    /// The socket itself. It closes when nobody holds it any more.
    pub tcp: Rc<TcpStream>,
    link: Link,
}

impl Taken {
    /// Whether it was cut.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.link.is_reset()
    }
}

impl Socket {
    /// Sets the options of an accepted connection and makes it cuttable.
    ///
    /// # Errors
    /// When the peer is gone already, as far as an option tells.
    pub fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let options = SockRef::from(&tcp);
        options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        options.set_tcp_notsent_lowat(UNSENT)?;
        options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let tcp = Rc::new(tcp);
        let state = LinkState {
            tcp: Rc::downgrade(&tcp),
            taken: Cell::new(false),
            awaited: Cell::new(false),
            next: Cell::new(None),
            wish: Cell::new(Wish::None),
            reader: RefCell::new(None),
            writer: RefCell::new(None),
            closed: Cell::new(false),
            watcher: RefCell::new(None),
        };
        Ok(Self { tcp, link: Link(Rc::new(state)), in_vain: 0 })
    }

    /// The handle of this socket.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// Who is at its other end.
    ///
    /// # Errors
    /// When that is gone already.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }

    /// Notes who is to be woken when the link is cut; an error when it has been.
    fn check(&self, slot: &RefCell<Option<Waker>>, cx: &Context<'_>) -> io::Result<()> {
        if self.link.0.taken.get() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "taken from HTTP"));
        }
        if self.link.is_reset() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the server"));
        }
        let mut slot = slot.borrow_mut();
        if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *slot = Some(cx.waker().clone());
        }
        Ok(())
    }
}

impl Socket {
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match write(&self.tcp) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Counts writes that the peer did not let happen.
    fn written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.in_vain = if written.is_pending() { self.in_vain + 1 } else { 0 };
        if self.in_vain > IN_VAIN {
            self.link.reset();
        }
        written
    }
}

impl Link {
    /// The last use of its socket is over.
    fn close(&self, tcp: &TcpStream) {
        // With a linger time of zero the kernel drops what it holds and sends RST (tcp(7)).
        if self.is_reset()
            && let Err(error) = SockRef::from(tcp).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a socket is closed instead of reset");
        }
        self.0.closed.set(true);
        if let Some(waker) = self.0.watcher.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.link.0.taken.get() {
            self.link.close(&self.tcp);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.link.close(&self.tcp);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(&self.link.0.reader, cx)?;
        if self.link.0.wish.get() == Wish::Finish {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(&self.link.0.writer, cx)?;
        let written = self.poll_with(cx, |tcp| tcp.try_write(buf));
        self.written(written)
    }

    /// Nothing is kept back, so there is nothing to flush. Who writes here flushes when all is written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.link.0.awaited.replace(false) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.link.0.taken.get() {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(match SockRef::from(&*self.tcp).shutdown(Shutdown::Write) {
            // It is gone already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(&self.link.0.writer, cx)?;
        let written = self.poll_with(cx, |tcp| tcp.try_write_vectored(bufs));
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

//! An accepted socket that can be cut.
//!
//! actix-http has no write timeout and cannot close a peer that stopped reading: its dispatcher
//! waits in a flush before it arms any timer (actix/actix-web#2441, closed as "won't fix"). So the
//! public listener hands it this socket instead, and whoever holds the [`Link`] can end it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
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
    next: Cell<Option<LocalBoxFuture<'static, ()>>>,
    wish: Cell<Wish>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
    closed: Cell<bool>,
    watcher: RefCell<Option<Waker>>,
}

impl Link {
    /// Names what goes on once HTTP is done with this connection, by a transport that has taken its
    /// socket over.
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
    tcp: TcpStream,
    link: Link,
    in_vain: u32,
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
        let state = LinkState {
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

    /// The socket itself, for a transport that drives it without actix. Its task looks at
    /// [`Link::is_reset`] by itself.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Notes who is to be woken when the link is cut; an error when it has been.
    fn check(&self, slot: &RefCell<Option<Waker>>, cx: &Context<'_>) -> io::Result<()> {
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
    /// Counts writes that the peer did not let happen.
    fn written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.in_vain = if written.is_pending() { self.in_vain + 1 } else { 0 };
        if self.in_vain > IN_VAIN {
            self.link.reset();
        }
        written
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // With a linger time of zero the kernel drops what it holds and sends RST (tcp(7)).
        if self.link.is_reset()
            && let Err(error) = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a socket is closed instead of reset");
        }
        self.link.0.closed.set(true);
        if let Some(waker) = self.link.0.watcher.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(&self.link.0.reader, cx)?;
        if self.link.0.wish.get() == Wish::Finish {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(&self.link.0.writer, cx)?;
        let written = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(&self.link.0.writer, cx)?;
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

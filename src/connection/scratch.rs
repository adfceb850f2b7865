//! The buffer that all connections of a worker read through: an idle one needs none of its own.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::Shutdown,
    task::{Context, Poll, ready},
};

use actix_rt::net::TcpStream;
use bytes::BytesMut;
use socket2::SockRef;

/// Bytes that are read at once.
const READ: usize = 8 * 1024;

/// See the module.
#[derive(Default)]
pub struct Scratch(Cell<BytesMut>);

impl Scratch {
    /// Reads what has come, into a buffer that is to be given back. An empty one is the end.
    pub(super) fn poll_read(
        &self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<BytesMut>> {
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            let mut buffer = self.0.take();
            buffer.reserve(READ);
            match tcp.try_read_buf(&mut buffer) {
                Ok(_) => return Poll::Ready(Ok(buffer)),
                Err(error) => {
                    self.give_back(buffer);
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return Poll::Ready(Err(error));
                    }
                }
            }
        }
    }

    /// For the next one.
    pub(super) fn give_back(&self, mut buffer: BytesMut) {
        buffer.clear();
        self.0.set(buffer);
    }

    /// Closes our side, and reads and discards until the peer has closed its own.
    pub(super) async fn hang_up(&self, tcp: &TcpStream, most: &mut usize) {
        if SockRef::from(tcp).shutdown(Shutdown::Write).is_ok() {
            poll_fn(|cx| self.poll_discard(tcp, most, cx)).await;
        }
    }

    /// Reads and discards until the peer closes, or has sent more than `most` bytes.
    pub(super) fn poll_discard(
        &self,
        tcp: &TcpStream,
        most: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let Ok(buffer) = ready!(self.poll_read(tcp, cx)) else { return Poll::Ready(()) };
            let read = buffer.len();
            self.give_back(buffer);
            if read == 0 || read > *most {
                return Poll::Ready(());
            }
            *most -= read;
        }
    }
}

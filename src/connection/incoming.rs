//! What both transports of WebSocket make of what the codec decodes: whole messages, and close codes
//! for its errors.

use std::{io, str::Utf8Error};

use actix_http::{
    error::PayloadError,
    ws::{Item, ProtocolError},
};
use bytes::BytesMut;

use super::Received;
use crate::event::CloseCause;

/// The message whose pieces are coming in.
pub(super) struct Pieces {
    max: usize,
    started: Option<(Kind, BytesMut)>,
    /// Every piece counts as at least one byte, so that empty ones cannot go on for ever.
    cost: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Binary,
}

impl Pieces {
    /// For messages of at most so many bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max, started: None, cost: 0 }
    }

    /// Takes the next piece; the message once it is whole.
    pub(super) fn add(&mut self, item: Item) -> Result<Option<Received>, CloseCause> {
        let (piece, last) = match item {
            Item::FirstText(piece) => {
                self.started = Some((Kind::Text, BytesMut::new()));
                self.cost = 0;
                (piece, false)
            }
            Item::FirstBinary(piece) => {
                self.started = Some((Kind::Binary, BytesMut::new()));
                self.cost = 0;
                (piece, false)
            }
            Item::Continue(piece) => (piece, false),
            Item::Last(piece) => (piece, true),
        };
        let Some((kind, buffer)) = &mut self.started else { return Err(CloseCause::Protocol) };
        self.cost += piece.len().max(1);
        // An empty last piece is no more message than there was.
        if self.cost > self.max + usize::from(last) || buffer.len() + piece.len() > self.max {
            return Err(CloseCause::TooBig);
        }
        buffer.extend_from_slice(&piece);
        if !last {
            return Ok(Some(Received::Piece));
        }
        let (kind, whole) = (*kind, std::mem::take(buffer).freeze());
        self.started = None;
        match kind {
            Kind::Text if std::str::from_utf8(&whole).is_err() => Err(CloseCause::Encoding),
            Kind::Text => Ok(Some(Received::Text(whole))),
            Kind::Binary => Ok(Some(Received::Binary)),
        }
    }
}

/// Which close code an error of the stream deserves. They are untyped in part: the guard's come
/// wrapped as I/O errors, and so does text that is not UTF-8 (actix/actix-web#4217).
pub(super) fn cause(error: &ProtocolError) -> CloseCause {
    match error {
        ProtocolError::Overflow => CloseCause::TooBig,
        ProtocolError::Io(error) => io_cause(error),
        _ => CloseCause::Protocol,
    }
}

fn io_cause(error: &io::Error) -> CloseCause {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<PayloadError>()) {
        Some(PayloadError::Overflow) => return CloseCause::TooBig,
        Some(PayloadError::EncodingCorrupted) => return CloseCause::Protocol,
        Some(_) => return CloseCause::Gone,
        None => {}
    }
    if inner.and_then(|inner| inner.downcast_ref::<Utf8Error>()).is_some() {
        CloseCause::Encoding
    } else if error.kind() == io::ErrorKind::InvalidData {
        CloseCause::Protocol
    } else {
        CloseCause::Gone
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn pieces(max: usize) -> Pieces {
        Pieces::new(max)
    }

    fn bytes(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    #[test]
    fn pieces_join_up_to_the_limit() {
        let mut pieces = pieces(10);
        assert!(pieces.add(Item::FirstText(bytes(5))).is_ok());
        assert!(
            matches!(pieces.add(Item::Last(bytes(5))), Ok(Some(Received::Text(t))) if t.len() == 10)
        );
        assert!(pieces.add(Item::FirstText(bytes(5))).is_ok());
        assert_eq!(pieces.add(Item::Last(bytes(6))).err(), Some(CloseCause::TooBig));
    }

    #[test]
    fn empty_pieces_come_to_an_end() {
        let mut pieces = pieces(100);
        assert!(pieces.add(Item::FirstBinary(bytes(0))).is_ok());
        let end = (0..200).find_map(|n| pieces.add(Item::Continue(bytes(0))).err().map(|e| (n, e)));
        assert_eq!(end, Some((99, CloseCause::TooBig)));
    }

    #[test]
    fn utf8_is_judged_over_the_whole_message() {
        let mut pieces = pieces(100);
        let (head, tail) = "ä€".as_bytes().split_at(3);
        assert!(pieces.add(Item::FirstText(Bytes::copy_from_slice(head))).is_ok());
        assert!(pieces.add(Item::Last(Bytes::copy_from_slice(tail))).is_ok());
        assert!(pieces.add(Item::FirstText(Bytes::copy_from_slice(head))).is_ok());
        assert_eq!(pieces.add(Item::Last(bytes(1))).err(), Some(CloseCause::Encoding));
    }

    #[test]
    fn errors_have_their_codes() {
        let utf8 = String::from_utf8(vec![0xff]).unwrap_err().utf8_error();
        for (error, expected) in [
            (
                ProtocolError::Io(io::Error::new(io::ErrorKind::InvalidData, utf8)),
                CloseCause::Encoding,
            ),
            (
                ProtocolError::Io(io::Error::new(io::ErrorKind::InvalidData, "bits")),
                CloseCause::Protocol,
            ),
            (ProtocolError::Io(io::Error::other(PayloadError::Overflow)), CloseCause::TooBig),
            (ProtocolError::Io(io::Error::other(PayloadError::Incomplete(None))), CloseCause::Gone),
            (ProtocolError::UnmaskedFrame, CloseCause::Protocol),
        ] {
            assert_eq!(cause(&error), expected, "{error:?}");
        }
    }
}

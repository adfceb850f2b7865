//! Bounds what a peer can make us buffer, before the codec sees a byte.
//!
//! actix's frame parser waits until a whole declared frame is buffered and only then compares its
//! length with the limit, so a declared terabyte would be read into memory. The guard follows the
//! frame headers (RFC 6455 §5.2) as bytes pass and refuses at the first byte that says too much.
//! It decodes nothing: that stays with the codec.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_http::error::PayloadError;
use actix_web::dev;
use bytes::Bytes;
use futures_core::Stream;

use crate::event::CloseCause;

/// Longest payload of a control frame (RFC 6455 §5.5).
const CONTROL_BYTES: u64 = 125;
/// The bit of the opcode that marks control frames.
const CONTROL: u8 = 0x08;
const FIN: u8 = 0x80;
const MASK: u8 = 0x80;

/// What the guard objects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// A frame declares more than is allowed.
    TooBig,
    /// A header that the protocol forbids.
    Malformed,
}

impl From<Objection> for CloseCause {
    fn from(objection: Objection) -> Self {
        match objection {
            Objection::TooBig => Self::TooBig,
            Objection::Malformed => Self::Protocol,
        }
    }
}

impl From<Objection> for PayloadError {
    fn from(objection: Objection) -> Self {
        match objection {
            Objection::TooBig => Self::Overflow,
            Objection::Malformed => Self::EncodingCorrupted,
        }
    }
}

/// Where in the stream of frames we are.
#[derive(Debug)]
pub(super) struct Headers {
    max: u64,
    header: [u8; 10],
    have: u8,
    /// Bytes of mask and payload that still belong to the current frame.
    skip: u64,
}

impl Headers {
    /// For frames of at most so many bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max: max as u64, header: [0; 10], have: 0, skip: 0 }
    }

    /// Looks at the bytes that came next.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Objection> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let n = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
                continue;
            }
            self.header[usize::from(self.have)] = *first;
            self.have += 1;
            bytes = rest;
            if let Some(length) = self.length()? {
                if length > self.max {
                    return Err(Objection::TooBig);
                }
                let mask = if self.header[1] & MASK == 0 { 0 } else { 4 };
                self.skip = length + mask;
                self.have = 0;
            }
        }
        Ok(())
    }

    /// The declared payload length, once its last byte is here.
    fn length(&self) -> Result<Option<u64>, Objection> {
        if self.have < 2 {
            return Ok(None);
        }
        let [first, second, ..] = self.header;
        let short = u64::from(second & !MASK);
        if first & CONTROL != 0 && (short > CONTROL_BYTES || first & FIN == 0) {
            return Err(Objection::Malformed);
        }
        let (extended, least) = match short {
            126 => (2, 126),
            127 => (8, 65_536),
            _ => return Ok(Some(short)),
        };
        if usize::from(self.have) < 2 + extended {
            return Ok(None);
        }
        let length = self.header[2..2 + extended]
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        // "the minimal number of bytes MUST be used", and the topmost of 64 bits must be zero.
        if length < least || length >> 63 != 0 {
            return Err(Objection::Malformed);
        }
        Ok(Some(length))
    }
}

/// A request payload that ends with an error where a frame header says too much.
pub(super) struct Guard {
    payload: dev::Payload,
    headers: Headers,
}

impl Guard {
    /// Lets frames of at most `max` bytes pass.
    pub(super) fn new(payload: dev::Payload, max: usize) -> Self {
        Self { payload, headers: Headers::new(max) }
    }
}

impl Stream for Guard {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(Pin::new(&mut this.payload).poll_next(cx)) {
            Some(Ok(chunk)) => {
                Some(this.headers.follow(&chunk).map(|()| chunk).map_err(PayloadError::from))
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(max: u64) -> Headers {
        Headers::new(usize::try_from(max).unwrap())
    }

    #[test]
    fn the_declared_length_decides_before_the_payload_comes() {
        let declare = |bytes: &[u8]| headers(1000).follow(bytes);
        assert_eq!(declare(&[0x81, 0xfe, 0x03, 0xe8]), Ok(()));
        assert_eq!(declare(&[0x81, 0xfe, 0x03, 0xe9]), Err(Objection::TooBig));
        assert_eq!(declare(&[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0]), Err(Objection::TooBig));
        assert_eq!(declare(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(Objection::Malformed));
    }

    #[test]
    fn lengths_that_could_be_shorter_are_malformed() {
        assert_eq!(headers(1 << 20).follow(&[0x81, 0xfe, 0, 125]), Err(Objection::Malformed));
        assert_eq!(headers(1 << 20).follow(&[0x81, 0xfe, 0, 126]), Ok(()));
        let long = [0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(headers(1 << 20).follow(&long), Err(Objection::Malformed));
    }

    #[test]
    fn control_frames_are_short_and_whole() {
        assert_eq!(headers(1000).follow(&[0x89, 0xfe]), Err(Objection::Malformed));
        assert_eq!(headers(1000).follow(&[0x09, 0x80]), Err(Objection::Malformed));
        assert_eq!(headers(1000).follow(&[0x89, 0xfd]), Ok(()));
    }

    proptest! {
        /// However the bytes are cut into reads, the guard finds the same frame boundaries.
        #[test]
        fn cuts_do_not_matter(lengths in prop::collection::vec(0_usize..70_000, 1..6), cut in 1_usize..100) {
            let mut wire = Vec::new();
            for len in lengths {
                wire.push(0x82);
                match len {
                    0..=125 => wire.push(0x80 | u8::try_from(len).unwrap()),
                    126..=65_535 => { wire.push(0xfe); wire.extend(u16::try_from(len).unwrap().to_be_bytes()); }
                    _ => { wire.push(0xff); wire.extend((len as u64).to_be_bytes()); }
                }
                wire.extend(std::iter::repeat_n(0xff, len + 4));
            }
            let mut headers = headers(70_000);
            for chunk in wire.chunks(cut) {
                prop_assert_eq!(headers.follow(chunk), Ok(()));
            }
            prop_assert_eq!((headers.have, headers.skip), (0, 0));
        }
    }
}

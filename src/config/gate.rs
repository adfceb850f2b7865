//! How fast and how often clients may come, and what they may send: part of `[limits]`.

use std::num::NonZeroU32;

use super::{network::Network, reader::Reader};

/// The limits of the gate and of what comes in through it. `None`: no such limit.
#[derive(Clone, Debug)]
pub struct Gate {
    /// `public.trusted_proxies`: whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// `limits.connections_per_address`
    pub connections_per_address: Option<NonZeroU32>,
    /// `limits.handshakes_per_second`
    pub handshakes_per_second: Option<NonZeroU32>,
    /// `limits.handshake_queue`: requests that may wait for their turn.
    pub handshake_queue: usize,
    /// `limits.inbound_per_second` and `limits.inbound_burst`: messages of one connection.
    pub inbound: Option<Inbound>,
}

/// What one connection may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Messages a second, for ever.
    pub per_second: NonZeroU32,
    /// Messages at once, after a rest.
    pub burst: NonZeroU32,
}

/// More than anyone means, and far from where arithmetic with nanoseconds ends.
const MOST: usize = 1_000_000;

/// Reads all of it.
pub(super) fn read(reader: &mut Reader) -> Gate {
    let trusted_proxies =
        reader.list("public.trusted_proxies", Network::parse, ToString::to_string);
    Gate {
        trusted_proxies,
        connections_per_address: limit(reader, "limits.connections_per_address"),
        handshakes_per_second: limit(reader, "limits.handshakes_per_second"),
        handshake_queue: reader.count("limits.handshake_queue", 0..=MOST),
        inbound: inbound(reader),
    }
}

/// A count in which 0 stands for no limit.
fn limit(reader: &mut Reader, key: &str) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(reader.count(key, 0..=MOST)).unwrap_or(0))
}

fn inbound(reader: &mut Reader) -> Option<Inbound> {
    let per_second = limit(reader, "limits.inbound_per_second");
    let burst = reader.count("limits.inbound_burst", 1..=MOST);
    let burst = NonZeroU32::new(u32::try_from(burst).unwrap_or(1))?;
    Some(Inbound { per_second: per_second?, burst })
}

/// `100/s` or `30/m`: how often an API key may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls in one period, and at once after a rest.
    pub count: NonZeroU32,
    /// What they are counted over.
    pub per: Period,
}

/// A second or a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// `/s`
    Second,
    /// `/m`
    Minute,
}

impl Rate {
    /// Reads one; `None` where the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, per) = text.split_once('/')?;
        let per = match per {
            "s" => Period::Second,
            "m" => Period::Minute,
            _ => return None,
        };
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let count: NonZeroU32 = count.parse().ok()?;
        (count.get() as usize <= MOST).then_some(Self { count, per })
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per = match self.per {
            Period::Second => "s",
            Period::Minute => "m",
        };
        write!(f, "{}/{per}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for text in ["1/s", "100/s", "30/m", "1000000/s"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "100", "0/s", "-1/s", "+1/s", "1/h", "1.5/s", "/s", "1000001/s", "1/s/s"] {
            assert_eq!(Rate::parse(text), None, "{text}");
        }
    }
}

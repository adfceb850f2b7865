//! Networks as operators write them: `10.0.0.0/8`, `fd00::/8`, or one address.

use std::{fmt, net::IpAddr};

use super::fault::Problem;

/// An address with the number of its leading bits that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads one.
    ///
    /// # Errors
    /// What is no address, or has bits beyond its prefix: `10.0.0.1/8` is more likely a slip than
    /// a network.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let bad = |what: &str| {
            Problem::new(
                format!("{text:?} {what}"),
                "write an address such as 10.1.2.3, or a network such as 10.0.0.0/8 or fd00::/8",
            )
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad("has no IP address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= most)
                .ok_or_else(|| bad("has a bad number of bits after the slash"))?,
        };
        let network = Self { address, prefix };
        if network.cut(address) != bits(address) {
            return Err(bad("has bits set beyond its prefix"));
        }
        Ok(network)
    }

    /// Whether the address is in it. An IPv4 address written as IPv6 (`::ffff:10.1.2.3`) is an
    /// IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && self.cut(address) == bits(self.address)
    }

    /// The leading bits of an address of the same family.
    fn cut(&self, address: IpAddr) -> u128 {
        let host = if address.is_ipv4() { 32 } else { 128 } - u32::from(self.prefix);
        bits(address).checked_shr(host).and_then(|net| net.checked_shl(host)).unwrap_or(0)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_what_they_should() {
        for (network, address, holds) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("192.168.1.7", "192.168.1.7", true),
            ("192.168.1.7", "192.168.1.8", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe00::1", false),
            ("2001:db8::1/128", "2001:db8::1", true),
        ] {
            let read = Network::parse(network).unwrap();
            assert_eq!(read.contains(address.parse().unwrap()), holds, "{network} {address}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "router", "10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0.0/", "10/8"] {
            assert!(Network::parse(text).is_err(), "{text}");
        }
    }
}

//! Which address a request comes from, seen through the proxies in front.

use std::net::{IpAddr, SocketAddr};

use actix_http::header::{HeaderMap, X_FORWARDED_FOR};

use crate::config::network::Network;

/// Hops that are looked at; a longer way is no way.
const HOPS: usize = 32;

/// The client's address. Each proxy writes at the right end of `X-Forwarded-For` who came to it, so
/// the hops are believed from there, as long as the one that wrote them is ours. What stands left
/// of the first that is not ours, the client may have written itself.
pub(super) fn address(peer: IpAddr, headers: &HeaderMap, ours: &[Network]) -> IpAddr {
    let is_ours = |address: IpAddr| ours.iter().any(|network| network.contains(address));
    let mut client = peer;
    if !is_ours(client) {
        return client;
    }
    // Several headers of the name are one list, in their order (RFC 9110 §5.3).
    let lines: Vec<_> = headers.get_all(X_FORWARDED_FOR).collect();
    let hops = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for hop in hops.take(HOPS) {
        let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| parse(hop.trim())) else {
            // The last good one: it is at least where the malformed one came through.
            return client;
        };
        client = address;
        if !is_ours(client) {
            return client;
        }
    }
    client
}

/// An address, with or without the port that some proxies add.
fn parse(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(hop)
        .parse()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use actix_http::header::HeaderValue;

    use super::*;

    fn seen(peer: &str, lines: &[&'static str]) -> String {
        let ours = ["10.0.0.0/8", "fd00::/8"].map(|text| Network::parse(text).unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_static(line));
        }
        address(peer.parse().unwrap(), &headers, &ours).to_string()
    }

    #[test]
    fn the_right_most_hop_that_is_not_ours() {
        for (peer, lines, client) in [
            // A stranger's header is worth nothing.
            ("203.0.113.9", &["1.2.3.4"][..], "203.0.113.9"),
            ("203.0.113.9", &[], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            // What the client wrote stands left of what our proxy saw.
            ("10.0.0.1", &["1.2.3.4, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["1.2.3.4,203.0.113.9 , 10.7.7.7"], "203.0.113.9"),
            ("10.0.0.1", &["1.2.3.4", "203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9", "10.7.7.7, fd00::7"], "203.0.113.9"),
            // Ours all the way: someone inside.
            ("10.0.0.1", &["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            // With ports, in brackets, mapped.
            ("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            // What is malformed ends the way.
            ("10.0.0.1", &["203.0.113.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9, , 10.2.2.2"], "10.2.2.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
        ] {
            assert_eq!(seen(peer, lines), client, "{peer} {lines:?}");
        }
    }

    #[test]
    fn a_long_way_costs_little() {
        let long: &'static str = Box::leak("10.2.2.2,".repeat(1_000).into_boxed_str());
        assert_eq!(seen("10.0.0.1", &[long]), "10.0.0.1");
    }
}

//! Which pages may connect. Neither browsers nor actix stop another site's page from opening a
//! WebSocket with the user's cookie (cross-site WebSocket hijacking), so the gateway does.

use actix_http::header::{self, HeaderMap};

/// The Origins whose pages may connect, beside the request's own host.
#[derive(Clone, Debug, Default)]
pub struct Origins(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    scheme: String,
    host: HostPattern,
    port: PortPattern,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Exact(String),
    /// Subdomains at any depth, the name itself not.
    Below(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PortPattern {
    Exact(Option<u16>),
    Any,
}

/// What an `Origin` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    /// `None`: the scheme's own.
    port: Option<u16>,
}

/// The verdict on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may connect.
    Allowed,
    /// There is no `Origin`: not a browser, or one that hides it.
    Missing,
    /// Another site's page, or something malformed; as it was sent.
    Foreign(String),
}

impl Origins {
    /// Reads the patterns of `auth.origins`.
    ///
    /// # Errors
    /// The first that is none: neither `scheme://host[:port]` nor one with `*.` before the host or
    /// `*` as the port.
    pub fn parse(patterns: &[String]) -> Result<Self, String> {
        patterns
            .iter()
            .map(|text| pattern(text).ok_or_else(|| text.clone()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether the page that sent this may connect.
    #[must_use]
    pub fn check(&self, headers: &HeaderMap) -> Verdict {
        let mut values = headers.get_all(header::ORIGIN);
        let Some(value) = values.next() else { return Verdict::Missing };
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let allowed = values.next().is_none()
            && origin(&text).is_some_and(|origin| {
                self.0.iter().any(|pattern| pattern.matches(&origin)) || own_host(&origin, headers)
            });
        if allowed { Verdict::Allowed } else { Verdict::Foreign(text) }
    }
}

impl Pattern {
    fn matches(&self, origin: &Origin) -> bool {
        let host = match &self.host {
            HostPattern::Exact(host) => *host == origin.host,
            HostPattern::Below(parent) => origin
                .host
                .strip_suffix(parent.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|below| !below.is_empty()),
        };
        let port = match self.port {
            PortPattern::Exact(port) => port == origin.port,
            PortPattern::Any => true,
        };
        host && port && self.scheme == origin.scheme
    }
}

/// A page of the very host and port that the request went to. The scheme cannot be compared: TLS
/// ends before us, at the router.
fn own_host(origin: &Origin, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST);
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some((name, port)) = host.to_str().ok().and_then(authority) else { return false };
    let usual = default_port(&origin.scheme);
    name == origin.host && port.filter(|port| Some(*port) != usual) == origin.port
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    }
}

/// `scheme://host[:port]` and nothing after it (RFC 6454 §6.2).
fn origin(text: &str) -> Option<Origin> {
    let (scheme, rest) = text.split_once("://")?;
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    let (host, port) = authority(rest)?;
    let port = port.filter(|port| Some(*port) != default_port(scheme));
    Some(Origin { scheme: scheme.to_owned(), host, port })
}

fn pattern(text: &str) -> Option<Pattern> {
    let (scheme, rest) = text.split_once("://")?;
    let (rest, any_port) = match rest.strip_suffix(":*") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (rest, below) = match rest.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let Origin { scheme, host, port } = origin(&format!("{scheme}://{rest}"))?;
    if any_port && port.is_some() {
        return None;
    }
    Some(Pattern {
        scheme,
        host: if below { HostPattern::Below(host) } else { HostPattern::Exact(host) },
        port: if any_port { PortPattern::Any } else { PortPattern::Exact(port) },
    })
}

/// Host in lower case, and the port if one is named; IPv6 hosts keep their brackets.
fn authority(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text.ends_with(']') => {
            let (host, port) = text.split_at(colon);
            let digits = port.strip_prefix(':')?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            (host, Some(digits.parse().ok()?))
        }
        _ => (text, None),
    };
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let legal = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    legal.then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use actix_http::header::HeaderValue;

    use super::*;

    fn check(patterns: &[&str], origin: &str, host: &str) -> Verdict {
        let patterns: Vec<String> = patterns.iter().map(|&text| text.to_owned()).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        Origins::parse(&patterns).unwrap().check(&headers)
    }

    #[test]
    fn only_listed_origins() {
        let list = ["https://app.example", "https://*.wild.example", "http://localhost:*"];
        for (origin, allowed) in [
            ("https://app.example", true),
            ("https://APP.example", true),
            ("https://app.example:443", true),
            ("http://app.example", false),
            ("https://app.example:8443", false),
            ("https://app.example.evil.com", false),
            ("https://evilapp.example", false),
            ("https://app.example@evil.com", false),
            ("https://app.example/path", false),
            ("https://a.wild.example", true),
            ("https://a.b.wild.example", true),
            ("https://wild.example", false),
            ("https://evilwild.example", false),
            ("https://.wild.example", false),
            ("http://localhost", true),
            ("http://localhost:5173", true),
            ("https://localhost:5173", false),
            ("null", false),
            ("", false),
            ("https://", false),
            ("file://app.example", false),
        ] {
            let verdict = check(&list, origin, "gateway.example");
            assert_eq!(verdict == Verdict::Allowed, allowed, "{origin}");
        }
    }

    #[test]
    fn the_own_host_is_always_allowed() {
        for (origin, host, allowed) in [
            ("https://gw.example", "gw.example", true),
            ("http://gw.example", "gw.example", true),
            ("https://gw.example", "gw.example:443", true),
            ("https://gw.example:8443", "gw.example:8443", true),
            ("https://gw.example:8443", "gw.example", false),
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
            ("http://127.0.0.1:8081", "127.0.0.1:8080", false),
            ("http://[::1]:8080", "[::1]:8080", true),
            ("https://gw.example", "other.example", false),
        ] {
            assert_eq!(check(&[], origin, host) == Verdict::Allowed, allowed, "{origin} {host}");
        }
    }

    #[test]
    fn two_origins_are_foreign_and_none_is_missing() {
        let mut headers = HeaderMap::new();
        assert_eq!(Origins::default().check(&headers), Verdict::Missing);
        headers.append(header::HOST, HeaderValue::from_static("a"));
        headers.append(header::ORIGIN, HeaderValue::from_static("http://a"));
        assert_eq!(Origins::default().check(&headers), Verdict::Allowed);
        headers.append(header::ORIGIN, HeaderValue::from_static("http://a"));
        assert!(matches!(Origins::default().check(&headers), Verdict::Foreign(_)));
    }

    #[test]
    fn patterns_that_are_none() {
        for text in
            ["*", "app.example", "https://*", "https://a.*.example", "https://a:1:*", "https://a/"]
        {
            assert_eq!(Origins::parse(&[text.to_owned()]).err().as_deref(), Some(text));
        }
    }
}

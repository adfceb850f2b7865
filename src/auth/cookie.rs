//! Finding a cookie in a request (RFC 6265 §5.4).

use actix_http::header::{self, HeaderMap};
use cookie::Cookie;

/// The values of every cookie of this name; more than one means that which is meant cannot be
/// known. Quotes around a value are taken off (§4.1.1), and nothing else is decoded: to us a value
/// is opaque.
pub(super) fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(header::COOKIE)
        // Other programs' cookies may hold any bytes; they must not take ours along.
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .flat_map(|value| {
            Cookie::split_parse(value.into_owned())
                .filter_map(Result::ok)
                .filter(|cookie| cookie.name() == name)
                .map(|cookie| cookie.value_trimmed().to_owned())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use actix_http::header::HeaderValue;

    use super::*;

    fn found(lines: &[&[u8]]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_bytes(line).unwrap());
        }
        values(&headers, "session_id")
    }

    #[test]
    fn ours_among_others() {
        for line in [
            "session_id=abc",
            "a=1; session_id=abc",
            "a=1;session_id=abc;b=2",
            " session_id = abc ",
            "session_id=\"abc\"",
            "a=\"x;session_id=abc",
            "=; ; a; session_id=abc",
        ] {
            assert_eq!(found(&[line.as_bytes()]), ["abc"], "{line}");
        }
        assert_eq!(found(&[b"a=\xe9\xff; session_id=abc"]), ["abc"]);
        assert_eq!(found(&[b"a=1", b"session_id=abc"]), ["abc"]);
    }

    #[test]
    fn nothing_is_decoded() {
        assert_eq!(found(&[b"session_id=s%3Aa=b+c/d"]), ["s%3Aa=b+c/d"]);
    }

    #[test]
    fn near_misses_and_twins() {
        for line in ["Session_id=a", "xsession_id=a", "session_id2=a", "a=session_id=b", ""] {
            assert_eq!(found(&[line.as_bytes()]), Vec::<String>::new(), "{line}");
        }
        assert_eq!(found(&[b"session_id=a; session_id=b"]), ["a", "b"]);
        assert_eq!(found(&[b"session_id=a", b"session_id=a"]), ["a", "a"]);
        assert_eq!(found(&[b"session_id="]), [""]);
    }
}

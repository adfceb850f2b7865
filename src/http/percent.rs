//! Percent-encoding (RFC 3986 §2.1), read back.

/// Replaces each `%` and two hexadecimal digits by its byte, once; what only looks like the
/// beginning of one stays as it is. `None`: the outcome is not UTF-8.
pub(super) fn decode(text: &[u8]) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                digit(*high).zip(digit(*low)).map(|(high, low)| (high << 4 | low, after))
            }
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((*byte, after));
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_and_no_more() {
        for (text, expected) in [
            ("", ""),
            ("alice", "alice"),
            ("%2e%2E", ".."),
            ("a%2Fb%25%3F%23", "a/b%?#"),
            ("%252F", "%2F"),
            ("%C3%A9", "é"),
            ("é", "é"),
            ("%", "%"),
            ("%2", "%2"),
            ("%zz%4", "%zz%4"),
            ("%%341", "%41"),
            ("a+b", "a+b"),
        ] {
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(decode(b"%ff"), None);
        assert_eq!(decode(b"%C3"), None);
    }
}

//! What a client's text message means.

use serde::Deserialize;

/// The types that Belfry itself understands (contract §3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    /// `{"type":"pong"}`
    Pong,
    /// `{"type":"belfry.token","token":"…"}`
    Token(String),
    /// Any other JSON object.
    Other,
    /// Not one JSON object.
    Invalid,
}

#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    token: Option<String>,
}

impl ClientMessage {
    pub(super) fn parse(text: &[u8]) -> Self {
        // serde would take an array for a struct as well.
        if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Self::Invalid;
        }
        match serde_json::from_slice::<Typed>(text) {
            Ok(Typed { kind: Some(kind), token }) => match (kind.as_str(), token) {
                ("pong", _) => Self::Pong,
                ("belfry.token", Some(token)) => Self::Token(token),
                _ => Self::Other,
            },
            Ok(_) => Self::Other,
            // A member of another type than we expect is a client's own business.
            Err(error) if error.is_data() && is_json(text) => Self::Other,
            Err(_) => Self::Invalid,
        }
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        for (text, expected) in [
            (r#"{"type":"pong"}"#, ClientMessage::Pong),
            (r#"{"type":"belfry.token","token":"a.b.c"}"#, ClientMessage::Token("a.b.c".into())),
            (r#"{"type":"belfry.token"}"#, ClientMessage::Other),
            (r#"{"type":"belfry.token","token":7}"#, ClientMessage::Other),
            (r#"{"type":7}"#, ClientMessage::Other),
            (r#" {"a":[1,{}]} "#, ClientMessage::Other),
            ("{}", ClientMessage::Other),
            ("[]", ClientMessage::Invalid),
            (r#"["pong","x"]"#, ClientMessage::Invalid),
            ("null", ClientMessage::Invalid),
            ("7", ClientMessage::Invalid),
            (r#"{"type":"pong""#, ClientMessage::Invalid),
            (r#"{"type":7,"a":}"#, ClientMessage::Invalid),
            ("{} {}", ClientMessage::Invalid),
            ("", ClientMessage::Invalid),
        ] {
            assert_eq!(ClientMessage::parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = "[".repeat(16_000);
        assert_eq!(ClientMessage::parse(deep.as_bytes()), ClientMessage::Invalid);
    }
}

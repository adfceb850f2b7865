//! What a client's text message means.

use serde::Deserialize;
use serde_json::Value;

/// The types that Belfry itself understands (contract §3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    /// `{"type":"pong"}`
    Pong,
    /// `{"type":"belfry.token","token":"…"}`; `None` without a string there.
    Token(Option<String>),
    /// `{"type":"ping"}` or `{"type":"belfry.…"}`: a word of Belfry's that means nothing here.
    Reserved,
    /// Any other JSON object: a message for back ends.
    Other,
    /// Not one JSON object.
    Invalid,
}

/// Members of any type: one that we do not expect is a client's own business.
#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(default)]
    token: Value,
}

impl ClientMessage {
    pub(super) fn parse(text: &[u8]) -> Self {
        // serde would take an array for a struct as well.
        if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Self::Invalid;
        }
        match serde_json::from_slice::<Typed>(text) {
            Ok(Typed { kind, token }) => match (kind.as_str(), token) {
                (Some("pong"), _) => Self::Pong,
                (Some("belfry.token"), Value::String(token)) => Self::Token(Some(token)),
                (Some("belfry.token"), _) => Self::Token(None),
                (Some(kind), _) if is_reserved(kind) => Self::Reserved,
                _ => Self::Other,
            },
            // A member that stands there twice is still an object.
            Err(error) if error.is_data() && is_json(text) => Self::Other,
            Err(_) => Self::Invalid,
        }
    }
}

/// As the API refuses them, so that a later version can give them a meaning.
fn is_reserved(kind: &str) -> bool {
    kind == "ping" || kind.starts_with("belfry.")
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
            (
                r#"{"type":"belfry.token","token":"a.b.c"}"#,
                ClientMessage::Token(Some("a.b.c".into())),
            ),
            (r#"{"type":"belfry.token"}"#, ClientMessage::Token(None)),
            (r#"{"type":"belfry.token","token":7}"#, ClientMessage::Token(None)),
            (r#"{"type":"ping"}"#, ClientMessage::Reserved),
            (r#"{"type":"belfry.order"}"#, ClientMessage::Reserved),
            (r#"{"type":"belfry"}"#, ClientMessage::Other),
            (r#"{"type":"chat","type":"belfry.x"}"#, ClientMessage::Other),
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

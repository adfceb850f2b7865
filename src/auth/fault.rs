//! Why a token is refused.

use crate::event::NameError;

/// The rule that a token breaks. The text never repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than `auth.token_bytes`.
    #[error("the token is longer than {0} bytes (auth.token_bytes)")]
    TooLong(usize),
    /// Not three parts of base64url that hold JSON.
    #[error("this is not a JSON Web Token")]
    Malformed,
    /// The header names an algorithm that is not accepted.
    #[error("the algorithm is not one of the configured `algorithms`")]
    Algorithm,
    /// RFC 7515 §4.1.11: extensions that must be understood, and are not.
    #[error("the header has `crit`, and no extension is supported")]
    Critical,
    /// No issuer of the configuration has this `iss`.
    #[error("the issuer (`iss`) is none of those configured")]
    Issuer,
    /// No key is configured.
    #[error("no key is configured (secret, public_key_files or jwks_url)")]
    NoKey,
    /// `kid` names no key of the issuer, or is none.
    #[error("the issuer has no such key (`kid`)")]
    UnknownKey,
    /// The issuer's keys, or newer ones, cannot be had now: nothing is known of this token.
    #[error("the issuer's keys could not be fetched in time (jwks_url), so the signature is open")]
    Away,
    /// The signature is not the issuer's.
    #[error("the signature does not match")]
    Signature,
    /// A claim that is required is missing.
    #[error("the claim `{0}` is missing")]
    Missing(String),
    /// A claim has the wrong JSON type.
    #[error("the claim `{0}` has the wrong type")]
    Type(String),
    /// `exp` and the leeway have passed.
    #[error("the token has expired (`exp`)")]
    Expired,
    /// `nbf`, less the leeway, is still to come.
    #[error("the token is not valid yet (`nbf`)")]
    NotYet,
    /// `iat`, less the leeway, is still to come: a token from the future would outlive an order
    /// that ends all tokens issued until now.
    #[error("the token was issued in the future (`iat`)")]
    Future,
    /// `aud` is for others.
    #[error("the audience (`aud`) is none of those configured")]
    Audience,
    /// An order to log someone out, which lets no one in.
    #[error("this is a logout token, not a credential (`events`)")]
    Logout,
    /// An order to log someone out that is good for longer than it can be remembered.
    #[error("the logout token is good for more than an hour (`exp`)")]
    LongLived,
    /// The claim that names the user holds no legal user id.
    #[error("the user id {0}")]
    User(NameError),
    /// A group's name is not legal.
    #[error("a group's name {0}")]
    Group(NameError),
    /// More groups than `limits.groups`.
    #[error("the token names more than {0} groups (limits.groups)")]
    Groups(usize),
}

impl Fault {
    /// A word from a closed set, for `belfry.renewal_failed` and metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYet => "not_yet_valid",
            Self::Away => "unavailable",
            _ => "invalid",
        }
    }
}

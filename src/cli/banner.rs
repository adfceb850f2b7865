//! What a person who starts Belfry in development sees first.

use std::{net::SocketAddr, time::Duration};

use super::{failure::status, token};
use crate::{
    config::{Config, Profile, secrets},
    event::UserId,
};

/// Whom the banner's token is for.
const USER: &str = "alice";

/// Long enough for a day's work.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// A token for alice, good for 24 h, where this is development and there is a secret to sign with.
#[must_use]
pub fn development_token(config: &Config) -> Option<String> {
    if config.profile != Profile::Development {
        return None;
    }
    let user = UserId::new(USER).ok()?;
    token::sign(&config.auth, &user, &[], None, TTL).ok()
}

/// Shows the [`banner`] on standard error, where there is one.
pub fn greet(config: &Config, public: SocketAddr, internal: SocketAddr) {
    let text = banner(&program(), config, public, internal, development_token(config).as_deref());
    if !text.is_empty() {
        status(&text);
    }
}

/// This program as it was called, so that the line works when pasted: `belfry` where it is
/// installed, a path where it was just built.
fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if called.contains('/') && !called.contains(' ') { called } else { "belfry".to_owned() }
}

/// The URLs, and two commands to paste that show an event arrive. Empty in production.
///
/// `public` and `internal` are the addresses that the listeners have in fact; `token` is
/// [`development_token`]'s.
#[must_use]
pub fn banner(
    program: &str,
    config: &Config,
    public: SocketAddr,
    internal: SocketAddr,
    token: Option<&str>,
) -> String {
    if config.profile != Profile::Development {
        return String::new();
    }
    let base = &config.public.base_path;
    let ws = if config.public.tls.is_some() { "wss" } else { "ws" };
    let http = if config.internal.tls.is_some() { "https" } else { "http" };
    let listen_at = match (ws, public.to_string().as_str(), base.as_str()) {
        ("ws", "127.0.0.1:8080", "") => String::new(),
        (ws, address, base) => format!(" --url {ws}://{address}{base}"),
    };
    let listen = match token {
        Some(token) => format!("{program} listen{listen_at} --token {token}"),
        None => format!("{program} listen{listen_at} --token <a token of yours>"),
    };
    let known = secrets::hash(secrets::DEVELOPMENT_KEY);
    let key = if config.api.keys.iter().any(|key| key.hash == known) {
        secrets::DEVELOPMENT_KEY
    } else {
        "<an API key of yours>"
    };
    format!(
        r#"
  Belfry {version}, development profile: for this machine only.

  browsers    {ws}://{public}{base}/ws/notifications
  back ends   {http}://{internal}/v1/events

  Listen as {USER} (the token is good for 24 h):

{listen}

  Then, in another terminal, send her an event:

curl -X POST {http}://{internal}/v1/events \
  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
  -d '{{"to":{{"user":"{USER}"}},"type":"hello","data":{{"text":"It works."}}}}'

"#,
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn config(env: &[(&str, &str)]) -> Config {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
        load::load(&Sources { env, ..Sources::default() }).unwrap()
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_commands_use_the_ports_in_fact() {
        let config = config(&[("BELFRY__PUBLIC__BASE_PATH", "/push")]);
        let text = banner("belfry", &config, at(4001), at(4002), Some("t.o.k"));
        assert!(text.contains("\nbelfry listen --url ws://127.0.0.1:4001/push --token t.o.k\n"));
        assert!(text.contains("curl -X POST http://127.0.0.1:4002/v1/events \\\n"));
        assert!(text.contains("Bearer belfry-development-key"));
        assert!(text.contains(r#"-d '{"to":{"user":"alice"},"type":"hello""#));
    }

    #[test]
    fn the_default_port_needs_no_url() {
        let text = banner("belfry", &config(&[]), at(8080), at(8081), Some("t.o.k"));
        assert!(text.contains("\nbelfry listen --token t.o.k\n"), "{text}");
    }

    #[test]
    fn own_secrets_are_not_guessed_at() {
        let key = format!("x:{}", "0".repeat(64));
        let config = config(&[("BELFRY__API__KEYS", &key), ("BELFRY__AUTH__JWT__SECRET", "")]);
        assert_eq!(development_token(&config), None);
        let text = banner("belfry", &config, at(8080), at(8081), None);
        assert!(text.contains("--token <a token of yours>"));
        assert!(!text.contains("belfry-development-key"));
    }

    #[test]
    fn production_says_nothing() {
        let key = format!("x:{}", "0".repeat(64));
        let config = config(&[
            ("BELFRY_PROFILE", "production"),
            ("BELFRY__API__KEYS", &key),
            ("BELFRY__AUTH__JWT__SECRET", "0123456789abcdef0123456789abcdef"),
        ]);
        assert_eq!(development_token(&config), None);
        assert_eq!(banner("belfry", &config, at(8080), at(8081), Some("t")), "");
    }
}

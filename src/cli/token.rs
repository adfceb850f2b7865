//! `belfry token` and `belfry token check`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use jsonwebtoken::{AlgorithmFamily, EncodingKey, Header};
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};

use super::{
    failure::{self, Failure},
    remote,
};
use crate::{
    auth::jwt::{Fault, Verifier},
    config::{Auth, Config, Sources, load, units},
    event::{Group, UserId},
};

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
        belfry token --user alice\n  \
        belfry token --user alice --group team-a --group admins --ttl 10m\n  \
        belfry token check eyJhbGciOi…\n\n\
        The token is signed with the secret of the configuration in force."
)]
pub(super) struct Token {
    #[command(subcommand)]
    action: Option<TokenAction>,
    /// Who the token is for
    #[arg(long, required = true, value_parser = user)]
    user: Option<UserId>,
    /// A group to name in it; may be repeated
    #[arg(long = "group", value_name = "GROUP", value_parser = group)]
    groups: Vec<Group>,
    /// How long it is good for
    #[arg(long, default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    /// The session it belongs to
    #[arg(long)]
    session: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TokenAction {
    /// Say whether a token would be accepted, and if not, which rule it fails
    #[command(after_help = "Examples:\n  \
        belfry token check eyJhbGciOi…\n  \
        belfry token --user alice | belfry token check -")]
    Check {
        /// The token, or - to read it from standard input
        jwt: String,
    },
}

pub(super) fn user(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|error| error.to_string())
}

pub(super) fn group(text: &str) -> Result<Group, String> {
    Group::new(text).map_err(|error| error.to_string())
}

pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(ttl) => Ok(ttl),
        Err(error) => Err(format!("{error}; write 10m, 1h or 1d")),
    }
}

impl Token {
    pub(super) fn run(self, sources: &Sources) -> Result<(), Failure> {
        let config = load::load(sources)?;
        match (self.action, self.user) {
            (Some(TokenAction::Check { jwt }), _) => check(&config, failure::or_stdin(jwt)?.trim()),
            (None, Some(user)) => {
                let session = self.session.as_deref();
                failure::print(&sign(&config.auth, &user, &self.groups, session, self.ttl)?)
            }
            // clap asks for the user.
            (None, None) => Err(Failure::new("name a --user")),
        }
    }
}

fn check(config: &Config, token: &str) -> Result<(), Failure> {
    let verifier = Verifier::new(config);
    let verdict = remote::block_on(async {
        let verdict = async {
            tokio::select! {
                biased;
                verdict = verifier.verify(token) => Some(verdict),
                // Returns where there is no key set to fetch.
                () = verifier.follow(None) => None,
            }
        };
        Ok(match verdict.await {
            Some(verdict) => verdict,
            None => verifier.verify(token).await,
        })
    })?;
    let by = verifier.section(token).map(|section| format!(" by {section}")).unwrap_or_default();
    match verdict {
        Ok(principal) => {
            let groups: Vec<&str> = principal.groups.iter().map(Group::as_str).collect();
            failure::print(&format!("accepted{by}: user {:?}, groups {groups:?}", principal.user))
        }
        Err(rule @ Fault::Away) => Err(Failure::new(format!("cannot be checked{by}: {rule}"))),
        Err(rule) => Err(Failure::new(format!("refused{by}: {rule}"))),
    }
}

/// Signs a token with the configured secret and the first accepted algorithm that uses one.
///
/// # Errors
/// No secret or no algorithm is configured, or signing fails.
pub(super) fn sign(
    auth: &Auth,
    user: &UserId,
    groups: &[Group],
    session: Option<&str>,
    ttl: Duration,
) -> Result<String, Failure> {
    let jwt = &auth.jwt;
    let algorithm = jwt.algorithms.iter().find(|a| a.family() == AlgorithmFamily::Hmac);
    let (Some(secret), Some(algorithm)) = (&jwt.secret, algorithm) else {
        return Err(Failure::new(
            "no secret to sign with: set BELFRY__AUTH__JWT__SECRET or …_SECRET_FILE to the \
             gateway's own, and an algorithm such as HS256",
        ));
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Failure::new("the clock stands before 1970"))?;
    // RFC 7519 §4.1.4 wants whole seconds here in practice; a part of one must not make it 0.
    let ends = now.saturating_add(ttl.max(Duration::from_secs(1)));
    let mut claims = Map::new();
    claims.insert(jwt.user_claim.clone(), user.as_str().into());
    if let Some(session) = session {
        claims.insert(jwt.session_claim.clone(), session.into());
    }
    if !groups.is_empty() {
        let groups: Vec<Value> = groups.iter().map(|group| group.as_str().into()).collect();
        claims.insert(jwt.groups_claim.clone(), groups.into());
    }
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("exp".to_owned(), ends.as_secs().into());
    for (claim, value) in [("iss", jwt.issuer.as_ref()), ("aud", jwt.audience.first())] {
        if let Some(value) = value {
            claims.insert(claim.to_owned(), value.as_str().into());
        }
    }
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    jsonwebtoken::encode(&Header::new(*algorithm), &claims, &key)
        .map_err(|error| Failure::new(format!("cannot sign: {error}")))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};

    use super::*;
    use crate::config::secrets::DEVELOPMENT_SECRET;

    fn auth(settings: &[(&str, &str)]) -> Auth {
        let env = settings.iter().map(|(key, value)| ((*key).to_owned(), value.into())).collect();
        load::load(&Sources { env, ..Sources::default() }).unwrap().auth
    }

    #[test]
    fn a_token_bears_what_was_asked_for() {
        let auth = auth(&[
            ("BELFRY__AUTH__JWT__ALGORITHMS", "HS512"),
            ("BELFRY__AUTH__JWT__ISSUER", "https://id.example"),
            ("BELFRY__AUTH__JWT__AUDIENCE", "belfry"),
            ("BELFRY__AUTH__JWT__USER_CLAIM", "user"),
        ]);
        let groups = [group("a").unwrap(), group("b").unwrap()];
        let hour = Duration::from_secs(3600);
        let token = sign(&auth, &user("al:ice").unwrap(), &groups, Some("s1"), hour).unwrap();

        let mut validation = Validation::new(Algorithm::HS512);
        validation.set_audience(&["belfry"]);
        validation.set_issuer(&["https://id.example"]);
        let key = DecodingKey::from_secret(DEVELOPMENT_SECRET.as_bytes());
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["user"], "al:ice");
        assert_eq!(claims["sid"], "s1");
        assert_eq!(claims["groups"], serde_json::json!(["a", "b"]));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
    }

    #[test]
    fn without_a_secret_there_is_no_token() {
        let auth = auth(&[("BELFRY__AUTH__JWT__SECRET", "")]);
        let failure = sign(&auth, &user("alice").unwrap(), &[], None, Duration::from_secs(1));
        assert!(failure.unwrap_err().to_string().contains("no secret to sign with"));
    }
}

//! `belfry publish`

use std::time::Duration;

use clap::{ArgGroup, Args};
use reqwest::Url;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    failure::{self, Failure},
    remote,
    token::{group, ttl, user},
};
use crate::{
    config::{Profile, Sources, secrets::DEVELOPMENT_KEY},
    event::{Group, UserId},
};

/// Where the internal API is in development.
const DEFAULT_URL: &str = "http://127.0.0.1:8081";

/// Longer than the 2 s within which the API answers, whatever Redis does.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("target").required(true).args(["users", "group", "broadcast"]),
    after_help = "Examples:\n  \
        belfry publish --user alice --type certificate_processed '{\"id\":7}'\n  \
        belfry publish --group team-a --except bob '\"hello\"'\n  \
        echo '{\"text\":\"back in a minute\"}' | belfry publish --broadcast -\n\n\
        The key is read from BELFRY_API_KEY; in development it is the development key."
)]
pub(super) struct Publish {
    /// To one user, in all tabs; repeated, to several users
    #[arg(long = "user", value_name = "USER", value_parser = user, help_heading = "Target")]
    users: Vec<UserId>,
    /// To everyone in a group
    #[arg(long, value_parser = group, help_heading = "Target")]
    group: Option<Group>,
    /// To everyone
    #[arg(long, help_heading = "Target")]
    broadcast: bool,
    /// But not to this user; may be repeated
    #[arg(long, value_name = "USER", value_parser = user, help_heading = "Target")]
    except: Vec<UserId>,
    /// The event's type
    #[arg(long = "type", value_name = "TYPE", default_value = "message", help_heading = "Event")]
    kind: String,
    /// Who sends it, so that a tab can tell its own echo
    #[arg(long, help_heading = "Event")]
    sender: Option<String>,
    /// Only for those who are connected now: it is never kept
    #[arg(long, help_heading = "Event")]
    transient: bool,
    /// Not replayed any more after this time, such as 10m
    #[arg(
        long,
        value_name = "TIME",
        value_parser = ttl,
        conflicts_with = "transient",
        help_heading = "Event"
    )]
    ttl: Option<Duration>,
    /// Repeated under the same key within 5 minutes, it is published once
    #[arg(long, value_name = "KEY", help_heading = "Event")]
    idempotency_key: Option<String>,
    /// The event's data, any JSON, or - to read it from standard input
    #[arg(value_name = "JSON")]
    data: String,
    #[arg(
        long,
        help = "The internal API of the gateway [env: BELFRY_URL] [default: http://127.0.0.1:8081]"
    )]
    url: Option<String>,
    #[command(flatten)]
    trust: remote::Trust,
}

#[derive(Serialize)]
struct Body<'a> {
    to: Target<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    except: Option<Users<'a>>,
    r#type: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    transient: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Target<'a> {
    User(&'a str),
    Users(Vec<&'a str>),
    Group(&'a str),
    Broadcast(bool),
}

#[derive(Serialize)]
struct Users<'a> {
    users: Vec<&'a str>,
}

impl Publish {
    pub(super) fn run(mut self, sources: &Sources) -> Result<(), Failure> {
        self.data = failure::or_stdin(self.data)?;
        let body = self.body()?;
        let url = endpoint(self.url.as_deref().or_else(|| sources.var("BELFRY_URL")))?;
        let key = api_key(sources)?;
        remote::block_on(async {
            let mut request = remote::http(TIMEOUT, |client| self.trust.apply(client, sources))?
                .post(&url)
                .bearer_auth(key)
                .header("content-type", "application/json")
                .body(body);
            if let Some(key) = &self.idempotency_key {
                request = request.header("idempotency-key", key);
            }
            let response = request.send().await.map_err(|error| {
                let cause = remote::chain(&error.without_url());
                Failure::new(format!("cannot reach {url}: {cause}; is `belfry serve` running?"))
            })?;
            if !response.status().is_success() {
                return Err(remote::refusal(response).await);
            }
            let answer = response.text().await.map_err(|error| {
                Failure::new(format!("the answer broke off: {}", remote::chain(&error)))
            })?;
            failure::print(answer.trim_end())
        })
    }

    /// The request's body, with the data as it was written.
    fn body(&self) -> Result<String, Failure> {
        let bad = |error: serde_json::Error| {
            Failure::new(format!(
                "the data is not JSON: {error}; a text needs its quotes: '\"hi\"'"
            ))
        };
        let data: &RawValue = serde_json::from_str(&self.data).map_err(bad)?;
        let names = |users: &'_ [UserId]| -> Vec<String> {
            users.iter().map(|user| user.as_str().to_owned()).collect()
        };
        let (users, except) = (names(&self.users), names(&self.except));
        let body = Body {
            to: match (users.as_slice(), &self.group) {
                ([user], _) => Target::User(user),
                ([], Some(group)) => Target::Group(group.as_str()),
                ([], None) => Target::Broadcast(true),
                (users, _) => Target::Users(users.iter().map(String::as_str).collect()),
            },
            except: (!except.is_empty())
                .then(|| Users { users: except.iter().map(String::as_str).collect() }),
            r#type: &self.kind,
            data,
            sender: self.sender.as_deref(),
            transient: self.transient,
            // Rounded up: 0 would be no time at all.
            ttl_seconds: self.ttl.map(|ttl| ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)),
        };
        serde_json::to_string(&body).map_err(bad)
    }
}

/// The internal API at `url`, or the one of development.
pub(super) fn api(url: Option<&str>) -> Result<Url, Failure> {
    let text = url.unwrap_or(DEFAULT_URL);
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err(Failure::new(format!(
            "{text:?} is not the URL of an internal API; set BELFRY_URL or --url to one such as \
             {DEFAULT_URL}"
        ))),
    }
}

/// The events' endpoint there.
fn endpoint(url: Option<&str>) -> Result<String, Failure> {
    Ok(format!("{}/v1/events", api(url)?.as_str().trim_end_matches('/')))
}

pub(super) fn api_key(sources: &Sources) -> Result<String, Failure> {
    if let Some(key) = sources.var("BELFRY_API_KEY") {
        return Ok(key.to_owned());
    }
    match sources.profile() {
        Ok(Profile::Development) => Ok(DEVELOPMENT_KEY.to_owned()),
        Ok(Profile::Production) => {
            Err(Failure::new("set BELFRY_API_KEY to a key of this gateway; `belfry key` makes one"))
        }
        Err(fault) => Err(Failure::new(fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(data: &str) -> Publish {
        Publish {
            users: vec![],
            group: None,
            broadcast: false,
            except: vec![],
            kind: "t".to_owned(),
            sender: None,
            transient: false,
            ttl: None,
            idempotency_key: None,
            data: data.to_owned(),
            url: None,
            trust: remote::Trust::default(),
        }
    }

    #[test]
    fn every_target_has_its_body() {
        let users = |names: &[&str]| names.iter().map(|name| user(name).unwrap()).collect();
        let one = Publish { users: users(&["a\"b"]), ..publish("{\"b\":1,  \"a\":1.0}") };
        assert_eq!(
            one.body().unwrap(),
            r#"{"to":{"user":"a\"b"},"type":"t","data":{"b":1,  "a":1.0}}"#
        );
        let several = Publish { users: users(&["a", "b"]), transient: true, ..publish("1e400") };
        assert_eq!(
            several.body().unwrap(),
            r#"{"to":{"users":["a","b"]},"type":"t","data":1e400,"transient":true}"#
        );
        let short = Publish { ttl: Some(Duration::from_millis(1_500)), ..publish("1") };
        assert_eq!(
            short.body().unwrap(),
            r#"{"to":{"broadcast":true},"type":"t","data":1,"ttl_seconds":2}"#
        );
        let group = Publish { group: Some(group("g").unwrap()), ..publish("null") };
        assert_eq!(group.body().unwrap(), r#"{"to":{"group":"g"},"type":"t","data":null}"#);
        let all = Publish {
            broadcast: true,
            except: users(&["c"]),
            sender: Some("s".to_owned()),
            ..publish("[]")
        };
        assert_eq!(
            all.body().unwrap(),
            r#"{"to":{"broadcast":true},"except":{"users":["c"]},"type":"t","data":[],"sender":"s"}"#
        );
    }

    #[test]
    fn data_that_is_not_json_is_refused_here() {
        for bad in ["hello", "", "{} {}", "{\"a\":}"] {
            assert!(publish(bad).body().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_endpoint_belongs_to_the_internal_api() {
        assert_eq!(endpoint(None).unwrap(), "http://127.0.0.1:8081/v1/events");
        assert_eq!(
            endpoint(Some("https://b.example/x/")).unwrap(),
            "https://b.example/x/v1/events"
        );
        for bad in ["ws://127.0.0.1:8080", "127.0.0.1:8081", "", "localhost:8081"] {
            assert!(endpoint(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_development_key_is_only_for_development() {
        let key = |env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
            api_key(&Sources { env, ..Sources::default() })
        };
        assert_eq!(key(&[]).unwrap(), DEVELOPMENT_KEY);
        assert!(key(&[("BELFRY_PROFILE", "production")]).is_err());
        assert!(key(&[("BELFRY_PROFILE", "prod")]).is_err());
        let given = [("BELFRY_PROFILE", "production"), ("BELFRY_API_KEY", "bk_x")];
        assert_eq!(key(&given).unwrap(), "bk_x");
    }
}

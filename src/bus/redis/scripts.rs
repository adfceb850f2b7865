//! Scripts that run for every event, by their hash, so that a call costs no more than what it says.
//!
//! A server knows a script once it has seen it. New connections show it before they count as up;
//! where a server has forgotten it, or a cluster's slot has moved to one that never saw it, the
//! call is made again with the text. Nothing was done by the first, so nothing is done twice.

use std::future::Future;

use fred::{
    clients::{Client, WithOptions},
    error::Error,
    interfaces::ClientLike,
    types::{CustomCommand, FromValue, Value},
    util::{redis_keyslot, sha1_hash},
};

use super::{commands::Turn, pipeline::pipelined};
use crate::bus::BusError;

/// All of them.
#[derive(Debug)]
pub(super) struct Scripts {
    /// Keeps and publishes one event.
    pub(super) publish: Script,
    /// Reads what a channel keeps.
    pub(super) read: Script,
    /// Looks where channels stand.
    pub(super) glance: Script,
    /// Puts an event back.
    pub(super) restore: Script,
}

/// One script.
#[derive(Debug)]
pub(crate) struct Script {
    text: &'static str,
    hash: String,
}

/// One run of a script.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// All of one slot.
    pub(crate) keys: Vec<Value>,
    pub(crate) arguments: Vec<Value>,
    /// Goes with the text, whatever the server knows.
    pub(crate) whole: bool,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            publish: Script::new(include_str!("publish.lua")),
            read: Script::new(include_str!("read.lua")),
            glance: Script::new(include_str!("glance.lua")),
            restore: Script::new(include_str!("restore.lua")),
        }
    }
}

impl Script {
    /// A script of this text.
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, hash: sha1_hash(text) }
    }

    /// Shows it to a server.
    pub(super) async fn load(&self, client: WithOptions<Client>) -> Result<(), Error> {
        let words: Vec<Value> = vec!["LOAD".into(), self.text.into()];
        let command = CustomCommand::new_static("SCRIPT", None, false);
        client.custom::<Value, _>(command, words).await.map(drop)
    }

    /// Runs all, sent in their order before any is answered. The answers stand in that order, each
    /// for itself.
    pub(crate) async fn run<T: FromValue>(
        &self,
        turn: &Turn<'_>,
        calls: &[Call],
    ) -> Vec<Result<T, BusError>> {
        let first = |call: &Call| self.once(turn, call.clone(), call.whole);
        let mut answers = pipelined(calls.iter().map(first)).await;
        let unknown: Vec<usize> = (answers.iter().enumerate())
            .filter(|(_, answer)| matches!(answer, Err(error) if is_unknown(error)))
            .map(|(n, _)| n)
            .collect();
        let again = |n: &usize| calls.get(*n).map(|call| self.once(turn, call.clone(), true));
        let second = pipelined(unknown.iter().filter_map(again)).await;
        for (n, answer) in unknown.into_iter().zip(second) {
            if let Some(place) = answers.get_mut(n) {
                *place = answer;
            }
        }
        answers
    }

    /// Runs one that is made anew where the server does not know the script.
    pub(super) async fn run_one<T: FromValue>(
        &self,
        turn: &Turn<'_>,
        whole: bool,
        make: impl Fn() -> Call,
    ) -> Result<T, BusError> {
        match self.once(turn, make(), whole).await {
            Err(error) if is_unknown(&error) => self.once(turn, make(), true).await,
            answer => answer,
        }
    }

    fn once<'a, T: FromValue + 'a>(
        &'a self,
        turn: &'a Turn<'_>,
        Call { keys, arguments, .. }: Call,
        whole: bool,
    ) -> impl Future<Output = Result<T, BusError>> + Send + 'a {
        turn.run(move |client| async move {
            let (command, script) = if whole {
                ("EVAL", self.text.into())
            } else {
                ("EVALSHA", self.hash.clone().into())
            };
            evaluate(&client, command, script, keys, arguments).await
        })
    }
}

/// Runs a script that runs seldom, with its text.
pub(crate) async fn eval<T: FromValue>(
    client: WithOptions<Client>,
    script: &'static str,
    keys: Vec<String>,
    arguments: Vec<Value>,
) -> Result<T, Error> {
    let keys = keys.into_iter().map(Value::from).collect();
    evaluate(&client, "EVAL", script.into(), keys, arguments).await
}

/// Not by fred's own `eval`: with that the options of the client are not applied, so it would wait
/// for a connection that does not stand.
async fn evaluate<T: FromValue>(
    client: &WithOptions<Client>,
    command: &'static str,
    script: Value,
    keys: Vec<Value>,
    arguments: Vec<Value>,
) -> Result<T, Error> {
    let first = keys.first().and_then(Value::as_bytes_str);
    let slot = first.map(|key| redis_keyslot(key.as_bytes()));
    let command = CustomCommand::new_static(command, slot, false);
    let mut words = Vec::with_capacity(2 + keys.len() + arguments.len());
    words.extend([script, keys.len().try_into()?]);
    words.extend(keys);
    words.extend(arguments);
    client.custom(command, words).await
}

fn is_unknown(error: &BusError) -> bool {
    matches!(error, BusError::Refused(reason) if reason.starts_with("NOSCRIPT"))
}

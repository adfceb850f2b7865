//! Where the channels of connections that begin together stand, in one look.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    calls::Calls,
    commands::{Commands, Turn},
    desk::Desk,
    foreign::is_foreign,
    scripts::Scripts,
};
use crate::{
    bus::BusError,
    event::{Channel, Position},
};

/// Connections whose channels are looked at in one run of the script: in it Redis does nothing else.
const TOGETHER: usize = 64;

/// Where channels stand.
#[derive(Debug)]
pub(super) struct Glance {
    /// The broker's clock, in milliseconds since 1970.
    pub(super) now: u64,
    /// When its data began.
    pub(super) epoch: u64,
    /// Of each channel.
    pub(super) lasts: Vec<Result<Last, BusError>>,
}

/// What is known of a channel's last id.
#[derive(Debug)]
pub(super) enum Last {
    /// This is it, if there is one.
    Known(Option<Position>),
    /// What others put in its place hides it: a reading of that channel shows what there is.
    Hidden,
}

/// Answers for each connection where its channels stand.
pub(super) type Glances = Desk<Vec<Channel>, Glance>;

/// Looks where channels stand.
#[derive(Debug)]
pub(super) struct Glancer {
    pub(super) commands: Arc<Commands>,
    pub(super) calls: Arc<Calls>,
    pub(super) scripts: Arc<Scripts>,
}

impl Glancer {
    /// Takes questions from now on, on the tokio runtime that this is called in.
    pub(super) fn open(self) -> Glances {
        let this = Arc::new(self);
        Desk::open(move |questions: Vec<Vec<Channel>>| {
            let this = Arc::clone(&this);
            async move { this.look(&questions).await }
        })
    }

    async fn look(&self, questions: &[Vec<Channel>]) -> Vec<Result<Glance, BusError>> {
        let runs: Vec<_> = questions.chunks(TOGETHER).collect();
        let turn = match self.commands.turn(runs.len()).await {
            Ok(turn) => turn,
            Err(error) => return questions.iter().map(|_| Err(error.clone())).collect(),
        };
        let call = |some: &&[Vec<Channel>]| self.calls.glance(some.iter().flatten());
        let calls: Vec<_> = runs.iter().filter_map(call).collect();
        let answers = self.scripts.glance.run::<Vec<Bytes>>(&turn, &calls).await;
        let of_run = |(some, answer)| of_run(&turn, some, answer);
        runs.into_iter().zip(answers).flat_map(of_run).collect()
    }
}

fn of_run(
    turn: &Turn<'_>,
    questions: &[Vec<Channel>],
    answer: Result<Vec<Bytes>, BusError>,
) -> Vec<Result<Glance, BusError>> {
    let mut words = match answer {
        Ok(words) => words.into_iter(),
        Err(error) => return questions.iter().map(|_| Err(error.clone())).collect(),
    };
    let mut number = || std::str::from_utf8(&words.next()?).ok()?.parse::<u64>().ok();
    let (now, epoch) = (number(), number());
    let glance = |channels: &Vec<Channel>| {
        let lasts = words.by_ref().take(channels.len()).map(|word| last(turn, &word)).collect();
        let (now, epoch) = (now.ok_or_else(unreadable)?, epoch.ok_or_else(unreadable)?);
        let glance = Glance { now, epoch, lasts };
        if glance.lasts.len() == channels.len() { Ok(glance) } else { Err(unreadable()) }
    };
    questions.iter().map(glance).collect()
}

fn last(turn: &Turn<'_>, word: &Bytes) -> Result<Last, BusError> {
    match std::str::from_utf8(word).map_err(|_| unreadable())? {
        "" => Ok(Last::Known(None)),
        id => match id.strip_prefix('!') {
            Some(why) if is_foreign(why) => Ok(Last::Hidden),
            Some(why) => Err(turn.refused(why.to_owned())),
            // It may be beyond all numbers.
            None => Ok(id.parse().map_or(Last::Hidden, |at| Last::Known(Some(at)))),
        },
    }
}

fn unreadable() -> BusError {
    BusError::Away("a script's answer cannot be read".to_owned())
}

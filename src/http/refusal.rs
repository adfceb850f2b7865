//! How a refusal is said: as a status, and in the words of a stream.

use rand::Rng as _;

use super::{
    admission::Refusal,
    problem::{Kind, Problem, RETRY_AFTER},
};
use crate::event::CloseCause;

impl Refusal {
    /// As a status with a problem.
    pub(super) fn problem(&self) -> Problem {
        let problem = Problem::new(match self {
            Self::BadRequest(_) => Kind::BadRequest,
            Self::Draining => Kind::Draining,
            Self::Full => Kind::Full,
            Self::Busy | Self::Crowded | Self::TooMany(_) => Kind::Busy,
            Self::Origin(_) => Kind::Origin,
            Self::Unauthorized(_) => Kind::BadCredential,
            Self::Away(_) => Kind::Unavailable,
        });
        let problem = match self {
            Self::BadRequest(detail) => problem.detail(*detail),
            _ => problem,
        };
        match (self, self.retry()) {
            // Spread, so that those who were refused together do not return together.
            (Self::Busy, _) => problem.retry_after(rand::rng().random_range(1..=5)),
            (_, Some((_, seconds))) => problem.retry_after(seconds),
            (_, None) => problem,
        }
    }

    /// What may be better later: how it is said in a goodbye, and after how many seconds to try
    /// again. `None` where trying again is in vain.
    pub(super) fn retry(&self) -> Option<(CloseCause, u32)> {
        match self {
            Self::Draining => Some((CloseCause::Restart, 1)),
            Self::Full => Some((CloseCause::Overloaded, 5)),
            Self::Busy => Some((CloseCause::Overloaded, 3)),
            Self::Away(_) => Some((CloseCause::Overloaded, RETRY_AFTER)),
            Self::Crowded | Self::TooMany(_) => Some((CloseCause::TooMany, 60)),
            Self::BadRequest(_) | Self::Origin(_) | Self::Unauthorized(_) => None,
        }
    }

    /// What the close says in place of its reason, if anything.
    pub(super) fn detail(&self) -> Option<String> {
        self.advice().map(|advice| format!("unauthorized: {advice}"))
    }

    /// What a developer has to change where an Origin was refused.
    pub(super) fn advice(&self) -> Option<String> {
        match self {
            Self::Origin(Some(origin)) => {
                Some(format!("the origin {origin} is not in auth.origins"))
            }
            Self::Origin(None) => Some("a cookie needs an Origin from auth.origins".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Method;

    #[test]
    fn each_has_its_status_and_its_time() {
        for (refusal, status, seconds) in [
            (Refusal::BadRequest("x"), 400, None),
            (Refusal::Draining, 503, Some("1")),
            (Refusal::Full, 503, Some("5")),
            (Refusal::Crowded, 429, Some("60")),
            (Refusal::Origin(None), 403, None),
            (Refusal::Unauthorized(None), 401, None),
            (Refusal::TooMany(Method::Cookie), 429, Some("60")),
            (Refusal::Away(None), 503, Some("2")),
        ] {
            let response = refusal.problem().response();
            let header = response.headers().get("retry-after");
            let header = header.map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(
                (response.status().as_u16(), header.as_deref()),
                (status, seconds),
                "{refusal:?}"
            );
            assert_eq!(refusal.retry().is_some(), seconds.is_some(), "{refusal:?}");
        }
    }

    #[test]
    fn those_who_come_too_fast_are_spread() {
        let waits: std::collections::BTreeSet<String> = (0..200)
            .map(|_| {
                let response = Refusal::Busy.problem().response();
                response.headers().get("retry-after").unwrap().to_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(waits.into_iter().collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
    }
}

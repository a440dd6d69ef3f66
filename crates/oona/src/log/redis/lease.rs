//! Leases on the server: one script for all that a process asks about.

use redis::Value;

use super::RedisLog;
use super::reply::{items, number, text};
use crate::error::LogError;
use crate::lease::term::{Answer, Step};
use crate::lease::{Ask, Candidate};

/// So long a record that nobody writes any more is kept. Only to clear away: no lease ends by it.
const RECORD_LIFE_MS: u64 = 24 * 3600 * 1000;

impl RedisLog {
    /// By the urgent connection: a renewal must not wait behind what is being appended.
    pub(crate) async fn leases(
        &self,
        candidate: &Candidate,
        asks: &[Ask],
    ) -> Result<(Vec<Answer>, u64), LogError> {
        let operation = "leases";
        let mut call = self.0.scripts.leases.prepare_invoke();
        call.key(self.released_key());
        for ask in asks {
            call.key(self.lease_key(&ask.name));
        }
        call.arg(&candidate.token).arg(&candidate.holder).arg(RECORD_LIFE_MS);
        for ask in asks {
            match ask.step {
                Step::Release => call.arg("release"),
                Step::Hold { lapsed: None } => call.arg(""),
                Step::Hold { lapsed: Some(version) } => call.arg(version),
            };
        }
        let mut connection = self.connection(true);
        let value: Value = self.bounded(operation, call.invoke_async(&mut connection)).await?;
        answers(value)
            .filter(|(answers, _)| answers.len() == asks.len())
            .ok_or(LogError::Reply { operation })
    }
}

fn answers(value: Value) -> Option<(Vec<Answer>, u64)> {
    let mut parts = items(value)?.into_iter();
    let released = number(&parts.next()?)?;
    let answer = |value| {
        let parts = items(value)?;
        let [version, fencing, ours, holder] = parts.as_slice() else { return None };
        Some(Answer {
            version: number(version)?,
            fencing: number(fencing)?,
            is_ours: number(ours)? == 1,
            holder: text(holder)?.to_owned(),
        })
    };
    Some((parts.map(answer).collect::<Option<_>>()?, released))
}

//! Rebuilds that are owed for quarantined artifacts that nobody has asked for: ordered until the builder has answered.

use std::collections::BTreeMap;

use kernel::Digest;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::answer::rebuild;
use crate::demand::{BuildAnswer, BuildRequest, Demand};
use crate::record::Record;

/// Rebuilds that are remembered at once; those beyond are ordered by whoever asks for the kernel.
const LEN_MAX: usize = 4096;

/// What is owed, by the digest of what was quarantined.
#[derive(Debug, Default)]
pub(crate) struct Rebuilds {
    owed: BTreeMap<Digest, Owed>,
}

#[derive(Debug)]
struct Owed {
    request: BuildRequest,
    /// Where the builder answers; `None` while it takes no orders.
    answer: Option<oneshot::Receiver<BuildAnswer>>,
}

impl Rebuilds {
    /// Orders what takes the place of an artifact, now or as soon as the builder takes orders.
    pub(crate) fn owe(&mut self, record: &Record, demand: &Demand) {
        if self.owed.len() >= LEN_MAX {
            let blueprint = &record.job.blueprint;
            tracing::warn!(%blueprint, "rebuild not ordered, the next request orders it");
            return;
        }
        let request = rebuild(record);
        let answer = place(&request, demand);
        self.owed.insert(record.digest, Owed { request, answer });
    }

    /// Lets go of what was answered, and orders again what the builder did not take or dropped.
    pub(crate) fn look(&mut self, demand: &Demand) {
        self.owed.retain(|digest, owed| {
            let Some(answer) = &mut owed.answer else {
                owed.answer = place(&owed.request, demand);
                return true;
            };
            match answer.try_recv() {
                Ok(answer) => {
                    tell(digest, &owed.request, &answer);
                    false
                }
                Err(TryRecvError::Empty) => true,
                Err(TryRecvError::Closed) => {
                    owed.answer = None;
                    true
                }
            }
        });
    }
}

fn place(request: &BuildRequest, demand: &Demand) -> Option<oneshot::Receiver<BuildAnswer>> {
    demand.place(request.clone()).map(|placed| placed.answer)
}

fn tell(digest: &Digest, request: &BuildRequest, answer: &BuildAnswer) {
    let blueprint = &request.blueprint;
    match answer {
        BuildAnswer::Built(record) => {
            tracing::info!(%blueprint, quarantined = %digest, artifact = %record.digest, "quarantined artifact rebuilt");
        }
        BuildAnswer::Unknown => {
            tracing::warn!(%blueprint, artifact = %digest, "quarantined artifact not rebuilt, its blueprint is unknown");
        }
        BuildAnswer::Refused { reason } | BuildAnswer::Failed { reason } => {
            tracing::warn!(%blueprint, artifact = %digest, %reason, "quarantined artifact not rebuilt");
        }
    }
}

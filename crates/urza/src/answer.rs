//! The decision table: from a request for a kernel to its answer.

use leyline::Message;
use leyline::ids::BlueprintId;
use leyline::wire::{KernelArtifactError, KernelArtifactReady, KernelPrefetchRequest};

use crate::demand::{Demand, WhyBuild};
use crate::error::{FetchError, Remedy};
use crate::library::Library;
use crate::metrics::Answered;
use crate::record::Record;

/// The library has no artifact, and none is being built.
pub const MISSING_ARTIFACT: &str = "missing_artifact";
/// The record stands, the file does not.
pub const ARTIFACT_NOT_FOUND: &str = "artifact_not_found";
/// The file is not what the record says.
pub const CHECKSUM_MISMATCH: &str = "checksum_mismatch";
/// The library could not tell; ask again.
pub const UNAVAILABLE: &str = "unavailable";

/// What is known about a request.
#[expect(clippy::large_enum_variant, reason = "short-lived, one for each message at work")]
#[derive(Debug)]
pub(crate) enum Decision {
    /// It can be answered.
    Answer(Answer),
    /// There is no record; somebody may build one.
    Missing,
}

/// An answer, ready to publish.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) message: Message,
    pub(crate) outcome: Answered,
}

impl Answer {
    /// An error with its reason.
    pub(crate) fn error(request: &KernelPrefetchRequest, reason: &str) -> Self {
        let outcome = if reason == MISSING_ARTIFACT { Answered::Miss } else { Answered::Error };
        let message = Message::PrefetchError(KernelArtifactError {
            request_id: request.request_id.clone(),
            blueprint_id: request.blueprint_id.clone(),
            reason: reason.to_owned(),
        });
        Self { message, outcome }
    }

    fn ready(request: &KernelPrefetchRequest, record: &Record) -> Self {
        let message = Message::PrefetchReady(KernelArtifactReady {
            request_id: request.request_id.clone(),
            blueprint_id: request.blueprint_id.clone(),
            artifact_ref: record.path.to_string_lossy().into_owned(),
            checksum: record.digest.to_hex(),
            guard_digest: record.guard_digest.to_hex(),
            prewarm_p50_ms: record.prewarm.p50_ms() as f32,
            prewarm_p95_ms: record.prewarm.p95_ms() as f32,
        });
        Self { message, outcome: Answered::Hit }
    }
}

/// Decides, in the contract's order. An artifact that is gone or corrupt is put into quarantine and
/// ordered anew; the request learns what was found.
pub(crate) async fn decide(
    library: &Library,
    demand: &Demand,
    request: &KernelPrefetchRequest,
) -> Decision {
    let blueprint = BlueprintId::new(request.blueprint_id.clone());
    let record = match library.find(&blueprint).await {
        Ok(Some(record)) => record,
        Ok(None) => return Decision::Missing,
        Err(error) => {
            tracing::warn!(%blueprint, error = &error as &dyn std::error::Error, "library cannot tell, request answered as unavailable");
            return Decision::Answer(Answer::error(request, UNAVAILABLE));
        }
    };
    let answer = match library.verify(&record).await {
        Ok(_) => Answer::ready(request, &record),
        Err(fault) => {
            if fault.remedy() != Remedy::Retry {
                replace(library, demand, &record, &fault).await;
            }
            Answer::error(request, reason(&fault))
        }
    };
    Decision::Answer(answer)
}

const fn reason(fault: &FetchError) -> &'static str {
    match fault {
        FetchError::NotFound { .. } => ARTIFACT_NOT_FOUND,
        FetchError::Corrupt { .. } => CHECKSUM_MISMATCH,
        FetchError::Read { .. }
        | FetchError::TimedOut { .. }
        | FetchError::Full { .. }
        | FetchError::Bucket(_) => UNAVAILABLE,
    }
}

/// Takes an artifact out of offer and orders another.
pub(crate) async fn replace(
    library: &Library,
    demand: &Demand,
    record: &Record,
    fault: &FetchError,
) {
    let blueprint = &record.job.blueprint;
    if let Err(error) = library.quarantine(record, fault).await {
        tracing::error!(%blueprint, error = &error as &dyn std::error::Error, "artifact not marked as quarantined");
    }
    if demand.order(blueprint, WhyBuild::Rebuild).is_none() {
        tracing::warn!(%blueprint, "rebuild not ordered, the next request orders it");
    }
}

//! The decision table: from what somebody wants to its answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;
use leyline::Message;
use leyline::wire::{KernelArtifactError, KernelArtifactReady, KernelPrefetchRequest};
use oona::attributes;
use serde_json::Value;

use crate::demand::{BuildRequest, WhyBuild};
use crate::download::{KERNEL_EXECUTION, KERNEL_SIGNATURE, KERNEL_URL, SIGNATURE, kernel_url};
use crate::error::{FetchError, LibraryError, Remedy};
use crate::lease;
use crate::library::Library;
use crate::metrics::Answered;
use crate::prefetch::{Unfit, Variants, Want};
use crate::record::{Record, RecordState};

/// The library has no artifact, and none will be built.
pub const MISSING_ARTIFACT: &str = "missing_artifact";
/// The record stands, the file does not.
pub const ARTIFACT_NOT_FOUND: &str = "artifact_not_found";
/// The file is not what the record says.
pub const CHECKSUM_MISMATCH: &str = "checksum_mismatch";
/// The library could not tell; ask again.
pub const UNAVAILABLE: &str = "unavailable";
/// It is being built; ask again.
pub const COMPILING: &str = "compiling";
/// The asker's own deadline was over before there was an answer.
pub const DEADLINE_EXCEEDED: &str = "deadline_exceeded";
/// What was asked for does not fit the blueprint, or cannot be read.
pub const INCOMPATIBLE: &str = "incompatible";
/// The blueprint is only built under quarantine.
pub const QUARANTINED: &str = "quarantined";

/// What is known about a want.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    /// It is there, and is what its record says.
    Ready(Arc<Record>),
    /// It cannot be had: the stable reason.
    Error(String),
    /// There is a record, and its file is gone or corrupt; it was put into quarantine. The stable
    /// reason, for whoever is not served by a rebuild.
    Broken(&'static str),
    /// The same of an artifact that was asked for by its digest, which a rebuild may not have: the
    /// reason, and the order for what takes its place. Nobody waits for that.
    Gone { reason: &'static str, order: Box<BuildRequest> },
    /// There is no record; somebody may build one.
    Missing,
}

/// An answer, ready to publish.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) message: Message,
    pub(crate) outcome: Answered,
    pub(crate) attributes: Vec<(&'static str, String)>,
}

impl Answer {
    /// An error with its reason.
    pub(crate) fn error(request: &KernelPrefetchRequest, reason: &str) -> Self {
        let outcome = match reason {
            MISSING_ARTIFACT => Answered::Miss,
            COMPILING => Answered::Compiling,
            DEADLINE_EXCEEDED => Answered::Late,
            _ => Answered::Error,
        };
        let message = Message::PrefetchError(KernelArtifactError {
            request_id: request.request_id.clone(),
            blueprint_id: request.blueprint_id.clone(),
            reason: reason.to_owned(),
        });
        Self { message, outcome, attributes: Vec::new() }
    }

    /// An error that says when to ask again.
    pub(crate) fn later(request: &KernelPrefetchRequest, reason: &str, after: Duration) -> Self {
        let mut answer = Self::error(request, reason);
        answer.attributes.push((attributes::RETRY_AFTER_MS, after.as_millis().to_string()));
        answer
    }

    /// The artifact's reference and digest; with the URL of this service's artifacts, also how to
    /// fetch it from elsewhere; and for a run that can hold a lease, for how long it has one.
    pub(crate) fn ready(
        request: &KernelPrefetchRequest,
        record: &Record,
        public_url: Option<&str>,
        lease: Duration,
    ) -> Self {
        let mut attributes = Vec::new();
        if lease::is_name(&request.training_run_id) {
            attributes.push((attributes::KERNEL_LEASE_MS, lease.as_millis().to_string()));
        }
        if let Some(url) = public_url {
            attributes.push((KERNEL_URL, kernel_url(url, &record.digest)));
        }
        if let Some(Value::String(signature)) = record.extras.get(SIGNATURE) {
            attributes.push((KERNEL_SIGNATURE, signature.clone()));
        }
        if record.is_interpreted() {
            attributes.push((KERNEL_EXECUTION, "interpreter".to_owned()));
        }
        let message = Message::PrefetchReady(KernelArtifactReady {
            request_id: request.request_id.clone(),
            blueprint_id: request.blueprint_id.clone(),
            artifact_ref: reference(&record.path),
            checksum: record.digest.to_hex(),
            guard_digest: record.guard_digest.to_hex(),
            prewarm_p50_ms: record.prewarm.p50_ms() as f32,
            prewarm_p95_ms: record.prewarm.p95_ms() as f32,
        });
        Self { message, outcome: Answered::Hit, attributes }
    }
}

fn reference(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Decides, in the contract's order. An artifact that is gone or corrupt is put into quarantine; to
/// order another is left to who asked.
pub(crate) async fn decide(library: &Library, variants: &Variants, want: &Want) -> Decision {
    let found = if let Some(digest) = &want.digest {
        match this_one(library, want, digest).await {
            Ok(record) => Ok(Some(record)),
            Err(NotThisOne::Decided(reason)) => return Decision::Error(reason.to_owned()),
            Err(NotThisOne::Untold(error)) => Err(error),
        }
    } else if want.is_default() {
        library.find(&want.blueprint).await
    } else {
        match variants.job(want) {
            Ok(job) => match library.find(&want.blueprint).await {
                // The default spelt out, which memory knows.
                Ok(Some(record)) if record.job == job => Ok(Some(record)),
                _ => library.find_job(&job).await,
            },
            Err(Unfit::Unknown) => return Decision::Error(MISSING_ARTIFACT.to_owned()),
            Err(Unfit::Refused { reason, detail }) => {
                tracing::warn!(%want, %reason, %detail, "no kernel of this kind is built, request refused");
                return Decision::Error(reason);
            }
        }
    };
    let record = match found {
        Ok(Some(record)) => record,
        Ok(None) => return Decision::Missing,
        Err(error) => {
            tracing::warn!(%want, error = &error as &dyn std::error::Error, "library cannot tell, request answered as unavailable");
            return Decision::Error(UNAVAILABLE.to_owned());
        }
    };
    match library.verify(&record).await {
        Ok(_) => Decision::Ready(Arc::new(record)),
        Err(fault) if fault.remedy() == Remedy::Retry => Decision::Error(reason(&fault).to_owned()),
        Err(fault) => {
            withdraw(library, &record, &fault).await;
            if want.digest.is_some() {
                let order = Box::new(rebuild(&record));
                return Decision::Gone { reason: reason(&fault), order };
            }
            Decision::Broken(reason(&fault))
        }
    }
}

/// Why the very artifact that was asked for is not to be had.
enum NotThisOne {
    /// The stable reason.
    Decided(&'static str),
    /// Nobody can tell just now.
    Untold(LibraryError),
}

/// The artifact of a digest. Nobody is asked to build it: a build gives what the builder makes today.
async fn this_one(library: &Library, want: &Want, digest: &Digest) -> Result<Record, NotThisOne> {
    let found = library.find_digest(digest).await.map_err(NotThisOne::Untold)?;
    let ours = found.filter(|record| record.job.blueprint == want.blueprint);
    let record = ours.ok_or(NotThisOne::Decided(MISSING_ARTIFACT))?;
    match record.state {
        RecordState::Active => Ok(record),
        RecordState::Quarantined { .. } => Err(NotThisOne::Decided(ARTIFACT_NOT_FOUND)),
    }
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

/// Takes an artifact out of offer.
pub(crate) async fn withdraw(library: &Library, record: &Record, fault: &FetchError) {
    if let Err(error) = library.quarantine(record, fault).await {
        let blueprint = &record.job.blueprint;
        tracing::error!(%blueprint, error = &error as &dyn std::error::Error, "artifact not marked as quarantined");
    }
}

/// The order for what takes the place of an artifact.
pub(crate) fn rebuild(record: &Record) -> BuildRequest {
    BuildRequest {
        parameters: record.job.parameters.clone(),
        site: Some(record.job.site.clone()),
        ..BuildRequest::of(record.job.blueprint.clone(), WhyBuild::Rebuild)
    }
}

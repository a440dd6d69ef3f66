//! What passes between the seed manager and the prefetch coordinator.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernel::artifact::Kernel;
use kernel::guard::GuardMismatch;
use kernel::quarantine::Report;
use kernel::{Digest, Execution};
use leyline::ids::{BlueprintId, RequestId, SeedId};
use oona::Span;

use crate::renewal::InUse;

/// Orders that may wait for the coordinator: one for each seed of an epoch, and more.
pub const ORDERS_MAX: usize = 128;
/// Results that may wait for the training thread, which looks at every step.
pub const RESULTS_MAX: usize = 128;

/// When to ask again for what is being compiled, if nobody says.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Asks the coordinator for a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchOrder {
    /// Made by the seed manager, which knows it before anybody answers.
    pub request: RequestId,
    /// For which seed.
    pub seed: SeedId,
    /// Which blueprint.
    pub blueprint: BlueprintId,
    /// What the kernel must take and give: shape at the slot without the batch.
    pub shape: Vec<usize>,
    /// The blueprint's parameters as commanded; none means its midpoints.
    pub parameters: BTreeMap<String, f32>,
}

/// The coordinator's answer to one order.
#[derive(Debug)]
pub struct Fetched {
    /// The step of the trace that ends when the kernel is attached, or cannot be; from its
    /// verification on.
    pub step: Option<Span>,
    /// The order's id.
    pub request: RequestId,
    /// The order's seed.
    pub seed: SeedId,
    /// The kernel, or why there is none.
    pub result: Result<FetchedKernel, FetchFailure>,
}

/// A kernel in hand: verified, and fit for the slot that asked.
#[derive(Debug, Clone)]
pub struct FetchedKernel {
    /// Which blueprint.
    pub blueprint: BlueprintId,
    /// SHA-256 of the artifact, verified when it was opened.
    pub digest: Digest,
    /// What must run it, as the forge found: its plan, or the interpreter, whatever a plan made here looks like.
    pub execution: Execution,
    /// The artifact's file.
    pub path: PathBuf,
    /// Order to kernel in hand.
    pub latency: Duration,
    /// Median prewarm latency in milliseconds, as the library measured; 0 when unknown.
    pub prewarm_p50_ms: f32,
    /// 95th percentile of the same.
    pub prewarm_p95_ms: f32,
    /// The opened artifact, shared and immutable; every seed makes an instance of its own of it.
    pub kernel: Arc<Kernel>,
    /// Goes where the kernel goes; while it lives, the kernel's lease is renewed.
    pub in_use: InUse,
}

/// Why a kernel could not be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FetchFailure {
    /// The library has none, and nobody builds it.
    #[error("missing_artifact")]
    MissingArtifact,
    /// The library's file is gone; a rebuild was ordered.
    #[error("artifact_not_found")]
    ArtifactNotFound,
    /// The library's file is corrupt; a rebuild was ordered.
    #[error("checksum_mismatch")]
    ChecksumMismatch,
    /// The file is there and may not be read from here, and it cannot be had otherwise.
    #[error("artifact_unreadable")]
    Unreadable,
    /// The kernel could not be fetched from where the answer said.
    #[error("download_failed")]
    DownloadFailed {
        /// What was wrong, and what to do.
        fault: String,
        /// Whether asking again may help.
        may_pass: bool,
    },
    /// The library could not tell, in spite of retries.
    #[error("unavailable")]
    Unavailable,
    /// It is being compiled, and will be there later.
    #[error("compiling")]
    Compiling {
        /// When to ask again, as the library estimates.
        retry_after: Duration,
    },
    /// Another reason the library gave, as it spelt it.
    #[error("{0}")]
    Refused(String),
    /// No answer in time, in spite of retries.
    #[error("timed_out")]
    TimedOut,
    /// The request could not be published, in spite of retries.
    #[error("publish_refused")]
    PublishRefused,
    /// The answer is about another blueprint than was asked for.
    #[error("blueprint_mismatch")]
    BlueprintMismatch,
    /// The artifact's guard is not the one of the answer, or not that of its own graph.
    #[error("guard_mismatch")]
    GuardMismatch,
    /// The kernel does not fit the slot's shape.
    #[error("incompatible_site")]
    IncompatibleSite,
    /// The kernel was compiled for inputs of another kind than a slot gives: element type, stride, gradient.
    #[error("incompatible_input")]
    IncompatibleInput(GuardMismatch),
    /// Nobody whose word is taken here vouches for the kernel.
    #[error("untrusted")]
    Untrusted {
        /// What is wrong with its signature, and what to do.
        detail: String,
    },
    /// The artifact could not be opened or is not what its digest says.
    #[error("open_failed")]
    OpenFailed {
        /// What the opening said.
        detail: String,
    },
    /// The kernel went into quarantine and stays there: something was found, or no host may see its blueprint.
    #[error("quarantined: {}", .0.verdict())]
    Quarantined(Arc<Report>),
    /// The order was given up before an answer came.
    #[error("cancelled")]
    Cancelled,
}

impl FetchFailure {
    /// The failure for a reason that the library sent, with the time to ask again that it may have
    /// given.
    pub fn from_reason(reason: &str, retry_after: Option<Duration>) -> Self {
        match reason {
            "compiling" => Self::Compiling { retry_after: retry_after.unwrap_or(RETRY_AFTER) },
            "missing_artifact" => Self::MissingArtifact,
            "artifact_not_found" => Self::ArtifactNotFound,
            "checksum_mismatch" => Self::ChecksumMismatch,
            "unavailable" => Self::Unavailable,
            other => Self::Refused(other.to_owned()),
        }
    }

    /// Whether asking again may help.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable
            | Self::Compiling { .. }
            | Self::ArtifactNotFound
            | Self::ChecksumMismatch
            | Self::TimedOut
            | Self::PublishRefused => true,
            Self::DownloadFailed { may_pass, .. } => *may_pass,
            Self::MissingArtifact
            | Self::Unreadable
            | Self::Refused(_)
            | Self::BlueprintMismatch
            | Self::GuardMismatch
            | Self::IncompatibleSite
            | Self::IncompatibleInput(_)
            | Self::Untrusted { .. }
            | Self::OpenFailed { .. }
            | Self::Quarantined(_)
            | Self::Cancelled => false,
        }
    }
}

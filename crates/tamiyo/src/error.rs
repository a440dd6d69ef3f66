//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kernel::Digest;

/// Why a policy update was not taken. The live policy is untouched in every case.
#[derive(Debug, thiserror::Error)]
pub enum UpdateRefused {
    /// The update is for another architecture.
    #[error("the update is for {found:?}, this policy is {expected}; train it for that one")]
    VersionMismatch {
        /// `tamiyo_policy_version` of the update.
        found: String,
        /// Our architecture.
        expected: &'static str,
    },
    /// The update carries no time of issue, or one outside the window.
    #[error("the update was issued {age_s} s ago (allowed: {window:?}); publish it again")]
    Stale {
        /// Age in seconds; negative for one from the future, `i64::MAX` for one without a time.
        age_s: i64,
        /// The oldest age accepted.
        window: Duration,
    },
    /// The update is older than the policy in force, or than one that was.
    #[error("the update has sequence {found}, {floor} was taken already; raise the sequence")]
    Superseded {
        /// Sequence of the update; 0 for a relabelling, which has none.
        found: u64,
        /// Highest sequence ever taken.
        floor: u64,
    },
    /// The payload is larger than a policy may be.
    #[error("the payload takes {bytes} bytes, at most {bytes_max} are read")]
    Oversize {
        /// Bytes of the payload.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The payload is no safetensors file, or lacks what must stand in its header.
    #[error("the payload is no policy in safetensors format: {problem}; nothing else is read")]
    NotTensors {
        /// What is wrong with it.
        problem: &'static str,
        /// What the reader of the format objected to.
        source: Option<safetensors::SafeTensorError>,
    },
    /// The header names another architecture.
    #[error("the payload is a {found:?}, expected is {expected}")]
    Architecture {
        /// Architecture in the header.
        found: String,
        /// Our architecture.
        expected: &'static str,
    },
    /// A tensor is missing, of another shape or type, or not known.
    #[error("tensor {tensor:?} {problem}")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The policy was trained for another catalogue.
    #[error("the policy was trained for catalogue {found}, this is {expected}; train it for it")]
    Registry {
        /// Digest in the header.
        found: String,
        /// Digest of our catalogue.
        expected: Digest,
    },
    /// A number is not finite or outside its range.
    #[error("tensor {tensor:?} has a number that is not finite or out of its range")]
    Incompatible {
        /// The tensor's name.
        tensor: &'static str,
    },
    /// The new policy could not be kept on disk, and is therefore not in force.
    #[error("the new policy could not be kept; free disk space or mend permissions")]
    Swap(#[source] ArchiveError),
}

/// Why an update was refused, as the contract names it in events and metrics. The order is that of
/// the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rejection {
    /// Another architecture.
    VersionMismatch,
    /// Too old, from the future, or overtaken by a later one.
    StaleUpdate,
    /// No safetensors file, or too large.
    InvalidPayload,
    /// Other tensors than the architecture has.
    ShapeMismatch,
    /// Trained for another catalogue.
    RegistryMismatch,
    /// Numbers out of their ranges.
    IncompatibleUpdate,
    /// Valid, but it could not be kept.
    SwapFailed,
}

impl Rejection {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::VersionMismatch,
        Self::StaleUpdate,
        Self::InvalidPayload,
        Self::ShapeMismatch,
        Self::RegistryMismatch,
        Self::IncompatibleUpdate,
        Self::SwapFailed,
    ];

    /// The contract's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VersionMismatch => "version_mismatch",
            Self::StaleUpdate => "stale_update",
            Self::InvalidPayload => "invalid_payload",
            Self::ShapeMismatch => "shape_mismatch",
            Self::RegistryMismatch => "registry_mismatch",
            Self::IncompatibleUpdate => "incompatible_update",
            Self::SwapFailed => "swap_failed",
        }
    }
}

impl UpdateRefused {
    /// The contract's word for it.
    pub fn rejection(&self) -> Rejection {
        match self {
            Self::VersionMismatch { .. } => Rejection::VersionMismatch,
            Self::Stale { .. } | Self::Superseded { .. } => Rejection::StaleUpdate,
            Self::Oversize { .. } | Self::NotTensors { .. } => Rejection::InvalidPayload,
            Self::Architecture { .. } | Self::Shape { .. } => Rejection::ShapeMismatch,
            Self::Registry { .. } => Rejection::RegistryMismatch,
            Self::Incompatible { .. } => Rejection::IncompatibleUpdate,
            Self::Swap(_) => Rejection::SwapFailed,
        }
    }

    /// Whether the same update may be taken later: only when the fault was ours.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Swap(_))
    }
}

/// Why the directory of policies could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be made, read or written.
    #[error("cannot {operation} {path}; check permissions and disk space of TAMIYO_POLICY_DIR")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The disk did not answer in time. Whether the policy was kept shows at the next start.
    #[error("keeping the policy took longer than {after:?}; check the disk of TAMIYO_POLICY_DIR")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
    /// There is no earlier policy to go back to.
    #[error("there is no earlier policy to go back to")]
    NothingEarlier,
}

/// What was found damaged at the start. The built-in policy is in force instead.
#[derive(Debug, thiserror::Error)]
#[error("the kept policy {file} is damaged and was moved to {moved_to}; the built-in one is used")]
pub struct Quarantined {
    /// What was damaged.
    pub file: PathBuf,
    /// Where it is now.
    pub moved_to: PathBuf,
    /// What is wrong with it; `None` for a file that is missing or of another digest.
    pub source: Option<UpdateRefused>,
}

/// Why the store of field reports could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be made, read or written.
    #[error(
        "cannot {operation} {path}; check permissions and disk space of TAMIYO_FIELD_REPORT_DIR"
    )]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process; give each its own TAMIYO_FIELD_REPORT_DIR")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// One report is larger than a record may be.
    #[error("a report of {bytes} bytes is larger than {bytes_max}; shorten its notes")]
    Oversize {
        /// Bytes of the report.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The disk did not answer in time.
    #[error("the disk took longer than {after:?}; the worker starts again")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
}

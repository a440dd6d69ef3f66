//! Why a kernel was not fetched, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;

use crate::store::WriteFault;
use crate::trust;

/// Why a kernel was not fetched. Cheap to clone: everybody who waits for one download gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchFault {
    /// The reference is no URL that kernels are fetched from.
    #[error("the reference is refused: {problem}")]
    Url {
        /// Why. The text itself is not repeated, for it may hold a password.
        problem: &'static str,
    },
    /// A setting cannot be used.
    #[error(
        "kernels cannot be fetched: {problem}; check KASMINA_KERNEL_TOKEN and KASMINA_KERNEL_CA_FILE"
    )]
    Setting {
        /// What is wrong.
        problem: String,
    },
    /// The server wants another token, or any.
    #[error(
        "the server refused the token (status {status}); set KASMINA_KERNEL_TOKEN to its URZA_HTTP_TOKEN"
    )]
    Refused {
        /// 401 or 403.
        status: u16,
    },
    /// The server has no such kernel (any more).
    #[error("the server does not have it (status {status}); ask for the kernel again")]
    Missing {
        /// 404 or 410.
        status: u16,
    },
    /// It is larger than a kernel may be.
    #[error("the kernel has {bytes} bytes or more, {max} are allowed; it was not fetched")]
    TooLarge {
        /// What was announced, or had come when it was ended.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// What came is not what the digest says, however often it was fetched.
    #[error(
        "what came hashes to {actual}, not to {expected}; check what stands between here and the server"
    )]
    Corrupt {
        /// What was wanted.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The server does not answer as it should.
    #[error("the server answered with status {status}{detail}; check the URL, and its log")]
    Status {
        /// The status.
        status: u16,
        /// What was wrong beside it.
        detail: &'static str,
    },
    /// The connection failed.
    #[error(
        "the server cannot be reached or the connection broke; check URZA_PUBLIC_URL and the network"
    )]
    Connection {
        /// What it said, without the URL.
        source: Arc<reqwest::Error>,
    },
    /// TLS with the server did not come about.
    #[error(
        "the server is not trusted: {problem}; set KASMINA_KERNEL_CA_FILE to the PEM file of its authority, or correct URZA_PUBLIC_URL"
    )]
    Untrusted {
        /// What is wrong.
        problem: String,
    },
    /// There is no room.
    #[error(
        "no room in {directory}: {wanted} bytes are wanted, {free} are free there; make room or set KASMINA_KERNEL_CACHE_DIR elsewhere"
    )]
    Full {
        /// The directory.
        directory: PathBuf,
        /// Bytes that were to be written.
        wanted: u64,
        /// Bytes that the file system has left.
        free: u64,
    },
    /// A file could not be read or written.
    #[error("cannot use {path}; check the rights of KASMINA_KERNEL_CACHE_DIR")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// It took too long altogether.
    #[error(
        "the kernel did not come within {limit:?}; what came is kept, the next attempt goes on from there"
    )]
    TimedOut {
        /// The bound.
        limit: Duration,
    },
}

impl FetchFault {
    pub(super) fn disk(path: PathBuf, source: io::Error) -> Self {
        Self::Disk { path, source: Arc::new(source) }
    }

    pub(super) fn connection(source: reqwest::Error) -> Self {
        match trust::problem(&source) {
            Some(problem) => Self::Untrusted { problem },
            None => Self::Connection { source: Arc::new(source.without_url()) },
        }
    }

    /// Whether asking again, later and for the same, may help.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Connection { .. }
            | Self::Status { .. }
            | Self::Full { .. }
            | Self::Disk { .. }
            | Self::Corrupt { .. }
            | Self::Missing { .. }
            | Self::TimedOut { .. } => true,
            Self::Url { .. }
            | Self::Setting { .. }
            | Self::Refused { .. }
            | Self::Untrusted { .. }
            | Self::TooLarge { .. } => false,
        }
    }
}

impl From<WriteFault> for FetchFault {
    fn from(fault: WriteFault) -> Self {
        match fault {
            WriteFault::Full { directory, wanted, free, .. } => {
                Self::Full { directory, wanted, free }
            }
            WriteFault::Io { path, source } => Self::disk(path, source),
        }
    }
}

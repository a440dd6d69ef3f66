//! What a full disk looks like.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file was not written.
#[derive(Debug)]
pub(crate) enum WriteFault {
    /// No room, whoever says so: the disk, a quota, a limit of the process.
    Full {
        /// Where.
        directory: PathBuf,
        /// How many bytes were wanted.
        wanted: u64,
        /// How many the file system has left for this user, as far as it says.
        free: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    Io {
        /// The file or directory at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl WriteFault {
    /// Reads what the system reported when `wanted` bytes were to be written to `path`.
    pub(crate) fn read(path: &Path, wanted: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => {
                let directory = path.parent().unwrap_or(path).to_owned();
                // The directory of the first artifact of its kind may not be there yet.
                let standing = directory.ancestors().find(|ancestor| ancestor.exists());
                let free = standing.map_or(0, free_bytes);
                Self::Full { directory, wanted, free, source }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

/// Bytes that this user may still write there; 0 when the system does not say.
fn free_bytes(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

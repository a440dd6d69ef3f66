//! One process holds an embedded log. A lock file beside it says which.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::BusError;

/// The lock, held as long as this lives; the system releases it when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock as soon as it is free, or says who still has it after that time. Waits by the
    /// system's clock, on a thread that may.
    pub(super) fn wait(log: &Path, time: Duration) -> Result<Self, BusError> {
        let deadline = Instant::now() + time;
        loop {
            match Self::take(log) {
                Err(BusError::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::park_timeout(time / 50);
                }
                other => return other,
            }
        }
    }

    /// Makes the directory if need be, and takes the lock or says who has it.
    fn take(log: &Path) -> Result<Self, BusError> {
        let open = |source| BusError::Open { path: log.to_owned(), source };
        if let Some(directory) = log.parent().filter(|path| !path.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(open)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(beside(log))
            .map_err(open)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let pid = file.read_to_string(&mut holder).ok().and(holder.trim().parse().ok());
                return Err(BusError::Locked { path: log.to_owned(), pid });
            }
            Err(errno) => return Err(open(errno.into())),
        }
        file.set_len(0).map_err(open)?;
        file.rewind().map_err(open)?;
        write!(file, "{}", std::process::id()).map_err(open)?;
        Ok(Self { _file: file })
    }
}

fn beside(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

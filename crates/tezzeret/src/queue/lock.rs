//! The lock of one job, for processes that share a queue directory.
//!
//! The file says how many attempts at the job were begun and not ended. It is removed when an attempt ends, however it
//! ends; so what it says when it is taken is how often in a row a process has ended in mid-attempt. The system gives the
//! lock of a process that is gone back by itself.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// How often a lock is looked for again that was removed while it was being taken.
const ATTEMPTS: usize = 16;

/// The right to work on a job, until dropped.
#[derive(Debug)]
pub(crate) struct JobLock {
    path: PathBuf,
    /// Open, hence locked.
    _file: File,
    interruptions: u32,
}

#[derive(Debug)]
pub(crate) enum Locked {
    Ours(JobLock),
    /// Somebody else works on it.
    Busy,
}

impl JobLock {
    pub(super) fn take(path: PathBuf) -> io::Result<Locked> {
        for _ in 0..ATTEMPTS {
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Locked::Busy),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it may have removed it between our opening and our locking it.
            let is_there = match fs::metadata(&path) {
                Ok(found) => found.ino() == file.metadata()?.ino(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if is_there {
                let interruptions = begin(&mut file)?;
                return Ok(Locked::Ours(Self { path, _file: file, interruptions }));
            }
        }
        Ok(Locked::Busy)
    }

    /// Whether somebody has it. Changes nothing.
    pub(super) fn is_taken(path: &PathBuf) -> bool {
        let Ok(file) = File::open(path) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// How many attempts in a row ended with their process.
    pub(crate) fn interruptions(&self) -> u32 {
        self.interruptions
    }
}

fn begin(file: &mut File) -> io::Result<u32> {
    let mut text = String::new();
    // What cannot be read was cut off by a crash of the whole machine, which says nothing of the job.
    let _ = (&*file).take(16).read_to_string(&mut text);
    let begun: u32 = text.trim().parse().unwrap_or(0);
    file.rewind()?;
    file.set_len(0)?;
    write!(file, "{}", begun.saturating_add(1))?;
    Ok(begun)
}

impl Drop for JobLock {
    fn drop(&mut self) {
        // Removed while still locked: who takes it next makes a file of its own.
        let _ = fs::remove_file(&self.path);
    }
}

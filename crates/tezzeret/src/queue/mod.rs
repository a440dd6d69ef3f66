//! The durable queue: a directory with one small file for each job that something is still owed on (compiling it, or
//! telling of it), shared by every process on that directory. All of it blocks.
//!
//! `KEY.json` is a [`Ticket`], `KEY.lock` the lock of whoever works on the job (see [`JobLock`]), `tmp-…` a ticket being
//! written, `corrupt/` what was found to be none. A ticket is written to a temporary name, synced and renamed, so that a
//! crash at any point leaves it whole or not at all.

mod lock;
mod ticket;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::Digest;
use leyline::time::now_unix_ms;

pub(crate) use lock::{JobLock, Locked};
pub(crate) use ticket::{Standing, Ticket, TicketFault};

/// Longest ticket; an honest one has a few hundred bytes.
const TICKET_BYTES_MAX: u64 = 64 << 10;
/// Names looked at in one look; what stands beyond them is seen once some are gone.
const NAMES_MAX: usize = 65_536;
const TICKET: &str = "json";
const LOCK: &str = "lock";
const TEMPORARY: &str = "tmp-";
const CORRUPT: &str = "corrupt";

/// The queue directory. Cheap to clone; clones of one process know of each other's tickets.
#[derive(Debug, Clone)]
pub(crate) struct Queue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    len_max: usize,
    /// Jobs that this process owes something on. A ticket is written only while its job is one of them, so that none
    /// comes back after its job is done.
    open: Mutex<BTreeSet<Digest>>,
    /// One write or removal at a time.
    files: Mutex<()>,
}

/// Why the queue could not be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The directory, or a file in it.
    #[error(
        "the forge's queue {path} cannot be used; make it writable, free space, or set TEZZERET_QUEUE_DIR"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It holds as much as it may.
    #[error(
        "the forge's queue {path} holds {max} jobs already; let a service work on them or remove some"
    )]
    Full {
        /// The directory.
        path: PathBuf,
        /// How many it may hold.
        max: usize,
    },
}

/// What one look found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) tickets: Vec<Ticket>,
    /// Files that were no tickets, and were set aside.
    pub(crate) set_aside: u64,
}

impl Queue {
    /// Opens the directory, making it when missing.
    pub(crate) fn open(dir: &Path, len_max: usize) -> Result<Self, QueueError> {
        let fault = |source| QueueError::File { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(fault)?;
        let dir = dir.canonicalize().map_err(fault)?;
        tempfile::tempfile_in(&dir)
            .map_err(|source| QueueError::File { path: dir.clone(), source })?;
        let inner = Inner { dir, len_max, open: Mutex::default(), files: Mutex::default() };
        let queue = Self(Arc::new(inner));
        queue.clear_away();
        Ok(queue)
    }

    /// From now on something is owed on this job.
    pub(crate) fn owe(&self, key: Digest) {
        lock(&self.0.open).insert(key);
    }

    /// Whether something is.
    pub(crate) fn owes(&self, key: &Digest) -> bool {
        lock(&self.0.open).contains(key)
    }

    /// Whether its ticket stands on the disk.
    pub(crate) fn holds(&self, key: &Digest) -> bool {
        self.path(key, TICKET).exists()
    }

    /// Writes a job's ticket, unless the job is settled by now.
    pub(crate) fn write(&self, ticket: &Ticket) -> Result<(), QueueError> {
        let _one_at_a_time = lock(&self.0.files);
        if !self.owes(&ticket.key) {
            return Ok(());
        }
        let path = self.path(&ticket.key, TICKET);
        if !path.exists() && self.len()? >= self.0.len_max {
            return Err(QueueError::Full { path: self.0.dir.clone(), max: self.0.len_max });
        }
        self.write_at(&path, ticket).map_err(|source| QueueError::File { path, source })
    }

    fn write_at(&self, path: &Path, ticket: &Ticket) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.0.dir)?;
        file.write_all(ticket.text()?.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(&self.0.dir)?.sync_all()
    }

    /// Nothing is owed on this job any longer. A ticket that cannot be removed is found again, and settled again.
    pub(crate) fn settle(&self, key: &Digest) {
        lock(&self.0.open).remove(key);
        let _one_at_a_time = lock(&self.0.files);
        let path = self.path(key, TICKET);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "job done, its ticket cannot be removed");
            }
        }
    }

    /// This process does no longer want it; its ticket, if there is one, is left to others.
    pub(crate) fn forget(&self, key: &Digest) {
        lock(&self.0.open).remove(key);
    }

    /// Reads the tickets of all jobs but those that `known` says are known. What is no ticket is set aside, with a
    /// warning, and stops none of the others.
    pub(crate) fn look(&self, known: impl Fn(&Digest) -> bool) -> Result<Look, QueueError> {
        let mut look = Look::default();
        for (path, key) in self.names(TICKET)? {
            let Some(key) = key else {
                look.set_aside += self.set_aside(&path, &TicketFault::Name);
                continue;
            };
            if known(&key) {
                continue;
            }
            match self.read(&path, &key) {
                Ok(ticket) => look.tickets.extend(ticket),
                Err(TicketFault::Newer(format)) => {
                    let path = path.display();
                    tracing::debug!(%path, format, "ticket of a newer version, left alone");
                }
                Err(fault) => look.set_aside += self.set_aside(&path, &fault),
            }
        }
        Ok(look)
    }

    /// A ticket that is gone meanwhile was settled by another process.
    fn read(&self, path: &Path, key: &Digest) -> Result<Option<Ticket>, TicketFault> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if !metadata.is_file() {
            return Err(TicketFault::Kind);
        }
        let mut text = Vec::new();
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?.take(TICKET_BYTES_MAX + 1).read_to_end(&mut text)?,
        };
        if text.len() as u64 > TICKET_BYTES_MAX {
            return Err(TicketFault::Size);
        }
        let ticket = Ticket::read(&text)?;
        if ticket.key == *key { Ok(Some(ticket)) } else { Err(TicketFault::Name) }
    }

    fn set_aside(&self, path: &Path, fault: &TicketFault) -> u64 {
        if let TicketFault::Read(error) = fault {
            let path = path.display();
            tracing::warn!(%path, %error, "ticket cannot be read now, left for the next look");
            return 0;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let corrupt = self.0.dir.join(CORRUPT);
        let aside = corrupt.join(format!("{name}-{}", now_unix_ms()));
        let moved = fs::create_dir_all(&corrupt).and_then(|()| fs::rename(path, &aside));
        let (path, aside) = (path.display(), aside.display());
        match moved {
            Ok(()) => {
                tracing::warn!(%path, %aside, %fault, "no ticket of a job, set aside; order the job again");
                1
            }
            Err(error) => {
                tracing::warn!(%path, %fault, %error, "no ticket of a job, and cannot be set aside; remove it");
                0
            }
        }
    }

    /// How many tickets there are.
    pub(crate) fn len(&self) -> Result<usize, QueueError> {
        Ok(self.names(TICKET)?.len())
    }

    /// The right to work on a job, against every other process on this directory and every other forge of this one.
    pub(crate) fn lock(&self, key: &Digest) -> io::Result<Locked> {
        JobLock::take(self.path(key, LOCK))
    }

    /// Whether somebody works on a job.
    pub(crate) fn is_locked(&self, key: &Digest) -> bool {
        JobLock::is_taken(&self.path(key, LOCK))
    }

    fn path(&self, key: &Digest, extension: &str) -> PathBuf {
        self.0.dir.join(format!("{}.{extension}", key.to_hex()))
    }

    /// Files with this extension; the key is none where the name is not one.
    fn names(&self, extension: &str) -> Result<Vec<(PathBuf, Option<Digest>)>, QueueError> {
        let fault = |source| QueueError::File { path: self.0.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0.dir).map_err(fault)?.take(NAMES_MAX) {
            let path = entry.map_err(fault)?.path();
            if path.extension().is_some_and(|found| found == extension) {
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                let key = stem.and_then(|stem| stem.parse().ok());
                names.push((path, key));
            }
        }
        Ok(names)
    }

    /// Removes what a killed process left beside the tickets: locks of settled jobs. (Temporary files have no name of a
    /// ticket and harm nothing; they go once an hour old.)
    fn clear_away(&self) {
        for (_, key) in self.names(LOCK).unwrap_or_default() {
            if let Some(key) = key.filter(|key| !self.holds(key)) {
                // Taken and given back, it is removed; where somebody has it, it is not taken.
                drop(self.lock(&key));
            }
        }
        let Ok(entries) = fs::read_dir(&self.0.dir) else { return };
        for entry in entries.take(NAMES_MAX).flatten() {
            let is_temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
            let age = entry.metadata().and_then(|one| one.modified()).ok();
            let age = age.and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
            if is_temporary && age.as_secs() > 3600 {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

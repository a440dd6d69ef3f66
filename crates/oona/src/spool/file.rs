//! One file of waiting messages. All of this blocks.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableDefinition,
};

use super::SpoolError;
use crate::stream::Stream;

/// lane, number -> signed record.
const WAITING: TableDefinition<'_, (u8, u64), &[u8]> = TableDefinition::new("waiting");
/// The same for what could not be authenticated: kept for whoever looks into it, never sent.
const ASIDE: TableDefinition<'_, (u8, u64), &[u8]> = TableDefinition::new("aside");

/// Files of living and dead processes alike; who holds the lock lives.
const EXTENSION: &str = "spool";
/// What is left of a file of which something was put aside, or which cannot be read.
const ASIDE_EXTENSION: &str = "set-aside";
/// Pages kept in memory; what waits is read once.
const CACHE_BYTES: usize = 4 << 20;

/// Where a record stands: the lane is its stream's, numbers rise within a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) lane: u8,
    pub(super) seq: u64,
}

/// Messages and bytes in each lane.
pub(super) type Totals = [(u64, u64); Stream::ALL.len()];

/// An open file, locked for this process.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    db: Database,
    /// From which number on each lane has not been sent. What was sent is removed as well; should
    /// that fail, it is at least not sent again by this process.
    next: [AtomicU64; Stream::ALL.len()],
}

impl File {
    /// A new file; it survives a loss of power from its first record on.
    pub(super) fn create(directory: &Path) -> Result<Self, SpoolError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| fault(&path, redb::Error::Io(error))
        };
        fs::create_dir_all(directory).map_err(at(directory))?;
        let path = directory.join(format!("{}.{EXTENSION}", uuid::Uuid::now_v7()));
        let db = redb::Builder::new().set_cache_size(CACHE_BYTES).create(&path);
        let db = db.map_err(|error| {
            // Left empty it would be found by every search for files of the dead.
            drop(fs::remove_file(&path));
            fault(&path, error)
        })?;
        fs::File::open(directory).and_then(|open| open.sync_all()).map_err(at(directory))?;
        Ok(Self { path, db, next: Default::default() })
    }

    /// An existing file.
    pub(super) fn open(path: &Path) -> Result<Self, SpoolError> {
        let db = redb::Builder::new().set_cache_size(CACHE_BYTES).open(path);
        let db = db.map_err(|error| fault(path, error))?;
        Ok(Self { path: path.to_owned(), db, next: Default::default() })
    }

    /// Every file in the directory that no process holds, oldest first, with what waits in it.
    pub(super) fn adopt_all(directory: &Path) -> Vec<(Self, Totals)> {
        let Ok(found) = fs::read_dir(directory) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension() == Some(OsStr::new(EXTENSION)));
        paths.sort();
        paths.iter().filter_map(|path| Self::adopt(path)).collect()
    }

    fn adopt(path: &Path) -> Option<(Self, Totals)> {
        // The store may panic over a damaged file; that must not end the worker for all others.
        let looked = std::panic::catch_unwind(|| {
            let file = Self::open_foreign(path)?;
            let totals = file.totals();
            Some((file, totals))
        });
        match looked {
            Ok(None) => None,
            Ok(Some((file, Ok(totals)))) => Some((file, totals)),
            Ok(Some((_, Err(error)))) => {
                set_aside(path, &error.to_string());
                None
            }
            Err(_) => {
                set_aside(path, "the store panicked over it");
                None
            }
        }
    }

    fn open_foreign(path: &Path) -> Option<Self> {
        // One that is just being made is no dead one's.
        if fs::metadata(path).ok()?.len() == 0 {
            return None;
        }
        match redb::Builder::new().set_cache_size(CACHE_BYTES).open(path) {
            Ok(db) => {
                tracing::info!(path = %path.display(), "a spool that another process left is adopted");
                Some(Self { path: path.to_owned(), db, next: Default::default() })
            }
            Err(DatabaseError::DatabaseAlreadyOpen) => None,
            Err(DatabaseError::Storage(redb::StorageError::Io(error)))
                if error.kind() != std::io::ErrorKind::InvalidData =>
            {
                // Its heir may just have sent and removed it.
                if error.kind() == std::io::ErrorKind::NotFound {
                    return None;
                }
                tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "a spool cannot be opened now");
                None
            }
            Err(error) => {
                set_aside(path, &error.to_string());
                None
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes records, all or none, and waits for the disk.
    pub(super) fn store(&self, records: &[(Place, Vec<u8>)]) -> Result<(), redb::Error> {
        let write = self.db.begin_write()?;
        {
            let mut table = write.open_table(WAITING)?;
            for (place, value) in records {
                table.insert((place.lane, place.seq), value.as_slice())?;
            }
        }
        Ok(write.commit()?)
    }

    /// What waits in a lane, oldest first: up to a number and about that many bytes, but one at
    /// least.
    pub(super) fn batch(
        &self,
        lane: u8,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(Place, Vec<u8>)>, redb::Error> {
        let read = self.db.begin_read()?;
        let table = match read.open_table(WAITING) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        let from = self.next[usize::from(lane)].load(Ordering::Acquire);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for row in table.range((lane, from)..=(lane, u64::MAX))? {
            let (place, value) = row?;
            let (lane, seq) = place.value();
            bytes += value.value().len();
            if batch.len() >= count_max || (bytes > bytes_max && !batch.is_empty()) {
                break;
            }
            batch.push((Place { lane, seq }, value.value().to_vec()));
        }
        Ok(batch)
    }

    /// The log has these: they are not sent again.
    pub(super) fn was_sent(&self, batch: &[(Place, Vec<u8>)]) {
        for (place, _) in batch {
            self.next[usize::from(place.lane)].fetch_max(place.seq + 1, Ordering::AcqRel);
        }
    }

    /// Removes what was sent, and keeps aside what must not be.
    pub(super) fn remove(
        &self,
        batch: &[(Place, Vec<u8>)],
        aside: &[Place],
    ) -> Result<(), redb::Error> {
        let write = self.db.begin_write()?;
        {
            let mut waiting = write.open_table(WAITING)?;
            let mut kept = write.open_table(ASIDE)?;
            for (place, value) in batch {
                waiting.remove((place.lane, place.seq))?;
                if aside.contains(place) {
                    kept.insert((place.lane, place.seq), value.as_slice())?;
                }
            }
        }
        Ok(write.commit()?)
    }

    /// Messages and bytes that wait in each lane.
    fn totals(&self) -> Result<Totals, redb::Error> {
        let mut totals = [(0, 0); Stream::ALL.len()];
        let read = self.db.begin_read()?;
        let table = match read.open_table(WAITING) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(totals),
            table => table?,
        };
        for row in table.iter()? {
            let (place, value) = row?;
            // A lane that does not exist is nobody's, and can only be in a file that was tampered
            // with.
            if let Some(total) = totals.get_mut(usize::from(place.value().0)) {
                *total = (total.0 + 1, total.1 + value.value().len() as u64);
            }
        }
        Ok(totals)
    }

    /// Removes a file in which nothing waits; one in which something was put aside gets a name that
    /// nobody adopts. `false` when something waits. Call it only where nobody else stores.
    pub(super) fn remove_if_empty(&self) -> Result<bool, redb::Error> {
        let read = self.db.begin_read()?;
        let rows = |table| match read.open_table(table) {
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(redb::Error::from(error)),
            Ok(table) => Ok(table.len()?),
        };
        if rows(WAITING)? > 0 {
            return Ok(false);
        }
        match rows(ASIDE)? {
            0 => fs::remove_file(&self.path)?,
            _ => fs::rename(&self.path, self.path.with_extension(ASIDE_EXTENSION))?,
        }
        Ok(true)
    }
}

fn set_aside(path: &Path, error: &str) {
    tracing::error!(path = %path.display(), error, "a spool is damaged and set aside");
    if let Err(error) = fs::rename(path, path.with_extension(ASIDE_EXTENSION)) {
        tracing::error!(path = %path.display(), error = &error as &dyn std::error::Error, "it cannot be renamed");
    }
}

fn fault(path: &Path, error: impl Into<redb::Error>) -> SpoolError {
    SpoolError { path: path.to_owned(), source: Arc::new(error.into()) }
}

//! The embedded log: Redis Streams' meaning in one local file.
//!
//! Entries and claims live in the file; the state of groups (cursor, pending entries) lives in
//! memory, is authoritative there, and is journaled to the file. One writer commits: whoever leaves a
//! change while nobody writes starts it, and everything left meanwhile goes into its next
//! transaction (group commit). An append is answered, and becomes visible to readers, once it is on
//! disk; acknowledgements and claims are written in order behind it. A crash therefore loses nothing
//! that was published, and at worst repeats what was handled in the last milliseconds.
//!
//! `state` is memory, `file` the tables, `writer` the commits; `read`, `nonces` and `ops` are what a
//! log offers.

mod file;
mod lock;
mod look;
mod nonces;
mod ops;
mod read;
mod state;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::Database;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Config;
use crate::entry::{EntryId, Fields};
use crate::error::{BusError, LogError};

use self::nonces::Nonces;
pub(crate) use self::read::EmbeddedReader;
use self::state::Core;

/// Appends waiting for their commit; more wait for a place. Bounds memory to this many entries.
const APPENDS_WAITING_MAX: usize = 8192;

/// How long to wait for the lock: a holder that is just ending keeps it until its last commit.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// A log in one local file. Cheap to clone; the file is closed with the last clone.
#[derive(Clone)]
pub(crate) struct EmbeddedLog(Arc<Shared>);

struct Shared {
    path: PathBuf,
    db: Database,
    /// Held for microseconds, never over a wait or a read of the file.
    core: Mutex<Core>,
    /// Claims not yet in the file. Held over look-ups in the file, hence a lock of its own.
    nonces: Mutex<Nonces>,
    places: Semaphore,
    /// One replay or removal of a dead letter at a time: between the look and the commit nobody else
    /// may take it.
    taking_out: tokio::sync::Mutex<()>,
    /// Tells a lingering writer that it must not wait any longer.
    urgent: Condvar,
    /// What stood in the log when it was opened is delivered carefully; see [`read`].
    backlog_until: u64,
    _lock: lock::Lock,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EmbeddedLog({})", self.0.path.display())
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self, source: impl Into<redb::Error>) -> LogError {
        LogError::Storage { path: self.path.clone(), source: Arc::new(source.into()) }
    }

    fn closed(&self) -> LogError {
        LogError::Closed { path: self.path.clone() }
    }
}

/// Opens these bytes as a log's file and reads all that is in it; `None` when they are no log.
pub(crate) fn open_bytes(bytes: &[u8]) -> Option<Vec<(EntryId, Fields)>> {
    file::open_memory(bytes).ok()
}

impl EmbeddedLog {
    /// Opens or makes the file, and locks it for this process.
    pub(crate) async fn open(path: PathBuf, config: &Config) -> Result<Self, BusError> {
        let period_ms = u64::try_from(config.claim_ttl().as_millis()).unwrap_or(u64::MAX).max(1);
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || Self::open_now(path, period_ms));
            let opened = match opened.await {
                Ok(opened) => opened,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            match opened {
                Err(BusError::Locked { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_WAIT / 50).await;
                }
                other => return other,
            }
        }
    }

    fn open_now(path: PathBuf, period_ms: u64) -> Result<Self, BusError> {
        let lock = lock::Lock::take(&path)?;
        let db = Database::create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                BusError::Locked { path: path.clone(), pid: None }
            }
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) => {
                BusError::Open { path: path.clone(), source }
            }
            other => BusError::Damaged { path: path.clone(), source: Arc::new(other.into()) },
        })?;
        let core = file::load(&db)
            .map_err(|source| BusError::Damaged { path: path.clone(), source: Arc::new(source) })?;
        Ok(Self(Arc::new(Shared {
            path,
            db,
            core: Mutex::new(core),
            nonces: Mutex::new(Nonces::new(period_ms)),
            places: Semaphore::new(APPENDS_WAITING_MAX),
            taking_out: tokio::sync::Mutex::default(),
            urgent: Condvar::new(),
            backlog_until: leyline::time::now_unix_ms(),
            _lock: lock,
        })))
    }

    /// Appends; the answer comes when the entry is on disk.
    pub(crate) async fn append(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
    ) -> Result<EntryId, LogError> {
        let value = file::encode(fields);
        let _place = self.0.places.acquire().await.map_err(|_| self.0.closed())?;
        let (id, ticket) = {
            let mut core = self.0.core();
            let id = core.append(stream, value);
            (id, core.ticket())
        };
        self.0.commit(ticket).await?;
        Ok(id)
    }
}

//! The embedded log: Redis Streams' meaning in one local file.
//!
//! The state of groups (cursor, pending entries) lives in memory and is authoritative there; every
//! change is queued, written to a journal and taken into the store from there. One writer commits:
//! whoever leaves a change while nobody writes starts it, and everything left meanwhile goes into its
//! next frame (group commit). An append is answered, and becomes visible to readers, once its frame
//! is on disk; acknowledgements and claims are written in order behind it. A crash therefore loses
//! nothing that was published, and at worst repeats what was handled in the last milliseconds.
//!
//! Kernel traffic is visible at once: its readers live in this process, so a crash that takes an
//! entry takes what they did with it as well. Its publishers are answered when it is on disk, too,
//! but for answers to requests: such an answer and the acknowledgement of its request stand in the
//! journal in this order, and where both are lost the request is answered again.
//!
//! Why a journal in front of the store: a transaction of the store writes a dozen pages in as many
//! places, and waits for all of them. A frame is one write at one place, and the store's work is done
//! once for thousands of messages.
//!
//! `state` is memory; `writer` and `journal` are the commits; `absorb` and `file` the store; `codec`
//! is what bytes mean; `read`, `nonces` and `ops` are what a log offers.

mod absorb;
mod codec;
#[cfg(test)]
mod faulty;
mod file;
mod journal;
mod lock;
mod look;
mod medium;
mod nonces;
mod ops;
mod read;
mod state;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use redb::Database;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::entry::{EntryId, Fields};
use crate::error::{BusError, LogError};
use crate::stream::Stream;

use self::journal::{Fault, Journal};
use self::medium::{Disk, Medium, Memory, Part};
use self::nonces::Nonces;
pub(crate) use self::read::EmbeddedReader;
use self::state::{Core, Flight};

/// Appends waiting for their commit; more wait for a place. Bounds memory to this many entries.
const APPENDS_WAITING_MAX: usize = 8192;

/// How long to wait for the lock: a holder that is just ending keeps it until its last commit.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How long a read may wait for the disk: less than a worker may be silent.
const DISK_TIMEOUT: Duration = Duration::from_secs(8);

/// Pages that the store keeps in memory. Readers at the end of a stream need none.
const CACHE_BYTES: usize = 64 << 20;

/// A log in one local file. Cheap to clone; the file is closed with the last clone.
#[derive(Clone)]
pub(crate) struct EmbeddedLog(Arc<Handle>);

/// The last of these to go sends the threads home, which hold the rest.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.core().closing = true;
        self.0.urgent.notify_all();
        self.0.absorb_wake.notify_all();
        self.0.room.notify_all();
    }
}

struct Shared {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    bytes_max: u64,
    period_ms: u64,
    /// Held for microseconds, never over a wait or a read of the file.
    core: Mutex<Core>,
    /// Claims that the store does not hold.
    nonces: Mutex<Nonces>,
    journal: Mutex<Journal>,
    /// Absent while it cannot be opened after a failure.
    store: RwLock<Option<Database>>,
    /// Number of the last frame that the store holds.
    absorbed: AtomicU64,
    /// About how much the stored claims take.
    claims_bytes: AtomicU64,
    places: Semaphore,
    /// One trim or removal at a time: between the look and the change nobody else may take an entry.
    removing: tokio::sync::Mutex<()>,
    /// Wakes the writer.
    urgent: Condvar,
    /// Wakes the thread that hands frames to the store.
    absorb_wake: Condvar,
    /// Told when the store has taken something in, or has failed.
    room: Condvar,
    /// When the file was last made smaller.
    compacted: Mutex<Option<std::time::Instant>>,
    /// What stood in the log when it was opened is delivered carefully; see [`read`].
    backlog_until: u64,
    _lock: Option<lock::Lock>,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EmbeddedLog({})", self.shared().path.display())
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the store. Should an earlier failure have made it unusable, it is opened once more.
    fn with_store<T>(
        &self,
        mut read: impl FnMut(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, LogError> {
        let mut attempt = || {
            let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
            read(store.as_ref().ok_or(redb::Error::DatabaseClosed)?)
        };
        let read = attempt().or_else(|_| {
            self.reopen();
            attempt()
        });
        read.map_err(|source| LogError::Storage {
            path: self.path.clone(),
            source: Arc::new(source),
        })
    }

    /// The store refuses everything after a failed read or write until it is opened again.
    fn reopen(&self) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // Closed before it is opened again: both would write to one file.
        if let Some(db) = store.take() {
            close(db);
        }
        *store = open_store(&*self.disk).ok();
    }

    fn not_stored(&self, source: std::io::Error) -> LogError {
        LogError::NotStored {
            path: self.path.clone(),
            free_bytes: self.disk.free_bytes(),
            source: Arc::new(source),
        }
    }

    fn closed(&self) -> LogError {
        LogError::Closed { path: self.path.clone() }
    }
}

/// The store panics over pages that contradict one another. That is damage like any other.
fn open_store(disk: &dyn Disk) -> Result<Database, redb::Error> {
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let medium = disk.open(Part::Store)?;
        let mut builder = Database::builder();
        Ok(builder.set_cache_size(CACHE_BYTES).create_with_backend(Medium(medium))?)
    }));
    opened.unwrap_or_else(|_| Err(file::damaged("its pages contradict one another")))
}

/// A store that found itself damaged panics when it is closed, too.
fn close(db: Database) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(db)));
}

/// A file is verified as a whole when it is opened, up to this size: that takes a fraction of a second.
/// After a crash the store verifies larger ones as well.
const VERIFY_BYTES_MAX: u64 = 256 << 20;

/// The store mends what it can do without: its list of free pages, which may be stale in a sound
/// file, and its last commit, whose frames the journal still has (a gap there is damage). What it
/// calls mended must pass as it stands.
fn verify(db: &mut Database, disk: &dyn Disk) -> Result<(), redb::Error> {
    if disk.size(Part::Store)? > VERIFY_BYTES_MAX {
        return Ok(());
    }
    if is_sound(db)? {
        return Ok(());
    }
    tracing::info!("the embedded log's store was mended when it was opened");
    if is_sound(db)? { Ok(()) } else { Err(file::damaged("its pages contradict one another")) }
}

fn is_sound(db: &mut Database) -> Result<bool, redb::Error> {
    let verified = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| db.check_integrity()));
    match verified {
        Ok(sound) => Ok(sound?),
        Err(_) => Err(file::damaged("its pages contradict one another")),
    }
}

/// Opens these bytes as a log's store and its two journals, and reads all that is in them; `None` when
/// they are no log.
pub(crate) fn open_bytes(files: [&[u8]; 3]) -> Option<Vec<(EntryId, Fields)>> {
    let [store, journal, other] = files;
    let parts = [(Part::Store, store), (Part::Journal, journal), (Part::OtherJournal, other)];
    let disk = Arc::new(Memory::holding(parts));
    let shared = Shared::open(PathBuf::new(), disk, 0, 1, None).ok()?;
    let streams = u16::try_from(shared.core().streams.len()).ok()?;
    let mut found = Vec::new();
    for stream in 0..streams {
        let values = shared.load_now(stream, EntryId::ZERO, EntryId::MAX, usize::MAX).ok()?;
        let decode = |(id, value): (EntryId, bytes::Bytes)| (id, codec::decode_fields(&value));
        found.extend(values.into_iter().map(decode));
    }
    Some(found)
}

impl Shared {
    /// Opens the store, and lets it take in what the journal holds.
    fn open(
        path: PathBuf,
        disk: Arc<dyn Disk>,
        bytes_max: u64,
        period_ms: u64,
        lock: Option<lock::Lock>,
    ) -> Result<Self, BusError> {
        let damaged = |path: &Path, source| match source {
            // What the store says to a file that is none of its own.
            redb::Error::Io(source) if source.kind() != std::io::ErrorKind::InvalidData => {
                BusError::Open { path: path.to_owned(), source }
            }
            source => BusError::Damaged { path: path.to_owned(), source: Arc::new(source) },
        };
        let mut db = open_store(&*disk).map_err(|error| damaged(&path, error))?;
        if let Err(error) = verify(&mut db, &*disk) {
            close(db);
            return Err(damaged(&path, error));
        }
        let (absorbed, salt) = file::prepare(&db).map_err(|error| damaged(&path, error))?;
        let open =
            |part| disk.open(part).map_err(|source| BusError::Open { path: path.clone(), source });
        let recovered =
            Journal::recover([open(Part::Journal)?, open(Part::OtherJournal)?], salt, absorbed);
        let recovered = recovered.map_err(|fault| match fault {
            Fault::Io(source) => BusError::Open { path: path.clone(), source },
            Fault::Damaged => damaged(&path, file::damaged("frames of its journal are broken")),
        })?;
        let mut flights = Vec::new();
        for (number, payload) in (absorbed + 1..).zip(&recovered.payloads) {
            let frame = codec::decode_frame(payload);
            let (changes, claims) = frame.ok_or_else(|| {
                damaged(&path, file::damaged("a frame of its journal cannot be understood"))
            })?;
            flights.push(Arc::new(Flight { number, bytes: 0, changes, claims }));
        }
        let shared = Self {
            path,
            disk,
            bytes_max,
            period_ms,
            core: Mutex::new(Core::new()),
            nonces: Mutex::default(),
            journal: Mutex::new(recovered.journal),
            store: RwLock::new(Some(db)),
            absorbed: AtomicU64::new(absorbed),
            claims_bytes: AtomicU64::new(0),
            places: Semaphore::new(APPENDS_WAITING_MAX),
            removing: tokio::sync::Mutex::default(),
            urgent: Condvar::new(),
            absorb_wake: Condvar::new(),
            room: Condvar::new(),
            compacted: Mutex::default(),
            backlog_until: leyline::time::now_unix_ms(),
            _lock: lock,
        };
        shared.start(&flights).map_err(|error| damaged(&shared.path, error))?;
        Ok(shared)
    }

    fn start(&self, flights: &[Arc<Flight>]) -> Result<(), redb::Error> {
        if let Some(last) = flights.last() {
            self.absorb(flights)?;
            self.absorbed.store(last.number, Ordering::Release);
        }
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let db = store.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        self.claims_bytes.store(file::claims_bytes(db)?, Ordering::Relaxed);
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| file::load(db)));
        *self.core() =
            loaded.unwrap_or_else(|_| Err(file::damaged("its pages contradict one another")))?;
        Ok(())
    }
}

impl EmbeddedLog {
    /// Opens or makes the file, and locks it for this process.
    pub(crate) async fn open(path: PathBuf, config: &Config) -> Result<Self, BusError> {
        let period_ms = u64::try_from(config.claim_ttl().as_millis()).unwrap_or(u64::MAX).max(1);
        let bytes_max = config.embedded_bytes_max;
        let kernel_traffic = [Stream::KernelRequests, Stream::KernelReady, Stream::KernelErrors];
        let prompt = kernel_traffic.map(|stream| config.streams.name(stream).to_owned());
        let opened = tokio::task::spawn_blocking(move || {
            let lock = lock::Lock::wait(&path, LOCK_WAIT)?;
            let disk = Arc::new(medium::Directory::of(&path));
            let shared = Shared::open(path, disk, bytes_max, period_ms, Some(lock))?;
            shared.core().make_prompt(prompt);
            Ok(shared)
        });
        match opened.await {
            Ok(opened) => opened.map(|shared| Self(Arc::new(Handle(Arc::new(shared))))),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// Runs what may have to wait for the disk on a thread that may. What takes longer than
    /// [`DISK_TIMEOUT`] goes on unobserved: everything here may be done twice.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = Arc::clone(self.shared());
        let done = tokio::task::spawn_blocking(move || work(&shared));
        match tokio::time::timeout(DISK_TIMEOUT, done).await {
            Ok(done) => done.unwrap_or_else(|_| Err(self.shared().closed())),
            Err(_) => {
                let operation = "a read of the embedded log's file";
                Err(LogError::TimedOut { operation, after: DISK_TIMEOUT })
            }
        }
    }

    /// Appends; the answer comes when the entry is on disk.
    pub(crate) async fn append(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
    ) -> Result<EntryId, LogError> {
        let shared = self.shared();
        let value = codec::encode_fields(fields);
        let _place = shared.places.acquire().await.map_err(|_| shared.closed())?;
        let (id, ticket) = {
            let mut core = shared.core();
            shared.has_room_for(&core, &value)?;
            let id = core.append(stream, value.into(), false);
            let ticket = core.ticket();
            shared.wake_writer(&mut core);
            (id, ticket)
        };
        ticket.await.unwrap_or_else(|_| Err(shared.closed()))?;
        Ok(id)
    }
}

impl Shared {
    /// Pages are on average more than half full, hence the file stays within the bound when what is
    /// in them stays within half of it.
    fn has_room_for(&self, core: &Core, value: &[u8]) -> Result<(), LogError> {
        let bytes = core.bytes() + self.claims_bytes.load(Ordering::Relaxed);
        if (bytes + file::entry_bytes(value)).saturating_mul(2) <= self.bytes_max {
            return Ok(());
        }
        Err(LogError::Full { path: self.path.clone(), bytes: bytes * 2, bytes_max: self.bytes_max })
    }
}

//! The spool: what was published while the log is away waits here, on this machine's disk, and is
//! sent in order when the log is back.
//!
//! Every process writes a file of its own, which it holds locked; files that a dead process left are
//! adopted by whoever finds them. A message is on disk before its publisher hears of it, and messages
//! put at the same time share one write to the disk. Each is signed together with its place, so a
//! file that was tampered with yields nothing; what is sent is signed anew under the same `oona-id`,
//! so a message that had reached the log after all is refused there as a replay.
//!
//! `book` is the accounting (pure), `file` the tables, `record` what is signed, `sender` the worker.

mod book;
mod file;
mod record;
mod sender;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use self::book::Book;
use self::file::{File, Place};
pub use self::sender::SpoolSender;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::stream::Stream;

/// Where messages wait while the log is away, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Its directory; made when it is first needed. Processes may share it.
    pub directory: PathBuf,
    /// `OONA_SPOOL_MAX_BYTES`, 64 MiB: bytes of messages that wait at once.
    pub bytes_max: u64,
    /// `OONA_SPOOL_MAX_MESSAGES`, 100 000: messages that wait at once.
    pub messages_max: u64,
}

impl SpoolConfig {
    /// The usual limits.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), bytes_max: 64 << 20, messages_max: 100_000 }
    }
}

/// The spool's disk failed; the message was not stored. Clone, because one failed write fails
/// everyone who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the log is away and the message could not be kept in {path}; check disk space and permissions"
)]
pub struct SpoolError {
    /// The file, or its directory.
    pub path: PathBuf,
    /// What the store reported.
    pub source: Arc<redb::Error>,
}

/// Why the spool did not take a message.
#[derive(Debug)]
pub(crate) enum NotSpooled {
    Full,
    Disk(SpoolError),
}

/// What waits in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolStanding {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The spool of one bus. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spool(Arc<Shared>);

struct Shared {
    config: SpoolConfig,
    live: Live,
    metrics: Metrics,
    desk: Mutex<Desk>,
    /// Messages that wait for each stream, to be asked at every publish.
    waiting: [AtomicU64; Stream::ALL.len()],
    /// Locked on blocking threads only, over writes to the disk.
    own: Mutex<Own>,
    adopted: Mutex<Vec<Arc<File>>>,
    /// Wakes the sender: something waits, or the log gave a sign of life.
    wake: Notify,
}

/// What has been put and is not yet on disk, and the accounting.
struct Desk {
    book: Book,
    journal: Vec<(Place, Vec<u8>)>,
    tickets: Vec<oneshot::Sender<Result<(), SpoolError>>>,
    writing: bool,
}

/// This process's file.
enum Own {
    None,
    Open(Arc<File>),
    /// A write failed. What was written before stands there still; it is opened again at the next
    /// need.
    Broken(PathBuf),
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spool({})", self.0.config.directory.display())
    }
}

fn lane(stream: Stream) -> u8 {
    let index = Stream::ALL.iter().position(|one| *one == stream).unwrap_or(0);
    u8::try_from(index).unwrap_or(0)
}

impl Spool {
    /// Opens nothing: the file is made when something has to wait.
    pub(crate) fn new(config: SpoolConfig, live: Live, metrics: Metrics) -> Self {
        let book = Book::new(config.messages_max, config.bytes_max);
        Self(Arc::new(Shared {
            config,
            live,
            metrics,
            desk: Mutex::new(Desk {
                book,
                journal: Vec::new(),
                tickets: Vec::new(),
                writing: false,
            }),
            waiting: Default::default(),
            own: Mutex::new(Own::None),
            adopted: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    /// Messages that wait for a stream. What comes later goes behind them.
    pub(crate) fn waiting(&self, stream: Stream) -> u64 {
        self.0.waiting[usize::from(lane(stream))].load(Ordering::Acquire)
    }

    /// What waits for all streams.
    pub(crate) fn standing(&self) -> SpoolStanding {
        self.0.desk().book.standing()
    }

    /// The log answered somebody: whatever waits can be sent.
    pub(crate) fn log_is_alive(&self) {
        if self.0.waiting.iter().any(|count| count.load(Ordering::Relaxed) > 0) {
            self.0.wake.notify_one();
        }
    }

    /// Stores an envelope; the answer, how many wait for its stream, comes when it is on disk.
    pub(crate) async fn put(&self, stream: Stream, envelope: &[u8]) -> Result<u64, NotSpooled> {
        let lane = lane(stream);
        let (ticket, waiting) = {
            let mut desk = self.0.desk();
            let size = record::size(envelope);
            let Some((seq, waiting)) = desk.book.reserve(lane, size) else {
                self.0.metrics.spool_refused.inc();
                return Err(NotSpooled::Full);
            };
            let place = Place { lane, seq };
            desk.journal.push((place, record::seal(&self.0.live.keyring(), place, envelope)));
            let (sender, ticket) = oneshot::channel();
            desk.tickets.push(sender);
            self.0.show(&desk.book);
            if !desk.writing {
                desk.writing = true;
                let shared = Arc::clone(&self.0);
                // Nobody waits for the thread: it answers by the tickets.
                drop(tokio::task::spawn_blocking(move || shared.write_all()));
            }
            (ticket, waiting)
        };
        let answer = ticket.await.unwrap_or_else(|_| {
            let closed = redb::Error::DatabaseClosed;
            Err(SpoolError { path: self.0.config.directory.clone(), source: Arc::new(closed) })
        });
        match answer {
            Ok(()) => Ok(waiting),
            Err(error) => {
                self.0.metrics.spool_refused.inc();
                Err(NotSpooled::Disk(error))
            }
        }
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the accounting visible. Called under the desk's lock.
    fn show(&self, book: &Book) {
        for (count, waiting) in self.waiting.iter().zip(book.waiting()) {
            count.store(waiting, Ordering::Release);
        }
        let standing = book.standing();
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.spool_messages.set(number(standing.messages));
        self.metrics.spool_bytes.set(number(standing.bytes));
    }

    /// Writes what has been put, as one transaction each time, until nothing is left.
    fn write_all(&self) {
        loop {
            let (journal, tickets) = {
                let mut desk = self.desk();
                if desk.journal.is_empty() {
                    desk.writing = false;
                    return;
                }
                (std::mem::take(&mut desk.journal), std::mem::take(&mut desk.tickets))
            };
            let written = self.with_own(|file| file.store(&journal));
            match &written {
                Ok(()) => {
                    self.metrics.spool_stored.inc_by(journal.len() as u64);
                    self.wake.notify_one();
                }
                Err(error) => {
                    tracing::error!(
                        error = error as &dyn std::error::Error,
                        messages = journal.len(),
                        "the spool cannot write"
                    );
                    let mut desk = self.desk();
                    for (place, value) in &journal {
                        desk.book.settle(place.lane, 1, value.len() as u64);
                    }
                    self.show(&desk.book);
                }
            }
            for ticket in tickets {
                // Whoever stopped waiting does not want the answer.
                let _ = ticket.send(written.clone());
            }
        }
    }

    /// Does something with this process's file, which is made or opened again if need be.
    fn with_own<T>(
        &self,
        work: impl FnOnce(&File) -> Result<T, redb::Error>,
    ) -> Result<T, SpoolError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &*own {
            Own::Open(file) => Arc::clone(file),
            Own::None => Arc::new(File::create(&self.config.directory)?),
            // Somebody may have cleared the directory meanwhile.
            Own::Broken(path) if !path.exists() => Arc::new(File::create(&self.config.directory)?),
            Own::Broken(path) => Arc::new(File::open(path)?),
        };
        let done = work(&file);
        *own = match &done {
            Ok(_) => Own::Open(file),
            // The store takes nothing after a failure until it is opened again.
            Err(_) => Own::Broken(file.path().to_owned()),
        };
        done.map_err(|source| match &*own {
            Own::Broken(path) => SpoolError { path: path.clone(), source: Arc::new(source) },
            Own::None | Own::Open(_) => {
                SpoolError { path: self.config.directory.clone(), source: Arc::new(source) }
            }
        })
    }
}

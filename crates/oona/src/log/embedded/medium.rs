//! Where the bytes of a log lie: files of a directory, or memory for what is fuzzed and tested.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use redb::backends::FileBackend;

/// The files of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Store,
    Journal,
    OtherJournal,
}

/// Opens the files of one log, again and again if need be.
pub(super) trait Disk: Debug + Send + Sync {
    /// Opens or makes it.
    fn open(&self, part: Part) -> io::Result<Box<dyn StorageBackend>>;

    /// Its size, also while it is open.
    fn size(&self, part: Part) -> io::Result<u64>;

    /// What is left on the disk, when that is known.
    fn free_bytes(&self) -> Option<u64>;
}

/// The store takes any backend, but not in a box.
#[derive(Debug)]
pub(super) struct Medium(pub(super) Box<dyn StorageBackend>);

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// Files beside one another: the store has the log's name, the journals that and a suffix.
#[derive(Debug)]
pub(super) struct Directory {
    log: PathBuf,
}

impl Directory {
    pub(super) fn of(log: &Path) -> Self {
        Self { log: log.to_owned() }
    }

    fn path(&self, part: Part) -> PathBuf {
        let mut name = self.log.as_os_str().to_owned();
        name.push(match part {
            Part::Store => "",
            Part::Journal => ".journal-a",
            Part::OtherJournal => ".journal-b",
        });
        name.into()
    }
}

impl Disk for Directory {
    fn open(&self, part: Part) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let path = self.path(part);
        let new = !path.exists();
        let file = options.open(&path)?;
        if new && let Some(directory) = path.parent().filter(|path| !path.as_os_str().is_empty()) {
            // A file is on disk for good only when its name is.
            File::open(directory)?.sync_all()?;
        }
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    }

    fn size(&self, part: Part) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path(part))?.len())
    }

    fn free_bytes(&self) -> Option<u64> {
        let directory = self.log.parent().filter(|path| !path.as_os_str().is_empty());
        let stat = rustix::fs::statvfs(directory.unwrap_or(Path::new("."))).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Files in memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    files: Mutex<BTreeMap<Part, Arc<Mutex<Vec<u8>>>>>,
}

impl Memory {
    pub(super) fn holding(parts: [(Part, &[u8]); 3]) -> Self {
        let files = parts.map(|(part, bytes)| (part, Arc::new(Mutex::new(bytes.to_vec()))));
        Self { files: Mutex::new(BTreeMap::from(files)) }
    }
}

impl Disk for Memory {
    fn open(&self, part: Part) -> io::Result<Box<dyn StorageBackend>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(MemoryFile(Arc::clone(files.entry(part).or_default()))))
    }

    fn size(&self, part: Part) -> io::Result<u64> {
        self.open(part)?.len()
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

#[derive(Debug)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl MemoryFile {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of `length` bytes within a file of `available`.
fn span(offset: u64, length: usize, available: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start.checked_add(length).filter(|end| *end <= available);
    Ok(start..end.ok_or(io::ErrorKind::UnexpectedEof)?)
}

impl StorageBackend for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        u64::try_from(self.bytes().len()).map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        out.copy_from_slice(&bytes[span(offset, out.len(), bytes.len())?]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // What is opened from memory is small; a length read from a damaged header need not be.
        const LEN_MAX: u64 = 64 << 20;
        let len = usize::try_from(len.min(LEN_MAX + 1)).map_err(io::Error::other)?;
        if u64::try_from(len).is_ok_and(|len| len > LEN_MAX) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes();
        let span = span(offset, data.len(), bytes.len())?;
        bytes[span].copy_from_slice(data);
        Ok(())
    }
}

//! Field reports on disk: `reports.log` with every report, `published.log` with the ids of those
//! that need no publishing any more, `lock` against a second process. Blocking.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leyline::wire::FieldReport;
use prost::Message as _;

use super::frame;
use crate::error::StoreError;

const REPORTS: &str = "reports.log";
const PUBLISHED: &str = "published.log";
const LOCK: &str = "lock";

/// The store, open for one process.
#[derive(Debug)]
pub struct Store {
    reports: Log,
    published: Log,
    /// Held as long as the store is.
    _lock: File,
}

/// What was found when the store was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Reports that are still to be published, in the order in which they were stored.
    pub pending: Vec<FieldReport>,
    /// Bytes cut off the ends of the files, torn by a crash.
    pub torn_bytes: u64,
    /// Reports that left the disk because of their age.
    pub expired: usize,
}

/// One append-only file.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Store {
    /// Opens the store, cuts off what a crash has torn, and drops what is older than the retention.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it open, [`StoreError::Io`] when the
    /// directory cannot be used.
    pub fn open(
        dir: &Path,
        retention: Duration,
        now_unix_ms: u64,
    ) -> Result<(Self, Recovered), StoreError> {
        fs::create_dir_all(dir).map_err(at("make", dir))?;
        let lock = lock(&dir.join(LOCK))?;
        let (reports, report_bytes, torn_reports) = Log::open(dir.join(REPORTS))?;
        let (published, published_bytes, torn_published) = Log::open(dir.join(PUBLISHED))?;
        let mut store = Self { reports, published, _lock: lock };
        let mut recovered =
            Recovered { torn_bytes: torn_reports + torn_published, ..Recovered::default() };

        let published: BTreeSet<Vec<u8>> =
            frame::scan(&published_bytes).records.into_iter().map(<[u8]>::to_vec).collect();
        let mut kept = Vec::new();
        for record in frame::scan(&report_bytes).records {
            // A whole record that is no report is of a later version; it goes with its age unknown.
            let Ok(report) = FieldReport::decode(record) else { continue };
            if is_expired(&report, retention, now_unix_ms) {
                recovered.expired += 1;
                continue;
            }
            kept.push(report);
        }
        let is_published = |report: &FieldReport| published.contains(report.report_id.as_bytes());
        recovered.pending = kept.iter().filter(|report| !is_published(report)).cloned().collect();
        if recovered.expired > 0 {
            store.rewrite(&kept, &published)?;
        }
        Ok((store, recovered))
    }

    /// Appends reports and makes them durable.
    ///
    /// # Errors
    /// [`StoreError::Oversize`] for a report that is too large, [`StoreError::Io`] when the disk
    /// refuses. Nothing of the batch is then stored.
    pub fn append(&mut self, reports: &[FieldReport]) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        for report in reports {
            let bytes = report.encoded_len();
            if bytes > frame::RECORD_BYTES_MAX {
                return Err(StoreError::Oversize { bytes, bytes_max: frame::RECORD_BYTES_MAX });
            }
            frame::push(&mut buffer, &report.encode_to_vec());
        }
        self.reports.append(&buffer)
    }

    /// Notes that these reports need no publishing any more.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk refuses; they are then published again after a restart,
    /// under the same ids.
    pub fn mark_published(&mut self, ids: &[String]) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        for id in ids {
            frame::push(&mut buffer, id.as_bytes());
        }
        self.published.append(&buffer)
    }

    /// Drops reports older than the retention; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the files cannot be read or replaced. The old ones then stay.
    pub fn expire(&mut self, retention: Duration, now_unix_ms: u64) -> Result<usize, StoreError> {
        let reports = self.reports.read()?;
        let decoded = frame::scan(&reports).records.into_iter().map(FieldReport::decode);
        let all: Vec<FieldReport> = decoded.filter_map(Result::ok).collect();
        let before = all.len();
        let kept: Vec<FieldReport> =
            all.into_iter().filter(|one| !is_expired(one, retention, now_unix_ms)).collect();
        if kept.len() == before {
            return Ok(0);
        }
        let ids = self.published.read()?;
        let published = frame::scan(&ids).records.into_iter().map(<[u8]>::to_vec).collect();
        self.rewrite(&kept, &published)?;
        Ok(before - kept.len())
    }

    /// Replaces both files by what is kept. The reports go first: an id without its report is
    /// harmless, a report without its id would be published once more.
    fn rewrite(
        &mut self,
        kept: &[FieldReport],
        published: &BTreeSet<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let (mut reports, mut ids) = (Vec::new(), Vec::new());
        for report in kept {
            frame::push(&mut reports, &report.encode_to_vec());
            if published.contains(report.report_id.as_bytes()) {
                frame::push(&mut ids, report.report_id.as_bytes());
            }
        }
        self.reports.replace(&reports)?;
        self.published.replace(&ids)
    }
}

impl Log {
    /// Opens or makes the file, cuts off a torn end, and returns the content and what was cut.
    fn open(path: PathBuf) -> Result<(Self, Vec<u8>, u64), StoreError> {
        let open = || OpenOptions::new().create(true).append(true).read(true).open(&path);
        let file = open().map_err(at("open", &path))?;
        let mut content = fs::read(&path).map_err(at("read", &path))?;
        let whole = frame::scan(&content).bytes;
        let torn = (content.len() - whole) as u64;
        let bytes = whole as u64;
        if torn > 0 {
            file.set_len(bytes).and_then(|()| file.sync_all()).map_err(at("repair", &path))?;
            content.truncate(whole);
        }
        Ok((Self { path, file, bytes }, content, torn))
    }

    fn append(&mut self, records: &[u8]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(records).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a record at the end would hide what is appended behind it.
            let _ = self.file.set_len(self.bytes);
            return Err(at("append to", &self.path)(source));
        }
        self.bytes += records.len() as u64;
        Ok(())
    }

    fn read(&self) -> Result<Vec<u8>, StoreError> {
        fs::read(&self.path).map_err(at("read", &self.path))
    }

    fn replace(&mut self, content: &[u8]) -> Result<(), StoreError> {
        let temporary = self.path.with_extension("new");
        let replaced = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            if let Some(dir) = self.path.parent() {
                File::open(dir)?.sync_all()?;
            }
            OpenOptions::new().append(true).read(true).open(&self.path)
        })();
        self.file = replaced.map_err(at("replace", &self.path))?;
        self.bytes = content.len() as u64;
        Ok(())
    }
}

/// A report without a time of issue never expires by age; there is none of ours.
fn is_expired(report: &FieldReport, retention: Duration, now_unix_ms: u64) -> bool {
    let issued = report.issued_at.as_ref().and_then(leyline::time::unix_ms);
    let age = issued.map(|issued| Duration::from_millis(now_unix_ms.saturating_sub(issued)));
    age.is_some_and(|age| age > retention)
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(at("lock", path)(source)),
    }
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}

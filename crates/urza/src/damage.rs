//! A catalogue that is damaged: set aside, never deleted, and replaced by an empty one. Everything in a catalogue can be
//! made again: the forge compiles its blueprints at every start, and the same job gives the same bytes.

use std::fs::{self, File, TryLockError};
use std::io;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leyline::time::now_unix_ms;
use tokio::time::Instant;

use crate::error::OpenError;

/// How long another process may take to set the same catalogue aside.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long closing may take to remove the journal.
const CLOSE_WAIT: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// What stands beside a SQLite file and belongs to it.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];

/// How every SQLite file begins.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// SQLite's word for a damaged file. A file that does not even begin like a catalogue may be somebody's letter: it is
/// refused, never moved.
pub(crate) fn is_damage(path: &Path, error: &sqlx::Error) -> bool {
    const CORRUPT: u32 = 11;
    const NOT_A_DATABASE: u32 = 26;
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    // The low byte is the kind of the fault, what stands above it a detail.
    match code.map(|code| code & 0xff) {
        Some(CORRUPT) => true,
        Some(NOT_A_DATABASE) => begins_like_one(path).unwrap_or(false),
        _ => false,
    }
}

fn begins_like_one(path: &Path) -> io::Result<bool> {
    let mut begin = [0; MAGIC.len()];
    File::open(path)?.read_exact(&mut begin)?;
    Ok(begin == MAGIC)
}

/// The right to set a catalogue aside; one process at a time has it.
pub(crate) async fn lock(path: &Path) -> Result<File, OpenError> {
    let beside = with_suffix(path, ".lock");
    let fault = |source: io::Error| OpenError::Directory { path: beside.clone(), source };
    let file = File::create(&beside).map_err(fault)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(TryLockError::WouldBlock) => return Err(fault(io::ErrorKind::TimedOut.into())),
            Err(TryLockError::Error(error)) => return Err(fault(error)),
        }
    }
}

/// Moves a catalogue out of the way, and says where it went.
pub(crate) async fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    // A connection of ours that closes removes the journal by its name, which must not be the new one's by then. One that
    // is damaged, or open elsewhere, stays.
    let journal = with_suffix(path, "-wal");
    let deadline = Instant::now() + CLOSE_WAIT;
    while journal.exists() && Instant::now() < deadline {
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    let aside = with_suffix(path, &format!(".damaged-{}", now_unix_ms()));
    for companion in COMPANIONS {
        let from = with_suffix(path, companion);
        match fs::rename(&from, with_suffix(&aside, companion)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::Directory { path: from, source: error });
            }
            _ => {}
        }
    }
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

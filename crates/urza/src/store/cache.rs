//! What the directory holds of a bucket: bounded in bytes, least recently used goes first, what is in
//! use stays.
//!
//! The time of use is the file's time of access, set here and not by the system, so that every process
//! on the directory sees it, it outlives a restart, and a mount option cannot turn it off.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kernel::Digest;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::files::Files;

/// Whoever was handed a path opens it within this; until then its file stays.
const GRACE: Duration = Duration::from_secs(120);
/// A file's time of use is written this often at most.
const TOUCH_INTERVAL: Duration = Duration::from_secs(20);
/// Digests whose time of use is remembered; beyond that all are written anew.
const TOUCHED_LEN_MAX: usize = 4096;

/// The bound, and what it must not touch.
#[derive(Debug)]
pub(crate) struct CacheBound {
    bytes_max: u64,
    grace: Duration,
    // Both are held for a look or a change in memory, never across a wait.
    leased: Mutex<HashSet<Digest>>,
    touched: Mutex<HashMap<Digest, Instant>>,
}

impl CacheBound {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, grace: GRACE, leased: Mutex::default(), touched: Mutex::default() }
    }

    pub(crate) fn protect(&self, leased: HashSet<Digest>) {
        *lock(&self.leased) = leased;
    }

    /// Notes that a file was handed out.
    pub(crate) fn used(&self, files: &Files, digest: &Digest) {
        let now = Instant::now();
        {
            let mut touched = lock(&self.touched);
            if touched.get(digest).is_some_and(|at| now.duration_since(*at) < TOUCH_INTERVAL) {
                return;
            }
            if touched.len() >= TOUCHED_LEN_MAX {
                touched.clear();
            }
            touched.insert(*digest, now);
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        // It only decides what goes first.
        let path = files.path(digest);
        if let Err(error) = rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW) {
            tracing::debug!(path = %path.display(), %error, "time of use not noted");
        }
    }

    /// Removes the least recently used files until `wanted` bytes more fit; says how many. Blocking.
    pub(crate) fn make_room(&self, files: &Files, wanted: u64) -> io::Result<usize> {
        let mut held = files.list(None, usize::MAX)?;
        let mut bytes: u64 = held.iter().map(|stored| stored.bytes).sum();
        held.sort_unstable_by_key(|stored| stored.used);
        let leased = lock(&self.leased).clone();
        let now = SystemTime::now();
        let mut removed = 0;
        for stored in held {
            if bytes.saturating_add(wanted) <= self.bytes_max {
                break;
            }
            let idle = now.duration_since(stored.used).unwrap_or_default();
            let in_use = idle < self.grace || leased.contains(&stored.digest);
            if !in_use && files.remove(&stored.digest)? {
                bytes = bytes.saturating_sub(stored.bytes);
                lock(&self.touched).remove(&stored.digest);
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

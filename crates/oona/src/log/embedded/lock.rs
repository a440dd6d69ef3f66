//! One process holds an embedded log. A lock file beside it says which.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::BusError;

/// The lock, held as long as this lives; the system releases it when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock as soon as it is free, or says who still has it after that time. Waits by the
    /// system's clock, on a thread that may.
    pub(super) fn wait(log: &Path, time: Duration) -> Result<Self, BusError> {
        let deadline = Instant::now() + time;
        loop {
            match Self::take(log) {
                Err(BusError::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::park_timeout(time / 50);
                }
                other => return other,
            }
        }
    }

    /// Makes the directory if need be, and takes the lock or says who has it.
    fn take(log: &Path) -> Result<Self, BusError> {
        let open = |source| BusError::Open { path: log.to_owned(), source };
        if let Some(directory) = log.parent().filter(|path| !path.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(open)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(beside(log))
            .map_err(open)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Whatever it says: the lock itself is the system's.
                let _ = file.read_to_string(&mut holder);
                return Err(locked(log, &holder));
            }
            Err(errno) => return Err(open(errno.into())),
        }
        file.set_len(0).map_err(open)?;
        file.rewind().map_err(open)?;
        file.write_all(introduction().as_bytes()).map_err(open)?;
        Ok(Self { _file: file })
    }
}

/// What a holder writes into its lock: number, start, host, command.
fn introduction() -> String {
    let (pid, started_at_ms) = (std::process::id(), leyline::time::now_unix_ms());
    let command: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let command: String = command.join(" ").chars().filter(|c| !c.is_control()).take(200).collect();
    format!("{pid}\n{started_at_ms}\n{}\n{command}\n", host())
}

/// Locks on a network's file system are seen by several hosts.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn locked(log: &Path, introduction: &str) -> BusError {
    let mut lines = introduction.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok());
    let started_at_ms: Option<u64> = lines.next().and_then(|line| line.trim().parse().ok());
    let filled = |line: Option<&str>| line.filter(|line| !line.is_empty()).map(str::to_owned);
    let (their_host, command) = (filled(lines.next()), filled(lines.next()));
    let held = started_at_ms.map(|at| leyline::time::now_unix_ms().saturating_sub(at));
    BusError::Locked {
        path: log.to_owned(),
        pid,
        command,
        host: their_host.filter(|name| *name != host()),
        held_for: held.map(Duration::from_millis),
    }
}

fn beside(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

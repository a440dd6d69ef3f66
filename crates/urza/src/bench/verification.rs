//! What verification costs, measured: the library's own first look at a file against SHA-256 over
//! memory, side by side in one run.

use std::path::Path;
use std::time::Instant;

use kernel::Digest;

use super::{BenchFault, quantile};
use crate::files::Files;
use crate::store::WriteFault;

/// Rates of one run. The middle of the rounds, which take turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verification {
    /// Size of the artifact.
    pub bytes: u64,
    /// SHA-256 over as many bytes in memory, in bytes per second.
    pub memory_rate: f64,
    /// The first verification of a file that the system has in its cache, in bytes per second.
    pub file_rate: f64,
}

impl Verification {
    /// The file's rate as a share of the machine's.
    pub fn ratio(&self) -> f64 {
        self.file_rate / self.memory_rate
    }
}

/// Measures in `directory`, with an artifact of `bytes` bytes, `rounds` times each (at least once).
/// Blocking. What is written is removed.
///
/// # Errors
/// [`BenchFault`]
pub fn verification(
    directory: &Path,
    bytes: usize,
    rounds: usize,
) -> Result<Verification, BenchFault> {
    let write = |path, source| BenchFault::Write { path, source };
    let files = Files::open(directory).map_err(|(path, source)| write(path, source))?;
    let contents: Vec<u8> = (0..bytes).map(|at| (at as u8) ^ (at >> 8) as u8).collect();
    let digest = Digest::of(&contents);
    files.write(&digest, &contents).map_err(|fault| match fault {
        WriteFault::Io { path, source } => write(path, source),
        WriteFault::Full { directory, source, .. } => write(directory, source),
    })?;
    let (mut memory, mut file) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        std::hint::black_box(Digest::of(std::hint::black_box(&contents)));
        memory.push(began.elapsed());
        let began = Instant::now();
        files.verify(&digest)?;
        file.push(began.elapsed());
    }
    let path = files.path(&digest);
    files.remove(&digest).map_err(|source| write(path, source))?;
    let rate = |times| bytes as f64 / quantile(times, 0.5).as_secs_f64().max(f64::MIN_POSITIVE);
    Ok(Verification { bytes: bytes as u64, memory_rate: rate(memory), file_rate: rate(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_rates_are_measured_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let measured = verification(dir.path(), 100_000, 3).unwrap();
        assert!(measured.memory_rate > 0.0 && measured.file_rate > 0.0, "{measured:?}");
        assert!(Files::open(dir.path()).unwrap().list(None, 1).unwrap().is_empty());
    }
}

//! What the library's own work costs, measured, each beside a baseline in the same run: `verification` (the first look
//! at a file), `lookups` (finding one of very many records).

mod lookups;
mod verification;

use std::io;
use std::time::Duration;

pub use self::lookups::{LookupTimes, Lookups, lookups};
pub use self::verification::{Verification, verification};
use crate::error::{FetchError, LibraryError, OpenError};

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchFault {
    /// The directory cannot be used.
    #[error("cannot write {path}; measure in a directory with room")]
    Write {
        /// The file or directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The library does not open.
    #[error("the library of the measurement does not open")]
    Open(#[from] OpenError),
    /// The library does not answer.
    #[error("the library of the measurement does not answer")]
    Library(#[from] LibraryError),
    /// There is something in it.
    #[error(
        "the catalogue of the measurement is not empty; name an empty one, it is left full of records without files"
    )]
    NotEmpty,
    /// What was stored is not found.
    #[error("record {at} of the measurement is not found by its {by}")]
    Lost {
        /// Its number.
        at: usize,
        /// What it was looked up by.
        by: &'static str,
    },
    /// What was written is not what was read.
    #[error("the artifact that was written for this is not sound")]
    Verify(#[from] FetchError),
}

/// The value below which this part (0 to 1) of the spans lies; zero for none.
fn quantile(mut spans: Vec<Duration>, part: f64) -> Duration {
    spans.sort_unstable();
    let last = spans.len().saturating_sub(1);
    spans.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}

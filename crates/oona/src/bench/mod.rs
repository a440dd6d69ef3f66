//! Measurements of the bus, each beside its baseline: the same commands from a bare client of the
//! same crate, without envelope, signature, checks or claims. Ours and the baseline alternate in
//! short slices and medians are told, because machines are noisy.
//!
//! `stage` is what a measurement stands on (a bus with names of its own, a bare client, the way to
//! spawn), `report` what comes out; then one file per measurement.

mod consume;
mod durable;
mod emergency;
mod idle;
mod load;
mod memory;
mod publish;
mod report;
mod round_trips;
mod server;
mod stage;
mod sustained;

use std::path::PathBuf;
use std::time::Duration;

pub use self::report::{Part, Row};
pub use self::round_trips::{RoundTrips, round_trips};
pub use self::server::PrivateServer;
pub use self::stage::Spawner;
use self::stage::Stage;
use crate::error::{BusError, LogError, PublishError};

/// What to measure, and on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The Redis server; the embedded log where it is absent.
    pub redis_url: Option<String>,
    /// An existing directory for embedded logs; they are removed afterwards.
    pub directory: PathBuf,
    /// Bytes of a message's payload, without envelope and attributes.
    pub payload_bytes: usize,
    /// Alternating slices of each kind.
    pub slices: usize,
    /// Messages in one slice.
    pub slice_messages: usize,
    /// Length of each measurement that has a length.
    pub span: Duration,
    /// Messages of the measurement of memory.
    pub memory_messages: u64,
    /// Nothing but these; everything when empty.
    pub only: Vec<Part>,
}

impl Options {
    /// The usual sizes; the quick ones say less and take a third of the time.
    pub fn new(redis_url: Option<String>, directory: PathBuf, quick: Quick) -> Self {
        let (slices, slice_messages, seconds) = match quick {
            Quick::Yes => (3, 5_000, 3),
            Quick::No => (9, 20_000, 10),
        };
        Self {
            redis_url,
            directory,
            payload_bytes: 512,
            slices,
            slice_messages,
            span: Duration::from_secs(seconds),
            memory_messages: if quick == Quick::Yes { 100_000 } else { 1_000_000 },
            only: Vec::new(),
        }
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Whether to be quick about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quick {
    /// Small slices, short spans.
    Yes,
    /// The usual ones.
    No,
}

/// Why a measurement ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A message was not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The bus refused a message, since something else fills it.
    #[error("the bus refused a message under pressure; measure on an idle log")]
    Refused,
    /// No answer in time.
    #[error("no delivery within {0:?}; does something else use this log?")]
    Lost(Duration),
    /// The bare client failed.
    #[error("the bare client failed; does the server still run?")]
    Raw(#[from] redis::RedisError),
    /// A file or a process could not be used.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system reported.
        source: std::io::Error,
    },
    /// A task of the measurement ended without its result.
    #[error("a task of the measurement panicked; its message stands above")]
    Panicked,
}

impl From<LogError> for BenchError {
    fn from(error: LogError) -> Self {
        Self::Bus(error.into())
    }
}

/// Measures what was asked for, and tells each row as soon as it is there.
///
/// # Errors
/// [`BenchError`] when the log fails or somebody else interferes; what was told before stands.
pub async fn run(
    options: &Options,
    spawner: &Spawner,
    mut tell: impl FnMut(Row),
) -> Result<(), BenchError> {
    for part in Part::ALL {
        let applies = options.redis_url.is_some() || part.applies_to_the_embedded_log();
        if !options.wants(part) || !applies {
            continue;
        }
        let stage = Stage::open(options, spawner, part).await?;
        let measured = match part {
            Part::Publish => publish::measure(&stage).await,
            Part::Consume => consume::measure(&stage).await,
            Part::Sustained => sustained::measure(&stage).await,
            Part::Emergency => emergency::measure(&stage).await,
            Part::Idle => idle::measure(&stage).await,
            Part::Durable => durable::measure(&stage).await,
            Part::Memory => memory::measure(&stage).await,
        };
        let cleared = stage.clear().await;
        measured?.into_iter().for_each(&mut tell);
        cleared?;
    }
    Ok(())
}

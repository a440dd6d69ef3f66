//! `weatherlight kernels bench`: the figures of the way from a request to an attached kernel, each
//! beside its baseline in the same run.
//!
//! One file per part, and in each one function from [`Bench`] to its figures; `figure` is what comes
//! out, `stage` what a measurement over a bus stands on.

mod artifact;
mod catalogue;
mod engine;
mod figure;
mod latency;
mod lookups;
mod raw;
mod stage;
mod throughput;

use std::path::PathBuf;

use clap::ValueEnum;

pub use self::figure::Figure;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Request to ready, one at a time
    Latency,
    /// Requests to ready, a thousand outstanding
    Throughput,
    /// Verifying, loading and attaching an artifact of 64 MiB
    Artifact,
    /// The whole catalogue, compiled and found
    Catalogue,
    /// Finding one of a million records
    Lookups,
    /// The engine's own workloads
    Engine,
}

impl Part {
    /// Every part, in the order in which they are measured.
    pub const ALL: [Self; 6] = [
        Self::Latency,
        Self::Throughput,
        Self::Artifact,
        Self::Catalogue,
        Self::Lookups,
        Self::Engine,
    ];
}

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Says less, takes a fraction of the time.
    Quick,
    /// As usual.
    Full,
}

/// What to measure, and on what.
#[derive(Debug, Clone)]
pub struct Bench {
    /// A Redis server that nothing else uses; without one only the embedded log is measured.
    pub redis_url: Option<String>,
    /// Whether the embedded log is measured.
    pub embedded: bool,
    /// An empty catalogue for the look-ups; without one they have a SQLite file of their own.
    pub catalogue: Option<urza::CatalogueUrl>,
    /// An existing directory of our own.
    pub directory: PathBuf,
    /// How long.
    pub length: Length,
}

impl Bench {
    fn rounds(&self, full: usize, quick: usize) -> usize {
        match self.length {
            Length::Full => full,
            Length::Quick => quick,
        }
    }

    /// A directory of its own for one measurement.
    fn room(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.directory.join(name);
        std::fs::create_dir_all(&path)
            .map_err(|source| BenchError::Io { path: path.clone(), source })?;
        Ok(path)
    }
}

/// Why a measurement ended early.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A file or a directory.
    #[error("{} cannot be used for the measurement", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The bus.
    #[error("the bus fails")]
    Bus(#[from] oona::BusError),
    /// A message could not be published.
    #[error("a message was not published")]
    Publish(#[from] oona::PublishError),
    /// The bus refused a message.
    #[error("the bus refused a message; measure on a log that nothing else uses")]
    Refused,
    /// The bare client failed.
    #[error("the bare client failed; does the server still run?")]
    Raw(#[from] redis::RedisError),
    /// The library.
    #[error("the library does not open")]
    Library(#[from] urza::OpenError),
    /// A lookup.
    #[error("the library does not answer")]
    Lookup(#[from] urza::LibraryError),
    /// The kernel that is asked for.
    #[error("the library does not store")]
    Store(#[from] urza::StoreError),
    /// Looking up in a large library.
    #[error("the look-ups cannot be measured")]
    Lookups(#[from] urza::bench::BenchFault),
    /// Its file.
    #[error("the artifact cannot be read")]
    Fetch(#[from] urza::FetchError),
    /// It cannot be opened.
    #[error("the artifact cannot be used")]
    Artifact(#[from] kernel::artifact::ArtifactError),
    /// Its graph.
    #[error("the graph of the measurement is at fault")]
    Graph(#[from] kernel::GraphError),
    /// A blueprint could not be compiled.
    #[error("the catalogue cannot be compiled")]
    Compile(#[from] tezzeret::CompileError),
    /// The engine.
    #[error("the engine cannot be measured")]
    Engine(#[from] kernel::bench::BenchError),
    /// No answer.
    #[error("a request was not answered within {0:?}")]
    Unanswered(std::time::Duration),
    /// The answer was no kernel.
    #[error("a request was answered with an error: {0}")]
    Answered(String),
    /// A task of the measurement ended without its result.
    #[error("a task of the measurement panicked; its message stands above")]
    Panicked,
}

/// Measures these parts, and tells each figure as soon as it is there.
///
/// # Errors
/// [`BenchError`] for the first measurement that failed; what was told before stands.
pub async fn run(
    bench: &Bench,
    parts: &[Part],
    mut tell: impl FnMut(&Figure),
) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for part in Part::ALL.into_iter().filter(|part| parts.is_empty() || parts.contains(part)) {
        let measured = match part {
            Part::Latency => latency::measure(bench).await?,
            Part::Throughput => throughput::measure(bench).await?,
            Part::Artifact => artifact::measure(bench).await?,
            Part::Catalogue => catalogue::measure(bench).await?,
            Part::Lookups => lookups::measure(bench).await?,
            Part::Engine => engine::measure(bench)?,
        };
        measured.iter().for_each(&mut tell);
        figures.extend(measured);
    }
    Ok(figures)
}

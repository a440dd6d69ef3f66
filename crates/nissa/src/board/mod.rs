//! Everything nissa knows about the system, bounded in every direction. Owned and changed by the
//! ingest worker alone; readers get whole snapshots. No clock and no I/O in here.

mod apply;
mod events;
mod kernels;
mod runs;
mod seeds;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::alerts::Alerts;
use crate::config::IngestConfig;
use crate::slo::Levels;

pub use apply::{Applied, Received};
pub use events::{Event, Events, Severity};
pub use kernels::{Compiled, Kernels, Request, RequestState};
pub use runs::{Point, Run, Runs};
pub use seeds::{Seed, Span, stage_label};
pub use sources::{SourceState, Sources};

/// What time it is, on both clocks: the monotonic one decides, the wall clock is shown.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub mono: Instant,
    /// Unix milliseconds.
    pub unix_ms: u64,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { mono: Instant::now(), unix_ms: leyline::time::now_unix_ms() }
    }
}

/// The newest snapshot.
pub type BoardSource = watch::Receiver<Arc<Board>>;
/// Where the ingest worker publishes snapshots. It also begins with the newest one, so that its
/// restart loses nothing.
pub type BoardSink = watch::Sender<Arc<Board>>;

/// Joins the ingest worker to its readers.
pub fn channel(config: &IngestConfig) -> (BoardSink, BoardSource) {
    watch::channel(Arc::new(Board::new(Now::read(), config)))
}

/// Everything nissa knows.
#[derive(Debug, Clone)]
pub struct Board {
    /// Rises with every change; a reader asks for what changed since.
    pub revision: u64,
    /// The newest packet of every sender.
    pub sources: Sources,
    /// Training runs.
    pub runs: Runs,
    /// Requests for kernels and their answers.
    pub kernels: Kernels,
    /// What happened.
    pub events: Events,
    /// Field reports: success, neutral, regression, aborted, unspecified.
    pub reports: [u64; 5],
    /// Alerts.
    pub alerts: Alerts,
    /// Service levels.
    pub levels: Levels,
    /// Messages applied.
    pub messages: u64,
    /// What the ingest worker's own group has not read yet, by name of the stream.
    pub backlog: BTreeMap<String, u64>,
}

impl Board {
    /// Nothing known yet.
    pub fn new(now: Now, config: &IngestConfig) -> Self {
        Self {
            revision: 0,
            sources: Sources::default(),
            runs: Runs::default(),
            kernels: Kernels::default(),
            events: Events::default(),
            reports: [0; 5],
            alerts: Alerts::new(&config.thresholds),
            levels: Levels::new(now.mono, config.objectives.clone()),
            messages: 0,
            backlog: BTreeMap::new(),
        }
    }

    /// Entries pushed out of bounded lists so far.
    pub fn evicted(&self) -> u64 {
        self.sources.evicted() + self.runs.evicted() + self.alerts.evicted() + self.levels.lost()
    }
}

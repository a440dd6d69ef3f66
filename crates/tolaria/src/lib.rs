//! Tolaria owns the training loop: data sets, the host network with its slots, state packets, checkpoints, comparison
//! runs and the report. It leaves seeds to `kasmina`, decisions to `tamiyo`, and spawns nothing that outlives a call.
//!
//! Reading order: [`Config`], [`data`] (what is learnt), [`host`] (the network and what its slots do), [`Network`] (the
//! same in training), [`Prepared`] and [`Training`] (the loop), [`Publisher`] (the bus's copy of it), [`Outcome`],
//! [`report`] (the page about it).

mod batches;
mod boundary;
mod checkpoint;
mod clock;
mod compare;
mod config;
pub mod data;
mod error;
pub mod host;
mod journal;
mod metrics;
mod network;
mod packet;
mod pass;
mod prepared;
mod progress;
mod publisher;
pub mod report;
mod statistics;
mod training;

pub use checkpoint::Checkpoint;
pub use config::{Comparison, Config};
pub use error::{CellFault, CheckpointError, DataError, TrainError};
pub use metrics::Metrics;
pub use network::{Graft, Network, NetworkError, Score, SeedStep, Snapshot, StepOutcome};
pub use pass::PassCounts;
pub use prepared::Prepared;
pub use progress::{
    Boundary, End, Epoch, Figures, Journey, Milestone, Outcome, Phase, Progress, SeedView,
};
pub use publisher::{OUTBOX_LEN_MAX, Outbox, OutboxEnd, Outgoing, Publisher, PublisherError};
pub use training::{Channels, Training};

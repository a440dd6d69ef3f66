//! Nissa owns what operators see: the metrics endpoint, health, alerts, service levels and the page.
//! It reads the bus and the supervisor's picture and changes neither by itself; what it passes on are
//! an operator's requests: for a restart, and for dead letters to be replayed or purged. Gathering samples is left to the other crates.
//!
//! Reading order: [`Health`] (the supervisor's picture, handed in), [`Board`] (everything known
//! from the bus, bounded), [`Ingest`] (the worker that keeps it), [`alerts`] and [`slo`] (what it
//! judges), [`Http`] (the worker that shows it).
//!
//! Nothing here spawns, and nothing here is needed by another service crate.

pub mod alerts;
mod board;
pub mod bus;
mod config;
mod control;
mod error;
mod health;
mod http;
mod ingest;
mod labels;
mod log_tail;
mod mapping;
mod metrics;
mod reload;
pub mod slo;

pub use board::{
    Applied, Board, BoardSink, BoardSource, Compiled, Event, Events, Kernels, Now, Point, Received,
    Request, RequestState, Run, Runs, Seed, Severity, SourceState, Sources, Span, channel,
    stage_label,
};
pub use config::{
    COVERAGE_FEATURES_MAX, ConfigFault, HttpConfig, IngestConfig, Objective, TOKEN_LEN_MIN,
    Thresholds, Token,
};
pub use control::{
    CONTROL_QUEUE_LEN_MAX, ControlRefused, ControlRequest, WorkerAction, WorkerControl,
};
pub use error::{HttpError, IngestError};
pub use health::{
    BreakerHealth, BreakerState, Health, HealthSource, KeyHealth, LaneHealth, LeaseHealth,
    ProcessPhase, RecentRestart, SystemMode, WorkerHealth, WorkerState,
};
pub use http::{Http, KernelSource};
pub use ingest::{Ingest, STREAMS};
pub use labels::{Answer, Endpoint, Kind, Outcome, Provenance, Refusal, Source};
pub use log_tail::{LOG_TAIL_LEN_MAX, LogLines, LogTail};
pub use metrics::Metrics;
pub use reload::{
    ChangeOutcome, NoReload, ReloadPort, ReloadReport, ReloadRequest, SettingChange, SettingFault,
    TokenSource,
};

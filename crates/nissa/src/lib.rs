//! Observability: ingest, metrics endpoint, health and the page.
mod control;
mod health;

pub use control::{
    CONTROL_QUEUE_LEN_MAX, ControlRefused, ControlRequest, WorkerAction, WorkerControl,
};
pub use health::{
    BreakerHealth, BreakerState, Health, HealthSource, LaneHealth, ProcessPhase, SystemMode,
    WorkerHealth, WorkerState,
};

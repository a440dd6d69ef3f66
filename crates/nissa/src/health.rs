//! The supervisor's picture of itself, as `/healthz` shows it. Written by the supervisor alone and
//! handed over in a [`HealthSource`]; nissa only reads it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

/// Where nissa reads the newest [`Health`]. The supervisor sends at least once a second, so that
/// the age of the snapshot tells whether its loop turns.
pub type HealthSource = watch::Receiver<Health>;

/// What the service can do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemMode {
    /// Everything that was asked for runs.
    Operational,
    /// The service runs without some function; [`Health::lost`] names it.
    Degraded,
}

/// Where the process stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessPhase {
    /// Workers are being built.
    Booting,
    /// The boot list is done.
    Running,
    /// Asked to stop; finishing what is in flight.
    Draining,
}

/// State of one worker under supervision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Not built yet, or waiting for what it depends on.
    Starting,
    /// Its task is alive and beats.
    Running,
    /// It failed and waits for its next start.
    BackingOff,
    /// It failed too often, or an operator parked it; only an operator starts it again.
    Parked,
    /// It ended because the service stops.
    Stopped,
}

/// One end of a worker while the service ran, after which it was restarted or parked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecentRestart {
    /// When, in seconds since the process began, as [`Health::uptime_s`] counts.
    pub uptime_s: f64,
    /// The same moment in milliseconds since 1970, by this machine's clock as it goes now.
    #[serde(default)]
    pub unix_ms: u64,
    /// Why it ended, in one line.
    pub reason: String,
    /// The same as a list: what was seen first, then its cause, then that one's cause.
    #[serde(default)]
    pub causes: Vec<String>,
}

/// One worker as the supervisor sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerHealth {
    /// Its name, `crate.duty`.
    pub name: String,
    /// Where it stands.
    pub state: WorkerState,
    /// Whether the service stops when it cannot be kept alive.
    pub critical: bool,
    /// Starts after the first, since the process began.
    pub restarts: u64,
    /// Seconds until the next start while backing off, else 0.
    pub backoff_s: f64,
    /// Why it last ended, if it ever did.
    pub last_error: Option<String>,
    /// Its latest ends, oldest first; at most ten.
    pub recent_restarts: Vec<RecentRestart>,
    /// Milliseconds since its last heartbeat; `None` before the first.
    pub heartbeat_age_ms: Option<u64>,
    /// What it said it was doing at its last heartbeat.
    pub last_phase: Option<String>,
    /// The message, request or blueprint that it was working on then, if it said so.
    #[serde(default)]
    pub last_about: Option<String>,
    /// Silent for longer than these milliseconds in this phase, it counts as hung.
    #[serde(default)]
    pub heartbeat_budget_ms: Option<u64>,
    /// Milliseconds from the end of its task to the first heartbeat of the next one at its last
    /// restart, without the backoff; `None` before the first restart.
    #[serde(default)]
    pub last_restart_ms: Option<f64>,
    /// What is lost while it does not run, as a short sentence: `kernels are not served`.
    #[serde(default)]
    pub function: String,
    /// Names of what must run before it.
    pub depends_on: Vec<String>,
}

impl WorkerHealth {
    /// A worker of which nothing is known but its name and state.
    pub fn new(name: impl Into<String>, state: WorkerState) -> Self {
        Self {
            name: name.into(),
            state,
            critical: false,
            restarts: 0,
            backoff_s: 0.0,
            last_error: None,
            recent_restarts: Vec::new(),
            heartbeat_age_ms: None,
            last_phase: None,
            last_about: None,
            heartbeat_budget_ms: None,
            last_restart_ms: None,
            function: String::new(),
            depends_on: Vec::new(),
        }
    }
}

/// State of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few probes pass.
    HalfOpen,
}

/// One circuit breaker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BreakerHealth {
    /// What it guards.
    pub name: String,
    /// Its state.
    pub state: BreakerState,
}

/// One of the secrets in force, as the service has used it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHealth {
    /// First 8 hex digits of its SHA-256.
    pub key: String,
    /// `current` or `previous`.
    pub role: String,
    /// Entries verified with it since the start.
    pub verified: u64,
    /// Unix seconds of the last of them; absent before the first.
    pub last_used_s: Option<u64>,
}

/// A duty that one of several services on one log does at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHealth {
    /// The duty, by the worker that does it.
    pub name: String,
    /// `host/pid` of the service that does it now; empty when none is known to.
    pub holder: String,
    /// Whether this service does; the others stand by.
    pub mine: bool,
    /// Grows with every change of holder; 0 when another holds it.
    pub fencing: u64,
}

/// Backlog of one stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaneHealth {
    /// The stream's name on the log.
    pub stream: String,
    /// Entries the service's group has not acknowledged.
    pub depth: u64,
    /// Age of the oldest of them in milliseconds, by the log's clock; `None` without a backlog.
    #[serde(default)]
    pub oldest_ms: Option<u64>,
}

/// The whole picture at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Whether every function is there.
    pub system_mode: SystemMode,
    /// The functions that are missing, in words a person understands: first what does not work,
    /// then why. Empty when operational.
    pub lost: Vec<String>,
    /// Where the process stands in its life.
    pub phase: ProcessPhase,
    /// Whether every critical worker runs and the log answers.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub reasons: Vec<String>,
    /// Critical workers that have missed their heartbeat and are not replaced yet.
    #[serde(default)]
    pub hung: Vec<String>,
    /// Seconds that a stop in progress may still take; `None` while nothing stops.
    #[serde(default)]
    pub drain_left_s: Option<f64>,
    /// Seconds since the process began.
    pub uptime_s: f64,
    /// Version of the service.
    pub version: String,
    /// Which log stands behind the bus: `embedded` or `redis`.
    pub log: String,
    /// Every worker, in boot order.
    pub workers: Vec<WorkerHealth>,
    /// Every circuit breaker.
    pub breakers: Vec<BreakerHealth>,
    /// Backlog of every stream.
    pub lanes: Vec<LaneHealth>,
    /// The secrets in force.
    #[serde(default)]
    pub keys: Vec<KeyHealth>,
    /// Who does what one of several services does.
    #[serde(default)]
    pub leases: Vec<LeaseHealth>,
    /// When the supervisor's loop made this snapshot. Judged on this machine's monotonic clock and
    /// never sent; a snapshot read from JSON counts as fresh.
    #[serde(skip, default = "Instant::now")]
    pub at: Instant,
}

impl Health {
    /// The picture before the first worker is built: booting, not ready.
    pub fn booting(version: impl Into<String>, log: impl Into<String>) -> Self {
        Self {
            system_mode: SystemMode::Operational,
            lost: Vec::new(),
            phase: ProcessPhase::Booting,
            ready: false,
            reasons: vec!["the service is booting".to_owned()],
            hung: Vec::new(),
            drain_left_s: None,
            uptime_s: 0.0,
            version: version.into(),
            log: log.into(),
            workers: Vec::new(),
            breakers: Vec::new(),
            lanes: Vec::new(),
            keys: Vec::new(),
            leases: Vec::new(),
            at: Instant::now(),
        }
    }

    /// How long ago the supervisor's loop made this snapshot.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

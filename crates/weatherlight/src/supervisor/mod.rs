//! Keeps the workers alive and ends them in order.
//!
//! Reading order: `restart` (when a worker starts again), `core` (every decision, pure), `row`
//! (a line of the boot table), `runner` (carries the decisions out: the one place that spawns),
//! `watched` (who is silent for too long), `watchdog` (the thread that looks from beside the
//! runtime), `panics` (each reported once), `picture` (what `/healthz` shows), `drain` (who is
//! left), `notify` (systemd).

pub mod core;
mod drain;
mod notify;
pub mod panics;
mod picture;
pub mod restart;
mod row;
mod runner;
pub mod signals;
mod watchdog;
mod watched;

pub use self::core::{Cause, Core, Criticality, Effect, Event, Exit, Life, Spec, WorkerId};
pub use picture::{BusPicture, Identity};
pub use restart::{History, RestartPolicy, Verdict};
pub use row::{Build, Context, Row, WorkerError, WorkerFuture, build, causes, chain};
pub use runner::{Boot, BootFailure, Handle, Reload, Setup, Supervisor};
pub use watchdog::{EndProcess, Patience, Watchdog};
pub use watched::{Blocked, LastSeen, Stuck, Watched};

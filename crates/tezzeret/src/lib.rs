//! Tezzeret owns compile jobs: it builds a blueprint's graph, proves the compiled plan against it, seeds the weights,
//! writes and measures the artifact, stores it in the library and tells the bus. It leaves the templates to `karn`, the
//! engine to `kernel`, keeping and serving artifacts to `urza`.
//!
//! Reading order: [`Job`] (what is built), [`Strategy`] (in what time), [`compile`] (how, a plain function), [`Forge`]
//! (the worker), `attempt` (one job, from the look into the library to the stored artifact), `backlog` and `health` (its
//! decisions, without a clock), `queue` (what outlives the process), [`Desk`] (how to order). `docs/forge.md` has the
//! states of a job.
//!
//! Deliberately absent: ending a thread from outside. A job past its limit is told to stop, and does so before its next
//! operator.

mod announce;
mod attempt;
mod backlog;
mod check;
mod compile;
mod config;
mod desk;
mod detach;
mod error;
mod events;
mod forge;
mod health;
mod job;
mod metrics;
mod noise;
mod prewarm;
mod progress;
mod queue;
mod strategy;

pub use check::TOLERANCE;
pub use compile::{Compiled, OperatorCheck, compile};
pub use config::{Config, ConfigFault, PREWARM_SAMPLES_MIN};
pub use desk::{Brought, Desk, Handle, OrderError};
pub use detach::detach;
pub use error::{CompileError, ForgeError};
pub use forge::Forge;
pub use job::{ENGINE, Job};
pub use metrics::{Fault, Metrics};
pub use prewarm::machine;
pub use progress::{How, Progress};
pub use queue::QueueError;
pub use strategy::{Budget, Step, Strategy, UnknownStrategy};

//! Tezzeret owns compile jobs: it builds a blueprint's graph, proves the compiled plan against it, seeds the weights,
//! writes and measures the artifact, stores it in the library and tells the bus. It leaves the templates to `karn`, the
//! engine to `kernel`, keeping and serving artifacts to `urza`.
//!
//! Reading order: [`Job`] (what is built), [`compile`] (how, a plain function), `check` (when it counts as right),
//! [`Forge`] (the worker), `backlog` and `health` (its decisions, without a clock), [`Desk`] (how to order).
//!
//! Deliberately absent: a queue on disk. What is done stands in the library, what is to be done follows from the
//! catalogue, and an order that a stop interrupts is asked for again by whoever still wants it.

mod attempt;
mod backlog;
mod check;
mod compile;
mod config;
mod desk;
mod error;
mod forge;
mod health;
mod job;
mod metrics;
mod noise;
mod prewarm;
mod progress;

pub use check::TOLERANCE;
pub use compile::{Compiled, compile};
pub use config::{Config, ConfigFault, PREWARM_SAMPLES_MIN};
pub use desk::{Desk, Handle, OrderError};
pub use error::{CompileError, ForgeError};
pub use forge::Forge;
pub use job::{ENGINE, Job, Strategy};
pub use metrics::{Fault, Metrics};
pub use progress::Progress;

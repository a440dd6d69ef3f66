//! Kasmina owns seeds: where each stands in its life, the gates on its way, how it is blended in
//! and kept apart from the host, and the coordinator that has its kernel fetched. It leaves what
//! ought to happen to the policy, and the numerical work to the trainer.
//!
//! Reading order: [`Seed`] (a life as data, one function that moves it), [`gates`] (what opens the
//! way, over [`Evidence`]), [`SeedManager`] (commands, steps and time in, [`Effect`]s out), then the
//! coordinator that runs beside the training thread: [`Prefetch`], [`ReadyConsumer`], [`ErrorConsumer`].
//!
//! Deliberately absent: a clock and any waiting in the core (time is passed in, queues are tried),
//! a kernel that stands in for another, and a cache under any other name than an artifact's digest.

mod apply;
pub mod blend;
pub mod breaker;
mod config;
mod error;
pub mod event;
mod evidence;
mod fetch;
pub mod gates;
pub mod isolation;
mod ledger;
mod manager;
mod metrics;
mod moment;
mod obtain;
mod open;
mod pending;
mod prefetch;
mod progress;
pub mod quarantine;
mod renewal;
mod replies;
mod seed;
mod state;
mod telemetry;
mod verify;

pub use blend::{BlendMode, Ramp};
pub use config::Config;
pub use error::{CommandError, SlotError};
pub use evidence::{
    Evidence, Interface, KernelPresence, Observation, OutputScale, Range, Validation,
};
pub use fetch::{FetchFailure, FetchOrder, Fetched, FetchedKernel, ORDERS_MAX, RESULTS_MAX};
pub use gates::{GateFailure, Limits};
pub use ledger::NonceLedger;
pub use manager::{ALL_SEEDS, Effect, Parts, SeedManager};
pub use metrics::Metrics;
pub use moment::Now;
pub use pending::Patience;
pub use prefetch::{Prefetch, PrefetchConfig, PrefetchDesk, TrainerEnd};
pub use renewal::InUse;
pub use replies::{ErrorConsumer, REPLIES_MAX, ReadyConsumer, Reply};
pub use seed::{Attached, Fetch, Graft, Hold, Life, Moved, Refused, Rollback, Seed, Slot};
pub use telemetry::{Packet, SOURCE};
pub use verify::{AGE_MAX, FUTURE_TOLERANCE, Rejection, verify};

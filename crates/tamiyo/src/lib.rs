//! Tamiyo owns decisions: when a run is stuck, which blueprint may help, what risk forbids, whether a seed is kept. It never touches a seed
//! (`kasmina`'s) nor trains (`tolaria`'s).
//!
//! Reading order: [`Policy`] (from state to signed command), [`risk`] (the rules), [`Candidate`] (what may be proposed),
//! [`Weights`] (what a policy has learnt), [`LivePolicy`] (which one is in force).

mod annotate;
mod candidate;
pub mod command;
mod config;
mod coverage;
mod live;
mod plateau;
mod policy;
pub mod risk;
mod weights;

pub use candidate::Candidate;
pub use config::{PolicyConfig, ReportConfig, Timing, UpdateConfig};
pub use live::{LivePolicy, LoadError};
pub use plateau::{Plateau, Trend};
pub use policy::{Action, Context, Decision, Effect, Event, Growth, Policy, Slot};
pub use weights::{ARCHITECTURE, Rejection, Weights, registry_digest};

//! Tamiyo owns the policy: when a run has stopped improving, which seed is grown with which
//! blueprint, whether a seed that is live is kept, which risks hold all of that back, and what is
//! reported about it afterwards. It touches no seed: its commands are carried out by `kasmina`.
//!
//! Reading order: [`Policy::decide`] (`policy`), `plateau`, `candidate`, `verdict`, `risk` (the
//! table of rules), `mode` (conservative mode), `observation` (outcomes); then `weights`, `tensors`
//! and `admission` (what a policy is and when a new one is taken), `live` and `archive` (in force,
//! on disk), [`PolicyUpdates`] and [`FieldReports`] (the workers).
//!
//! Deliberately absent: anything that runs code from a message, a decision that waits for anything,
//! and a report on an effect nobody has seen yet.

mod admission;
mod annotate;
mod archive;
mod candidate;
mod command;
mod config;
mod context;
mod decision;
mod error;
mod live;
mod memory;
mod metrics;
mod mode;
mod observation;
mod plateau;
mod policy;
mod reason;
mod reports;
mod risk;
mod signals;
mod store;
mod tensors;
mod updates;
mod verdict;
mod weights;

pub use command::{Draft, ISSUED_BY, LR_DELTA, OPTIMIZER, RESUME, prefix_clash};
pub use config::{
    Blend, Config, ConfigFault, Growth, Limits, Operator, Reports as ReportSettings, Timing,
    Updates as UpdateSettings, Verification,
};
pub use context::{Candidates, Context, Horizon};
pub use decision::Decision;
pub use error::{ArchiveError, Quarantined, Rejection, StoreError, UpdateRefused};
pub use live::{Identity, LivePolicy, Loaded};
pub use metrics::Metrics;
pub use policy::Policy;
pub use reason::Reason;
pub use reports::{
    FieldReports, Recovered, ReportInbox, Reports, Store as ReportStore, queue as report_queue,
};
pub use risk::Action;
pub use signals::{ACTIVATION_VARIANCE, EFFECT, PAUSED, STAGE_EPOCHS};
pub use store::PolicyStore;
pub use tensors::{HEADER_ARCHITECTURE, HEADER_REGISTRY, HEADER_SEQUENCE, TENSORS, decode, encode};
pub use updates::PolicyUpdates;
pub use weights::{ARCHITECTURE, PlateauNumbers, Weights, registry_digest};

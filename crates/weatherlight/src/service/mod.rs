//! The service put together: what is opened, which workers stand on it, and what the foundation
//! itself reports.
//!
//! Reading order: [`boot_table`] (the workers), [`Parts`] (what they share), [`start`] (the boot),
//! then one file per worker of the foundation's own.

pub mod boot_table;
mod emergency;
mod functions;
pub mod live;
mod metrics;
mod parts;
mod probe;
pub mod reload;
mod start;
mod telemetry;
mod train;
mod trainer;

pub use emergency::{EmergencyPicture, Receiver as EmergencyReceiver};
pub use metrics::AllMetrics;
pub use parts::{ForgePorts, GROUP, OpenError, Parts};
pub use probe::Probe;
pub use start::{Opened, Service, Starting, start};
pub use telemetry::{LastError, Telemetry, packet, priority};
pub use train::{Trainer, start_trainer};
pub use trainer::{Attachment, TrainerPorts};

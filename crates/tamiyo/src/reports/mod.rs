//! Field reports on their way out: a bounded queue from the decision, a store on disk, and the
//! worker that publishes what the store holds. The decision path never waits for any of it.

mod frame;
mod publisher;
mod queue;
mod store;

pub use publisher::FieldReports;
pub use queue::{ReportInbox, Reports, queue};
pub use store::{Recovered, Store};

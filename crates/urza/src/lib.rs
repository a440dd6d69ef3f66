//! Urza owns the artifact library: the files, named by their SHA-256, the catalogue of records about
//! them, and the worker that answers requests for kernels over the bus. It leaves compiling to
//! `tezzeret` (which it can only ask, through [`Demand`]) and knows nothing of seeds.
//!
//! Reading order: [`Record`] (what is known of an artifact), [`Library`] (store, find, verify),
//! [`Prefetcher`] (requests to answers), [`Maintenance`] (scrub, expiry, orphans).
//!
//! Deliberately absent: deleting an artifact because it looks wrong (it is moved to quarantine),
//! answering "not found" when the store did not answer, and a path that comes out of the catalogue
//! (a file's place follows from its digest).

mod cache;
mod catalogue;
mod config;
mod demand;
mod error;
mod files;
mod job;
mod library;
mod metrics;
mod prewarm;
mod record;
mod verify;

pub use config::{CatalogueUrl, Config, ConfigFault};
pub use demand::{BuildAnswer, BuildOrder, Demand, WhyBuild};
pub use error::{FetchError, LibraryError, Mismatch, OpenError, Remedy, StoreError, StoreFault};
pub use job::{JobKey, JobKeyError};
pub use library::Library;
pub use metrics::Metrics;
pub use prewarm::{Prewarm, SAMPLES_MAX, percentile};
pub use record::{NewArtifact, Page, Record, RecordId, RecordState, Role};

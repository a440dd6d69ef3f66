//! Urza owns the artifact library: the files, named by their SHA-256, the catalogue of records about
//! them, and the worker that answers requests for kernels over the bus. It leaves compiling to
//! `tezzeret` (which it can only ask, through [`Demand`]) and knows nothing of seeds.
//!
//! Reading order: [`Record`] (what is known of an artifact), [`Library`] (store, find, verify),
//! [`Prefetcher`] (requests to answers), [`Maintenance`] (scrub, expiry, orphans).
//!
//! Deliberately absent: deleting an artifact because it looks wrong (it is moved to quarantine),
//! removing what is leased, pinned or served, answering "not found" when the store did not answer, and a path that comes out of the catalogue
//! (a file's place follows from its digest).

mod answer;
mod archive;
pub mod bench;
mod cache;
mod catalogue;
mod collect;
mod config;
mod damage;
mod demand;
mod download;
mod error;
mod extras;
pub mod fetch;
mod files;
mod hash;
mod job;
mod lease;
mod library;
mod maintenance;
mod measurement;
mod metrics;
mod prefetch;
mod prewarm;
mod rebuilds;
mod record;
mod select;
pub mod store;
mod trust;
mod verify;

pub use answer::{
    ARTIFACT_NOT_FOUND, CHECKSUM_MISMATCH, COMPILING, DEADLINE_EXCEEDED, INCOMPATIBLE,
    MISSING_ARTIFACT, QUARANTINED, UNAVAILABLE,
};
pub use archive::{ArchiveError, Archived};
pub use catalogue::{SCHEMA_VERSION, migrate_to};
pub use collect::{CollectMode, Collected, Orphans, Removal, RemovalReason, Retention};
pub use config::{CatalogueUrl, Config, ConfigFault, PostgresUrl};
pub use demand::{BuildAnswer, BuildOrder, BuildRequest, Demand, Placed, Queued, WhyBuild};
pub use download::{
    Download, DownloadFault, KERNEL_EXECUTION, KERNEL_SIGNATURE, KERNEL_URL, SIGNATURE, kernel_url,
};
pub use error::{
    DatabaseFault, FetchError, LibraryError, Mismatch, OpenError, Remedy, StoreError, StoreFault,
};
pub use extras::{Extras, ExtrasError};
pub use job::{JobKey, JobKeyError};
pub use lease::{Lease, LeaseJudge, LeaseTermsError, LeaseWatch};
pub use library::Library;
pub use maintenance::{Maintenance, MaintenanceConfig, Scrubbed};
pub use measurement::Measurement;
pub use metrics::Metrics;
pub use prefetch::{PrefetchConfig, Prefetcher, Unfit, Variants, Want};
pub use prewarm::{Prewarm, SAMPLES_MAX, percentile};
pub use record::{EXECUTION, NewArtifact, Page, Parent, Record, RecordId, RecordState, Role};
pub use select::{Filter, StateFilter, TagError, check_tag};

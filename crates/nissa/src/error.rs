//! Why a worker of this crate ended. Each is answered by the supervisor with a restart.

use std::io;

/// Why the HTTP worker ended.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The listener it was given cannot be used from this process any more.
    #[error("cannot listen; the listener must be bound and not closed")]
    Listener {
        /// What the system said.
        #[from]
        source: io::Error,
    },
}

/// Why the ingest worker ended.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The bus gave up on a stream. What was not acknowledged is delivered again after a restart.
    #[error("the bus does not deliver; see its own errors, then restart nissa.ingest")]
    Bus {
        /// What it said.
        #[from]
        source: oona::BusError,
    },
}

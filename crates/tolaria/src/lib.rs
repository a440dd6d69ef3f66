//! Tolaria owns the training loop: data sets, the host network with its slots, state packets, checkpoints, comparison runs and the report.
//!
//! Reading order: [`data`] (what is learnt).

pub mod data;
mod error;

pub use error::{CellFault, DataError};

//! What can go wrong, each telling what to do about it.

use std::io;
use std::path::PathBuf;

use crate::network::NetworkError;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read.
    #[error("cannot read {path}; check that it exists and may be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing is in it.
    #[error("{path} holds no rows")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It holds more than this loop keeps in memory.
    #[error("{path} holds more than {limit} {what}; use a part of it")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// There is nothing to learn from.
    #[error(
        "{name} has {rows} rows, {classes} classes and {columns} features; at least {rows_min} rows, 2 classes and 1 feature are needed"
    )]
    TooFew {
        /// The data set.
        name: String,
        /// Rows found.
        rows: usize,
        /// Rows needed.
        rows_min: usize,
        /// Classes found.
        classes: usize,
        /// Feature columns found.
        columns: usize,
    },
    /// The format needs a label and none was named.
    #[error("{path} needs {wants}: name it with --label")]
    LabelMissing {
        /// The file.
        path: PathBuf,
        /// What is to be named.
        wants: &'static str,
    },
    /// The bytes are no CSV.
    #[error("{path} is no valid CSV")]
    Csv {
        /// The file.
        path: PathBuf,
        /// What the reader objected to, with its place.
        source: csv::Error,
    },
    /// A row has another number of cells than the header.
    #[error("{path}, line {line}: {found} cells where the header has {expected}")]
    Ragged {
        /// The file.
        path: PathBuf,
        /// Line, counting from 1.
        line: u64,
        /// Cells of the header.
        expected: usize,
        /// Cells of the row.
        found: usize,
    },
    /// A cell cannot be used.
    #[error("{path}, line {line}, column {column}: {fault}")]
    Cell {
        /// The file.
        path: PathBuf,
        /// Line, counting from 1.
        line: u64,
        /// Name of the column.
        column: String,
        /// What is wrong with it.
        fault: CellFault,
    },
    /// The label column is absent.
    #[error(
        "{path} has no column {label} (give a name, or a number counting from 1); it has {columns}"
    )]
    NoSuchColumn {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        label: String,
        /// The columns there are.
        columns: String,
    },
    /// Features and labels do not belong together.
    #[error("{path} has {rows} rows and {labels} labels")]
    RowCounts {
        /// The file with the rows.
        path: PathBuf,
        /// Rows.
        rows: usize,
        /// Labels.
        labels: usize,
    },
    /// The IDX file is damaged.
    #[error("{path} is no usable IDX file: {reason}")]
    Idx {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The archive lacks something.
    #[error("{path} is no usable .npz file: {reason}")]
    Npz {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What is wrong with a cell.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellFault {
    /// Nothing is in it.
    #[error("the cell is empty")]
    Empty,
    /// It cannot be read as a number.
    #[error("{0:?} is not a number")]
    NotANumber(String),
    /// NaN or infinite.
    #[error("{0:?} is not finite")]
    NotFinite(String),
}

/// Why a training run ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The settings cannot be used.
    #[error("the settings of the run cannot be used: {faults}")]
    Settings {
        /// Every fault.
        faults: String,
    },
    /// The data set cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The engine refused.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The seed manager refused a slot.
    #[error("the seed manager refused a slot")]
    Slot(#[from] kasmina::SlotError),
    /// The host's parameters have other owners.
    #[error("the seed manager refused the host; give every run a seed manager of its own")]
    Host {
        /// What it said.
        source: kasmina::isolation::Conflict,
    },
    /// Training has diverged.
    #[error("the loss is no number any more in epoch {epoch}; lower the learning rate")]
    Diverged {
        /// When.
        epoch: u32,
    },
    /// A comparison run broke down.
    #[error("a comparison run ended unexpectedly")]
    Comparison,
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file or its directory cannot be used.
    #[error("cannot use the checkpoint {path}; check that its directory exists and may be written")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged or of another run.
    #[error("the checkpoint {path} cannot be used: {reason}; remove it to start anew")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

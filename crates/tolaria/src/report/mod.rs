//! The report of a run: one HTML file that needs nothing else, with what was reached, against what,
//! how each seed came to it, and how to do it again.
//!
//! `plots` draws, `page` writes the page around it.

mod page;
mod plots;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::progress::Outcome;

/// What the report says of the run beside its outcome.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// What was learnt, in words.
    pub title: String,
    /// The command that does it again.
    pub command: String,
    /// The seed that decided everything random.
    pub seed: u64,
    /// Id of the run.
    pub run: String,
    /// Version of this program.
    pub version: String,
    /// Rows to train on, to decide by, and to judge with.
    pub rows: [usize; 3],
    /// Names of the feature columns.
    pub features: Vec<String>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Ids of the slots, in their order in the network.
    pub slots: Vec<String>,
    /// Settings: name and value.
    pub settings: Vec<(String, String)>,
    /// Test rows of a task with two features: both values as in the data set, and the class.
    pub points: Vec<(f32, f32, usize)>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A plot could not be drawn.
    #[error("cannot draw the plot of {plot}: {reason}")]
    Plot {
        /// Which plot.
        plot: &'static str,
        /// What the plotting library said.
        reason: String,
    },
    /// The file could not be written.
    #[error("cannot write the report to {path}; name another file with --report")]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The page as text.
///
/// # Errors
/// [`ReportError::Plot`].
pub fn render(facts: &Facts, outcome: &Outcome) -> Result<String, ReportError> {
    page::page(facts, outcome)
}

/// Writes the page beside its place and renames it there, so that a reader never sees half of it.
///
/// # Errors
/// [`ReportError`].
pub fn write(path: &Path, facts: &Facts, outcome: &Outcome) -> Result<(), ReportError> {
    let text = render(facts, outcome)?;
    let failed = |source| ReportError::Write { path: path.to_path_buf(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

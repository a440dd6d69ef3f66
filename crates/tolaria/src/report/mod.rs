//! The report of a run: one page that needs nothing but itself.
//!
//! `page` puts it together from `html` (escaping, tables), `chart` (lines), `timeline` (stages) and `plane` (boundary).

mod chart;
mod html;
mod page;
mod plane;
mod timeline;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::prepared::Prepared;
use crate::progress::Outcome;

/// What a report needs beside the outcome.
#[derive(Debug, Clone)]
pub struct About<'a> {
    /// What was trained on, with the settings.
    pub prepared: &'a Prepared,
    /// The command that gives this run again.
    pub command: &'a str,
    /// Version of the program.
    pub version: &'a str,
    /// When the run ended, in Unix milliseconds.
    pub ended_unix_ms: u64,
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report {path}; check that its directory exists and may be written")]
pub struct ReportError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Writes the page; a crash leaves the old one or the new one.
///
/// # Errors
/// [`ReportError`]
pub fn write_html(path: &Path, about: &About<'_>, outcome: &Outcome) -> Result<(), ReportError> {
    let failed = |source| ReportError { path: path.to_owned(), source };
    let temporary = path.with_extension("html.new");
    let page = page::page(about, outcome);
    let mut file = File::create(&temporary).map_err(failed)?;
    file.write_all(page.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

/// The page itself.
pub fn html(about: &About<'_>, outcome: &Outcome) -> String {
    page::page(about, outcome)
}

//! `weatherlight kernels import`: taking in what another library has exported.

use std::path::Path;

use serde_json::json;
use urza::ArchiveError;

use super::super::failure::Failure;
use super::super::table;
use super::open;
use crate::settings::EsperSettings;

pub(super) async fn run(
    settings: &EsperSettings,
    from: &Path,
    as_json: bool,
) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let imported = library.import(from).await;
    library.close().await;
    let imported = imported.map_err(|error| failure(&error))?;
    if as_json {
        table::print_json(&json!({
            "file": from, "records": imported.records, "new": imported.new,
            "artifacts": imported.artifacts, "bytes": imported.bytes,
        }));
    } else {
        table::print(&format!(
            "{} records verified, {} of them new, {} artifacts of {} bytes",
            imported.records, imported.new, imported.artifacts, imported.bytes
        ));
    }
    Ok(0)
}

/// Bad data is told apart from a library that is not there.
pub(super) fn failure(error: &ArchiveError) -> Failure {
    match error {
        ArchiveError::File { .. } | ArchiveError::Refused { .. } | ArchiveError::Artifact(_) => {
            Failure::data(error)
        }
        ArchiveError::Store(_) | ArchiveError::Library(_) => Failure::unavailable_because(error),
    }
}

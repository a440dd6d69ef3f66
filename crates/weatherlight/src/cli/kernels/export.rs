//! `weatherlight kernels export`: kernels as one file for another library.

use std::path::Path;

use serde_json::json;

use super::super::failure::Failure;
use super::super::table;
use super::{import, list, open};
use crate::settings::EsperSettings;

pub(super) async fn run(
    settings: &EsperSettings,
    to: &Path,
    wanted: &list::Wanted,
    as_json: bool,
) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let exported = library.export(&wanted.filter(), to).await;
    library.close().await;
    let exported = exported.map_err(|error| import::failure(&error))?;
    if as_json {
        table::print_json(&json!({
            "file": to, "records": exported.records, "artifacts": exported.artifacts,
            "bytes": exported.bytes,
        }));
    } else {
        table::print(&format!(
            "{} records, {} artifacts of {} bytes written to {}",
            exported.records,
            exported.artifacts,
            exported.bytes,
            to.display()
        ));
    }
    Ok(0)
}

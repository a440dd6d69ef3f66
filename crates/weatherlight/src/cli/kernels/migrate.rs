//! `weatherlight kernels migrate`: the catalogue's schema, up or down.

use serde_json::json;

use super::super::failure::Failure;
use super::super::table;
use crate::settings::EsperSettings;
use crate::wiring;

pub(super) async fn run(settings: &EsperSettings, to: i64, as_json: bool) -> Result<u8, Failure> {
    let config = wiring::library_config(settings)
        .map_err(|fault| Failure::configuration(fault.to_string()))?;
    let (before, after) = urza::migrate_to(&config, to).await.map_err(|error| match &error {
        urza::OpenError::NoSuchVersion { .. } => Failure::data(&error),
        _ => Failure::unavailable_because(&error),
    })?;
    if as_json {
        table::print_json(&json!({ "before": before, "after": after }));
    } else {
        table::print(&format!("schema version {before} before, {after} now"));
    }
    Ok(0)
}

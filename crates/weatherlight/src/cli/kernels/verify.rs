//! `weatherlight kernels verify`: hashing what the library holds.

use serde_json::{Value, json};
use urza::{Filter, Remedy, StateFilter};

use super::super::failure::Failure;
use super::super::table;
use super::{list, open, show};
use crate::settings::EsperSettings;

/// Exit code when a kernel is not what its record says.
const UNSOUND: u8 = 1;

pub(super) async fn run(
    settings: &EsperSettings,
    names: &[String],
    repair: bool,
    as_json: bool,
) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let records = if names.is_empty() {
        let active = Filter { state: Some(StateFilter::Active), ..Filter::default() };
        list::select(&library, &active).await?
    } else {
        let mut records = Vec::new();
        for name in names {
            records.push(show::named(&library, name).await?);
        }
        records
    };
    let mut told: Vec<Value> = Vec::new();
    let (mut sound, mut unsound) = (0, 0);
    for record in &records {
        let (id, digest) = (record.job.blueprint.as_str(), record.digest.to_hex());
        let Err(fault) = library.scrub(record).await else {
            sound += 1;
            told.push(json!({ "blueprint_id": id, "checksum": digest, "outcome": "sound" }));
            continue;
        };
        unsound += 1;
        let retry = fault.remedy() == Remedy::Retry;
        let outcome = match (repair, retry) {
            (_, true) => "unreadable",
            (true, false) => {
                let marked = library.quarantine(record, &fault).await;
                marked.map_err(|error| Failure::unavailable_because(&error))?;
                "quarantined"
            }
            (false, false) => "unsound",
        };
        if !as_json {
            table::print(&format!("{id} {}: {outcome}: {fault}", &digest[..12]));
        }
        let fault = fault.to_string();
        told.push(
            json!({ "blueprint_id": id, "checksum": digest, "outcome": outcome, "fault": fault }),
        );
    }
    library.close().await;
    if as_json {
        table::print_json(&told);
    } else {
        table::print(&format!("{sound} sound, {unsound} not"));
        if repair && unsound > 0 {
            table::print(
                "the forge of a running service builds them again with the next request; \
                 `weatherlight kernels build` does it now",
            );
        } else if unsound > 0 {
            table::print("`weatherlight kernels verify --repair` has them built again");
        }
    }
    Ok(if unsound > 0 { UNSOUND } else { 0 })
}

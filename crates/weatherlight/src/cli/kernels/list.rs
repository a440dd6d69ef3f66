//! `weatherlight kernels list`: what the library holds.

use serde_json::{Value, json};
use urza::{Page, Record, RecordId, RecordState, Role};

use super::super::failure::Failure;
use super::super::{block_on, table};
use super::open;
use crate::settings::EsperSettings;

/// Records asked for at a time.
const PAGE_LEN: u32 = 500;

pub(super) fn run(settings: &EsperSettings, json: bool) -> Result<u8, Failure> {
    let records = block_on(records(settings))??;
    if json {
        table::print_json(&records.iter().map(as_json).collect::<Vec<_>>());
    } else {
        print(&records);
    }
    Ok(0)
}

pub(in crate::cli) async fn records(settings: &EsperSettings) -> Result<Vec<Record>, Failure> {
    let library = open(settings).await?;
    let mut records: Vec<Record> = Vec::new();
    loop {
        let after: Option<RecordId> = records.last().map(|record| record.id);
        let page = library
            .list(Page { after, limit: PAGE_LEN })
            .await
            .map_err(|error| Failure::unavailable_because(&error))?;
        if page.is_empty() {
            break;
        }
        records.extend(page);
    }
    library.close().await;
    Ok(records)
}

fn state(record: &Record) -> String {
    match &record.state {
        RecordState::Active => "active".to_owned(),
        RecordState::Quarantined { reason, .. } => format!("quarantined: {reason}"),
    }
}

fn role(record: &Record) -> &'static str {
    match record.role {
        Role::Default => "default",
        Role::Variant => "variant",
    }
}

pub(in crate::cli) fn as_json(record: &Record) -> Value {
    json!({
        "blueprint_id": record.job.blueprint.as_str(),
        "site": record.job.site,
        "role": role(record),
        "state": state(record),
        "checksum": record.digest.to_string(),
        "guard_digest": record.guard_digest.to_string(),
        "guard": record.guard_summary,
        "path": record.path,
        "bytes": record.bytes,
        "compile_ms": record.compile_ms,
        "strategy": record.strategy,
        "created_at_ms": record.created_at_ms,
    })
}

fn print(records: &[Record]) {
    let columns = ["blueprint", "site", "role", "state", "digest", "KiB", "compile", "how"];
    let mut rows = table::with_columns(&columns);
    for record in records {
        let digest = record.digest.to_string();
        rows.add_row([
            record.job.blueprint.to_string(),
            record.job.site.clone(),
            role(record).to_owned(),
            state(record),
            digest.get(..12).unwrap_or_default().to_owned(),
            (record.bytes / 1024).to_string(),
            format!("{:.1} ms", record.compile_ms),
            record.strategy.clone(),
        ]);
    }
    table::print(&rows.to_string());
    table::print(&format!("{} kernels", records.len()));
}

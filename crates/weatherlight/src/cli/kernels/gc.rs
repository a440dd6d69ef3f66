//! `weatherlight kernels gc`: removing what need not be kept.

use serde_json::{Value, json};
use urza::{CollectMode, Collected, LeaseJudge, Orphans};

use super::super::failure::Failure;
use super::super::table;
use super::open;
use crate::settings::EsperSettings;
use crate::wiring;

/// What a person asks for.
#[derive(Debug, Clone, clap::Args)]
pub struct Wanted {
    /// Only say what would go, and why
    #[arg(long)]
    dry_run: bool,
    /// Remove files without a record too that are older than this catalogue
    #[arg(long)]
    all_orphans: bool,
}

pub(super) async fn run(
    settings: &EsperSettings,
    wanted: &Wanted,
    json: bool,
) -> Result<u8, Failure> {
    let mut retention = wiring::retention(settings);
    if wanted.all_orphans {
        retention.orphans = Orphans::All;
    }
    let mode = if wanted.dry_run { CollectMode::DryRun } else { CollectMode::Remove };
    let library = open(settings).await?;
    let collected = library.collect(&retention, &mut LeaseJudge::ByClock, mode).await;
    let collected = collected.map_err(|error| Failure::unavailable_because(&error))?;
    library.close().await;
    if json {
        table::print_json(&as_json(&collected, wanted))
    } else {
        print(&collected, wanted)
    }
    Ok(0)
}

fn as_json(collected: &Collected, wanted: &Wanted) -> Value {
    let removals: Vec<Value> = collected
        .removals
        .iter()
        .map(|gone| {
            let of = gone.of.as_ref();
            json!({
                "reason": gone.reason.text(), "checksum": gone.digest.to_hex(), "bytes": gone.bytes,
                "used_ms": gone.used_ms, "blueprint_id": of.map(|(blueprint, _)| blueprint.as_str()),
                "version": of.map(|(_, version)| *version),
            })
        })
        .collect();
    json!({
        "dry_run": wanted.dry_run, "removed": removals, "bytes_before": collected.bytes_before,
        "bytes_freed": collected.bytes_freed, "bytes_over": collected.bytes_over,
        "leases_ended": collected.leases_ended,
    })
}

fn print(collected: &Collected, wanted: &Wanted) {
    let mut rows = table::with_columns(&["why", "blueprint", "version", "digest", "bytes"]);
    for gone in &collected.removals {
        let digest = gone.digest.to_hex();
        let of = gone.of.as_ref();
        rows.add_row([
            gone.reason.text().to_owned(),
            of.map_or_else(|| "-".to_owned(), |(blueprint, _)| blueprint.to_string()),
            of.map_or_else(|| "-".to_owned(), |(_, version)| version.to_string()),
            digest.get(..12).unwrap_or_default().to_owned(),
            gone.bytes.to_string(),
        ]);
    }
    table::print(&rows.to_string());
    let did = if wanted.dry_run { "would be removed" } else { "removed" };
    let bytes: u64 = collected.removals.iter().map(|gone| gone.bytes).sum();
    table::print(&format!("{} {did}, {bytes} bytes", collected.removals.len()));
    if collected.bytes_over > 0 {
        table::print(&format!(
            "{} bytes over URZA_LIBRARY_BYTES_MAX remain: leased, pinned, served or just used",
            collected.bytes_over
        ));
    }
}

//! `weatherlight kernels list`: what the library holds.

use clap::Args;
use leyline::ids::BlueprintId;
use serde_json::{Value, json};
use urza::{Filter, Library, Page, Record, RecordState, StateFilter};

use super::super::failure::Failure;
use super::super::{block_on, table};
use super::open;
use crate::settings::EsperSettings;

/// Records asked for at a time.
const PAGE_LEN: u32 = 500;

/// Which kernels; every filter that is given must hold.
#[derive(Debug, Clone, Default, Args)]
pub struct Wanted {
    /// Of this blueprint
    #[arg(long, value_name = "ID")]
    blueprint: Option<String>,
    /// Built for this site, as it is written in the list
    #[arg(long)]
    site: Option<String>,
    /// With this tag, in whatever case
    #[arg(long)]
    tag: Option<String>,
    /// Of this tier
    #[arg(long, value_enum)]
    tier: Option<Tier>,
    /// In this state
    #[arg(long, value_enum)]
    state: Option<State>,
}

/// Tiers of blueprints.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Tier {
    Safe,
    Experimental,
    HighRisk,
}

/// States of records.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum State {
    Active,
    Quarantined,
}

/// A blueprint's id as it is spelt: ours are found in any case, those of users are what they are.
pub(super) fn blueprint(name: &str) -> BlueprintId {
    let upper = name.to_ascii_uppercase();
    let is_ours = karn::find(&upper.as_str().into()).is_some();
    if is_ours { upper.into() } else { name.into() }
}

impl Wanted {
    pub(super) fn filter(&self) -> Filter {
        use leyline::wire::BlueprintTier;
        Filter {
            blueprint: self.blueprint.as_deref().map(blueprint),
            site: self.site.clone(),
            tag: self.tag.clone(),
            tier: self.tier.map(|tier| match tier {
                Tier::Safe => BlueprintTier::Safe,
                Tier::Experimental => BlueprintTier::Experimental,
                Tier::HighRisk => BlueprintTier::HighRisk,
            }),
            state: self.state.map(|state| match state {
                State::Active => StateFilter::Active,
                State::Quarantined => StateFilter::Quarantined,
            }),
            ..Filter::default()
        }
    }
}

pub(super) fn run(settings: &EsperSettings, wanted: &Wanted, json: bool) -> Result<u8, Failure> {
    let (records, tags) = block_on(async {
        let library = open(settings).await?;
        let records = select(&library, &wanted.filter()).await?;
        let mut tags = std::collections::BTreeMap::new();
        for some in records.chunks(PAGE_LEN as usize) {
            let found = library.tags(some).await;
            tags.extend(found.map_err(|error| Failure::unavailable_because(&error))?);
        }
        library.close().await;
        Ok::<_, Failure>((records, tags))
    })??;
    let of = |record: &Record| tags.get(&record.id).cloned().unwrap_or_default();
    if json {
        let told = |record: &Record| {
            let mut told = as_json(record);
            told["tags"] = of(record).into();
            told
        };
        table::print_json(&records.iter().map(told).collect::<Vec<_>>());
    } else {
        print(&records, of);
    }
    Ok(0)
}

pub(in crate::cli) async fn records(settings: &EsperSettings) -> Result<Vec<Record>, Failure> {
    let library = open(settings).await?;
    let records = select(&library, &Filter::default()).await?;
    library.close().await;
    Ok(records)
}

/// Every record that a filter wants.
pub(super) async fn select(library: &Library, filter: &Filter) -> Result<Vec<Record>, Failure> {
    let mut records: Vec<Record> = Vec::new();
    let mut page = Some(Page { after: None, limit: PAGE_LEN });
    while let Some(wanted) = page {
        let found = library.select(filter, wanted).await;
        let found = found.map_err(|error| Failure::unavailable_because(&error))?;
        page = wanted.next(&found);
        records.extend(found);
    }
    Ok(records)
}

fn state(record: &Record) -> String {
    match &record.state {
        RecordState::Active => "active".to_owned(),
        RecordState::Quarantined { reason, .. } => format!("quarantined: {reason}"),
    }
}

pub(in crate::cli) fn as_json(record: &Record) -> Value {
    let parent = record.parent.as_ref();
    let parent = parent.map(|it| json!({ "checksum": it.digest.to_hex(), "engine": it.engine }));
    json!({
        "id": record.id.to_string(),
        "blueprint_id": record.job.blueprint.as_str(),
        "version": record.version,
        "parent": parent,
        "parameters": record.job.parameters,
        "site": record.job.site,
        "engine": record.job.engine,
        "role": record.role.text(),
        "tier": record.tier as i32,
        "stage": record.stage,
        "state": state(record),
        "pinned": record.pinned,
        "checksum": record.digest.to_string(),
        "guard_digest": record.guard_digest.to_string(),
        "guard": record.guard_summary,
        "path": record.path,
        "bytes": record.bytes,
        "compile_ms": record.compile_ms,
        "strategy": record.strategy,
        "created_at_ms": record.created_at_ms,
        "last_used_ms": record.last_used_ms,
    })
}

fn print(records: &[Record], tags: impl Fn(&Record) -> Vec<String>) {
    let columns = [
        "blueprint",
        "version",
        "site",
        "role",
        "state",
        "digest",
        "KiB",
        "compile",
        "how",
        "tags",
    ];
    let mut rows = table::with_columns(&columns);
    for record in records {
        let digest = record.digest.to_string();
        let mut notes = tags(record);
        if record.pinned {
            notes.insert(0, "(pinned)".to_owned());
        }
        rows.add_row([
            record.job.blueprint.to_string(),
            record.version.to_string(),
            record.job.site.clone(),
            record.role.text().to_owned(),
            state(record),
            digest.get(..12).unwrap_or_default().to_owned(),
            (record.bytes / 1024).to_string(),
            format!("{:.1} ms", record.compile_ms),
            record.strategy.clone(),
            notes.join(" "),
        ]);
    }
    table::print(&rows.to_string());
    table::print(&format!("{} kernels", records.len()));
}

//! `weatherlight kernels`: what the artifact library holds, and filling it.

use std::time::Duration;

use clap::Subcommand;
use karn::Blueprint;
use leyline::ids::BlueprintId;
use serde_json::{Value, json};
use tezzeret::{Job, Strategy};
use tokio_util::sync::CancellationToken;
use urza::{Library, NewArtifact, Page, Record, RecordId, RecordState, Role};

use super::failure::Failure;
use super::{Global, block_on, table};
use crate::service::AllMetrics;
use crate::settings::EsperSettings;
use crate::supervisor::{Exit, WorkerError, chain};
use crate::wiring;

/// Records asked for at a time.
const PAGE_LEN: u32 = 500;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the kernels in the library
    #[command(after_help = "Example: weatherlight kernels list --json")]
    List,
    /// Compile blueprints into the library, without a running service
    ///
    /// What is there already is left alone. A service that runs on the same library finds the result.
    #[command(after_help = "Example: weatherlight kernels build BP009 BP010")]
    Build {
        /// Ids of blueprints [default: every one that can be grafted]
        #[arg(value_name = "BLUEPRINT")]
        blueprints: Vec<String>,
    },
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    match command {
        Command::List => {
            let records = block_on(records(&settings))??;
            if global.json {
                table::print_json(&records.iter().map(as_json).collect::<Vec<_>>());
            } else {
                print(&records);
            }
            Ok(0)
        }
        Command::Build { blueprints } => block_on(build(&settings, blueprints, global.json))?,
    }
}

/// Compiles what is not in the library yet. Nothing else runs in this process, so compiling blocks.
async fn build(settings: &EsperSettings, names: &[String], as_json: bool) -> Result<u8, Failure> {
    let wanted = select(names)?;
    let config = wiring::forge_config(settings);
    let library = open(settings).await?;
    let mut failed = false;
    let mut told: Vec<Value> = Vec::new();
    for blueprint in wanted {
        let id = blueprint.id();
        let (line, about) = match make(blueprint, &config, &library).await {
            Ok(Made::Found) => ("was there".to_owned(), json!({ "outcome": "found" })),
            Ok(Made::Compiled(took)) => {
                let ms = took.as_secs_f64() * 1e3;
                let about = json!({ "outcome": "compiled", "compile_ms": ms });
                (format!("compiled in {ms:.1} ms"), about)
            }
            Err(error) => {
                failed = true;
                let error = chain(error.as_ref());
                (format!("FAILED: {error}"), json!({ "outcome": "failed", "error": error }))
            }
        };
        if as_json {
            let mut about = about;
            about["blueprint_id"] = id.to_string().into();
            told.push(about);
        } else {
            table::print(&format!("{id} {line}"));
        }
    }
    library.close().await;
    if as_json {
        table::print_json(&told);
    }
    Ok(if failed { Exit::Software.code() } else { 0 })
}

fn select(names: &[String]) -> Result<Vec<&'static Blueprint>, Failure> {
    if names.is_empty() {
        return Ok(karn::catalogue().iter().filter(|blueprint| blueprint.graftable()).collect());
    }
    let find = |name: &String| {
        karn::find(&BlueprintId::from(name.to_ascii_uppercase())).ok_or_else(|| {
            Failure::configuration(format!("there is no blueprint {name}; they are BP001 to BP050"))
        })
    };
    names.iter().map(find).collect()
}

enum Made {
    Found,
    Compiled(Duration),
}

async fn make(
    blueprint: &'static Blueprint,
    config: &tezzeret::Config,
    library: &Library,
) -> Result<Made, WorkerError> {
    let job = Job::of(blueprint, config);
    if library.find_job(&job.key()).await?.is_some() {
        return Ok(Made::Found);
    }
    let strategy = Strategy::Standard;
    let compiled = tezzeret::compile(&job, strategy, config, &CancellationToken::new())?;
    library
        .store(NewArtifact {
            job: job.key(),
            role: job.role(config),
            bytes: compiled.bytes,
            guard_digest: compiled.guard_digest,
            guard_spec: compiled.guard_spec,
            guard_summary: compiled.guard_summary,
            compile_ms: compiled.took.as_secs_f64() * 1e3,
            prewarm: compiled.prewarm,
            strategy: strategy.name().to_owned(),
            tier: blueprint.tier().into(),
        })
        .await?;
    Ok(Made::Compiled(compiled.took))
}

/// Opens the library that the settings name.
pub(super) async fn open(settings: &EsperSettings) -> Result<Library, Failure> {
    let config = wiring::library_config(settings)
        .map_err(|fault| Failure::configuration(fault.to_string()))?;
    let (metrics, _) = AllMetrics::register();
    Library::open(config, metrics.urza).await.map_err(|error| Failure::unavailable_because(&error))
}

pub(super) async fn records(settings: &EsperSettings) -> Result<Vec<Record>, Failure> {
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

pub(super) fn as_json(record: &Record) -> Value {
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

//! `weatherlight kernels build`: compiling into the library without a running service.

use std::time::Duration;

use karn::Blueprint;
use leyline::ids::BlueprintId;
use serde_json::{Value, json};
use tezzeret::{Job, Strategy};
use tokio_util::sync::CancellationToken;
use urza::{Library, NewArtifact};

use super::super::failure::Failure;
use super::super::table;
use super::open;
use crate::settings::EsperSettings;
use crate::supervisor::{Exit, WorkerError, chain};
use crate::wiring;

/// Compiles what is not in the library yet. Nothing else runs in this process, so compiling blocks.
pub(super) async fn run(
    settings: &EsperSettings,
    names: &[String],
    as_json: bool,
) -> Result<u8, Failure> {
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
            extras: urza::Extras::new(),
        })
        .await?;
    Ok(Made::Compiled(compiled.took))
}

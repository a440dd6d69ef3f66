//! The whole catalogue: compiled into an empty library, and found in a full one.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::registry::Registry;
use tezzeret::{Job, Strategy};
use tokio_util::sync::CancellationToken;
use urza::{Library, NewArtifact};

use super::figure::Figure;
use super::{Bench, BenchError};

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>, BenchError> {
    let directory = bench.room("catalogue")?;
    let config = Arc::new(tezzeret::Config::default());
    let jobs: Vec<Job> = karn::catalogue()
        .iter()
        .filter(|blueprint| blueprint.graftable())
        .map(|blueprint| Job::of(blueprint, &config))
        .collect();
    let cold = {
        let library = open(&directory).await?;
        let begun = Instant::now();
        for pair in jobs.chunks(config.jobs_max.max(1)) {
            let making = pair.iter().map(|job| make(job.clone(), Arc::clone(&config), &library));
            futures_util::future::try_join_all(making).await?;
        }
        let took = begun.elapsed();
        library.close().await;
        took
    };
    let begun = Instant::now();
    let library = open(&directory).await?;
    let mut found = 0;
    for job in &jobs {
        found += usize::from(library.find_job(&job.key()).await?.is_some());
    }
    let warm = begun.elapsed();
    library.close().await;
    let count = jobs.len();
    Ok(vec![
        Figure::new("catalogue_cold", "s", cold.as_secs_f64()).at_most(30.0).under(format!(
            "{count} blueprints compiled, checked, measured and stored, {} at a time",
            config.jobs_max
        )),
        Figure::new("catalogue_warm", "ms", warm.as_secs_f64() * 1e3)
            .at_most(100.0)
            .under(format!("library opened, {found} of {count} jobs found in it")),
    ])
}

async fn open(directory: &std::path::Path) -> Result<Library, BenchError> {
    let metrics = urza::Metrics::register(&mut Registry::default());
    Ok(Library::open(urza::Config::at(directory), metrics).await?)
}

async fn make(
    job: Job,
    config: Arc<tezzeret::Config>,
    library: &Library,
) -> Result<(), BenchError> {
    let compiling = tokio::task::spawn_blocking(move || {
        let compiled =
            tezzeret::compile(&job, Strategy::Standard, &config, &CancellationToken::new())?;
        Ok::<_, BenchError>(NewArtifact {
            job: job.key(),
            role: job.role(&config),
            bytes: compiled.bytes,
            guard_digest: compiled.guard_digest,
            guard_spec: compiled.guard_spec,
            guard_summary: compiled.guard_summary,
            compile_ms: compiled.took.as_secs_f64() * 1e3,
            prewarm: compiled.prewarm,
            strategy: Strategy::Standard.name().to_owned(),
            tier: job.blueprint().tier().into(),
            extras: urza::Extras::default(),
        })
    });
    library.store(compiling.await.map_err(|_| BenchError::Panicked)??).await?;
    Ok(())
}

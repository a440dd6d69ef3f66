//! Compiling one job: graph, check, weights, guard, bytes, latencies. Plain and blocking; the same job gives the same
//! bytes on every machine and under every strategy.

use std::time::{Duration, Instant};

use kernel::artifact::{ArtifactError, Manifest, write_bytes};
use kernel::{Digest, Graph, Params, to_canonical_json};
use tokio_util::sync::CancellationToken;
use urza::Prewarm;

use crate::check::{TOLERANCE, check};
use crate::config::Config;
use crate::error::CompileError;
use crate::job::{Job, Strategy};
use crate::prewarm;

/// A compiled job.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The whole artifact file.
    pub bytes: Vec<u8>,
    /// Digest of the guard spec.
    pub guard_digest: Digest,
    /// The guard spec as JSON.
    pub guard_spec: String,
    /// The guard spec for people.
    pub guard_summary: String,
    /// Largest difference between plan and graph that the check found, in the measure of [`TOLERANCE`].
    pub difference: f32,
    /// Time from the job to its bytes, check included.
    pub took: Duration,
    /// Latencies on this machine.
    pub prewarm: Prewarm,
}

/// Compiles a job. Blocks; looks at `cancel` between its steps.
///
/// # Errors
/// [`CompileError`]; nothing has been written anywhere.
pub fn compile(
    job: &Job,
    strategy: Strategy,
    config: &Config,
    cancel: &CancellationToken,
) -> Result<Compiled, CompileError> {
    let started = Instant::now();
    let graph = karn::build(job.blueprint(), job.parameters(), job.site())?;
    let params = graph.init_params(job.weight_seed());
    let mut difference = 0.0_f32;
    for probe in 0..probes(strategy) {
        proceed(cancel)?;
        difference = difference.max(check(&graph, &params, probe)?);
    }
    proceed(cancel)?;
    oona::chaos::point(oona::chaos::Point::KernelCompiling);
    let manifest = manifest(job, graph, &params)?;
    let (bytes, _) = write_bytes(&manifest, &params)?;
    let took = started.elapsed();
    let prewarm = prewarm::measure(&manifest.graph, &params, config.prewarm_samples, cancel)?;
    Ok(Compiled {
        bytes,
        guard_digest: manifest.guard_digest,
        guard_spec: to_canonical_json(&manifest.guard).map_err(json)?,
        guard_summary: manifest.guard.summary(),
        difference,
        took,
        prewarm,
    })
}

/// How many sets of random numbers plan and graph are compared on.
fn probes(strategy: Strategy) -> u64 {
    match strategy {
        Strategy::Standard => 1,
        Strategy::Conservative => 3,
    }
}

fn proceed(cancel: &CancellationToken) -> Result<(), CompileError> {
    if cancel.is_cancelled() { Err(CompileError::Cancelled) } else { Ok(()) }
}

fn manifest(job: &Job, graph: Graph, params: &Params) -> Result<Manifest, CompileError> {
    let parameters =
        job.parameters().iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let site = serde_json::to_value(job.site()).map_err(json)?;
    let blueprint = job.blueprint().id().as_str();
    Ok(Manifest::new(blueprint, parameters, site, graph, params, TOLERANCE)?)
}

/// Guard and site are plain numbers and names, which JSON always holds; said once for both.
fn json(source: serde_json::Error) -> CompileError {
    CompileError::Artifact(ArtifactError::Manifest { source })
}

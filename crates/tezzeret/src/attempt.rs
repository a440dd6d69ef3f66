//! One attempt at a job: look it up, else compile it beside the runtime, then store it.

use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;
use leyline::Message;
use leyline::wire::{self, MessagePriority};
use oona::{Bus, Outcome, Outgoing, Stream, TraceContext};
use tokio_util::sync::CancellationToken;
use urza::{Library, NewArtifact, Record, Role};

use crate::compile::Compiled;
use crate::config::Config;
use crate::error::{AttemptError, CompileError};
use crate::job::{Job, Strategy};
use crate::metrics::Metrics;
use crate::progress::How;

/// How often a catalogue update is offered to the bus.
const ANNOUNCE_ATTEMPTS: u32 = 3;
/// How long one offer may take.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Compiles a job; the plain function [`crate::compile`] but in tests.
pub(crate) type Compiler = Arc<
    dyn Fn(&Job, Strategy, &Config, &CancellationToken) -> Result<Compiled, CompileError>
        + Send
        + Sync,
>;

/// What every attempt needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub(crate) config: Arc<Config>,
    pub(crate) library: Library,
    pub(crate) metrics: Metrics,
    pub(crate) compiler: Compiler,
}

/// How an attempt ended.
pub(crate) struct Ended {
    pub(crate) key: Digest,
    pub(crate) job: Job,
    pub(crate) result: Result<(Record, How), AttemptError>,
}

impl Workshop {
    /// Brings a job into the library, by finding it there or by compiling it. Done again after an interruption at any
    /// point it ends the same way.
    pub(crate) async fn attempt(
        self,
        key: Digest,
        job: Job,
        strategy: Strategy,
        cancel: CancellationToken,
    ) -> Ended {
        let result = match self.find(&job).await {
            Ok(Some(record)) => Ok((record, How::Found)),
            Ok(None) => {
                self.make(&job, strategy, cancel).await.map(|record| (record, How::Compiled))
            }
            Err(error) => Err(error),
        };
        Ended { key, job, result }
    }

    /// The job's sound artifact, if the library has one and hands it out to whoever asks for the blueprint alone.
    async fn find(&self, job: &Job) -> Result<Option<Record>, AttemptError> {
        let Some(record) = self.library.find_job(&job.key()).await? else { return Ok(None) };
        if let Err(fault) = self.library.verify(&record).await {
            self.library.quarantine(&record, &fault).await?;
            return Ok(None);
        }
        if job.role(&self.config) == Role::Default {
            let offered = self.library.find(job.blueprint().id()).await?;
            // Another site's artifact came later. Compiling ours again makes it the newest.
            let is_offered = offered.is_some_and(|offered| offered.digest == record.digest);
            return Ok(is_offered.then_some(record));
        }
        Ok(Some(record))
    }

    async fn make(
        &self,
        job: &Job,
        strategy: Strategy,
        cancel: CancellationToken,
    ) -> Result<Record, AttemptError> {
        let compiled = self.compile(job, strategy, cancel).await?;
        let (compile, samples) = (compiled.took, &compiled.prewarm.samples_ms);
        self.metrics.compiled(strategy, compile, samples);
        let new = NewArtifact {
            job: job.key(),
            role: job.role(&self.config),
            bytes: compiled.bytes,
            guard_digest: compiled.guard_digest,
            guard_spec: compiled.guard_spec,
            guard_summary: compiled.guard_summary,
            compile_ms: compile.as_secs_f64() * 1e3,
            prewarm: compiled.prewarm,
            strategy: strategy.name().to_owned(),
            tier: job.blueprint().tier().into(),
        };
        let record = self.library.store(new).await?;
        oona::chaos::point(oona::chaos::Point::ArtifactStored);
        Ok(record)
    }

    /// Compiles on a thread of its own. A thread cannot be ended from outside: after the deadline it is told to stop
    /// at its next step and left alone, and this attempt goes on without it.
    async fn compile(
        &self,
        job: &Job,
        strategy: Strategy,
        cancel: CancellationToken,
    ) -> Result<Compiled, AttemptError> {
        let limit = self.config.deadline;
        let (workshop, job, seen) = (self.clone(), job.clone(), cancel.clone());
        let compiling = tokio::task::spawn_blocking(move || {
            (workshop.compiler)(&job, strategy, &workshop.config, &seen)
        });
        match tokio::time::timeout(limit, compiling).await {
            Err(_) => {
                cancel.cancel();
                Err(AttemptError::TimedOut(limit))
            }
            Ok(Ok(outcome)) => outcome.map_err(AttemptError::Compile),
            Ok(Err(join)) => Err(AttemptError::Panicked(match join.try_into_panic() {
                Ok(panic) => panic_text(&*panic),
                Err(_) => "the runtime is ending".to_owned(),
            })),
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

/// The message that tells everybody of a stored artifact.
pub(crate) fn catalogue_update(record: &Record) -> wire::KernelCatalogUpdate {
    wire::KernelCatalogUpdate {
        blueprint_id: record.job.blueprint.to_string(),
        artifact_ref: record.path.to_string_lossy().into_owned(),
        checksum: record.digest.to_hex(),
        guard_digest: record.guard_digest.to_hex(),
        compile_ms: record.compile_ms as f32,
        prewarm_ms: record.prewarm.p50_ms() as f32,
    }
}

/// Publishes the catalogue update of a durable artifact. News, not a promise: who needs a kernel asks for it, so an
/// update the bus does not take after several offers is counted and let go. It goes on with the trace of the request
/// that had the artifact built.
pub(crate) async fn announce(
    bus: Bus,
    record: Record,
    trace: Option<TraceContext>,
    metrics: Metrics,
) {
    let message = Message::CatalogUpdate(catalogue_update(&record));
    let (stream, priority) = (Stream::KernelReady, MessagePriority::Normal);
    let traceparent = trace.map(|trace| trace.child().to_string());
    let traceparent = traceparent.as_deref();
    for _ in 0..ANNOUNCE_ATTEMPTS {
        let outgoing =
            Outgoing { stream, priority, source: "tezzeret", message: &message, traceparent };
        let offer = bus.send(outgoing);
        match tokio::time::timeout(ANNOUNCE_TIMEOUT, offer).await {
            Ok(Ok(Outcome::Refused { retry_after, .. })) => {
                tokio::time::sleep(retry_after.min(ANNOUNCE_TIMEOUT)).await;
            }
            Ok(Ok(
                Outcome::Published { .. } | Outcome::Rerouted { .. } | Outcome::Spooled { .. },
            )) => return,
            Ok(Err(error)) => {
                tracing::warn!(blueprint = %record.job.blueprint, error = &error as &dyn std::error::Error, "catalogue update not sent");
                tokio::time::sleep(ANNOUNCE_TIMEOUT / 5).await;
            }
            Err(_) => {}
        }
    }
    metrics.unannounced.inc();
}

//! One attempt at a job: look it up, else compile it beside the runtime, then store it.
//!
//! Of several processes that want the same job one compiles it: whoever has the job's lease. The others
//! wait until it is in the library or the lease is free. A job done twice harms nothing, since equal
//! jobs make equal bytes; so while the log is away, and nobody can tell, a job is done all the same.

use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;
use leyline::Message;
use leyline::wire::{self, MessagePriority};
use oona::{Bus, Lease, Outcome, Outgoing, Standing, Stream, TraceContext};
use tokio_util::sync::CancellationToken;
use urza::{Library, NewArtifact, Record, Role};

use crate::compile::Compiled;
use crate::config::Config;
use crate::error::{AttemptError, CompileError};
use crate::job::{Job, Strategy};
use crate::metrics::Metrics;
use crate::progress::How;

/// How long a job waits to learn who has its lease.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a job that another process does is looked for in the library.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
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

/// What an attempt may do.
pub(crate) enum Permit {
    /// Look only: the catalogue is another process's duty.
    Look,
    /// Compile under this lease.
    Make(Lease),
}

/// How an attempt ended.
pub(crate) struct Ended {
    pub(crate) key: Digest,
    pub(crate) job: Job,
    pub(crate) strategy: Strategy,
    pub(crate) took: Duration,
    pub(crate) outcome: Outturn,
}

#[expect(clippy::large_enum_variant, reason = "short-lived, one for each job at work")]
pub(crate) enum Outturn {
    /// It is in the library.
    Done(Record, How),
    /// It is not, and it is left to another process; with the place in the queue for its lease, if
    /// there is one.
    Elsewhere(Option<Lease>),
    Failed(AttemptError),
}

/// A job that was another process's, and is to be looked at again.
pub(crate) struct Freed {
    pub(crate) key: Digest,
    pub(crate) lease: Lease,
}

impl Workshop {
    /// Brings a job into the library, by finding it there or by compiling it. Done again after an interruption at any
    /// point it ends the same way.
    pub(crate) async fn attempt(
        self,
        key: Digest,
        job: Job,
        strategy: Strategy,
        permit: Permit,
        cancel: CancellationToken,
    ) -> Ended {
        let began = tokio::time::Instant::now();
        let outcome = self.bring(&job, strategy, permit, cancel).await;
        let outcome = outcome.unwrap_or_else(Outturn::Failed);
        Ended { key, job, strategy, took: began.elapsed(), outcome }
    }

    async fn bring(
        &self,
        job: &Job,
        strategy: Strategy,
        permit: Permit,
        cancel: CancellationToken,
    ) -> Result<Outturn, AttemptError> {
        let held = match &permit {
            Permit::Look => false,
            Permit::Make(lease) => lease.tenure().is_some(),
        };
        if let Some(record) = self.find(job).await? {
            return Ok(Outturn::Done(record, How::Found));
        }
        let Permit::Make(mut lease) = permit else { return Ok(Outturn::Elsewhere(None)) };
        if !held {
            let standing = tokio::time::timeout(SETTLE_TIMEOUT, lease.settled()).await;
            if let Ok(Standing::Standby { .. }) = standing {
                return Ok(Outturn::Elsewhere(Some(lease)));
            }
            // Whoever had the lease before may have done it meanwhile.
            if let Some(record) = self.find(job).await? {
                return Ok(Outturn::Done(record, How::Found));
            }
        }
        let record = self.make(job, strategy, cancel).await?;
        Ok(Outturn::Done(record, How::Compiled))
    }

    /// Waits until a job that another process does is done, or free.
    pub(crate) async fn freed(self, key: Digest, job: Job, mut lease: Lease) -> Freed {
        loop {
            // A library that cannot tell is asked by the attempt that follows.
            let is_there = !matches!(self.library.find_job(&job.key()).await, Ok(None));
            if is_there || !matches!(lease.standing(), Standing::Standby { .. }) {
                return Freed { key, lease };
            }
            let _ = tokio::time::timeout(LOOK_INTERVAL, lease.changed()).await;
        }
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
            extras: urza::Extras::new(),
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

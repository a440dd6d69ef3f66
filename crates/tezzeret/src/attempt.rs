//! One attempt at a job: look it up, else compile it beside the runtime, then store it.
//!
//! Of several processes that want the same job one compiles it: whoever has the job's lease on the log, and its lock in
//! the queue directory. The others wait until it is in the library or free. A job done twice harms nothing, since equal
//! jobs make equal bytes; so while log or directory is away, and nobody can tell, a job is done all the same.

use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;
use leyline::time::now_unix_ms;
use oona::{Lease, Standing};
use tokio_util::sync::CancellationToken;
use urza::{Library, Measurement, NewArtifact, Prewarm, Record, Role};

use crate::backlog::Urgency;
use crate::compile::{Compiled, remeasure};
use crate::config::Config;
use crate::error::{AttemptError, CompileError};
use crate::events::{Event, Reporter};
use crate::job::{ENGINE, Job};
use crate::metrics::Metrics;
use crate::progress::How;
use crate::queue::{JobLock, Locked, Queue, Ticket};
use crate::strategy::{Budget, Strategy};

/// How long a job waits to learn who has its lease.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a job that another process does is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Attempts at one job in a row that may end with their process; then the job is taken to be the cause.
const INTERRUPTIONS_MAX: u32 = 3;

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
    pub(crate) queue: Queue,
    pub(crate) reporter: Reporter,
    /// Fingerprint of this machine.
    pub(crate) machine: Arc<str>,
}

/// What an attempt may do.
pub(crate) enum Permit {
    /// Look only: the catalogue is another process's duty.
    Look,
    /// Compile, under this lease where there is a log to hold one on.
    Make(Option<Lease>),
}

/// A job and how it is to be done.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) key: Digest,
    pub(crate) job: Job,
    pub(crate) strategy: Strategy,
    pub(crate) urgency: Urgency,
}

/// How an attempt ended.
pub(crate) struct Ended {
    pub(crate) task: Task,
    pub(crate) took: Duration,
    pub(crate) outcome: Outturn,
}

#[expect(clippy::large_enum_variant, reason = "short-lived, one for each job at work")]
pub(crate) enum Outturn {
    /// It is in the library.
    Done(Record, How, News),
    /// It is not, and it is left to another process.
    Elsewhere(Whereabouts),
    Failed(AttemptError),
}

/// Whether everybody is still to be told of an artifact.
pub(crate) enum News {
    /// It was told, or another process tells.
    Told,
    /// It is owed, by whoever has the job's lock.
    Owed(Option<JobLock>),
}

/// What is known of a job that another process does.
pub(crate) enum Whereabouts {
    /// It is not ours to do.
    Foreign,
    /// It is being done; with the place in the queue for its lease, if there is one.
    AtWork(Option<Lease>),
}

/// A job that was another process's, and is to be looked at again.
pub(crate) struct Freed {
    pub(crate) key: Digest,
    pub(crate) lease: Option<Lease>,
}

impl Workshop {
    /// Brings a job into the library, by finding it there or by compiling it. Done again after an interruption at any
    /// point it ends the same way.
    pub(crate) async fn attempt(
        self,
        task: Task,
        permit: Permit,
        cancel: CancellationToken,
    ) -> Ended {
        let began = tokio::time::Instant::now();
        let outcome = self.bring(&task, permit, cancel).await;
        let outcome = outcome.unwrap_or_else(Outturn::Failed);
        Ended { task, took: began.elapsed(), outcome }
    }

    async fn bring(
        &self,
        task: &Task,
        permit: Permit,
        cancel: CancellationToken,
    ) -> Result<Outturn, AttemptError> {
        let owes = self.queue.owes(&task.key);
        let found = |record| Ok(Outturn::Done(record, How::Found, News::Told));
        if !owes && let Some(record) = self.find(task, &cancel).await? {
            return found(record);
        }
        let Permit::Make(mut lease) = permit else {
            return Ok(Outturn::Elsewhere(Whereabouts::Foreign));
        };
        if let Some(lease) = lease.take_if(|lease| lease.tenure().is_none()) {
            let mut lease = lease;
            let standing = tokio::time::timeout(SETTLE_TIMEOUT, lease.settled()).await;
            if let Ok(Standing::Standby { .. }) = standing {
                return Ok(Outturn::Elsewhere(Whereabouts::AtWork(Some(lease))));
            }
            return self.bring_locked(task, Some(lease), cancel).await;
        }
        self.bring_locked(task, lease, cancel).await
    }

    async fn bring_locked(
        &self,
        task: &Task,
        lease: Option<Lease>,
        cancel: CancellationToken,
    ) -> Result<Outturn, AttemptError> {
        let lock = match self.lock(task.key).await {
            Some(Locked::Busy) => {
                // Whoever has it may have done it, and be telling of it.
                return Ok(match self.find(task, &cancel).await? {
                    Some(record) => Outturn::Done(record, How::Found, News::Told),
                    None => Outturn::Elsewhere(Whereabouts::AtWork(lease)),
                });
            }
            Some(Locked::Ours(lock)) => Some(lock),
            None => None,
        };
        let interruptions = lock.as_ref().map_or(0, JobLock::interruptions);
        if interruptions >= INTERRUPTIONS_MAX {
            return Err(AttemptError::Interrupted(interruptions));
        }
        // Whoever had lease and lock before may have done it meanwhile.
        if let Some(record) = self.find(task, &cancel).await? {
            let is_owed = self.queue.owes(&task.key) && self.queue.holds(&task.key);
            let news = if is_owed { News::Owed(lock) } else { News::Told };
            return Ok(Outturn::Done(record, How::Found, news));
        }
        self.promise(task).await;
        let record = self.make(task, cancel).await?;
        Ok(Outturn::Done(record, How::Compiled, News::Owed(lock)))
    }

    /// The lock; `None` where the queue cannot tell who has it.
    async fn lock(&self, key: Digest) -> Option<Locked> {
        let queue = self.queue.clone();
        match tokio::task::spawn_blocking(move || queue.lock(&key)).await {
            Ok(Ok(locked)) => Some(locked),
            Ok(Err(error)) => {
                tracing::warn!(%error, "job not locked, another process may do it too");
                None
            }
            Err(_) => None,
        }
    }

    /// Has the ticket stand before the artifact does, so that whoever kills this process in between does not keep the
    /// news from anybody.
    async fn promise(&self, task: &Task) {
        self.queue.owe(task.key);
        let (priority, deadline_ms) = task.urgency.of_ticket();
        let ticket = Ticket::of(&task.job, priority, deadline_ms);
        let queue = self.queue.clone();
        let written = tokio::task::spawn_blocking(move || queue.write(&ticket)).await;
        if let Ok(Err(error)) = written {
            self.metrics.unwritten.inc();
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "job not in the durable queue, compiled all the same"
            );
        }
    }

    /// Waits until a job that another process does is done, or free.
    pub(crate) async fn freed(self, key: Digest, job: Job, mut lease: Option<Lease>) -> Freed {
        loop {
            // A library that cannot tell is asked by the attempt that follows.
            let is_there = !matches!(self.library.find_job(&job.key()).await, Ok(None));
            let standing = lease.as_ref().map(Lease::standing);
            let is_held = matches!(standing, Some(Standing::Standby { .. }));
            if is_there || (!is_held && !self.is_locked(key).await) {
                return Freed { key, lease };
            }
            let changed = async {
                match &mut lease {
                    Some(lease) if is_held => lease.changed().await,
                    _ => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(LOOK_INTERVAL, changed).await;
        }
    }

    async fn is_locked(&self, key: Digest) -> bool {
        let queue = self.queue.clone();
        tokio::task::spawn_blocking(move || queue.is_locked(&key)).await.unwrap_or(false)
    }

    /// The job's sound artifact, if the library has one and hands it out to whoever asks for the blueprint alone. Its
    /// latencies are this machine's.
    async fn find(
        &self,
        task: &Task,
        cancel: &CancellationToken,
    ) -> Result<Option<Record>, AttemptError> {
        let job = &task.job;
        let Some(record) = self.library.find_job(&job.key()).await? else { return Ok(None) };
        if let Err(fault) = self.library.verify(&record).await {
            self.library.quarantine(&record, &fault).await?;
            return Ok(None);
        }
        if job.role(&self.config) == Role::Default {
            let offered = self.library.find(job.blueprint().id()).await?;
            // Another site's artifact came later. Compiling ours again makes it the newest.
            if offered.is_none_or(|offered| offered.digest != record.digest) {
                return Ok(None);
            }
        }
        if !self.is_vouched_for(&record) {
            return Ok(None);
        }
        if record.prewarm.machine == *self.machine {
            return Ok(Some(record));
        }
        self.measured_here(record, task, cancel).await.map(Some)
    }

    /// Whether the record bears the signature that it should.
    fn is_vouched_for(&self, record: &Record) -> bool {
        let Some(signer) = &self.config.signer else { return true };
        let due = signer.sign(&record.digest).to_string();
        record.extras.get(urza::SIGNATURE).and_then(serde_json::Value::as_str) == Some(&*due)
    }

    /// The record with this machine's latencies, which it has from before or which are measured now.
    async fn measured_here(
        &self,
        mut record: Record,
        task: &Task,
        cancel: &CancellationToken,
    ) -> Result<Record, AttemptError> {
        let (digest, machine) = (record.digest, &*self.machine);
        if let Some(known) = self.library.measurement(&digest, machine, ENGINE).await?
            && !known.samples_ms.is_empty()
        {
            record.prewarm = Prewarm::new(machine, known.samples_ms);
            return Ok(record);
        }
        let (path, samples) = (record.path.clone(), self.config.prewarm_samples);
        let execution = crate::compile::execution(&record);
        let budget = self.config.budget(task.strategy);
        let work = move |seen: &CancellationToken| {
            remeasure(&path, &digest, &execution, samples, budget, seen)
        };
        record.prewarm = self.within(budget, cancel.clone(), work).await?;
        self.metrics.remeasured.inc();
        tracing::debug!(blueprint = %record.job.blueprint, artifact = %digest, "kernel of another machine timed on this one");
        self.library.set_prewarm(&record, &record.prewarm).await?;
        self.keep_measurement(&record, serde_json::Value::Null).await?;
        Ok(record)
    }

    async fn keep_measurement(
        &self,
        record: &Record,
        algorithms: serde_json::Value,
    ) -> Result<(), AttemptError> {
        let samples_ms = record.prewarm.samples_ms.clone();
        if record.prewarm.machine != *self.machine || samples_ms.is_empty() {
            return Ok(());
        }
        let measured = Measurement { samples_ms, algorithms, measured_at_ms: now_unix_ms() };
        let machine = &*self.machine;
        self.library.set_measurement(&record.digest, machine, ENGINE, &measured).await?;
        Ok(())
    }

    async fn make(&self, task: &Task, cancel: CancellationToken) -> Result<Record, AttemptError> {
        let (job, strategy) = (task.job.clone(), task.strategy);
        let blueprint = job.blueprint().id().clone();
        self.reporter.push(
            Event::info("tezzeret.compile_started")
                .with("blueprint_id", &blueprint)
                .with("strategy", strategy),
        );
        let compiler = self.compiler.clone();
        let config = self.config.clone();
        let work = move |seen: &CancellationToken| compiler(&job, strategy, &config, seen);
        let compiled = self.within(self.config.budget(strategy), cancel, work).await?;
        let (compile, samples) = (compiled.took, &compiled.prewarm.samples_ms);
        self.metrics.compiled(strategy, compile, samples);
        if let Some(reason) = compiled.execution.reason() {
            self.metrics.fell_back();
            tracing::warn!(%blueprint, %reason, "plan not used, the interpreter runs this kernel");
            self.reporter.push(
                Event::warning("tezzeret.eager_fallback")
                    .with("blueprint_id", &blueprint)
                    .with("reason", reason),
            );
        }
        let mut extras = compiled.extras(&task.job, self.config.budget(strategy));
        if let Some(signer) = &self.config.signer {
            let signature = signer.sign(&Digest::of(&compiled.bytes)).to_string();
            extras.insert(urza::SIGNATURE.to_owned(), signature.into());
        }
        let algorithms = compiled.algorithms.clone();
        let new = NewArtifact {
            job: task.job.key(),
            role: task.job.role(&self.config),
            strategy: compiled.recorded_strategy(strategy).to_owned(),
            bytes: compiled.bytes,
            guard_digest: compiled.guard_digest,
            guard_spec: compiled.guard_spec,
            guard_summary: compiled.guard_summary,
            compile_ms: compile.as_secs_f64() * 1e3,
            prewarm: compiled.prewarm,
            tier: task.job.blueprint().tier().into(),
            extras,
        };
        let record = self.library.store(new).await?;
        self.keep_measurement(&record, algorithms).await?;
        oona::chaos::point(oona::chaos::Point::ArtifactStored);
        Ok(record)
    }

    /// Works on a thread of its own. A thread cannot be ended from outside: after its limit it is told to stop, which it
    /// does before its next operator, and this attempt goes on without it.
    async fn within<T: Send + 'static>(
        &self,
        budget: Budget,
        cancel: CancellationToken,
        work: impl FnOnce(&CancellationToken) -> Result<T, CompileError> + Send + 'static,
    ) -> Result<T, AttemptError> {
        // Dropped with this attempt, however that ends.
        let guard = cancel.clone().drop_guard();
        let working = tokio::task::spawn_blocking(move || work(&cancel));
        match tokio::time::timeout(budget.limit(), working).await {
            Err(_) => Err(AttemptError::TimedOut(budget.limit())),
            Ok(Ok(outcome)) => {
                // The token is asked for again where a job is both measured and compiled.
                drop(guard.disarm());
                outcome.map_err(AttemptError::Compile)
            }
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

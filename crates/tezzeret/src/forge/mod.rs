//! The worker: orders and the catalogue in, artifacts and catalogue updates out.
//!
//! Of several processes with one library, the one that has the lease [`Forge::LEASE`] does the catalogue.
//! The others stand by, and look now and then whether it is done. An order is worked on wherever it
//! was given, by one process at a time; see [`attempt`](crate::attempt).

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use karn::Blueprint;
use leyline::ids::BlueprintId;
use oona::{Bus, Heartbeat, Lease, Span, SpanKind, TraceContext};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use urza::{BuildAnswer, BuildOrder, BuildRequest, Library, Queued, Record, Role};

use crate::attempt::{Compiler, Ended, Freed, Outturn, Permit, Workshop, announce};
use crate::backlog::{Admission, Backlog, Urgency, Verdict};
use crate::config::Config;
use crate::desk::{Desk, Intake, Order, Waiter};
use crate::error::{AttemptError, ForgeError};
use crate::health::Health;
use crate::job::{Job, Strategy};
use crate::metrics::{Ended as Outcome, Metrics};
use crate::progress::{How, Score};

/// How long a stopping forge waits for what is under way; what is not done then, the next start does.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// How often a forge that stands by looks whether the catalogue is there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Compiles the catalogue's graftable blueprints, and whatever is ordered, into the library.
///
/// Holds nothing that must outlive it: at each start it looks up in the library what is done already. That is why it
/// may be killed at any time, and why a restart is safe.
#[derive(Debug)]
pub struct Forge {
    /// Settings.
    pub config: Config,
    /// Where artifacts go.
    pub library: Library,
    /// Where catalogue updates go.
    pub bus: Bus,
    /// Where orders come from and progress is posted.
    pub desk: Desk,
    /// Registered counters.
    pub metrics: Metrics,
    /// Sign of life for the supervisor.
    pub heartbeat: Heartbeat,
}

type Running = FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + Send>>>;
type Elsewhere = FuturesUnordered<Pin<Box<dyn Future<Output = Freed> + Send>>>;
type Announcing = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// A forge at work.
struct Shift {
    workshop: Workshop,
    bus: Bus,
    desk: Desk,
    intake: OwnedMutexGuard<Intake>,
    backlog: Backlog<Waiter>,
    health: Health,
    score: Score,
    /// Whether the catalogue is this process's.
    duty: Lease,
    running: Running,
    /// Jobs that other processes do.
    elsewhere: Elsewhere,
    /// Places in the queues for the leases of jobs that wait to be tried again.
    leases: HashMap<kernel::Digest, Lease>,
    announcing: Announcing,
    cancel: CancellationToken,
}

enum Event {
    Ended(Box<Ended>),
    Demanded(BuildOrder),
    Ordered(Order),
    Announced,
    Freed(Freed),
    /// The catalogue may be ours now, or no longer.
    DutyChanged,
    /// A job that waited may start.
    Due,
    Stop,
}

impl Forge {
    /// Name of the lease of whoever compiles the catalogue into a library.
    pub const LEASE: &str = "tezzeret.forge";

    /// Works until told to stop.
    ///
    /// # Errors
    /// [`ForgeError`] when it cannot begin; once it works, every fault is met by trying again or by giving up one job.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ForgeError> {
        let graftable = karn::catalogue().iter().filter(|blueprint| blueprint.graftable());
        self.run_with(stop, Arc::new(crate::compile::compile), graftable.collect()).await
    }

    pub(crate) async fn run_with(
        self,
        stop: CancellationToken,
        compiler: Compiler,
        list: Vec<&'static Blueprint>,
    ) -> Result<(), ForgeError> {
        self.config.check().map_err(ForgeError::Config)?;
        let intake = self.desk.sit_down().ok_or(ForgeError::DeskTaken)?;
        let mut backlog = Backlog::new(self.config.queue_len_max);
        let now = Instant::now();
        for blueprint in &list {
            let _ = backlog.add(Job::of(blueprint, &self.config), Urgency::Catalogue, None, now);
        }
        let Self { config, library, bus, desk, metrics, heartbeat } = self;
        let duty = bus.duty_at(Self::LEASE, library.id());
        let workshop = Workshop { config: Arc::new(config), library, metrics, compiler };
        let shift = Shift {
            workshop,
            bus,
            desk,
            intake,
            backlog,
            health: Health::new(),
            score: Score::new(list.iter().map(|blueprint| blueprint.id().clone()).collect()),
            duty,
            running: FuturesUnordered::new(),
            elsewhere: FuturesUnordered::new(),
            leases: HashMap::new(),
            announcing: FuturesUnordered::new(),
            cancel: stop.child_token(),
        };
        shift.work(stop, heartbeat).await;
        Ok(())
    }
}

impl Shift {
    async fn work(mut self, stop: CancellationToken, heartbeat: Heartbeat) {
        loop {
            self.start_due(&heartbeat);
            self.report();
            let phase = if self.duty.tenure().is_some() { "waiting" } else { "standby" };
            match heartbeat.during(phase, self.next_event(&stop)).await {
                Event::Ended(ended) => self.ended(*ended),
                Event::Freed(Freed { key, lease }) => {
                    let now = Instant::now();
                    self.backlog.returned(&key, now, now);
                    self.leases.insert(key, lease);
                }
                Event::DutyChanged => {
                    if self.duty.tenure().is_some() {
                        self.backlog.hurry(Instant::now());
                    }
                }
                Event::Demanded(order) => self.demanded(order),
                Event::Ordered(order) => self.ordered(order),
                Event::Announced | Event::Due => {}
                Event::Stop => return self.finish().await,
            }
        }
    }

    /// Waits for the next event. Only receives (attempts go on while it waits), so losing the race loses nothing.
    async fn next_event(&mut self, stop: &CancellationToken) -> Event {
        let due = self.next_start();
        let intake = &mut *self.intake;
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(ended) = self.running.next() => Event::Ended(Box::new(ended)),
            Some(()) = self.announcing.next() => Event::Announced,
            Some(freed) = self.elsewhere.next() => Event::Freed(freed),
            () = self.duty.changed() => Event::DutyChanged,
            Some(order) = intake.demands.recv() => Event::Demanded(order),
            Some(order) = intake.orders.recv() => Event::Ordered(order),
            () = sleep_until(due) => Event::Due,
        }
    }

    /// When a waiting job may start, if time alone decides.
    fn next_start(&self) -> Option<Instant> {
        if self.running.len() >= self.jobs_max() {
            return None;
        }
        let admission = self.health.next_admission(Instant::now())?;
        self.backlog.next_due().map(|due| due.max(admission))
    }

    fn jobs_max(&self) -> usize {
        if self.health.is_conservative() { 1 } else { self.workshop.config.jobs_max }
    }

    fn start_due(&mut self, heartbeat: &Heartbeat) {
        let now = Instant::now();
        while self.running.len() < self.jobs_max() && self.health.admit(now) {
            let Some((key, job)) = self.backlog.start_next(now) else {
                self.health.unused();
                return;
            };
            let strategy = match self.health.is_conservative() {
                true => Strategy::Conservative,
                false => Strategy::Standard,
            };
            self.score.started(job.blueprint().id());
            let cancel = self.cancel.child_token();
            let (permit, blueprint) = (self.permit(&key), job.blueprint().id().clone());
            let attempt = self.workshop.clone().attempt(key, job, strategy, permit, cancel);
            self.running.push(Box::pin(heartbeat.over("compiling", blueprint, attempt)));
        }
    }

    fn permit(&mut self, key: &kernel::Digest) -> Permit {
        let waited = self.leases.remove(key);
        let is_ordered = self.backlog.urgency(key) == Urgency::Ordered;
        if !is_ordered && self.duty.tenure().is_none() {
            return Permit::Look;
        }
        if waited.is_none() {
            self.workshop.metrics.started();
        }
        Permit::Make(waited.unwrap_or_else(|| {
            let library = self.workshop.library.id();
            self.bus.job(format!("tezzeret.job:{library}:{}", key.to_hex()))
        }))
    }

    fn report(&self) {
        let health = &self.health;
        let (failures, conservative) = (health.consecutive_failures(), health.is_conservative());
        let metrics = &self.workshop.metrics;
        metrics.breaker(health.state(), failures, conservative);
        metrics.waiting.set(i64::try_from(self.backlog.open_len()).unwrap_or(i64::MAX));
        self.desk.post(self.score.progress());
    }

    fn ended(&mut self, ended: Ended) {
        self.score.stopped(ended.job.blueprint().id());
        let step = self.step(&ended);
        let Ended { key, job, outcome, .. } = ended;
        match outcome {
            Outturn::Done(record, how) => {
                self.succeeded(&key, &job, record, how, step.and_then(|step| step.context()));
            }
            Outturn::Failed(error) => self.failed(&key, &job, &error),
            Outturn::Elsewhere(None) => {
                self.health.unused();
                let now = Instant::now();
                self.backlog.returned(&key, now + LOOK_AGAIN, now);
            }
            Outturn::Elsewhere(Some(lease)) => {
                self.health.unused();
                let blueprint = job.blueprint().id();
                tracing::debug!(%blueprint, "another process compiles it, waiting");
                let waiting = self.workshop.clone().freed(key, job, lease);
                self.elsewhere.push(Box::pin(waiting));
            }
        }
    }

    /// The attempt as a step of the trace that it was made for, known at its end: somebody may have
    /// joined meanwhile. What another process does is a step there.
    fn step(&self, ended: &Ended) -> Option<Span> {
        let fault = match &ended.outcome {
            Outturn::Done(..) => None,
            Outturn::Failed(error) => Some(error.full_text()),
            Outturn::Elsewhere(_) => return None,
        };
        let parent = self.backlog.waiters(&ended.key).iter().find_map(Waiter::trace);
        let tracer = self.bus.tracer();
        let mut step = tracer.follow("tezzeret.compile", SpanKind::Internal, parent);
        step.began_before(ended.took);
        step.set("tezzeret.blueprint", ended.job.blueprint().id().as_str());
        step.set("tezzeret.strategy", ended.strategy.name());
        if let Outturn::Done(record, how) = &ended.outcome {
            step.set("tezzeret.outcome", if *how == How::Found { "found" } else { "compiled" });
            step.set("tezzeret.compile_ms", record.compile_ms);
            step.set("tezzeret.prewarm_p50_ms", record.prewarm.p50_ms());
        }
        if let Some(fault) = fault {
            step.fail(&fault);
        }
        Some(step)
    }

    fn succeeded(
        &mut self,
        key: &kernel::Digest,
        job: &Job,
        record: Record,
        how: How,
        trace: Option<TraceContext>,
    ) {
        let failures = self.backlog.failures(key);
        let waiters = self.backlog.succeeded(key);
        waiters.into_iter().for_each(|waiter| waiter.done(&record));
        self.health.succeeded(&self.workshop.config);
        let blueprint = job.blueprint().id();
        if record.role == Role::Default {
            self.score.done(blueprint, how);
        }
        let metrics = self.workshop.metrics.clone();
        match how {
            How::Found => metrics.ended(Outcome::Found, failures),
            How::Compiled => {
                metrics.ended(Outcome::Compiled, failures);
                tracing::debug!(%blueprint, site = %job.site(), artifact = %record.digest, "kernel compiled");
                self.announcing.push(Box::pin(announce(self.bus.clone(), record, trace, metrics)));
            }
        }
    }

    fn failed(&mut self, key: &kernel::Digest, job: &Job, error: &AttemptError) {
        let (now, config) = (Instant::now(), self.workshop.config.clone());
        let (blueprint, reason) = (job.blueprint().id(), error.full_text());
        self.workshop.metrics.attempt_failed(error.fault());
        if error.is_forge_fault() && self.health.failed(*key, now, &config) {
            self.workshop.metrics.breaker_opened();
            let failures = self.health.consecutive_failures();
            tracing::error!(failures, pause = ?config.breaker_pause(), "compile breaker opened");
        }
        match self.backlog.failed(key, &reason, error.retryable(), now, &config) {
            Verdict::Retry { not_before } => {
                let delay = not_before - now;
                tracing::warn!(%blueprint, %reason, ?delay, "compiling failed, will be tried again");
            }
            Verdict::GivenUp { waiters } => {
                self.workshop.metrics.ended(Outcome::Failed, 0);
                tracing::error!(%blueprint, %reason, "compiling failed for good");
                waiters.into_iter().for_each(|waiter| waiter.failed(blueprint, &reason));
                if job.role(&config) == Role::Default {
                    self.score.given_up(blueprint, reason);
                }
            }
        }
    }

    /// An order of the prefetch worker: by id, so it meets the rules of who may have what.
    fn demanded(&mut self, order: BuildOrder) {
        let BuildOrder { request, queued, answer } = order;
        match requested(&request, &self.workshop.config) {
            Ok(job) => {
                self.add(job, Waiter::Demand(answer, request.trace));
                let _ = queued.send(Queued::InMemory);
            }
            Err(refusal) => drop(answer.send(refusal)),
        }
    }

    fn ordered(&mut self, order: Order) {
        self.add(order.job, Waiter::Order(order.answer));
    }

    fn add(&mut self, job: Job, waiter: Waiter) {
        let blueprint = job.blueprint().id();
        match self.backlog.add(job, Urgency::Ordered, Some(waiter), Instant::now()) {
            Admission::Queued | Admission::Joined => {}
            Admission::Parked { reason, waiter } => {
                waiter.into_iter().for_each(|waiter| waiter.failed(blueprint, &reason));
            }
            Admission::Full { waiter } => waiter.into_iter().for_each(Waiter::busy),
        }
    }

    /// Ends what is under way, within bounds. Whoever waits for the rest learns that the forge stopped.
    async fn finish(mut self) {
        self.cancel.cancel();
        let deadline = Instant::now() + STOP_WAIT;
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, self.running.next()).await {
            if let Outturn::Done(..) = ended.outcome {
                self.ended(ended);
            }
        }
        while let Ok(Some(())) = tokio::time::timeout_at(deadline, self.announcing.next()).await {}
        self.report();
    }
}

/// The job that a request asks for, or what is answered instead.
fn requested(request: &BuildRequest, config: &Config) -> Result<Job, BuildAnswer> {
    let blueprint = buildable(&request.blueprint)?;
    let incompatible = |fault: &(dyn std::error::Error + 'static)| {
        tracing::warn!(blueprint = %request.blueprint, fault, "request does not fit its blueprint");
        BuildAnswer::Refused { reason: "incompatible".to_owned() }
    };
    let site = match &request.site {
        None => config.site,
        Some(text) => text.parse().map_err(|fault| incompatible(&fault))?,
    };
    let mut parameters = blueprint.midpoints();
    for (name, value) in &request.parameters {
        parameters.insert(name.as_str(), *value);
    }
    Job::with(blueprint, parameters, site, config).map_err(|fault| incompatible(&fault))
}

/// The blueprint, if whoever asks by id alone may have it built.
fn buildable(id: &BlueprintId) -> Result<&'static Blueprint, BuildAnswer> {
    let refused = |reason: &str| Err(BuildAnswer::Refused { reason: reason.to_owned() });
    match karn::find(id) {
        None => Err(BuildAnswer::Unknown),
        Some(blueprint) if blueprint.quarantine_only() => refused("quarantined"),
        Some(blueprint) if !blueprint.graftable() => refused("not_graftable"),
        Some(blueprint) => Ok(blueprint),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

//! The worker: orders and the catalogue in, artifacts and catalogue updates out.
//!
//! Of several processes with one library, the one that has the lease [`Forge::LEASE`] does the catalogue.
//! The others stand by, and look now and then whether it is done. An order is worked on wherever it
//! was given, by one process at a time; see [`attempt`](crate::attempt). What must outlive this process stands in the
//! durable queue; see `owed`.

mod owed;
mod request;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use karn::Blueprint;
use leyline::Message;
use leyline::wire::{CircuitBreakerState, MessagePriority, TelemetryLevel};
use oona::{Bus, Heartbeat, Lease, Span, SpanKind, Stream, TraceContext};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use urza::{BuildOrder, Library, Queued, Record, Role};

use self::owed::{Filing, Looking, usual};
use self::request::requested;
use crate::announce::Announcement;
use crate::attempt::{Compiler, Ended, Freed, News, Outturn, Permit, Task, Whereabouts, Workshop};
use crate::backlog::{Admission, Backlog, Urgency, Verdict};
use crate::config::Config;
use crate::desk::{Desk, Intake, Order, Waiter};
use crate::error::{AttemptError, ForgeError};
use crate::events::{Event as Happening, InTrouble, Reporter};
use crate::health::Health;
use crate::job::Job;
use crate::metrics::{Ended as Outcome, Fault, Metrics};
use crate::progress::{How, Score};
use crate::queue::{Look, Queue, QueueError};

/// How long a stopping forge waits for what is under way; what is not done then, the next start does.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// How often a forge that stands by looks whether the catalogue is there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How often the durable queue is looked at for what other processes left there, and events are sent.
const ROUND: Duration = Duration::from_secs(2);

/// How long sending events may take; they are news, and what is not taken is let go.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(2);

/// Compiles the catalogue's graftable blueprints, and whatever is ordered, into the library.
///
/// May be killed at any time: at each start it looks up in the library what is done already, and in the durable queue
/// what else is owed.
#[derive(Debug)]
pub struct Forge {
    /// Settings.
    pub config: Config,
    /// Where artifacts go.
    pub library: Library,
    /// Where catalogue updates and events go. Without one, artifacts are told of by whichever forge next runs on the
    /// same queue with one.
    pub bus: Option<Bus>,
    /// Directory of the durable queue. Made when missing; processes on one library share it.
    pub queue_dir: PathBuf,
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

/// What is compiled beside orders.
pub(crate) enum Duty {
    /// These, and what the durable queue holds.
    List(Vec<&'static Blueprint>),
    /// Nothing.
    OrdersOnly,
}

/// A forge at work.
struct Shift {
    workshop: Workshop,
    bus: Option<Bus>,
    desk: Desk,
    intake: OwnedMutexGuard<Intake>,
    backlog: Backlog<Waiter>,
    health: Health,
    score: Score,
    /// Whether the catalogue is this process's; without a log it is.
    duty: Option<Lease>,
    running: Running,
    /// Jobs that other processes do.
    elsewhere: Elsewhere,
    /// Places in the queues for the leases of jobs that wait to be tried again.
    leases: HashMap<kernel::Digest, Lease>,
    announcing: Announcing,
    filing: FuturesUnordered<Filing>,
    looking: FuturesUnordered<Looking>,
    /// When the queue is looked at again.
    round: Instant,
    looks_around: bool,
    /// Whether it was told that the open breaker holds jobs back.
    told_of_skipping: bool,
    cancel: CancellationToken,
}

enum Event {
    Ended(Box<Ended>),
    Demanded(BuildOrder),
    Ordered(Order),
    Announced,
    Filed,
    Found(Look),
    Freed(Freed),
    /// The catalogue may be ours now, or no longer.
    DutyChanged,
    /// A job that waited may start, or a round is due.
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
        let duty = Duty::List(self.config.catalogue.served().collect());
        self.run_with(stop, Arc::new(crate::compile::compile), duty).await
    }

    /// Works on what is ordered at its desk until told to stop, and on nothing else.
    ///
    /// # Errors
    /// [`ForgeError`] when it cannot begin.
    pub async fn run_orders(self, stop: CancellationToken) -> Result<(), ForgeError> {
        self.run_with(stop, Arc::new(crate::compile::compile), Duty::OrdersOnly).await
    }

    pub(crate) async fn run_with(
        self,
        stop: CancellationToken,
        compiler: Compiler,
        duty: Duty,
    ) -> Result<(), ForgeError> {
        self.config.check().map_err(ForgeError::Config)?;
        let intake = self.desk.sit_down().ok_or(ForgeError::DeskTaken)?;
        let Self { config, library, bus, queue_dir, desk, metrics, heartbeat } = self;
        let (queue, machine) = open(queue_dir, config.queue_len_max).await?;
        let (list, looks_around) = match duty {
            Duty::List(list) => (list, true),
            Duty::OrdersOnly => (Vec::new(), false),
        };
        let duty = bus.as_ref().map(|bus| bus.duty_at(Self::LEASE, library.id()));
        let reporter = Reporter::default();
        let backlog = Backlog::new(config.queue_len_max);
        let config = Arc::new(config);
        let workshop = Workshop { config, library, metrics, compiler, queue, reporter, machine };
        let mut shift = Shift {
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
            filing: FuturesUnordered::new(),
            looking: FuturesUnordered::new(),
            round: Instant::now() + ROUND,
            looks_around,
            told_of_skipping: false,
            cancel: stop.child_token(),
        };
        if looks_around {
            // Before the list, so that what was given up a moment ago is not begun anew.
            let look = heartbeat.during("reading the queue", shift.look()).await;
            shift.found(look);
        }
        shift.take_in(&list);
        shift.work(stop, heartbeat).await;
        Ok(())
    }
}

/// Opens the queue and reads the machine's fingerprint, both of which block.
async fn open(dir: PathBuf, len_max: usize) -> Result<(Queue, Arc<str>), ForgeError> {
    let place = dir.clone();
    let opening = tokio::task::spawn_blocking(move || {
        Ok::<_, QueueError>((Queue::open(&dir, len_max)?, crate::prewarm::machine().into()))
    });
    let opened = opening.await.unwrap_or_else(|join| {
        let source = std::io::Error::other(join);
        Err(QueueError::File { path: place, source })
    });
    Ok(opened?)
}

impl Shift {
    /// Takes in the catalogue. What was given up before this process began stays given up for its time.
    fn take_in(&mut self, list: &[&'static Blueprint]) {
        for blueprint in list {
            let job = Job::of(blueprint, &self.workshop.config);
            let admitted = self.backlog.add(job, Urgency::Catalogue, None, Instant::now());
            if let Admission::Parked { reason, .. } = admitted {
                self.score.given_up(blueprint.id(), reason);
            }
        }
    }

    async fn work(mut self, stop: CancellationToken, heartbeat: Heartbeat) {
        loop {
            self.start_due(&heartbeat);
            self.report();
            let phase = if self.is_on_duty() { "waiting" } else { "standby" };
            match heartbeat.during(phase, self.next_event(&stop)).await {
                Event::Ended(ended) => self.ended(*ended),
                Event::Freed(Freed { key, lease }) => {
                    let now = Instant::now();
                    self.backlog.returned(&key, now, now);
                    self.leases.extend(lease.map(|lease| (key, lease)));
                }
                Event::DutyChanged => {
                    if self.is_on_duty() {
                        self.backlog.hurry(Instant::now());
                    }
                }
                Event::Demanded(order) => self.demanded(order),
                Event::Ordered(order) => self.ordered(order),
                Event::Found(look) => self.found(look),
                Event::Announced | Event::Filed => {}
                Event::Due => self.round(),
                Event::Stop => return self.finish().await,
            }
        }
    }

    fn is_on_duty(&self) -> bool {
        self.duty.as_ref().is_none_or(|duty| duty.tenure().is_some())
    }

    /// What is done now and then.
    fn round(&mut self) {
        if Instant::now() < self.round {
            return;
        }
        self.round = Instant::now() + ROUND;
        if self.looks_around && self.looking.is_empty() {
            self.looking.push(self.look());
        }
        self.send_events();
    }

    /// Waits for the next event. Only receives (attempts go on while it waits), so losing the race loses nothing.
    async fn next_event(&mut self, stop: &CancellationToken) -> Event {
        let starts = self.next_start().into_iter();
        let relaxes = self.health.next_relaxation(&self.workshop.config);
        let due = starts.chain(relaxes).fold(self.round, Instant::min);
        let intake = &mut *self.intake;
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(ended) = self.running.next() => Event::Ended(Box::new(ended)),
            Some(()) = self.announcing.next() => Event::Announced,
            Some(freed) = self.elsewhere.next() => Event::Freed(freed),
            Some(()) = self.filing.next() => Event::Filed,
            Some(look) = self.looking.next() => Event::Found(look),
            () = changed(&mut self.duty) => Event::DutyChanged,
            Some(order) = intake.demands.recv() => Event::Demanded(order),
            Some(order) = intake.orders.recv() => Event::Ordered(order),
            () = tokio::time::sleep_until(due) => Event::Due,
        }
    }

    /// When a waiting job may start, if time alone decides.
    fn next_start(&self) -> Option<Instant> {
        if self.running.len() >= self.jobs_max() {
            return None;
        }
        let admission = self.health.next_admission(Instant::now())?;
        let due = self.backlog.next_due()?;
        // The first job that the open breaker keeps waiting is told of when it would have begun.
        let is_open = self.health.state() == CircuitBreakerState::CircuitStateOpen;
        if is_open && !self.told_of_skipping { Some(due) } else { Some(due.max(admission)) }
    }

    fn jobs_max(&self) -> usize {
        if self.health.is_conservative() { 1 } else { self.workshop.config.jobs_max }
    }

    fn start_due(&mut self, heartbeat: &Heartbeat) {
        let now = Instant::now();
        self.health.relax(now, &self.workshop.config);
        while self.running.len() < self.jobs_max() {
            if !self.health.admit(now) {
                return self.tell_of_skipping(now);
            }
            self.told_of_skipping = false;
            let Some((key, job)) = self.backlog.start_next(now) else {
                self.health.unused();
                return;
            };
            let strategy = self.health.strategy(self.workshop.config.strategy);
            self.score.started(job.blueprint().id());
            let cancel = self.cancel.child_token();
            let (permit, blueprint) = (self.permit(&key), job.blueprint().id().clone());
            let task = Task { key, job, strategy, urgency: self.backlog.urgency(&key) };
            let attempt = self.workshop.clone().attempt(task, permit, cancel);
            self.running.push(Box::pin(heartbeat.over("compiling", blueprint, attempt)));
        }
    }

    /// Says, once each time the breaker opens, that jobs which are due are not begun.
    fn tell_of_skipping(&mut self, now: Instant) {
        let is_open = self.health.state() == CircuitBreakerState::CircuitStateOpen;
        let is_due = self.backlog.next_due().is_some_and(|due| due <= now);
        if is_open && is_due && !std::mem::replace(&mut self.told_of_skipping, true) {
            let waiting = self.backlog.open_len();
            let event = Happening::warning("tezzeret.breaker_open_skip").with("waiting", waiting);
            self.workshop.reporter.push(event);
        }
    }

    fn permit(&mut self, key: &kernel::Digest) -> Permit {
        let waited = self.leases.remove(key);
        if !self.backlog.urgency(key).is_ordered() && !self.is_on_duty() {
            return Permit::Look;
        }
        if waited.is_none() {
            self.workshop.metrics.started();
        }
        let library = self.workshop.library.id();
        let lease = || {
            let bus = self.bus.as_ref()?;
            Some(bus.job(format!("tezzeret.job:{library}:{}", key.to_hex())))
        };
        Permit::Make(waited.or_else(lease))
    }

    fn report(&self) {
        if self.workshop.reporter.is_pressing() {
            self.send_events();
        }
        let health = &self.health;
        let (failures, conservative) = (health.consecutive_failures(), health.is_conservative());
        let metrics = &self.workshop.metrics;
        metrics.breaker(health.state(), failures, conservative);
        metrics.waiting.set(i64::try_from(self.backlog.open_len()).unwrap_or(i64::MAX));
        metrics.parked.set(i64::try_from(self.backlog.parked_len()).unwrap_or(i64::MAX));
        self.desk.post(self.score.progress());
    }

    /// Sends the events that wait as one packet.
    fn send_events(&self) {
        let open = self.health.state() == CircuitBreakerState::CircuitStateOpen;
        let in_trouble =
            if open || self.health.is_conservative() { InTrouble::Yes } else { InTrouble::No };
        let Some(packet) = self.workshop.reporter.packet(in_trouble) else { return };
        let Some(bus) = self.bus.clone() else { return };
        let priority = match packet.level() {
            TelemetryLevel::Unspecified | TelemetryLevel::Info => MessagePriority::Normal,
            TelemetryLevel::Warning | TelemetryLevel::Error | TelemetryLevel::Critical => {
                MessagePriority::High
            }
        };
        self.announcing.push(Box::pin(async move {
            let message = Message::from(packet);
            let sending = bus.publish(Stream::Telemetry, priority, "tezzeret", &message);
            if let Ok(Err(error)) = tokio::time::timeout(EVENTS_TIMEOUT, sending).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "events not sent");
            }
        }));
    }

    fn ended(&mut self, ended: Ended) {
        self.score.stopped(ended.task.job.blueprint().id());
        let step = self.step(&ended);
        let Ended { task, outcome, .. } = ended;
        match outcome {
            Outturn::Done(record, how, news) => {
                let trace = step.and_then(|step| step.context());
                self.succeeded(&task, record, how, news, trace);
            }
            Outturn::Failed(error) => self.failed(&task, &error),
            Outturn::Elsewhere(Whereabouts::Foreign) => {
                self.health.unused();
                let now = Instant::now();
                self.backlog.returned(&task.key, now + LOOK_AGAIN, now);
            }
            Outturn::Elsewhere(Whereabouts::AtWork(lease)) => {
                self.health.unused();
                let blueprint = task.job.blueprint().id();
                tracing::debug!(%blueprint, "another process compiles it, waiting");
                let waiting = self.workshop.clone().freed(task.key, task.job, lease);
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
        let Task { key, job, strategy, .. } = &ended.task;
        let parent = self.backlog.waiters(key).iter().find_map(Waiter::trace);
        let tracer = self.bus.as_ref()?.tracer();
        let mut step = tracer.follow("tezzeret.compile", SpanKind::Internal, parent);
        step.began_before(ended.took);
        step.set("tezzeret.blueprint", job.blueprint().id().as_str());
        step.set("tezzeret.strategy", strategy.name());
        if let Outturn::Done(record, how, _) = &ended.outcome {
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
        task: &Task,
        record: Record,
        how: How,
        news: News,
        trace: Option<TraceContext>,
    ) {
        let Task { key, job, strategy, .. } = task;
        let failures = self.backlog.failures(key);
        let waiters = self.backlog.succeeded(key);
        waiters.into_iter().for_each(|waiter| waiter.done(&record, how));
        self.health.succeeded(Instant::now(), &self.workshop.config);
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
                self.workshop.reporter.push(
                    Happening::info("tezzeret.compile_succeeded")
                        .with("blueprint_id", blueprint)
                        .with("strategy", strategy)
                        .with("compile_ms", record.compile_ms)
                        .with("prewarm_ms", record.prewarm.p50_ms()),
                );
            }
        }
        self.tell(*key, record, news, trace);
    }

    /// Tells everybody of an artifact, where that is owed and this forge has a bus.
    fn tell(&self, key: kernel::Digest, record: Record, news: News, trace: Option<TraceContext>) {
        let (queue, metrics) = (self.workshop.queue.clone(), self.workshop.metrics.clone());
        match (news, self.bus.clone()) {
            (News::Owed(lock), Some(bus)) => {
                let news = Announcement { bus, record, trace, metrics, queue, key, lock };
                self.announcing.push(Box::pin(news.make()));
            }
            // Its ticket stays for a forge that can tell, or belongs to the process that is telling.
            (News::Owed(_), None) | (News::Told, _) => queue.forget(&key),
        }
    }

    fn failed(&mut self, task: &Task, error: &AttemptError) {
        let Task { key, job, .. } = task;
        let (now, config) = (Instant::now(), self.workshop.config.clone());
        let (blueprint, reason) = (job.blueprint().id(), error.full_text());
        let fault = error.fault();
        self.workshop.metrics.attempt_failed(fault);
        self.workshop.reporter.push(
            Happening::warning("tezzeret.compile_failed")
                .with("blueprint_id", blueprint)
                .with("reason", fault.name()),
        );
        if fault == Fault::Timeout {
            self.health.timed_out(*key, now, &config);
        }
        if error.is_forge_fault() && self.health.failed(*key, now, &config) {
            self.workshop.metrics.breaker_opened();
            let failures = self.health.consecutive_failures();
            tracing::error!(failures, pause = ?config.breaker_pause(), "compile breaker opened");
            self.workshop.reporter.push(
                Happening::error("tezzeret.breaker_open")
                    .with("backoff", config.breaker_pause().as_secs_f64())
                    .with("failures", failures),
            );
        }
        match self.backlog.failed(key, &reason, error.retryable(), now, &config) {
            Verdict::Retry { not_before } => {
                let delay = not_before - now;
                tracing::warn!(%blueprint, %reason, ?delay, "compiling failed, will be tried again");
            }
            Verdict::GivenUp { waiters } => {
                self.workshop.metrics.ended(Outcome::Failed, 0);
                tracing::error!(%blueprint, %reason, "compiling failed for good");
                self.write_parked(job, &reason);
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
                let urgency = Urgency::ordered(request.priority, request.deadline_ms);
                self.add(job, urgency, Waiter::Demand(answer, request.trace), Some(queued));
            }
            Err(refusal) => drop(answer.send(refusal)),
        }
    }

    fn ordered(&mut self, order: Order) {
        self.add(order.job, usual(), Waiter::Order(order.answer), None);
    }

    /// Takes in an order; one that is to outlive this process comes with somebody to tell that it will.
    fn add(
        &mut self,
        job: Job,
        urgency: Urgency,
        waiter: Waiter,
        queued: Option<oneshot::Sender<Queued>>,
    ) {
        let blueprint = job.blueprint().id();
        let wanted = job.clone();
        match self.backlog.add(job, urgency, Some(waiter), Instant::now()) {
            Admission::Queued | Admission::Joined => {
                if queued.is_some() {
                    self.enqueue(&wanted, urgency, queued);
                }
            }
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
            } else if !self.looks_around {
                // Nobody was told that it will be done.
                self.settle(ended.task.key);
            }
        }
        self.send_events();
        while let Ok(Some(())) = tokio::time::timeout_at(deadline, self.filing.next()).await {}
        while let Ok(Some(())) = tokio::time::timeout_at(deadline, self.announcing.next()).await {}
        self.report();
    }
}

async fn changed(duty: &mut Option<Lease>) {
    match duty {
        Some(duty) => duty.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

//! Carries out what the core decides. The one place that spawns.
//!
//! A single loop: `next_event` only waits, `take` acts. It owns every task, so nothing outlives it.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use nissa::{ControlRefused, ControlRequest, Health, ProcessPhase, WorkerAction};
use oona::Heartbeat;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::core::{Cause, Core, Criticality, Effect, Event, Exit, Life, Spec, WorkerId};
use super::drain::{DrainLog, Left};
use super::notify::Notifier;
use super::panics::{self, WORKER};
use super::picture::{self, BusPicture, Identity, Moment, Seen};
use super::restart::RestartPolicy;
use super::row::{Context, Row, WorkerError, causes, chain};
use super::watched::{Overdue, Place, Watched, Watching};

/// How often heartbeats are looked at and the picture is taken where no thread makes the loop do it,
/// and how often the runtime shows that it turns where one does.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// A machine's clock that moved by more than this against the monotonic one was stepped.
const CLOCK_STEP_MIN: Duration = Duration::from_secs(1);
/// Orders that may wait. They come from signals and the command line.
const ORDERS_LEN_MAX: usize = 8;

/// Why the boot did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct BootFailure {
    /// With which exit the process ends.
    pub exit: Exit,
    /// What is wrong, with its remedy.
    #[source]
    pub error: WorkerError,
}

/// Opens what the workers stand on and returns the rest of the boot table.
pub type Boot = Pin<Box<dyn Future<Output = Result<Vec<Row>, BootFailure>> + Send>>;
/// Re-reads what can be re-read, and says what came of it.
pub type Reload = Box<dyn FnMut() + Send>;

/// What may be asked of the supervisor from inside the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop(Exit),
    Finish,
    Reload,
}

/// The asking end of a supervisor.
#[derive(Debug, Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    /// Cancelled by the first request to stop, and by the second.
    stops: [CancellationToken; 2],
    health: watch::Receiver<Health>,
}

impl Handle {
    /// Begins the orderly stop; asked again, aborts what is left. Does not wait.
    pub fn stop(&self, exit: Exit) {
        let [first, second] = &self.stops;
        if first.is_cancelled() {
            second.cancel()
        } else {
            first.cancel()
        }
        // A full queue already holds a stop; a closed one belongs to a service that has ended.
        let _ = self.orders.try_send(Order::Stop(exit));
    }

    /// Begins the orderly stop because the work is done. Unlike a second [`Handle::stop`] it leaves
    /// a stop that has begun alone.
    pub fn finish(&self) {
        // As above.
        let _ = self.orders.try_send(Order::Finish);
    }

    /// Waits until the stop was asked for twice: from then on nothing is waited for.
    pub async fn at_once(&self) {
        self.stops[1].cancelled().await;
    }

    /// Re-reads what can be re-read.
    pub fn reload(&self) {
        let _ = self.orders.try_send(Order::Reload);
    }

    /// The newest picture.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

/// What a supervisor is made of.
pub struct Setup {
    /// How workers are brought back.
    pub policy: RestartPolicy,
    /// How long the orderly stop may take.
    pub drain_timeout: Duration,
    /// Version and log.
    pub identity: Identity,
    /// Requests of operators, over HTTP.
    pub control: mpsc::Receiver<ControlRequest>,
    /// What the probe sees of the bus.
    pub bus: watch::Receiver<BusPicture>,
    /// What SIGHUP does.
    pub reload: Reload,
    /// The picture that the watchdog looks at.
    pub watched: Watched,
}

/// A worker's living task.
struct Task {
    stop: CancellationToken,
    abort: AbortHandle,
    heartbeat: Heartbeat,
}

/// How long the restarts of a worker take.
#[derive(Default)]
struct Stopwatch {
    /// When its next task is due, until that has given its first heartbeat.
    due: Option<Instant>,
    last: Option<Duration>,
}

/// The supervisor of one service.
pub struct Supervisor {
    core: Core,
    rows: Vec<Row>,
    tasks: Vec<Option<Task>>,
    stopwatches: Vec<Stopwatch>,
    joined: JoinSet<Result<(), WorkerError>>,
    /// Whose task this is; abandoned ones are missing.
    owners: HashMap<Id, WorkerId>,
    dependency_restarts: Vec<watch::Sender<u64>>,
    began: Instant,
    began_at: SystemTime,
    phase: ProcessPhase,
    orders: mpsc::Receiver<Order>,
    health: watch::Sender<Health>,
    control: mpsc::Receiver<ControlRequest>,
    bus: watch::Receiver<BusPicture>,
    identity: Identity,
    reload: Reload,
    notifier: Notifier,
    drain_log: DrainLog,
    watched: Watched,
}

/// What the loop waits for.
enum Incoming {
    TaskEnded(Id, Cause),
    Deadline,
    Watch,
    Asked(ControlRequest),
    Ordered(Order),
    Booted(Result<Vec<Row>, BootFailure>),
}

impl Supervisor {
    /// A supervisor without workers, and its handle.
    pub fn new(setup: Setup) -> (Self, Handle) {
        let (order_sender, orders) = mpsc::channel(ORDERS_LEN_MAX);
        let booting = Health::booting(&setup.identity.version, &setup.identity.log);
        let (health, health_receiver) = watch::channel(booting);
        let supervisor = Self {
            core: Core::new(setup.policy, setup.drain_timeout),
            rows: Vec::new(),
            tasks: Vec::new(),
            stopwatches: Vec::new(),
            joined: JoinSet::new(),
            owners: HashMap::new(),
            dependency_restarts: Vec::new(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            phase: ProcessPhase::Booting,
            orders,
            health,
            control: setup.control,
            bus: setup.bus,
            identity: setup.identity,
            reload: setup.reload,
            notifier: Notifier::default(),
            drain_log: DrainLog::default(),
            watched: setup.watched,
        };
        let stops = [CancellationToken::new(), CancellationToken::new()];
        (supervisor, Handle { orders: order_sender, stops, health: health_receiver })
    }

    /// Starts `first`, runs `boot` beside them and starts the rows it returns, then keeps them all
    /// alive until it is told to stop or has to.
    pub async fn run(mut self, first: Vec<Row>, boot: Boot) -> Exit {
        let mut boot = Some(boot);
        let mut watch = self.watch_from();
        let mut left = self.add(first);
        self.show();
        while left.is_none() {
            self.watched.turns().beat("waiting for events");
            let incoming = self.next_event(&mut boot, &mut watch).await;
            left = self.take(incoming);
            if self.core.is_draining() {
                boot = None;
            }
            self.show();
        }
        self.watched.leave();
        left.unwrap_or(Exit::Clean)
    }

    /// Who makes the loop look at its workers. Beside a thread, a task that does nothing but beat
    /// shows it whether the runtime turns.
    fn watch_from(&mut self) -> Option<Interval> {
        if !self.watched.has_thread() {
            return Some(interval());
        }
        let heartbeat = Heartbeat::new();
        self.watched.set_runtime(Some(heartbeat.clone()));
        // It has no owner among the workers, and ends with the supervisor.
        self.joined.spawn(async move {
            let mut interval = interval();
            loop {
                interval.tick().await;
                heartbeat.beat("turning");
            }
        });
        None
    }

    /// Waits for the next event. Only receives, so losing the race loses nothing.
    async fn next_event(
        &mut self,
        boot: &mut Option<Boot>,
        watch: &mut Option<Interval>,
    ) -> Incoming {
        let deadline = self.core.deadline().map(|at| self.began + at);
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => Incoming::Ordered(order),
            Some(ended) = self.joined.join_next_with_id() => {
                let (id, cause) = ended_because(ended);
                Incoming::TaskEnded(id, cause)
            }
            () = sleep_until(deadline) => Incoming::Deadline,
            Some(request) = self.control.recv() => Incoming::Asked(request),
            () = self.watched.poked() => Incoming::Watch,
            () = tick(watch) => Incoming::Watch,
            result = poll_boot(boot) => {
                *boot = None;
                Incoming::Booted(result)
            }
        }
    }

    /// Acts on one event. Returns the exit once everything is through.
    fn take(&mut self, incoming: Incoming) -> Option<Exit> {
        match incoming {
            Incoming::TaskEnded(task, cause) => {
                let worker = self.owners.remove(&task)?;
                self.forget_task(worker);
                self.decide(Event::Ended(worker, cause))
            }
            Incoming::Deadline => self.decide(Event::Tick),
            Incoming::Watch => self.tick_if_due().or_else(|| self.watch()),
            Incoming::Asked(request) => self.answer(request),
            Incoming::Ordered(Order::Reload) => {
                (self.reload)();
                None
            }
            Incoming::Ordered(Order::Stop(exit)) => self.begin_stop(exit),
            Incoming::Ordered(Order::Finish) if self.core.is_draining() => None,
            Incoming::Ordered(Order::Finish) => self.begin_stop(Exit::Clean),
            Incoming::Booted(Ok(rows)) => {
                let left = self.add(rows);
                self.phase = ProcessPhase::Running;
                // Who is told that the service is up must find it ready.
                self.show();
                self.notifier.ready();
                tracing::info!(workers = self.rows.len(), "service is up");
                left
            }
            Incoming::Booted(Err(failure)) => {
                tracing::error!(error = chain(failure.error.as_ref()), "boot failed");
                self.begin_stop(failure.exit)
            }
        }
    }

    fn begin_stop(&mut self, exit: Exit) -> Option<Exit> {
        self.notifier.stopping();
        self.phase = ProcessPhase::Draining;
        tracing::info!(again = self.core.is_draining(), "service stops");
        self.decide(Event::Stop(exit))
    }

    /// Adds rows and starts them in their order.
    ///
    /// # Panics
    /// When a row depends on a worker that does not stand above it: the boot table is wrong.
    fn add(&mut self, rows: Vec<Row>) -> Option<Exit> {
        for row in rows {
            let id_of = |name: &&str| {
                let found = self.rows.iter().position(|above| above.name == *name);
                found.unwrap_or_else(|| {
                    panic!("{} depends on {name}, which stands above it", row.name)
                })
            };
            let depends_on = row.depends_on.iter().map(id_of).collect();
            let id = self.core.add(Spec {
                name: row.name,
                criticality: row.criticality,
                depends_on,
                stop_group: row.stop_group,
                function: row.function,
            });
            self.rows.push(row);
            self.tasks.push(None);
            self.stopwatches.push(Stopwatch::default());
            self.dependency_restarts.push(watch::Sender::new(0));
            if let Some(exit) = self.decide(Event::Boot(id)) {
                return Some(exit);
            }
        }
        None
    }

    fn decide(&mut self, event: Event) -> Option<Exit> {
        let effects = self.core.handle(self.began.elapsed(), rand::random(), event);
        effects.into_iter().find_map(|effect| self.carry_out(effect))
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Exit> {
        match effect {
            Effect::Start(id) => self.start(id),
            Effect::Cancel(id) => {
                if let Some(task) = &self.tasks[id] {
                    task.stop.cancel();
                }
            }
            Effect::Abort(id) => {
                if let Some(task) = &self.tasks[id] {
                    tracing::error!(
                        worker = self.rows[id].name,
                        phase = task.heartbeat.phase(),
                        "worker does not stop and is aborted"
                    );
                    task.abort.abort();
                }
            }
            Effect::Abandon(id) => {
                tracing::error!(worker = self.rows[id].name, "worker blocks its thread; abandoned");
                self.owners.retain(|_, owner| *owner != id);
                self.forget_task(id);
            }
            Effect::Tell { worker, restarted } => {
                self.dependency_restarts[worker].send_modify(|count| *count += 1);
                tracing::debug!(
                    worker = self.rows[worker].name,
                    restarted = self.rows[restarted].name,
                    "told of a restart"
                );
            }
            Effect::BacksOff(id, delay) => {
                self.stopwatches[id].due = Some(Instant::now() + delay);
                let reason = self.last_reason(id);
                tracing::warn!(worker = self.rows[id].name, ?delay, reason, "worker restarts");
            }
            Effect::Park(id) => {
                self.stopwatches[id].due = None;
                let (worker, reason) = (self.rows[id].name, self.last_reason(id));
                if self.last_cause(id) == Some(&Cause::Parked) {
                    tracing::info!(
                        worker,
                        lost = self.rows[id].function,
                        "worker is parked; revive it with `weatherlight workers restart {worker}`"
                    );
                    return None;
                }
                tracing::error!(
                    worker,
                    reason,
                    lost = self.rows[id].function,
                    "worker failed too often and is parked; revive it with `weatherlight workers restart {worker}`"
                );
            }
            Effect::Escalate(id) => {
                self.phase = ProcessPhase::Draining;
                self.notifier.stopping();
                let (worker, reason) = (self.rows[id].name, self.last_reason(id));
                tracing::error!(worker, reason, "critical worker failed too often; service stops");
            }
            Effect::Leave(exit) => return Some(exit),
        }
        None
    }

    fn last_cause(&self, id: WorkerId) -> Option<&Cause> {
        self.core.workers()[id].reasons.back().map(|(_, cause)| cause)
    }

    fn last_reason(&self, id: WorkerId) -> String {
        self.last_cause(id).map(ToString::to_string).unwrap_or_default()
    }

    /// When the service began, by the machine's clock as it goes now: it may have been stepped
    /// since, and then every time that is shown moves with it.
    fn began_at(&mut self) -> SystemTime {
        let now = SystemTime::now() - self.began.elapsed();
        let apart = now.duration_since(self.began_at).unwrap_or_else(|before| before.duration());
        if apart > CLOCK_STEP_MIN {
            self.began_at = now;
        }
        self.began_at
    }

    fn forget_task(&mut self, id: WorkerId) {
        self.tasks[id] = None;
        self.stopwatches[id].due = Some(Instant::now());
    }

    fn start(&mut self, id: WorkerId) {
        let row = &mut self.rows[id];
        let name = row.name;
        self.watched.turns().beat_about("starting", name);
        let (stop, heartbeat) = (CancellationToken::new(), Heartbeat::new());
        let context = Context {
            stop: stop.clone(),
            heartbeat: heartbeat.clone(),
            dependency_restarts: self.dependency_restarts[id].subscribe(),
        };
        let span = tracing::info_span!("task", worker = name);
        let worker = WORKER.scope(name, (row.build)(context)).instrument(span);
        let abort = self.joined.spawn(worker);
        self.owners.insert(abort.id(), id);
        self.tasks[id] = Some(Task { stop, abort, heartbeat });
        let now = Instant::now();
        // An operator's start does not wait for the backoff.
        self.stopwatches[id].due = self.stopwatches[id].due.map(|due| due.min(now));
        tracing::debug!(worker = name, "worker started");
    }

    /// The deadline may have passed without its timer: those of a blocked runtime do not fire.
    fn tick_if_due(&mut self) -> Option<Exit> {
        let is_due = self.core.deadline().is_some_and(|at| at <= self.began.elapsed());
        if is_due { self.decide(Event::Tick) } else { None }
    }

    /// Looks at every heartbeat.
    fn watch(&mut self) -> Option<Exit> {
        for overdue in self.watched.overdue(Instant::now()) {
            let Overdue { worker, phase, about, age } = overdue;
            let name = self.rows[worker].name;
            tracing::error!(worker = name, phase, about, ?age, "worker is hung");
            let left = self.decide(Event::Overdue { worker, phase, about, age });
            if left.is_some() {
                return left;
            }
        }
        None
    }

    /// What the watchdog looks at: running workers are judged, unless the service stops; its own
    /// deadline is what a hung worker runs into then.
    fn places(&self) -> Vec<Place> {
        let is_draining = self.core.is_draining();
        let place = |(id, row): (WorkerId, &Row)| {
            let heartbeat = self.tasks[id].as_ref().map(|task| task.heartbeat.clone());
            let watching = match (&self.core.workers()[id].life, heartbeat) {
                (Life::Running { .. }, Some(heartbeat)) if !is_draining => {
                    Watching::Beats(heartbeat)
                }
                (Life::Ending { cause: Cause::Hung { .. }, .. }, Some(heartbeat)) => {
                    Watching::Hung(heartbeat)
                }
                _ => Watching::No,
            };
            let is_critical = row.criticality == Criticality::Critical;
            Place { name: row.name, is_critical, budget: row.heartbeat_budget, watching }
        };
        self.rows.iter().enumerate().map(place).collect()
    }

    fn seen(&mut self) -> Vec<Seen> {
        let workers = self.tasks.iter().zip(&mut self.stopwatches).zip(&self.rows);
        let seen = workers.map(|((task, stopwatch), row)| {
            let sighting = task.as_ref().map(|task| task.heartbeat.sighting());
            if let Some(first) = sighting.as_ref().and_then(|sighting| sighting.first)
                && let Some(due) = stopwatch.due.take()
            {
                stopwatch.last = Some(first.saturating_duration_since(due));
            }
            let (budget, last_restart) = (row.heartbeat_budget, stopwatch.last);
            Seen { sighting, budget, last_restart }
        });
        seen.collect()
    }

    fn answer(&mut self, request: ControlRequest) -> Option<Exit> {
        let found = self.rows.iter().position(|row| row.name == request.worker);
        let (answer, left) = match (found, request.action) {
            (None, _) => (Err(ControlRefused::UnknownWorker { name: request.worker }), None),
            (Some(_), _) if self.core.is_draining() => (Err(ControlRefused::Stopping), None),
            (Some(id), WorkerAction::Restart) => {
                tracing::info!(worker = self.rows[id].name, "restart asked for");
                (Ok(()), self.decide(Event::Restart(id)))
            }
            (Some(id), WorkerAction::Park)
                if self.rows[id].criticality == Criticality::Critical =>
            {
                (Err(ControlRefused::Critical { name: request.worker }), None)
            }
            (Some(id), WorkerAction::Park) => {
                tracing::info!(worker = self.rows[id].name, "parking asked for");
                (Ok(()), self.decide(Event::Park(id)))
            }
        };
        // Whoever asked may have gone; the action has begun all the same.
        let _ = request.answer.send(answer);
        left
    }

    /// Sends the picture to whoever looks: the watchdog, the endpoint, the service manager.
    fn show(&mut self) {
        self.watched.set_places(self.places());
        let hung = self.watched.hung_critical(Instant::now());
        let (at, began, phase) = (self.began.elapsed(), self.began_at(), self.phase);
        let seen = self.seen();
        let bus = self.bus.borrow().clone();
        let moment = Moment { at, began, phase };
        let health = picture::take(&moment, &self.core, &seen, hung, &bus, &self.identity);
        match Left::look(at, &self.core, &seen) {
            Some(left) => {
                self.notifier.status(&format!("stopping; {left}"));
                self.drain_log.show(at, &left);
            }
            None => self.notifier.status(&status_line(&health)),
        }
        self.health.send_replace(health);
    }
}

fn status_line(health: &Health) -> String {
    match health.phase {
        ProcessPhase::Booting => "booting".to_owned(),
        ProcessPhase::Draining => "stopping".to_owned(),
        ProcessPhase::Running if health.lost.is_empty() => {
            format!("operational, {} workers", health.workers.len())
        }
        ProcessPhase::Running => format!("degraded: {}", health.lost.join("; ")),
    }
}

fn interval() -> Interval {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

fn ended_because(ended: Result<(Id, Result<(), WorkerError>), JoinError>) -> (Id, Cause) {
    match ended {
        Ok((id, Ok(()))) => (id, Cause::Returned),
        Ok((id, Err(error))) => {
            let error: &(dyn Error + 'static) = error.as_ref();
            (id, Cause::Failed(causes(error)))
        }
        Err(error) => {
            let id = error.id();
            match error.try_into_panic() {
                Ok(payload) => (id, Cause::Panicked(panics::message(payload.as_ref()))),
                Err(_) => (id, Cause::Failed(vec!["its task was aborted".to_owned()])),
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn poll_boot(boot: &mut Option<Boot>) -> Result<Vec<Row>, BootFailure> {
    match boot {
        Some(boot) => boot.as_mut().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

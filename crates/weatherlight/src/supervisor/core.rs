//! Every decision of the supervisor: what happens to which worker, and when the service ends.
//! No clock, no I/O, no `async`: the time comes in with each event, and effects come out.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::restart::{History, RestartPolicy, Verdict};

/// Reasons kept per worker.
pub const REASONS_KEPT: usize = 10;
/// How long a cancelled worker may take to end before it is aborted, and an aborted one before it
/// is abandoned. A worker that answers its token ends within milliseconds.
pub const END_GRACE: Duration = Duration::from_secs(2);

/// Index of a worker, in boot order.
pub type WorkerId = usize;

/// What a worker's giving up means for the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criticality {
    /// The service stops in an orderly way.
    Critical,
    /// The worker is parked and the service is degraded.
    Parkable,
}

/// What the core knows about a worker.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name, `crate.duty`.
    pub name: &'static str,
    /// What its giving up means.
    pub criticality: Criticality,
    /// Workers it depends on, all booted earlier.
    pub depends_on: Vec<WorkerId>,
    /// Groups stop in descending order.
    pub stop_group: u8,
    /// What is lost while it does not run, as a short sentence.
    pub function: &'static str,
}

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Asked to stop, and everything ended by itself.
    Clean,
    /// Something it needs cannot be had.
    Unavailable,
    /// A critical worker gave up, or something had to be aborted.
    Software,
    /// The configuration cannot be used.
    Configuration,
}

impl Exit {
    /// The exit code, as in `sysexits.h`.
    pub const fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Unavailable => 69,
            Self::Software => 70,
            Self::Configuration => 78,
        }
    }
}

/// Why a worker's task ended or was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It returned without being asked to.
    Returned,
    /// It returned an error: its text, then that of its cause, and so on.
    Failed(Vec<String>),
    /// It panicked; the message.
    Panicked(String),
    /// It missed its heartbeat.
    Hung {
        /// Where it was last seen.
        phase: &'static str,
        /// What it was working on.
        about: Option<String>,
        /// How long ago.
        age: Duration,
    },
    /// An operator asked for a restart.
    Operator,
    /// An operator asked that it stay down.
    Parked,
}

impl Cause {
    /// What was seen first, then its cause, then that one's cause.
    pub fn chain(&self) -> Vec<String> {
        match self {
            Self::Failed(chain) => chain.clone(),
            other => vec![other.to_string()],
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned => f.write_str("returned without being asked to"),
            Self::Failed(chain) => f.write_str(&chain.join(": ")),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::Hung { phase, about, age } => {
                write!(f, "hung: last seen in phase {phase:?} {:.1} s ago", age.as_secs_f64())?;
                match about {
                    Some(about) => write!(f, ", working on {about}"),
                    None => Ok(()),
                }
            }
            Self::Operator => f.write_str("restarted by an operator"),
            Self::Parked => f.write_str("parked by an operator"),
        }
    }
}

/// Where a worker stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Life {
    /// Not started yet.
    Planned,
    /// Its task lives.
    Running {
        /// Since when.
        since: Duration,
    },
    /// It was told to end; what happens then depends on why.
    Ending {
        /// Since when its task ran.
        since: Duration,
        /// Why.
        cause: Cause,
        /// When patience ends.
        deadline: Duration,
        /// Whether it was aborted already.
        aborted: bool,
    },
    /// It failed and waits for its next start.
    BackingOff {
        /// When that is.
        until: Duration,
    },
    /// It failed too often, or an operator wants it down.
    Parked,
    /// The service stops and this worker was told.
    Stopping,
    /// The service stops and this worker is through.
    Stopped,
}

/// One worker as the core sees it.
#[derive(Debug, Clone)]
pub struct Worker {
    /// What is known about it.
    pub spec: Spec,
    /// Where it stands.
    pub life: Life,
    /// Starts after the first.
    pub restarts: u64,
    /// Its latest ends with their times, oldest first.
    pub reasons: VecDeque<(Duration, Cause)>,
    history: History,
}

impl Worker {
    /// Whether a task of it may be alive.
    pub fn has_task(&self) -> bool {
        matches!(self.life, Life::Running { .. } | Life::Ending { .. } | Life::Stopping)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Start this worker for the first time.
    Boot(WorkerId),
    /// A worker's task ended.
    Ended(WorkerId, Cause),
    /// A worker missed its heartbeat.
    Overdue {
        /// Which.
        worker: WorkerId,
        /// Where it was last seen.
        phase: &'static str,
        /// What it was working on.
        about: Option<String>,
        /// How long ago.
        age: Duration,
    },
    /// An operator asks for a restart.
    Restart(WorkerId),
    /// An operator asks that it stop and stay down. A critical worker is left alone.
    Park(WorkerId),
    /// The time has come that [`Core::deadline`] named.
    Tick,
    /// The service is to stop with this exit. A second one aborts what is left.
    Stop(Exit),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Build and spawn the worker.
    Start(WorkerId),
    /// Cancel its token.
    Cancel(WorkerId),
    /// Abort its task.
    Abort(WorkerId),
    /// Forget its task, which does not even answer an abort.
    Abandon(WorkerId),
    /// Tell `worker`, which has a task, that `restarted`, on which it depends, was started again.
    Tell {
        /// Who is told.
        worker: WorkerId,
        /// About whom.
        restarted: WorkerId,
    },
    /// The worker failed and starts again after this time.
    BacksOff(WorkerId, Duration),
    /// The worker failed too often, or an operator parked it, and stays down.
    Park(WorkerId),
    /// A critical worker failed too often; the stop has begun.
    Escalate(WorkerId),
    /// Everything is through: end the process.
    Leave(Exit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Up,
    Draining { exit: Exit, deadline: Duration },
    Left,
}

/// The supervisor's whole state.
#[derive(Debug)]
pub struct Core {
    policy: RestartPolicy,
    drain_timeout: Duration,
    workers: Vec<Worker>,
    phase: Phase,
}

impl Core {
    /// A core without workers.
    pub fn new(policy: RestartPolicy, drain_timeout: Duration) -> Self {
        Self { policy, drain_timeout, workers: Vec::new(), phase: Phase::Up }
    }

    /// Adds a worker; it is started by [`Event::Boot`].
    pub fn add(&mut self, spec: Spec) -> WorkerId {
        self.workers.push(Worker {
            spec,
            life: Life::Planned,
            restarts: 0,
            reasons: VecDeque::new(),
            history: History::default(),
        });
        self.workers.len() - 1
    }

    /// Every worker, in boot order.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Whether the service has begun to stop.
    pub fn is_draining(&self) -> bool {
        self.phase != Phase::Up
    }

    /// When the drain ends, while there is one.
    pub fn drain_deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Draining { deadline, .. } => Some(deadline),
            Phase::Up | Phase::Left => None,
        }
    }

    /// When [`Event::Tick`] is next needed.
    pub fn deadline(&self) -> Option<Duration> {
        let workers = self.workers.iter().filter_map(|worker| match worker.life {
            Life::BackingOff { until } => Some(until),
            Life::Ending { deadline, .. } => Some(deadline),
            _ => None,
        });
        workers.chain(self.drain_deadline()).min()
    }

    /// Takes one event at the time `at` since the service began; `jitter` in 0 to 1 is random.
    pub fn handle(&mut self, at: Duration, jitter: f64, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Boot(id) => self.boot(at, id, &mut effects),
            Event::Ended(id, cause) => self.ended(at, jitter, id, cause, &mut effects),
            Event::Overdue { worker, phase, about, age } => {
                self.end(at, worker, Cause::Hung { phase, about, age }, &mut effects);
            }
            Event::Restart(id) => self.restart(at, id, &mut effects),
            Event::Park(id) => self.park(at, id, &mut effects),
            Event::Tick => self.tick(at, jitter, &mut effects),
            Event::Stop(exit) => self.stop(at, exit, &mut effects),
        }
        effects
    }

    fn boot(&mut self, at: Duration, id: WorkerId, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Up && self.workers[id].life == Life::Planned {
            self.workers[id].life = Life::Running { since: at };
            effects.push(Effect::Start(id));
        }
    }

    fn ended(
        &mut self,
        at: Duration,
        jitter: f64,
        id: WorkerId,
        cause: Cause,
        effects: &mut Vec<Effect>,
    ) {
        match self.workers[id].life.clone() {
            Life::Running { since } => self.failed(at, jitter, id, since, cause, effects),
            Life::Ending { since, cause, .. } => {
                self.was_ended(at, jitter, id, since, cause, effects)
            }
            Life::Stopping => {
                self.workers[id].life = Life::Stopped;
                self.next_group(effects);
            }
            Life::Planned | Life::BackingOff { .. } | Life::Parked | Life::Stopped => {}
        }
    }

    /// A worker that we told to end has ended.
    fn was_ended(
        &mut self,
        at: Duration,
        jitter: f64,
        id: WorkerId,
        since: Duration,
        cause: Cause,
        effects: &mut Vec<Effect>,
    ) {
        match cause {
            Cause::Operator => {
                self.note(at, id, cause);
                self.start_again(at, id, effects);
            }
            Cause::Parked => self.stay_down(at, id, effects),
            cause => self.failed(at, jitter, id, since, cause, effects),
        }
    }

    /// As an operator wants it.
    fn stay_down(&mut self, at: Duration, id: WorkerId, effects: &mut Vec<Effect>) {
        self.note(at, id, Cause::Parked);
        self.workers[id].life = Life::Parked;
        effects.push(Effect::Park(id));
    }

    fn failed(
        &mut self,
        at: Duration,
        jitter: f64,
        id: WorkerId,
        since: Duration,
        cause: Cause,
        effects: &mut Vec<Effect>,
    ) {
        self.note(at, id, cause);
        if self.is_draining() {
            self.workers[id].life = Life::Stopped;
            return self.next_group(effects);
        }
        let worker = &mut self.workers[id];
        let ran = at.saturating_sub(since);
        match worker.history.failed(&self.policy, at, ran, jitter) {
            Verdict::Restart(delay) => {
                worker.life = Life::BackingOff { until: at + delay };
                effects.push(Effect::BacksOff(id, delay));
            }
            Verdict::GiveUp => {
                worker.life = Life::Parked;
                match worker.spec.criticality {
                    Criticality::Parkable => effects.push(Effect::Park(id)),
                    Criticality::Critical => {
                        effects.push(Effect::Escalate(id));
                        self.stop(at, Exit::Software, effects);
                    }
                }
            }
        }
    }

    fn note(&mut self, at: Duration, id: WorkerId, cause: Cause) {
        let reasons = &mut self.workers[id].reasons;
        if reasons.len() == REASONS_KEPT {
            reasons.pop_front();
        }
        reasons.push_back((at, cause));
    }

    fn start_again(&mut self, at: Duration, id: WorkerId, effects: &mut Vec<Effect>) {
        self.workers[id].life = Life::Running { since: at };
        self.workers[id].restarts += 1;
        effects.push(Effect::Start(id));
        for (worker, dependant) in self.workers.iter().enumerate() {
            if dependant.has_task() && dependant.spec.depends_on.contains(&id) {
                effects.push(Effect::Tell { worker, restarted: id });
            }
        }
    }

    /// Tells a worker to end while the service runs on.
    fn end(&mut self, at: Duration, id: WorkerId, cause: Cause, effects: &mut Vec<Effect>) {
        // While draining, the drain's own deadline is what a hung worker runs into.
        if let Life::Running { since } = self.workers[id].life
            && !self.is_draining()
        {
            let deadline = at + END_GRACE;
            self.workers[id].life = Life::Ending { since, cause, deadline, aborted: false };
            effects.push(Effect::Cancel(id));
        }
    }

    fn restart(&mut self, at: Duration, id: WorkerId, effects: &mut Vec<Effect>) {
        if self.is_draining() {
            return;
        }
        self.workers[id].history.forget();
        match self.workers[id].life {
            Life::Running { .. } => self.end(at, id, Cause::Operator, effects),
            Life::BackingOff { .. } | Life::Parked => {
                self.note(at, id, Cause::Operator);
                self.start_again(at, id, effects);
            }
            // It ends already; the last wish counts.
            Life::Ending { .. } => self.change_cause(at, id, Cause::Operator),
            Life::Planned | Life::Stopping | Life::Stopped => {}
        }
    }

    fn park(&mut self, at: Duration, id: WorkerId, effects: &mut Vec<Effect>) {
        if self.is_draining() || self.workers[id].spec.criticality == Criticality::Critical {
            return;
        }
        match self.workers[id].life {
            Life::Running { .. } => self.end(at, id, Cause::Parked, effects),
            Life::BackingOff { .. } => self.stay_down(at, id, effects),
            Life::Ending { .. } => self.change_cause(at, id, Cause::Parked),
            Life::Planned | Life::Parked | Life::Stopping | Life::Stopped => {}
        }
    }

    /// Of a worker that ends already. Why it was ended first is kept among the reasons.
    fn change_cause(&mut self, at: Duration, id: WorkerId, wish: Cause) {
        if let Life::Ending { cause, .. } = &mut self.workers[id].life {
            let before = std::mem::replace(cause, wish);
            self.note(at, id, before);
        }
    }

    fn tick(&mut self, at: Duration, jitter: f64, effects: &mut Vec<Effect>) {
        for id in 0..self.workers.len() {
            match self.workers[id].life.clone() {
                Life::BackingOff { until } if until <= at => self.start_again(at, id, effects),
                Life::Ending { since, cause, deadline, aborted } if deadline <= at => {
                    if aborted {
                        effects.push(Effect::Abandon(id));
                        self.was_ended(at, jitter, id, since, cause, effects);
                    } else {
                        let deadline = at + END_GRACE;
                        self.workers[id].life =
                            Life::Ending { since, cause, deadline, aborted: true };
                        effects.push(Effect::Abort(id));
                    }
                }
                _ => {}
            }
        }
        if let Phase::Draining { deadline, .. } = self.phase
            && deadline <= at
        {
            self.abort_all(effects);
        }
    }

    fn stop(&mut self, at: Duration, exit: Exit, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Up => {
                self.phase = Phase::Draining { exit, deadline: at + self.drain_timeout };
                for worker in &mut self.workers {
                    worker.life = match worker.life {
                        Life::Running { .. } => continue,
                        // It was cancelled already; what is left is to wait for its end.
                        Life::Ending { .. } => Life::Stopping,
                        Life::Parked => Life::Parked,
                        _ => Life::Stopped,
                    };
                }
                self.next_group(effects);
            }
            Phase::Draining { .. } => self.abort_all(effects),
            Phase::Left => {}
        }
    }

    /// Cancels the next stop group once nothing of a higher one is left, or leaves.
    fn next_group(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Draining { exit, .. } = self.phase else { return };
        let alive = self.workers.iter().filter(|worker| worker.has_task());
        let Some(group) = alive.map(|worker| worker.spec.stop_group).max() else {
            self.phase = Phase::Left;
            effects.push(Effect::Leave(exit));
            return;
        };
        for (id, worker) in self.workers.iter_mut().enumerate() {
            if worker.spec.stop_group == group && matches!(worker.life, Life::Running { .. }) {
                worker.life = Life::Stopping;
                effects.push(Effect::Cancel(id));
            }
        }
    }

    /// The drain took too long or a second signal came.
    fn abort_all(&mut self, effects: &mut Vec<Effect>) {
        for (id, worker) in self.workers.iter_mut().enumerate() {
            if worker.has_task() {
                worker.life = Life::Stopped;
                effects.push(Effect::Abort(id));
            }
        }
        self.phase = Phase::Left;
        effects.push(Effect::Leave(Exit::Software));
    }
}

#[cfg(test)]
mod tests;

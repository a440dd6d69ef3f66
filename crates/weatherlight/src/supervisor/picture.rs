//! The supervisor's picture of itself, as `/healthz` and `weatherlight status` show it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nissa::{
    BreakerHealth, Health, KeyHealth, LaneHealth, LeaseHealth, ProcessPhase, RecentRestart,
    SystemMode, WorkerHealth, WorkerState,
};
use oona::Sighting;
use tokio::time::Instant;

use super::core::{Cause, Core, Criticality, Life, Worker};

/// What the probe last saw of the bus.
#[derive(Debug, Clone, Default)]
pub struct BusPicture {
    /// Why the log does not answer; `None` while it does.
    pub failure: Option<String>,
    /// Backlog per stream.
    pub lanes: Vec<LaneHealth>,
    /// Circuit breakers.
    pub breakers: Vec<BreakerHealth>,
    /// Secrets in force.
    pub keys: Vec<KeyHealth>,
    /// Who does what one of several services does.
    pub leases: Vec<LeaseHealth>,
    /// What publishers cannot do now, one sentence each.
    pub paused: Vec<String>,
}

/// What stays the same over the life of the process.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Version of the service.
    pub version: String,
    /// Kind of the log.
    pub log: String,
}

/// The moment of a picture.
pub(super) struct Moment {
    /// Since the service began.
    pub(super) at: Duration,
    /// When that was.
    pub(super) began: SystemTime,
    /// Where the process stands in its life.
    pub(super) phase: ProcessPhase,
}

/// What the runner knows of a worker beside the core.
pub(super) struct Seen {
    /// Where its living task was last seen.
    pub(super) sighting: Option<Sighting>,
    /// How long it may be silent, unless its phase says otherwise.
    pub(super) budget: Duration,
    /// How long its last restart took, without the backoff.
    pub(super) last_restart: Option<Duration>,
}

/// Takes the picture. `seen` stands in the order of the core's workers; `hung` names critical ones.
pub(super) fn take(
    moment: &Moment,
    core: &Core,
    seen: &[Seen],
    hung: Vec<&'static str>,
    bus: &BusPicture,
    identity: &Identity,
) -> Health {
    let workers: Vec<WorkerHealth> = core
        .workers()
        .iter()
        .zip(seen)
        .map(|(worker, seen)| worker_health(moment, core, worker, seen))
        .collect();
    let lost = lost(&workers, bus);
    let reasons = reasons(&workers, moment.phase, bus);
    let drain_left = core.drain_deadline().map(|deadline| deadline.saturating_sub(moment.at));
    Health {
        system_mode: if lost.is_empty() { SystemMode::Operational } else { SystemMode::Degraded },
        lost,
        phase: moment.phase,
        ready: reasons.is_empty(),
        reasons,
        hung: hung.into_iter().map(str::to_owned).collect(),
        drain_left_s: drain_left.map(|left| left.as_secs_f64()),
        uptime_s: moment.at.as_secs_f64(),
        version: identity.version.clone(),
        log: identity.log.clone(),
        workers,
        breakers: bus.breakers.clone(),
        lanes: bus.lanes.clone(),
        keys: bus.keys.clone(),
        leases: bus.leases.clone(),
        at: Instant::now(),
    }
}

fn worker_health(moment: &Moment, core: &Core, worker: &Worker, seen: &Seen) -> WorkerHealth {
    let (state, backoff) = match worker.life {
        Life::Planned => (WorkerState::Starting, Duration::ZERO),
        Life::Running { .. } | Life::Stopping => (WorkerState::Running, Duration::ZERO),
        Life::Ending { .. } => (WorkerState::BackingOff, Duration::ZERO),
        Life::BackingOff { until } => (WorkerState::BackingOff, until.saturating_sub(moment.at)),
        Life::Parked => (WorkerState::Parked, Duration::ZERO),
        Life::Stopped => (WorkerState::Stopped, Duration::ZERO),
    };
    let restart = |(at, cause): &(Duration, Cause)| RecentRestart {
        uptime_s: at.as_secs_f64(),
        unix_ms: unix_ms(moment.began + *at),
        reason: cause.to_string(),
        causes: cause.chain(),
    };
    let name_of = |id: &usize| core.workers()[*id].spec.name.to_owned();
    let sighting = seen.sighting.as_ref();
    let budget = sighting.map(|sighting| sighting.budget.unwrap_or(seen.budget));
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    WorkerHealth {
        name: worker.spec.name.to_owned(),
        state,
        critical: worker.spec.criticality == Criticality::Critical,
        restarts: worker.restarts,
        backoff_s: backoff.as_secs_f64(),
        last_error: match &worker.life {
            // Known from when it was told to end, not only from when it has.
            Life::Ending { cause, .. } => Some(cause.to_string()),
            _ => worker.reasons.back().map(|(_, cause)| cause.to_string()),
        },
        recent_restarts: worker.reasons.iter().map(restart).collect(),
        heartbeat_age_ms: sighting.map(|sighting| millis(sighting.age_at(Instant::now()))),
        last_phase: sighting.map(|sighting| sighting.phase.to_owned()),
        last_about: sighting.and_then(|sighting| sighting.about.clone()),
        heartbeat_budget_ms: budget.map(millis),
        last_restart_ms: seen.last_restart.map(|took| took.as_secs_f64() * 1e3),
        function: worker.spec.function.to_owned(),
        depends_on: worker.spec.depends_on.iter().map(name_of).collect(),
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lost(workers: &[WorkerHealth], bus: &BusPicture) -> Vec<String> {
    let down = workers.iter().filter_map(|worker| {
        let word = match worker.state {
            WorkerState::Parked => "is parked",
            WorkerState::BackingOff => "is being restarted",
            WorkerState::Starting | WorkerState::Running | WorkerState::Stopped => return None,
        };
        let reason = worker.last_error.as_deref().unwrap_or("unknown reason");
        let what = format!("{} {word}: {reason}", worker.name);
        let function = worker.function.as_str();
        Some(if function.is_empty() { what } else { format!("{function}: {what}") })
    });
    let log = bus.failure.iter().map(|failure| format!("the log does not answer: {failure}"));
    down.chain(log).chain(bus.paused.iter().cloned()).collect()
}

fn reasons(workers: &[WorkerHealth], phase: ProcessPhase, bus: &BusPicture) -> Vec<String> {
    let mut reasons = match phase {
        ProcessPhase::Booting => vec!["the service is booting".to_owned()],
        ProcessPhase::Draining => vec!["the service is stopping".to_owned()],
        ProcessPhase::Running => Vec::new(),
    };
    for worker in workers.iter().filter(|worker| worker.critical) {
        if worker.state != WorkerState::Running && phase == ProcessPhase::Running {
            let error = worker.last_error.as_deref().unwrap_or("not started");
            reasons.push(format!("critical worker {} does not run: {error}", worker.name));
        }
    }
    reasons.extend(bus.failure.iter().map(|failure| format!("the log does not answer: {failure}")));
    reasons
}

//! The core against tables and random failure histories.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn core(specs: &[(Criticality, u8)]) -> Core {
    let mut core = Core::new(RestartPolicy::default(), Duration::from_secs(10));
    for (criticality, stop_group) in specs {
        let depends_on = if core.workers.is_empty() { vec![] } else { vec![0] };
        core.add(Spec {
            name: "w",
            criticality: *criticality,
            depends_on,
            stop_group: *stop_group,
            function: "",
        });
    }
    for id in 0..specs.len() {
        assert_eq!(core.handle(Duration::ZERO, 0.5, Event::Boot(id)), [Effect::Start(id)]);
    }
    core
}

fn fail(core: &mut Core, at: Duration, id: WorkerId) -> Vec<Effect> {
    core.handle(at, 1.0, Event::Ended(id, Cause::Failed(vec!["x".into()])))
}

#[test]
fn a_failed_worker_comes_back_and_its_dependants_are_told() {
    let mut core = core(&[(Criticality::Critical, 0), (Criticality::Parkable, 1)]);
    let delay = Duration::from_millis(100);
    assert_eq!(fail(&mut core, SECOND, 0), [Effect::BacksOff(0, delay)]);
    assert_eq!(core.deadline(), Some(SECOND + delay));
    assert_eq!(core.handle(SECOND + delay / 2, 0.5, Event::Tick), []);
    let effects = core.handle(SECOND + delay, 0.5, Event::Tick);
    assert_eq!(effects, [Effect::Start(0), Effect::Tell { worker: 1, restarted: 0 }]);
    assert_eq!(core.workers()[0].restarts, 1);
}

#[test]
fn returning_counts_as_failing() {
    let mut core = core(&[(Criticality::Parkable, 0)]);
    let effects = core.handle(SECOND, 0.0, Event::Ended(0, Cause::Returned));
    assert_eq!(effects, [Effect::BacksOff(0, Duration::ZERO)]);
    assert_eq!(core.workers()[0].reasons.back(), Some(&(SECOND, Cause::Returned)));
}

/// Fails worker 0 until it gives up, and returns the last effects.
fn exhaust(core: &mut Core) -> Vec<Effect> {
    let mut at = SECOND;
    loop {
        let effects = core.handle(at, 0.0, Event::Ended(0, Cause::Panicked("p".into())));
        if !matches!(effects[..], [Effect::BacksOff(..)]) {
            return effects;
        }
        core.handle(at, 0.0, Event::Tick);
        at += Duration::from_millis(10);
    }
}

#[test]
fn a_hopeless_worker_is_parked_until_an_operator_revives_it() {
    let mut core = core(&[(Criticality::Parkable, 0)]);
    assert_eq!(exhaust(&mut core), [Effect::Park(0)]);
    assert_eq!(core.workers()[0].restarts, 5);
    assert_eq!(core.deadline(), None);
    assert_eq!(core.handle(SECOND * 3600, 0.0, Event::Tick), []);
    assert_eq!(core.handle(SECOND * 3600, 0.0, Event::Restart(0)), [Effect::Start(0)]);
}

#[test]
fn a_hopeless_critical_worker_stops_the_service_in_order() {
    let mut core =
        core(&[(Criticality::Critical, 5), (Criticality::Parkable, 0), (Criticality::Parkable, 3)]);
    assert_eq!(exhaust(&mut core), [Effect::Escalate(0), Effect::Cancel(2)]);
    let at = SECOND * 2;
    assert_eq!(core.handle(at, 0.0, Event::Ended(2, Cause::Returned)), [Effect::Cancel(1)]);
    let last = core.handle(at, 0.0, Event::Ended(1, Cause::Returned));
    assert_eq!(last, [Effect::Leave(Exit::Software)]);
}

#[test]
fn a_hung_worker_is_cancelled_then_aborted_then_abandoned() {
    let mut core = core(&[(Criticality::Parkable, 0)]);
    let overdue = Event::Overdue {
        worker: 0,
        phase: "handling",
        about: Some("1-0".into()),
        age: SECOND * 11,
    };
    assert_eq!(core.handle(SECOND, 0.0, overdue.clone()), [Effect::Cancel(0)]);
    assert_eq!(core.handle(SECOND, 0.0, overdue), [], "it is being ended already");
    assert_eq!(core.handle(SECOND + END_GRACE, 0.0, Event::Tick), [Effect::Abort(0)]);
    let effects = core.handle(SECOND + END_GRACE * 2, 0.0, Event::Tick);
    assert_eq!(effects, [Effect::Abandon(0), Effect::BacksOff(0, Duration::ZERO)]);
    let (_, cause) = core.workers()[0].reasons.back().unwrap();
    assert_eq!(
        cause.to_string(),
        "hung: last seen in phase \"handling\" 11.0 s ago, working on 1-0"
    );
}

#[test]
fn the_drain_ends_by_its_deadline_and_a_second_stop_ends_it_at_once() {
    for second in [Event::Tick, Event::Stop(Exit::Clean)] {
        let mut core = core(&[(Criticality::Critical, 0), (Criticality::Critical, 1)]);
        assert_eq!(core.handle(SECOND, 0.0, Event::Stop(Exit::Clean)), [Effect::Cancel(1)]);
        assert_eq!(core.deadline(), Some(SECOND * 11));
        let effects = core.handle(SECOND * 11, 0.0, second);
        let expected = [Effect::Abort(0), Effect::Abort(1), Effect::Leave(Exit::Software)];
        assert_eq!(effects, expected);
    }
}

#[test]
fn only_the_last_ten_reasons_are_kept() {
    let mut core = core(&[(Criticality::Parkable, 0)]);
    for n in 0..20 {
        let at = SECOND * 100 * n;
        fail(&mut core, at, 0);
        core.handle(at + SECOND, 0.0, Event::Tick);
    }
    assert_eq!(core.workers()[0].reasons.len(), REASONS_KEPT);
    assert_eq!(core.workers()[0].reasons[0].0, SECOND * 1000);
}

#[test]
fn an_operator_parks_what_runs_waits_or_ends_but_nothing_critical() {
    let mut core = core(&[(Criticality::Critical, 0), (Criticality::Parkable, 0)]);
    assert_eq!(core.handle(SECOND, 0.0, Event::Park(0)), []);
    assert_eq!(core.handle(SECOND, 0.0, Event::Park(1)), [Effect::Cancel(1)]);
    assert_eq!(core.handle(SECOND, 0.0, Event::Ended(1, Cause::Returned)), [Effect::Park(1)]);
    assert_eq!(core.workers()[1].reasons.back(), Some(&(SECOND, Cause::Parked)));
    assert_eq!(core.handle(SECOND * 3600, 0.0, Event::Tick), []);
    assert_eq!(core.handle(SECOND * 3600, 0.0, Event::Restart(1)), [Effect::Start(1)]);

    let at = SECOND * 3601;
    assert!(matches!(fail(&mut core, at, 1)[..], [Effect::BacksOff(1, _)]));
    assert_eq!(core.handle(at, 0.0, Event::Park(1)), [Effect::Park(1)]);
    assert_eq!(core.deadline(), None, "it does not come back by itself");

    core.handle(at, 0.0, Event::Restart(1));
    core.handle(at, 0.0, Event::Restart(1));
    assert_eq!(core.handle(at, 0.0, Event::Park(1)), [], "it ends already; the last wish counts");
    assert_eq!(core.handle(at, 0.0, Event::Ended(1, Cause::Returned)), [Effect::Park(1)]);
}

#[test]
fn an_operators_park_keeps_why_the_worker_was_being_ended() {
    let mut core = core(&[(Criticality::Parkable, 0)]);
    let (phase, about, age) = ("handling", None, SECOND * 11);
    core.handle(SECOND, 0.0, Event::Overdue { worker: 0, phase, about: about.clone(), age });
    core.handle(SECOND, 0.0, Event::Park(0));
    assert_eq!(core.handle(SECOND + END_GRACE, 0.0, Event::Tick), [Effect::Abort(0)]);
    let effects = core.handle(SECOND + END_GRACE * 2, 0.0, Event::Tick);
    assert_eq!(effects, [Effect::Abandon(0), Effect::Park(0)]);
    let reasons: Vec<&Cause> = core.workers()[0].reasons.iter().map(|(_, cause)| cause).collect();
    assert_eq!(reasons, [&Cause::Hung { phase, about, age }, &Cause::Parked]);
}

const DRAIN: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_secs(60);
const WORKERS_MAX: usize = 6;

/// What the world does to the core.
#[derive(Debug, Clone)]
enum Step {
    Boot(usize),
    /// The worker's task ends; without one, the same event comes out of nowhere.
    End(usize, Cause),
    Hang(usize),
    Restart(usize),
    Park(usize),
    Stop(Exit),
    /// Time passes, and the core is told each time that it asked for.
    Pass(u64),
    /// A tick that nobody asked for.
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let worker = 0..WORKERS_MAX;
    let cause = prop_oneof![
        Just(Cause::Returned),
        Just(Cause::Failed(vec!["a".into(), "b".into()])),
        Just(Cause::Panicked("p".into())),
    ];
    let exit = prop_oneof![Just(Exit::Clean), Just(Exit::Unavailable)];
    prop_oneof![
        4 => worker.clone().prop_map(Step::Boot),
        16 => (worker.clone(), cause).prop_map(|(worker, cause)| Step::End(worker, cause)),
        6 => worker.clone().prop_map(Step::Hang),
        3 => worker.clone().prop_map(Step::Restart),
        3 => worker.prop_map(Step::Park),
        1 => exit.prop_map(Step::Stop),
        12 => (0_u64..20_000).prop_map(Step::Pass),
        4 => (0_u64..400).prop_map(Step::Pass),
        2 => Just(Step::Tick),
    ]
}

/// A world that carries out effects and checks each against the rules.
struct World {
    core: Core,
    now: Duration,
    /// Whether a task of the worker is alive.
    alive: Vec<bool>,
    /// Whether the worker was ever started.
    booted: Vec<bool>,
    /// Restarts of each worker since an operator last touched it.
    restarts: Vec<Vec<Duration>>,
    /// Who may be started by an operator only.
    parked: Vec<bool>,
    /// When the stop began, by whomever.
    stopping: Option<Duration>,
    left: Option<Duration>,
}

impl World {
    fn new(specs: &[(Criticality, u8, Vec<WorkerId>)]) -> Self {
        let mut core = Core::new(RestartPolicy::default(), DRAIN);
        for (criticality, stop_group, depends_on) in specs {
            core.add(Spec {
                name: "w",
                criticality: *criticality,
                depends_on: depends_on.clone(),
                stop_group: *stop_group,
                function: "",
            });
        }
        let count = specs.len();
        Self {
            core,
            now: Duration::ZERO,
            alive: vec![false; count],
            booted: vec![false; count],
            restarts: vec![vec![]; count],
            parked: vec![false; count],
            stopping: None,
            left: None,
        }
    }

    fn take(&mut self, jitter: f64, event: Event) -> Result<(), TestCaseError> {
        let was_stopping = self.core.is_draining();
        if let Event::Restart(id) = event
            && !was_stopping
        {
            self.restarts[id].clear();
            self.parked[id] = false;
        }
        let effects = self.core.handle(self.now, jitter, event.clone());
        if self.core.is_draining() {
            self.stopping.get_or_insert(self.now);
        }
        for effect in effects {
            prop_assert!(self.left.is_none(), "{effect:?} after leaving");
            self.carry_out(&effect, &event, was_stopping)?;
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        effect: &Effect,
        event: &Event,
        was_stopping: bool,
    ) -> Result<(), TestCaseError> {
        match *effect {
            Effect::Start(id) => {
                prop_assert!(!self.alive[id], "{id} has two tasks");
                prop_assert!(!self.parked[id], "{id} was parked");
                prop_assert!(!was_stopping, "{id} started while stopping");
                self.alive[id] = true;
                let is_first = !std::mem::replace(&mut self.booted[id], true);
                prop_assert_eq!(is_first, matches!(event, Event::Boot(_)));
                if is_first {
                    return Ok(());
                }
                let now = self.now;
                self.restarts[id].push(now);
                let recent = self.restarts[id].iter().filter(|at| **at + WINDOW > now).count();
                let policy = RestartPolicy::default();
                // One of them may be the operator's own, which is not counted.
                prop_assert!(recent <= policy.restarts_max + 1, "{id}: {recent} in {WINDOW:?}");
            }
            Effect::Cancel(id) => {
                prop_assert!(self.alive[id], "nothing to cancel of {id}");
                if self.core.is_draining() {
                    let group = |id: usize| self.core.workers()[id].spec.stop_group;
                    let higher = (0..self.alive.len())
                        .find(|other| self.alive[*other] && group(*other) > group(id));
                    prop_assert_eq!(higher, None, "a higher group still runs");
                }
            }
            Effect::Abort(id) => {
                prop_assert!(self.alive[id], "nothing to abort of {id}");
                // While the service runs its end is reported later; at the end nobody waits for it.
                self.alive[id] = !self.core.is_draining();
            }
            Effect::Abandon(id) => {
                prop_assert!(self.alive[id], "nothing to abandon of {id}");
                self.alive[id] = false;
            }
            Effect::Park(id) => {
                prop_assert!(!self.alive[id]);
                prop_assert_eq!(self.core.workers()[id].spec.criticality, Criticality::Parkable);
                self.parked[id] = true;
            }
            Effect::Escalate(id) => {
                prop_assert!(!self.alive[id]);
                prop_assert_eq!(self.core.workers()[id].spec.criticality, Criticality::Critical);
                prop_assert!(self.core.is_draining(), "an escalation stops the service");
            }
            Effect::Leave(_) => {
                prop_assert!(self.alive.iter().all(|alive| !alive), "left with tasks alive");
                let began = self.stopping.expect("a stop has begun");
                prop_assert!(self.now <= began + DRAIN, "the stop took too long");
                self.left = Some(self.now);
            }
            Effect::BacksOff(id, delay) => {
                prop_assert!(!self.alive[id]);
                prop_assert!(delay <= RestartPolicy::default().delay_max);
            }
            Effect::Tell { worker, restarted } => {
                prop_assert!(self.alive[worker], "{worker} has no task that could be told");
                prop_assert!(self.core.workers()[worker].spec.depends_on.contains(&restarted));
            }
        }
        Ok(())
    }

    /// Lets time pass, ticking whenever the core asked for it.
    fn pass(&mut self, until: Duration, jitter: f64) -> Result<(), TestCaseError> {
        while let Some(deadline) = self.core.deadline().filter(|deadline| *deadline <= until) {
            self.now = self.now.max(deadline);
            self.take(jitter, Event::Tick)?;
        }
        self.now = until;
        Ok(())
    }

    fn step(&mut self, step: Step, jitter: f64) -> Result<(), TestCaseError> {
        let is_known = |id: &usize| *id < self.alive.len();
        match step {
            Step::Boot(id) if is_known(&id) => self.take(jitter, Event::Boot(id))?,
            Step::End(id, cause) if is_known(&id) => {
                let was_alive = std::mem::replace(&mut self.alive[id], false);
                let before = self.core.workers()[id].life.clone();
                self.take(jitter, Event::Ended(id, cause))?;
                if !was_alive {
                    prop_assert_eq!(&self.core.workers()[id].life, &before);
                }
            }
            Step::Hang(id) if is_known(&id) => {
                let (phase, about, age) = ("p", Some("1-0".into()), Duration::from_secs(11));
                self.take(jitter, Event::Overdue { worker: id, phase, about, age })?;
            }
            Step::Restart(id) if is_known(&id) => self.take(jitter, Event::Restart(id))?,
            Step::Park(id) if is_known(&id) => self.take(jitter, Event::Park(id))?,
            Step::Stop(exit) => self.take(jitter, Event::Stop(exit))?,
            Step::Pass(ms) => self.pass(self.now + Duration::from_millis(ms), jitter)?,
            Step::Tick => self.take(jitter, Event::Tick)?,
            Step::Boot(_) | Step::End(..) | Step::Hang(_) | Step::Restart(_) | Step::Park(_) => {}
        }
        for worker in self.core.workers() {
            prop_assert!(worker.reasons.len() <= REASONS_KEPT);
        }
        Ok(())
    }
}

/// Workers of any kind, each depending on some that stand above it.
fn specs() -> impl Strategy<Value = Vec<(Criticality, u8, Vec<WorkerId>)>> {
    let criticality = prop_oneof![
        1 => Just(Criticality::Critical),
        2 => Just(Criticality::Parkable),
    ];
    let spec = (criticality, 0_u8..4, any::<u8>());
    prop::collection::vec(spec, 1..=WORKERS_MAX).prop_map(|specs| {
        let row = |(id, (criticality, group, depends)): (usize, (Criticality, u8, u8))| {
            let depends_on = (0..id).filter(|above| depends & (1 << above) != 0).collect();
            (criticality, group, depends_on)
        };
        specs.into_iter().enumerate().map(row).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// For random histories the core never exceeds the intensity of any worker; never restarts a
    /// parked one unless an operator asks; never has two tasks of one; tells, cancels, aborts and
    /// abandons only what has a task; stops in the order of the groups; and a stop, by whomever,
    /// leaves exactly once and within the drain's time.
    #[test]
    fn random_histories_keep_the_rules(
        specs in specs(),
        steps in prop::collection::vec((step(), 0.0_f64..=1.0), 1..160),
    ) {
        let mut world = World::new(&specs);
        for (step, jitter) in steps {
            world.step(step, jitter)?;
        }
        if !world.core.is_draining() {
            world.take(0.5, Event::Stop(Exit::Clean))?;
        }
        world.pass(world.now + DRAIN, 0.5)?;
        prop_assert!(world.left.is_some(), "the service never ended");
        // Nothing that comes after the end has any effect.
        for id in 0..specs.len() {
            for step in [Step::Boot(id), Step::Restart(id), Step::Park(id), Step::Hang(id)] {
                world.step(step, 0.5)?;
            }
        }
        world.step(Step::Stop(Exit::Clean), 0.5)?;
        world.pass(world.now + WINDOW, 0.5)?;
    }

    /// However often and at whatever pace a worker fails while nobody looks after it, it is started
    /// at most `restarts_max` times within any window, and once it has given up never again.
    #[test]
    fn the_intensity_holds_in_every_window(
        gaps in prop::collection::vec((0_u64..90_000, 0.0_f64..=1.0), 1..80),
    ) {
        let mut core = core(&[(Criticality::Parkable, 0)]);
        let (mut now, mut starts, mut gave_up) = (Duration::ZERO, Vec::new(), false);
        for (ran_ms, jitter) in gaps {
            now += Duration::from_millis(ran_ms);
            let effects = core.handle(now, jitter, Event::Ended(0, Cause::Returned));
            gave_up |= effects == [Effect::Park(0)];
            if let Some(deadline) = core.deadline() {
                prop_assert!(!gave_up);
                now = deadline;
                prop_assert_eq!(core.handle(now, 0.0, Event::Tick), [Effect::Start(0)]);
                starts.push(now);
            }
        }
        for start in &starts {
            let inside = starts.iter().filter(|at| *at >= start && **at < *start + WINDOW);
            prop_assert!(inside.count() <= RestartPolicy::default().restarts_max);
        }
    }
}

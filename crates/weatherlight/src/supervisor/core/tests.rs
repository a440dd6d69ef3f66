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

/// What the world does to the core.
#[derive(Debug, Clone)]
enum Step {
    Fail(usize),
    Hang(usize),
    Restart(usize),
    Pass(u64),
    Stop,
}

fn step(workers: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..workers).prop_map(Step::Fail),
        2 => (0..workers).prop_map(Step::Hang),
        1 => (0..workers).prop_map(Step::Restart),
        6 => (0_u64..20_000).prop_map(Step::Pass),
        1 => Just(Step::Stop),
    ]
}

/// A world that carries out effects and checks each against the rules.
struct World {
    core: Core,
    now: Duration,
    /// Whether a task of the worker is alive.
    alive: Vec<bool>,
    /// Restarts of each worker since an operator last touched it.
    restarts: Vec<Vec<Duration>>,
    parked: Vec<bool>,
    left: Option<Exit>,
}

impl World {
    fn take(&mut self, jitter: f64, event: Event) -> Result<(), TestCaseError> {
        let stopping_before = self.core.is_draining();
        if let Event::Restart(id) = event {
            self.restarts[id].clear();
            self.parked[id] = self.parked[id] && stopping_before;
        }
        for effect in self.core.handle(self.now, jitter, event.clone()) {
            prop_assert!(self.left.is_none(), "{effect:?} after leaving");
            self.carry_out(&effect, stopping_before)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: &Effect, stopping_before: bool) -> Result<(), TestCaseError> {
        match *effect {
            Effect::Start(id) => {
                prop_assert!(!self.alive[id], "{id} has two tasks");
                prop_assert!(!self.parked[id], "{id} was parked");
                prop_assert!(!stopping_before, "{id} started while stopping");
                self.alive[id] = true;
                let (now, window) = (self.now, Duration::from_secs(60));
                self.restarts[id].push(now);
                let recent = self.restarts[id].iter().filter(|at| **at + window > now).count();
                // One of them may be the first start, or the operator's.
                prop_assert!(recent <= 6, "{id} started {recent} times within {window:?}");
            }
            Effect::Cancel(id) => {
                prop_assert!(self.alive[id]);
                if self.core.is_draining() {
                    let group = |id: usize| self.core.workers()[id].spec.stop_group;
                    let higher = (0..self.alive.len())
                        .find(|other| self.alive[*other] && group(*other) > group(id));
                    prop_assert_eq!(higher, None, "a higher group still runs");
                }
            }
            Effect::Abort(id) | Effect::Abandon(id) => {
                prop_assert!(self.alive[id]);
                self.alive[id] = matches!(effect, Effect::Abort(_))
                    && self.left.is_none()
                    && !self.core.is_draining();
            }
            Effect::Park(id) | Effect::Escalate(id) => {
                prop_assert!(!self.alive[id]);
                self.parked[id] = true;
            }
            Effect::Leave(exit) => {
                prop_assert!(self.alive.iter().all(|alive| !alive), "left with tasks alive");
                self.left = Some(exit);
            }
            Effect::BacksOff(id, _) => prop_assert!(!self.alive[id]),
            Effect::Tell { .. } => {}
        }
        Ok(())
    }

    /// Lets time pass, ticking whenever the core asked for it.
    fn pass(&mut self, until: Duration) -> Result<(), TestCaseError> {
        while let Some(deadline) = self.core.deadline().filter(|deadline| *deadline <= until) {
            self.now = self.now.max(deadline);
            self.take(0.5, Event::Tick)?;
        }
        self.now = until;
        Ok(())
    }

    fn end(&mut self, id: usize) -> Result<(), TestCaseError> {
        self.alive[id] = false;
        self.take(0.3, Event::Ended(id, Cause::Failed(vec!["random".into()])))
    }
}

proptest! {
    /// For random failure histories the core never exceeds the intensity, never restarts a parked
    /// worker, never has two tasks of one worker, always stops in order, and always ends.
    #[test]
    fn random_failure_histories_keep_the_rules(
        specs in prop::collection::vec((any::<bool>(), 0_u8..4), 1..6),
        steps in prop::collection::vec(step(5), 1..120),
    ) {
        let specs: Vec<_> = specs
            .iter()
            .map(|(critical, group)| {
                (if *critical { Criticality::Critical } else { Criticality::Parkable }, *group)
            })
            .collect();
        let count = specs.len();
        let mut world = World {
            core: core(&specs),
            now: Duration::ZERO,
            alive: vec![true; count],
            restarts: vec![vec![Duration::ZERO]; count],
            parked: vec![false; count],
            left: None,
        };
        for step in steps {
            match step {
                Step::Fail(id) if id < count && world.alive[id] => world.end(id)?,
                Step::Hang(id) if id < count => {
                    let age = Duration::from_secs(11);
                    world.take(0.5, Event::Overdue { worker: id, phase: "p", about: None, age })?;
                }
                Step::Restart(id) if id < count => world.take(0.5, Event::Restart(id))?,
                Step::Pass(ms) => world.pass(world.now + Duration::from_millis(ms))?,
                Step::Stop => world.take(0.5, Event::Stop(Exit::Clean))?,
                _ => {}
            }
        }
        if !world.core.is_draining() {
            world.take(0.5, Event::Stop(Exit::Clean))?;
        }
        world.pass(world.now + Duration::from_secs(11))?;
        prop_assert!(world.left.is_some(), "the service never ended");
    }
}

//! The life of a seed: it advances on evidence over steps, and every way out leads back.

use std::time::Duration;

use kasmina::{
    Config, Effect, FetchFailure, FetchedKernel, Hold, Interface, Life, Limits, Observation, Ramp,
    Validation,
};
use kernel::{Execution, Fallback};
use leyline::Stage;
use leyline::wire::{SeedOperation, TelemetryLevel};

use crate::rig::{Rig, fetched, healthy, limits, moves, rig, rig_with, s1};

const EMBARGO: Duration = Duration::from_secs(30);

/// Weakness 58: one command ran through every stage at once.
#[test]
fn a_seed_grows_step_by_step_until_it_is_kept() {
    let mut rig = rig();
    let order = rig.germinate();
    assert_eq!((order.seed.as_str(), order.blueprint.as_str()), ("s1", "BP009"));
    assert_eq!(order.shape, [32]);
    let effects = rig.answer(&order, Ok(()));
    assert!(matches!(&effects[0], Effect::Attach { seed, .. } if *seed == s1()));
    assert_eq!(moves(&effects), [Stage::Training]);
    assert_eq!(rig.manager.host_alpha(&s1()), 0.0);
    assert_eq!(rig.step_until(Stage::Blending), 5);
    let ramp = Ramp::default();
    for step in 1..20 {
        assert_eq!(rig.stage(), Stage::Blending);
        assert_eq!(rig.manager.host_alpha(&s1()), ramp.alpha(step), "step {step}");
        rig.step(healthy());
    }
    assert_eq!(rig.stage(), Stage::Shadowing);
    assert_eq!(rig.manager.host_alpha(&s1()), 0.0, "probed, inert to the host");
    assert_eq!(rig.step_until(Stage::Probationary), 3);
    assert_eq!(rig.manager.host_alpha(&s1()), 1.0);
    assert_eq!(rig.step_until(Stage::Fossilized), 2);
    rig.wait(Duration::from_secs(3600));
    assert_eq!(rig.stage(), Stage::Fossilized);
    assert!(rig.operate(SeedOperation::SeedOpCull).is_err(), "what is kept is kept");
}

/// What its forge found wrong to plan is attached, told of once and counted.
#[test]
fn a_kernel_that_the_interpreter_must_run_is_told_of_once() {
    let told = |rig: &mut Rig| {
        let fallback = ("interpreter_fallback".to_owned(), TelemetryLevel::Warning);
        rig.events().iter().filter(|event| **event == fallback).count()
    };
    let mut planned = Rig::grown_to(Stage::Training);
    assert_eq!((told(&mut planned), planned.metrics.interpreted_total()), (0, 0));

    let mut rig = rig();
    let order = rig.germinate();
    let reason = Fallback::Asked { reason: "its plan is not its graph".to_owned() };
    let execution = Execution::Interpreter { reason };
    let kernel = FetchedKernel { execution: execution.clone(), ..fetched(&order, 32) };
    let effects = rig.hand(&order, Ok(kernel));
    let Effect::Attach { kernel, .. } = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(kernel.execution, execution);
    rig.step_until(Stage::Fossilized);
    assert_eq!((told(&mut rig), rig.metrics.interpreted_total()), (1, 1));
}

/// The coordinator hands over only what fits; whoever else does is held to it.
#[test]
fn a_kernel_for_another_slot_is_never_attached() {
    let mut rig = rig();
    let order = rig.germinate();
    let effects = rig.hand(&order, Ok(fetched(&order, 16)));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Attach { .. })), "{effects:?}");
    let Life::Embargoed { rollback, .. } = rig.manager.seed(&s1()).unwrap().life().clone() else {
        panic!("{:?}", rig.stage());
    };
    assert_eq!(rollback.reason, "incompatible_site");
}

/// Every pair of stages: a move to any stage is made exactly when the contract has that edge and
/// the operation for it, and is otherwise refused without effect.
#[test]
fn operations_move_along_edges_and_nowhere_else() {
    use SeedOperation as Op;
    let operations = [
        (Op::SeedOpGerminate, Stage::Germinated),
        (Op::SeedOpStartTraining, Stage::Training),
        (Op::SeedOpStartGrafting, Stage::Blending),
        (Op::SeedOpStabilize, Stage::Shadowing),
        (Op::SeedOpEvaluate, Stage::Probationary),
        (Op::SeedOpFossilize, Stage::Fossilized),
    ];
    for from in [
        Stage::Dormant,
        Stage::Germinated,
        Stage::Training,
        Stage::Blending,
        Stage::Shadowing,
        Stage::Probationary,
        Stage::Fossilized,
    ] {
        for (operation, to) in operations {
            let mut rig = Rig::grown_to(from);
            let outcome = rig.operate(operation);
            // Only germination's gate is complete so early; the others want evidence first.
            let moved = from == Stage::Dormant && to == Stage::Germinated;
            assert_eq!(outcome.is_ok(), moved, "{operation:?} on {from:?}: {outcome:?}");
            assert_eq!(rig.stage(), if moved { to } else { from });
            if from.edge(to).is_some() && !moved && from != Stage::Germinated {
                let error = outcome.unwrap_err().to_string();
                assert!(error.contains("not ready"), "{operation:?} on {from:?}: {error}");
            }
        }
        let mut rig = Rig::grown_to(from);
        let culled = rig.operate(Op::SeedOpCull);
        assert_eq!(culled.is_ok(), from.edge(Stage::Culled).is_some(), "cull on {from:?}");
    }
}

/// Weakness 60: a second germination swapped the kernel of a live seed.
#[test]
fn a_live_seed_is_not_germinated_again() {
    let mut rig = Rig::grown_to(Stage::Probationary);
    let before = rig.manager.seed(&s1()).unwrap().life().clone();
    let error = rig.operate(SeedOperation::SeedOpGerminate).unwrap_err();
    assert_eq!(error.to_string(), "seed s1: a seed cannot go from probationary to germinated");
    assert_eq!(rig.manager.seed(&s1()).unwrap().life(), &before);
    assert!(rig.orders.try_recv().is_err());
}

/// Weaknesses 59 and 66: nothing guarded the way to FOSSILIZED.
#[test]
fn a_seed_that_does_not_help_is_culled() {
    let mut rig = Rig::grown_to(Stage::Probationary);
    let seen =
        Observation { validation: Some(Validation { loss: 0.75, accuracy: 0.5 }), ..healthy() };
    assert!(rig.step(seen).is_empty());
    let effects = rig.step(seen);
    assert_eq!(moves(&effects), [Stage::Culled, Stage::Embargoed]);
    let detached = effects.iter().find_map(|effect| match effect {
        Effect::Detach { rollback, .. } => Some(rollback.clone()),
        _ => None,
    });
    let rollback = detached.unwrap();
    assert_eq!(rollback.stage, Stage::Probationary);
    assert_eq!(rollback.reason, "validation loss 0.7500 is no improvement on 0.7000");
    assert!(rollback.artifact.is_some());
    assert_eq!(rig.manager.host_alpha(&s1()), 0.0);
}

/// Weakness 61, end of cascade 2: the embargo never ended and the slot was lost.
#[test]
fn an_embargo_ends_and_the_slot_is_clean() {
    let mut rig = Rig::grown_to(Stage::Blending);
    rig.manager.set_snapshot(&s1(), "step 7");
    let effects = rig.manager.fail(&s1(), "plan failed", rig.now);
    assert_eq!(moves(&effects), [Stage::Culled, Stage::Embargoed]);
    assert!(rig.wait(EMBARGO - Duration::from_millis(1)).is_empty());
    let effects = rig.wait(Duration::from_millis(1));
    assert_eq!(moves(&effects), [Stage::Resetting, Stage::Dormant]);
    let seed = rig.manager.seed(&s1()).unwrap();
    assert_eq!((seed.evidence().violations, seed.snapshot.clone()), (0, None));
    assert_eq!(rig.manager.owner_of("s1/w.weight"), None);
    rig.germinate();
    assert_eq!(rig.stage(), Stage::Germinated);
}

#[test]
fn retiring_frees_the_slot_at_once() {
    let mut rig = Rig::grown_to(Stage::Training);
    assert!(rig.manager.may_update(&s1(), &["s1/w.weight".to_owned(), "s1/w.bias".to_owned()]));
    assert!(!rig.manager.may_update(&s1(), &["host/w".to_owned()]));
    let effects = rig.operate(SeedOperation::SeedOpCancel).unwrap();
    let expected = [Stage::Culled, Stage::Embargoed, Stage::Resetting, Stage::Dormant];
    assert_eq!(moves(&effects), expected);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Detach { .. })));
    rig.germinate();
}

fn check_turned_back(stage: Stage, seen: Observation, reason: &str) {
    let mut rig = Rig::grown_to(stage);
    for _ in 0..30 {
        for effect in rig.step(seen) {
            if let Effect::Detach { rollback, .. } = effect {
                assert_eq!((rollback.stage, rollback.reason.as_str()), (stage, reason));
                return;
            }
        }
    }
    panic!("{stage:?} was not turned back");
}

#[test]
fn each_gate_turns_back_what_it_guards_against() {
    let with = |change: fn(&mut Observation)| {
        let mut seen = healthy();
        change(&mut seen);
        seen
    };
    let nan = with(|seen| seen.loss = Some(f64::NAN));
    for stage in [Stage::Training, Stage::Blending, Stage::Shadowing, Stage::Probationary] {
        check_turned_back(stage, nan, "1 measures were no finite number");
    }
    let leak = with(|seen| seen.host_gradient_norm = Some(1e-3));
    check_turned_back(Stage::Training, leak, "gradient isolation violations present");
    let vanished = with(|seen| seen.gradient_norm = Some(0.0));
    // The steps before entered the range too, so a fresh stage is needed: dwell begins at TRAINING.
    check_turned_back(Stage::Training, vanished, "gradient norm 0e0 vanished");
    let slow = with(|seen| seen.latency_ms = Some(11.0));
    check_turned_back(Stage::Blending, slow, "latency budget exceeded");
    let differs = with(|seen| seen.interface = Some(Interface::Differs));
    check_turned_back(Stage::Shadowing, differs, "interface checks incomplete");
}

/// Weakness 64: a slow fetch was held against the kernel's stability.
#[test]
fn a_slow_fetch_is_no_instability() {
    let mut rig = rig();
    let order = rig.germinate();
    rig.wait(Duration::from_secs(100));
    rig.answer(&order, Ok(()));
    rig.step_until(Stage::Shadowing);
}

#[test]
fn a_failed_fetch_says_why_and_frees_the_slot() {
    let mut rig = rig();
    let order = rig.germinate();
    let effects = rig.answer(&order, Err(FetchFailure::MissingArtifact));
    assert_eq!(moves(&effects), [Stage::Culled, Stage::Embargoed]);
    assert!(
        matches!(&effects[1], Effect::Detach { rollback, .. } if rollback.reason == "missing_artifact")
    );
    rig.wait(EMBARGO);
    assert_eq!(rig.stage(), Stage::Dormant);
}

/// Weakness 65, cascade 1: a lost answer left the seed waiting for ever.
#[test]
fn a_fetch_that_never_ends_is_given_up() {
    let mut rig = rig();
    let order = rig.germinate();
    rig.wait(Config::default().fetch_deadline - Duration::from_millis(1));
    assert_eq!(rig.stage(), Stage::Germinated);
    rig.wait(Duration::from_millis(1));
    assert_eq!(rig.stage(), Stage::Embargoed);
    assert!(rig.answer(&order, Ok(())).is_empty(), "too late");
    assert_eq!(rig.stage(), Stage::Embargoed);
}

#[test]
fn an_answer_to_an_earlier_germination_is_dropped() {
    let mut rig = rig();
    let first = rig.germinate();
    rig.operate(SeedOperation::SeedOpCancel).unwrap();
    let second = rig.germinate();
    assert_ne!(first.request, second.request);
    assert!(rig.answer(&first, Ok(())).is_empty());
    assert_eq!(rig.stage(), Stage::Germinated);
    assert!(!rig.answer(&second, Ok(())).is_empty());
}

#[test]
fn a_full_queue_of_orders_does_not_stop_training() {
    let config = Config { limits: limits(), ..Config::default() };
    let mut rig = rig_with(config, 1);
    rig.operate(SeedOperation::SeedOpGerminate).unwrap();
    let other = crate::rig::operation(SeedOperation::SeedOpGerminate, "BP009");
    rig.apply(leyline::wire::CommandType::CommandSeed, Some(other), |command| {
        command.target_seed_id = "s2".to_owned();
    })
    .unwrap();
    assert_eq!(rig.orders.try_recv().unwrap().seed.as_str(), "s1");
    assert!(rig.orders.try_recv().is_err());
    rig.wait(Duration::from_millis(10));
    assert_eq!(rig.orders.try_recv().unwrap().seed.as_str(), "s2");
    rig.wait(Duration::from_millis(10));
    assert!(rig.orders.try_recv().is_err(), "handed over once");
}

/// Weakness 63: two seeds of one template shared an instance and collided.
#[test]
fn two_seeds_of_one_blueprint_own_what_is_theirs() {
    let mut rig = Rig::grown_to(Stage::Training);
    let other = crate::rig::operation(SeedOperation::SeedOpGerminate, "BP009");
    rig.apply(leyline::wire::CommandType::CommandSeed, Some(other), |command| {
        command.target_seed_id = "s2".to_owned();
    })
    .unwrap();
    let order = rig.orders.try_recv().unwrap();
    assert_eq!(moves(&rig.answer(&order, Ok(()))), [Stage::Training]);
    assert!(rig.manager.may_update(&"s2".into(), &["s2/w.weight".to_owned()]));
    assert!(!rig.manager.may_update(&"s2".into(), &["s1/w.weight".to_owned()]));
}

#[test]
fn a_paused_seed_shows_nothing_and_does_not_advance() {
    use leyline::wire::CommandType;
    let mut rig = Rig::grown_to(Stage::Blending);
    let alpha = rig.manager.host_alpha(&s1());
    let effects = rig.apply(CommandType::CommandPause, None, |_| {}).unwrap();
    assert!(matches!(&effects[..], [Effect::Pause(id)] if *id == s1()));
    assert_eq!(rig.manager.seed(&s1()).unwrap().hold, Hold::Paused);
    assert_eq!(rig.manager.host_alpha(&s1()), 0.0);
    for _ in 0..50 {
        assert!(rig.step(healthy()).is_empty());
    }
    let resume = |command: &mut leyline::wire::AdaptationCommand| {
        command.annotations.insert("resume".to_owned(), "true".to_owned());
        command.target_seed_id = "all".to_owned();
    };
    let effects = rig.apply(CommandType::CommandPause, None, resume).unwrap();
    assert!(matches!(&effects[..], [Effect::Resume(id)] if *id == s1()));
    assert_eq!(rig.manager.host_alpha(&s1()), alpha);
    rig.step_until(Stage::Shadowing);
}

#[test]
fn evidence_that_never_comes_does_not_keep_a_slot() {
    let limits = Limits { stage_steps_max: 50, ..limits() };
    let mut rig = rig_with(Config { limits, ..Config::default() }, 8);
    let order = rig.germinate();
    rig.answer(&order, Ok(()));
    for _ in 0..50 {
        rig.step(Observation::default());
    }
    assert_eq!(rig.stage(), Stage::Embargoed);
}

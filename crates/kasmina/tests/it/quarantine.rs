//! A seed with a stressor is germinated only into quarantine: it is turned back at G1 with what was found, its slot is
//! embargoed, and nothing is ever attached.

use std::sync::Arc;
use std::time::Duration;

use kasmina::gates::{Verdict, check};
use kasmina::quarantine::{Handling, evidence, handling};
use kasmina::{
    Config, Effect, Evidence, FetchFailure, FetchOrder, Fetched, GateFailure, Life, Limits,
};
use kernel::quarantine::{Budget, Finding, Report, Subject, run};
use leyline::wire::{SeedOperation, TelemetryLevel};
use leyline::{Gate, Stage};

use crate::rig::{Rig, rig, s1};

/// Each stressor with the reason for which it is caught.
const STRESSORS: [(&str, &str); 8] = [
    ("BP043", "gradient_exploded"),
    ("BP044", "gradient_vanished"),
    ("BP045", "not_finite"),
    ("BP046", "too_slow"),
    ("BP047", "memory_grew"),
    ("BP048", "deadlocked"),
    ("BP049", "not_repeatable"),
    ("BP050", "harmful"),
];

/// What quarantine makes of a blueprint with the value of its one parameter.
fn report(id: &str, value: f64) -> Report {
    let blueprint = karn::find(&id.into()).unwrap();
    let parameters =
        blueprint.parameters().iter().map(|parameter| (parameter.name, value)).collect();
    run(&Budget::default(), move |permit| {
        let site = karn::Site::Vector { features: 32 };
        let graph = karn::build_in_quarantine(blueprint, &parameters, &site, permit)?;
        Ok(Subject::fresh(graph, 1))
    })
    .unwrap()
}

fn interval(id: &str) -> [f64; 3] {
    let blueprint = karn::find(&id.into()).unwrap();
    let parameter = &blueprint.parameters()[0];
    [parameter.min, parameter.midpoint(), parameter.max]
}

fn germinated(id: &str) -> (Rig, FetchOrder) {
    let mut rig = rig();
    let payload = crate::rig::operation(SeedOperation::SeedOpGerminate, id);
    rig.apply(leyline::wire::CommandType::CommandSeed, Some(payload), |_| {}).unwrap();
    let order = rig.orders.try_recv().unwrap();
    (rig, order)
}

fn answered(rig: &mut Rig, order: &FetchOrder, report: Report) -> Vec<Effect> {
    let result = Err(FetchFailure::Quarantined(Arc::new(report)));
    let (request, seed) = (order.request.clone(), order.seed.clone());
    rig.manager.on_fetched(Fetched { step: None, request, seed, result }, rig.now)
}

#[track_caller]
fn culled(id: &str, value: f64, reason: &str) {
    let (mut rig, order) = germinated(id);
    assert_eq!(rig.stage(), Stage::Germinated);
    let report = report(id, value);
    assert_eq!(report.verdict(), reason, "{id} {value}: {report:?}");
    let finding = report.foremost().unwrap().clone();
    let effects = answered(&mut rig, &order, report);

    let attached = effects.iter().any(|effect| matches!(effect, Effect::Attach { .. }));
    assert!(!attached, "{id} {value}: {effects:?}");
    let passed = |stage| move |effect: &&Effect| matches!(effect, Effect::Moved { moved, .. } if moved.to == stage);
    assert_eq!(effects.iter().filter(passed(Stage::Culled)).count(), 1);
    assert_eq!(effects.iter().filter(passed(Stage::Training)).count(), 0);
    let Life::Embargoed { rollback, until } = rig.manager.seed(&s1()).unwrap().life().clone()
    else {
        panic!("{id} {value}: {:?}", rig.stage());
    };
    assert_eq!(rollback.reason, GateFailure::Caught(finding).to_string());
    assert_eq!(rollback.stage, Stage::Germinated, "it never trained in the host");
    assert_eq!((rollback.artifact, until), (None, rig.now.elapsed + Config::default().embargo));
    assert_eq!(rig.manager.host_alpha(&s1()), 0.0);

    let packets = rig.manager.drain_telemetry(rig.now);
    let events: Vec<_> = packets.into_iter().flat_map(|packet| packet.packet.events).collect();
    let verdict = events.iter().find(|event| event.description == "quarantine_verdict").unwrap();
    assert_eq!(verdict.attributes["reason"], reason);
    assert_eq!(verdict.level(), TelemetryLevel::Warning);
    let closed = events
        .iter()
        .find(|event| event.description == "gate_event" && event.attributes["passed"] == "false");
    assert_eq!(closed.unwrap().attributes["gate"], Gate::GradientHealth.name());

    // Held for the embargo, then free, and the kernel service is not blamed.
    assert!(rig.operate(SeedOperation::SeedOpGerminate).is_err());
    rig.wait(Config::default().embargo);
    assert_eq!(rig.stage(), Stage::Dormant);
    rig.germinate();
}

#[test]
fn every_stressor_is_culled_for_what_it_does_and_its_slot_embargoed() {
    for (id, reason) in STRESSORS {
        for value in interval(id) {
            culled(id, value, reason);
        }
    }
}

#[test]
fn the_gate_of_every_seed_catches_those_that_show_in_its_measures() {
    let of = |id, value| {
        let mut seen = evidence(&Evidence::default(), &report(id, value));
        // What quarantine says is left out: only what any seed in training would show is judged.
        seen.caught = None;
        check(Gate::GradientHealth, &seen, &Limits { training_steps_min: 1, ..Limits::default() })
    };
    for value in interval("BP043") {
        let verdict = of("BP043", value);
        assert!(
            matches!(verdict, Verdict::Failed(GateFailure::GradientExploded(_))),
            "{verdict:?}"
        );
    }
    for value in interval("BP045") {
        let verdict = of("BP045", value);
        assert!(matches!(verdict, Verdict::Failed(GateFailure::NotFinite(_))), "{verdict:?}");
    }
    // Of a vanished gradient the gate sees the absolute size only, which must be below 1e-9.
    for value in [0.0, 0.05] {
        let verdict = of("BP044", value);
        assert!(
            matches!(verdict, Verdict::Failed(GateFailure::GradientVanished(_))),
            "{verdict:?}"
        );
    }
}

#[test]
fn a_stressor_in_which_nothing_was_found_is_culled_all_the_same() {
    let (mut rig, order) = germinated("BP045");
    let sound = report("BP009", 2.0);
    assert!(sound.is_sound());
    answered(&mut rig, &order, sound);
    let Life::Embargoed { rollback, .. } = rig.manager.seed(&s1()).unwrap().life().clone() else {
        panic!("{:?}", rig.stage());
    };
    assert_eq!(rollback.reason, GateFailure::QuarantineOnly.to_string());
}

#[test]
fn a_kernel_that_calls_itself_a_stressor_is_never_attached() {
    let (mut rig, order) = germinated("BP050");
    let effects = rig.answer(&order, Ok(()));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Attach { .. })));
    assert_eq!(rig.stage(), Stage::Embargoed);
}

#[test]
fn an_answer_for_a_seed_that_is_gone_changes_nothing() {
    let (mut rig, order) = germinated("BP044");
    rig.operate(SeedOperation::SeedOpCull).unwrap();
    assert!(answered(&mut rig, &order, report("BP044", 0.0)).is_empty());
    assert_eq!(rig.stage(), Stage::Dormant);
}

#[test]
fn blueprints_are_handled_by_their_sheets() {
    for blueprint in karn::catalogue() {
        let expected = match blueprint.id().as_str() {
            "BP043" | "BP044" | "BP045" | "BP046" | "BP047" | "BP048" | "BP049" | "BP050" => {
                Handling::Confined
            }
            "BP038" | "BP039" | "BP040" | "BP041" | "BP042" => Handling::Tried,
            _ => Handling::Open,
        };
        assert_eq!(handling(blueprint.id()), expected, "{}", blueprint.id());
    }
    assert_eq!(handling(&"BP999".into()), Handling::Open);
}

#[test]
fn the_evidence_is_what_the_trial_measured() {
    let report = report("BP001", 0.0);
    let seen = evidence(&Evidence::default(), &report);
    assert_eq!((seen.steps, seen.not_finite, seen.violations), (64, 0, 0));
    assert_eq!(seen.loss.unwrap().last, report.measures[63].loss);
    assert!((seen.output_ratio.unwrap().high - 1.0).abs() < 1e-6);
    assert_eq!(seen.caught, None);
    let exploded = Finding::GradientExploded { amplification: 1e6, ceiling: 100.0 };
    let caught = Evidence { caught: Some(exploded.clone()), ..seen };
    let verdict = check(Gate::GradientHealth, &caught, &Limits::default());
    assert_eq!(verdict, Verdict::Failed(GateFailure::Caught(exploded)));
    assert_eq!(Config::default().embargo, Duration::from_secs(30));
}

//! Decisions on scripted runs.

use leyline::Stage;
use leyline::ids::BlueprintId;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{CommandType, HealthStatus, MessagePriority, SeedOperation};
use tamiyo::{
    Action, Blend, Candidates, Config, EFFECT, Horizon, Operator, Reason, STAGE_EPOCHS, Timing,
};

use crate::rig::{Rig, blueprint, check, config, seed};

fn listed(ids: &[&str]) -> Candidates {
    Candidates::Listed(ids.iter().map(|id| BlueprintId::from(*id)).collect())
}

#[test]
fn a_falling_loss_is_left_alone() {
    let mut rig = Rig::new(config());
    for epoch in 0..30 {
        let decision = rig.epoch(1.0 * 0.9_f32.powi(epoch));
        assert_eq!(decision.command, None);
        let expected = if epoch < 2 { Reason::WarmUp } else { Reason::Improving };
        assert_eq!(decision.reason, expected, "epoch {epoch}");
    }
}

#[test]
fn a_plateau_germinates_one_seed_and_no_second() {
    let mut rig = Rig::new(config());
    let decision = rig.until_command(1.0);
    assert_eq!((decision.action, decision.reason), (Action::Germinate, Reason::Plateau));
    assert_eq!(rig.epoch, 4, "three epochs after the first");
    let command = decision.command.unwrap();
    assert_eq!(command.command_type(), CommandType::CommandSeed);
    assert_eq!(command.target_seed_id, "a");
    assert_eq!(command.issued_by, "tamiyo");
    for key in ["selected_seed", "selected_blueprint", "blueprint_tier", "bsds_hazard_band"] {
        assert!(command.annotations.contains_key(key), "{key}");
    }
    assert_eq!(command.annotations["risk_reason"], "policy");
    // The executor has not shown it yet, then it grows: neither time is a second one asked for.
    assert_eq!(rig.epoch(1.0).reason, Reason::SeedInFlight);
    rig.stage("a", Stage::Training);
    for _ in 0..30 {
        assert_eq!(rig.epoch(1.0).command, None);
    }
}

#[test]
fn a_germination_brings_every_declared_parameter_within_its_bounds() {
    let mut rig = Rig::new(config());
    rig.candidates = listed(&["BP009"]);
    let decision = rig.until_command(1.0);
    let Some(Payload::SeedOperation(operation)) = &decision.command.as_ref().unwrap().payload
    else {
        panic!("{decision:?}");
    };
    assert_eq!(operation.operation(), SeedOperation::SeedOpGerminate);
    let parameters = karn::Parameters::from_wire(&operation.parameters);
    karn::find(&BlueprintId::from("BP009")).unwrap().check(&parameters).unwrap();
}

#[test]
fn the_trainers_order_decides_among_what_may_be_grafted() {
    for (ids, expected) in [
        (&["BP014", "BP009", "BP002"][..], "BP014"),
        (&["BP009", "BP014"], "BP009"),
        (&["BP043", "BP023", "BP010"], "BP010"),
    ] {
        let mut rig = Rig::new(config());
        rig.candidates = listed(ids);
        assert_eq!(blueprint(&rig.until_command(1.0)), expected, "{ids:?}");
    }
}

#[test]
fn the_identity_is_never_first() {
    let mut rig = Rig::new(config());
    assert_ne!(blueprint(&rig.until_command(1.0)), "BP001");
}

#[test]
fn candidates_of_a_site_begin_with_what_can_learn() {
    let ids = Candidates::for_site(&karn::Site::Vector { features: 16 });
    assert_eq!(ids[0].as_str(), "BP009");
    assert!(ids.len() > 5, "{ids:?}");
    assert!(ids.iter().all(|id| karn::find(id).unwrap().autonomous()));
}

#[test]
fn nothing_is_grown_without_cause_or_means() {
    for (change, expected) in [
        ((|rig| rig.horizon = Horizon::Short) as fn(&mut Rig), Reason::HorizonShort),
        (|rig| rig.candidates = listed(&["BP043"]), Reason::NoBlueprintCandidates),
        (|rig| rig.candidates = listed(&[]), Reason::NoBlueprintCandidates),
        (|rig| rig.candidates = Candidates::BySlot([].into()), Reason::NoBlueprintCandidates),
        (|rig| rig.state.seed_states.clear(), Reason::NoSeedCandidates),
        (|rig| rig.stage("a", Stage::Training), Reason::SeedInFlight),
        (
            |rig| {
                rig.stage("a", Stage::Fossilized);
                rig.stage("b", Stage::Embargoed);
            },
            Reason::NoSeedCandidates,
        ),
    ] {
        let mut rig = Rig::new(config());
        change(&mut rig);
        for _ in 0..20 {
            assert_eq!(rig.epoch(1.0).command, None, "{expected}");
        }
        assert_eq!(rig.epoch(1.0).reason, expected);
    }
}

#[test]
fn a_loss_that_is_low_enough_is_left_alone() {
    let mut rig = Rig::new(config());
    for _ in 0..20 {
        assert_eq!(rig.epoch(0.005).command, None);
    }
    assert_eq!(rig.epoch(0.005).reason, Reason::TargetReached);
}

#[test]
fn the_measured_effect_decides_what_is_kept() {
    for (effect, action, reason) in [
        (-0.2, Action::Fossilize, Reason::EffectKept),
        (0.3, Action::Cull, Reason::EffectRegressed),
        (f32::NAN, Action::Cull, Reason::EffectRegressed),
        (0.0, Action::Cull, Reason::EffectAbsent),
    ] {
        let mut rig = Rig::new(config());
        rig.until_command(1.0);
        rig.grow("a", 1.0);
        rig.metric("a", EFFECT, effect);
        let before = rig.epoch;
        let decision = rig.until_command(1.0);
        assert_eq!((decision.action, decision.reason), (action, reason), "{effect}");
        let waited = if effect == 0.0 { 4 } else { 2 };
        assert_eq!(rig.epoch - before, waited, "{effect}");
        assert_eq!(decision.command.unwrap().target_seed_id, "a");
        assert_eq!(rig.epoch(1.0).command, None, "it is asked for once");
    }
}

#[test]
fn without_a_measured_effect_the_policy_measures_itself() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    let decision = rig.until_command(0.8);
    assert_eq!(decision.action, Action::Fossilize);
}

#[test]
fn the_executors_count_of_epochs_is_believed() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    rig.metric("a", EFFECT, -0.5);
    rig.metric("a", STAGE_EPOCHS, 0.0);
    for _ in 0..10 {
        assert_eq!(rig.epoch(1.0).command, None);
    }
    rig.metric("a", STAGE_EPOCHS, 2.0);
    assert_eq!(rig.epoch(1.0).action, Action::Fossilize);
}

#[test]
fn a_keep_that_is_refused_again_and_again_becomes_a_cull() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    rig.metric("a", EFFECT, -0.5);
    let actions: Vec<_> = (0..3).map(|_| rig.until_command(1.0)).collect();
    let said: Vec<_> = actions.iter().map(|one| (one.action, one.reason)).collect();
    assert_eq!(
        said,
        [
            (Action::Fossilize, Reason::EffectKept),
            (Action::Fossilize, Reason::EffectKept),
            (Action::Cull, Reason::KeepRefused),
        ]
    );
}

#[test]
fn what_was_culled_on_a_slot_is_not_tried_there_again() {
    let mut rig = Rig::new(config());
    rig.candidates = listed(&["BP009", "BP014", "BP002"]);
    let mut tried = Vec::new();
    for _ in 0..6 {
        let decision = rig.until_command(1.0);
        let slot = decision.command.as_ref().unwrap().target_seed_id.clone();
        tried.push((slot.clone(), blueprint(&decision)));
        rig.stage(&slot, Stage::Germinated);
        rig.epoch(1.0);
        // The executor gives up and runs through to dormant between two packets.
        rig.stage(&slot, Stage::Dormant);
    }
    let mut distinct = tried.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 6, "{tried:?}");
    for _ in 0..20 {
        assert_eq!(rig.epoch(1.0).command, None);
    }
    assert_eq!(rig.epoch(1.0).reason, Reason::NoBlueprintCandidates);
}

#[test]
fn a_checkpoint_knows_what_was_culled_before() {
    let mut rig = Rig::new(config());
    rig.candidates = listed(&["BP009"]);
    for _ in 0..3 {
        rig.epoch(1.0);
    }
    rig.epoch += 1;
    let mut context = rig.context();
    context.culled = vec![("a".into(), "BP009".into()), ("b".into(), "BP009".into())];
    let decision = rig.policy.decide(&rig.state, &context);
    assert_eq!(decision.reason, Reason::NoBlueprintCandidates);
}

#[test]
fn a_germination_nothing_comes_of_is_given_up_after_its_retries() {
    let mut rig = Rig::new(config());
    rig.candidates = listed(&["BP009", "BP014"]);
    rig.state.seed_states.truncate(1);
    let tried: Vec<_> = (0..4).map(|_| blueprint(&rig.until_command(1.0))).collect();
    assert_eq!(tried, ["BP009", "BP009", "BP014", "BP014"]);
}

#[test]
fn growth_starts_patience_anew() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    rig.stage("a", Stage::Fossilized);
    let before = rig.epoch;
    let decision = rig.until_command(1.0);
    assert_eq!(decision.command.unwrap().target_seed_id, "b");
    assert_eq!(rig.epoch - before, 4);
}

#[test]
fn a_loss_spike_pauses_the_growing_seed_once_and_resumes_it_after_the_cool_down() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.stage("a", Stage::Blending);
    rig.epoch(1.0);
    let spike = rig.epoch(1.2);
    assert_eq!((spike.action, spike.reason), (Action::Pause, Reason::LossSpike));
    assert!(spike.conservative);
    assert_eq!(spike.health.0, HealthStatus::Degraded);
    assert_eq!(spike.priority, MessagePriority::High);
    assert_eq!(spike.command.unwrap().target_seed_id, "a");
    for _ in 0..9 {
        let decision = rig.epoch(1.2);
        assert_eq!((decision.command, decision.conservative), (None, true));
    }
    assert!(!rig.epoch(1.2).conservative, "ten epochs later");
    let resumed = rig.epoch(1.2);
    assert_eq!(resumed.action, Action::Resume);
    let command = resumed.command.unwrap();
    assert_eq!(command.command_type(), CommandType::CommandPause);
    assert_eq!(command.annotations["resume"], "true");
}

#[test]
fn a_loss_that_is_no_number_any_more_is_a_spike() {
    let mut rig = Rig::new(config());
    rig.epoch(1.0);
    let decision = rig.epoch(f32::NAN);
    assert_eq!(decision.reason, Reason::LossSpike);
    assert!(decision.conservative);
}

#[test]
fn the_jump_after_a_cull_is_no_spike() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    rig.stage("a", Stage::Culled);
    assert!(!rig.epoch(1.5).conservative);
    rig.stage("a", Stage::Embargoed);
    assert!(!rig.epoch(2.0).conservative);
    assert!(rig.epoch(3.0).conservative, "this one is not explained by it");
}

#[test]
fn an_operator_holds_growth_until_released() {
    let mut rig = Rig::new(Config { operator: Operator::Conservative, ..config() });
    for _ in 0..30 {
        let decision = rig.epoch(1.0);
        assert_eq!((decision.command, decision.conservative), (None, true));
    }
    assert_eq!(rig.epoch(1.0).reason, Reason::ConservativeMode);
    rig.policy.set_operator(Operator::Normal);
    assert_eq!(rig.epoch(1.0).action, Action::Germinate);
}

#[test]
fn a_busy_machine_downgrades_a_germination_into_a_whole_optimizer_command() {
    let mut rig = Rig::new(config());
    rig.state.training_metrics.insert("cpu_util_percent".to_owned(), 99.0);
    let decision = rig.until_command(1.0);
    assert_eq!((decision.action, decision.reason), (Action::Optimizer, Reason::CpuPressureHigh));
    let command = decision.command.unwrap();
    let Some(Payload::OptimizerAdjustment(payload)) = &command.payload else {
        panic!("{command:?}");
    };
    assert_eq!((payload.optimizer_id.as_str(), payload.hyperparameters["lr_delta"]), ("sgd", -0.1));
    let mut observing = config();
    observing.limits.timing = Timing::Observe;
    let mut rig = Rig::new(observing);
    rig.state.training_metrics.insert("cpu_util_percent".to_owned(), 99.0);
    assert_eq!(rig.until_command(1.0).action, Action::Germinate);
}

#[test]
fn an_old_violation_of_isolation_does_not_stop_growth_for_ever() {
    let mut rig = Rig::new(config());
    rig.epoch(1.0);
    rig.state.training_metrics.insert("kasmina.isolation.violations".to_owned(), 3.0);
    let names = |decision: &tamiyo::Decision| {
        decision.events.iter().map(|event| event.description.clone()).collect::<Vec<_>>()
    };
    let decision = rig.epoch(1.0);
    assert!(names(&decision).contains(&"isolation_violations".to_owned()), "{decision:?}");
    let later = rig.until_command(1.0);
    assert_eq!(later.action, Action::Germinate);
    assert!(!names(&later).contains(&"isolation_violations".to_owned()));
}

#[test]
fn two_policies_given_the_same_decide_the_same() {
    let play = || {
        let mut rig = Rig::new(config());
        let mut decisions = Vec::new();
        for epoch in 0..60_u32 {
            let loss = 1.0 + 0.02 * (epoch as f32 * 0.7).sin() + f32::from(u8::from(epoch == 30));
            match epoch {
                8 => rig.stage("a", Stage::Training),
                14 => rig.stage("a", Stage::Blending),
                20 => rig.stage("a", Stage::Probationary),
                40 => rig.stage("a", Stage::Fossilized),
                _ => {}
            }
            decisions.push(rig.epoch(loss));
        }
        decisions
    };
    let (first, second) = (play(), play());
    assert!(first.iter().any(|decision| decision.command.is_some()));
    assert!(first.iter().any(|decision| !decision.reports.is_empty()));
    assert_eq!(first, second);
}

#[test]
fn runs_do_not_mix() {
    let mut rig = Rig::new(config());
    for _ in 0..3 {
        rig.epoch(1.0);
    }
    rig.state.training_run_id = "run-2".to_owned();
    assert_eq!(rig.epoch(1.0).reason, Reason::WarmUp);
    rig.state.training_run_id = "run-1".to_owned();
    assert_eq!(rig.epoch(1.0).action, Action::Germinate);
}

#[test]
fn stages_and_ids_from_outside_the_contract_do_no_harm() {
    let mut rig = Rig::new(config());
    let mut strange = seed("", Stage::Dormant);
    strange.stage = 4711;
    strange.gradient_norm = f32::NAN;
    strange.risk_score = f32::INFINITY;
    rig.state.seed_states.push(strange);
    assert_eq!(rig.until_command(1.0).action, Action::Germinate);
}

#[test]
fn blending_is_asked_for_without_a_key_that_begins_another() {
    let blend = Blend::Confidence { gate_k: 4.0, gate_tau: 0.2, alpha_lo: 0.0, alpha_hi: 1.0 };
    let mut rig = Rig::new(Config { blend, ..config() });
    let decision = rig.until_command(1.0);
    check(&decision);
    let annotations = decision.command.unwrap().annotations;
    assert_eq!(annotations["blend_mode"], "CONFIDENCE");
    assert_eq!(annotations["gate_k"], "4");
}

#[test]
fn a_decision_tells_its_story_as_a_packet() {
    let mut rig = Rig::new(config());
    let decision = rig.until_command(1.0);
    let packet = decision.telemetry(&rig.context(), tamiyo::Metrics::detached().points());
    assert_eq!(packet.source_subsystem, "tamiyo");
    let names: Vec<_> = packet.metrics.iter().map(|point| point.name.as_str()).collect();
    for name in [
        "tamiyo.validation_loss",
        "tamiyo.policy.risk_score",
        "tamiyo.gnn.feature_coverage",
        "tamiyo.selection.blueprint_index",
        "tamiyo.breaker.inference_state",
        "tamiyo.field_reports.pending_total",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(packet.system_health.unwrap().summary, "stable");
}

#[test]
fn a_downgrade_is_asked_for_once_for_each_plateau() {
    let mut rig = Rig::new(config());
    rig.state.training_metrics.insert("grad_var".to_owned(), 9.0);
    let epochs: Vec<u32> = (0..3)
        .map(|_| {
            assert_eq!(rig.until_command(1.0).action, Action::Optimizer);
            rig.epoch
        })
        .collect();
    assert_eq!(epochs, [4, 7, 10]);
}

#[test]
fn a_keep_held_back_by_risk_is_only_put_off() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.grow("a", 1.0);
    rig.metric("a", EFFECT, -0.5);
    rig.state.training_metrics.insert("grad_var".to_owned(), 9.0);
    let held: Vec<_> = (0..5).map(|_| rig.until_command(1.0).action).collect();
    assert_eq!(held, [Action::Optimizer; 5], "and never a cull");
    rig.state.training_metrics.insert("grad_var".to_owned(), 0.1);
    assert_eq!(rig.until_command(1.0).action, Action::Fossilize);
}

#[test]
fn a_slot_that_is_gone_does_not_hold_up_the_others() {
    let mut rig = Rig::new(config());
    rig.until_command(1.0);
    rig.stage("a", Stage::Training);
    rig.epoch(1.0);
    rig.state.seed_states.remove(0);
    assert_eq!(rig.until_command(1.0).command.unwrap().target_seed_id, "b");
}

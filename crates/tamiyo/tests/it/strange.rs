//! Whatever the packets say, decisions keep their promises.

use std::collections::BTreeMap;

use leyline::Stage;
use leyline::wire::SystemStatePacket;
use proptest::prelude::*;
use tamiyo::{Action, Candidates, EFFECT, Horizon, STAGE_EPOCHS};

use crate::rig::{Rig, check, config, seed};

fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -2.0_f32..2.0,
        1 => Just(f32::NAN),
        1 => Just(f32::INFINITY),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(0.0_f32),
        1 => Just(f32::MAX),
    ]
}

const KEYS: [&str; 8] = [
    "tamiyo_latency_ms",
    "hook_latency_ms",
    "kasmina.isolation.violations",
    "loss_volatility",
    "grad_var",
    "optimizer_lr",
    "gpu_util_percent",
    "cpu_util_percent",
];

#[derive(Debug, Clone)]
struct Step {
    epoch: u32,
    loss: f32,
    stages: [i32; 3],
    effect: f32,
    stage_epochs: f32,
    metrics: BTreeMap<String, f32>,
    late: bool,
    run: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let metrics = prop::collection::btree_map(
        prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
        number(),
        0..3,
    );
    let stages = [0_i32..13, 0..13, 0..13];
    (0_u32..40, number(), stages, number(), number(), metrics, any::<bool>(), 0_u8..2).prop_map(
        |(epoch, loss, stages, effect, stage_epochs, metrics, late, run)| Step {
            epoch,
            loss,
            stages,
            effect,
            stage_epochs,
            metrics,
            late,
            run,
        },
    )
}

fn packet(step: &Step) -> SystemStatePacket {
    let seed_states = step.stages.iter().zip(["a", "b", "c"]).map(|(stage, id)| {
        let mut seed = seed(id, Stage::Dormant);
        seed.stage = *stage;
        seed.gradient_norm = step.loss;
        seed.risk_score = step.effect;
        seed.metrics.insert(EFFECT.to_owned(), step.effect);
        seed.metrics.insert(STAGE_EPOCHS.to_owned(), step.stage_epochs);
        seed
    });
    SystemStatePacket {
        validation_loss: step.loss,
        seed_states: seed_states.collect(),
        training_metrics: step.metrics.clone(),
        training_run_id: format!("run-{}", step.run),
        ..SystemStatePacket::default()
    }
}

proptest! {
    #[test]
    fn every_command_is_whole_and_fits_the_state(steps in prop::collection::vec(step(), 1..60)) {
        let mut rig = Rig::new(config());
        for (index, step) in steps.iter().enumerate() {
            rig.state = packet(step);
            rig.epoch = step.epoch;
            rig.candidates = if step.late { Candidates::Late } else { Candidates::Any };
            let mut context = rig.context();
            context.command_id = format!("command-{index}").into();
            let decision = rig.policy.decide(&rig.state, &context);
            check(&decision);
            prop_assert!((0.0..=1.0).contains(&decision.risk_score), "{}", decision.risk_score);
            prop_assert!(decision.points.iter().all(|point| point.value.is_finite()));
            let Some(command) = &decision.command else { continue };
            let target = ["a", "b", "c"].iter().position(|id| *id == command.target_seed_id);
            let stage = target.and_then(|index| Stage::try_from(step.stages[index]).ok());
            let dormant = Stage::Dormant.wire() as i32;
            match decision.action {
                Action::Germinate => {
                    prop_assert_eq!(stage, Some(Stage::Dormant));
                    prop_assert!(!step.late && !decision.conservative);
                    let growing = dormant + 1..=Stage::Probationary.wire() as i32;
                    prop_assert!(step.stages.iter().all(|stage| !growing.contains(stage)));
                }
                Action::Fossilize | Action::Cull => {
                    prop_assert_eq!(stage, Some(Stage::Probationary));
                }
                Action::Pause | Action::Resume => {
                    prop_assert!(stage != Some(Stage::Dormant));
                }
                Action::Optimizer | Action::Nothing => {}
            }
        }
        let context = rig.context();
        rig.horizon = Horizon::Short;
        rig.policy.finish(&rig.state, &context);
    }
}

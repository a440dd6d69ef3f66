//! What a state packet says, read once: figures that are there or not there, never zero for absent.
//!
//! Keys of `training_metrics` that are read, each optional and, where it is a latency, measured in
//! the step or epoch *before* this packet: `loss`, `validation_loss` (only whether it is there; its
//! value is the packet's own field), `gradient_norm`, `samples_per_s`, `loss_volatility`, `grad_var`,
//! `grad_conflict_rate`, `optimizer_lr`, `hook_latency_ms`, `tamiyo_latency_ms` (how long the previous
//! decision took), `step_latency_ms`, `kasmina.apply_ms`, `kasmina.finalize_ms`,
//! `kasmina.isolation.violations` (a running count), `gpu_util_percent`, `gpu_mem_free_gb`,
//! `cpu_util_percent`.
//!
//! Keys of a seed's `metrics`: [`EFFECT`], [`STAGE_EPOCHS`], [`ACTIVATION_VARIANCE`], [`PAUSED`].

use leyline::Stage;
use leyline::wire::{SeedState, SystemStatePacket};

use crate::weights::STATE_FEATURES;

/// Relative change of the validation loss since the seed began to blend: `(now − then) / then`.
/// Negative is better. When it is missing, the policy's own measurement on the smoothed validation
/// loss of the packets stands in.
pub const EFFECT: &str = "effect";
/// Epochs the seed has been in its stage. When it is missing, the policy counts itself.
pub const STAGE_EPOCHS: &str = "stage_epochs";
/// Variance of the activations at the slot; of two slots the one with less is grown first.
pub const ACTIVATION_VARIANCE: &str = "activation_variance";
/// Above 0 while the executor holds the seed out of the host.
pub const PAUSED: &str = "paused";

/// The figures that the risk rules read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signals {
    /// Rise of the validation loss since the epoch before; infinite when it is no number any more.
    pub loss_delta: Option<f32>,
    /// Violations of isolation since the packet before.
    pub isolation_violations: Option<f32>,
    /// How long the previous decision took.
    pub decision_ms: Option<f32>,
    /// How long the hook took.
    pub hook_latency_ms: Option<f32>,
    /// How long the step took.
    pub step_latency_ms: Option<f32>,
    /// How long applying a command took.
    pub apply_ms: Option<f32>,
    /// How long finalising took.
    pub finalize_ms: Option<f32>,
    /// Volatility of the training loss.
    pub loss_volatility: Option<f32>,
    /// Variance of the gradients.
    pub grad_variance: Option<f32>,
    /// Share of conflicting gradients.
    pub grad_conflict_rate: Option<f32>,
    /// Learning rate.
    pub optimizer_lr: Option<f32>,
    /// GPU load in percent.
    pub gpu_util_percent: Option<f32>,
    /// Free GPU memory in GB.
    pub gpu_free_gb: Option<f32>,
    /// CPU load in percent.
    pub cpu_util_percent: Option<f32>,
}

/// What is needed of the packet before to tell changes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Before {
    pub(crate) validation_loss: Option<f32>,
    pub(crate) violations: Option<f32>,
}

impl Signals {
    /// Reads a packet.
    pub(crate) fn read(state: &SystemStatePacket, before: Before) -> Self {
        let metric = |key: &str| state.training_metrics.get(key).copied();
        let violations = metric("kasmina.isolation.violations")
            .map(|count| (count - before.violations.unwrap_or(0.0)).max(0.0));
        let loss_delta = if state.validation_loss.is_finite() {
            before.validation_loss.map(|old| state.validation_loss - old)
        } else {
            Some(f32::INFINITY)
        };
        Self {
            loss_delta,
            isolation_violations: violations,
            decision_ms: metric("tamiyo_latency_ms"),
            hook_latency_ms: metric("hook_latency_ms"),
            step_latency_ms: metric("step_latency_ms"),
            apply_ms: metric("kasmina.apply_ms"),
            finalize_ms: metric("kasmina.finalize_ms"),
            loss_volatility: metric("loss_volatility"),
            grad_variance: metric("grad_var"),
            grad_conflict_rate: metric("grad_conflict_rate"),
            optimizer_lr: metric("optimizer_lr"),
            gpu_util_percent: metric("gpu_util_percent"),
            gpu_free_gb: metric("gpu_mem_free_gb"),
            cpu_util_percent: metric("cpu_util_percent"),
        }
    }

    /// The state features of the policy, each from 0 to 1 where 1 is its published limit; absent
    /// is 0, no risk known.
    pub(crate) fn features(&self, limits: &crate::config::Limits) -> [f32; STATE_FEATURES] {
        let share = |value: Option<f32>, limit: f32| match value {
            Some(value) if limit > 0.0 && !value.is_nan() => (value / limit).clamp(0.0, 1.0),
            _ => 0.0,
        };
        [
            share(self.loss_delta, limits.loss_spike),
            share(self.loss_volatility, limits.loss_volatility),
            share(self.grad_variance, limits.grad_variance),
            share(self.grad_conflict_rate, limits.grad_conflict_rate),
        ]
    }
}

/// How much of what the policy could use was supplied, by kind of node, each from 0 to 1. Shares are
/// `f64`, so that 7 of 10 are no less than a limit of 0.7.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coverage {
    /// Figures of the run.
    pub global: f64,
    /// Figures of the seeds: of those that a seed has at its stage.
    pub seed: f64,
}

impl Coverage {
    /// Counts what is there. A zero of a seed's field means absent: the contract has no other way.
    pub(crate) fn of(state: &SystemStatePacket) -> Self {
        let metric = |key: &str| state.training_metrics.contains_key(key);
        let global = [
            metric("loss") || state.training_loss != 0.0,
            metric("validation_loss") || state.validation_loss != 0.0,
            metric("gradient_norm"),
            metric("samples_per_s"),
            metric("hook_latency_ms"),
        ];
        let seeds: f64 = state.seed_states.iter().map(seed_share).sum();
        let count = state.seed_states.len().max(1) as f64;
        Self { global: share(&global), seed: seeds / count }
    }

    /// Mean of the kinds that are there at all.
    pub fn mean(self) -> f64 {
        let there: Vec<f64> = [self.global, self.seed].into_iter().filter(|c| *c > 0.0).collect();
        if there.is_empty() { 0.0 } else { there.iter().sum::<f64>() / there.len() as f64 }
    }
}

/// What is there of the figures that a seed has at its stage. An empty slot has neither gradient nor
/// learning rate nor age: to miss them would call every host poorly observed until it has grown.
fn seed_share(seed: &SeedState) -> f64 {
    let known = [seed.stage != 0, seed.layer_depth != 0];
    let grown = [seed.age_epochs != 0];
    let trained = [seed.gradient_norm != 0.0, seed.learning_rate != 0.0];
    let figures: Vec<bool> = match Stage::try_from(seed.stage) {
        Ok(
            Stage::Dormant
            | Stage::Culled
            | Stage::Embargoed
            | Stage::Resetting
            | Stage::Terminated,
        ) => known.to_vec(),
        Ok(Stage::Germinated | Stage::Fossilized) => [&known[..], &grown].concat(),
        // Of a stage that was not told, everything is missed.
        Ok(Stage::Training | Stage::Blending | Stage::Shadowing | Stage::Probationary) | Err(_) => {
            [&known[..], &grown, &trained].concat()
        }
    };
    share(&figures)
}

fn share(there: &[bool]) -> f64 {
    there.iter().filter(|there| **there).count() as f64 / there.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(stage: Stage) -> SeedState {
        SeedState { stage: stage.wire() as i32, layer_depth: 1, ..SeedState::default() }
    }

    #[test]
    fn an_empty_slot_misses_nothing() {
        for stage in [Stage::Dormant, Stage::Culled, Stage::Embargoed, Stage::Resetting] {
            assert_eq!(seed_share(&seed(stage)), 1.0, "{stage:?}");
        }
    }

    #[test]
    fn a_seed_that_trains_misses_what_is_not_told() {
        let silent = seed(Stage::Training);
        assert_eq!(seed_share(&silent), 0.4);
        let told = SeedState { gradient_norm: 0.1, learning_rate: 0.01, age_epochs: 3, ..silent };
        assert_eq!(seed_share(&told), 1.0);
        assert_eq!(seed_share(&SeedState { stage: 99, ..told }), 1.0);
        assert_eq!(seed_share(&SeedState::default()), 0.0);
    }

    #[test]
    fn seven_tenths_are_not_below_seven_tenths() {
        let coverage = Coverage { global: 1.0, seed: share(&[true, true, false, false, false]) };
        assert!(coverage.mean() >= 0.7, "{}", coverage.mean());
    }
}

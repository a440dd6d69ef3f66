//! Does to the network what the seed manager asks for: kernels grafted, moved along their stages, taken out again.

use kasmina::{BlendMode, Effect, FetchedKernel, Hold, Rollback};
use leyline::Stage;
use leyline::ids::SeedId;
use leyline::wire::CommandOptimizerAdjustment;
use tracing::{info, warn};

use super::Training;
use crate::error::TrainError;
use crate::host::Mode;
use crate::network::Graft;

/// A change of the learning rate by a command stays within this share.
const RATE_CHANGE_MAX: f32 = 0.5;
/// Key of an optimiser command: change of the learning rate as a share of it.
const LR_DELTA: &str = tamiyo::LR_DELTA;
/// After a graft is taken out, the host is brought back when its loss is this much above what it was before.
const HURT_MIN: f32 = 0.01;

impl Training {
    /// Does to the network what the seed manager asks for.
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), TrainError> {
        for effect in effects {
            match effect {
                Effect::Attach { seed, kernel, blend } => self.attach(&seed, &kernel, blend)?,
                Effect::Moved { seed, moved } => self.moved(&seed, moved.to)?,
                Effect::Detach { seed, rollback } => self.detach(&seed, &rollback)?,
                Effect::Pause(seed) => self.network.set_mode(&seed, Mode::Identity)?,
                Effect::Resume(seed) => {
                    if let Some(stage) = self.manager.stage(&seed) {
                        self.network.set_mode(&seed, mode_of(stage))?;
                    }
                }
                Effect::AdjustOptimizer(adjustment) => self.adjust(&adjustment)?,
                Effect::EmergencyCleanup => self.before.clear(),
            }
        }
        Ok(())
    }

    fn attach(
        &mut self,
        seed: &SeedId,
        kernel: &FetchedKernel,
        blend: BlendMode,
    ) -> Result<(), TrainError> {
        // Every seed has an instance of its own of the shared, immutable artifact.
        let opened = &kernel.kernel;
        let graft = Graft {
            graph: opened.graph().clone(),
            params: opened.params().clone(),
            execution: kernel.execution.clone(),
        };
        let parameters = graft.parameter_count();
        let fitted = self.network.attach(seed, graft, blend, self.prepared.config.rate);
        match fitted {
            Ok(()) => {
                self.journal.attached(seed, kernel, parameters);
                info!(%seed, blueprint = %kernel.blueprint, epoch = self.clock.epoch, "kernel attached");
                Ok(())
            }
            Err(error) => {
                warn!(%seed, blueprint = %kernel.blueprint, %error, "kernel cannot be grown");
                let effects = self.manager.fail(seed, &error.to_string(), self.clock.now());
                self.carry_out(effects)
            }
        }
    }

    fn moved(&mut self, seed: &SeedId, to: Stage) -> Result<(), TrainError> {
        if to == Stage::Germinated {
            self.note_first()?;
            if let Some(graft) = self.manager.seed(seed).and_then(|seed| seed.life().graft()) {
                self.journal.germinated(seed, &graft.blueprint);
            }
        }
        self.journal.moved(seed, to, &self.clock);
        if to == Stage::Blending {
            let loss = self.last.map_or(f32::NAN, |score| score.loss);
            self.before.insert(seed.clone(), (self.network.snapshot(), loss));
            self.manager.set_snapshot(seed, format!("memory:step-{}", self.clock.step));
        }
        if to == Stage::Fossilized {
            self.before.remove(seed);
            info!(%seed, epoch = self.clock.epoch, "seed kept");
        }
        if has_graft(to) {
            let paused = self.manager.seed(seed).is_some_and(|seed| seed.hold == Hold::Paused);
            let mode = if paused { Mode::Identity } else { mode_of(to) };
            // A kernel that could not be attached left the slot empty; its end is on its way.
            if self.network.has_graft(seed) {
                self.network.set_mode(seed, mode)?;
            }
        }
        self.network.set_alpha(seed, self.manager.host_alpha(seed))?;
        Ok(())
    }

    /// Takes a graft out, and brings the host back when it was hurt.
    fn detach(&mut self, seed: &SeedId, rollback: &Rollback) -> Result<(), TrainError> {
        self.network.detach(seed)?;
        self.times.isolated_ms.remove(seed);
        self.journal.ended(seed, &rollback.reason);
        info!(%seed, reason = %rollback.reason, epoch = self.clock.epoch, "seed removed");
        let Some((snapshot, loss_before)) = self.before.remove(seed) else { return Ok(()) };
        let without = self.network.evaluate(&self.prepared.split.validation)?;
        let is_unhurt = without.loss <= loss_before + HURT_MIN;
        if !is_unhurt {
            self.network.restore_host(&snapshot)?;
            self.rollbacks += 1;
            self.channels.metrics.rollbacks.inc();
            info!(%seed, "host brought back to before the graft");
        }
        Ok(())
    }

    fn adjust(&mut self, adjustment: &CommandOptimizerAdjustment) -> Result<(), TrainError> {
        let delta = adjustment.hyperparameters.get(LR_DELTA).copied().unwrap_or(0.0);
        if delta.is_finite() {
            self.network.scale_rates(1.0 + delta.clamp(-RATE_CHANGE_MAX, RATE_CHANGE_MAX))?;
        }
        Ok(())
    }

    pub(super) fn is_growing(&self, seed: &SeedId) -> bool {
        self.manager.stage(seed).is_some_and(|stage| match stage {
            Stage::Germinated
            | Stage::Training
            | Stage::Blending
            | Stage::Shadowing
            | Stage::Probationary => true,
            Stage::Dormant
            | Stage::Fossilized
            | Stage::Culled
            | Stage::Embargoed
            | Stage::Resetting
            | Stage::Terminated => false,
        })
    }
}

/// What the slot of a seed does in the host at this stage.
fn mode_of(stage: Stage) -> Mode {
    match stage {
        Stage::Training => Mode::Isolated,
        Stage::Blending => Mode::Blended,
        Stage::Shadowing => Mode::Shadowed,
        Stage::Probationary => Mode::Live,
        Stage::Fossilized => Mode::Frozen,
        Stage::Dormant
        | Stage::Germinated
        | Stage::Culled
        | Stage::Embargoed
        | Stage::Resetting
        | Stage::Terminated => Mode::Identity,
    }
}

fn has_graft(stage: Stage) -> bool {
    match stage {
        Stage::Training
        | Stage::Blending
        | Stage::Shadowing
        | Stage::Probationary
        | Stage::Fossilized => true,
        Stage::Dormant
        | Stage::Germinated
        | Stage::Culled
        | Stage::Embargoed
        | Stage::Resetting
        | Stage::Terminated => false,
    }
}

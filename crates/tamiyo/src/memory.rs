//! What the policy remembers of one run: its plateau, and the story of every slot as the packets
//! tell it. The policy is told nothing else, so what became of a command is read off the stages.

use std::collections::{BTreeMap, BTreeSet};

use leyline::Stage;
use leyline::ids::{BlueprintId, SeedId};
use leyline::wire::{SeedState, SystemStatePacket};

use crate::config::{Growth, Operator};
use crate::mode::Mode;
use crate::observation::Observations;
use crate::plateau::Plateau;
use crate::signals::{Before, PAUSED};
use crate::weights::PlateauNumbers;

/// One run.
#[derive(Debug, Clone)]
pub(crate) struct RunMemory {
    pub(crate) plateau: Plateau,
    pub(crate) before: Before,
    pub(crate) slots: BTreeMap<SeedId, SlotMemory>,
    pub(crate) mode: Mode,
    pub(crate) observations: Observations,
    /// Number of the decision that last saw this run.
    pub(crate) seen: u64,
}

/// Whether a packet shows that something was kept or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Structure {
    Same,
    Changed,
}

/// One slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct SlotMemory {
    pub(crate) stage: Option<Stage>,
    /// What grows here, or was asked to.
    pub(crate) blueprint: Option<BlueprintId>,
    /// What was asked for and has not shown yet.
    pub(crate) asked: Option<Asked>,
    /// What was culled here, or refused too often.
    pub(crate) culled: BTreeSet<BlueprintId>,
    /// Germinations nothing came of, by blueprint.
    refused: BTreeMap<BlueprintId, u32>,
    /// Requests to keep the seed that nothing came of.
    pub(crate) keep_refused: u32,
    /// Smoothed validation loss when the seed began to blend.
    pub(crate) baseline: Option<f64>,
    /// Epoch in which the seed's stage was first seen.
    pub(crate) stage_since: u32,
    /// Whether a pause is in force.
    pub(crate) paused: bool,
}

/// A command that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) what: AskedFor,
    pub(crate) epoch: u32,
}

/// What a slot can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AskedFor {
    Germinate,
    Fossilize,
    Cull,
    /// To be kept, but risk spoke against it for now.
    Later,
}

/// Whether a seed grows in this stage: chosen, but neither kept nor given up.
pub(crate) fn in_flight(stage: Stage) -> bool {
    match stage {
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
    }
}

impl RunMemory {
    pub(crate) fn new(operator: Operator) -> Self {
        Self {
            plateau: Plateau::default(),
            before: Before::default(),
            slots: BTreeMap::new(),
            mode: Mode::new(operator),
            observations: Observations::default(),
            seen: 0,
        }
    }

    /// Takes in a packet: first what became of the slots, then the loss.
    pub(crate) fn observe(
        &mut self,
        state: &SystemStatePacket,
        epoch: u32,
        numbers: &PlateauNumbers,
        growth: &Growth,
    ) -> Structure {
        let mut changed = false;
        for seed in &state.seed_states {
            // A stage outside the contract says nothing; the slot is left as it was.
            let Ok(stage) = Stage::try_from(seed.stage) else { continue };
            let slot = self.slots.entry(SeedId::from(seed.seed_id.as_str())).or_default();
            changed |= slot.observe(stage, epoch, self.plateau.smoothed(), growth);
            // The executor knows best whether the pause is in force.
            slot.paused = seed.metrics.get(PAUSED).map_or(slot.paused, |paused| *paused > 0.0);
        }
        self.forget_absent(state);
        self.plateau.observe(epoch, state.validation_loss, numbers);
        let violations = state.training_metrics.get("kasmina.isolation.violations").copied();
        self.before.violations = violations.or(self.before.violations);
        let loss = Some(state.validation_loss).filter(|loss| loss.is_finite());
        // What grew or was taken away explains the next jump of the loss; patience begins anew.
        self.before.validation_loss = loss;
        if !changed {
            return Structure::Same;
        }
        self.plateau.restart();
        self.before.validation_loss = None;
        Structure::Changed
    }

    /// A slot that the packet no longer lists grows nothing; what was culled there stays known.
    fn forget_absent(&mut self, state: &SystemStatePacket) {
        for (id, slot) in &mut self.slots {
            if state.seed_states.iter().all(|seed| seed.seed_id != id.as_str()) {
                (slot.stage, slot.asked, slot.paused) = (None, None, false);
            }
        }
    }

    /// Whether a seed grows, or was asked to.
    pub(crate) fn is_growing(&self) -> bool {
        self.slots.values().any(|slot| {
            slot.stage.is_some_and(in_flight)
                || slot.asked.is_some_and(|asked| asked.what == AskedFor::Germinate)
        })
    }

    /// The seed in flight, the one that came furthest first: it touches the host most.
    pub(crate) fn growing(&self) -> Option<&SeedId> {
        let growing = self.slots.iter().filter(|(_, slot)| slot.stage.is_some_and(in_flight));
        growing.max_by_key(|(_, slot)| slot.stage).map(|(id, _)| id)
    }
}

impl SlotMemory {
    /// Takes in the slot's stage. Returns whether a seed was kept or taken away.
    fn observe(
        &mut self,
        stage: Stage,
        epoch: u32,
        smoothed: Option<f64>,
        growth: &Growth,
    ) -> bool {
        let before = self.stage.replace(stage);
        if before == Some(stage) {
            self.expire(epoch, growth);
            return false;
        }
        self.stage_since = epoch;
        self.asked = None;
        let grew = before.is_some_and(in_flight);
        match stage {
            Stage::Blending => {
                self.baseline = smoothed;
                false
            }
            Stage::Fossilized => {
                self.settle();
                grew
            }
            Stage::Dormant | Stage::Culled | Stage::Embargoed | Stage::Resetting => {
                // A slot may run through all of them between two packets.
                if grew {
                    self.culled.extend(self.blueprint.take());
                }
                self.settle();
                grew
            }
            Stage::Germinated
            | Stage::Training
            | Stage::Shadowing
            | Stage::Probationary
            | Stage::Terminated => false,
        }
    }

    fn settle(&mut self) {
        (self.baseline, self.paused, self.keep_refused) = (None, false, 0);
    }

    /// Gives up on a command nothing came of.
    fn expire(&mut self, epoch: u32, growth: &Growth) {
        let Some(asked) = self.asked else { return };
        if epoch.saturating_sub(asked.epoch) < growth.retry_epochs {
            return;
        }
        self.asked = None;
        match asked.what {
            AskedFor::Germinate => {
                let Some(blueprint) = self.blueprint.take() else { return };
                let count = self.refused.entry(blueprint.clone()).or_default();
                *count += 1;
                if *count >= growth.refusals_max {
                    self.culled.insert(blueprint);
                }
            }
            AskedFor::Fossilize => self.keep_refused += 1,
            AskedFor::Cull | AskedFor::Later => {}
        }
    }

    /// Relative change of the validation loss since blending: as the executor measured it, else by
    /// the smoothed loss of the packets.
    pub(crate) fn effect(&self, seed: &SeedState, smoothed: Option<f64>) -> Option<f32> {
        if let Some(effect) = seed.metrics.get(crate::signals::EFFECT) {
            return Some(*effect);
        }
        relative_change(self.baseline?, smoothed?)
    }

    /// Epochs in the present stage.
    pub(crate) fn stage_epochs(&self, seed: &SeedState, epoch: u32) -> u32 {
        match seed.metrics.get(crate::signals::STAGE_EPOCHS) {
            Some(epochs) if epochs.is_finite() => *epochs as u32,
            _ => epoch.saturating_sub(self.stage_since),
        }
    }
}

/// `(now − then) / |then|`; `None` for a loss of (nearly) zero, of which nothing is a share.
pub(crate) fn relative_change(then: f64, now: f64) -> Option<f32> {
    (then.abs() > 1e-9).then(|| ((now - then) / then.abs()) as f32)
}

//! Whether a seed on probation is kept or culled, by its measured effect. Pure.

use leyline::Stage;
use leyline::wire::SeedState;

use crate::config::Growth;
use crate::memory::SlotMemory;
use crate::reason::Reason;
use crate::risk::Action;
use crate::weights::Weights;

/// Judges one seed. `None`: wait and see.
///
/// Only a seed that is live is judged: one on probation that is not paused, and for which no
/// earlier judgement is under way.
pub(crate) fn judge(
    seed: &SeedState,
    slot: &SlotMemory,
    epoch: u32,
    smoothed: Option<f64>,
    weights: &Weights,
    growth: &Growth,
) -> Option<(Action, Reason)> {
    let on_probation = Stage::try_from(seed.stage) == Ok(Stage::Probationary);
    let epochs = slot.stage_epochs(seed, epoch);
    if !on_probation || slot.paused || slot.asked.is_some() || epochs < growth.probation_epochs_min
    {
        return None;
    }
    if slot.keep_refused >= growth.refusals_max {
        return Some((Action::Cull, Reason::KeepRefused));
    }
    match slot.effect(seed, smoothed) {
        Some(effect) if effect <= -weights.keep_effect => {
            Some((Action::Fossilize, Reason::EffectKept))
        }
        Some(effect) if effect >= weights.cull_effect || effect.is_nan() => {
            Some((Action::Cull, Reason::EffectRegressed))
        }
        _ if epochs >= growth.probation_epochs_max => Some((Action::Cull, Reason::EffectAbsent)),
        _ => None,
    }
}

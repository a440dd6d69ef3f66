//! Which slot to grow, and what on it. Pure scoring; ties go to the smaller id.

use karn::Blueprint;
use leyline::Stage;
use leyline::ids::{BlueprintId, SeedId};
use leyline::wire::{SeedState, SystemStatePacket};

use crate::config::Config;
use crate::context::{Candidates, Context};
use crate::memory::RunMemory;
use crate::signals::ACTIVATION_VARIANCE;
use crate::weights::{CANDIDATE_FEATURES, SLOT_FEATURES, Weights};

/// What is to be grown where, and why it rather than another.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The slot.
    pub seed: SeedId,
    /// The slot's position in the packet.
    pub seed_index: usize,
    /// The slot's score.
    pub seed_score: f32,
    /// The blueprint.
    pub blueprint: &'static Blueprint,
    /// The blueprint's score.
    pub blueprint_score: f32,
}

/// Why nothing can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoChoice {
    /// No slot is dormant.
    NoSlot,
    /// Nothing is left for any dormant slot.
    NoBlueprint,
}

/// Chooses among the dormant slots and, for each, among the blueprints that may be grafted, can be
/// had, and were not culled there.
pub(crate) fn choose(
    state: &SystemStatePacket,
    run: &RunMemory,
    context: &Context,
    (config, weights): (&Config, &Weights),
) -> Result<Choice, NoChoice> {
    let dormant = |seed: &SeedState| Stage::try_from(seed.stage) == Ok(Stage::Dormant);
    let mut best: Option<Choice> = None;
    let mut none = NoChoice::NoSlot;
    for (seed_index, seed) in state.seed_states.iter().enumerate().filter(|(_, s)| dormant(s)) {
        none = NoChoice::NoBlueprint;
        let id = SeedId::from(seed.seed_id.as_str());
        let Some((blueprint, blueprint_score)) =
            blueprint_for(&id, run, context, (config, weights))
        else {
            continue;
        };
        let culls = run.slots.get(&id).map_or(0, |slot| slot.culled.len());
        let seed_score = dot(&weights.slot, &slot_features(seed, culls, deepest(state)));
        let better = best.as_ref().is_none_or(|best| {
            seed_score > best.seed_score || seed_score == best.seed_score && id < best.seed
        });
        if better {
            let seed = id;
            best = Some(Choice { seed, seed_index, seed_score, blueprint, blueprint_score });
        }
    }
    best.ok_or(none)
}

fn blueprint_for(
    slot: &SeedId,
    run: &RunMemory,
    context: &Context,
    (config, weights): (&Config, &Weights),
) -> Option<(&'static Blueprint, f32)> {
    let culled = |id: &BlueprintId| {
        run.slots.get(slot).is_some_and(|memory| memory.culled.contains(id))
            || context.culled.iter().any(|(seed, blueprint)| seed == slot && blueprint == id)
    };
    let mut best: Option<(&'static Blueprint, f32)> = None;
    for (index, blueprint) in config.catalogue.iter().enumerate() {
        let id = blueprint.id();
        let Some(preference) = preference(&context.candidates, slot, id) else { continue };
        let is_withheld = blueprint.approval_required() && !config.approved.contains(id);
        if !blueprint.autonomous() || is_withheld || culled(id) {
            continue;
        }
        let features = candidate_features(blueprint, preference);
        // The published formula is never negative; the bias is ours and may be.
        let score = dot(&weights.candidate, &features).max(0.0)
            + weights.blueprint_bias.get(index).copied().unwrap_or(0.0);
        if best.is_none_or(|(_, found)| score > found) {
            best = Some((blueprint, score));
        }
    }
    best
}

/// How much the trainer prefers a blueprint on a slot: 1 for the first of its list, falling evenly;
/// `None` for one that cannot be had there.
fn preference(candidates: &Candidates, slot: &SeedId, id: &BlueprintId) -> Option<f32> {
    let list = match candidates {
        Candidates::Any => return Some(0.0),
        Candidates::Listed(list) => list,
        Candidates::BySlot(lists) => lists.get(slot)?,
        Candidates::Late => return None,
    };
    let rank = list.iter().position(|listed| listed == id)?;
    Some(1.0 - rank as f32 / list.len() as f32)
}

/// `max(0, (1 − risk) + 0.05·maturity + 0.02·#parameters)`, the published candidate score.
pub(crate) fn published_score(blueprint: &Blueprint) -> f32 {
    dot(&[1.0, 0.05, 0.02, 0.0], &candidate_features(blueprint, 0.0)).max(0.0)
}

fn candidate_features(blueprint: &Blueprint, preference: f32) -> [f32; CANDIDATE_FEATURES] {
    [
        1.0 - karn::safety_sheet(blueprint).risk,
        blueprint.stage() as f32,
        blueprint.parameters().len() as f32,
        preference,
    ]
}

fn slot_features(seed: &SeedState, culls: usize, deepest: u32) -> [f32; SLOT_FEATURES] {
    let finite = |value: f32| if value.is_finite() { value } else { 0.0 };
    let variance = seed.metrics.get(ACTIVATION_VARIANCE).copied().unwrap_or(0.0);
    [
        1.0 - finite(seed.risk_score).clamp(0.0, 1.0),
        seed.layer_depth as f32 / deepest.max(1) as f32,
        finite(seed.gradient_norm).max(0.0).ln_1p(),
        finite(variance).max(0.0).ln_1p(),
        culls as f32,
    ]
}

fn deepest(state: &SystemStatePacket) -> u32 {
    state.seed_states.iter().map(|seed| seed.layer_depth).max().unwrap_or(0)
}

fn dot<const N: usize>(weights: &[f32; N], features: &[f32; N]) -> f32 {
    weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum()
}

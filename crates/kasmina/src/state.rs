//! A seed as state packets show it.

use std::collections::BTreeMap;

use leyline::Stage;
use leyline::wire::SeedState;

use crate::config::Config;
use crate::moment::Now;
use crate::seed::{Hold, Life, Seed};

/// The wire's form of one seed.
pub(crate) fn wire_state(seed: &Seed, config: &Config, now: Now) -> SeedState {
    let graft = seed.life().graft();
    SeedState {
        seed_id: seed.slot.seed.to_string(),
        stage: seed.stage().wire() as i32,
        gradient_norm: seed.gradient_norm as f32,
        learning_rate: seed.learning_rate as f32,
        layer_depth: seed.slot.layer_depth,
        metrics: metrics(seed, config),
        age_epochs: graft.map_or(0, |graft| now.epoch.saturating_sub(graft.since.epoch)),
        risk_score: graft.map_or(0.0, |graft| graft.risk),
    }
}

fn metrics(seed: &Seed, config: &Config) -> BTreeMap<String, f32> {
    let ramp = match seed.life() {
        Life::Blending { ramp, .. } => *ramp,
        _ => config.ramp,
    };
    let evidence = seed.evidence();
    let mut metrics = BTreeMap::from([
        ("alpha", seed.life().alpha()),
        ("alpha_total_steps", ramp.steps as f32),
        ("alpha_temperature", ramp.temperature),
        ("blend_allowed", f32::from(u8::from(blends(seed.stage())))),
        ("isolation_violations", evidence.violations as f32),
        ("stage_steps", evidence.steps as f32),
        ("paused", f32::from(u8::from(seed.hold == Hold::Paused))),
    ]);
    if let Life::Blending { step, .. } = seed.life() {
        metrics.insert("alpha_steps", *step as f32);
    }
    if let Some(graft) = seed.life().graft() {
        metrics.insert("risk_tolerance", 1.0 - graft.risk);
    }
    if let Some(kernel) = seed.life().kernel() {
        metrics.insert("kernel_latency_ms", kernel.fetch_ms as f32);
    }
    if let Some(loss) = evidence.loss {
        metrics.insert("loss", loss.last as f32);
    }
    if let Some(latency) = evidence.latency_ms {
        metrics.insert("step_latency_ms", latency.last as f32);
    }
    metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Whether the stage is one in which the host may see the seed.
const fn blends(stage: Stage) -> bool {
    match stage {
        Stage::Blending | Stage::Shadowing | Stage::Probationary | Stage::Fossilized => true,
        Stage::Dormant
        | Stage::Germinated
        | Stage::Training
        | Stage::Culled
        | Stage::Embargoed
        | Stage::Resetting
        | Stage::Terminated => false,
    }
}

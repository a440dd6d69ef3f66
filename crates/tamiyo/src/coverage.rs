//! How much of what a decision may look at was there.

use std::collections::BTreeMap;

use leyline::wire::{SystemStatePacket, TelemetryLevel};

use crate::policy::Event;

/// The metrics the rules and the reports look at.
const EXPECTED: [&str; 16] = [
    "loss",
    "gradient_norm",
    "samples_per_s",
    "loss_delta",
    "loss_ewma",
    "loss_volatility",
    "grad_norm_ewma",
    "grad_var",
    "optimizer_lr",
    "hook_latency_ms",
    "tamiyo_latency_ms",
    "step_latency_ms",
    "kasmina.apply_ms",
    "kasmina.finalize_ms",
    "kasmina.isolation.violations",
    "epochs_total",
];
/// At or below this share a decision is taken nearly blind.
const CRITICAL: f32 = 0.10;
/// Below this share it is worth a note.
const LOW: f32 = 0.30;

/// The share of [`EXPECTED`] that was present and finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Coverage(f32);

pub(crate) fn of(state: &SystemStatePacket) -> Coverage {
    let there =
        |name: &&&str| state.training_metrics.get(**name).is_some_and(|value| value.is_finite());
    Coverage(EXPECTED.iter().filter(there).count() as f32 / EXPECTED.len() as f32)
}

impl Coverage {
    pub(crate) fn event(self) -> Option<Event> {
        let level = match self.0 {
            share if share <= CRITICAL => TelemetryLevel::Critical,
            share if share < LOW => TelemetryLevel::Info,
            _ => return None,
        };
        Some(Event { name: "degraded_inputs", level })
    }

    pub(crate) fn annotate(self, annotations: &mut BTreeMap<String, String>) {
        annotations.insert("feature_coverage".to_owned(), format!("{:.6}", self.0));
    }
}

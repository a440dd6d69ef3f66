//! Times measured while training.

use std::collections::BTreeMap;
use std::time::Duration;

use leyline::ids::SeedId;

/// Times kept for the medians of the report.
const TIMES_MAX: usize = 100_000;

/// Measured times; those of the previous epoch go into a packet.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) steps_us: Vec<f64>,
    pub(super) hooks_us: Vec<f64>,
    pub(super) step_ms: f32,
    pub(super) hook_ms: Option<f32>,
    pub(super) decide_ms: Option<f32>,
    pub(super) apply_ms: Option<f32>,
    pub(super) finalize_ms: Option<f32>,
    pub(super) samples_per_s: f32,
    /// Fastest isolated pass of each seed: its cost, whatever else the machine was doing.
    pub(super) isolated_ms: BTreeMap<SeedId, f32>,
}

impl Times {
    pub(super) fn step(&mut self, taken: Duration) {
        if self.steps_us.len() < TIMES_MAX {
            self.steps_us.push(taken.as_secs_f64() * 1e6);
        }
    }

    pub(super) fn epoch(&mut self, taken: Duration, steps: usize, batch: usize) {
        let seconds = taken.as_secs_f32().max(f32::EPSILON);
        self.step_ms = seconds * 1e3 / steps.max(1) as f32;
        self.samples_per_s = (steps * batch) as f32 / seconds;
    }

    pub(super) fn hook(&mut self, taken: Duration) {
        self.hook_ms = Some(milliseconds(taken));
        if self.hooks_us.len() < TIMES_MAX {
            self.hooks_us.push(taken.as_secs_f64() * 1e6);
        }
    }
}

pub(super) fn milliseconds(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e3
}

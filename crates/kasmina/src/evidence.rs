//! What is known of a seed when a gate is judged: observations of single steps, gathered.

use std::collections::BTreeMap;

use kernel::quarantine::Finding;
use leyline::ids::BlueprintId;

use crate::isolation;

/// What the trainer measured of one seed in one step. What it did not measure is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observation {
    /// The seed's loss: of its isolated pass in TRAINING, of the blended network later.
    pub loss: Option<f64>,
    /// Norm of the seed's own gradients.
    pub gradient_norm: Option<f64>,
    /// Norm of the host's gradients that came through the seed's branch; must be zero.
    pub host_gradient_norm: Option<f64>,
    /// Learning rate of the seed's parameters.
    pub learning_rate: Option<f64>,
    /// Milliseconds the seed's forward pass took.
    pub latency_ms: Option<f64>,
    /// How large the seed's output is beside the host's.
    pub output: Option<OutputScale>,
    /// Whether shapes at the slot fit.
    pub interface: Option<Interface>,
    /// Validation of the whole network, at the end of an epoch.
    pub validation: Option<Validation>,
}

/// Root mean squares at the slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputScale {
    /// Of the host's activation.
    pub host_rms: f64,
    /// Of the seed's output.
    pub seed_rms: f64,
}

/// Whether the seed fits its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// The output has the host's shape.
    Matches,
    /// It has another.
    Differs,
}

/// The whole network on data it does not train on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validation {
    /// Loss.
    pub loss: f64,
    /// Accuracy, 0 to 1.
    pub accuracy: f64,
}

/// Whether a kernel is in the slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KernelPresence {
    /// None.
    #[default]
    Absent,
    /// Attached and verified.
    Attached,
}

/// Smallest, greatest and newest of a measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Smallest.
    pub low: f64,
    /// Greatest.
    pub high: f64,
    /// Newest.
    pub last: f64,
    /// How many there were.
    pub count: u32,
}

impl Range {
    fn extend(range: &mut Option<Self>, value: f64) {
        *range = Some(match *range {
            None => Self { low: value, high: value, last: value, count: 1 },
            Some(range) => Self {
                low: range.low.min(value),
                high: range.high.max(value),
                last: value,
                count: range.count.saturating_add(1),
            },
        });
    }
}

/// What the gates look at. Measures are those of the present stage; what happened to the seed over
/// its whole life (violations, baseline) stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// The blueprint asked for; empty when none was.
    pub blueprint: Option<BlueprintId>,
    /// Its parameters.
    pub parameters: BTreeMap<String, f32>,
    /// Whether a kernel is attached.
    pub kernel: KernelPresence,
    /// Whether the host model is registered.
    pub host_registered: bool,
    /// Isolation violations since germination.
    pub violations: u32,
    /// Validation before the seed could have an effect.
    pub baseline: Option<Validation>,
    /// Steps in this stage.
    pub steps: u32,
    /// Losses in this stage.
    pub loss: Option<Range>,
    /// Gradient norms in this stage.
    pub gradient_norm: Option<Range>,
    /// Latencies in this stage, in milliseconds.
    pub latency_ms: Option<Range>,
    /// Greatest ratio of seed to host output in this stage.
    pub output_ratio: Option<Range>,
    /// Measures of this stage that were no finite number.
    pub not_finite: u32,
    /// What quarantine found; set only in evidence that comes from there.
    pub caught: Option<Finding>,
    /// Steps of the alpha ramp that are still to come; 0 outside BLENDING.
    pub ramp_left: u32,
    /// The last interface check in this stage.
    pub interface: Option<Interface>,
    /// Validations in this stage, in order; the last 256.
    pub validations: Vec<Validation>,
}

/// Validations kept for one stage; more than any probation needs.
pub const VALIDATIONS_MAX: usize = 256;

impl Evidence {
    /// Adds one step, and says whether it shows an isolation violation.
    pub fn observe(&mut self, seen: &Observation) -> Result<(), isolation::Violation> {
        self.steps = self.steps.saturating_add(1);
        self.measure(seen.loss, |evidence| &mut evidence.loss);
        self.measure(seen.gradient_norm, |evidence| &mut evidence.gradient_norm);
        self.measure(seen.latency_ms, |evidence| &mut evidence.latency_ms);
        let ratio = seen.output.map(|output| output.seed_rms / output.host_rms.max(f64::EPSILON));
        self.measure(ratio, |evidence| &mut evidence.output_ratio);
        self.interface = seen.interface.or(self.interface);
        if let Some(validation) = seen.validation {
            if self.validations.len() == VALIDATIONS_MAX {
                self.validations.remove(0);
            }
            self.validations.push(validation);
        }
        match seen.host_gradient_norm.map(isolation::check) {
            Some(Err(violation)) => {
                self.violations = self.violations.saturating_add(1);
                Err(violation)
            }
            Some(Ok(())) | None => Ok(()),
        }
    }

    fn measure(&mut self, value: Option<f64>, of: impl Fn(&mut Self) -> &mut Option<Range>) {
        match value {
            None => {}
            Some(value) if value.is_finite() => Range::extend(of(self), value),
            Some(_) => self.not_finite = self.not_finite.saturating_add(1),
        }
    }

    /// Forgets the measures of a stage that was left.
    pub fn next_stage(&mut self) {
        *self = Self {
            blueprint: self.blueprint.take(),
            parameters: std::mem::take(&mut self.parameters),
            kernel: self.kernel,
            host_registered: self.host_registered,
            violations: self.violations,
            baseline: self.baseline,
            ..Self::default()
        };
    }
}

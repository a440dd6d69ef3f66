//! What a kernel may use and do in quarantine.

use std::time::Duration;

use crate::cost::Cost;

/// Budgets of one quarantine. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// 64: training steps.
    pub steps: u32,
    /// 0.003: learning rate of the trial (Adam, gradients clipped to norm 1).
    pub rate: f32,
    /// 50 ms: time of one run of a kernel that computes nothing; [`Budget::run_time`] adds what its operations may take.
    /// Judged by the fastest of three runs, so that a busy machine convicts nobody.
    pub run_time: Duration,
    /// 10 s: a single run that lasts longer is abandoned.
    pub run_time_max: Duration,
    /// 60 s: the whole trial.
    pub total_time: Duration,
    /// 256 MiB: the plans for training and for use together.
    pub memory_bytes_max: u64,
    /// 3 MiB: how much more memory may be held after a run than after any earlier one.
    pub growth_bytes_max: u64,
    /// 1e-3: norm of the gradient at the kernel's input as a share of that at its output, at least, in the best step.
    pub amplification_min: f64,
    /// 100: the same, at most, in every step.
    pub amplification_max: f64,
    /// 1000: root mean square of the output as a multiple of the input's.
    pub output_ratio_max: f64,
    /// 0.1: by this share the loss on what the kernel trained on may be larger than before, both in the middle of the
    /// training and at its end.
    pub harm_max: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            steps: 64,
            rate: 0.003,
            run_time: Duration::from_millis(50),
            run_time_max: Duration::from_secs(10),
            total_time: Duration::from_secs(60),
            memory_bytes_max: 256 << 20,
            growth_bytes_max: 3 << 20,
            amplification_min: 1e-3,
            amplification_max: 100.0,
            output_ratio_max: 1e3,
            harm_max: 0.1,
        }
    }
}

/// Nanoseconds an operation of a forward pass may take with its share of the backward pass: far more than it does.
const OPERATION_NS: u64 = 30;

impl Budget {
    /// Time of one run of a kernel of this cost.
    pub(super) fn run_time_of(&self, cost: &Cost) -> Duration {
        self.run_time + Duration::from_nanos(cost.operations.saturating_mul(OPERATION_NS))
    }
}

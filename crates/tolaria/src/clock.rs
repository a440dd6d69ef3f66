//! The two times of a run: one that people read, and one that decides.

use std::time::{Duration, Instant};

use kasmina::Now;

/// What an epoch counts for when a duration (embargo, breaker, fetch deadline) is measured in the run's own time:
/// 30 s of embargo are 30 epochs, on every machine.
const EPOCH: Duration = Duration::from_secs(1);

/// Both times.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    started: Instant,
    epoch_steps: u32,
    pub(crate) epoch: u32,
    pub(crate) step: u64,
    step_in_epoch: u32,
}

impl Clock {
    pub(crate) fn start(epoch_steps: usize, epoch: u32, step: u64) -> Self {
        let epoch_steps = u32::try_from(epoch_steps).unwrap_or(u32::MAX).max(1);
        Self { started: Instant::now(), epoch_steps, epoch, step, step_in_epoch: 0 }
    }

    pub(crate) fn next_epoch(&mut self) {
        self.epoch += 1;
        self.step_in_epoch = 0;
    }

    pub(crate) fn next_step(&mut self) {
        self.step += 1;
        self.step_in_epoch += 1;
    }

    /// The moment as the seed manager takes it. Only `unix_ms` depends on a real clock.
    pub(crate) fn now(&self) -> Now {
        let part = EPOCH * self.step_in_epoch / self.epoch_steps;
        let elapsed = EPOCH * self.epoch.saturating_sub(1) + part;
        Now { unix_ms: leyline::time::now_unix_ms(), elapsed, step: self.step, epoch: self.epoch }
    }

    /// Milliseconds since the run began, for people.
    pub(crate) fn wall_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }
}

//! Settings of a training run.

use std::path::PathBuf;
use std::time::Duration;

use leyline::ids::{RunId, SeedId};

use crate::data::Source;

/// Settings of one training run. Epochs and steps, never seconds, decide what happens when: the same settings and the
/// same `seed` give the same curve on every machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The run's id on the bus.
    pub run: RunId,
    /// What is learnt.
    pub source: Source,
    /// Decides everything random: points, split, weights, order of rows.
    pub seed: u64,
    /// Width of the representation, which is the size of kernel the library must have. Default 32.
    pub width: usize,
    /// Slots in series. Default 3.
    pub slots: usize,
    /// Epochs after which the run ends in any case. Default 400.
    pub epochs_max: u32,
    /// Rows per optimiser step; fewer when the data set is smaller. Default 32.
    pub batch: usize,
    /// Least optimiser steps per epoch; a small data set is gone through several times. Default 16.
    pub epoch_steps_min: usize,
    /// Adam's learning rate. Default 0.003.
    pub rate: f32,
    /// Epochs from the decision for a seed to the attaching of its kernel. The kernel has this long to arrive while
    /// training goes on; when it is late, it is attached as soon as it is there, and the report says so, since
    /// such a run cannot be repeated to the bit. Default 12.
    pub attach_after_epochs: u32,
    /// Epochs a seed trains in isolation. Default 20.
    pub training_epochs: u32,
    /// Epochs over which alpha rises. Default 4.
    pub blend_epochs: u32,
    /// Epochs a seed is on probation. Default 8.
    pub probation_epochs: u32,
    /// A validation loss at or below this needs no growth. Default 0.05.
    pub loss_fine: f32,
    /// Grafts in a row that were not kept after which nothing more is grown. Default 3.
    pub failures_max: usize,
    /// Longest time training waits for a kernel whose epoch has come. Default zero: training never waits. Above zero a
    /// run can be repeated to the bit on a machine that is too slow for its schedule.
    pub kernel_wait_max: Duration,
    /// Epochs without anything to do or to wait for after which the run ends. Default 10.
    pub calm_epochs: u32,
    /// Least time an epoch takes, so that a person can watch; waiting is all it changes. Default 40 ms.
    pub epoch_time_min: Duration,
    /// Directory for checkpoints (weights, see [`crate::Checkpoint`]); none without.
    pub checkpoints: Option<PathBuf>,
    /// Epochs between checkpoints. Default 25.
    pub checkpoint_epochs: u32,
    /// Whether to train the two networks that growth is compared with.
    pub comparison: Comparison,
}

/// Whether the comparison runs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The host alone, and a fixed network of the grown size, each for as many epochs.
    Both,
    /// None.
    Skip,
}

impl Config {
    /// The defaults for a task.
    pub fn new(run: RunId, source: Source, seed: u64) -> Self {
        Self {
            run,
            source,
            seed,
            width: 32,
            slots: 3,
            epochs_max: 400,
            batch: 32,
            epoch_steps_min: 16,
            rate: 0.003,
            attach_after_epochs: 12,
            training_epochs: 20,
            blend_epochs: 4,
            probation_epochs: 8,
            loss_fine: 0.05,
            failures_max: 3,
            kernel_wait_max: Duration::ZERO,
            calm_epochs: 10,
            epoch_time_min: Duration::from_millis(40),
            checkpoints: None,
            checkpoint_epochs: 25,
            comparison: Comparison::Both,
        }
    }

    /// The ids of the slots, in order: `slot-a`, `slot-b` and so on.
    pub fn seed_ids(&self) -> Vec<SeedId> {
        let letters = ('a'..='z').take(self.slots);
        letters.map(|letter| SeedId::new(format!("slot-{letter}"))).collect()
    }

    /// Every fault of the settings, in words that say what to change.
    pub fn check(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut demand = |holds: bool, fault: &str| {
            if !holds {
                faults.push(fault.to_owned());
            }
        };
        demand((1..=4096).contains(&self.width), "width must be 1 to 4096");
        demand((1..=26).contains(&self.slots), "slots must be 1 to 26");
        demand(self.epochs_max >= 1, "epochs_max must be at least 1");
        demand(self.batch >= 1, "batch must be at least 1");
        demand(self.epoch_steps_min >= 1, "epoch_steps_min must be at least 1");
        demand(self.rate.is_finite() && self.rate > 0.0, "rate must be a number above 0");
        demand(self.training_epochs >= 1, "training_epochs must be at least 1");
        demand(self.blend_epochs >= 1, "blend_epochs must be at least 1");
        demand(
            self.loss_fine.is_finite() && self.loss_fine >= 0.0,
            "loss_fine must be a number of at least 0",
        );
        demand(self.failures_max >= 1, "failures_max must be at least 1");
        demand(self.probation_epochs >= 1, "probation_epochs must be at least 1");
        demand(self.checkpoint_epochs >= 1, "checkpoint_epochs must be at least 1");
        demand(!self.run.as_str().is_empty(), "the run needs an id");
        faults
    }

    /// Epochs from the decision for a seed to its end.
    pub(crate) fn growth_epochs(&self) -> u32 {
        self.attach_after_epochs
            + self.training_epochs
            + self.blend_epochs
            + 1
            + self.probation_epochs
    }
}

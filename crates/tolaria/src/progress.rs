//! What a run shows while it goes on and what it ends with.

use leyline::Stage;
use leyline::ids::{BlueprintId, SeedId};
use serde::{Deserialize, Serialize};

/// One epoch of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counting from 1.
    pub epoch: u32,
    /// Mean loss of its steps.
    pub training_loss: f32,
    /// Loss on the validation rows at its end.
    pub validation_loss: f32,
    /// Accuracy on the validation rows, 0 to 1.
    pub validation_accuracy: f32,
    /// Accuracy on the test rows, 0 to 1. Shown, never decided by.
    pub test_accuracy: f32,
    /// Numbers in all parameters the host sees.
    pub parameters: usize,
    /// Alpha of each slot as the host sees it.
    pub alphas: Vec<f32>,
    /// Stage of each slot, by the contract's number.
    pub stages: Vec<i32>,
}

/// One slot now.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedView {
    /// Its seed.
    pub seed: SeedId,
    /// Where it stands.
    pub stage: Stage,
    /// How much of it the host sees.
    pub alpha: f32,
    /// What grows there.
    pub blueprint: Option<BlueprintId>,
    /// Whether it is paused.
    pub paused: bool,
}

/// A snapshot for those who watch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// What the run is doing.
    pub phase: Phase,
    /// Epochs done.
    pub epoch: u32,
    /// Epochs there are at most.
    pub epochs_max: u32,
    /// Newest validation loss.
    pub loss: f32,
    /// Newest validation accuracy, 0 to 1.
    pub accuracy: f32,
    /// Newest test accuracy, 0 to 1.
    pub test_accuracy: f32,
    /// Numbers in all parameters the host sees.
    pub parameters: usize,
    /// Each slot.
    pub seeds: Vec<SeedView>,
    /// Kernels asked for and not attached yet.
    pub kernels_in_flight: usize,
    /// Messages that found the outbox full.
    pub dropped_messages: u64,
    /// Every epoch so far; shared, so that a snapshot costs nothing.
    pub history: std::sync::Arc<Vec<Epoch>>,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Starting,
    /// Training and growing.
    Training,
    /// Training what growth is compared with.
    Comparing,
    /// It is over.
    Finished,
}

/// One step of a seed's journey.
#[derive(Debug, Clone, PartialEq)]
pub struct Milestone {
    /// The stage entered.
    pub stage: Stage,
    /// In which epoch.
    pub epoch: u32,
    /// After which step of the run.
    pub step: u64,
    /// Milliseconds after the run began, by the wall clock: for people, nothing depends on it.
    pub at_ms: f64,
}

/// The life of one graft, from command to end.
#[derive(Debug, Clone, PartialEq)]
pub struct Journey {
    /// Where.
    pub seed: SeedId,
    /// What.
    pub blueprint: BlueprintId,
    /// Each stage it entered.
    pub milestones: Vec<Milestone>,
    /// Order to kernel in hand, in milliseconds; `None` when none came.
    pub fetch_ms: Option<f64>,
    /// Epochs by which the kernel missed its place in the schedule.
    pub late_epochs: u32,
    /// Validation loss before it took part and at the end of its probation.
    pub losses: Option<(f64, f64)>,
    /// Numbers in its parameters.
    pub parameters: usize,
    /// Why it ended, when it was not kept.
    pub reason: Option<String>,
}

impl Journey {
    /// Where it stands.
    pub fn stage(&self) -> Stage {
        self.milestones.last().map_or(Stage::Dormant, |last| last.stage)
    }

    /// Whether it was kept.
    pub fn is_kept(&self) -> bool {
        self.stage() == Stage::Fossilized
    }
}

/// Accuracy and size of one trained network.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Accuracy on the test rows, 0 to 1.
    pub accuracy: f32,
    /// Loss on the test rows.
    pub loss: f32,
    /// Numbers in its parameters.
    pub parameters: usize,
    /// Epochs it was trained.
    pub epochs: u32,
    /// Seconds that took.
    pub seconds: f64,
}

/// The class the network gives each point of a grid over a plane of two features.
#[derive(Debug, Clone, PartialEq)]
pub struct Boundary {
    /// Points along each axis.
    pub resolution: usize,
    /// Smallest and largest value of each feature, as in the data set.
    pub range: [(f32, f32); 2],
    /// Probability of the last class, row by row from the smallest second feature.
    pub probability: Vec<f32>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There was nothing left to gain or to try.
    Settled,
    /// All epochs were used.
    EpochsUsed,
    /// It was told to stop.
    Stopped,
}

/// What a run ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The host when growth began, or at the end when nothing grew.
    pub before: Figures,
    /// The grown network.
    pub grown: Figures,
    /// The same host trained for as many epochs without growth.
    pub host_alone: Option<Figures>,
    /// A fixed network of the grown size, trained from the start for as many epochs.
    pub fixed: Option<Figures>,
    /// Every graft.
    pub journeys: Vec<Journey>,
    /// Every epoch.
    pub history: Vec<Epoch>,
    /// What the host alone gave each epoch: test accuracy.
    pub host_alone_accuracy: Vec<f32>,
    /// What the fixed network gave each epoch: test accuracy.
    pub fixed_accuracy: Vec<f32>,
    /// Decision boundary when growth began, for two features and two classes.
    pub boundary_before: Option<Boundary>,
    /// Decision boundary at the end.
    pub boundary_after: Option<Boundary>,
    /// How often the host was brought back to what it was before a graft.
    pub rollbacks: u32,
    /// What the rules on measured times found: they report and change nothing.
    pub timing_findings: u32,
    /// Messages that found the outbox full.
    pub dropped_messages: u64,
    /// Median time of an optimiser step, in microseconds.
    pub step_us: f64,
    /// Median time of the epoch hook (state, decision, command), in microseconds.
    pub hook_us: f64,
}

impl Outcome {
    /// Whether another run with the same settings gives the same curve: no kernel came late.
    pub fn is_repeatable(&self) -> bool {
        self.end != End::Stopped && self.journeys.iter().all(|journey| journey.late_epochs == 0)
    }
}

//! What a quarantine found, and what it measured on the way.

use serde::Serialize;

/// One thing a kernel did wrong. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Finding {
    /// A run, or the whole, took longer than anything may, and was abandoned.
    #[error("still running after {after_ms:.0} ms, and abandoned")]
    TimedOut {
        /// How long what was abandoned had run.
        after_ms: f64,
    },
    /// Even the fastest run was slower than its work explains.
    #[error("the fastest of {runs} runs took {fastest_ms:.1} ms; {budget_ms:.1} ms are given")]
    TooSlow {
        /// Time of the fastest run.
        fastest_ms: f64,
        /// What is given.
        budget_ms: f64,
        /// Number of runs.
        runs: u32,
    },
    /// The kernel needs too much memory to begin with.
    #[error("its plans need {bytes} bytes; {budget_bytes} are given")]
    TooLarge {
        /// Bytes of its plans.
        bytes: u64,
        /// What is given.
        budget_bytes: u64,
    },
    /// Memory grew from run to run.
    #[error("{grown_bytes} bytes more are held after {runs} runs; {budget_bytes} are given")]
    MemoryGrew {
        /// By how much.
        grown_bytes: u64,
        /// What is given.
        budget_bytes: u64,
        /// Number of runs.
        runs: u32,
    },
    /// Threads of the kernel waited for each other.
    #[error("{threads} threads waited for each other for {waited_ms} ms")]
    Deadlocked {
        /// Threads in the ring.
        threads: u32,
        /// How long.
        waited_ms: u64,
    },
    /// A value was infinite or not a number.
    #[error("{value} was no finite number in step {step}")]
    NotFinite {
        /// Name of the value.
        value: String,
        /// In which step.
        step: u32,
    },
    /// Two runs on the same input gave different values.
    #[error("{value} differed between two runs on the same input, by up to {difference:e}")]
    NotRepeatable {
        /// Name of the value.
        value: String,
        /// Largest difference of two elements.
        difference: f64,
    },
    /// The gradient grew too much on its way through the kernel.
    #[error(
        "the gradient grew {amplification:.3e}-fold on its way through; {ceiling} is the ceiling"
    )]
    GradientExploded {
        /// Its norm at the input over that at the output.
        amplification: f64,
        /// The most that is allowed.
        ceiling: f64,
    },
    /// Next to nothing of the gradient came through the kernel.
    #[error(
        "the gradient shrank to {amplification:.3e} of itself on its way through; {floor} is the floor"
    )]
    GradientVanished {
        /// Its norm at the input over that at the output, at best.
        amplification: f64,
        /// The least that is allowed.
        floor: f64,
    },
    /// The output went far away from the size of the input.
    #[error("the output is {ratio:.3e} times as large as the input; {ceiling} is the ceiling")]
    OutputDrifted {
        /// Root mean square of the output over the input's.
        ratio: f64,
        /// The most that is allowed.
        ceiling: f64,
    },
    /// Training made the network worse on the very samples it was trained on.
    #[error("training raised the loss from {before:.4} to {after:.4}")]
    Harmful {
        /// Loss before the first step.
        before: f64,
        /// Loss after the last.
        after: f64,
    },
    /// The engine refused to compile or run the kernel.
    #[error("the kernel could not be run: {error}")]
    Failed {
        /// What it said.
        error: String,
    },
    /// The trial panicked.
    #[error("the kernel made the engine panic")]
    Panicked,
}

impl Finding {
    /// Every reason, as [`Finding::reason`] spells it.
    pub const REASONS: [&'static str; 13] = [
        "timed_out",
        "too_slow",
        "too_large",
        "memory_grew",
        "deadlocked",
        "not_finite",
        "not_repeatable",
        "gradient_exploded",
        "gradient_vanished",
        "output_drifted",
        "harmful",
        "failed",
        "panicked",
    ];

    /// The reason as stable text, for programs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timed_out",
            Self::TooSlow { .. } => "too_slow",
            Self::TooLarge { .. } => "too_large",
            Self::MemoryGrew { .. } => "memory_grew",
            Self::Deadlocked { .. } => "deadlocked",
            Self::NotFinite { .. } => "not_finite",
            Self::NotRepeatable { .. } => "not_repeatable",
            Self::GradientExploded { .. } => "gradient_exploded",
            Self::GradientVanished { .. } => "gradient_vanished",
            Self::OutputDrifted { .. } => "output_drifted",
            Self::Harmful { .. } => "harmful",
            Self::Failed { .. } => "failed",
            Self::Panicked => "panicked",
        }
    }
}

/// What one training step of the trial showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    /// Loss of the trial.
    pub loss: f64,
    /// Norm of the gradients of the kernel's own parameters.
    pub gradient_norm: f64,
    /// Norm of the gradient at the kernel's input over that at its output.
    pub amplification: f64,
    /// Root mean square of what went in.
    pub input_rms: f64,
    /// Root mean square of what came out.
    pub output_rms: f64,
    /// Time of the faster of the two runs, in milliseconds.
    pub run_ms: f64,
}

/// What came of a quarantine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// What was found, the foremost first. The trial ends with the step that shows something.
    pub findings: Vec<Finding>,
    /// The steps that were completed.
    pub measures: Vec<Measure>,
    /// Loss in the form for use before the first step.
    pub loss_before: Option<f64>,
    /// The same after the last.
    pub loss_after: Option<f64>,
    /// Time of the fastest run, in milliseconds.
    pub fastest_run_ms: Option<f64>,
    /// Bytes of the plans for training and for use.
    pub arena_bytes: u64,
    /// Bytes held after the last run beyond those held after the first.
    pub grown_bytes: u64,
    /// Runs of the kernel.
    pub runs: u32,
    /// The whole, in milliseconds.
    pub took_ms: f64,
    /// Whether the thread of an abandoned trial had not ended when this was reported.
    pub is_left_running: bool,
    #[serde(skip)]
    is_closed: bool,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// The foremost finding.
    pub fn foremost(&self) -> Option<&Finding> {
        self.findings.first()
    }

    /// The foremost reason as stable text, `sound` when nothing was found.
    pub fn verdict(&self) -> &'static str {
        self.foremost().map_or("sound", Finding::reason)
    }

    /// Smallest and greatest amplification of the gradient.
    pub fn amplification(&self) -> Option<(f64, f64)> {
        let mut of = self.measures.iter().map(|measure| measure.amplification);
        let first = of.next()?;
        Some(of.fold((first, first), |(low, high), one| (low.min(one), high.max(one))))
    }

    pub(super) fn find(&mut self, finding: Finding) {
        if !self.is_closed {
            self.findings.push(finding);
        }
    }

    /// The last word: what an abandoned trial still finds is not reported.
    pub(super) fn close(&mut self, finding: Finding) {
        self.find(finding);
        self.is_closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }
}

//! Settings of the policy, its update channel and its field reports.

use std::path::PathBuf;
use std::time::Duration;

/// Thresholds by which decisions are taken. All losses are cross entropies in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyConfig {
    /// Weight of the newest validation loss in the smoothed one, above 0 up to 1. Default 0.3; smaller reacts later.
    pub smoothing: f32,
    /// Epochs without an improvement of `improvement_min` after which training counts as stuck. Default 15.
    pub patience_epochs: u32,
    /// Smallest fall of the smoothed loss that counts as an improvement. Default 0.005.
    pub improvement_min: f32,
    /// A smoothed validation loss at or below this needs no growth. Default 0.05.
    pub loss_fine: f32,
    /// A seed on probation is kept when it lowered the validation loss by at least this. Default 0.005.
    pub effect_min: f32,
    /// Loss rise from one epoch to the next that pauses growth (rule 12). Default 0.15.
    pub loss_spike: f32,
    /// Loss rise that only holds growth back (rule 13). Default 0.075.
    pub loss_warning: f32,
    /// Epochs that conservative mode lasts at least. Default 20.
    pub cool_down_epochs: u32,
    /// Epochs without a finding, at the end of the cool-down, before conservative mode ends. Default 5.
    pub good_epochs: u32,
    /// What the rules on measured times may do. Default [`Timing::Record`].
    pub timing: Timing,
    /// Time the decision itself may take, in milliseconds. Default 5 (`TAMIYO_STEP_TIMEOUT_MS`).
    pub decision_budget_ms: f32,
    /// Most blueprints tried on one slot before it is left alone. Default 4.
    pub attempts_max: usize,
}

/// What the risk rules on measured times (5, 14 to 17, 23 and 24) may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// Report a breach, decide as if there were none: the same seed gives the same run on a slow machine.
    Record,
    /// Act on a breach as the rule says. Runs are then no longer repeatable to the bit.
    Enforce,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            smoothing: 0.3,
            patience_epochs: 15,
            improvement_min: 0.005,
            loss_fine: 0.05,
            effect_min: 0.005,
            loss_spike: 0.15,
            loss_warning: 0.075,
            cool_down_epochs: 20,
            good_epochs: 5,
            timing: Timing::Record,
            decision_budget_ms: 5.0,
            attempts_max: 4,
        }
    }
}

/// Settings of [`crate::PolicyUpdates`] and of the stored policy.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateConfig {
    /// Where the policy in force and its predecessor are kept (`TAMIYO_POLICY_DIR`).
    pub directory: PathBuf,
    /// Oldest age at which an update is still accepted; zero accepts any age
    /// (`TAMIYO_UPDATE_FRESHNESS_SEC`). Default one hour.
    pub age_max: Duration,
    /// Largest payload in bytes. The present policy has under 1 KiB. Default 16 MiB.
    pub payload_bytes_max: usize,
}

impl UpdateConfig {
    /// Defaults, in a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let (age_max, payload_bytes_max) = (Duration::from_secs(3600), 16 << 20);
        Self { directory: directory.into(), age_max, payload_bytes_max }
    }
}

/// Settings of the field report store and its publisher.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportConfig {
    /// The append-only file.
    pub path: PathBuf,
    /// How long a report is kept (`TAMIYO_FIELD_REPORT_RETENTION_HOURS`). Default 24 h.
    pub retention: Duration,
    /// Attempts to publish one report before it stays on disk only. Default 4.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubles each time. Default 2 s.
    pub retry_after: Duration,
    /// Most reports held in memory at once, those of other runs included. Default 10 000.
    pub reports_max: usize,
}

impl ReportConfig {
    /// Defaults, with a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            retention: Duration::from_secs(24 * 3600),
            attempts_max: 4,
            retry_after: Duration::from_secs(2),
            reports_max: 10_000,
        }
    }
}

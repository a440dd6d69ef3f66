//! Settings of the policy. A plain struct: reading it from the environment is `weatherlight`'s.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karn::Catalogue;
use leyline::ids::BlueprintId;

/// Settings of one policy and its workers. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `TAMIYO_POLICY_DIR`, `./var/tamiyo/policies`: where an accepted policy is kept. Made when
    /// missing.
    pub policy_dir: PathBuf,
    /// `TAMIYO_FIELD_REPORT_DIR`, `./var/tamiyo/reports`: where field reports are kept. Made when
    /// missing; one process at a time.
    pub report_dir: PathBuf,
    /// `TAMIYO_CONSERVATIVE_MODE`, `Normal`: what an operator asks for. `Conservative` holds until
    /// the operator releases it; nothing grows meanwhile.
    pub operator: Operator,
    /// 5 s: how long an executor may take until a command is void.
    pub command_deadline: Duration,
    /// 32 runs: what is remembered of more is forgotten, the longest unseen run first.
    pub runs_max: usize,
    /// The blueprints that may be chosen from: ours, and those that users brought.
    pub catalogue: Catalogue,
    /// `KARN_APPROVALS`, none: blueprints that somebody approved. What needs an approval and has none is not chosen.
    pub approved: BTreeSet<BlueprintId>,
    /// When to grow and when to keep; the numbers of the built-in policy.
    pub growth: Growth,
    /// Blending asked for with every germination.
    pub blend: Blend,
    /// Thresholds of the risk rules.
    pub limits: Limits,
    /// Acceptance of policy updates.
    pub updates: Updates,
    /// Keeping and publishing field reports.
    pub reports: Reports,
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operator {
    /// The policy decides by itself when to be conservative.
    #[default]
    Normal,
    /// Conservative until released.
    Conservative,
}

/// When a slot is grown and a seed kept. The built-in policy takes its numbers from here; a policy
/// update brings its own for those that are tensors (all but the last four).
#[derive(Debug, Clone, PartialEq)]
pub struct Growth {
    /// 10 epochs without enough improvement make a plateau.
    pub patience_epochs: u32,
    /// 1e-4: an improvement of the smoothed validation loss counts only beyond this ...
    pub min_delta_absolute: f32,
    /// ... and beyond this share of the best loss, 0.005.
    pub min_delta_relative: f32,
    /// 0.3: weight of the newest validation loss in the moving average, from 0 (exclusive) to 1.
    pub smoothing: f32,
    /// 10 epochs from the run's start in which nothing is a plateau.
    pub warm_up_epochs: u32,
    /// 0.01: with a smoothed validation loss at or below it, nothing is grown. 0 switches it off.
    pub target_loss: f32,
    /// 0.01: a seed on probation is kept when the loss fell by at least this share.
    pub keep_effect: f32,
    /// 0.05: and culled at once when the loss rose by at least this share.
    pub cull_effect: f32,
    /// 5 epochs on probation before a seed is judged.
    pub probation_epochs_min: u32,
    /// 20 epochs on probation without a clear effect, then it is culled.
    pub probation_epochs_max: u32,
    /// 10 epochs until a command nothing came of may be given again.
    pub retry_epochs: u32,
    /// 2 germinations refused for one blueprint on one slot; then it is not tried there again.
    pub refusals_max: u32,
}

impl Default for Growth {
    fn default() -> Self {
        Self {
            patience_epochs: 10,
            min_delta_absolute: 1e-4,
            min_delta_relative: 0.005,
            smoothing: 0.3,
            warm_up_epochs: 10,
            target_loss: 0.01,
            keep_effect: 0.01,
            cull_effect: 0.05,
            probation_epochs_min: 5,
            probation_epochs_max: 20,
            retry_epochs: 10,
            refusals_max: 2,
        }
    }
}

/// How a germinated seed is to be blended in.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Blend {
    /// Leave it to the executor: no annotation.
    #[default]
    Executor,
    /// a·s + (1−a)·h.
    Convex,
    /// h + a·s.
    Residual,
    /// Gated by how sure each sample's output is.
    Confidence {
        /// Steepness of the gate, at least 0; 4.0 at the executor.
        gate_k: f32,
        /// Margin at which the gate is half open, at least 0; 0.2 at the executor.
        gate_tau: f32,
        /// Lower bound of the gate, 0 to 1.
        alpha_lo: f32,
        /// Upper bound of the gate, 0 to 1.
        alpha_hi: f32,
    },
}

/// Whether rules on wall-clock figures (latencies, device load) may change a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timing {
    /// They act. What is grown then depends on how busy the machine is.
    #[default]
    Enforce,
    /// They are only reported: for runs that must be reproducible.
    Observe,
}

/// Thresholds of the risk rules, in the rules' order.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// `Enforce`.
    pub timing: Timing,
    /// 0.98: policy risk at which everything pauses.
    pub score_critical: f32,
    /// 0.85: policy risk from which seed commands are downgraded.
    pub score_elevated: f32,
    /// `TAMIYO_STEP_TIMEOUT_MS`, 5 ms: longest decision, as measured by the trainer.
    pub step_timeout: Duration,
    /// 0.8: blueprint risk at which a blueprint is quarantined.
    pub blueprint_risk_quarantine: f32,
    /// 0.5: blueprint risk from which a germination is downgraded.
    pub blueprint_risk_elevated: f32,
    /// 0.15: rise of the validation loss from one epoch to the next that is a spike.
    pub loss_spike: f32,
    /// 0.075: rise of the validation loss that is a warning.
    pub loss_warning: f32,
    /// 50 ms.
    pub hook_latency_ms: f32,
    /// 120 ms.
    pub step_latency_ms: f32,
    /// 30 ms.
    pub apply_ms: f32,
    /// 30 ms.
    pub finalize_ms: f32,
    /// 0.1125.
    pub loss_volatility: f32,
    /// 1.0.
    pub grad_variance: f32,
    /// 0.5.
    pub grad_conflict_rate: f32,
    /// 95 %.
    pub gpu_util_percent: f32,
    /// 0.2 GB.
    pub gpu_free_gb: f32,
    /// 95 %.
    pub cpu_util_percent: f32,
    /// 10 epochs in conservative mode before it may be left.
    pub cool_down_epochs: u32,
    /// 5 decisions in a row without a cause before conservative mode is left.
    pub good_decisions: u32,
    /// −0.1: relative change of the learning rate that a downgraded command asks for.
    pub downgrade_lr_delta: f32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timing: Timing::Enforce,
            score_critical: 0.98,
            score_elevated: 0.85,
            step_timeout: Duration::from_millis(5),
            blueprint_risk_quarantine: 0.8,
            blueprint_risk_elevated: 0.5,
            loss_spike: 0.15,
            loss_warning: 0.075,
            hook_latency_ms: 50.0,
            step_latency_ms: 120.0,
            apply_ms: 30.0,
            finalize_ms: 30.0,
            loss_volatility: 0.1125,
            grad_variance: 1.0,
            grad_conflict_rate: 0.5,
            gpu_util_percent: 95.0,
            gpu_free_gb: 0.2,
            cpu_util_percent: 95.0,
            cool_down_epochs: 10,
            good_decisions: 5,
            downgrade_lr_delta: -0.1,
        }
    }
}

/// Whether a policy update must name our architecture and be fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verification {
    /// It must (`TAMIYO_VERIFY_UPDATES=true`, the default).
    #[default]
    Strict,
    /// Version and age are not looked at. The payload is validated all the same.
    PayloadOnly,
}

/// Acceptance of policy updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updates {
    /// `TAMIYO_VERIFY_UPDATES`, strict.
    pub verification: Verification,
    /// `TAMIYO_UPDATE_FRESHNESS_SEC`, 300 s: an older update is refused. Zero: any age.
    pub freshness: Duration,
    /// 5 s: how far in the future an update may have been issued.
    pub future_tolerance: Duration,
    /// 64 KiB: a larger payload is refused unread. A policy has about 2 KiB.
    pub payload_bytes_max: usize,
    /// `weatherlight`: the consumer group. Every process that decides needs one of its own, else
    /// an update reaches one of them only.
    pub group: String,
    /// 10 s: how long keeping a policy on disk may take.
    pub store_timeout: Duration,
}

impl Default for Updates {
    fn default() -> Self {
        Self {
            verification: Verification::Strict,
            freshness: Duration::from_secs(300),
            future_tolerance: Duration::from_secs(5),
            payload_bytes_max: 64 * 1024,
            group: "weatherlight".to_owned(),
            store_timeout: Duration::from_secs(10),
        }
    }
}

/// Keeping and publishing field reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Reports {
    /// `TAMIYO_FR_OBS_WINDOW_EPOCHS`, 1 epoch: how long an effect is observed before it is
    /// reported; for a germination, counted from when the seed is fully live.
    pub window_epochs: u32,
    /// 500 epochs: an observation that has not ended by then is reported as aborted.
    pub observation_epochs_max: u32,
    /// 0.01: a relative change of the validation loss smaller than this is neutral.
    pub effect_min: f32,
    /// `TAMIYO_FIELD_REPORT_RETENTION_HOURS`, 24 h: older reports leave the disk.
    pub retention: Duration,
    /// `TAMIYO_FIELD_REPORT_MAX_RETRIES`, 3: then a report stays on disk until the next start.
    pub retries_max: u32,
    /// `TAMIYO_FR_RETRY_BACKOFF_MS`, 1000 ms: delay before the first retry.
    pub backoff: Duration,
    /// `TAMIYO_FR_RETRY_BACKOFF_MULT`, 2.0: factor from one delay to the next, at least 1.
    pub backoff_factor: f64,
    /// 30 s: the longest delay.
    pub backoff_max: Duration,
    /// 256 reports between the decision and the writer; a further one is dropped and counted.
    pub queue_len_max: usize,
    /// 1024 reports in memory that wait to be published; then the queue is left to fill up.
    pub pending_len_max: usize,
    /// 10 s: how long one write to disk may take.
    pub store_timeout: Duration,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            window_epochs: 1,
            observation_epochs_max: 500,
            effect_min: 0.01,
            retention: Duration::from_secs(24 * 3600),
            retries_max: 3,
            backoff: Duration::from_millis(1000),
            backoff_factor: 2.0,
            backoff_max: Duration::from_secs(30),
            queue_len_max: 256,
            pending_len_max: 1024,
            store_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::at(Path::new("./var/tamiyo"))
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {problem}; {remedy}")]
pub struct ConfigFault {
    /// Name of the setting as an operator knows it.
    pub setting: &'static str,
    /// What is wrong with its value.
    pub problem: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Config {
    /// The defaults, with everything that is kept below `root`.
    pub fn at(root: &Path) -> Self {
        Self {
            policy_dir: root.join("policies"),
            report_dir: root.join("reports"),
            operator: Operator::Normal,
            command_deadline: Duration::from_secs(5),
            runs_max: 32,
            catalogue: Catalogue::built_in(),
            approved: BTreeSet::new(),
            growth: Growth::default(),
            blend: Blend::default(),
            limits: Limits::default(),
            updates: Updates::default(),
            reports: Reports::default(),
        }
    }

    /// Reports every fault at once; empty when the settings can be used. Pure.
    pub fn check(&self) -> Vec<ConfigFault> {
        let mut faults = self.growth.check();
        let mut demand = |holds: bool, setting, problem, remedy| {
            if !holds {
                faults.push(ConfigFault { setting, problem, remedy });
            }
        };
        demand(self.runs_max > 0, "TAMIYO_RUNS_MAX", "is 0", "allow at least one run");
        demand(
            !self.command_deadline.is_zero() && self.command_deadline < Duration::from_secs(60),
            "TAMIYO_COMMAND_DEADLINE_MS",
            "is not between 1 ms and 60 s",
            "executors refuse commands older than 60 s; choose less",
        );
        demand(
            !self.limits.step_timeout.is_zero(),
            "TAMIYO_STEP_TIMEOUT_MS",
            "is 0",
            "every decision would be too slow; choose at least 1",
        );
        demand(
            self.limits.score_elevated < self.limits.score_critical,
            "TAMIYO_RISK_SCORE_CRITICAL",
            "is not above the elevated score",
            "order the two",
        );
        demand(
            0.0 < self.limits.loss_warning && self.limits.loss_warning < self.limits.loss_spike,
            "TAMIYO_LOSS_SPIKE",
            "is not above the warning, or the warning not above 0",
            "order them: 0 < warning < spike",
        );
        demand(
            !self.updates.group.trim().is_empty(),
            "TAMIYO_UPDATE_GROUP",
            "is empty",
            "name a consumer group of this process's own",
        );
        demand(
            (1024..=16 << 20).contains(&self.updates.payload_bytes_max),
            "TAMIYO_UPDATE_BYTES_MAX",
            "is outside 1 KiB to 16 MiB",
            "choose a size between them; a policy has about 2 KiB",
        );
        demand(
            self.reports.window_epochs > 0
                && self.reports.window_epochs <= self.reports.observation_epochs_max,
            "TAMIYO_FR_OBS_WINDOW_EPOCHS",
            "is 0 or longer than an observation may last",
            "observe for at least one epoch",
        );
        demand(
            self.reports.backoff_factor.is_finite() && self.reports.backoff_factor >= 1.0,
            "TAMIYO_FR_RETRY_BACKOFF_MULT",
            "is below 1",
            "choose 1 for a constant delay, 2 to double it",
        );
        demand(
            !self.reports.backoff.is_zero() && self.reports.backoff <= self.reports.backoff_max,
            "TAMIYO_FR_RETRY_BACKOFF_MS",
            "is 0 or above the longest delay of 30 s",
            "choose a delay between them",
        );
        demand(
            !self.reports.retention.is_zero(),
            "TAMIYO_FIELD_REPORT_RETENTION_HOURS",
            "is 0",
            "keep reports at least an hour, else a restart loses what was not sent",
        );
        demand(
            self.reports.queue_len_max > 0 && self.reports.pending_len_max > 0,
            "TAMIYO_FR_QUEUE_LEN_MAX",
            "is 0",
            "give the queue some room",
        );
        faults
    }
}

impl Growth {
    fn check(&self) -> Vec<ConfigFault> {
        let mut faults = Vec::new();
        let mut demand = |holds: bool, setting, problem, remedy| {
            if !holds {
                faults.push(ConfigFault { setting, problem, remedy });
            }
        };
        demand(
            (1..=100_000).contains(&self.patience_epochs),
            "TAMIYO_PLATEAU_PATIENCE_EPOCHS",
            "is outside 1 to 100000",
            "choose how many flat epochs make a plateau",
        );
        demand(
            self.smoothing > 0.0 && self.smoothing <= 1.0,
            "TAMIYO_PLATEAU_SMOOTHING",
            "is outside 0 (exclusive) to 1",
            "choose 1 for no smoothing",
        );
        let deltas = [self.min_delta_absolute, self.min_delta_relative, self.target_loss];
        demand(
            deltas.iter().all(|delta| delta.is_finite() && *delta >= 0.0),
            "TAMIYO_PLATEAU_MIN_DELTA",
            "or the target loss is negative or no number",
            "choose 0 or more",
        );
        demand(
            self.keep_effect >= 0.0 && self.cull_effect >= 0.0,
            "TAMIYO_KEEP_EFFECT",
            "or TAMIYO_CULL_EFFECT is negative",
            "both are shares of the loss: fallen by, risen by",
        );
        demand(
            0 < self.probation_epochs_min && self.probation_epochs_min <= self.probation_epochs_max,
            "TAMIYO_PROBATION_EPOCHS_MIN",
            "is 0 or above TAMIYO_PROBATION_EPOCHS_MAX",
            "order them: 1 <= min <= max",
        );
        demand(
            self.retry_epochs > 0 && self.refusals_max > 0,
            "TAMIYO_RETRY_EPOCHS",
            "or TAMIYO_REFUSALS_MAX is 0",
            "choose at least 1",
        );
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_usable() {
        assert_eq!(Config::default().check(), []);
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let mut config = Config::default();
        config.growth.smoothing = f32::NAN;
        config.growth.patience_epochs = 0;
        config.updates.group.clear();
        config.reports.window_epochs = 0;
        config.limits.loss_spike = 0.01;
        let settings: Vec<_> = config.check().into_iter().map(|fault| fault.setting).collect();
        assert_eq!(
            settings,
            [
                "TAMIYO_PLATEAU_PATIENCE_EPOCHS",
                "TAMIYO_PLATEAU_SMOOTHING",
                "TAMIYO_LOSS_SPIKE",
                "TAMIYO_UPDATE_GROUP",
                "TAMIYO_FR_OBS_WINDOW_EPOCHS",
            ]
        );
    }
}

//! The rules, as a table. Adding a rule means adding a name and a row; the contract test then
//! demands that somebody produces its metric.

use std::time::Duration;

use super::Route;
use crate::config::Thresholds;
use crate::labels::labels;

labels! {
    /// Every rule.
    RuleName {
        TrainingLatencyHigh = "training_latency_high",
        IsolationViolation = "kasmina_isolation_violation",
        QueueDepth = "oona_queue_depth",
        CompileRetryHigh = "tezzeret_compile_retry_high",
        CoverageLow = "tamiyo_coverage_low",
        BsdsCritical = "tamiyo_bsds_critical",
        BsdsHigh = "tamiyo_bsds_high",
        BsdsElevatedRisk = "tamiyo_bsds_elevated_risk",
        ForgeConservative = "tezzeret_conservative_mode",
        ForgeBreakerOpen = "tezzeret_breaker_open",
        SeedBreakerOpen = "kasmina_breaker_open",
        WorkerBackingOff = "weatherlight_worker_backing_off",
        EmergencySignal = "emergency_signal",
        ErrorBudgetBurn = "slo_budget_burn",
    }
}

/// When a sample is a breach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Condition {
    /// The value is greater.
    Above(f64),
    /// The value is greater or equal.
    AtLeast(f64),
    /// The value is smaller.
    Below(f64),
    /// A running total grew by at least this much within the window. A total that falls was
    /// started anew and counts from there.
    Rises {
        /// The least growth that is a breach.
        by: f64,
        /// The window.
        within: Duration,
    },
    /// A happening, of which there were at least `times` within the window. A happening has no
    /// value that could recover, so the alert ends once the window is empty.
    Happens {
        /// The least number that is a breach.
        times: u32,
        /// The window.
        within: Duration,
    },
}

/// How long a breach must last before the alert fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// This many samples of one source in a row.
    Samples(u32),
    /// From the first breaching sample of one source to the newest, with none between that was fine.
    For(Duration),
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: RuleName,
    /// The metric or event it watches; the same for all sources.
    pub metric: &'static str,
    /// When a sample is a breach.
    pub condition: Condition,
    /// How long the breach must last.
    pub hold: Hold,
    /// Whom to tell.
    pub routes: &'static [Route],
}

/// Event raised for each emergency signal of level CONSERVATIVE or HALT.
pub(crate) const EMERGENCY_EVENT: &str = "emergency_signal";
/// Burn rate over 24 h divided by the rate at which its objective alerts.
pub(crate) const BUDGET_METRIC: &str = "nissa.slo.burn_over_limit";

/// Breakers report the contract's numbers: 1 closed, 2 open, 3 half-open.
const BREAKER_OPEN: f64 = 2.0;
const MINUTE: Duration = Duration::from_secs(60);
const QUARTER: Duration = Duration::from_secs(15 * 60);

/// The table with the thresholds in force.
pub fn table(thresholds: &Thresholds) -> Vec<Rule> {
    use Condition::{Above, AtLeast, Below, Happens, Rises};
    use Route::{Email, PagerDuty, Slack};
    use RuleName as N;
    let row =
        |name, metric, condition, hold, routes| Rule { name, metric, condition, hold, routes };
    vec![
        // What training waits for at an epoch's boundary; a whole epoch may take as long as it likes.
        row(
            N::TrainingLatencyHigh,
            "tolaria.epoch_hook.latency_ms",
            Above(thresholds.epoch_hook_ms),
            Hold::Samples(3),
            &[PagerDuty, Slack],
        ),
        row(
            N::IsolationViolation,
            "kasmina.isolation.violations",
            Rises { by: thresholds.isolation_violations, within: 5 * MINUTE },
            Hold::Samples(1),
            &[PagerDuty],
        ),
        row(
            N::QueueDepth,
            "oona.queue_depth_normal",
            Above(thresholds.queue_depth),
            Hold::For(2 * MINUTE),
            &[Slack],
        ),
        row(
            N::CompileRetryHigh,
            "tezzeret.jobs.retried",
            Rises { by: thresholds.compile_retries, within: QUARTER },
            Hold::Samples(1),
            &[Email],
        ),
        row(
            N::CoverageLow,
            "tamiyo.gnn.feature_coverage",
            Below(thresholds.coverage_min),
            Hold::Samples(thresholds.coverage_samples.get()),
            &[Slack],
        ),
        row(
            N::BsdsCritical,
            "bsds_hazard_critical",
            Happens { times: 1, within: QUARTER },
            Hold::Samples(1),
            &[PagerDuty],
        ),
        row(
            N::BsdsHigh,
            "bsds_hazard_high",
            Happens { times: 3, within: QUARTER },
            Hold::Samples(1),
            &[Slack],
        ),
        row(
            N::BsdsElevatedRisk,
            "tamiyo.blueprint.risk",
            AtLeast(thresholds.elevated_risk),
            Hold::Samples(1),
            &[PagerDuty],
        ),
        row(
            N::ForgeConservative,
            "tezzeret.mode.conservative",
            Above(0.5),
            Hold::For(QUARTER),
            &[Email],
        ),
        row(
            N::ForgeBreakerOpen,
            "tezzeret.breaker.state",
            AtLeast(BREAKER_OPEN),
            Hold::Samples(1),
            &[Slack],
        ),
        row(
            N::SeedBreakerOpen,
            "kasmina.breaker.state",
            AtLeast(BREAKER_OPEN),
            Hold::Samples(1),
            &[Slack],
        ),
        row(
            N::WorkerBackingOff,
            "weatherlight.tasks.backing_off",
            Above(0.5),
            Hold::For(MINUTE),
            &[Slack],
        ),
        row(
            N::EmergencySignal,
            EMERGENCY_EVENT,
            Happens { times: 1, within: QUARTER },
            Hold::Samples(1),
            &[PagerDuty],
        ),
        row(N::ErrorBudgetBurn, BUDGET_METRIC, AtLeast(1.0), Hold::Samples(1), &[PagerDuty, Slack]),
    ]
}

//! The risk rules, as one table in the published order (section 4 of the specification), and the
//! function that walks it. Rule 25 (leaving conservative mode) is [`Mode`]'s.
//!
//! Three rules of the published table are absent: 6, since the catalogue is compiled in and cannot time out,
//! and 1 and 25, which change nothing about the command.

use leyline::wire::{HandlingClass, HazardBand, TelemetryLevel};

use crate::config::{PolicyConfig, Timing};

/// What the rules look at. `None` where this machine or this run does not measure it; a rule on an
/// absent number does not fire.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inputs {
    /// Share of regressions among the seeds this policy grew from the proposed blueprint.
    pub policy_risk: Option<f32>,
    /// Whether conservative mode is on.
    pub conservative: bool,
    /// The proposed blueprint, when a germination is proposed.
    pub blueprint: Option<BlueprintView>,
    /// Rise of the validation loss since the epoch before.
    pub loss_delta: Option<f32>,
    /// Time the previous decision took, in milliseconds.
    pub decision_ms: Option<f32>,
    /// Time of the previous epoch hook (state, decision, command), in milliseconds.
    pub hook_ms: Option<f32>,
    /// Mean time of an optimiser step in the last epoch, in milliseconds.
    pub step_ms: Option<f32>,
    /// Time Kasmina took to apply the previous command, in milliseconds.
    pub apply_ms: Option<f32>,
    /// Time Kasmina took to finish the previous epoch, in milliseconds.
    pub finalize_ms: Option<f32>,
    /// Isolation violations of the seeds so far.
    pub isolation_violations: Option<f32>,
    /// Standard deviation of the recent training losses.
    pub loss_volatility: Option<f32>,
    /// Variance of the gradient norm.
    pub gradient_variance: Option<f32>,
    /// Share of steps whose gradients oppose each other.
    pub gradient_conflict: Option<f32>,
    /// Learning rate.
    pub learning_rate: Option<f32>,
    /// GPU load in percent.
    pub gpu_percent: Option<f32>,
    /// Free GPU memory in GB.
    pub gpu_free_gb: Option<f32>,
    /// CPU load in percent.
    pub cpu_percent: Option<f32>,
}

/// What the rules look at of a blueprint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlueprintView {
    /// Whether it may run in quarantine only.
    pub quarantine_only: bool,
    /// Risk of its safety sheet, which stands in for the record's.
    pub risk: f32,
    /// Handling class of its sheet.
    pub handling: HandlingClass,
    /// Hazard band of its sheet.
    pub hazard: HazardBand,
}

/// What becomes of the proposed command; a later rule never makes it milder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As proposed.
    Proceed,
    /// A germination becomes an optimiser command without change.
    Hold,
    /// A pause.
    Pause,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Number in the published table.
    pub number: u8,
    /// Reason and event name.
    pub name: &'static str,
    /// Level of its event.
    pub level: TelemetryLevel,
    /// Whether it fires.
    pub holds: fn(&Inputs, &PolicyConfig) -> bool,
    /// What it does to the command.
    pub verdict: Verdict,
    /// Applies only while a germination is proposed.
    pub germination_only: bool,
    /// Switches conservative mode on.
    pub conservative: bool,
    /// Whether its reason replaces an earlier one.
    pub reason: Reason,
    /// It looks at measured times or machine load; see [`Timing`].
    pub timing: bool,
    /// Does not apply when this other rule fired ("else" in the table).
    pub unless: Option<u8>,
}

/// How a rule treats a reason that an earlier one gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Replaces it.
    Set,
    /// Leaves it; fills an empty one.
    Keep,
}

use Reason::{Keep, Set};
use TelemetryLevel::{Critical, Warning};
use Verdict::{Hold, Pause};

fn above(value: Option<f32>, limit: f32) -> bool {
    value.is_some_and(|value| value > limit)
}

fn at_least(value: Option<f32>, limit: f32) -> bool {
    value.is_some_and(|value| value >= limit)
}

fn blueprint(inputs: &Inputs, test: fn(&BlueprintView) -> bool) -> bool {
    inputs.blueprint.as_ref().is_some_and(test)
}

const fn rule(
    number: u8,
    name: &'static str,
    level: TelemetryLevel,
    verdict: Verdict,
    reason: Reason,
    holds: fn(&Inputs, &PolicyConfig) -> bool,
) -> Rule {
    let (germination_only, conservative, timing, unless) = (false, false, false, None);
    Rule {
        number,
        name,
        level,
        holds,
        verdict,
        germination_only,
        conservative,
        reason,
        timing,
        unless,
    }
}

impl Rule {
    const fn conservative(self) -> Self {
        Self { conservative: true, ..self }
    }

    const fn germination_only(self) -> Self {
        Self { germination_only: true, ..self }
    }

    const fn timing(self) -> Self {
        Self { timing: true, ..self }
    }

    const fn unless(self, number: u8) -> Self {
        Self { unless: Some(number), ..self }
    }
}

/// The rules in their order.
pub const RULES: [Rule; 22] = [
    rule(2, "policy_risk_critical", Critical, Pause, Set, |i, _| at_least(i.policy_risk, 0.98))
        .conservative(),
    rule(3, "policy_risk_elevated", Warning, Hold, Keep, |i, _| at_least(i.policy_risk, 0.85))
        .unless(2),
    rule(4, "conservative_mode", Warning, Pause, Keep, |i, _| i.conservative).germination_only(),
    rule(5, "timeout_inference", Warning, Pause, Keep, |i, c| {
        above(i.decision_ms, c.decision_budget_ms)
    })
    .conservative()
    .timing(),
    rule(7, "bp_quarantine", Critical, Pause, Set, |i, _| {
        blueprint(i, |view| view.quarantine_only || view.risk >= 0.8)
    })
    .conservative(),
    rule(8, "blueprint_risk", Warning, Hold, Keep, |i, _| blueprint(i, |view| view.risk >= 0.5))
        .unless(7),
    rule(9, "bsds_handling_quarantine", Critical, Pause, Set, |i, _| {
        blueprint(i, |view| view.handling == HandlingClass::Quarantine)
    })
    .conservative(),
    rule(10, "bsds_hazard_critical", Critical, Pause, Set, |i, _| {
        blueprint(i, |view| view.hazard == HazardBand::Critical)
    })
    .conservative(),
    rule(11, "bsds_hazard_high", Warning, Hold, Keep, |i, _| {
        blueprint(i, |view| view.hazard == HazardBand::High)
    }),
    rule(12, "loss_spike", Warning, Pause, Set, |i, c| above(i.loss_delta, c.loss_spike))
        .conservative(),
    rule(13, "loss_warning", Warning, Hold, Keep, |i, c| above(i.loss_delta, c.loss_warning))
        .unless(12),
    rule(14, "hook_budget", Warning, Pause, Set, |i, _| above(i.hook_ms, 50.0)).timing(),
    rule(15, "step_latency_high", Warning, Pause, Set, |i, _| above(i.step_ms, 120.0)).timing(),
    rule(16, "kasmina_apply_slow", Warning, Hold, Set, |i, _| above(i.apply_ms, 30.0)).timing(),
    rule(17, "kasmina_finalize_slow", Warning, Hold, Set, |i, _| above(i.finalize_ms, 30.0))
        .timing(),
    rule(18, "isolation_violation", Warning, Pause, Keep, |i, _| {
        above(i.isolation_violations, 0.0)
    }),
    rule(19, "loss_volatility_high", Warning, Hold, Keep, |i, _| above(i.loss_volatility, 0.1125)),
    rule(20, "grad_variance_high", Warning, Hold, Keep, |i, _| above(i.gradient_variance, 1.0))
        .germination_only(),
    rule(21, "grad_conflict_high", Warning, Hold, Keep, |i, _| above(i.gradient_conflict, 0.5))
        .germination_only(),
    rule(22, "optimizer_hint", Warning, Hold, Set, |i, c| {
        i.learning_rate.is_some_and(|rate| rate <= 0.0) && above(i.loss_delta, c.loss_warning)
    }),
    rule(23, "device_pressure_high", Warning, Pause, Keep, |i, _| {
        at_least(i.gpu_percent, 95.0) && i.gpu_free_gb.is_some_and(|free| free <= 0.2)
    })
    .germination_only()
    .timing(),
    rule(24, "cpu_pressure_high", Warning, Hold, Keep, |i, _| at_least(i.cpu_percent, 95.0))
        .germination_only()
        .timing()
        .unless(23),
];

/// A rule that fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// Number in the published table.
    pub number: u8,
    /// Its name.
    pub name: &'static str,
    /// Level of its event.
    pub level: TelemetryLevel,
    /// Whether it changed anything ([`Timing::Record`] only reports).
    pub acted: bool,
}

/// What the walk over the table found.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// What becomes of the command.
    pub verdict: Verdict,
    /// Why; empty when no rule acted.
    pub reason: Option<&'static str>,
    /// Every rule that fired, in order.
    pub findings: Vec<Finding>,
    /// Whether conservative mode is to be switched on.
    pub conservative: bool,
}

/// Walks the table.
pub fn assess(inputs: &Inputs, config: &PolicyConfig) -> Assessment {
    let mut assessment = Assessment {
        verdict: Verdict::Proceed,
        reason: None,
        findings: Vec::new(),
        conservative: false,
    };
    let germinates = inputs.blueprint.is_some();
    for rule in &RULES {
        let shadowed = rule.unless.is_some_and(|number| {
            assessment.findings.iter().any(|finding| finding.number == number && finding.acted)
        });
        if shadowed || (rule.germination_only && !germinates) || !(rule.holds)(inputs, config) {
            continue;
        }
        let acted = !rule.timing || config.timing == Timing::Enforce;
        assessment.findings.push(Finding {
            number: rule.number,
            name: rule.name,
            level: rule.level,
            acted,
        });
        if !acted {
            continue;
        }
        assessment.verdict = assessment.verdict.max(rule.verdict);
        assessment.conservative |= rule.conservative;
        if rule.reason == Set || assessment.reason.is_none() {
            assessment.reason = Some(rule.name);
        }
    }
    assessment
}

/// Conservative mode: on by a rule or by a person, off only after the cool-down and enough good
/// epochs, and never while a person holds it on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mode {
    entered: Option<u32>,
    good_epochs: u32,
    latched: bool,
}

impl Mode {
    /// Whether growth is held back.
    pub fn is_conservative(&self) -> bool {
        self.latched || self.entered.is_some()
    }

    /// A person's switch: on stays on until the same person switches it off.
    pub fn latch(&mut self, on: bool) {
        self.latched = on;
    }

    /// Takes one epoch's findings. Returns what changed, if anything did.
    pub fn observe(
        &mut self,
        epoch: u32,
        assessment: &Assessment,
        config: &PolicyConfig,
    ) -> Option<ModeChange> {
        if assessment.conservative {
            self.good_epochs = 0;
            let was = self.entered.replace(epoch);
            return was.is_none().then_some(ModeChange::Entered);
        }
        let entered = self.entered?;
        let bad = |finding: &Finding| finding.acted && finding.name != "conservative_mode";
        self.good_epochs =
            if assessment.findings.iter().any(bad) { 0 } else { self.good_epochs + 1 };
        let cooled = epoch.saturating_sub(entered) >= config.cool_down_epochs;
        if cooled && self.good_epochs >= config.good_epochs {
            (self.entered, self.good_epochs) = (None, 0);
            return Some(ModeChange::Left);
        }
        None
    }
}

/// How the mode changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeChange {
    /// Now conservative: event `conservative_entered`.
    Entered,
    /// No longer: event `conservative_exited`.
    Left,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe() -> BlueprintView {
        let (handling, hazard) = (HandlingClass::Standard, HazardBand::Low);
        BlueprintView { quarantine_only: false, risk: 0.2, handling, hazard }
    }

    fn germination() -> Inputs {
        Inputs { blueprint: Some(safe()), ..Inputs::default() }
    }

    /// For each rule: inputs at which it fires alone or first, and the verdict of the whole walk.
    fn table() -> Vec<(u8, Inputs, Verdict, &'static str, bool)> {
        let view = |change: fn(&mut BlueprintView)| {
            let mut view = safe();
            change(&mut view);
            Inputs { blueprint: Some(view), ..Inputs::default() }
        };
        let with = |change: fn(&mut Inputs)| {
            let mut inputs = germination();
            change(&mut inputs);
            inputs
        };
        vec![
            (2, with(|i| i.policy_risk = Some(0.98)), Pause, "policy_risk_critical", true),
            (3, with(|i| i.policy_risk = Some(0.85)), Hold, "policy_risk_elevated", false),
            (4, with(|i| i.conservative = true), Pause, "conservative_mode", false),
            (5, with(|i| i.decision_ms = Some(5.1)), Pause, "timeout_inference", true),
            (7, view(|v| v.quarantine_only = true), Pause, "bp_quarantine", true),
            (7, view(|v| v.risk = 0.8), Pause, "bp_quarantine", true),
            (8, view(|v| v.risk = 0.5), Hold, "blueprint_risk", false),
            (
                9,
                view(|v| v.handling = HandlingClass::Quarantine),
                Pause,
                "bsds_handling_quarantine",
                true,
            ),
            (10, view(|v| v.hazard = HazardBand::Critical), Pause, "bsds_hazard_critical", true),
            (11, view(|v| v.hazard = HazardBand::High), Hold, "bsds_hazard_high", false),
            (12, with(|i| i.loss_delta = Some(0.16)), Pause, "loss_spike", true),
            (13, with(|i| i.loss_delta = Some(0.08)), Hold, "loss_warning", false),
            (14, with(|i| i.hook_ms = Some(50.5)), Pause, "hook_budget", false),
            (15, with(|i| i.step_ms = Some(121.0)), Pause, "step_latency_high", false),
            (16, with(|i| i.apply_ms = Some(31.0)), Hold, "kasmina_apply_slow", false),
            (17, with(|i| i.finalize_ms = Some(31.0)), Hold, "kasmina_finalize_slow", false),
            (18, with(|i| i.isolation_violations = Some(1.0)), Pause, "isolation_violation", false),
            (19, with(|i| i.loss_volatility = Some(0.12)), Hold, "loss_volatility_high", false),
            (20, with(|i| i.gradient_variance = Some(1.1)), Hold, "grad_variance_high", false),
            (21, with(|i| i.gradient_conflict = Some(0.6)), Hold, "grad_conflict_high", false),
            (
                22,
                with(|i| {
                    i.learning_rate = Some(0.0);
                    i.loss_delta = Some(0.08);
                }),
                Hold,
                "optimizer_hint",
                false,
            ),
            (
                23,
                with(|i| {
                    i.gpu_percent = Some(95.0);
                    i.gpu_free_gb = Some(0.2);
                }),
                Pause,
                "device_pressure_high",
                false,
            ),
            (24, with(|i| i.cpu_percent = Some(95.0)), Hold, "cpu_pressure_high", false),
        ]
    }

    #[test]
    fn every_rule_fires_as_the_table_says() {
        let config = PolicyConfig { timing: Timing::Enforce, ..PolicyConfig::default() };
        let rows = table();
        for (number, inputs, verdict, reason, conservative) in &rows {
            let found = assess(inputs, &config);
            assert!(
                found.findings.iter().any(|finding| finding.number == *number),
                "rule {number}"
            );
            let got = (found.verdict, found.reason, found.conservative);
            assert_eq!(got, (*verdict, Some(*reason), *conservative), "rule {number}");
        }
        for rule in &RULES {
            assert!(rows.iter().any(|row| row.0 == rule.number), "rule {} has no row", rule.number);
        }
    }

    #[test]
    fn nothing_fires_on_healthy_or_absent_numbers() {
        let config = PolicyConfig { timing: Timing::Enforce, ..PolicyConfig::default() };
        assert_eq!(assess(&germination(), &config).findings, []);
        assert_eq!(assess(&Inputs::default(), &config).findings, []);
    }

    #[test]
    fn rules_stand_in_the_published_order() {
        assert!(RULES.windows(2).all(|pair| pair[0].number < pair[1].number));
    }

    #[test]
    fn rules_on_germinations_leave_everything_else_alone() {
        let config = PolicyConfig { timing: Timing::Enforce, ..PolicyConfig::default() };
        for (number, mut inputs, ..) in table() {
            inputs.blueprint = None;
            let germination_only = RULES.iter().any(|rule| {
                rule.number == number && (rule.germination_only || (7..=11).contains(&number))
            });
            let fired =
                assess(&inputs, &config).findings.iter().any(|finding| finding.number == number);
            assert_eq!(fired, !germination_only, "rule {number}");
        }
    }

    #[test]
    fn a_set_reason_replaces_and_a_kept_one_does_not() {
        let mut inputs = germination();
        inputs.policy_risk = Some(0.9);
        inputs.loss_delta = Some(0.2);
        inputs.isolation_violations = Some(2.0);
        let found = assess(&inputs, &PolicyConfig::default());
        assert_eq!(found.reason, Some("loss_spike"));
        assert_eq!(found.verdict, Pause);
        assert_eq!(found.findings.len(), 3);
    }

    #[test]
    fn recorded_times_change_nothing() {
        let mut inputs = germination();
        inputs.hook_ms = Some(80.0);
        let found = assess(&inputs, &PolicyConfig::default());
        assert_eq!((found.verdict, found.reason), (Verdict::Proceed, None));
        assert_eq!(found.findings.len(), 1);
        assert!(!found.findings[0].acted);
    }

    #[test]
    fn conservative_mode_lasts_its_cool_down_and_needs_good_epochs() {
        let config =
            PolicyConfig { cool_down_epochs: 4, good_epochs: 2, ..PolicyConfig::default() };
        let spike = assess(&Inputs { loss_delta: Some(1.0), ..Inputs::default() }, &config);
        let warning = assess(&Inputs { loss_delta: Some(0.1), ..Inputs::default() }, &config);
        let calm = assess(&Inputs::default(), &config);
        let mut mode = Mode::default();
        assert_eq!(mode.observe(0, &spike, &config), Some(ModeChange::Entered));
        for (epoch, seen) in [(1, &calm), (2, &calm), (3, &calm), (4, &warning), (5, &calm)] {
            assert_eq!(mode.observe(epoch, seen, &config), None, "epoch {epoch}");
            assert!(mode.is_conservative());
        }
        assert_eq!(mode.observe(6, &calm, &config), Some(ModeChange::Left));
        assert!(!mode.is_conservative());
    }

    #[test]
    fn a_persons_switch_outlasts_everything() {
        let config = PolicyConfig::default();
        let calm = assess(&Inputs::default(), &config);
        let mut mode = Mode::default();
        mode.latch(true);
        for epoch in 0..100 {
            mode.observe(epoch, &calm, &config);
            assert!(mode.is_conservative());
        }
        mode.latch(false);
        assert!(!mode.is_conservative());
    }
}

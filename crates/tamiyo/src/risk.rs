//! The risk engine: one table of rules, walked in order, each of which may hold back or soften what
//! the policy proposes.
//!
//! Where this differs from the program that came before, on purpose:
//! * rules 2 and 3 read the *expected* class of risk, not the probability of the likeliest one;
//! * rule 5 acts on the previous decision's duration as the trainer measured it (nothing here waits);
//! * rules 12 and 13 compare validation losses of two epochs, not losses of two batches;
//! * rule 18 acts on *new* violations of the isolation, else one would stop growth for ever;
//! * a downgraded command is built as an optimizer command, type and payload alike (rule 24);
//! * rule 25, leaving conservative mode, is [`crate::mode`]'s: after a cool-down, not at once;
//! * a cull takes risk away, so no rule holds it back.

use leyline::wire::{HandlingClass, HazardBand, TelemetryLevel};

use crate::config::{Limits, Timing};
use crate::mode::BreakerStep;
use crate::reason::Reason;
use crate::signals::Signals;

/// What a decision is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Germinate a seed.
    Germinate,
    /// Keep a seed for good.
    Fossilize,
    /// Take a seed away.
    Cull,
    /// Lower the learning rate.
    Optimizer,
    /// Take growing seeds out of the host's way.
    Pause,
    /// Let a paused seed go on.
    Resume,
}

/// What is known of the blueprint proposed: the risk of its safety sheet, which includes the
/// surcharges of tier and quarantine, and how it must be handled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlueprintFacts {
    /// Risk from 0 to 1.
    pub risk: f32,
    /// Whether it may run in quarantine only.
    pub quarantine_only: bool,
    /// Its handling class.
    pub handling: HandlingClass,
    /// Its hazard band.
    pub hazard: HazardBand,
}

/// Whether something came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Punctual {
    /// It did.
    #[default]
    InTime,
    /// It did not.
    Late,
}

/// Everything the rules look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The policy's own risk score, 0 to 1.
    pub score: Option<f32>,
    /// Whether conservative mode was on when the decision began.
    pub conservative: bool,
    /// Whether the list of blueprints came in time.
    pub metadata: Punctual,
    /// The blueprint proposed.
    pub blueprint: Option<BlueprintFacts>,
    /// Figures of the packet.
    pub signals: Signals,
}

/// What a rule does to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing; it is reported only.
    Report,
    /// PAUSE.
    Pause,
    /// A seed command becomes PAUSE.
    PauseSeed,
    /// A seed command becomes an optimizer command.
    Downgrade,
}

/// What a rule does to the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wording {
    /// Leaves it.
    Leave,
    /// Overwrites it.
    Set,
    /// Fills an empty one.
    Keep,
}

/// When a rule's event is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Always,
    IfSeed,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Basis {
    /// The run's state: the same run gives the same answer.
    State,
    /// The clock or the machine's load.
    Timing,
}

/// One rule.
pub(crate) struct Rule {
    number: u8,
    when: fn(&Facts, &Limits) -> bool,
    effect: Effect,
    reason: Reason,
    wording: Wording,
    event: Reason,
    level: TelemetryLevel,
    notice: Notice,
    /// Whether conservative mode begins.
    enters: bool,
    basis: Basis,
}

/// What the rules made of a proposal.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// What remains to be done.
    pub action: Action,
    /// The reason a rule gave.
    pub reason: Option<Reason>,
    /// Why conservative mode begins or goes on.
    pub enters: Option<Reason>,
    /// Whether a rule other than conservative mode itself held something back or warned.
    pub troubled: bool,
    /// What is to be reported, with the number of its rule.
    pub events: Vec<Happening>,
}

/// One thing to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Happening {
    /// Number of the rule; 0 for what no rule of the table reports.
    pub rule: u8,
    /// Name of the event.
    pub event: Reason,
    /// How serious it is.
    pub level: TelemetryLevel,
    /// For a breaker: which one, and what it did.
    pub breaker: Option<(&'static str, BreakerStep)>,
}

impl Happening {
    /// One that no rule of the table reports.
    pub(crate) fn aside(event: Reason, level: TelemetryLevel) -> Self {
        Self { rule: 0, event, level, breaker: None }
    }
}

fn above(value: Option<f32>, limit: f32) -> bool {
    value.is_some_and(|value| value > limit)
}

fn late(facts: &Facts, limits: &Limits) -> bool {
    above(facts.signals.decision_ms, limits.step_timeout.as_secs_f32() * 1000.0)
}

/// Late, and lateness counts: else how busy the machine is would decide through rules 4 and 12.
fn timed_out(facts: &Facts, limits: &Limits) -> bool {
    limits.timing == Timing::Enforce && late(facts, limits)
}

fn score_at_least(facts: &Facts, limit: f32) -> bool {
    facts.score.is_some_and(|score| score >= limit)
}

fn quarantined(facts: &Facts, limits: &Limits) -> bool {
    facts.blueprint.is_some_and(|blueprint| {
        blueprint.quarantine_only || blueprint.risk >= limits.blueprint_risk_quarantine
    })
}

fn spike(facts: &Facts, limits: &Limits) -> bool {
    !timed_out(facts, limits) && above(facts.signals.loss_delta, limits.loss_spike)
}

fn device_full(facts: &Facts, limits: &Limits) -> bool {
    facts.signals.gpu_util_percent.is_some_and(|load| load >= limits.gpu_util_percent)
        && facts.signals.gpu_free_gb.is_some_and(|free| free <= limits.gpu_free_gb)
}

use Basis::{State, Timing as Clock};
use Effect::{Downgrade, Pause, PauseSeed, Report};
use Notice::{Always, IfSeed};
use TelemetryLevel::{Critical, Info, Warning};
use Wording::{Keep, Leave, Set};

type When = fn(&Facts, &Limits) -> bool;

/// A rule in the order of the published table's columns, which is why there are so many.
#[expect(clippy::too_many_arguments, reason = "one argument per column of the table")]
const fn rule(
    number: u8,
    when: When,
    effect: Effect,
    wording: Wording,
    reason: Reason,
    level: TelemetryLevel,
    notice: Notice,
    enters: bool,
    basis: Basis,
) -> Rule {
    Rule { number, when, effect, reason, wording, event: reason, level, notice, enters, basis }
}

const fn reported_as(event: Reason, rule: Rule) -> Rule {
    Rule { event, ..rule }
}

/// The rules in order of evaluation.
#[rustfmt::skip]
pub(crate) static RULES: [Rule; 24] = [
    rule(1, |f, _| f.score.is_some(),
        Report, Leave, Reason::PolicyRiskSignal, Info, Always, false, State),
    rule(2, |f, l| score_at_least(f, l.score_critical),
        Pause, Set, Reason::PolicyRiskCritical, Critical, Always, true, State),
    rule(3, |f, l| score_at_least(f, l.score_elevated) && !score_at_least(f, l.score_critical),
        Downgrade, Keep, Reason::PolicyRiskElevated, Warning, Always, false, State),
    reported_as(Reason::PauseTriggered, rule(4, |f, l| f.conservative && !timed_out(f, l),
        Pause, Keep, Reason::ConservativeMode, Warning, Always, false, State)),
    rule(5, late,
        Pause, Keep, Reason::TimeoutInference, Warning, Always, true, Clock),
    rule(6, |f, _| f.metadata == Punctual::Late,
        Report, Keep, Reason::TimeoutUrza, Warning, Always, false, State),
    rule(7, quarantined,
        Pause, Set, Reason::BlueprintQuarantine, Critical, Always, true, State),
    rule(8, |f, l| !quarantined(f, l) && f.blueprint.is_some_and(|b| b.risk >= l.blueprint_risk_elevated),
        Downgrade, Keep, Reason::BlueprintRisk, Warning, Always, false, State),
    rule(9, |f, _| f.blueprint.is_some_and(|b| b.handling == HandlingClass::Quarantine),
        Pause, Set, Reason::HandlingQuarantine, Critical, Always, true, State),
    rule(10, |f, _| f.blueprint.is_some_and(|b| b.hazard == HazardBand::Critical),
        Pause, Set, Reason::HazardCritical, Critical, Always, true, State),
    rule(11, |f, _| f.blueprint.is_some_and(|b| b.hazard == HazardBand::High),
        Downgrade, Keep, Reason::HazardHigh, Warning, Always, false, State),
    rule(12, spike,
        Pause, Set, Reason::LossSpike, Warning, Always, true, State),
    rule(13, |f, l| !spike(f, l) && above(f.signals.loss_delta, l.loss_warning),
        Downgrade, Keep, Reason::LossWarning, Warning, Always, false, State),
    rule(14, |f, l| above(f.signals.hook_latency_ms, l.hook_latency_ms),
        Pause, Set, Reason::HookBudget, Warning, Always, false, Clock),
    rule(15, |f, l| above(f.signals.step_latency_ms, l.step_latency_ms),
        Pause, Set, Reason::StepLatencyHigh, Warning, Always, false, Clock),
    rule(16, |f, l| above(f.signals.apply_ms, l.apply_ms),
        Downgrade, Set, Reason::ApplySlow, Warning, Always, false, Clock),
    rule(17, |f, l| above(f.signals.finalize_ms, l.finalize_ms),
        Downgrade, Set, Reason::FinalizeSlow, Warning, Always, false, Clock),
    reported_as(Reason::IsolationViolations, rule(18, |f, _| above(f.signals.isolation_violations, 0.0),
        Pause, Keep, Reason::IsolationViolation, Warning, Always, false, State)),
    rule(19, |f, l| above(f.signals.loss_volatility, l.loss_volatility),
        Downgrade, Keep, Reason::LossVolatilityHigh, Warning, Always, false, State),
    rule(20, |f, l| above(f.signals.grad_variance, l.grad_variance),
        Downgrade, Keep, Reason::GradVarianceHigh, Warning, IfSeed, false, State),
    rule(21, |f, l| above(f.signals.grad_conflict_rate, l.grad_conflict_rate),
        Downgrade, Keep, Reason::GradConflictHigh, Warning, IfSeed, false, State),
    rule(22, |f, l| f.signals.optimizer_lr.is_some_and(|lr| lr <= 0.0) && above(f.signals.loss_delta, l.loss_warning),
        Downgrade, Set, Reason::OptimizerHint, Warning, Always, false, State),
    rule(23, device_full,
        PauseSeed, Keep, Reason::DevicePressureHigh, Warning, Always, false, Clock),
    rule(24, |f, l| !device_full(f, l) && f.signals.cpu_util_percent.is_some_and(|load| load >= l.cpu_util_percent),
        Downgrade, Keep, Reason::CpuPressureHigh, Warning, IfSeed, false, Clock),
];

/// Walks the table.
pub fn assess(proposed: Action, facts: &Facts, limits: &Limits) -> Assessment {
    let mut assessment = Assessment {
        action: proposed,
        reason: None,
        enters: None,
        troubled: false,
        events: Vec::new(),
    };
    for rule in RULES.iter().filter(|rule| (rule.when)(facts, limits)) {
        apply(rule, limits.timing, &mut assessment);
    }
    assessment
}

fn apply(rule: &Rule, timing: Timing, assessment: &mut Assessment) {
    let is_seed = matches!(assessment.action, Action::Germinate | Action::Fossilize);
    if rule.notice == Notice::Always || is_seed {
        let (rule, event, level) = (rule.number, rule.event, rule.level);
        assessment.events.push(Happening { rule, event, level, breaker: None });
    }
    let observed_only = rule.basis == Basis::Timing && timing == Timing::Observe;
    if observed_only {
        return;
    }
    assessment.action = match (rule.effect, assessment.action) {
        (_, Action::Cull) => Action::Cull,
        (Effect::Pause, _) => Action::Pause,
        (Effect::PauseSeed, Action::Germinate | Action::Fossilize) => Action::Pause,
        (Effect::Downgrade, Action::Germinate | Action::Fossilize) => Action::Optimizer,
        (_, action) => action,
    };
    match rule.wording {
        Wording::Leave => {}
        Wording::Set => assessment.reason = Some(rule.reason),
        Wording::Keep => {
            assessment.reason.get_or_insert(rule.reason);
        }
    }
    if rule.enters {
        assessment.enters = Some(rule.reason);
    }
    assessment.troubled |= rule.level != Info && rule.reason != Reason::ConservativeMode;
}

/// Whether the previous decision came in time, where that counts.
pub(crate) fn punctual(facts: &Facts, limits: &Limits) -> Punctual {
    if timed_out(facts, limits) { Punctual::Late } else { Punctual::InTime }
}

#[cfg(test)]
mod tests;

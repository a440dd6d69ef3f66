//! The table walk: one row for each rule, beside the published table, and the corrections.

use super::*;

fn limits() -> Limits {
    Limits::default()
}

/// Facts to which no rule but the first objects.
fn calm() -> Facts {
    Facts {
        score: Some(0.1),
        blueprint: Some(BlueprintFacts {
            risk: 0.1,
            quarantine_only: false,
            handling: HandlingClass::Standard,
            hazard: HazardBand::Low,
        }),
        ..Facts::default()
    }
}

fn signals(change: impl FnOnce(&mut Signals)) -> Facts {
    let mut facts = calm();
    change(&mut facts.signals);
    facts
}

fn blueprint(change: impl FnOnce(&mut BlueprintFacts)) -> Facts {
    let mut facts = calm();
    change(facts.blueprint.as_mut().unwrap());
    facts
}

/// One row: the facts that just fulfil a rule, and what becomes of a germination.
struct Row {
    rule: u8,
    facts: Facts,
    action: Action,
    reason: Option<Reason>,
    level: TelemetryLevel,
    enters: bool,
}

fn row(
    rule: u8,
    facts: Facts,
    action: Action,
    reason: impl Into<Option<Reason>>,
    level: TelemetryLevel,
    enters: bool,
) -> Row {
    Row { rule, facts, action, reason: reason.into(), level, enters }
}

#[rustfmt::skip]
fn table() -> Vec<Row> {
    use Action::{Germinate, Optimizer, Pause};
    vec![
        row(1, calm(), Germinate, None, Info, false),
        row(2, Facts { score: Some(0.98), ..calm() }, Pause, Reason::PolicyRiskCritical, Critical, true),
        row(3, Facts { score: Some(0.85), ..calm() }, Optimizer, Reason::PolicyRiskElevated, Warning, false),
        row(4, Facts { conservative: true, ..calm() }, Pause, Reason::ConservativeMode, Warning, false),
        row(5, signals(|s| s.decision_ms = Some(5.01)), Pause, Reason::TimeoutInference, Warning, true),
        row(6, Facts { metadata: Punctual::Late, ..calm() }, Germinate, Reason::TimeoutUrza, Warning, false),
        row(7, blueprint(|b| b.risk = 0.8), Pause, Reason::BlueprintQuarantine, Critical, true),
        row(7, blueprint(|b| b.quarantine_only = true), Pause, Reason::BlueprintQuarantine, Critical, true),
        row(8, blueprint(|b| b.risk = 0.5), Optimizer, Reason::BlueprintRisk, Warning, false),
        row(9, blueprint(|b| b.handling = HandlingClass::Quarantine), Pause, Reason::HandlingQuarantine, Critical, true),
        row(10, blueprint(|b| b.hazard = HazardBand::Critical), Pause, Reason::HazardCritical, Critical, true),
        row(11, blueprint(|b| b.hazard = HazardBand::High), Optimizer, Reason::HazardHigh, Warning, false),
        row(12, signals(|s| s.loss_delta = Some(0.151)), Pause, Reason::LossSpike, Warning, true),
        row(12, signals(|s| s.loss_delta = Some(f32::INFINITY)), Pause, Reason::LossSpike, Warning, true),
        row(13, signals(|s| s.loss_delta = Some(0.15)), Optimizer, Reason::LossWarning, Warning, false),
        row(14, signals(|s| s.hook_latency_ms = Some(50.1)), Pause, Reason::HookBudget, Warning, false),
        row(15, signals(|s| s.step_latency_ms = Some(120.1)), Pause, Reason::StepLatencyHigh, Warning, false),
        row(16, signals(|s| s.apply_ms = Some(30.1)), Optimizer, Reason::ApplySlow, Warning, false),
        row(17, signals(|s| s.finalize_ms = Some(30.1)), Optimizer, Reason::FinalizeSlow, Warning, false),
        row(18, signals(|s| s.isolation_violations = Some(1.0)), Pause, Reason::IsolationViolation, Warning, false),
        row(19, signals(|s| s.loss_volatility = Some(0.113)), Optimizer, Reason::LossVolatilityHigh, Warning, false),
        row(20, signals(|s| s.grad_variance = Some(1.01)), Optimizer, Reason::GradVarianceHigh, Warning, false),
        row(21, signals(|s| s.grad_conflict_rate = Some(0.51)), Optimizer, Reason::GradConflictHigh, Warning, false),
        row(22, signals(|s| { s.optimizer_lr = Some(0.0); s.loss_delta = Some(0.08); }), Optimizer, Reason::OptimizerHint, Warning, false),
        row(23, signals(|s| { s.gpu_util_percent = Some(95.0); s.gpu_free_gb = Some(0.2); }), Pause, Reason::DevicePressureHigh, Warning, false),
        row(24, signals(|s| s.cpu_util_percent = Some(95.0)), Optimizer, Reason::CpuPressureHigh, Warning, false),
    ]
}

#[test]
fn every_rule_does_what_the_table_says() {
    for Row { rule, facts, action, reason, level, enters } in table() {
        let found = assess(Action::Germinate, &facts, &limits());
        assert_eq!(found.action, action, "rule {rule}");
        assert_eq!(found.reason, reason, "rule {rule}");
        assert_eq!(found.enters.is_some(), enters, "rule {rule}");
        let event = found.events.iter().find(|event| event.rule == rule);
        assert_eq!(event.map(|event| event.level), Some(level), "rule {rule}");
    }
}

#[test]
fn every_rule_has_a_row_and_they_stand_in_order() {
    let numbers: Vec<u8> = RULES.iter().map(|rule| rule.number).collect();
    assert_eq!(numbers, (1..=24).collect::<Vec<u8>>());
    for number in numbers {
        assert!(table().iter().any(|row| row.rule == number), "rule {number}");
    }
}

#[test]
fn just_below_its_limit_no_rule_speaks() {
    let quiet = [
        Facts { score: Some(0.849), ..calm() },
        signals(|s| s.decision_ms = Some(5.0)),
        blueprint(|b| b.risk = 0.499),
        signals(|s| s.loss_delta = Some(0.075)),
        signals(|s| s.hook_latency_ms = Some(50.0)),
        signals(|s| s.step_latency_ms = Some(120.0)),
        signals(|s| s.apply_ms = Some(30.0)),
        signals(|s| s.isolation_violations = Some(0.0)),
        signals(|s| s.loss_volatility = Some(0.1125)),
        signals(|s| s.grad_variance = Some(1.0)),
        signals(|s| s.gpu_util_percent = Some(99.0)),
        signals(|s| s.cpu_util_percent = Some(94.9)),
    ];
    for facts in quiet {
        let found = assess(Action::Germinate, &facts, &limits());
        assert_eq!((found.action, found.reason), (Action::Germinate, None), "{facts:?}");
        assert!(!found.troubled, "{facts:?}");
    }
}

#[test]
fn set_overwrites_a_reason_and_keep_does_not() {
    let mut facts = signals(|s| s.hook_latency_ms = Some(60.0));
    facts.conservative = true;
    facts.signals.loss_volatility = Some(1.0);
    let found = assess(Action::Germinate, &facts, &limits());
    assert_eq!(found.reason, Some(Reason::HookBudget));
}

#[test]
fn a_pause_is_not_softened_by_a_later_rule() {
    let facts = signals(|s| {
        s.loss_delta = Some(1.0);
        s.cpu_util_percent = Some(100.0);
    });
    let found = assess(Action::Germinate, &facts, &limits());
    assert_eq!(found.action, Action::Pause);
    // Rule 24 speaks only of seed commands, and there is none left.
    assert!(found.events.iter().all(|event| event.rule != 24));
}

#[test]
fn no_rule_holds_back_a_cull() {
    for Row { rule, facts, .. } in table() {
        assert_eq!(assess(Action::Cull, &facts, &limits()).action, Action::Cull, "rule {rule}");
    }
}

#[test]
fn a_fossilisation_is_held_back_like_a_germination() {
    for Row { rule, facts, action, .. } in table().into_iter().filter(|row| row.rule > 1) {
        let found = assess(Action::Fossilize, &facts, &limits()).action;
        let expected = if action == Action::Germinate { Action::Fossilize } else { action };
        assert_eq!(found, expected, "rule {rule}");
    }
}

#[test]
fn rules_on_the_clock_only_report_when_they_may_only_observe() {
    let observe = Limits { timing: Timing::Observe, ..limits() };
    let clocked = [5, 14, 15, 16, 17, 23, 24];
    for Row { rule, facts, .. } in table().into_iter().filter(|row| clocked.contains(&row.rule)) {
        let found = assess(Action::Germinate, &facts, &observe);
        assert_eq!((found.action, found.reason), (Action::Germinate, None), "rule {rule}");
        assert!(found.events.iter().any(|event| event.rule == rule), "rule {rule}");
    }
    // A late decision must not switch off the loss rule either.
    let facts = signals(|s| {
        s.decision_ms = Some(100.0);
        s.loss_delta = Some(1.0);
    });
    assert_eq!(assess(Action::Nothing, &facts, &observe).enters, Some(Reason::LossSpike));
}

#[test]
fn a_late_decision_excuses_conservative_mode_and_the_loss() {
    let facts = Facts {
        conservative: true,
        ..signals(|s| {
            s.decision_ms = Some(100.0);
            s.loss_delta = Some(1.0);
        })
    };
    let found = assess(Action::Germinate, &facts, &limits());
    assert_eq!(found.reason, Some(Reason::TimeoutInference));
    let rules: Vec<u8> = found.events.iter().map(|event| event.rule).collect();
    assert!(!rules.contains(&4) && !rules.contains(&12), "{rules:?}");
}

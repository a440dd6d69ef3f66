//! What is told about a decision: annotations of its command, events and figures for telemetry.

use std::collections::BTreeMap;

use leyline::wire::{BlueprintTier, FieldReport, MetricPoint, TelemetryEvent, TelemetryLevel};

use crate::config::Blend;
use crate::mode::BreakerStep;
use crate::policy::Findings;
use crate::reason::Reason;
use crate::risk::{Action, Assessment, Happening};
use crate::signals::Coverage;

/// Coverage at or below which the inputs are too poor to act on.
const COVERAGE_CRITICAL: f64 = 0.10;
/// Coverage below which it is worth a word.
const COVERAGE_LOW: f64 = 0.30;

pub(crate) fn coverage_event(coverage: Coverage, assessment: &mut Assessment) {
    let level = match coverage.mean() {
        mean if mean <= COVERAGE_CRITICAL => TelemetryLevel::Critical,
        mean if mean < COVERAGE_LOW => TelemetryLevel::Info,
        _ => return,
    };
    if level == TelemetryLevel::Critical {
        assessment.reason.get_or_insert(Reason::DegradedInputs);
    }
    assessment.events.push(Happening::aside(Reason::DegradedInputs, level));
}

pub(crate) fn breaker_events(steps: &[(&'static str, BreakerStep)], assessment: &mut Assessment) {
    for (component, step) in steps.iter().filter(|(_, step)| *step != BreakerStep::Quiet) {
        let level = match step {
            BreakerStep::Open => TelemetryLevel::Warning,
            BreakerStep::Count | BreakerStep::Close | BreakerStep::Quiet => TelemetryLevel::Info,
        };
        assessment.events.push(Happening {
            breaker: Some((component, *step)),
            ..Happening::aside(Reason::BreakerEvent, level)
        });
    }
}

pub(crate) fn note(assessment: &mut Assessment, event: Reason) {
    let level = match event {
        Reason::ConservativeEntered => TelemetryLevel::Warning,
        _ => TelemetryLevel::Info,
    };
    assessment.events.push(Happening::aside(event, level));
}

/// The annotations. No key begins another one, which is why the contract's `blend_mode_source` and
/// `alpha_vec_len` are `blend_source` and absent here.
pub(crate) fn annotations(findings: &Findings<'_>) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    let mut set = |key: &str, value: String| entries.insert(key.to_owned(), value);
    let action = match findings.action {
        Action::Germinate => "0",
        Action::Optimizer => "1",
        Action::Pause | Action::Resume | Action::Nothing => "2",
        Action::Fossilize => "fossilize",
        Action::Cull => "cull",
    };
    set("policy_action", action.to_owned());
    set("policy_version", findings.policy.identity.version.clone());
    set("policy_risk_index", findings.risk_index.to_string());
    set("policy_risk_score", format!("{:.6}", findings.facts.score.unwrap_or(0.0)));
    if findings.action == Action::Optimizer {
        let delta = findings.config.limits.downgrade_lr_delta;
        set("policy_param_delta", format!("{delta:.6}"));
    }
    set("feature_coverage", format!("{:.6}", findings.coverage.mean()));
    let (global, seed) = (findings.coverage.global, findings.coverage.seed);
    set("coverage_map", format!("{{\"node.global\":{global:.3},\"node.seed\":{seed:.3}}}"));
    let spoken = findings.assessment.reason.unwrap_or(Reason::Policy);
    set("risk_reason", spoken.name().to_owned());
    set("growth_reason", findings.proposal.reason.name().to_owned());
    if let Some(seed) = &findings.proposal.seed {
        set("selected_seed", seed.to_string());
    }
    if let Some(choice) = &findings.proposal.choice {
        blueprint_annotations(choice.blueprint, &mut set);
        if findings.action == Action::Germinate {
            blend_annotations(findings.config.blend, &mut set);
        }
    }
    entries
}

fn blueprint_annotations(
    blueprint: &karn::Blueprint,
    set: &mut impl FnMut(&str, String) -> Option<String>,
) {
    let sheet = karn::safety_sheet(blueprint);
    set("selected_blueprint", blueprint.id().to_string());
    set("blueprint_tier", BlueprintTier::from(blueprint.tier()).as_str_name().to_owned());
    set("blueprint_stage", blueprint.stage().to_string());
    set("blueprint_risk", format!("{:.6}", sheet.risk));
    set("bsds_risk", format!("{:.6}", sheet.risk));
    set("bsds_hazard_band", sheet.hazard.as_str_name().to_owned());
    set("bsds_handling_class", sheet.handling.as_str_name().to_owned());
    set("bsds_resource_profile", sheet.resource.as_str_name().to_owned());
    set("bsds_provenance", sheet.provenance.as_str_name().to_owned());
}

fn blend_annotations(blend: Blend, set: &mut impl FnMut(&str, String) -> Option<String>) {
    let mode = match blend {
        Blend::Executor => return,
        Blend::Convex => "CONVEX",
        Blend::Residual => "RESIDUAL",
        Blend::Confidence { gate_k, gate_tau, alpha_lo, alpha_hi } => {
            set("gate_k", gate_k.to_string());
            set("gate_tau", gate_tau.to_string());
            set("alpha_lo", alpha_lo.to_string());
            set("alpha_hi", alpha_hi.to_string());
            "CONFIDENCE"
        }
    };
    set("blend_mode", mode.to_owned());
    set("blend_source", "override".to_owned());
}

/// Events for telemetry. Their ids are the command's id and a number, so that the same decision
/// told twice is recognised.
pub(crate) fn events(findings: &Findings<'_>, reports: &[FieldReport]) -> Vec<TelemetryEvent> {
    let told = findings.assessment.events.iter().map(|one| {
        let mut details = vec![("rule", one.rule.to_string())];
        if let Some((component, step)) = one.breaker {
            details.push(("component", component.to_owned()));
            details.push(("action", step.name().to_owned()));
        }
        if let Some(choice) = findings.proposal.choice.as_ref().filter(|_| is_of_sheet(one.event)) {
            let sheet = karn::safety_sheet(choice.blueprint);
            details.push(("provenance", sheet.provenance.as_str_name().to_owned()));
            details.push(("blueprint_id", choice.blueprint.id().to_string()));
        }
        (one.event, one.level, details)
    });
    let reported = reports.iter().map(|report| {
        let details = vec![("report_id", report.report_id.clone())];
        (Reason::FieldReportSynthesised, TelemetryLevel::Info, details)
    });
    let numbered = told.chain(reported).enumerate();
    numbered
        .map(|(number, (name, level, details))| event(findings, number, name, level, details))
        .collect()
}

/// Whether an event speaks of a blueprint's safety sheet.
fn is_of_sheet(event: Reason) -> bool {
    matches!(
        event,
        Reason::BlueprintQuarantine
            | Reason::BlueprintRisk
            | Reason::HandlingQuarantine
            | Reason::HazardCritical
            | Reason::HazardHigh
    )
}

fn event(
    findings: &Findings<'_>,
    number: usize,
    name: Reason,
    level: TelemetryLevel,
    details: Vec<(&str, String)>,
) -> TelemetryEvent {
    let common = [
        ("training_run_id", findings.state.training_run_id.clone()),
        ("epoch", findings.context.epoch.to_string()),
        ("reason", findings.reason.name().to_owned()),
    ];
    let attributes = common.into_iter().chain(details);
    TelemetryEvent {
        event_id: format!("{}/{number}", findings.context.command_id),
        description: name.name().to_owned(),
        level: level.into(),
        attributes: attributes.map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// Figures of the decision for the field report of its command.
pub(crate) fn report_metrics(findings: &Findings<'_>) -> BTreeMap<String, f32> {
    let choice = findings.proposal.choice.as_ref();
    let figures = [
        ("loss_delta", findings.facts.signals.loss_delta),
        ("risk_index", Some(findings.risk_index as f32)),
        ("risk_score", findings.facts.score),
        ("selected_seed_score", choice.map(|choice| choice.seed_score)),
        ("blueprint_risk", findings.facts.blueprint.map(|blueprint| blueprint.risk)),
        ("tamiyo_latency_ms", findings.facts.signals.decision_ms),
        ("hook_latency_ms", findings.facts.signals.hook_latency_ms),
    ];
    let known = figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    known.filter(|(_, value)| value.is_finite()).collect()
}

/// Figures under the dotted names.
pub(crate) fn points(findings: &Findings<'_>) -> Vec<MetricPoint> {
    let (facts, signals) = (findings.facts, &findings.facts.signals);
    let choice = findings.proposal.choice.as_ref();
    let index = |choice: &crate::candidate::Choice| {
        let id = choice.blueprint.id();
        let position = karn::catalogue().iter().position(|blueprint| blueprint.id() == id);
        position.map_or(f64::NAN, |position| position as f64)
    };
    let open = |closed: bool| f64::from(u8::from(!closed));
    let single = |value: Option<f32>| value.map(f64::from);
    let breakers = findings.breakers;
    let figures = [
        ("tamiyo.validation_loss", Some(f64::from(findings.state.validation_loss)), "loss"),
        ("tamiyo.loss_delta", single(signals.loss_delta), "loss"),
        ("tamiyo.plateau.flat_epochs", Some(f64::from(findings.flat_epochs)), "epochs"),
        ("tamiyo.conservative_mode", Some(f64::from(u8::from(findings.conservative))), "bool"),
        ("tamiyo.inference.latency_ms", single(signals.decision_ms), "ms"),
        ("tamiyo.policy.risk_index", Some(findings.risk_index as f64), "index"),
        ("tamiyo.policy.risk_score", single(facts.score), "score"),
        ("tamiyo.gnn.feature_coverage", Some(findings.coverage.mean()), "ratio"),
        ("tamiyo.gnn.feature_coverage.node.global", Some(findings.coverage.global), "ratio"),
        ("tamiyo.gnn.feature_coverage.node.seed", Some(findings.coverage.seed), "ratio"),
        ("tamiyo.selection.seed_index", choice.map(|c| c.seed_index as f64), "index"),
        ("tamiyo.selection.seed_score", choice.map(|c| f64::from(c.seed_score)), "score"),
        ("tamiyo.selection.blueprint_index", choice.map(index), "index"),
        ("tamiyo.blueprint.risk", single(facts.blueprint.map(|b| b.risk)), "score"),
        (
            "tamiyo.breaker.inference_state",
            Some(1.0 + open(breakers.inference.is_closed())),
            "state",
        ),
        ("tamiyo.breaker.metadata_state", Some(1.0 + open(breakers.metadata.is_closed())), "state"),
        (
            "tamiyo.breaker.inference_failures",
            Some(f64::from(breakers.inference.failures())),
            "count",
        ),
        (
            "tamiyo.breaker.metadata_failures",
            Some(f64::from(breakers.metadata.failures())),
            "count",
        ),
    ];
    let known = figures.into_iter().filter_map(|(name, value, unit)| Some((name, value?, unit)));
    known
        .filter(|(_, value, _)| value.is_finite())
        .map(|(name, value, unit)| point(name, value, unit))
        .collect()
}

pub(crate) fn point(name: &str, value: f64, unit: &str) -> MetricPoint {
    MetricPoint { name: name.to_owned(), value, unit: unit.to_owned(), attributes: BTreeMap::new() }
}

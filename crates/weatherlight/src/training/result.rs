//! What a run ends with: two tables, a summary for programs, and the report.

use std::path::Path;

use serde_json::{Value, json};
use tolaria::report::{About, ReportError, write_html};
use tolaria::{Figures, Journey, Outcome, Prepared};

use super::ask::Ask;
use super::watch::word;
use crate::cli::table;

/// Each network's name and figures, those that were trained.
fn networks(outcome: &Outcome) -> Vec<(&'static str, &Figures)> {
    let always = [("host before growth", Some(&outcome.before)), ("grown", Some(&outcome.grown))];
    let compared = [
        ("same host, no growth", outcome.host_alone.as_ref()),
        ("fixed, grown size", outcome.fixed.as_ref()),
    ];
    let all = always.into_iter().chain(compared);
    all.filter_map(|(name, figures)| Some((name, figures?))).collect()
}

/// The tables.
pub fn print(outcome: &Outcome) {
    let columns = ["network", "test accuracy", "test loss", "parameters", "epochs", "seconds"];
    let mut rows = table::with_columns(&columns);
    for (name, figures) in networks(outcome) {
        rows.add_row([
            name.to_owned(),
            format!("{:.1} %", figures.accuracy * 100.0),
            format!("{:.4}", figures.loss),
            figures.parameters.to_string(),
            figures.epochs.to_string(),
            format!("{:.1}", figures.seconds),
        ]);
    }
    table::print(&rows.to_string());
    if outcome.journeys.is_empty() {
        table::print("no seed was grown");
        return;
    }
    let columns = ["seed", "blueprint", "journey (epoch, seconds)", "kernel", "loss", "end"];
    let mut rows = table::with_columns(&columns);
    for journey in &outcome.journeys {
        rows.add_row([
            journey.seed.to_string(),
            journey.blueprint.to_string(),
            milestones(journey),
            journey.fetch_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or_default(),
            journey.losses.map(|(a, b)| format!("{a:.4} to {b:.4}")).unwrap_or_default(),
            if journey.is_kept() {
                "kept".to_owned()
            } else {
                journey.reason.clone().unwrap_or_else(|| word(journey.stage()))
            },
        ]);
    }
    table::print(&rows.to_string());
}

fn milestones(journey: &Journey) -> String {
    let step = |milestone: &tolaria::Milestone| {
        let seconds = milestone.at_ms / 1e3;
        format!("{} ({}, {seconds:.1} s)", word(milestone.stage), milestone.epoch)
    };
    journey.milestones.iter().map(step).collect::<Vec<_>>().join("\n")
}

/// The outcome for programs.
pub fn summary(outcome: &Outcome, report: Option<&Path>, weights: Option<&Path>) -> Value {
    let figures = |figures: &Figures| {
        json!({
            "accuracy": figures.accuracy,
            "loss": figures.loss,
            "parameters": figures.parameters,
            "epochs": figures.epochs,
            "seconds": figures.seconds,
        })
    };
    let journey = |journey: &Journey| {
        json!({
            "seed": journey.seed.as_str(),
            "blueprint": journey.blueprint.as_str(),
            "kept": journey.is_kept(),
            "fetch_ms": journey.fetch_ms,
            "late_epochs": journey.late_epochs,
            "reason": journey.reason,
            "stages": journey.milestones.iter().map(|milestone| json!({
                "stage": word(milestone.stage),
                "epoch": milestone.epoch,
                "at_ms": milestone.at_ms,
            })).collect::<Vec<_>>(),
        })
    };
    json!({
        "end": format!("{:?}", outcome.end).to_lowercase(),
        "repeatable": outcome.is_repeatable(),
        "before": figures(&outcome.before),
        "grown": figures(&outcome.grown),
        "host_alone": outcome.host_alone.as_ref().map(figures),
        "fixed": outcome.fixed.as_ref().map(figures),
        "journeys": outcome.journeys.iter().map(journey).collect::<Vec<_>>(),
        "step_us": outcome.step_us,
        "hook_us": outcome.hook_us,
        "dropped_messages": outcome.dropped_messages,
        "report": report,
        "weights": weights,
    })
}

/// Writes the report to the file that was asked for.
///
/// # Errors
/// [`ReportError`]
pub fn write_report(
    ask: &Ask,
    command: &str,
    prepared: &Prepared,
    outcome: &Outcome,
) -> Result<(), ReportError> {
    let again = ask.command(command);
    let about = About {
        prepared,
        command: &again,
        version: env!("CARGO_PKG_VERSION"),
        ended_unix_ms: leyline::time::now_unix_ms(),
    };
    write_html(&ask.report, &about, outcome)
}

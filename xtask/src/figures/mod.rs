//! `cargo xtask figures`: the figures of operation, measured on the built service from outside.
//!
//! Each stands beside a target and, where one makes sense, a baseline from the same run. `process` starts, asks
//! and stops the service, `life` measures starts and stops, `idle` what it takes while nothing happens,
//! `drain` a stop under load. What only the inside can see (a crashed worker runs again, a hung one is noticed)
//! is measured by `weatherlight bench --supervisor` on the real supervisor.

mod drain;
mod idle;
mod life;
mod process;

// A small client, written for the black-box tests.
#[allow(clippy::unwrap_used, dead_code, reason = "written for tests; a panic ends the run")]
#[path = "../../../crates/weatherlight/tests/blackbox/redis.rs"]
mod client;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use self::process::{Log, Redis};
use crate::run::cargo;
use crate::wire;

/// What to measure, and how often.
#[derive(Args)]
pub struct Options {
    /// Starts and stops of each kind.
    #[arg(long, default_value_t = 15)]
    runs: usize,
    /// How long the idle service is watched, in seconds.
    #[arg(long, default_value_t = 60)]
    idle_s: u64,
    /// Only these parts: life, idle, drain, supervisor.
    #[arg(long)]
    only: Vec<String>,
    /// A built program; without one the release build is made.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Write the figures there as JSON, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }
}

/// One figure. Lower is better.
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Unit of all numbers.
    pub unit: &'static str,
    /// Every run.
    pub values: Vec<f64>,
    /// What is aimed at.
    pub target: Option<f64>,
    /// What it stands beside, with its value.
    pub baseline: Option<(&'static str, f64)>,
}

impl Figure {
    /// A figure without a baseline.
    pub fn new(name: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        Self { name: name.into(), unit, values, target: None, baseline: None }
    }

    /// With what is aimed at.
    pub fn target(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    /// With what it stands beside.
    pub fn beside(self, what: &'static str, value: f64) -> Self {
        Self { baseline: Some((what, value)), ..self }
    }

    fn is_met(&self) -> Option<bool> {
        self.target.map(|target| median(&self.values) <= target)
    }
}

/// Measures, prints, and fails when something that must not be lost was.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let program = match &options.program {
        Some(path) => path.canonicalize().with_context(|| format!("no {}", path.display()))?,
        None => {
            cargo(root, &["build", "--release", "--locked", "-p", "weatherlight"])?;
            root.join("target/release/weatherlight")
        }
    };
    let server = crate::redis::server(root)?;
    let mut figures = Vec::new();
    if options.wants("life") {
        let bare = life::bare(&program, options.runs)?;
        for log in Log::BOTH {
            let redis = log.server(&server)?;
            figures.extend(life::measure(&program, log, redis.as_ref(), options.runs, bare)?);
        }
    }
    if options.wants("idle") {
        for log in Log::BOTH {
            let redis = log.server(&server)?;
            figures.extend(idle::measure(&program, log, redis.as_ref(), options.idle_s)?);
        }
    }
    if options.wants("drain") {
        figures.extend(drain::measure(&program, &Redis::start(&server)?, options.runs.min(5))?);
    }
    if options.wants("supervisor") {
        figures.extend(supervisor(&program)?);
    }
    show(&figures);
    if let Some(path) = &options.json {
        let list: Vec<Value> = figures.iter().map(as_json).collect();
        std::fs::write(path, serde_json::to_string_pretty(&list)?)?;
    }
    let lost =
        figures.iter().find(|figure| figure.name.contains("lost") && median(&figure.values) > 0.0);
    match lost {
        Some(lost) => bail!("{}: {:?}", lost.name, lost.values),
        None => Ok(()),
    }
}

/// What only the inside can see.
fn supervisor(program: &Path) -> Result<Vec<Figure>> {
    let mut command = Command::new(program);
    command.args(["bench", "--supervisor", "--json", "--log-format", "json"]);
    let output = command.env_clear().current_dir(std::env::temp_dir()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let figure = |row: &Value| {
        let name = row["name"].as_str()?;
        let number = |key: &str| row[key].as_f64();
        let beside = if name.starts_with("hang") { "its budget" } else { "a bare task" };
        let figure = Figure::new(name, "ms", vec![number("value")?]);
        Some(figure.target(number("target")?).beside(beside, number("baseline")?))
    };
    rows.iter().map(|row| figure(row).context("no figure")).collect()
}

fn show(figures: &[Figure]) {
    println!("\n| figure | median | least | most | runs | target | met | baseline |");
    println!("|---|---|---|---|---|---|---|---|");
    for figure in figures {
        let unit = figure.unit;
        let target =
            figure.target.map_or_else(String::new, |target| format!("{} {unit}", short(target)));
        let met = match figure.is_met() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let baseline = figure
            .baseline
            .map_or_else(String::new, |(what, value)| format!("{} {unit}: {what}", short(value)));
        println!(
            "| {} | {} {unit} | {} | {} | {} | {target} | {met} | {baseline} |",
            figure.name,
            short(median(&figure.values)),
            short(least(&figure.values)),
            short(most(&figure.values)),
            figure.values.len(),
        );
    }
}

fn as_json(figure: &Figure) -> Value {
    json!({
        "name": figure.name,
        "unit": figure.unit,
        "median": median(&figure.values),
        "least": least(&figure.values),
        "values": figure.values,
        "target": figure.target,
        "met": figure.is_met(),
        "baseline": figure.baseline.map(|(what, value)| json!({ "what": what, "value": value })),
    })
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle; of an even number the upper one of both.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_its_median() {
        let figure = |values: &[f64]| Figure::new("x", "ms", values.to_vec()).target(2.0);
        assert_eq!(figure(&[9.0, 1.0, 2.0]).is_met(), Some(true));
        assert_eq!(figure(&[9.0, 1.0, 2.5]).is_met(), Some(false));
        assert_eq!(figure(&[]).is_met(), Some(false), "nothing measured is nothing reached");
        assert_eq!(Figure::new("x", "ms", vec![1.0]).is_met(), None);
    }

    #[test]
    fn numbers_are_shown_with_three_digits() {
        assert_eq!([123.4, 12.34, 1.234, 0.1234].map(short), ["123", "12.3", "1.23", "0.123"]);
    }
}

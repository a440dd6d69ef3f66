//! `weatherlight config`: check, show and document the settings.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use nissa::{ChangeOutcome, ReloadReport, SettingFault};
use serde_json::{Value, json};

use super::failure::Failure;
use super::{Global, block_on, table};
use crate::client;
use crate::settings::{Fault, Faults, InForce, Resolved, Sources, docs, resolve};
use crate::supervisor::Exit;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report every fault in the settings at once
    #[command(after_help = "Example: weatherlight config check --config weatherlight.toml")]
    Check,
    /// Print each value and where it came from, secrets masked
    #[command(after_help = "Example: weatherlight config show --json")]
    Show,
    /// Print what differs from the defaults, or from another settings file
    #[command(
        after_help = "Examples:\n  weatherlight config diff\n  weatherlight config diff /etc/weatherlight/other.toml --json"
    )]
    Diff {
        /// A settings file to compare with, read with the same .env and environment [default: the defaults]
        other: Option<PathBuf>,
    },
    /// Have a running service read its settings again (needs WEATHERLIGHT_HTTP_TOKEN on both sides)
    ///
    /// All or nothing: with any fault the old settings stay. Prints for each changed setting whether it
    /// took effect or needs a restart.
    #[command(after_help = "Example: weatherlight config reload --json")]
    Reload,
    /// Print a JSON schema of weatherlight.toml
    #[command(after_help = "Example: weatherlight config schema > weatherlight.schema.json")]
    Schema,
    /// Print the manual of the settings
    #[command(after_help = "Example: weatherlight config docs | less")]
    Docs(Docs),
}

#[derive(Debug, clap::Args)]
pub struct Docs {
    /// Write every generated file below this directory
    #[arg(long, hide = true, value_name = "ROOT", num_args = 0..=1, default_missing_value = ".")]
    write: Option<PathBuf>,
    /// Fail when one of them is stale
    #[arg(long, hide = true, value_name = "ROOT", num_args = 0..=1, default_missing_value = ".")]
    check: Option<PathBuf>,
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Check => check(global),
        Command::Show => show(global),
        Command::Diff { other } => diff(global, other.as_deref()),
        Command::Reload => reload(global),
        Command::Schema => {
            table::print_json(&docs::schema());
            Ok(0)
        }
        Command::Docs(Docs { write: Some(root), .. }) => write(root),
        Command::Docs(Docs { check: Some(root), .. }) => check_fresh(root),
        Command::Docs(_) => {
            table::print(&docs::manual());
            Ok(0)
        }
    }
}

fn check(global: &Global) -> Result<u8, Failure> {
    let found = global.resolve();
    if global.json {
        let (faults, warnings): (&[Fault], &[Fault]) = match &found {
            Ok(resolved) => (&[], &resolved.warnings),
            Err(Faults(faults)) => (faults, &[]),
        };
        let listed = |faults: &[Fault]| faults.iter().map(Fault::to_json).collect::<Vec<_>>();
        table::print_json(&json!({
            "valid": faults.is_empty(),
            "faults": listed(faults),
            "warnings": listed(warnings),
        }));
        return Ok(if faults.is_empty() { 0 } else { Exit::Configuration.code() });
    }
    let resolved = found.map_err(|faults| Failure::configuration(faults.to_string()))?;
    for warning in &resolved.warnings {
        eprintln!("warning: {warning}");
    }
    table::print("the settings are valid");
    Ok(0)
}

fn show(global: &Global) -> Result<u8, Failure> {
    let Resolved { in_force, .. } = global.load()?;
    if global.json {
        table::print_json(&in_force.iter().map(described).collect::<Vec<_>>());
        return Ok(0);
    }
    let mut rows = table::with_columns(&["setting", "value", "from", "change"]);
    for row in &in_force {
        let value = row.shown.as_deref().unwrap_or("(unset)");
        let definition = row.definition;
        rows.add_row([definition.env, value, &row.origin.to_string(), definition.reload.word()]);
    }
    table::print(&rows.to_string());
    Ok(0)
}

/// What differs between the settings here and the defaults, or those with another file.
fn diff(global: &Global, other: Option<&Path>) -> Result<u8, Failure> {
    let here = global.load()?;
    let (name, there) = match other {
        None => ("default", resolve(&Sources::default())),
        Some(path) => ("other", resolve(&Sources::gather(Some(path), &global.overrides))),
    };
    let there = there.map_err(|faults| Failure::configuration(faults.to_string()))?;
    let pairs = here.in_force.iter().zip(&there.in_force);
    let differing: Vec<_> = pairs.filter(|(here, there)| here.value != there.value).collect();
    if global.json {
        let row = |(here, there): &(&InForce, &InForce)| {
            json!({
                "setting": here.definition.env,
                "value": here.shown,
                "source": here.origin.to_json(),
                name: there.shown,
                "secret": here.definition.kind.is_secret(),
            })
        };
        table::print_json(&differing.iter().map(row).collect::<Vec<_>>());
        return Ok(0);
    }
    if differing.is_empty() {
        table::print("no setting differs");
        return Ok(0);
    }
    let mut rows = table::with_columns(&["setting", "value", "from", name]);
    let text = |row: &InForce| match (&row.shown, row.definition.kind.is_secret()) {
        (None, _) => "(unset)".to_owned(),
        // Both would be shown as the same mask.
        (Some(_), true) => "(a secret)".to_owned(),
        (Some(shown), false) => shown.clone(),
    };
    for (here, there) in differing {
        let there = match (&there.shown, there.definition.kind.is_secret()) {
            (Some(_), true) => "(a different one)".to_owned(),
            _ => text(there),
        };
        rows.add_row([here.definition.env, &text(here), &here.origin.to_string(), &there]);
    }
    table::print(&rows.to_string());
    Ok(0)
}

/// Asks a running service to read its settings again.
fn reload(global: &Global) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    let Some(token) = &settings.http_token else {
        return Err(Failure::configuration(
            "this needs WEATHERLIGHT_HTTP_TOKEN, the same here and at the service; without one, send it SIGHUP",
        ));
    };
    let asked = client::request(settings.http_addr, "POST", "/v1/reload", Some(token));
    let answer = block_on(asked)?.map_err(|error| Failure::unavailable_because(&error))?;
    let report: ReloadReport = serde_json::from_str(&answer.body).map_err(|_| {
        Failure::unavailable(format!("refused ({}): {}", answer.status, answer.body.trim()))
    })?;
    if global.json {
        table::print_json(&report);
        return Ok(if report.applied { 0 } else { Exit::Configuration.code() });
    }
    if !report.applied {
        let line = |fault: &SettingFault| format!("\n  {}: {}", fault.origin, fault.problem);
        let lines: String = report.faults.iter().map(line).collect();
        return Err(Failure::configuration(format!("not reloaded, the old settings stay:{lines}")));
    }
    if report.changes.is_empty() {
        table::print("read again; no setting differs from what is in force");
        return Ok(0);
    }
    let mut rows = table::with_columns(&["setting", "was", "now", "from", "outcome"]);
    for change in &report.changes {
        let outcome = match change.outcome {
            ChangeOutcome::TookEffect => "took effect",
            ChangeOutcome::NeedsRestart => "needs a restart",
            ChangeOutcome::NoEffect => "has no effect",
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "(unset)".to_owned());
        let (was, now) = (text(&change.was), text(&change.now));
        rows.add_row([change.setting.as_str(), &was, &now, &change.origin, outcome]);
    }
    table::print(&rows.to_string());
    Ok(0)
}

/// Everything known about a setting and its value, secrets masked.
fn described(row: &InForce) -> Value {
    let definition = row.definition;
    let (min, max) = definition.kind.bounds().unzip();
    json!({
        "name": definition.env,
        "key": definition.key,
        "section": definition.section,
        "value": row.shown,
        "origin": row.origin.to_string(),
        "source": row.origin.to_json(),
        "type": definition.kind.describe(),
        "unit": definition.kind.unit(),
        "min": min,
        "max": max,
        "default": definition.default,
        "secret": definition.kind.is_secret(),
        "change": definition.reload.word(),
        "meaning": definition.sentence,
    })
}

fn write(root: &std::path::Path) -> Result<u8, Failure> {
    for (path, text) in docs::generated() {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| Failure::software(&error))?;
        }
        fs::write(&path, text).map_err(|error| Failure::software(&error))?;
        table::print(&format!("wrote {}", path.display()));
    }
    Ok(0)
}

fn check_fresh(root: &std::path::Path) -> Result<u8, Failure> {
    for (path, text) in docs::generated() {
        if fs::read_to_string(root.join(path)).ok().as_deref() != Some(&text) {
            return Err(Failure::configuration(format!(
                "{path} is stale; run `cargo xtask gen` and commit the result"
            )));
        }
    }
    Ok(0)
}

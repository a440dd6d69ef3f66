//! `weatherlight config`: check, show and document the settings.

use std::fs;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::Failure;
use super::{Global, table};
use crate::settings::{Fault, Faults, InForce, Resolved, docs};
use crate::supervisor::Exit;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report every fault in the settings at once
    Check,
    /// Print each value and where it came from, secrets masked
    Show,
    /// Print a JSON schema of weatherlight.toml
    Schema,
    /// Print the manual of the settings
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

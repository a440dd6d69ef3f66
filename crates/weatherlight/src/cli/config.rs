//! `weatherlight config`: check, show and document the settings.

use std::fs;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::failure::Failure;
use super::{Global, table};
use crate::settings::{InForce, Resolved, docs};

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
    /// Write docs/settings.md and .env.example below this directory
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
    let resolved = global.load()?;
    for unknown in &resolved.unknown {
        eprintln!("warning: {unknown}");
    }
    table::print("the settings are valid");
    Ok(0)
}

fn show(global: &Global) -> Result<u8, Failure> {
    let Resolved { in_force, .. } = global.load()?;
    if global.json {
        let row = |row: &InForce| {
            json!({
                "name": row.definition.env,
                "key": row.definition.key,
                "value": row.shown,
                "origin": row.origin.to_string(),
            })
        };
        table::print_json(&in_force.iter().map(row).collect::<Vec<_>>());
        return Ok(0);
    }
    let mut rows = table::with_columns(&["setting", "value", "from"]);
    for row in &in_force {
        let value = row.shown.as_deref().unwrap_or("(unset)");
        rows.add_row([row.definition.env, value, &row.origin.to_string()]);
    }
    table::print(&rows.to_string());
    Ok(0)
}

/// The generated files below the workspace root.
fn generated() -> [(&'static str, String); 2] {
    [("docs/settings.md", docs::manual()), (".env.example", docs::env_example())]
}

fn write(root: &std::path::Path) -> Result<u8, Failure> {
    for (path, text) in generated() {
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
    for (path, text) in generated() {
        if fs::read_to_string(root.join(path)).ok().as_deref() != Some(&text) {
            return Err(Failure::configuration(format!(
                "{path} is stale; run `cargo xtask gen` and commit the result"
            )));
        }
    }
    Ok(0)
}

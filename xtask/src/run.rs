//! Running other programs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs cargo in a directory, with its output shown; an exit that is not 0 is an error.
pub fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    cargo_with(root, arguments, |_| {})
}

/// The same, after `prepare` has changed the command.
pub fn cargo_with(
    root: &Path,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root);
    prepare(&mut command);
    succeed(&mut command)
}

/// Runs a command to its end; an exit that is not 0 is an error that shows the command.
pub fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

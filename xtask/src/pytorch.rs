//! The reader for PyTorch against PyTorch itself: its tests, and the fixtures that the Rust side is held against.
//!
//! Not part of the gate, which must run where PyTorch cannot be had. A Python with torch is taken from `--python`, or an
//! environment is made under `target/pytorch` (some gigabytes, once).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const FIXTURES: &str = "crates/karn/tests/fixtures/pytorch.json";
const CASES: &str = "target/pytorch-cases";

/// What to do with the fixtures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixtures {
    /// Fail unless PyTorch gives what is committed (to the digits that are kept).
    Compare,
    /// Write them anew.
    Write,
}

/// Runs the reader's tests and every template in PyTorch.
pub fn run(root: &Path, python: Option<PathBuf>, fixtures: Fixtures) -> Result<()> {
    let python = python.map_or_else(|| environment(root), Ok)?;
    done(Command::new(&python).args(["-m", "unittest", "-v"]).current_dir(root.join("python")))?;
    let cases = root.join(CASES);
    if cases.exists() {
        std::fs::remove_dir_all(&cases).with_context(|| format!("cannot empty {CASES}"))?;
    }
    let export = ["run", "-q", "-p", "karn", "--example", "pytorch_cases", "--", CASES];
    done(Command::new(env!("CARGO")).args(export).current_dir(root))?;
    let made = match fixtures {
        Fixtures::Write => root.join(FIXTURES),
        Fixtures::Compare => root.join("target/pytorch-fixtures.json"),
    };
    let script = root.join("python/make_fixtures.py");
    done(Command::new(&python).arg(script).args([&cases, &made]).current_dir(root))?;
    if fixtures == Fixtures::Write {
        return Ok(());
    }
    // Another version of torch may round elsewhere; the tests decide whether that matters.
    done(
        Command::new(env!("CARGO"))
            .args(["test", "-q", "-p", "karn", "--test", "it", "pytorch"])
            .env("WEATHERLIGHT_PYTORCH_FIXTURES", &made)
            .current_dir(root),
    )
}

/// A Python of our own with torch.
fn environment(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/pytorch");
    let python = folder.join("bin/python");
    let has_torch = Command::new(&python).args(["-c", "import torch"]).status();
    if has_torch.is_ok_and(|status| status.success()) {
        return Ok(python);
    }
    println!("making a Python with torch in {}: some gigabytes, once", folder.display());
    done(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    done(Command::new(&python).args(["-m", "pip", "install", "-q", "torch", "numpy"]))?;
    Ok(python)
}

fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed: {status}") }
}

//! Developer commands. `cargo xtask check` is the whole gate, here and in CI; `cargo xtask test`
//! is the test command of the README and a part of it; `cargo xtask gen` writes every generated file.

mod chaos;
mod debian;
mod deploy;
mod figures;
mod fuzz;
mod generate;
mod levels;
mod licences;
mod metrics_page;
mod pitfalls;
mod postgres;
mod pytorch;
mod redis;
mod redis_newer;
mod run;
// The contract written a second time, by hand, for the black-box tests: no code of the service in it.
#[allow(
    clippy::unwrap_used,
    dead_code,
    reason = "written for tests; a panic ends the run as failed"
)]
#[path = "../../crates/weatherlight/tests/blackbox/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::run::cargo;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Weatherlight")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole gate: format, lints, levels, licences, generated files, tests, documentation.
    Check,
    /// All tests. Finds a Redis server or fetches one; a missing server fails, nothing is skipped.
    Test {
        /// Handed on to `cargo test`, for instance `-p oona replay`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Every fuzz target for a bounded time; needs a nightly compiler and `cargo fuzz`.
    Fuzz {
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Check the systemd unit, the container files, the Kubernetes example and the dashboards: by the
    /// program's own tables, then by their own tools where those can be had.
    Deploy,
    /// The built service under one fault after another, and the table of what it kept of its promises.
    Chaos(chaos::Options),
    /// Measure the built service: start, idle, stop, restart of a worker. Takes five minutes.
    Figures(figures::Options),
    /// The reader for PyTorch and every template against PyTorch itself; fetches torch unless a Python has it.
    Pytorch {
        /// A Python with torch.
        #[arg(long)]
        python: Option<PathBuf>,
        /// Write the fixtures of the Rust tests anew instead of comparing with them.
        #[arg(long)]
        write: bool,
    },
    /// Write every generated file.
    Gen,
}

fn main() -> Result<()> {
    let root = root()?;
    match Arguments::parse().command {
        Command::Check => check(&root),
        Command::Test { rest } => test(&root, &rest),
        Command::Fuzz { seconds } => fuzz::run(&root, seconds),
        Command::Deploy => deploy::check(&root),
        Command::Chaos(options) => chaos::run(&root, &options),
        Command::Figures(options) => figures::run(&root, &options),
        Command::Pytorch { python, write } => {
            let fixtures =
                if write { pytorch::Fixtures::Write } else { pytorch::Fixtures::Compare };
            pytorch::run(&root, python, fixtures)
        }
        Command::Gen => generate::write(&root),
    }
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("xtask stands in the workspace")
}

/// Cheap checks first, so that a slip shows within seconds.
fn check(root: &Path) -> Result<()> {
    let begun = Instant::now();
    step("format", || cargo(root, &["fmt", "--all", "--check"]))?;
    step("levels", || levels::check(root))?;
    step("licences", || licences::check(root))?;
    step("deployment files", || deploy::check(root))?;
    step("lints", || {
        let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        cargo(root, &lints)
    })?;
    step("tests", || test(root, &[]))?;
    step("generated files", || generate::check(root))?;
    step("documentation", || {
        run::cargo_with(root, &["doc", "--workspace", "--no-deps", "--locked"], |command| {
            command.env("RUSTDOCFLAGS", "-D warnings");
        })
    })?;
    println!("the gate is green after {:.0?}", begun.elapsed());
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let begun = Instant::now();
    work().with_context(|| format!("the gate fails at: {name}"))?;
    println!("== {name}: good after {:.1?}", begun.elapsed());
    Ok(())
}

fn test(root: &Path, rest: &[String]) -> Result<()> {
    let server = redis::server(root)?;
    let newer = redis_newer::servers(root, &server)?;
    let postgres = postgres::programs(root)?;
    println!("Redis servers for the tests: {}", server.display());
    println!("  newer: {}, Valkey: {}", newer.redis.display(), newer.valkey.display());
    println!("PostgreSQL for the tests: {}", postgres.display());
    let mut arguments = vec!["test", "--locked"];
    match rest {
        [] => arguments.push("--workspace"),
        some => arguments.extend(some.iter().map(String::as_str)),
    }
    run::cargo_with(root, &arguments, |command| {
        command.env("WEATHERLIGHT_TEST_REDIS_SERVER", &server);
        command.env("WEATHERLIGHT_TEST_REDIS_NEWER", &newer.redis);
        command.env("WEATHERLIGHT_TEST_VALKEY_SERVER", &newer.valkey);
        command.env("WEATHERLIGHT_TEST_POSTGRES", &postgres);
    })?;
    if rest.is_empty() {
        // With the scheduler's locks in place of the system's; nothing but these tests can use them.
        let interleavings =
            ["test", "--locked", "-p", "oona", "--features", "shuttle", "--lib", "interleavings"];
        cargo(root, &interleavings)?;
    }
    Ok(())
}

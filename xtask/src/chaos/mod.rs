//! `cargo xtask chaos`: the built service against real Redis, under one fault after another, judged from outside by a
//! client that only speaks the wire contract. The table it prints stands in `docs/reliability.md`.
//!
//! Reading order: `rows` (the faults), `trial` (what stands around each), `traffic` and `book` (the client and its
//! books), `service` and `server` (the processes under trial), `place` (where they live and how they are cleared away).

mod book;
mod client;
mod place;
mod rows;
mod server;
mod service;
mod table;
mod traffic;
mod trial;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::cargo;
use crate::wire;
use place::Place;
use rows::ROWS;
use table::{Circumstances, Line};

/// What to run, and what to do with the table.
#[derive(Args)]
pub struct Options {
    /// Only these rows.
    #[arg(long)]
    row: Vec<String>,
    /// Seed of traffic and faults; the same seed sends the same requests in the same order.
    #[arg(long, default_value_t = 20_261_123)]
    seed: u64,
    /// Name the rows and end.
    #[arg(long)]
    list: bool,
    /// Print one JSON object for each row.
    #[arg(long)]
    json: bool,
    /// Write the table into `docs/reliability.md`; with `--row`, only those rows of it.
    #[arg(long)]
    write: bool,
    /// `release`, or `dev` while working on it.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Runs the rows; an error when one of them loses something.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    if options.list {
        for row in ROWS {
            println!("{:28}{}", row.name, row.what);
        }
        return Ok(());
    }
    for name in &options.row {
        if !ROWS.iter().any(|row| row.name == name) {
            bail!("there is no row {name}; `cargo xtask chaos --list` names them");
        }
    }
    let program = build(root, &options.profile)?;
    let redis = crate::redis::server(root)?;
    let circumstances = circumstances(root, options, &redis);
    let place = Place::make(root, &program, redis)?;
    let begun = Instant::now();
    let mut lines = Vec::new();
    for row in ROWS {
        if !options.row.is_empty() && !options.row.iter().any(|name| name == row.name) {
            continue;
        }
        let line = Line { row, seed: options.seed, ran: row.run(&place, options.seed) };
        match options.json {
            true => println!("{}", line.json()),
            false => println!("{}", line.text()),
        }
        if line.was_run() && !line.is_good() {
            let kept = place.keep_logs(row.name)?;
            eprintln!("  what its services logged: {}", kept.display());
        }
        lines.push(line);
    }
    if !options.json {
        println!("{} rows in {:.0?}", lines.len(), begun.elapsed());
    }
    if options.write {
        match options.row.is_empty() {
            true => table::write(root, &table::markdown(&lines, &circumstances))?,
            false => table::write_rows(root, &lines)?,
        }
    }
    let failed: Vec<&str> = lines
        .iter()
        .filter(|line| line.was_run() && !line.is_good())
        .map(|line| line.row.name)
        .collect();
    if !failed.is_empty() {
        bail!("not every promise was kept: {}", failed.join(", "));
    }
    Ok(())
}

/// The service with its kill points.
fn build(root: &Path, profile: &str) -> Result<PathBuf> {
    let build =
        ["build", "--locked", "-p", "weatherlight", "--bin", "weatherlight", "--features", "chaos"];
    cargo(root, &[&build[..], &["--profile", profile]].concat())?;
    let directory = if profile == "dev" { "debug" } else { profile };
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(directory).join("weatherlight"))
}

fn circumstances(root: &Path, options: &Options, redis: &Path) -> Circumstances {
    let first_line = |command: &mut Command| -> Result<String> {
        let output = command.output().context("it does not start")?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned())
    };
    let said = |command: &mut Command| first_line(command).unwrap_or_else(|_| "unknown".to_owned());
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor =
        information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let server = said(Command::new(redis).arg("--version"));
    let version = server
        .split("v=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or("of unknown version");
    Circumstances {
        seed: options.seed,
        profile: options.profile.clone(),
        commit: said(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root)),
        date: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        machine: format!(
            "{cores} cores, {}",
            processor.map_or("unknown processor", |(_, name)| name)
        ),
        redis: format!("Redis {version}"),
    }
}

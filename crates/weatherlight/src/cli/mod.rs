//! The commands. Each is a small file that loads the settings, calls what it needs and prints.
//!
//! Reading order: [`Cli`] (what can be typed), `failure` (how a command ends), then one file per
//! command.

mod bench;
mod bus;
mod bus_bench;
mod bus_desk;
mod bus_stats;
mod bus_tap;
mod completions;
mod config;
mod demo;
mod dlq;
mod doctor;
mod failure;
mod kernels;
mod serve;
pub(crate) mod table;
mod train;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::logging::{self, LogFormat};
use crate::settings::{Faults, Resolved, Sources, resolve};
use crate::training::Ask;

pub use failure::Failure;

/// Threads of the service's runtime: a worker that blocks one must not stop the supervisor.
const RUNTIME_THREADS: usize = 4;
/// How long the runtime's threads may take to end.
const RUNTIME_END_MAX: Duration = Duration::from_secs(2);

/// What can be typed.
#[derive(Debug, Parser)]
#[command(
    name = "weatherlight",
    version,
    about = "Esper's foundation service: compiles, feeds and supervises networks that grow while they train",
    after_help = EXAMPLES,
    max_term_width = 110,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  weatherlight demo                               boot everything and grow a network on two spirals
  weatherlight demo --data iris.csv --label species
  ESPER_LEYLINE_SECRET=... weatherlight serve     the service alone
  weatherlight doctor                             what would stop a start, and what to do about it
  weatherlight status                             what a running service is doing

Exit codes: 0 clean, 65 unusable input data, 69 something needed is unavailable, 70 a critical worker
gave up, 78 configuration. Settings: docs/settings.md, or `weatherlight config show`.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Settings file [default: weatherlight.toml where it exists]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub config: Option<PathBuf>,
    /// Set one setting; may be repeated
    #[arg(long = "set", global = true, value_name = "NAME=VALUE", help_heading = "Everywhere")]
    pub overrides: Vec<String>,
    /// Print JSON instead of tables
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// How logs are written
    #[arg(long, global = true, value_enum, value_name = "FORMAT", help_heading = "Everywhere")]
    pub log_format: Option<LogFormat>,
}

impl Global {
    /// Loads the settings.
    ///
    /// # Errors
    /// A configuration failure that lists every fault.
    pub fn load(&self) -> Result<Resolved, Failure> {
        self.resolve().map_err(|faults| Failure::configuration(faults.to_string()))
    }

    /// The same, with the faults one by one.
    ///
    /// # Errors
    /// Every fault of the settings.
    pub fn resolve(&self) -> Result<Resolved, Faults> {
        resolve(&Sources::gather(self.config.as_deref(), &self.overrides))
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the foundation service until it is told to stop
    ///
    /// On Redis when REDIS_URL is set, on the embedded log otherwise. SIGTERM and SIGINT stop it in
    /// an orderly way, a second one at once; SIGHUP reads the settings again.
    #[command(
        after_help = "Example: REDIS_URL=redis://127.0.0.1:6379/0 ESPER_LEYLINE_SECRET_FILE=/run/secrets/leyline weatherlight serve"
    )]
    Serve,
    /// Boot everything in one process and grow a network; needs nothing else
    ///
    /// Boots the whole service on its own embedded log below ./var, compiles the catalogue, trains a
    /// network that cannot solve its task alone, and lets the policy grow it. Ends with a table and a
    /// report.
    #[command(
        after_help = "Examples:\n  weatherlight demo\n  weatherlight demo --task xor --seed 3\n  weatherlight demo --data iris.csv --label species --report iris.html\n  weatherlight demo --stay          keep the page up afterwards"
    )]
    Demo(demo::Options),
    /// Train against a running service, over Redis
    ///
    /// Needs REDIS_URL and ESPER_LEYLINE_SECRET, the same as the service's, and must see the service's
    /// artifact directory under the same path.
    #[command(
        after_help = "Example: REDIS_URL=redis://127.0.0.1:6379/0 weatherlight train --task moons"
    )]
    Train(Ask),
    /// Check, show or document the settings
    #[command(subcommand)]
    Config(config::Command),
    /// Look at everything the service needs, and say what to do about what is missing
    ///
    /// Runs the checks of a start: secret, settings, directories, log, catalogue, clock, port. Starts
    /// nothing. Exits with 78 or 69 as a start would.
    Doctor,
    /// What a running service is doing
    Status(workers::StatusOptions),
    /// List the workers of a running service, or restart one
    #[command(subcommand)]
    Workers(workers::Command),
    /// List the kernels of the library, or compile some
    #[command(subcommand)]
    Kernels(kernels::Command),
    /// Look at the message bus: live messages, backlogs
    #[command(subcommand)]
    Bus(bus::Command),
    /// Look at the dead letters: what could not be handled
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Measure the bus, a request for a kernel and a training step, each beside its baseline
    ///
    /// On a Redis that nothing else uses when REDIS_URL is set, on an embedded log of its own
    /// otherwise.
    #[command(after_help = "Example: weatherlight bench --json")]
    Bench(bench::Options),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example: weatherlight completions bash > /etc/bash_completion.d/weatherlight"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs what was typed and returns the exit code. Prints the failure, if there is one.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(arguments);
    let outcome = run(cli);
    logging::flush();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Serve => serve::run(global),
        Command::Demo(options) => demo::run(global, &options),
        Command::Train(ask) => train::run(global, &ask),
        Command::Config(command) => config::run(global, &command),
        Command::Doctor => doctor::run(global),
        Command::Status(options) => workers::status(global, &options),
        Command::Workers(command) => workers::run(global, &command),
        Command::Kernels(command) => kernels::run(global, &command),
        Command::Bus(command) => bus::run(global, &command),
        Command::Dlq(command) => dlq::run(global, &command),
        Command::Bench(options) => bench::run(global, &options),
        Command::Completions { shell } => completions::run(shell, &mut Cli::command()),
    }
}

/// The service's runtime. Training runs on threads of its own, so a few workers suffice.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("weatherlight")
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::software(&error))
}

/// Runs a service to its end. What it left behind on a thread that never comes back (a worker that
/// was abandoned) is not waited for: the process is about to end.
fn on_runtime<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = runtime()?;
    let output = runtime.block_on(future);
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    Ok(output)
}

/// A small runtime for commands that only ask something.
fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| Failure::software(&error))?.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }
}

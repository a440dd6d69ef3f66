//! The commands. Each is a small file that loads the settings, calls what it needs and prints.
//!
//! Reading order: [`Cli`] (what can be typed), `failure` (how a command ends), then one file per
//! command.

mod asking;
mod bench;
mod blueprints;
mod bundle;
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
mod explain;
mod failure;
mod kernels;
mod man;
mod picture;
mod serve;
mod status;
pub(crate) mod table;
mod top;
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
    /// Runs the checks of a start (secret, settings, directories, log, catalogue, clock, port) and
    /// looks at what runs already: the service, its log, what waits on disk, dead letters. Starts and
    /// changes nothing, also beside a running service. Exits with 78 or 69 as a start would.
    #[command(
        after_help = "Examples:\n  weatherlight doctor\n  weatherlight doctor --json | jq '.[] | select(.verdict != \"ok\")'"
    )]
    Doctor,
    /// What a running service is doing
    ///
    /// Mode, what is lost, workers with the reasons of their latest ends, backlogs with the age of the
    /// oldest entry, breakers, secrets, kernels, runs and alerts.
    #[command(
        after_help = "Examples:\n  weatherlight status\n  weatherlight status --json | jq .lost\n  weatherlight status --check && echo ready"
    )]
    Status(status::Options),
    /// The running service on one screen, once a second: workers, backlogs, kernels, seeds, alerts
    ///
    /// Keys: q quits, Tab and the arrows select, r restarts and p parks the worker (after a question,
    /// with WEATHERLIGHT_HTTP_TOKEN), space pauses, ? helps. Goes on asking when the service goes
    /// away. No colours with NO_COLOR.
    #[command(after_help = "Examples:\n  weatherlight top\n  weatherlight top --once | head")]
    Top(top::Options),
    /// List the workers of a running service, restart or park one
    #[command(subcommand)]
    Workers(workers::Command),
    /// List the kernels of the library, or compile some
    #[command(subcommand)]
    Kernels(kernels::Command),
    /// List the blueprints, show one, check manifests of your own
    #[command(subcommand)]
    Blueprints(blueprints::Command),
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
    /// Collect what a report about a trouble needs, without secrets, into one archive
    ///
    /// Settings (masked), doctor, health, metrics, streams, headers of dead letters, kernels, machine
    /// and file sizes. Works with the service up, hung or down: a part that cannot be had says why.
    #[command(
        after_help = "Examples:\n  weatherlight bundle\n  weatherlight bundle --output /tmp/trouble.tar.gz"
    )]
    Bundle(bundle::Options),
    /// What a code means, where it comes from and what to do about it
    ///
    /// Every code that the program shows, logs, counts or answers with: exit codes, reasons of
    /// refusals, checks of `doctor`, alerts, states. docs/errors.md holds the same.
    #[command(
        after_help = "Examples:\n  weatherlight explain bad_signature\n  weatherlight explain 78\n  weatherlight explain http/timed_out --json\n  weatherlight explain                list every code"
    )]
    Explain(explain::Options),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example: weatherlight completions bash > /etc/bash_completion.d/weatherlight"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command
    #[command(
        after_help = "Examples:\n  weatherlight man | man -l -\n  weatherlight man --dir /usr/local/share/man/man1"
    )]
    Man(man::Options),
}

/// Runs what was typed and returns the exit code. Prints the failure, if there is one.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // Also how help and the version are printed.
        Err(error) if !error.use_stderr() || !arguments.iter().any(|word| word == "--json") => {
            error.exit()
        }
        Err(error) => return end(&Failure::usage(error.render().to_string().trim()), true),
    };
    let json = cli.global.json;
    let outcome = run(cli);
    logging::flush();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => end(&failure, json),
    }
}

/// Prints a failure as people, or programs, read it.
fn end(failure: &Failure, json: bool) -> ExitCode {
    let text = if json { failure.as_json() } else { failure.as_text() };
    eprintln!("{text}");
    ExitCode::from(failure.code())
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Serve => serve::run(global),
        Command::Demo(options) => demo::run(global, &options),
        Command::Train(ask) => train::run(global, &ask),
        Command::Config(command) => config::run(global, &command),
        Command::Doctor => doctor::run(global),
        Command::Status(options) => status::run(global, &options),
        Command::Top(options) => top::run(global, &options),
        Command::Workers(command) => workers::run(global, &command),
        Command::Kernels(command) => kernels::run(global, &command),
        Command::Blueprints(command) => blueprints::run(global, &command),
        Command::Bus(command) => bus::run(global, &command),
        Command::Dlq(command) => dlq::run(global, &command),
        Command::Bench(options) => bench::run(global, &options),
        Command::Bundle(options) => bundle::run(global, &options),
        Command::Man(options) => man::run(global, &options, Cli::command()),
        Command::Explain(options) => explain::run(global, &options),
        Command::Completions { shell } => completions::run(shell, &mut Cli::command()),
    }
}

/// The service's runtime. Training runs on threads of its own, so a few workers suffice.
/// See [`crate::bench_kernels`].
pub(crate) fn bench_kernels(quick: bool) -> std::process::ExitCode {
    match kernels::for_cargo(quick) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.as_text());
            std::process::ExitCode::from(failure.code())
        }
    }
}

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

    /// Every command, by its words.
    fn walk(command: &clap::Command, path: &str, see: &mut impl FnMut(&str, &clap::Command)) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            see(&path, sub);
            walk(sub, &path, see);
        }
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        let mut seen = 0;
        walk(&Cli::command(), "weatherlight", &mut |path, command| {
            seen += 1;
            assert!(command.get_about().is_some(), "{path} says nothing");
            let mut command = command.clone();
            let help = command.render_long_help().to_string();
            assert!(help.contains("Usage:"), "{path}: {help}");
            if command.get_subcommands().next().is_none() {
                assert!(help.contains("Example"), "{path} has no example: {help}");
                assert!(help.contains("weatherlight"), "{path}: {help}");
            }
        });
        assert!(seen > 25, "{seen}");
    }

    #[test]
    fn completions_and_manual_pages_know_every_command() {
        let mut names: Vec<String> = Vec::new();
        walk(&Cli::command(), "weatherlight", &mut |path, _| {
            names.push(path.replace(' ', "-"));
        });
        for shell in
            [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
        {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weatherlight", &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in &names {
                let last = name.rsplit('-').next().unwrap();
                assert!(script.contains(last), "{shell} does not know {name}");
            }
        }
        let directory = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), directory.path()).unwrap();
        for name in names.iter().map(String::as_str).chain(["weatherlight"]) {
            let page = directory.path().join(format!("{name}.1"));
            let text =
                std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(text.contains(".TH") && text.contains(".SH"), "{name}: {text}");
        }
    }
}

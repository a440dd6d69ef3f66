//! `weatherlight kernels`: the artifact library from the command line. Each command has a file of its own.

mod bench;
mod build;
mod list;

use clap::Subcommand;
use urza::Library;

use super::Global;
use super::failure::Failure;
use crate::service::AllMetrics;
use crate::settings::EsperSettings;
use crate::wiring;

pub(super) use bench::for_cargo;
pub(super) use list::{as_json, records};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the kernels in the library
    #[command(after_help = "Example: weatherlight kernels list --json")]
    List,
    /// Compile blueprints into the library, with or without a running service
    ///
    /// What is there already is left alone, and what another process compiles is waited for. A service that runs on the
    /// same library finds the result and tells of it. Ctrl-C stops at the next step and says what is left.
    #[command(after_help = build::EXAMPLES)]
    Build(build::Options),
    /// Measure the way from a request to an attached kernel, each figure beside its baseline
    #[command(after_help = "Example: weatherlight kernels bench --own-server --quick")]
    Bench(bench::Arguments),
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    match command {
        Command::List => list::run(&settings, global.json),
        Command::Build(options) => build::run(&settings, options, global.json),
        Command::Bench(arguments) => bench::run(global, arguments),
    }
}

/// Opens the library that the settings name.
pub(super) async fn open(settings: &EsperSettings) -> Result<Library, Failure> {
    let config = wiring::library_config(settings)
        .map_err(|fault| Failure::configuration(fault.to_string()))?;
    let (metrics, _) = AllMetrics::register();
    Library::open(config, metrics.urza).await.map_err(|error| Failure::unavailable_because(&error))
}

//! `weatherlight kernels`: the artifact library from the command line. Each command has a file of its own.

mod bench;
mod build;
mod export;
mod gc;
mod import;
mod list;
mod mark;
mod migrate;
mod quarantine;
mod show;
mod verify;

use std::path::PathBuf;

use clap::Subcommand;
use urza::Library;

use super::failure::Failure;
use super::{Global, block_on};
use crate::blueprints::Blueprints;
use crate::service::AllMetrics;
use crate::settings::EsperSettings;
use crate::wiring;

pub(super) use bench::for_cargo;
pub(super) use list::{as_json, records};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the kernels in the library
    #[command(
        after_help = "Examples:\n  weatherlight kernels list --json\n  weatherlight kernels list --blueprint BP009 --state active\n  weatherlight kernels list --tag nightly --tier experimental\n\nExit codes: 0 listed, 69 the library cannot be reached, 78 the settings cannot be used."
    )]
    List(list::Wanted),
    /// All that is known of one kernel: manifest, guard, latencies, lineage, leases
    #[command(
        after_help = "Examples:\n  weatherlight kernels show BP009\n  weatherlight kernels show 3fa9c1d2 --json\n\nExit codes: 0 shown, 65 no or no single such kernel, 69 the library cannot be reached."
    )]
    Show {
        /// Start of a digest (4 or more hex digits), id, or blueprint
        kernel: String,
    },
    /// Hash kernels and compare with their records
    #[command(
        after_help = "Examples:\n  weatherlight kernels verify\n  weatherlight kernels verify 3fa9c1d2 --repair\n\nExit codes: 0 all sound, 1 some are not, 65 no such kernel, 69 the library or the forge's queue cannot be used."
    )]
    Verify {
        /// Starts of digests, ids, or blueprints [default: every active kernel]
        kernels: Vec<String>,
        /// Put what is not sound into quarantine, and order it from the forge of the service on this library
        #[arg(long)]
        repair: bool,
    },
    /// Remove what need not be kept, by the URZA_* settings
    ///
    /// What is leased, pinned or served stays. A running service does the same every ten minutes.
    #[command(
        after_help = "Example: weatherlight kernels gc --dry-run\n\nExit codes: 0 done, 69 the library cannot be reached."
    )]
    Gc(gc::Wanted),
    /// Write active kernels with their records to one file
    #[command(
        after_help = "Example: weatherlight kernels export kernels.tar --tag release\n\nExit codes: 0 written, 65 the file or a kernel cannot be used, 69 the library cannot be reached."
    )]
    Export {
        /// The file to write; it must not exist
        file: PathBuf,
        #[command(flatten)]
        wanted: list::Wanted,
    },
    /// Take in a file that `kernels export` has written; importing it again changes nothing
    #[command(
        after_help = "Example: weatherlight kernels import kernels.tar\n\nExit codes: 0 taken, 65 refused and nothing imported, 69 the library cannot be reached."
    )]
    Import {
        /// The file
        file: PathBuf,
    },
    /// Add or remove tags
    #[command(after_help = "Example: weatherlight kernels tag BP009 nightly --remove old")]
    Tag(mark::Tag),
    /// Keep a kernel whatever room is wanted
    #[command(after_help = "Example: weatherlight kernels pin 3fa9c1d2")]
    Pin(mark::Pin),
    /// Lease a kernel for something that this service does not see
    #[command(
        after_help = "Example: weatherlight kernels lease BP009 --holder laptop --seconds 86400"
    )]
    Lease(mark::Lease),
    /// Bring the catalogue to a schema version, up or down, while nothing uses it
    ///
    /// For going back to an older program. What the older schema has no place for is dropped; records stay.
    #[command(after_help = "Example: weatherlight kernels migrate --to 1")]
    Migrate {
        /// The version
        #[arg(long, value_name = "VERSION")]
        to: i64,
    },
    /// Compile blueprints into the library, with or without a running service
    ///
    /// What is there already is left alone, and what another process compiles is waited for. A service that runs on the
    /// same library finds the result and tells of it. Ctrl-C stops at the next step and says what is left.
    #[command(after_help = build::EXAMPLES)]
    Build(build::Options),
    /// Measure the way from a request to an attached kernel, each figure beside its baseline
    #[command(after_help = "Example: weatherlight kernels bench --own-server --quick")]
    Bench(bench::Arguments),
    /// Try one blueprint in quarantine and say what was caught; stressors run nowhere else
    ///
    /// Builds it, runs it on a thread of its own within budgets, and stores nothing. Exits with 0 when nothing was
    /// found, with 1 when something was, with 65 when the parameters do not fit.
    #[command(
        after_help = "Examples:\n  weatherlight kernels quarantine BP043\n  weatherlight kernels quarantine BP046 --parameters iterations=1000 --json"
    )]
    Quarantine(quarantine::Options),
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    match command {
        Command::List(wanted) => list::run(&settings, wanted, global.json),
        Command::Show { kernel } => block_on(show::run(&settings, kernel, global.json))?,
        Command::Verify { kernels, repair } => {
            block_on(verify::run(&settings, kernels, *repair, global.json))?
        }
        Command::Gc(wanted) => block_on(gc::run(&settings, wanted, global.json))?,
        Command::Export { file, wanted } => {
            block_on(export::run(&settings, file, wanted, global.json))?
        }
        Command::Import { file } => block_on(import::run(&settings, file, global.json))?,
        Command::Tag(tag) => block_on(mark::tag(&settings, tag, global.json))?,
        Command::Pin(pin) => block_on(mark::pin(&settings, pin, global.json))?,
        Command::Lease(lease) => block_on(mark::lease(&settings, lease, global.json))?,
        Command::Migrate { to } => block_on(migrate::run(&settings, *to, global.json))?,
        Command::Quarantine(options) => {
            let blueprints = Blueprints::load(&settings)
                .map_err(|faults| Failure::configuration(faults.to_string()))?;
            quarantine::run(&blueprints.catalogue, options, global.json)
        }
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

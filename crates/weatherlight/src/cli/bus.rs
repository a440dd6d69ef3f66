//! `weatherlight bus`: looking at the message bus, and measuring it.

use clap::Subcommand;

use super::failure::Failure;
use super::{Global, block_on, bus_stats, bus_tap};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what travels on the bus, live and decoded, without consuming any of it
    ///
    /// One line for each message: time, stream, entry, type, sender, key, whether its signature is
    /// good, and a short body. Looks at the log itself with REDIS_URL, asks the running service
    /// otherwise. Ends with Ctrl-C, with --count, or when nobody reads its output any more.
    #[command(
        after_help = "Examples:\n  weatherlight bus tap\n  weatherlight bus tap kernel_requests --json\n  weatherlight bus tap --from-start --count 20 --type field_report"
    )]
    Tap(bus_tap::Options),
    /// Show how streams, groups, consumers, secrets and breakers stand
    #[command(after_help = "Example: weatherlight bus stats --json")]
    Stats,
    /// Measure the bus beside the same commands of a bare client, with all security on
    ///
    /// On the Redis of REDIS_URL (measure on one that nothing else uses), on a server of its own with
    /// --own-server, on an embedded log of its own otherwise. Streams, groups and keys have names of
    /// their own and are removed afterwards.
    #[command(
        after_help = "Examples:\n  weatherlight bus bench --own-server\n  weatherlight bus bench --quick --only publish --only consume --json"
    )]
    Bench(super::bus_bench::Arguments),
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Tap(options) => {
            let settings = global.load()?.settings;
            block_on(bus_tap::run(&settings, options, global.json))?
        }
        Command::Stats => {
            let settings = global.load()?.settings;
            block_on(bus_stats::run(&settings, global.json))?
        }
        Command::Bench(arguments) => super::bus_bench::run(global, arguments),
    }
}

//! `weatherlight bus`: looking at the message bus, and measuring it.

use clap::Subcommand;
use oona::{Bus, EntryId, Stream};

use super::failure::Failure;
use super::{Global, block_on, table};
use crate::service::{AllMetrics, open_bus_alone};

/// Entries asked for at a time.
const PAGE_LEN: usize = 256;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the messages that stand on the bus, without consuming any
    Tap,
    /// Show the length of every stream
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
    if let Command::Bench(arguments) = command {
        return super::bus_bench::run(global, arguments);
    }
    let settings = global.load()?.settings;
    block_on(async {
        let (metrics, _) = AllMetrics::register();
        let bus = open_bus_alone(&settings, &metrics)
            .await
            .map_err(|error| Failure::unavailable_because(&error))?;
        match command {
            Command::Tap => tap(&bus).await,
            Command::Stats => stats(&bus).await,
            Command::Bench(_) => Ok(0),
        }
        .map_err(|error| Failure::unavailable_because(&error))
    })?
}

async fn tap(bus: &Bus) -> Result<u8, oona::BusError> {
    for stream in Stream::ALL {
        let mut after = EntryId::ZERO;
        loop {
            let page = bus.peek(stream, after, PAGE_LEN).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for entry in &page {
                let mark = if entry.mark.is_verified() { "verified" } else { "NOT VERIFIED" };
                table::print(&format!("{stream} {} {mark}", entry.id));
            }
        }
    }
    Ok(0)
}

async fn stats(bus: &Bus) -> Result<u8, oona::BusError> {
    let mut rows = table::with_columns(&["stream", "entries"]);
    for stream in Stream::ALL {
        rows.add_row([stream.label().to_owned(), bus.len(stream).await?.to_string()]);
    }
    table::print(&rows.to_string());
    Ok(0)
}

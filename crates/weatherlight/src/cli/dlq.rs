//! `weatherlight dlq`: what could not be handled.

use clap::Subcommand;
use oona::EntryId;

use super::failure::Failure;
use super::{Global, block_on, table};
use crate::service::{AllMetrics, open_bus_alone};

/// Dead letters shown at a time.
const PAGE_LEN: usize = 256;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the dead letters, oldest first
    List,
}

pub(super) fn run(global: &Global, command: &Command) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    let Command::List = command;
    let letters = block_on(async {
        let (metrics, _) = AllMetrics::register();
        let bus = open_bus_alone(&settings, &metrics)
            .await
            .map_err(|error| Failure::unavailable_because(&error))?;
        bus.dead_letters(EntryId::ZERO, PAGE_LEN)
            .await
            .map_err(|error| Failure::unavailable_because(&error))
    })??;
    let mut rows = table::with_columns(&["id", "stream", "attempts", "reason"]);
    for letter in letters {
        let id = letter.entry.id.to_string();
        rows.add_row([id, letter.origin_stream, letter.attempts.to_string(), letter.reason]);
    }
    table::print(&rows.to_string());
    Ok(0)
}

//! `weatherlight bus bench`.

use clap::{Args, ValueEnum};
use oona::bench::{self, Options, Part, PrivateServer, Quick, Row, Spawner};
use serde::Serialize;

use super::failure::Failure;
use super::{Global, runtime, table};
use crate::bench::Scratch;

/// What to measure, and how long.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Small slices and short spans: says less, takes a third of the time
    #[arg(long)]
    quick: bool,
    /// Measure only this; may be repeated
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<PartName>,
    /// Messages of the measurement of memory [default: 1000000, quick 100000]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(20_000..))]
    messages: Option<u64>,
    /// Length of each measurement that has a length [default: 10, quick 3]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// Start a redis-server for this run: found on the path, on a free port of 127.0.0.1, append-only
    /// file synced every second, gone afterwards
    #[arg(long)]
    own_server: bool,
}

/// A part by its name on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PartName {
    /// Publishing, many at once and one at a time
    Publish,
    /// Reading, verifying, claiming, acknowledging
    Consume,
    /// Publishing and consuming together, at a rate and in a burst
    Sustained,
    /// The emergency lane while the normal lane is saturated
    Emergency,
    /// What an idle consumer costs
    Idle,
    /// The embedded log, every publish on disk
    Durable,
    /// Memory over many messages
    Memory,
}

impl PartName {
    fn part(self) -> Part {
        match self {
            Self::Publish => Part::Publish,
            Self::Consume => Part::Consume,
            Self::Sustained => Part::Sustained,
            Self::Emergency => Part::Emergency,
            Self::Idle => Part::Idle,
            Self::Durable => Part::Durable,
            Self::Memory => Part::Memory,
        }
    }
}

pub(super) fn run(global: &Global, arguments: &Arguments) -> Result<u8, Failure> {
    let redis_url = global.load()?.settings.redis_url;
    let redis_url = redis_url.map(|url| url.expose().to_owned());
    let scratch = Scratch::new().map_err(|error| Failure::software(&error))?;
    let rows = runtime()?.block_on(measure(redis_url, arguments, &scratch, global))?;
    if global.json {
        table::print_json(&rows.iter().map(Line::of).collect::<Vec<_>>());
        return Ok(0);
    }
    let columns = ["measurement", "unit", "ours", "raw", "ratio", "target", "met", "conditions"];
    let mut printed = table::with_columns(&columns);
    for row in &rows {
        printed.add_row([
            row.name.clone(),
            row.unit.to_owned(),
            format!("{:.1}", row.ours),
            row.raw.map_or_else(String::new, |raw| format!("{raw:.1}")),
            row.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            row.target.clone(),
            row.met.map_or("", |met| if met { "yes" } else { "no" }).to_owned(),
            row.conditions.clone(),
        ]);
    }
    table::print(&printed.to_string());
    Ok(0)
}

async fn measure(
    redis_url: Option<String>,
    arguments: &Arguments,
    scratch: &Scratch,
    global: &Global,
) -> Result<Vec<Row>, Failure> {
    let server = if arguments.own_server {
        let server = PrivateServer::start(None, &scratch.0).await;
        Some(server.map_err(|error| Failure::unavailable_because(&error))?)
    } else {
        None
    };
    let redis_url = server.as_ref().map(PrivateServer::url).or(redis_url);
    let options = options(redis_url, arguments, scratch);
    #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
    let spawner = Spawner::new(|task| drop(tokio::spawn(task)));
    let mut rows = Vec::new();
    let measured = bench::run(&options, &spawner, |row| {
        if !global.json {
            eprintln!("{}: {:.1} {}", row.name, row.ours, row.unit);
        }
        rows.push(row);
    });
    measured.await.map_err(|error| Failure::unavailable_because(&error))?;
    Ok(rows)
}

fn options(redis_url: Option<String>, arguments: &Arguments, scratch: &Scratch) -> Options {
    let quick = if arguments.quick { Quick::Yes } else { Quick::No };
    let mut options = Options::new(redis_url, scratch.0.clone(), quick);
    options.only = arguments.only.iter().map(|name| name.part()).collect();
    if let Some(messages) = arguments.messages {
        options.memory_messages = messages;
    }
    if let Some(seconds) = arguments.seconds {
        options.span = std::time::Duration::from_secs(seconds);
    }
    options
}

/// A row as it is printed in JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a str,
    unit: &'a str,
    ours: f64,
    raw: Option<f64>,
    ratio: Option<f64>,
    target: &'a str,
    met: Option<bool>,
    conditions: &'a str,
}

impl<'a> Line<'a> {
    fn of(row: &'a Row) -> Self {
        Self {
            name: &row.name,
            unit: row.unit,
            ours: row.ours,
            raw: row.raw,
            ratio: row.ratio(),
            target: &row.target,
            met: row.met,
            conditions: &row.conditions,
        }
    }
}

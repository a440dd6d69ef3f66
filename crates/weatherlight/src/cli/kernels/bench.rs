//! `weatherlight kernels bench`.

use clap::Args;
use oona::bench::PrivateServer;

use super::super::failure::Failure;
use super::super::{Global, runtime, table};
use crate::bench::Scratch;
use crate::bench::kernels::{self, Bench, BenchError, Figure, Length, Part};

/// What to measure, and how long.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Measure on Redis only: REDIS_URL, or a server of its own
    #[arg(long, conflicts_with = "embedded")]
    redis: bool,
    /// Measure on the embedded log only
    #[arg(long)]
    embedded: bool,
    /// Start a redis-server for this run: found on the path, on a free port of 127.0.0.1, append-only
    /// file synced every second, gone afterwards
    #[arg(long, conflicts_with = "embedded")]
    own_server: bool,
    /// Look up in this catalogue, which must be empty and is left full, instead of a SQLite file
    #[arg(long, value_name = "URL")]
    catalogue: Option<String>,
    /// Few repetitions: says less, takes a fraction of the time
    #[arg(long)]
    quick: bool,
    /// Measure only this; may be repeated
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
}

/// Everything, with a server of its own where `redis-server` is installed.
pub(in crate::cli) fn for_cargo(quick: bool) -> Result<(), Failure> {
    let own_server = which("redis-server");
    let (redis, embedded, catalogue, only) = (false, false, None, Vec::new());
    let arguments = Arguments { redis, embedded, own_server, catalogue, quick, only };
    print(&measure(None, &arguments, false)?);
    Ok(())
}

fn which(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

pub(super) fn run(global: &Global, arguments: &Arguments) -> Result<u8, Failure> {
    let settings = global.load()?.settings;
    let redis_url = settings.redis_url.as_ref().map(|url| url.expose().to_owned());
    let figures = measure(redis_url, arguments, global.json)?;
    if global.json {
        table::print_json(&figures);
    } else {
        print(&figures);
    }
    Ok(0)
}

/// Measures on a runtime like the service's, and tells each figure on standard error meanwhile.
fn measure(
    redis_url: Option<String>,
    arguments: &Arguments,
    quiet: bool,
) -> Result<Vec<Figure>, Failure> {
    let catalogue = arguments.catalogue.as_deref().map(urza::CatalogueUrl::parse).transpose();
    let catalogue = catalogue.map_err(|fault| Failure::configuration(fault.to_string()))?;
    let scratch = Scratch::new().map_err(|error| Failure::software(&error))?;
    runtime()?.block_on(async {
        let wants_redis = !arguments.embedded;
        let server = if arguments.own_server && wants_redis {
            let server = PrivateServer::start(None, &scratch.0).await;
            Some(server.map_err(|error| Failure::unavailable_because(&error))?)
        } else {
            None
        };
        let redis_url = server.as_ref().map(PrivateServer::url).or(redis_url);
        if arguments.redis && redis_url.is_none() {
            let text = "no Redis to measure on; set REDIS_URL, or add --own-server";
            return Err(Failure::configuration(text.to_owned()));
        }
        let bench = Bench {
            redis_url: redis_url.filter(|_| wants_redis),
            embedded: !arguments.redis,
            catalogue,
            directory: scratch.0.clone(),
            length: if arguments.quick { Length::Quick } else { Length::Full },
        };
        let tell = move |figure: &Figure| {
            if !quiet {
                eprintln!("{}: {:.2} {}", figure.name, figure.value, figure.unit);
            }
        };
        let only = arguments.only.clone();
        // A task of the runtime, as trainers and workers of a service are: the thread that waits here is none of it,
        // and would have to be woken for every answer.
        #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
        let measuring = tokio::spawn(async move { kernels::run(&bench, &only, tell).await });
        let measured = measuring.await.unwrap_or(Err(BenchError::Panicked));
        measured.map_err(|error| Failure::unavailable_because(&error))
    })
}

/// The figures as a table.
fn print(figures: &[Figure]) {
    let columns =
        ["measurement", "unit", "value", "baseline", "ratio", "target", "met", "conditions"];
    let mut rows = table::with_columns(&columns);
    for figure in figures {
        let number =
            |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        rows.add_row([
            figure.name.clone(),
            figure.unit.to_owned(),
            number(Some(figure.value)),
            number(figure.baseline),
            number(figure.ratio),
            figure.target.clone(),
            figure.met.map_or("", |met| if met { "yes" } else { "NO" }).to_owned(),
            figure.conditions.clone(),
        ]);
    }
    table::print(&rows.to_string());
}

//! Finding one of very many records in the library's catalogue.

use urza::bench::{LookupTimes, Lookups};

use super::figure::{Figure, microseconds};
use super::{Bench, BenchError};

/// Half a million look-ups would say no more; fewer would make the hundredth of them a handful.
const ROUNDS: usize = 10_000;

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>, BenchError> {
    let mut config = urza::Config::at(&bench.room("lookups")?);
    if let Some(catalogue) = &bench.catalogue {
        config.catalogue = catalogue.clone();
    }
    let (records, rounds) = (bench.rounds(1_000_000, 50_000), bench.rounds(ROUNDS, 1000));
    let measured = urza::bench::lookups(config, records, rounds).await?;
    Ok(measured.ways.iter().flat_map(|way| told(way, &measured, rounds)).collect())
}

fn told(way: &LookupTimes, measured: &Lookups, rounds: usize) -> [Figure; 2] {
    let name = |part: &str| format!("lookup_by_{}_{part}", way.by);
    let figure = |part: &str, value, bare| {
        Figure::new(name(part), "us", microseconds(value)).beside(microseconds(bare)).under(format!(
            "{rounds} look-ups of {} records, one at a time; written in {:.0} s; baseline: a query of no table by the \
             same connections",
            measured.records,
            measured.filled_in.as_secs_f64()
        ))
    };
    let p99 = figure("p99", way.p99, measured.bare.p99).at_most(1000.0);
    [figure("p50", way.p50, measured.bare.p50), p99]
}

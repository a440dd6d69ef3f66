//! Finding one of very many records, by each of the ways in which the service looks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kernel::Digest;
use leyline::time::now_unix_ms;
use leyline::wire::BlueprintTier;
use prometheus_client::registry::Registry;

use super::{BenchFault, quantile};
use crate::catalogue::Filled;
use crate::config::Config;
use crate::extras::Extras;
use crate::job::JobKey;
use crate::library::Library;
use crate::metrics::Metrics;
use crate::prewarm::Prewarm;
use crate::record::{NewArtifact, Page, Role};

/// Blueprints of the measurement: more than memory holds, so that nearly every look-up asks the catalogue.
const BLUEPRINTS: usize = 200;
/// One of so many artifacts of a blueprint is its default, the others are variants.
const DEFAULT_EVERY: usize = 10;
/// Records that one transaction writes.
const CHUNK: usize = 20_000;
/// Walks through the records without a pattern that a cache could follow; a prime.
const STRIDE: usize = 999_983;

/// What looking up costs in a library of so many records.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookups {
    /// Records in the catalogue.
    pub records: usize,
    /// How long it took to write them.
    pub filled_in: Duration,
    /// By blueprint, by job, by digest.
    pub ways: Vec<LookupTimes>,
    /// The baseline: a query that touches no table, by the same connections.
    pub bare: LookupTimes,
}

/// Times of one way to look up.
#[derive(Debug, Clone, PartialEq)]
pub struct LookupTimes {
    /// What was looked up by.
    pub by: &'static str,
    /// Median.
    pub p50: Duration,
    /// All but one of a hundred took at most this.
    pub p99: Duration,
}

impl LookupTimes {
    fn of(by: &'static str, spans: Vec<Duration>) -> Self {
        Self { by, p50: quantile(spans.clone(), 0.5), p99: quantile(spans, 0.99) }
    }
}

/// Fills the catalogue of a configuration, which must be empty, with `records` records without files (at least 200), and looks up
/// `rounds` of them in each way; ways and baseline take turns.
///
/// # Errors
/// [`BenchFault`]
pub async fn lookups(config: Config, records: usize, rounds: usize) -> Result<Lookups, BenchFault> {
    let library = Library::open(config, Metrics::register(&mut Registry::default())).await?;
    let measured = match library.list(Page { after: None, limit: 1 }).await {
        Ok(found) if found.is_empty() => {
            measure(&library, records.max(BLUEPRINTS), rounds.max(1)).await
        }
        Ok(_) => Err(BenchFault::NotEmpty),
        Err(error) => Err(error.into()),
    };
    library.close().await;
    measured
}

async fn measure(library: &Library, records: usize, rounds: usize) -> Result<Lookups, BenchFault> {
    let began = Instant::now();
    // In the order of their keys, so that the indices grow at their ends: at random a million records take minutes.
    let mut order: Vec<(Digest, usize)> = (0..records).map(|at| (digest(at), at)).collect();
    order.sort_unstable();
    for chunk in order.chunks(CHUNK) {
        let chunk: Vec<Filled> = chunk.iter().map(|(_, at)| filled(*at)).collect();
        library.catalogue().fill(&chunk, now_unix_ms()).await?;
    }
    let filled_in = began.elapsed();
    let (mut blueprints, mut jobs, mut digests, mut bare) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let at = round * STRIDE % records;
        let lost = |by| BenchFault::Lost { at, by };
        let new = job(at);
        let began = Instant::now();
        let found = library.find(&new.blueprint).await?;
        blueprints.push(began.elapsed());
        found.ok_or(lost("blueprint"))?;
        let began = Instant::now();
        let found = library.find_job(&new).await?;
        jobs.push(began.elapsed());
        found.filter(|record| record.digest == digest(at)).ok_or(lost("job"))?;
        let began = Instant::now();
        let found = library.find_digest(&digest(at)).await?;
        digests.push(began.elapsed());
        found.ok_or(lost("digest"))?;
        let began = Instant::now();
        library.catalogue().bare().await?;
        bare.push(began.elapsed());
    }
    let ways = [("blueprint", blueprints), ("job", jobs), ("digest", digests)];
    Ok(Lookups {
        records,
        filled_in,
        ways: ways.map(|(by, spans)| LookupTimes::of(by, spans)).into(),
        bare: LookupTimes::of("nothing", bare),
    })
}

/// There is no artifact; the digest of its job serves as well as another.
fn digest(at: usize) -> Digest {
    job(at).digest()
}

fn job(at: usize) -> JobKey {
    JobKey {
        blueprint: format!("bench-{:04}", at % BLUEPRINTS).into(),
        parameters: BTreeMap::from([("scale".to_owned(), (at / BLUEPRINTS) as f64)]),
        site: "vector[32]".to_owned(),
        engine: "bench".to_owned(),
    }
}

fn filled(at: usize) -> Filled {
    let is_default = (at / BLUEPRINTS).is_multiple_of(DEFAULT_EVERY);
    let new = NewArtifact {
        job: job(at),
        role: if is_default { Role::Default } else { Role::Variant },
        bytes: Vec::new(),
        guard_digest: Digest::of(b"guard"),
        guard_spec: r#"[{"dtype": "float32", "index": 0, "shape": [8, 32]}]"#.to_owned(),
        guard_summary: "float32[8x32]".to_owned(),
        compile_ms: 1.0,
        prewarm: Prewarm::new("bench", [1.0; 20]),
        strategy: "standard".to_owned(),
        tier: BlueprintTier::Safe,
        extras: Extras::default(),
    };
    Filled { new, digest: digest(at), bytes: 4096, version: (at / BLUEPRINTS) as i64 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_catalogue_in_use_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::at(directory.path());
        lookups(config.clone(), 1000, 1).await.unwrap();
        assert!(matches!(lookups(config, 1000, 1).await, Err(BenchFault::NotEmpty)));
    }

    #[tokio::test]
    async fn every_way_finds_what_was_stored() {
        let directory = tempfile::tempdir().unwrap();
        let measured = lookups(Config::at(directory.path()), 2000, 50).await.unwrap();
        assert_eq!(measured.records, 2000);
        assert_eq!(measured.ways.len(), 3);
        for way in &measured.ways {
            assert!(!way.p50.is_zero() && way.p50 <= way.p99, "{way:?}");
        }
    }
}

//! An artifact of 64 MiB: verified for the first time, then loaded and attached.

use std::time::{Duration, Instant};

use kernel::artifact::{Kernel, Manifest, Verified, write_bytes};
use kernel::{Digest, Graph};
use prometheus_client::registry::Registry;
use urza::{JobKey, Library, NewArtifact, Prewarm, Role};

use super::figure::{Figure, median};
use super::{Bench, BenchError};

/// 4096 times 4096 weights in single precision.
const WIDTH: usize = 4096;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>, BenchError> {
    let directory = bench.room("artifact")?;
    let metrics = urza::Metrics::register(&mut Registry::default());
    let library = Library::open(urza::Config::at(&directory), metrics).await?;
    let record = library.store(artifact()?).await?;
    let rounds = bench.rounds(9, 3);
    let bytes = std::fs::read(&record.path)
        .map_err(|source| BenchError::Io { path: record.path.clone(), source })?;
    let (mut verified, mut raw, mut attached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Never believed: hashed like a file that was not seen before.
        verified.push(timed(library.scrub(&record)).await?);
        let begun = Instant::now();
        std::hint::black_box(Digest::of(&bytes));
        raw.push(begun.elapsed());
        attached.push(attach(&record.path, &record.digest)?);
    }
    library.close().await;
    let rate = |span: Duration| bytes.len() as f64 / MIB / span.as_secs_f64();
    let sum = attached.iter_mut().map(|(_, span)| *span);
    let mut attached_spans: Vec<Duration> = sum.collect();
    let conditions =
        format!("{:.0} MiB, median of {rounds}, in the page cache", bytes.len() as f64 / MIB);
    Ok(vec![
        Figure::new("first_verification", "MiB/s", rate(median(&mut verified)))
            .beside(rate(median(&mut raw)))
            .ratio_at_least(0.9)
            .under(format!("{conditions}; baseline: SHA-256 of the same bytes in memory")),
        Figure::new("load_and_attach_64MiB", "ms", median(&mut attached_spans).as_secs_f64() * 1e3)
            .at_most(5.0)
            .under(format!(
                "{conditions}; after verification, until graph and weights can be used"
            )),
    ])
}

async fn timed<T, E: Into<BenchError>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<Duration, BenchError> {
    let begun = Instant::now();
    work.await.map_err(Into::into)?;
    Ok(begun.elapsed())
}

/// Verifies, and measures what comes after that.
fn attach(path: &std::path::Path, digest: &Digest) -> Result<(Kernel, Duration), BenchError> {
    let verified = Verified::open(path, digest)?;
    let begun = Instant::now();
    let kernel = verified.load()?;
    std::hint::black_box(kernel.params().iter().count());
    Ok((kernel, begun.elapsed()))
}

fn artifact() -> Result<NewArtifact, BenchError> {
    let mut graph = Graph::new();
    let input = graph.input("x", &[1, WIDTH])?;
    let output = graph.linear_layer(input, "wide", WIDTH)?;
    graph.output("y", output)?;
    let params = graph.init_params(1);
    let site = serde_json::json!({ "vector": { "features": WIDTH } });
    let manifest = Manifest::new("BP001", Default::default(), site, graph, &params, 1e-4)?;
    let (bytes, _) = write_bytes(&manifest, &params)?;
    Ok(NewArtifact {
        job: JobKey {
            blueprint: "BP001".into(),
            parameters: Default::default(),
            site: format!("vector[{WIDTH}]"),
            engine: "bench".to_owned(),
        },
        role: Role::Default,
        bytes,
        guard_digest: manifest.guard_digest,
        guard_spec: "[]".to_owned(),
        guard_summary: manifest.guard.summary(),
        compile_ms: 1.0,
        prewarm: Prewarm::default(),
        strategy: "standard".to_owned(),
        tier: leyline::wire::BlueprintTier::Safe,
        extras: urza::Extras::default(),
    })
}

//! From asking for a kernel that is in the library until the answer, verified and with its nonce
//! claimed, is in the asker's hands; one request at a time.
//!
//! Baselines alternate with it. On Redis: three round trips of a bare client (an `XADD` of as many
//! bytes, awaited, three times). On the embedded log: a bare write and `fdatasync` of as many bytes.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use leyline::Message;
use leyline::wire::MessagePriority;
use oona::Stream;
use redis::aio::MultiplexedConnection;

use super::figure::{Figure, median, microseconds, quantile};
use super::stage::{Kind, SIZES, Stage, request};
use super::{Bench, BenchError};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const WARM_UP_ROUNDS: usize = 50;
/// About what a signed request takes in its stream.
const ENTRY_BYTES: usize = 420;

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for kind in Kind::of(bench) {
        let mut stage = Stage::open(bench, kind).await?;
        let measured = measure_on(bench, &mut stage, kind).await;
        let closed = stage.close().await;
        figures.extend(measured?);
        closed?;
    }
    Ok(figures)
}

/// What the rounds took.
#[derive(Default)]
struct Spans {
    ready: Vec<Duration>,
    /// Until the asker knows as well that the log has its request for good.
    settled: Vec<Duration>,
    baseline: Vec<Duration>,
}

async fn measure_on(
    bench: &Bench,
    stage: &mut Stage,
    kind: Kind,
) -> Result<Vec<Figure>, BenchError> {
    let rounds = bench.rounds(2000, 300);
    let mut baseline = Baseline::new(stage).await?;
    let mut figures = Vec::new();
    for (blueprint, size, _) in SIZES {
        let mut spans = Spans::default();
        for round in 0..WARM_UP_ROUNDS + rounds {
            let (ready, settled) = ask(stage, blueprint).await?;
            let raw = baseline.take().await?;
            if round >= WARM_UP_ROUNDS {
                spans.ready.push(ready);
                spans.settled.push(settled);
                spans.baseline.push(raw);
            }
        }
        figures.extend(told(spans, kind, size, rounds));
    }
    Ok(figures)
}

fn told(mut spans: Spans, kind: Kind, size: &str, rounds: usize) -> Vec<Figure> {
    let name = |what: &str| format!("request_to_ready_{}_{size}_{what}", kind.name());
    let p50 = microseconds(median(&mut spans.ready));
    let p99 = microseconds(quantile(&mut spans.ready, 0.99));
    let raw = microseconds(median(&mut spans.baseline));
    let raw_p99 = microseconds(quantile(&mut spans.baseline, 0.99));
    let settled = microseconds(median(&mut spans.settled));
    match kind {
        Kind::Redis => {
            let conditions = format!(
                "{rounds} requests one at a time; baseline: three bare XADD one after another"
            );
            vec![
                Figure::new(name("p50"), "us", p50)
                    .beside(raw)
                    .ratio_at_most(1.5)
                    .under(&conditions),
                Figure::new(name("p99"), "us", p99)
                    .beside(raw_p99)
                    .at_most(5000.0)
                    .under(conditions),
            ]
        }
        Kind::Embedded => {
            let conditions =
                format!("{rounds} requests one at a time; baseline: bare write and fdatasync");
            vec![
                Figure::new(name("p50"), "us", p50).beside(raw).at_most(200.0).under(&conditions),
                Figure::new(name("p99"), "us", p99).beside(raw_p99).under(&conditions),
                Figure::new(name("and_request_on_disk_p50"), "us", settled)
                    .beside(raw)
                    .under(conditions),
            ]
        }
    }
}

/// One request: when its answer is at hand, and when the log has promised to keep the request as well.
async fn ask(stage: &mut Stage, blueprint: &str) -> Result<(Duration, Duration), BenchError> {
    let (id, message) = request(blueprint);
    let begun = Instant::now();
    let publishing = async {
        let priority = MessagePriority::High;
        let outcome =
            stage.bus.publish(Stream::KernelRequests, priority, "weatherlight", &message).await?;
        if !outcome.is_sent() {
            return Err(BenchError::Refused);
        }
        Ok(begun.elapsed())
    };
    let answers = &mut stage.answers;
    let receiving = async {
        loop {
            let delivery = tokio::time::timeout(ANSWER_TIMEOUT, answers.recv())
                .await
                .map_err(|_| BenchError::Unanswered(ANSWER_TIMEOUT))??;
            let took = begun.elapsed();
            if delivery.message.nonce() == Some(id.as_str()) {
                return Ok::<_, BenchError>((took, delivery));
            }
            delivery.ack().await?;
        }
    };
    let (published, (took, delivery)) = tokio::try_join!(publishing, receiving)?;
    let Message::PrefetchReady(_) = &delivery.message else {
        return Err(BenchError::Answered(format!("{:?}", delivery.message)));
    };
    delivery.ack().await?;
    Ok((took, took.max(published)))
}

enum Baseline {
    Redis { raw: MultiplexedConnection, key: String },
    Disk { file: File, path: std::path::PathBuf },
}

impl Baseline {
    async fn new(stage: &mut Stage) -> Result<Self, BenchError> {
        if let Some(raw) = stage.raw().await? {
            return Ok(Self::Redis { raw, key: stage.key("raw") });
        }
        let path = stage.directory.join("raw");
        let made = File::create(&path).and_then(|mut file| {
            // As the journal does: its blocks are there before they are written.
            file.write_all(&vec![0; 8 << 20])?;
            file.sync_all()?;
            std::io::Seek::rewind(&mut file)?;
            Ok(file)
        });
        match made {
            Ok(file) => Ok(Self::Disk { file, path }),
            Err(source) => Err(BenchError::Io { path, source }),
        }
    }

    async fn take(&mut self) -> Result<Duration, BenchError> {
        let bytes = [b'x'; ENTRY_BYTES];
        let begun = Instant::now();
        match self {
            Self::Redis { raw, key } => {
                for _ in 0..3 {
                    let mut add = redis::cmd("XADD");
                    add.arg(&*key).arg("MAXLEN").arg("~").arg(10_000).arg("*").arg("x").arg(&bytes);
                    add.query_async::<String>(raw).await?;
                }
            }
            Self::Disk { file, path } => {
                let written = file.write_all(&bytes).and_then(|()| file.sync_data());
                written.map_err(|source| BenchError::Io { path: path.clone(), source })?;
            }
        }
        Ok(begun.elapsed())
    }
}

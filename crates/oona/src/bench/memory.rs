//! Memory over many messages, with everything running that runs in a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::BenchError;
use super::load::{PUBLISHERS, publish};
use super::report::Row;
use super::stage::Stage;
use crate::consumer::ConsumerSpec;
use crate::delivery::Delivery;
use crate::heartbeat::Heartbeat;
use crate::housekeeping::Housekeeping;
use crate::lease::LeaseKeeper;
use crate::stream::Stream;

/// Published and not yet handled, at most.
const AHEAD_MAX: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);
/// Looks at the memory.
const SAMPLES: u64 = 20;
/// From a tenth of the way to the end the process may grow by this: arenas, not messages.
const GROWTH_MIB_MAX: f64 = 8.0;
/// Nonces for the measurement of a claim.
const CLAIMS: usize = 20_000;

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let mut rows = vec![flow(stage).await?];
    if stage.is_redis() {
        rows.push(claim(stage).await?);
    }
    Ok(rows)
}

/// How far publishing and handling have come.
#[derive(Default)]
struct Progress {
    published: AtomicU64,
    handled: AtomicU64,
    moved: Notify,
}

async fn flow(stage: &Stage) -> Result<Row, BenchError> {
    let total = stage.options.memory_messages;
    let stop = CancellationToken::new();
    let progress = Arc::new(Progress::default());
    let keeper = Housekeeping { bus: stage.bus.clone(), heartbeat: Heartbeat::detached() };
    let leases = LeaseKeeper { bus: stage.bus.clone(), heartbeat: Heartbeat::detached() };
    let stopped = stop.clone();
    let keeping = stage.spawner.start(async move {
        tokio::try_join!(keeper.run(stopped.clone()), leases.run(stopped)).map(drop)
    });
    let message = Arc::new(stage.message("x"));
    let mut publishers = Vec::new();
    for _ in 0..PUBLISHERS {
        let (bus, message) = (stage.bus.clone(), Arc::clone(&message));
        let progress = Arc::clone(&progress);
        publishers.push(stage.spawner.start(async move {
            while let Some(()) = progress.room(total).await {
                publish(&bus, &message).await?;
            }
            Ok::<(), BenchError>(())
        }));
    }
    let samples = handle(stage, &progress, total).await;
    for publisher in publishers {
        publisher.result().await??;
    }
    stop.cancel();
    keeping.result().await??;
    let samples = samples?;
    let (Some(early), Some(late)) = (samples.get(1), samples.last()) else {
        return Err(BenchError::Panicked);
    };
    let most = samples.iter().copied().fold(0.0, f64::max);
    Ok(Row::new("memory: growth of the process", "MiB", late - early)
        .at_most(GROWTH_MIB_MAX)
        .under(stage.conditions(&format!(
            "{total} messages published and handled, housekeeping on; resident after a tenth {early:.1} MiB, \
             at the end {late:.1} MiB, at most {most:.1} MiB"
        ))))
}

impl Progress {
    /// Waits for room; `None` when all were published.
    async fn room(&self, total: u64) -> Option<()> {
        loop {
            let moved = self.moved.notified();
            let handled = self.handled.load(Ordering::Relaxed);
            if self.published.load(Ordering::Relaxed) < handled + AHEAD_MAX {
                return (self.published.fetch_add(1, Ordering::Relaxed) < total).then_some(());
            }
            moved.await;
        }
    }
}

/// Handles everything and looks at the memory now and then.
async fn handle(stage: &Stage, progress: &Progress, total: u64) -> Result<Vec<f64>, BenchError> {
    let mut consumer = stage.bus.consumer(ConsumerSpec::new(Stream::Normal, stage.group.as_str()));
    let (mut handled, mut samples) = (0, Vec::new());
    while handled < total {
        let batch = tokio::time::timeout(PATIENCE, consumer.recv_batch(256)).await;
        let batch = batch.map_err(|_| BenchError::Lost(PATIENCE))??;
        let count = u64::try_from(batch.len()).unwrap_or(0);
        Delivery::ack_all(batch).await?;
        let before = handled * SAMPLES / total;
        handled += count;
        progress.handled.store(handled, Ordering::Relaxed);
        progress.moved.notify_waiters();
        if handled * SAMPLES / total > before {
            samples.push(resident_mib()?);
        }
    }
    Ok(samples)
}

/// Memory of this process that is really there.
fn resident_mib() -> Result<f64, BenchError> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|source| BenchError::Io { what: "read /proc/self/status", source })?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(f64::NAN);
    Ok(kib / 1024.0)
}

/// What one claim costs the server, by its own account.
async fn claim(stage: &Stage) -> Result<Row, BenchError> {
    let mut raw = stage.raw().await?;
    let used = async |raw: &mut redis::aio::MultiplexedConnection| {
        let info: String = redis::cmd("INFO").arg("memory").query_async(raw).await?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok::<f64, BenchError>(bytes.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(f64::NAN))
    };
    let before = used(&mut raw).await?;
    let now_ms = leyline::time::now_unix_ms();
    for page in 0..CLAIMS / 1000 {
        let nonce = |number: usize| {
            let seq = u64::try_from(page * 1000 + number).unwrap_or(0);
            (format!("1:{}", uuid::Uuid::now_v7()), crate::EntryId { ms: now_ms, seq })
        };
        let nonces = (0..1000).map(nonce).collect();
        stage.bus.0.log.claim_nonces(stage.name(Stream::Normal), nonces).await?;
    }
    let after = used(&mut raw).await?;
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let bytes = (after - before) / CLAIMS as f64;
    let life = stage.bus.config().claim_ttl();
    Ok(Row::new("memory: one claimed nonce on the server", "bytes", bytes)
        .under(format!("used_memory over {CLAIMS} claims; each lives {life:?}")))
}

//! What a consumer costs that has nothing to do.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;

use super::BenchError;
use super::report::Row;
use super::stage::Stage;
use crate::consumer::ConsumerSpec;
use crate::heartbeat::Heartbeat;
use crate::housekeeping::Housekeeping;
use crate::lease::LeaseKeeper;
use crate::stream::Stream;

/// Groups are made and scripts loaded within this.
const SETTLING: Duration = Duration::from_secs(2);

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let stop = CancellationToken::new();
    let mut consumer = stage.bus.consumer(ConsumerSpec::new(Stream::Normal, stage.group.as_str()));
    let stopped = stop.clone();
    let idling = stage.spawner.start(async move {
        tokio::select! {
            () = stopped.cancelled() => Ok(()),
            received = consumer.recv() => received.map(drop),
        }
    });
    let alone = Cost::over(stage).await?;
    let keeper = Housekeeping { bus: stage.bus.clone(), heartbeat: Heartbeat::detached() };
    let leases = LeaseKeeper { bus: stage.bus.clone(), heartbeat: Heartbeat::detached() };
    let stopped = stop.clone();
    let keeping = stage.spawner.start(async move {
        tokio::try_join!(keeper.run(stopped.clone()), leases.run(stopped)).map(drop)
    });
    let kept = Cost::over(stage).await?;
    stop.cancel();
    idling.result().await??;
    keeping.result().await??;
    let seconds = stage.options.span.as_secs();
    let conditions = stage.conditions(&format!(
        "1 consumer, no message for {seconds} s; total_commands_processed counts commands inside scripts too, \
         and those of any other client"
    ));
    let row = |name: &str, unit, value| Row::new(name, unit, value).under(conditions.clone());
    Ok(vec![
        row("idle: commands of a consumer", "commands/s", alone.commands).at_most(1.0),
        row("idle: CPU of the process", "ms per s", alone.cpu_ms).at_most(1.0),
        row("idle: commands of consumer and housekeeping", "commands/s", kept.commands),
        row("idle: CPU of the process with housekeeping", "ms per s", kept.cpu_ms),
    ])
}

/// Per second.
struct Cost {
    commands: f64,
    cpu_ms: f64,
}

impl Cost {
    async fn over(stage: &Stage) -> Result<Self, BenchError> {
        tokio::time::sleep(SETTLING).await;
        let mut raw = stage.raw().await?;
        let commands = commands(&mut raw).await?;
        let cpu = cpu_time()?;
        tokio::time::sleep(stage.options.span).await;
        let cpu_used = cpu_time()?.saturating_sub(cpu);
        // The first of the two look-ups counts itself.
        let sent = self::commands(&mut raw).await?.saturating_sub(commands + 1);
        let seconds = stage.options.span.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let sent = sent as f64;
        Ok(Self { commands: sent / seconds, cpu_ms: cpu_used.as_secs_f64() * 1e3 / seconds })
    }
}

async fn commands(raw: &mut MultiplexedConnection) -> Result<u64, BenchError> {
    let stats: String = redis::cmd("INFO").arg("stats").query_async(raw).await?;
    let count = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    Ok(count.and_then(|count| count.trim().parse().ok()).unwrap_or(0))
}

/// CPU time of this process, in steps of the scheduler's ten milliseconds.
fn cpu_time() -> Result<Duration, BenchError> {
    /// Linux reports to programs in these units on every architecture.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat")
        .map_err(|source| BenchError::Io { what: "read /proc/self/stat", source })?;
    // The name of the program, in brackets, may hold spaces.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

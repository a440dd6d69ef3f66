//! Publishers in numbers, over the bus and bare.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leyline::Message;
use leyline::wire::MessagePriority;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::BenchError;
use super::stage::Stage;
use crate::bus::Bus;
use crate::publish::Outcome;
use crate::stream::Stream;

/// Publishers at the same time.
pub(super) const PUBLISHERS: usize = 64;

/// Publishes one message on the normal lane, and insists on it.
pub(super) async fn publish(bus: &Bus, message: &Message) -> Result<(), BenchError> {
    publish_on(bus, Stream::Normal, MessagePriority::Normal, message).await
}

pub(super) async fn publish_on(
    bus: &Bus,
    stream: Stream,
    priority: MessagePriority,
    message: &Message,
) -> Result<(), BenchError> {
    match bus.publish(stream, priority, "oona.bench", message).await? {
        Outcome::Published { .. } | Outcome::Rerouted { .. } => Ok(()),
        _ => Err(BenchError::Refused),
    }
}

/// So many messages from so many publishers, each waiting for its answer before its next.
pub(super) async fn over_the_bus(
    stage: &Stage,
    publishers: usize,
    messages: usize,
) -> Result<Duration, BenchError> {
    let message = Arc::new(stage.message("x"));
    let started = Instant::now();
    let tasks: Vec<_> = (0..publishers)
        .map(|_| {
            let (bus, message) = (stage.bus.clone(), Arc::clone(&message));
            stage.spawner.start(async move {
                for _ in 0..messages / publishers {
                    publish(&bus, &message).await?;
                }
                Ok::<(), BenchError>(())
            })
        })
        .collect();
    for task in tasks {
        task.result().await??;
    }
    Ok(started.elapsed())
}

/// An entry as ours has it: payload and signature.
#[derive(Clone)]
pub(super) struct RawEntry {
    pub(super) payload: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

impl RawEntry {
    /// The command that ours sends as well.
    pub(super) fn xadd(&self, stream: &str) -> redis::Cmd {
        let mut cmd = redis::cmd("XADD");
        cmd.arg(stream).arg("*").arg("payload").arg(&self.payload);
        cmd.arg("signature").arg(&self.signature);
        cmd
    }
}

/// The bytes of the newest entry of the normal lane.
pub(super) async fn sample(stage: &Stage) -> Result<RawEntry, BenchError> {
    publish(&stage.bus, &stage.message("x")).await?;
    let peeked = stage.bus.peek(Stream::Normal, crate::EntryId::ZERO, 1).await?;
    let fields = peeked.into_iter().next().map(|entry| entry.fields).unwrap_or_default();
    let mut values = fields.into_iter().map(|(_, value)| value);
    Ok(RawEntry {
        payload: values.next().unwrap_or_default(),
        signature: values.next().unwrap_or_default(),
    })
}

/// The same from a bare client, over one connection.
pub(super) async fn bare(
    stage: &Stage,
    connection: &MultiplexedConnection,
    entry: &Arc<RawEntry>,
    publishers: usize,
    messages: usize,
) -> Result<Duration, BenchError> {
    let name: Arc<str> = stage.name(Stream::Normal).into();
    let started = Instant::now();
    let tasks: Vec<_> = (0..publishers)
        .map(|_| {
            let (mut connection, entry) = (connection.clone(), Arc::clone(entry));
            let name = Arc::clone(&name);
            stage.spawner.start(async move {
                for _ in 0..messages / publishers {
                    let _id: String = entry.xadd(&name).query_async(&mut connection).await?;
                }
                Ok::<(), BenchError>(())
            })
        })
        .collect();
    for task in tasks {
        task.result().await??;
    }
    Ok(started.elapsed())
}

/// Hands out numbered messages at a rate, to as many publishers as ask.
pub(super) struct Pace {
    started: Instant,
    per_second: f64,
    total: u64,
    next: AtomicU64,
}

impl Pace {
    pub(super) fn new(per_second: f64, total: u64) -> Self {
        Self { started: Instant::now(), per_second, total, next: AtomicU64::new(0) }
    }

    /// The number of the next message, when it is due; `None` when all were handed out.
    pub(super) async fn next(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.total {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let due = self.started + Duration::from_secs_f64(number as f64 / self.per_second);
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        Some(number)
    }
}

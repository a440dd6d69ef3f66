//! Telling everybody of a stored artifact, once it is durable.

use std::time::Duration;

use kernel::Digest;
use leyline::Message;
use leyline::wire::{self, MessagePriority};
use oona::{Bus, Outcome, Outgoing, Stream, TraceContext};
use urza::Record;

use crate::metrics::Metrics;
use crate::queue::{JobLock, Queue};

/// How often a catalogue update is offered to the bus in one go.
const ATTEMPTS: u32 = 3;
/// How long one offer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The message that tells everybody of a stored artifact.
fn catalogue_update(record: &Record) -> wire::KernelCatalogUpdate {
    wire::KernelCatalogUpdate {
        blueprint_id: record.job.blueprint.to_string(),
        artifact_ref: record.path.to_string_lossy().into_owned(),
        checksum: record.digest.to_hex(),
        guard_digest: record.guard_digest.to_hex(),
        compile_ms: record.compile_ms as f32,
        prewarm_ms: record.prewarm.p50_ms() as f32,
    }
}

/// An artifact to tell of.
pub(crate) struct Announcement {
    pub(crate) bus: Bus,
    pub(crate) record: Record,
    /// Of the request that had the artifact built.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Queue,
    pub(crate) key: Digest,
    /// Held until it is told, so that no other process tells it too.
    pub(crate) lock: Option<JobLock>,
}

impl Announcement {
    /// Publishes the catalogue update, then settles the job. One that the bus does not take after several offers stays
    /// owed: its ticket is found at the next look, and it is offered again.
    pub(crate) async fn make(self) {
        let (queue, key) = (self.queue.clone(), self.key);
        if self.publish().await {
            oona::chaos::point(oona::chaos::Point::UpdatePublished);
            let _ = tokio::task::spawn_blocking(move || queue.settle(&key)).await;
        } else {
            self.metrics.unannounced.inc();
            queue.forget(&key);
        }
        drop(self.lock);
    }

    async fn publish(&self) -> bool {
        let message = Message::CatalogUpdate(catalogue_update(&self.record));
        let (stream, priority) = (Stream::KernelReady, MessagePriority::Normal);
        let traceparent = self.trace.map(|trace| trace.child().to_string());
        let traceparent = traceparent.as_deref();
        for _ in 0..ATTEMPTS {
            let outgoing =
                Outgoing { stream, priority, source: "tezzeret", message: &message, traceparent };
            match tokio::time::timeout(TIMEOUT, self.bus.send(outgoing)).await {
                Ok(Ok(Outcome::Refused { retry_after, .. })) => {
                    tokio::time::sleep(retry_after.min(TIMEOUT)).await;
                }
                Ok(Ok(
                    Outcome::Published { .. } | Outcome::Rerouted { .. } | Outcome::Spooled { .. },
                )) => return true,
                Ok(Err(error)) => {
                    let blueprint = &self.record.job.blueprint;
                    tracing::warn!(%blueprint, error = &error as &dyn std::error::Error, "catalogue update not sent");
                    tokio::time::sleep(TIMEOUT / 5).await;
                }
                Err(_) => {}
            }
        }
        false
    }
}

//! The worker that takes policy updates from the policy stream.

use std::time::Duration;

use leyline::Message;
use leyline::wire::{
    HealthStatus, MessagePriority, PolicyUpdate, SystemHealth, TelemetryEvent, TelemetryLevel,
    TelemetryPacket,
};
use oona::{Bus, BusError, Consumer, ConsumerSpec, Delivery, Heartbeat, Outgoing, Stream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Admitted};
use crate::config::Updates as Settings;
use crate::error::{ArchiveError, UpdateRefused};
use crate::live::Identity;
use crate::metrics::{Accepted, Metrics};
use crate::reason::Reason;
use crate::store::PolicyStore;

/// Longest wait for telling telemetry of a refusal.
const TELL_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for settling a delivery; the bus goes on trying after it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes policy updates: validates each, keeps it on disk, puts it in force, acknowledges.
///
/// A refused update leaves the live policy untouched, is counted by reason, and acknowledged: it
/// would be refused again. Only an update that is good and could not be kept is left to be tried
/// again.
#[derive(Debug)]
pub struct PolicyUpdates {
    /// Where updates come from.
    pub bus: Bus,
    /// Where policies are kept, and the one in force.
    pub store: PolicyStore,
    /// Group, freshness, bounds.
    pub settings: Settings,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Arrived(Box<Delivery>),
    Idle,
    Stop,
}

impl PolicyUpdates {
    /// Takes updates until `stop`.
    ///
    /// # Errors
    /// [`BusError`] when the bus has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let spec = ConsumerSpec::new(Stream::Policy, self.settings.group.clone());
        let mut consumer = self.bus.consumer(ConsumerSpec { batch_max: 16, ..spec });
        self.metrics.policy_in_force(&self.store.live().load().identity);
        loop {
            self.heartbeat.beat("waiting for policy updates");
            match self.next_event(&mut consumer, &stop).await? {
                Event::Arrived(delivery) => {
                    let judging = "judging a policy update";
                    // Nothing comes back from an update that panics its handler: it was failed.
                    let _ = delivery.attempt(&self.heartbeat, judging, |it| self.handle(it)).await;
                }
                Event::Idle => {}
                Event::Stop => return Ok(()),
            }
        }
    }

    /// Waits for the next event. Only receives, so losing the race loses nothing.
    async fn next_event(
        &self,
        consumer: &mut Consumer,
        stop: &CancellationToken,
    ) -> Result<Event, BusError> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(Event::Stop),
            delivery = consumer.recv() => Ok(Event::Arrived(Box::new(delivery?))),
            () = tokio::time::sleep(Heartbeat::INTERVAL) => Ok(Event::Idle),
        }
    }

    /// Judges one update, and settles its delivery after its effect.
    async fn handle(&self, delivery: Delivery) {
        let result = match &delivery.message {
            // An update's age is that at which it reached the stream, not that at which we got to it.
            Message::PolicyUpdate(update) => self.apply(update, delivery.entry.ms).await,
            other => {
                tracing::warn!(kind = ?other.message_type(), "not a policy update; dropped");
                Ok(())
            }
        };
        let settling = async {
            match result {
                Ok(()) => delivery.ack().await,
                Err(refused) => {
                    self.metrics.update_rejected(&refused);
                    self.tell(&refused, &delivery).await;
                    if refused.is_ours() {
                        delivery.fail(refused.rejection().name()).await
                    } else {
                        delivery.ack().await
                    }
                }
            }
        };
        match timeout(SETTLE_TIMEOUT, settling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "policy update settled here, not yet in the log"
                )
            }
            Err(_) => tracing::warn!("settling a policy update takes long; the bus goes on trying"),
        }
    }

    async fn apply(&self, update: &PolicyUpdate, now_ms: u64) -> Result<(), UpdateRefused> {
        let live = self.store.live();
        let current = live.load();
        let floor = self.store.floor();
        let admitted = admission::admit(update, &current.identity, floor, now_ms, &self.settings)?;
        let accepted = match &admitted {
            Admitted::Label => Accepted::Label,
            Admitted::Policy(_) => Accepted::Policy,
            Admitted::Again => Accepted::Again,
        };
        if accepted != Accepted::Again {
            self.keep(admitted, update).await.map_err(UpdateRefused::Swap)?;
        }
        self.metrics.update_accepted(accepted, &live.load().identity);
        Ok(())
    }

    /// Tells telemetry of a refusal, as far as the bus allows; the counter counts it anyway.
    async fn tell(&self, refused: &UpdateRefused, delivery: &Delivery) {
        let Message::PolicyUpdate(update) = &delivery.message else { return };
        let live = self.store.live().load();
        let packet =
            Message::from(rejection_packet(refused, update, delivery.attempt, &live.identity));
        let traceparent = delivery.trace().map(|trace| trace.child().to_string());
        let publishing = self.bus.send(Outgoing {
            stream: Stream::Telemetry,
            priority: MessagePriority::High,
            source: crate::ISSUED_BY,
            message: &packet,
            traceparent: traceparent.as_deref(),
        });
        match timeout(TELL_TIMEOUT, publishing).await {
            Ok(Ok(outcome)) if outcome.is_accepted() => {}
            _ => tracing::debug!("telemetry did not hear of the refusal"),
        }
    }

    /// Keeps and swaps, on a thread for blocking work.
    async fn keep(&self, admitted: Admitted, update: &PolicyUpdate) -> Result<(), ArchiveError> {
        let after = self.settings.store_timeout;
        self.heartbeat.beat_within("keeping a policy", after + Heartbeat::INTERVAL);
        let (store, update) = (self.store.clone(), update.clone());
        let working = tokio::task::spawn_blocking(move || store.apply(admitted, &update));
        match timeout(after, working).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(failed)) => match failed.try_into_panic() {
                // A panic in there is one of this update's handler.
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(ArchiveError::TimedOut { after }),
            },
            Err(_) => Err(ArchiveError::TimedOut { after }),
        }
    }
}

/// The packet that tells of a refusal: one event, `policy_update_rejected`, with its reason.
fn rejection_packet(
    refused: &UpdateRefused,
    update: &PolicyUpdate,
    attempt: u32,
    live: &Identity,
) -> TelemetryPacket {
    let now = leyline::time::now_unix_ms();
    // What came from outside is shown, so it is cut to a length that a page can bear.
    let policy_id: String = update.policy_id.chars().take(64).collect();
    let reason = refused.rejection().name();
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let id = format!("tamiyo-update-{policy_id}-{now}-{attempt}");
    let event = TelemetryEvent {
        event_id: id.clone(),
        description: Reason::PolicyUpdateRejected.name().to_owned(),
        level: TelemetryLevel::Warning.into(),
        attributes: [text("reason", reason), text("policy_id", &policy_id)].into(),
    };
    TelemetryPacket {
        packet_id: id,
        timestamp: Some(leyline::time::timestamp(now)),
        source_subsystem: crate::ISSUED_BY.to_owned(),
        level: TelemetryLevel::Warning.into(),
        metrics: Vec::new(),
        events: vec![event],
        spans: Vec::new(),
        system_health: Some(SystemHealth {
            status: HealthStatus::Degraded.into(),
            summary: Reason::PolicyUpdateRejected.name().to_owned(),
            indicators: [text("policy", &live.version), text("priority", "MESSAGE_PRIORITY_HIGH")]
                .into(),
        }),
    }
}

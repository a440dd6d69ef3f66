//! A first measurement: round trips over the bus, beside the same commands without it.

use std::time::Duration;

use leyline::Message;
use leyline::wire::{MessagePriority, TelemetryPacket};
use tokio::time::Instant;

use super::BenchError;
use crate::bus::Bus;
use crate::consumer::ConsumerSpec;
use crate::error::BusError;
use crate::log::Seat;
use crate::publish::Outcome;
use crate::stream::Stream;

/// Medians of one run. The baseline makes the same log calls with bare bytes of the same size:
/// no envelope, no signature, no checks, no claim of a nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrips {
    /// Rounds measured.
    pub rounds: usize,
    /// Bytes of the entry.
    pub entry_bytes: usize,
    /// One publish, until the log has it.
    pub publish: Duration,
    /// One bare append.
    pub publish_baseline: Duration,
    /// From before the publish until the message is with its handler and acknowledged.
    pub round_trip: Duration,
    /// Bare append, read, acknowledge.
    pub round_trip_baseline: Duration,
}

const GROUP: &str = "oona-bench";
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures on the telemetry stream, in a group of its own that is removed afterwards. Run it on a
/// log that nothing else uses. `payload_bytes` is the size of the message's text.
///
/// # Errors
/// [`BenchError`] when the log fails or somebody else interferes.
pub async fn round_trips(
    bus: &Bus,
    rounds: usize,
    payload_bytes: usize,
) -> Result<RoundTrips, BenchError> {
    let measured = measure(bus, rounds.max(1), payload_bytes).await;
    bus.remove_group(Stream::Telemetry, GROUP).await?;
    measured
}

async fn measure(bus: &Bus, rounds: usize, payload_bytes: usize) -> Result<RoundTrips, BenchError> {
    let message = Message::from(TelemetryPacket {
        packet_id: "x".repeat(payload_bytes),
        ..TelemetryPacket::default()
    });
    bus.remove_group(Stream::Telemetry, GROUP).await?;
    bus.ensure_groups(&[(Stream::Telemetry, GROUP)]).await?;
    let mut consumer = bus.consumer(ConsumerSpec::new(Stream::Telemetry, GROUP));
    drain(&mut consumer).await?;
    let (mut publish, mut trip) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    let mut last = crate::EntryId::ZERO;
    for _ in 0..rounds {
        let started = Instant::now();
        let priority = MessagePriority::Normal;
        match bus.publish(Stream::Telemetry, priority, "oona.bench", &message).await? {
            Outcome::Published { id, .. } | Outcome::Rerouted { id, .. } => last = id,
            Outcome::Refused { .. } | Outcome::Spooled { .. } => return Err(BenchError::Refused),
        }
        publish.push(started.elapsed());
        let received = tokio::time::timeout(DELIVERY_TIMEOUT, consumer.recv()).await;
        received.map_err(|_| BenchError::Lost(DELIVERY_TIMEOUT))??.ack().await?;
        trip.push(started.elapsed());
    }
    drop(consumer);
    let before = crate::EntryId { ms: last.ms.saturating_sub(1), seq: u64::MAX };
    let sent = bus.peek(Stream::Telemetry, before, 1).await?;
    let bytes = sent
        .last()
        .map_or(0, |entry| entry.fields.iter().map(|(name, value)| name.len() + value.len()).sum());
    let (publish_baseline, round_trip_baseline) = baseline(bus, rounds, bytes).await?;
    Ok(RoundTrips {
        rounds,
        entry_bytes: bytes,
        publish: median(publish),
        publish_baseline,
        round_trip: median(trip),
        round_trip_baseline,
    })
}

/// Acknowledges what older runs left in the stream.
async fn drain(consumer: &mut crate::Consumer) -> Result<(), BenchError> {
    const QUIET: Duration = Duration::from_millis(200);
    while let Ok(batch) = tokio::time::timeout(QUIET, consumer.recv_batch(256)).await {
        crate::Delivery::ack_all(batch?).await?;
    }
    Ok(())
}

/// The same calls on the log itself.
async fn baseline(
    bus: &Bus,
    rounds: usize,
    bytes: usize,
) -> Result<(Duration, Duration), BenchError> {
    let log = &bus.0.log;
    let seat = Seat {
        stream: bus.name(Stream::Telemetry).to_owned(),
        group: GROUP.to_owned(),
        consumer: format!("{}-raw", bus.config().consumer),
    };
    let mut reader = log.reader(seat.clone());
    let value = vec![b'x'; bytes];
    let (mut appends, mut trips) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        let started = Instant::now();
        log.append(&seat.stream, &[(b"raw", value.as_slice())], false)
            .await
            .map_err(BusError::from)?;
        appends.push(started.elapsed());
        let read = reader.read(1, DELIVERY_TIMEOUT).await.map_err(BusError::from)?;
        let ids: Vec<_> = read.iter().map(|entry| entry.id).collect();
        if ids.is_empty() {
            return Err(BenchError::Lost(DELIVERY_TIMEOUT));
        }
        log.ack(&seat, &ids).await.map_err(BusError::from)?;
        trips.push(started.elapsed());
    }
    Ok((median(appends), median(trips)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

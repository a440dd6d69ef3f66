//! The emergency lane while the normal lane is as full as it gets.

use std::sync::Arc;
use std::time::Duration;

use leyline::Message;
use leyline::wire::{EmergencySignal, MessagePriority};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::BenchError;
use super::load::{PUBLISHERS, publish, publish_on};
use super::report::{Row, millis, quantile};
use super::stage::Stage;
use crate::consumer::{Consumer, ConsumerSpec};
use crate::delivery::Delivery;
use crate::stream::Stream;

/// Between two signals.
const INTERVAL: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let stop = CancellationToken::new();
    let message = Arc::new(stage.message("x"));
    let mut noise = Vec::new();
    for _ in 0..PUBLISHERS {
        let (bus, message, stop) = (stage.bus.clone(), Arc::clone(&message), stop.clone());
        noise.push(stage.spawner.start(async move {
            while !stop.is_cancelled() {
                publish(&bus, &message).await?;
            }
            Ok::<(), BenchError>(())
        }));
    }
    let spec = |stream| ConsumerSpec::new(stream, stage.group.as_str());
    let normal = stage.bus.consumer(spec(Stream::Normal));
    noise.push(stage.spawner.start(drain(normal, stop.clone())));
    let signals = signals(stage, spec(Stream::Emergency)).await;
    stop.cancel();
    for task in noise {
        task.result().await??;
    }
    let mut times = signals?;
    let conditions = stage.conditions(&format!(
        "{} signals, one every {INTERVAL:?}, beside {PUBLISHERS} publishers and 1 consumer at full speed",
        times.len()
    ));
    Ok(vec![
        Row::new(
            "emergency lane, publish to handler, p50",
            "ms",
            millis(quantile(&mut times, 0.5)),
        )
        .under(conditions.clone()),
        Row::new(
            "emergency lane, publish to handler, p99",
            "ms",
            millis(quantile(&mut times, 0.99)),
        )
        .at_most(5.0)
        .under(conditions),
    ])
}

/// Sends signals and takes the time to each one's handler.
async fn signals(stage: &Stage, spec: ConsumerSpec) -> Result<Vec<Duration>, BenchError> {
    let consumer = stage.bus.consumer(spec);
    let started = Instant::now();
    let count = stage.options.span.as_millis() / INTERVAL.as_millis();
    let count = usize::try_from(count).unwrap_or(1);
    let receiving = stage.spawner.start(receive(consumer, started, count));
    let mut ticks = tokio::time::interval(INTERVAL);
    for _ in 0..count {
        ticks.tick().await;
        let sent = started.elapsed().as_nanos();
        let signal = Message::from(EmergencySignal {
            run_id: format!("{sent:032x}"),
            ..EmergencySignal::default()
        });
        publish_on(&stage.bus, Stream::Emergency, MessagePriority::Critical, &signal).await?;
    }
    receiving.result().await?
}

async fn receive(
    mut consumer: Consumer,
    started: Instant,
    count: usize,
) -> Result<Vec<Duration>, BenchError> {
    let mut times = Vec::with_capacity(count);
    while times.len() < count {
        let delivery = tokio::time::timeout(PATIENCE, consumer.recv()).await;
        let delivery = delivery.map_err(|_| BenchError::Lost(PATIENCE))??;
        if let Message::Emergency(signal) = &delivery.message {
            let sent = u64::from_str_radix(&signal.run_id, 16).unwrap_or(0);
            times.push(started.elapsed().saturating_sub(Duration::from_nanos(sent)));
        }
        delivery.ack().await?;
    }
    Ok(times)
}

/// Handles the normal lane as fast as it can.
async fn drain(mut consumer: Consumer, stop: CancellationToken) -> Result<(), BenchError> {
    loop {
        let batch = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            batch = consumer.recv_batch(256) => batch?,
        };
        Delivery::ack_all(batch).await?;
    }
}

//! Publishing and consuming together: at a steady rate, and in a burst.

use std::sync::Arc;
use std::time::Duration;

use leyline::Message;
use tokio::time::Instant;

use super::BenchError;
use super::load::{PUBLISHERS, Pace, publish};
use super::report::{Row, millis, quantile, rate};
use super::stage::{Running, Stage};
use crate::consumer::{Consumer, ConsumerSpec};
use crate::delivery::Delivery;
use crate::stream::Stream;

const STEADY: f64 = 25_000.0;
const BURST: f64 = 50_000.0;
/// How long nothing may arrive before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);
const BATCH: usize = 256;

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let mut consumer = stage.bus.consumer(ConsumerSpec::new(Stream::Normal, stage.group.as_str()));
    let mut rows = Vec::new();
    for (name, per_second) in [("sustained", STEADY), ("burst", BURST)] {
        let (back, run) = offer(stage, consumer, per_second).await?;
        consumer = back;
        rows.extend(run.rows(stage, name, per_second));
    }
    Ok(rows)
}

/// What one run showed.
struct Run {
    offered: usize,
    publishing: Duration,
    all: Duration,
    lost: usize,
    delivery: Vec<Duration>,
}

impl Run {
    fn rows(mut self, stage: &Stage, name: &str, per_second: f64) -> Vec<Row> {
        let seconds = stage.options.span.as_secs();
        let conditions = stage.conditions(&format!(
            "{per_second} messages/s offered for {seconds} s by {PUBLISHERS} publishers, 1 consumer"
        ));
        let achieved = rate(self.offered, self.publishing);
        let handled = rate(self.offered - self.lost, self.all);
        let p50 = millis(quantile(&mut self.delivery, 0.5));
        let p99 = millis(quantile(&mut self.delivery, 0.99));
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let lost = self.lost as f64;
        let row = |what: &str, unit, value| {
            Row::new(format!("{name}: {what}"), unit, value).under(conditions.clone())
        };
        let steady = name == "sustained";
        let mut rows = vec![
            // The last of them is published when it is due, not a moment later.
            row("published", "messages/s", achieved).at_least(per_second * 0.99),
            row("handled", "messages/s", handled),
            row("delivery p50, publish to handler", "ms", p50),
            row("delivery p99, publish to handler", "ms", p99),
            row("lost", "messages", lost).at_most(0.0),
        ];
        if steady {
            rows[1] = rows[1].clone().at_least(per_second * 0.99);
            rows[3] = rows[3].clone().at_most(10.0);
        }
        rows
    }
}

/// Offers messages at this rate and waits for all of them.
async fn offer(
    stage: &Stage,
    consumer: Consumer,
    per_second: f64,
) -> Result<(Consumer, Run), BenchError> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let total = (per_second * stage.options.span.as_secs_f64()) as u64;
    let started = Instant::now();
    let pace = Arc::new(Pace::new(per_second, total));
    let stage_message = Arc::new(MessageOf::new(stage));
    let receiving = stage.spawner.start(receive(consumer, started, total));
    let publishers: Vec<Running<Result<(), BenchError>>> = (0..PUBLISHERS)
        .map(|_| {
            let (bus, pace) = (stage.bus.clone(), Arc::clone(&pace));
            let message_of = Arc::clone(&stage_message);
            stage.spawner.start(async move {
                while let Some(number) = pace.next().await {
                    publish(&bus, &message_of.make(number, started.elapsed())).await?;
                }
                Ok(())
            })
        })
        .collect();
    for publisher in publishers {
        publisher.result().await??;
    }
    let publishing = started.elapsed();
    let (consumer, seen) = receiving.result().await??;
    let offered = usize::try_from(total).unwrap_or(usize::MAX);
    let run = Run {
        offered,
        publishing,
        all: seen.last,
        lost: offered - seen.distinct,
        delivery: seen.delivery,
    };
    Ok((consumer, run))
}

/// Makes messages of the wanted size that carry their number and when they were sent.
struct MessageOf {
    length: usize,
}

impl MessageOf {
    fn new(stage: &Stage) -> Self {
        let Message::SystemState(packet) = stage.message("x") else {
            unreachable!("the stage makes state packets");
        };
        Self { length: packet.training_run_id.len() }
    }

    fn make(&self, number: u64, sent: Duration) -> Message {
        let sent = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX);
        let (text, length) = (format!("{number:016x}{sent:016x}"), self.length);
        Message::from(leyline::wire::SystemStatePacket {
            training_run_id: format!("{text:x<length$}"),
            ..Default::default()
        })
    }
}

fn number_and_time(message: &Message) -> Option<(usize, Duration)> {
    let Message::SystemState(packet) = message else { return None };
    let hex = |range| u64::from_str_radix(packet.training_run_id.get(range)?, 16).ok();
    Some((usize::try_from(hex(0..16)?).ok()?, Duration::from_nanos(hex(16..32)?)))
}

#[derive(Default)]
struct Seen {
    distinct: usize,
    last: Duration,
    delivery: Vec<Duration>,
}

/// Handles until every number was seen, or nothing comes any more.
async fn receive(
    mut consumer: Consumer,
    started: Instant,
    total: u64,
) -> Result<(Consumer, Seen), BenchError> {
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    let mut known = vec![false; total];
    let mut seen = Seen { delivery: Vec::with_capacity(total), ..Seen::default() };
    while seen.distinct < total {
        let batch = tokio::time::timeout(PATIENCE, consumer.recv_batch(BATCH)).await;
        let Ok(batch) = batch else { break };
        let batch = batch?;
        for delivery in &batch {
            let Some((number, sent)) = number_and_time(&delivery.message) else { continue };
            seen.delivery.push(started.elapsed().saturating_sub(sent));
            if known.get_mut(number).is_some_and(|known| !std::mem::replace(known, true)) {
                seen.distinct += 1;
            }
        }
        Delivery::ack_all(batch).await?;
        seen.last = started.elapsed();
    }
    Ok((consumer, seen))
}

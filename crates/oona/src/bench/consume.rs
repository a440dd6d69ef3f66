//! Consuming beside raw loops over the same entries: one that makes the same commands, and one that
//! only reads and acknowledges.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use tokio::time::Instant;

use super::BenchError;
use super::load::{PUBLISHERS, over_the_bus};
use super::report::{Row, median, rate};
use super::stage::Stage;
use crate::consumer::{Consumer, ConsumerSpec};
use crate::delivery::Delivery;
use crate::log::Seat;
use crate::stream::Stream;

/// Entries in one step, on both sides.
const BATCH: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a raw loop claims a nonce for each entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claims {
    Made,
    None,
}

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let (slices, messages) = (stage.options.slices, stage.options.slice_messages);
    let mut ours = Vec::new();
    let (mut same, mut plain) = (Vec::new(), Vec::new());
    let with_claims = RawLoop::new(stage, Claims::Made);
    let without = RawLoop::new(stage, Claims::None);
    let groups = [&stage.group, &with_claims.seat.group, &without.seat.group];
    for group in groups {
        stage.bus.ensure_groups(&[(Stream::Normal, group)]).await?;
    }
    let mut consumer = stage.bus.consumer(ConsumerSpec::new(Stream::Normal, stage.group.as_str()));
    let (mut with_claims, mut without) = (with_claims, without);
    for slice in 0..=slices {
        over_the_bus(stage, PUBLISHERS, messages).await?;
        let messages = messages / PUBLISHERS * PUBLISHERS;
        let took = consume(&mut consumer, messages).await?;
        let same_took = with_claims.consume(stage, messages).await?;
        let plain_took = without.consume(stage, messages).await?;
        // The first slice warms all of them up.
        if slice > 0 {
            ours.push(rate(messages, took));
            same.push(rate(messages, same_took));
            plain.push(rate(messages, plain_took));
        }
    }
    let ours = median(ours);
    let log = if stage.is_redis() {
        "XREADGROUP, SET NX GET PX pipelined, XACK"
    } else {
        "read, claim, acknowledge"
    };
    let what = format!("1 consumer, batches of {BATCH}, handler does nothing");
    Ok(vec![
        Row::new("consume, beside the same commands", "messages/s", ours)
            .beside(median(same))
            .at_least_ratio(0.8)
            .under(stage.conditions(&format!("{what}; raw: {log}"))),
        Row::new("consume, beside read and acknowledge", "messages/s", ours)
            .beside(median(plain))
            .at_least_ratio(0.5)
            .under(stage.conditions(&format!("{what}; raw: no claims"))),
    ])
}

/// Ours, to the end of the slice.
pub(super) async fn consume(
    consumer: &mut Consumer,
    messages: usize,
) -> Result<Duration, BenchError> {
    let started = Instant::now();
    let mut seen = 0;
    while seen < messages {
        let batch = tokio::time::timeout(PATIENCE, consumer.recv_batch(BATCH)).await;
        let batch = batch.map_err(|_| BenchError::Lost(PATIENCE))??;
        seen += batch.len();
        Delivery::ack_all(batch).await?;
    }
    Ok(started.elapsed())
}

/// The baseline on either log.
struct RawLoop {
    seat: Seat,
    claims: Claims,
    connection: Option<MultiplexedConnection>,
}

impl RawLoop {
    fn new(stage: &Stage, claims: Claims) -> Self {
        let group = match claims {
            Claims::Made => format!("{}-same", stage.group),
            Claims::None => format!("{}-plain", stage.group),
        };
        let stream = stage.name(Stream::Normal).to_owned();
        Self { seat: Seat { stream, group, consumer: "raw".to_owned() }, claims, connection: None }
    }

    async fn consume(&mut self, stage: &Stage, messages: usize) -> Result<Duration, BenchError> {
        if !stage.is_redis() {
            return self.consume_embedded(stage, messages).await;
        }
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => stage.raw().await?,
        };
        let started = Instant::now();
        let mut seen = 0;
        while seen < messages {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(&self.seat.group).arg(&self.seat.consumer);
            read.arg("COUNT").arg(BATCH).arg("STREAMS").arg(&self.seat.stream).arg(">");
            let reply: StreamReadReply = read.query_async(&mut connection).await?;
            let ids: Vec<&String> =
                reply.keys.iter().flat_map(|key| key.ids.iter().map(|entry| &entry.id)).collect();
            if ids.is_empty() {
                return Err(BenchError::Lost(Duration::ZERO));
            }
            if self.claims == Claims::Made {
                let mut pipe = redis::pipe();
                for id in &ids {
                    let key = stage.key(&format!("1:{}", uuid::Uuid::now_v7()));
                    pipe.cmd("SET").arg(key).arg(*id).arg("NX").arg("GET").arg("PX").arg(1_205_000);
                }
                let _owners: Vec<Option<String>> = pipe.query_async(&mut connection).await?;
            }
            let mut ack = redis::cmd("XACK");
            ack.arg(&self.seat.stream).arg(&self.seat.group).arg(&ids);
            let _acknowledged: usize = ack.query_async(&mut connection).await?;
            seen += ids.len();
        }
        let took = started.elapsed();
        self.connection = Some(connection);
        Ok(took)
    }

    /// The same calls on the embedded log itself.
    async fn consume_embedded(
        &self,
        stage: &Stage,
        messages: usize,
    ) -> Result<Duration, BenchError> {
        let log = &stage.bus.0.log;
        let mut reader = log.reader(self.seat.clone());
        let started = Instant::now();
        let mut seen = 0;
        while seen < messages {
            let read = reader.read(BATCH, PATIENCE).await?;
            let ids: Vec<_> = read.iter().map(|entry| entry.id).collect();
            if ids.is_empty() {
                return Err(BenchError::Lost(PATIENCE));
            }
            if self.claims == Claims::Made {
                let nonce = |id: &crate::EntryId| (format!("1:{}", uuid::Uuid::now_v7()), *id);
                log.claim_nonces(&self.seat.stream, ids.iter().map(nonce).collect()).await?;
            }
            log.ack(&self.seat, &ids).await?;
            seen += ids.len();
        }
        Ok(started.elapsed())
    }
}

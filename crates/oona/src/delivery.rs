//! A message in the hands of its handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leyline::Message;
use rand::Rng as _;
use tokio::time::Instant;

use crate::attributes;
use crate::bus::Bus;
use crate::consumer::Post;
use crate::entry::EntryId;
use crate::error::BusError;
use crate::log::Epitaph;
use crate::metrics::Consumed;
use crate::span::{Span, SpanKind};
use crate::stream::Stream;
use crate::trace::TraceContext;

/// A message that passed every check. Settle it with [`ack`](Self::ack) or [`fail`](Self::fail);
/// one that is dropped unsettled comes back, as if its handler had crashed.
#[derive(Debug)]
pub struct Delivery {
    /// Where it stood.
    pub stream: Stream,
    /// Its place in the stream.
    pub entry: EntryId,
    /// 1 at the first delivery, counted by the log over restarts.
    pub attempt: u32,
    /// What was sent.
    pub message: Message,
    /// The envelope's attributes, authenticated with it; see [`attributes`](crate::attributes).
    pub attributes: BTreeMap<String, String>,
    /// When it was handed out.
    pub received_at: Instant,
    pub(crate) receipt: Receipt,
}

impl Delivery {
    /// The trace that the message belongs to, if it says so in a way that can be read.
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::of(&self.attributes)
    }

    /// The span of the work on this message, for the lines logged meanwhile: `stream`, `entry`,
    /// `message_id`, `request_id` and `trace_id`, as far as the message has them.
    pub fn span(&self) -> tracing::Span {
        use tracing::field::{Empty, display};
        let span = tracing::info_span!(
            "message",
            stream = self.stream.label(),
            entry = Empty,
            message_id = self.attributes.get(attributes::ID),
            request_id = self.message.nonce(),
            trace_id = Empty,
        );
        // Nothing is formatted for nobody.
        if !span.is_disabled() {
            span.record("entry", display(self.entry));
            if let Some(trace) = self.trace() {
                span.record("trace_id", trace.trace_id());
            }
        }
        span
    }

    /// Begins the step of handling this message: it follows the step that sent it, and says where
    /// the message stood and how long it waited.
    pub fn begin(&self, bus: &Bus, name: &'static str) -> Span {
        let mut span = bus.tracer().follow(name, SpanKind::Consumer, self.trace());
        if span.is_recorded() {
            span.set("messaging.system", "oona");
            span.set("messaging.operation.type", "process");
            span.set("messaging.destination.name", bus.config().streams.name(self.stream));
            if let Some(id) = self.attributes.get(attributes::ID) {
                span.set("messaging.message.id", id.as_str());
            }
            if let Some(request) = self.message.nonce() {
                span.set("messaging.message.conversation_id", request);
            }
            let waited = leyline::time::now_unix_ms().saturating_sub(self.entry.ms);
            span.set("oona.queue_ms", waited as f64);
            span.set("oona.attempt", self.attempt);
        }
        span
    }

    /// The message was handled: it never comes back. When the log cannot be reached, the consumer
    /// goes on trying; the error is for the caller's log only.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log did not answer.
    pub async fn ack(self) -> Result<(), BusError> {
        self.receipt.ack().await
    }

    /// The message could not be handled: it comes back after a growing delay, and becomes a dead
    /// letter with this reason when its attempts are used up.
    ///
    /// # Errors
    /// [`BusError::Log`] when the dead letter could not be written; the entry then comes back.
    pub async fn fail(self, reason: &str) -> Result<(), BusError> {
        self.receipt.fail(reason).await
    }

    /// Splits the message from the receipt that settles it.
    pub fn into_parts(self) -> (Message, Receipt) {
        (self.message, self.receipt)
    }

    /// Acknowledges many deliveries of one consumer in one step.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log did not answer; the consumer goes on trying.
    pub async fn ack_all(deliveries: Vec<Self>) -> Result<(), BusError> {
        Receipt::ack_all(deliveries.into_iter().map(|delivery| delivery.receipt).collect()).await
    }
}

/// The right to settle one delivery.
#[derive(Debug)]
pub struct Receipt {
    pub(crate) post: Arc<Post>,
    pub(crate) entry: EntryId,
    pub(crate) attempt: u32,
    pub(crate) received_at: Instant,
    pub(crate) settled: bool,
}

impl Receipt {
    /// The place of what it settles.
    pub fn entry(&self) -> EntryId {
        self.entry
    }

    /// See [`Delivery::ack`].
    ///
    /// # Errors
    /// [`BusError::Log`] when the log did not answer.
    pub async fn ack(self) -> Result<(), BusError> {
        Self::ack_all(vec![self]).await
    }

    /// See [`Delivery::ack_all`]. All receipts must stem from one consumer's handler.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log did not answer.
    pub async fn ack_all(mut receipts: Vec<Self>) -> Result<(), BusError> {
        // By consumer, since receipts of several may have been put together.
        receipts.sort_by_key(|receipt| Arc::as_ptr(&receipt.post).addr());
        let mut outcome = Ok(());
        for group in receipts.chunk_by_mut(|a, b| Arc::ptr_eq(&a.post, &b.post)) {
            if let Err(error) = ack_group(group).await {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// See [`Delivery::fail`].
    ///
    /// # Errors
    /// [`BusError::Log`] when the dead letter could not be written.
    pub async fn fail(mut self, reason: &str) -> Result<(), BusError> {
        let post = Arc::clone(&self.post);
        post.metrics.observe_handler(post.stream, self.received_at.elapsed().as_secs_f64());
        if self.attempt < post.attempts_max {
            tracing::debug!(stream = %post.stream, entry = %self.entry, attempt = self.attempt, reason, "handler failed, entry retried");
            post.metrics.count_retry(post.stream);
            let delay = retry_delay(self.attempt, post.retry_delay_min, post.retry_delay_max);
            post.work.retry_at(self.entry, Instant::now() + delay);
            self.settled = true;
            return Ok(());
        }
        // Unless this succeeds the drop below gives the entry back.
        post.bury(self.entry, self.attempt, reason).await?;
        post.work.let_go(self.entry);
        self.settled = true;
        Ok(())
    }
}

/// Counts deliveries of one consumer as handled.
pub(crate) fn observe_handled<'a>(post: &Post, receipts: impl Iterator<Item = &'a Receipt>) {
    let (now_ms, now) = (leyline::time::now_unix_ms(), Instant::now());
    let mut count = 0;
    for receipt in receipts {
        let waited = Duration::from_millis(now_ms.saturating_sub(receipt.entry.ms));
        post.metrics.observe_delivery(post.stream, waited.as_secs_f64());
        let took = now.saturating_duration_since(receipt.received_at);
        post.metrics.observe_handler(post.stream, took.as_secs_f64());
        count += 1;
    }
    post.metrics.count_consumed(post.stream, Consumed::Handled, count);
}

async fn ack_group(receipts: &mut [Receipt]) -> Result<(), BusError> {
    let Some(first) = receipts.first() else { return Ok(()) };
    let post = Arc::clone(&first.post);
    let ids: Vec<EntryId> = receipts.iter().map(|receipt| receipt.entry).collect();
    observe_handled(&post, receipts.iter());
    let acked = post.log.ack(&post.seat, &ids).await;
    receipts.iter_mut().for_each(|receipt| receipt.settled = true);
    match acked {
        Ok(()) => post.work.let_go_all(&ids),
        // They stay on the desk, so that nobody hands them out again before they are acknowledged.
        Err(_) => ids.iter().for_each(|id| post.work.owe(*id)),
    }
    Ok(acked?)
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.post.work.dropped(self.entry, Instant::now() + self.post.unsettled_delay);
        }
    }
}

impl Post {
    /// Moves an entry to the dead letters.
    pub(crate) async fn bury(
        &self,
        id: EntryId,
        attempts: u32,
        reason: &str,
    ) -> Result<(), BusError> {
        let epitaph = Epitaph { reason: reason.to_owned(), attempts };
        if self.log.bury(&self.seat, id, &self.dead_letter, &epitaph).await? {
            self.metrics.count_dead(self.stream);
            tracing::warn!(stream = %self.stream, entry = %id, attempts, reason, "entry became a dead letter");
        }
        Ok(())
    }
}

/// Doubles with every attempt; between half and all of that, so that failures spread.
fn retry_delay(attempt: u32, min: Duration, max: Duration) -> Duration {
    let doubled = min.saturating_mul(1_u32 << attempt.saturating_sub(1).min(20)).min(max);
    doubled.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_with_jitter_and_stay_bounded() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(30));
        for (attempt, full) in [(1, 200), (2, 400), (3, 800), (40, 30_000)] {
            let full = Duration::from_millis(full);
            for _ in 0..100 {
                let delay = retry_delay(attempt, min, max);
                assert!(full / 2 <= delay && delay <= full, "{attempt}: {delay:?}");
            }
        }
    }
}

//! Answers on their way: offered to the bus until it takes them.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use leyline::Message;
use leyline::wire::{KernelPrefetchRequest, MessagePriority};
use oona::chaos::{self, Point};
use oona::{
    Bus, EntryId, Heartbeat, Receipt, Reply, Span, Spare, Stream, TraceContext, Unanswered,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::Answer;
use crate::metrics::{Answered, Metrics};

const SOURCE: &str = "urza";
/// Longest pause before an answer is offered again.
const OFFER_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A request in hand, until it is answered.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) request: KernelPrefetchRequest,
    pub(super) receipt: Receipt,
    pub(super) spare: Spare,
    pub(super) received_at: Instant,
    /// Why it was not ready when it was looked for: its artifact was gone or corrupt, by this stable reason. It waits
    /// for another.
    pub(super) broken: Option<&'static str>,
    /// The step of serving it, from its arrival to its answer.
    pub(super) step: Span,
}

/// A request with its answer.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) held: Held,
    pub(super) answer: Answer,
}

/// What is remembered of an answer while the bus has it.
struct Sent {
    outcome: Answered,
    received_at: Instant,
    step: Span,
    sending: Span,
}

/// Offers answers. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) bus: Bus,
    pub(super) metrics: Metrics,
    pub(super) heartbeat: Heartbeat,
    pub(super) offer_pause: Duration,
    pub(super) stop: CancellationToken,
}

impl Sender {
    /// Publishes answers and acknowledges their requests, both in one step. What the bus does not
    /// take now is offered again until it does: the log's trouble (out of memory, say) is not the
    /// request's, and uses up none of its attempts.
    pub(super) async fn send(self, outgoing: Vec<Outgoing>) {
        let Some(first) = outgoing.first().map(|outgoing| outgoing.held.receipt.entry()) else {
            return;
        };
        let mut spares = Vec::with_capacity(outgoing.len());
        let mut sent = HashMap::with_capacity(outgoing.len());
        let mut replies = Vec::with_capacity(outgoing.len());
        for Outgoing { held, answer } in outgoing {
            let (entry, reply, about, spare) = self.prepare(held, answer);
            sent.insert(entry, about);
            replies.push(reply);
            spares.push(spare);
        }
        let heartbeat = self.heartbeat.clone();
        let offering = heartbeat.over("answering", first, self.offer(replies, sent));
        if let Err(panic) = AssertUnwindSafe(offering).catch_unwind().await {
            failed(spares, panic).await;
        }
    }

    fn prepare(&self, held: Held, answer: Answer) -> (EntryId, Reply, Sent, Spare) {
        let (stream, name) = match answer.message {
            Message::PrefetchReady(_) => (Stream::KernelReady, "urza.ready"),
            _ => (Stream::KernelErrors, "urza.error"),
        };
        let stream_name = self.bus.config().streams.name(stream);
        let trace: Option<TraceContext> = held.step.context();
        let sending = self.bus.tracer().publish(name, trace, stream_name);
        let reply = Reply {
            stream,
            priority: MessagePriority::High,
            message: answer.message,
            traceparent: sending.traceparent(),
            attributes: answer.attributes,
            receipt: held.receipt,
        };
        let Held { received_at, step, spare, .. } = held;
        let about = Sent { outcome: answer.outcome, received_at, step, sending };
        (reply.receipt.entry(), reply, about, spare)
    }

    async fn offer(&self, mut replies: Vec<Reply>, mut sent: HashMap<EntryId, Sent>) {
        let mut pause = self.offer_pause;
        loop {
            chaos::points(Point::AnswerMade, replies.len());
            let left = self.bus.answer(SOURCE, replies).await;
            let answered = sent.len() - left.len();
            chaos::points(Point::AnswerPublished, answered);
            chaos::points(Point::RequestAcknowledged, answered);
            let mut waiting = HashMap::with_capacity(left.len());
            replies = Vec::with_capacity(left.len());
            let mut fault = None;
            for (reply, unanswered) in left {
                self.metrics.unsent.inc();
                let about = sent.remove(&reply.receipt.entry());
                if unanswered.is_final() {
                    give_back(reply, about, &unanswered).await;
                    continue;
                }
                if let Some(mut about) = about {
                    about.sending.fail(&unanswered.to_string());
                    waiting.insert(reply.receipt.entry(), about);
                }
                fault = Some(unanswered);
                replies.push(reply);
            }
            let now = Instant::now();
            for about in sent.into_values() {
                self.metrics
                    .answered(about.outcome, now.saturating_duration_since(about.received_at));
            }
            sent = waiting;
            let Some(fault) = fault else { return };
            let answers = replies.len();
            tracing::warn!(%fault, answers, ?pause, "answers not sent, offered again");
            tokio::select! {
                biased;
                // Unsettled: they come back, to this service or to another.
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(OFFER_PAUSE_MAX);
        }
    }
}

/// An answer that the bus will never take: the request is retried, and ends as a dead letter.
async fn give_back(reply: Reply, about: Option<Sent>, fault: &Unanswered) {
    let fault = fault.to_string();
    tracing::warn!(%fault, "answer cannot be sent, request will be retried");
    if let Some(mut about) = about {
        about.step.fail(&fault);
    }
    if let Err(error) = reply.receipt.fail(&fault).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "request not handed back, the bus redelivers it"
        );
    }
}

/// A panic is a failed attempt of each request that it happened to; one that was answered before is left alone.
pub(super) async fn failed(spares: Vec<Spare>, panic: Box<dyn Any + Send>) {
    let text = oona::panic_text(panic.as_ref()).to_owned();
    drop(panic);
    for spare in spares {
        spare.fail(Box::new(text.clone())).await;
    }
}

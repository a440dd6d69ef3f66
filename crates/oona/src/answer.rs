//! Answering: the answers to requests and the acknowledgements of these requests, in one step.
//!
//! Published first and acknowledged afterwards, a crash in between answers twice. In one step it
//! cannot: on Redis both are one transaction, in the embedded log one frame. An answer therefore
//! needs no durability of its own either; where it is lost, its request is still to be answered.

use std::sync::Arc;
use std::time::Duration;

use leyline::Message;
use leyline::wire::MessagePriority;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::delivery::{Receipt, observe_handled};
use crate::entry::EntryId;
use crate::error::{LogError, PublishError};
use crate::log::Append;
use crate::metrics::Published;
use crate::publish::{Outgoing, RETRY_PAUSE, RefusedBecause, Route};
use crate::seal::Sealed;
use crate::stream::Stream;

/// Told where the log is away and there is no saying when it comes back.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// An answer, and the right to acknowledge what it answers.
#[derive(Debug)]
pub struct Reply {
    /// The stream of the answer.
    pub stream: Stream,
    /// Decides whether it gives way under pressure.
    pub priority: MessagePriority,
    /// The answer.
    pub message: Message,
    /// W3C trace context to carry on.
    pub traceparent: Option<String>,
    /// Attributes of the envelope beside Oona's own, in the order of their names.
    pub attributes: Vec<(&'static str, String)>,
    /// What is answered.
    pub receipt: Receipt,
}

/// Why an answer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Not now.
    #[error("the bus refused the answer ({})", reason.code())]
    Refused {
        /// Why.
        reason: RefusedBecause,
        /// When trying again may help.
        retry_after: Duration,
    },
    /// The log failed, or the answer can never be published: see [`Unanswered::is_final`].
    #[error(transparent)]
    Failed(Arc<PublishError>),
}

impl Unanswered {
    /// Whether the same answer will never be taken.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { .. } => false,
            Self::Failed(error) => {
                matches!(**error, PublishError::Oversize { .. } | PublishError::WrongStream { .. })
            }
        }
    }
}

impl Bus {
    /// Publishes answers and acknowledges what they answer: both or neither. Hands back what was not
    /// taken, with the reason; its requests are still the caller's. All receipts must stem from one
    /// consumer. What one call takes arrives in the order given, and in one round trip.
    ///
    /// No answer waits in a spool: while the log is away its request waits there as well.
    pub async fn answer(
        &self,
        source: &'static str,
        replies: Vec<Reply>,
    ) -> Vec<(Reply, Unanswered)> {
        let started = Instant::now();
        let mut unanswered = Vec::new();
        let (mut taken, mut sealed) =
            (Vec::with_capacity(replies.len()), Vec::with_capacity(replies.len()));
        let mut look = None;
        for reply in replies {
            match self.prepare(source, &reply).await {
                Ok((seal, sample)) => {
                    if sample {
                        look = Some(reply.stream);
                    }
                    sealed.push(seal);
                    taken.push(reply);
                }
                Err(fault) => unanswered.push((reply, fault)),
            }
        }
        if taken.is_empty() {
            return unanswered;
        }
        match self.take(&taken, &sealed).await {
            Ok(()) => self.settled(taken, started),
            Err(fault) => unanswered.extend(taken.into_iter().map(|reply| (reply, fault.copy()))),
        }
        if let Some(stream) = look {
            // Judged at the next answer; a log that fails shows itself there too.
            let _ = self.look_at_backlog(stream).await;
        }
        unanswered
    }

    async fn prepare(
        &self,
        source: &'static str,
        reply: &Reply,
    ) -> Result<(Sealed, bool), Unanswered> {
        let failed = |error: PublishError| Unanswered::Failed(Arc::new(error));
        let kind = reply.message.message_type();
        if !reply.stream.carries(kind) || reply.stream.may_reroute() {
            return Err(failed(PublishError::WrongStream { stream: reply.stream, kind }));
        }
        let outgoing = Outgoing {
            stream: reply.stream,
            priority: reply.priority,
            source,
            message: &reply.message,
            traceparent: reply.traceparent.as_deref(),
        };
        let route = self.route(outgoing).await.map_err(|error| failed(error.into()))?;
        let Route { sample, must_wait, .. } = match route {
            Ok(route) => route,
            Err((reason, retry_after)) => {
                self.0.metrics.count_publish(reply.stream, Published::Refused);
                return Err(Unanswered::Refused { reason, retry_after });
            }
        };
        if must_wait {
            let reason = RefusedBecause::BreakerOpen;
            return Err(Unanswered::Refused { reason, retry_after: RETRY_AFTER });
        }
        let attributes: Vec<(&str, &str)> =
            reply.attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Ok((self.seal(outgoing, &attributes, reply.stream).map_err(failed)?, sample))
    }

    /// One step. Where its answer is lost the same bytes are sent again: should both arrive, the
    /// copies are refused as replays.
    async fn take(&self, replies: &[Reply], sealed: &[Sealed]) -> Result<(), Unanswered> {
        let admit = |breaker: &mut crate::breaker::Breaker| breaker.admit(Instant::now());
        if let Err(retry_after) = self.0.pulse.breaker(false, admit) {
            return Err(Unanswered::Refused { reason: RefusedBecause::BreakerOpen, retry_after });
        }
        let taken = self.append_answers(replies, sealed).await;
        self.0.pulse.breaker(false, |breaker| match &taken {
            Err(error) if error.is_failure() => breaker.failed(Instant::now()),
            _ => breaker.succeeded(),
        });
        taken.map_err(|error| {
            self.0.metrics.count_log_failure();
            for reply in replies {
                self.0.metrics.count_publish(reply.stream, Published::Failed);
            }
            Unanswered::Failed(Arc::new(error.into()))
        })
    }

    async fn append_answers(&self, replies: &[Reply], sealed: &[Sealed]) -> Result<(), LogError> {
        let Some(post) = replies.first().map(|reply| Arc::clone(&reply.receipt.post)) else {
            return Ok(());
        };
        let appends: Vec<Append<'_>> = replies
            .iter()
            .zip(sealed)
            .map(|(reply, sealed)| (self.name(reply.stream), sealed.fields()))
            .collect();
        let ids: Vec<EntryId> = replies.iter().map(|reply| reply.receipt.entry).collect();
        let after = self.0.config.publish_timeout;
        let deadline = Instant::now() + after;
        loop {
            let answered = self.0.log.answer(&appends, &post.seat, &ids);
            match tokio::time::timeout_at(deadline, answered).await {
                Ok(Err(LogError::Unreachable { .. }))
                    if Instant::now() + RETRY_PAUSE < deadline =>
                {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Ok(answered) => return answered,
                Err(_) => return Err(LogError::TimedOut { operation: "answer", after }),
            }
        }
    }

    fn settled(&self, mut replies: Vec<Reply>, started: Instant) {
        let Some(post) = replies.first().map(|reply| Arc::clone(&reply.receipt.post)) else {
            return;
        };
        let took = started.elapsed().as_secs_f64();
        observe_handled(&post, replies.iter().map(|reply| &reply.receipt));
        for reply in &mut replies {
            self.0.metrics.count_publish(reply.stream, Published::Sent);
            self.0.metrics.publish_seconds.observe(took);
            reply.receipt.settled = true;
        }
        let ids: Vec<EntryId> = replies.iter().map(|reply| reply.receipt.entry).collect();
        post.work.let_go_all(&ids);
    }
}

impl Unanswered {
    fn copy(&self) -> Self {
        match self {
            Self::Refused { reason, retry_after } => {
                Self::Refused { reason: *reason, retry_after: *retry_after }
            }
            Self::Failed(error) => Self::Failed(Arc::clone(error)),
        }
    }
}

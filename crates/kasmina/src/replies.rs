//! The workers that read answers from the bus and hand them to the coordinator.
//!
//! Every trainer reads through a group of its own, so it sees all answers and takes none away from
//! others; whose answer it is, the coordinator knows.

use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use kernel::{Execution, Fallback};
use leyline::Message;
use leyline::wire::{KernelArtifactError, KernelArtifactReady};
use oona::{Bus, BusError, ConsumerSpec, Delivery, Heartbeat, Stream, TraceContext};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Ignored, Metrics};

/// Answers that may wait for the coordinator.
pub const REPLIES_MAX: usize = 256;
/// Answers handed over and not yet acknowledged, for one consumer.
const IN_FLIGHT_MAX: usize = 64;
/// How long the coordinator may take; fetching a large artifact from another machine is part of it
/// ([`urza::fetch::FetcherConfig::total_timeout`]), and opening it.
const HANDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// What an answer may ask for at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A lease that would be shorter is renewed as if it were not,
const LEASE_MIN: Duration = Duration::from_secs(1);
/// and a longer one is not trusted to last.
const LEASE_MAX: Duration = Duration::from_hours(24 * 30);

/// An answer of the library.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Ready(KernelArtifactReady, Beside),
    /// With the time to ask again, where the library says one.
    Error(KernelArtifactError, Option<Duration>),
}

/// What the envelope of a ready answer says beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beside {
    /// What the forge says must run the kernel.
    pub(crate) execution: Option<String>,
    /// Where the kernel can be had over HTTP.
    pub(crate) url: Option<String>,
    /// The forge's signature of the kernel.
    pub(crate) signature: Option<String>,
    /// For how long this run has the kernel under a lease.
    pub(crate) lease: Option<Duration>,
}

impl Beside {
    /// What runs the kernel. A word that is not known here is something other than the plan, and the interpreter is
    /// right whatever it means.
    pub(crate) fn execution(&self) -> Execution {
        match self.execution.as_deref() {
            None | Some("plan") => Execution::Plan,
            Some(_) => {
                let reason = "the forge found that its plan is not its graph".to_owned();
                Execution::Interpreter { reason: Fallback::Asked { reason } }
            }
        }
    }
}

impl Answer {
    /// Which request it answers.
    pub(crate) fn request(&self) -> &str {
        match self {
            Self::Ready(ready, _) => &ready.request_id,
            Self::Error(error, _) => &error.request_id,
        }
    }
}

/// An answer on its way to the coordinator.
#[derive(Debug)]
pub struct Reply {
    pub(crate) answer: Answer,
    /// The trace that it belongs to, for the steps that follow.
    pub(crate) trace: Option<TraceContext>,
    /// Told when the answer has had its effect; the message is acknowledged then, not before.
    pub(crate) done: oneshot::Sender<()>,
}

/// Reads `KernelReady`. A catalogue update on that stream is known by its type and let pass.
#[derive(Debug)]
pub struct ReadyConsumer {
    /// Where answers come from.
    pub bus: Bus,
    /// This trainer's own group.
    pub group: String,
    /// Where they go.
    pub replies: mpsc::Sender<Reply>,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

impl ReadyConsumer {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// [`BusError`] when the bus has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let spec = ConsumerSpec::new(Stream::KernelReady, self.group);
        forward(&self.bus, spec, &self.replies, &self.metrics, &self.heartbeat, &stop).await
    }
}

/// Reads `KernelErrors`.
#[derive(Debug)]
pub struct ErrorConsumer {
    /// Where answers come from.
    pub bus: Bus,
    /// This trainer's own group.
    pub group: String,
    /// Where they go.
    pub replies: mpsc::Sender<Reply>,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

impl ErrorConsumer {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// [`BusError`] when the bus has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let spec = ConsumerSpec::new(Stream::KernelErrors, self.group);
        forward(&self.bus, spec, &self.replies, &self.metrics, &self.heartbeat, &stop).await
    }
}

#[expect(clippy::large_enum_variant, reason = "short-lived, one for each message at work")]
enum Event {
    Stop,
    Came(Delivery),
    Settled,
    Tick,
}

async fn forward(
    bus: &Bus,
    spec: ConsumerSpec,
    replies: &mpsc::Sender<Reply>,
    metrics: &Metrics,
    heartbeat: &Heartbeat,
    stop: &CancellationToken,
) -> Result<(), BusError> {
    let mut consumer = bus.consumer(spec);
    let mut in_flight = FuturesUnordered::new();
    loop {
        heartbeat.beat("receiving");
        let has_room = in_flight.len() < IN_FLIGHT_MAX;
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(()) = in_flight.next() => Event::Settled,
            delivery = consumer.recv(), if has_room => Event::Came(delivery?),
            () = tokio::time::sleep(Heartbeat::INTERVAL) => Event::Tick,
        };
        match event {
            // What is in flight stays unacknowledged and comes again; answers may come twice.
            Event::Stop => return Ok(()),
            // Nothing comes back from an answer that panics its handler: it was failed.
            Event::Came(delivery) => in_flight.push(
                delivery
                    .attempt(heartbeat, "handing over", |it| hand_over(bus, it, replies, metrics))
                    .map(drop),
            ),
            Event::Settled | Event::Tick => {}
        }
    }
}

/// Hands one answer over and acknowledges it once it has had its effect.
async fn hand_over(
    bus: &Bus,
    delivery: Delivery,
    replies: &mpsc::Sender<Reply>,
    metrics: &Metrics,
) {
    let (answer, name) = match &delivery.message {
        Message::PrefetchReady(ready) => {
            let attribute = |name| delivery.attributes.get(name).cloned();
            let beside = Beside {
                execution: attribute(urza::KERNEL_EXECUTION),
                url: attribute(urza::KERNEL_URL),
                signature: attribute(urza::KERNEL_SIGNATURE),
                lease: attribute(oona::attributes::KERNEL_LEASE_MS)
                    .and_then(|ms| ms.parse().ok())
                    .map(|ms| Duration::from_millis(ms).clamp(LEASE_MIN, LEASE_MAX)),
            };
            (Answer::Ready(ready.clone(), beside), "kasmina.ready")
        }
        Message::PrefetchError(error) => {
            let after = delivery.attributes.get(oona::attributes::RETRY_AFTER_MS);
            let after = after.and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
            let after = after.map(|after| after.min(RETRY_AFTER_MAX));
            (Answer::Error(error.clone(), after), "kasmina.error")
        }
        Message::CatalogUpdate(_) => {
            return ignore(delivery, metrics, Ignored::CatalogUpdate).await;
        }
        _ => return ignore(delivery, metrics, Ignored::Other).await,
    };
    tracing::debug!("answer arrived");
    let mut step = delivery.begin(bus, name);
    let trace = step.context();
    let (done, effect) = oneshot::channel();
    let handled =
        async { replies.send(Reply { answer, trace, done }).await.is_ok() && effect.await.is_ok() };
    match tokio::time::timeout(HANDLE_TIMEOUT, handled).await {
        Ok(true) => settle(delivery.ack().await),
        Ok(false) | Err(_) => {
            step.fail("the coordinator did not take the answer");
            settle(delivery.fail("the coordinator did not take the answer").await)
        }
    }
}

async fn ignore(delivery: Delivery, metrics: &Metrics, reason: Ignored) {
    metrics.ignored(reason);
    settle(delivery.ack().await);
}

fn settle(outcome: Result<(), BusError>) {
    if let Err(error) = outcome {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "settling an answer not confirmed, the bus goes on trying"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_the_plan_is_the_interpreter() {
        let by = |word: Option<&str>| {
            let beside = Beside { execution: word.map(str::to_owned), ..Beside::default() };
            beside.execution().name()
        };
        assert_eq!([by(None), by(Some("plan"))], ["plan"; 2]);
        for word in ["interpreter", "Plan", "", "another way"] {
            assert_eq!(by(Some(word)), "interpreter", "{word:?}");
        }
    }
}

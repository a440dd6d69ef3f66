//! The prefetch worker: answers requests for kernels from the bus.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use leyline::Message;
use leyline::ids::BlueprintId;
use leyline::wire::{KernelPrefetchRequest, MessagePriority};
use oona::chaos::{self, Point};
use oona::{
    Bus, BusError, Consumer, ConsumerSpec, Delivery, Heartbeat, Order, Outgoing, PublishError,
    Span, Stream, TraceContext,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Answer, Decision, MISSING_ARTIFACT};
use crate::demand::{BuildAnswer, Demand, WhyBuild};
use crate::library::Library;
use crate::metrics::Metrics;

const SOURCE: &str = "urza";
/// Longest pause before an answer is offered again.
const OFFER_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Settings of the prefetch worker. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchConfig {
    /// `weatherlight`: the group all workers of all processes share.
    pub group: String,
    /// 64 requests worked on side by side; most take one look into memory.
    pub in_flight_max: usize,
    /// 1024 requests that wait for a build; more are left on the bus.
    pub waiting_max: usize,
    /// 20 s: how long a request waits for a build before it is answered `missing_artifact`.
    pub build_wait: Duration,
    /// 5 s: how long publishing one answer may take.
    pub publish_timeout: Duration,
    /// 200 ms before an answer that the bus did not take is offered again; doubles up to 5 s.
    pub offer_pause: Duration,
    /// 10 s: how long answers in progress may take once a stop is asked for.
    pub drain_timeout: Duration,
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        Self {
            group: "weatherlight".to_owned(),
            in_flight_max: 64,
            waiting_max: 1024,
            build_wait: Duration::from_secs(20),
            publish_timeout: Duration::from_secs(5),
            offer_pause: Duration::from_millis(200),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Answers requests for kernels until told to stop.
///
/// Holds nothing that must outlive it: a request it did not answer stays unacknowledged, and the
/// next instance claims it. A request is acknowledged after its answer stands on the bus, and
/// answered again with the same contents should that acknowledgement be lost.
#[derive(Debug)]
pub struct Prefetcher {
    /// Where requests come from and answers go to.
    pub bus: Bus,
    /// What is offered.
    pub library: Library,
    /// Who builds what is missing.
    pub demand: Demand,
    /// Settings.
    pub config: PrefetchConfig,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

/// A request that waits for a build.
#[derive(Debug)]
struct Waiting {
    delivery: Delivery,
    request: KernelPrefetchRequest,
    until: Instant,
    /// The step of serving it, from its arrival to its answer.
    step: Span,
}

/// What becomes of a request whose artifact is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnMissing {
    /// It may wait until then.
    WaitUntil(Instant),
    /// It is answered.
    Answer,
}

/// What came out of working on one request.
#[expect(clippy::large_enum_variant, reason = "short-lived, one for each message at work")]
#[derive(Debug)]
enum Worked {
    Settled,
    MustWait(Waiting),
}

enum Event {
    Stop,
    Wanted(Delivery),
    Worked(Worked),
    BuildEnded(BlueprintId, Option<BuildAnswer>),
    Found(BlueprintId, bool),
    LibraryChanged,
    Tick,
}

/// Everything in progress. Owned by one loop.
struct Desk {
    consumer: Consumer,
    changes: watch::Receiver<u64>,
    working: FuturesUnordered<BoxFuture<'static, Worked>>,
    builds: FuturesUnordered<BoxFuture<'static, (BlueprintId, Option<BuildAnswer>)>>,
    looks: FuturesUnordered<BoxFuture<'static, (BlueprintId, bool)>>,
    waiting: BTreeMap<BlueprintId, Vec<Waiting>>,
    /// Blueprints with an order out.
    ordered: std::collections::BTreeSet<BlueprintId>,
}

impl Prefetcher {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// [`BusError`] when the bus has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let spec = ConsumerSpec {
            order: Order::PerKey,
            ..ConsumerSpec::new(Stream::KernelRequests, self.config.group.clone())
        };
        let mut desk = Desk {
            consumer: self.bus.consumer(spec),
            changes: self.library.changes(),
            working: FuturesUnordered::new(),
            builds: FuturesUnordered::new(),
            looks: FuturesUnordered::new(),
            waiting: BTreeMap::new(),
            ordered: std::collections::BTreeSet::new(),
        };
        let worker = Worker {
            bus: self.bus,
            library: self.library,
            demand: self.demand,
            metrics: self.metrics,
            publish_timeout: self.config.publish_timeout,
            heartbeat: self.heartbeat.clone(),
            offer_pause: self.config.offer_pause,
            stop: stop.clone(),
        };
        loop {
            self.heartbeat.beat("serving");
            match next_event(&mut desk, &self.config, &stop).await? {
                Event::Stop => break,
                event => handle(&mut desk, &worker, &self.config, event),
            }
            worker.metrics.waiting.set(desk.waiting_len() as i64);
        }
        self.heartbeat.beat("draining");
        chaos::points(Point::Draining, desk.working.len() + desk.waiting_len());
        let drain = async { while desk.working.next().await.is_some() {} };
        // Answers that take longer stay unacknowledged and are given by the next instance.
        let _ = tokio::time::timeout(
            self.config.drain_timeout,
            self.heartbeat.during("draining", drain),
        )
        .await;
        Ok(())
    }
}

/// Waits for the next event. Only receives, so losing the race loses nothing.
async fn next_event(
    desk: &mut Desk,
    config: &PrefetchConfig,
    stop: &CancellationToken,
) -> Result<Event, BusError> {
    let has_room = desk.working.len() < config.in_flight_max
        && desk.waiting_len() + desk.working.len() < config.waiting_max;
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(Event::Stop),
        Some(worked) = desk.working.next() => Ok(Event::Worked(worked)),
        Some((blueprint, answer)) = desk.builds.next() => Ok(Event::BuildEnded(blueprint, answer)),
        Some((blueprint, found)) = desk.looks.next() => Ok(Event::Found(blueprint, found)),
        Ok(()) = desk.changes.changed(), if !desk.waiting.is_empty() => Ok(Event::LibraryChanged),
        delivery = desk.consumer.recv(), if has_room => Ok(Event::Wanted(delivery?)),
        () = tokio::time::sleep(Heartbeat::INTERVAL) => Ok(Event::Tick),
    }
}

/// Handles one event. Starts work, never waits for it.
fn handle(desk: &mut Desk, worker: &Worker, config: &PrefetchConfig, event: Event) {
    match event {
        Event::Stop | Event::Worked(Worked::Settled) => {}
        Event::Wanted(delivery) => {
            let until = Instant::now() + config.build_wait;
            let worker = worker.clone();
            desk.working.push(Box::pin(async move {
                worker.attempt(delivery, |delivery| worker.receive(delivery, until)).await
            }));
        }
        Event::Worked(Worked::MustWait(waiting)) => {
            let blueprint = BlueprintId::new(waiting.request.blueprint_id.clone());
            desk.waiting.entry(blueprint.clone()).or_default().push(waiting);
            desk.order(worker, blueprint);
        }
        Event::BuildEnded(blueprint, answer) => {
            desk.ordered.remove(&blueprint);
            desk.build_ended(worker, &blueprint, answer);
        }
        Event::Found(blueprint, true) => desk.release(worker, &blueprint, OnMissing::WaitUntil),
        Event::Found(_, false) => {}
        Event::LibraryChanged => desk.look(worker),
        Event::Tick => desk.tick(worker),
    }
}

impl Desk {
    fn waiting_len(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    /// Orders a build, one at a time for a blueprint. An order that finds no room is given again at
    /// the next tick.
    fn order(&mut self, worker: &Worker, blueprint: BlueprintId) {
        if self.ordered.contains(&blueprint) {
            return;
        }
        let first = self.waiting.get(&blueprint).and_then(|waiting| waiting.first());
        let trace = first.and_then(|waiting| waiting.step.context());
        if let Some(answer) = worker.demand.order_within(&blueprint, WhyBuild::Missing, trace) {
            self.ordered.insert(blueprint.clone());
            self.builds.push(Box::pin(build_answer(blueprint, answer)));
        }
    }

    fn build_ended(
        &mut self,
        worker: &Worker,
        blueprint: &BlueprintId,
        answer: Option<BuildAnswer>,
    ) {
        let reason = match answer {
            // Built, or the builder went away: what the library has now decides.
            Some(BuildAnswer::Built(_)) => {
                return self.release(worker, blueprint, |_| OnMissing::Answer);
            }
            None => return,
            Some(BuildAnswer::Unknown) => MISSING_ARTIFACT.to_owned(),
            Some(BuildAnswer::Refused { reason }) => reason,
            Some(BuildAnswer::Failed { reason }) => {
                tracing::warn!(%blueprint, %reason, "build failed, requests answered as missing");
                MISSING_ARTIFACT.to_owned()
            }
        };
        for waiting in self.waiting.remove(blueprint).unwrap_or_default() {
            self.answer(worker, waiting, &reason);
        }
    }

    /// Works on the requests that waited for a blueprint.
    fn release(
        &mut self,
        worker: &Worker,
        blueprint: &BlueprintId,
        on_missing: impl Fn(Instant) -> OnMissing,
    ) {
        for Waiting { delivery, request, until, step } in
            self.waiting.remove(blueprint).unwrap_or_default()
        {
            let (worker, on_missing) = (worker.clone(), on_missing(until));
            self.working.push(Box::pin(async move {
                let work = |delivery| worker.work(delivery, request, step, on_missing);
                worker.attempt(delivery, work).await
            }));
        }
    }

    fn answer(&mut self, worker: &Worker, waiting: Waiting, reason: &str) {
        let answer = Answer::error(&waiting.request, reason);
        let worker = worker.clone();
        let Waiting { delivery, step, .. } = waiting;
        self.working.push(Box::pin(async move {
            worker.attempt(delivery, |delivery| worker.settle(delivery, step, answer)).await
        }));
    }

    /// Looks whether what is waited for has arrived, by whichever process.
    fn look(&mut self, worker: &Worker) {
        if !self.looks.is_empty() {
            return; // The tick looks again.
        }
        for blueprint in self.waiting.keys().cloned() {
            let library = worker.library.clone();
            self.looks.push(Box::pin(async move {
                let found = matches!(library.find(&blueprint).await, Ok(Some(_)));
                (blueprint, found)
            }));
        }
    }

    /// Answers who has waited long enough, looks on behalf of the others, orders again what could
    /// not be ordered.
    fn tick(&mut self, worker: &Worker) {
        let now = Instant::now();
        let blueprints: Vec<BlueprintId> = self.waiting.keys().cloned().collect();
        for blueprint in blueprints {
            let all = self.waiting.remove(&blueprint).unwrap_or_default();
            let (late, waiting): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|waiting| waiting.until <= now);
            for waiting in late {
                self.answer(worker, waiting, MISSING_ARTIFACT);
            }
            if !waiting.is_empty() {
                self.waiting.insert(blueprint.clone(), waiting);
                self.order(worker, blueprint);
            }
        }
        self.look(worker);
    }
}

async fn build_answer(
    blueprint: BlueprintId,
    answer: oneshot::Receiver<BuildAnswer>,
) -> (BlueprintId, Option<BuildAnswer>) {
    (blueprint, answer.await.ok())
}

/// What working on one request needs. Cheap to clone.
#[derive(Debug, Clone)]
struct Worker {
    bus: Bus,
    library: Library,
    demand: Demand,
    metrics: Metrics,
    publish_timeout: Duration,
    heartbeat: Heartbeat,
    offer_pause: Duration,
    stop: CancellationToken,
}

impl Worker {
    /// A request that panics its handler fails its attempt and nothing else.
    async fn attempt<W>(&self, delivery: Delivery, handle: impl FnOnce(Delivery) -> W) -> Worked
    where
        W: Future<Output = Worked>,
    {
        let worked = delivery.attempt(&self.heartbeat, "serving a request", handle).await;
        worked.unwrap_or(Worked::Settled)
    }

    async fn receive(&self, delivery: Delivery, until: Instant) -> Worked {
        match &delivery.message {
            Message::PrefetchRequest(request) => {
                let request = request.clone();
                let mut step = delivery.begin(&self.bus, "urza.prefetch");
                step.set("urza.blueprint", request.blueprint_id.as_str());
                self.work(delivery, request, step, OnMissing::WaitUntil(until)).await
            }
            other => {
                self.metrics.foreign.inc();
                tracing::warn!(kind = ?other.message_type(), "no request, acknowledged and dropped");
                acknowledge(delivery).await
            }
        }
    }

    async fn work(
        &self,
        delivery: Delivery,
        request: KernelPrefetchRequest,
        mut step: Span,
        on_missing: OnMissing,
    ) -> Worked {
        #[cfg(test)]
        tests::panic_on_poison(&request);
        let began = Instant::now();
        let decision = answer::decide(&self.library, &self.demand, &request).await;
        step.set("urza.lookup_ms", began.elapsed().as_secs_f64() * 1e3);
        chaos::point(Point::LibraryAsked);
        let answer = match decision {
            Decision::Answer(answer) => answer,
            Decision::Missing => match on_missing {
                OnMissing::WaitUntil(until) => {
                    return Worked::MustWait(Waiting { delivery, request, until, step });
                }
                OnMissing::Answer => Answer::error(&request, MISSING_ARTIFACT),
            },
        };
        self.settle(delivery, step, answer).await
    }

    /// Publishes the answer, then acknowledges the request. An answer that the bus does not take now is offered again
    /// until it does: the log's trouble (out of memory, say) is not the request's, and uses up none of its attempts.
    async fn settle(&self, delivery: Delivery, mut step: Span, answer: Answer) -> Worked {
        let mut pause = self.offer_pause;
        loop {
            let fault = match self.offer(&answer, step.context()).await {
                Offer::Taken => {
                    chaos::point(Point::AnswerPublished);
                    self.metrics.answered(answer.outcome, delivery.received_at.elapsed());
                    return acknowledge(delivery).await;
                }
                Offer::Never(fault) => {
                    step.fail(&fault);
                    return self.give_back(delivery, &fault).await;
                }
                Offer::Later(fault) => fault,
            };
            self.metrics.unsent.inc();
            tracing::warn!(%fault, ?pause, "answer not sent, offered again");
            tokio::select! {
                biased;
                // Unsettled: it comes back, to this service or to another.
                () = self.stop.cancelled() => return Worked::Settled,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(OFFER_PAUSE_MAX);
        }
    }

    async fn offer(&self, answer: &Answer, trace: Option<TraceContext>) -> Offer {
        let (stream, name) = match answer.message {
            Message::PrefetchReady(_) => (Stream::KernelReady, "urza.ready"),
            _ => (Stream::KernelErrors, "urza.error"),
        };
        let stream_name = self.bus.config().streams.name(stream);
        let mut sending = self.bus.tracer().publish(name, trace, stream_name);
        let traceparent = sending.traceparent();
        let publishing = self.bus.send(Outgoing {
            stream,
            priority: MessagePriority::High,
            source: SOURCE,
            message: &answer.message,
            traceparent: traceparent.as_deref(),
        });
        chaos::point(Point::AnswerMade);
        let offer = match tokio::time::timeout(self.publish_timeout, publishing).await {
            Ok(Ok(outcome)) if outcome.is_accepted() => {
                tracing::debug!(answered_on = stream.label(), "request answered");
                Offer::Taken
            }
            Ok(Ok(_)) => Offer::Later("the bus refused the answer".to_owned()),
            Ok(Err(error @ (PublishError::Oversize { .. } | PublishError::WrongStream { .. }))) => {
                Offer::Never(error.to_string())
            }
            Ok(Err(error)) => Offer::Later(error.to_string()),
            Err(_) => Offer::Later("publishing the answer timed out".to_owned()),
        };
        if let Offer::Later(fault) | Offer::Never(fault) = &offer {
            sending.fail(fault);
        }
        offer
    }

    /// An answer that the bus will never take: the request is retried, and ends as a dead letter.
    async fn give_back(&self, delivery: Delivery, fault: &str) -> Worked {
        self.metrics.unsent.inc();
        tracing::warn!(%fault, "answer cannot be sent, request will be retried");
        if let Err(error) = delivery.fail(fault).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "request not handed back, the bus redelivers it"
            );
        }
        Worked::Settled
    }
}

/// What the bus says to an answer.
enum Offer {
    Taken,
    /// Not now.
    Later(String),
    /// As it is, never.
    Never(String),
}

async fn acknowledge(delivery: Delivery) -> Worked {
    match delivery.ack().await {
        Ok(()) => chaos::point(Point::RequestAcknowledged),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "acknowledgement not confirmed, the bus goes on trying"
        ),
    }
    Worked::Settled
}

#[cfg(test)]
mod tests;

//! The prefetch coordinator: has kernels fetched for the seeds of one trainer.
//!
//! It stands between the training thread, which never waits for it, and the bus. Orders come in by
//! a bounded queue, results go back by another; a pending table joins requests and answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use kernel::signature::TrustedKeys;
use leyline::Message;
use leyline::ids::{BlueprintId, RequestId, RunId};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{
    KernelArtifactError, KernelArtifactReady, KernelPrefetchRequest, MessagePriority,
};
use oona::{Bus, BusError, Heartbeat, Outgoing, Span, SpanKind, Stream, TraceContext, attributes};
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use urza::fetch::FetcherConfig;

use crate::fetch::{FetchFailure, FetchOrder, Fetched, FetchedKernel, ORDERS_MAX, RESULTS_MAX};
use crate::metrics::{FetchOutcome, Ignored, Metrics, RenewalOutcome};
use crate::obtain::Source;
use crate::pending::{Match, Patience, Table, Verdict};
use crate::quarantine::{Handling, Trials, handling};
use crate::renewal::{InUse, Renewal, Renewals, Renewed};
use crate::replies::{Answer, Beside, REPLIES_MAX, Reply};
use crate::telemetry::SOURCE;

/// Settings of the coordinator. Defaults stand beside each field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefetchConfig {
    /// How long and how often a kernel is asked for.
    pub patience: Patience,
    /// Where and how kernels are fetched that are not on this machine; `None`: they are not.
    pub fetcher: Option<FetcherConfig>,
    /// Whose signature a kernel must bear; `None`: it needs none.
    pub trusted: Option<TrustedKeys>,
}

/// How long publishing one request may take.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The training thread's end.
#[derive(Debug)]
pub struct TrainerEnd {
    /// For [`crate::Parts::orders`].
    pub orders: mpsc::Sender<FetchOrder>,
    /// Results; look with `try_recv` at every step and pass them to
    /// [`crate::SeedManager::on_fetched`].
    pub results: mpsc::Receiver<Fetched>,
}

/// What the coordinator works on. It outlives a run of the worker, so that a restart loses nothing
/// but what was being opened. Cheap to clone; one run at a time holds it.
#[derive(Debug, Clone)]
pub struct PrefetchDesk {
    state: Arc<Mutex<State>>,
    source: Source,
    replies: mpsc::Sender<Reply>,
}

#[derive(Debug)]
struct State {
    orders: mpsc::Receiver<FetchOrder>,
    replies: mpsc::Receiver<Reply>,
    results: mpsc::Sender<Fetched>,
    table: Table,
    renewals: Renewals,
    trials: Trials,
}

impl PrefetchDesk {
    /// A desk, and the training thread's end of it.
    pub fn new(config: PrefetchConfig) -> (Self, TrainerEnd) {
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (answers, results) = mpsc::channel(RESULTS_MAX);
        let (replies, replied) = mpsc::channel(REPLIES_MAX);
        let state = State {
            orders: ordered,
            replies: replied,
            results: answers,
            table: Table::new(config.patience),
            renewals: Renewals::default(),
            trials: Trials::default(),
        };
        let source = Source::new(config.fetcher, config.trusted);
        let desk = Self { state: Arc::new(Mutex::new(state)), source, replies };
        (desk, TrainerEnd { orders, results })
    }

    /// Where [`crate::ReadyConsumer`] and [`crate::ErrorConsumer`] hand their answers.
    pub fn replies(&self) -> mpsc::Sender<Reply> {
        self.replies.clone()
    }
}

/// The coordinator's worker.
#[derive(Debug)]
pub struct Prefetch {
    /// Where requests go.
    pub bus: Bus,
    /// The training run, named in every request.
    pub run: RunId,
    /// What it works on.
    pub desk: PrefetchDesk,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Stop,
    Ordered(FetchOrder),
    Replied(Reply),
    Progress(Progress),
    Tick,
}

/// What came out of something started earlier.
enum Progress {
    Published(RequestId, bool),
    Opened(Opened),
    Tried(RequestId, FetchFailure),
}

/// A kernel, or why there is none, with the step and the answer that it ends.
struct Opened {
    request: RequestId,
    result: Result<FetchedKernel, FetchFailure>,
    /// For how long the library keeps it for this run.
    lease: Option<Duration>,
    step: Span,
    done: oneshot::Sender<()>,
}

type Started = FuturesUnordered<BoxFuture<'static, Progress>>;

impl Prefetch {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// None so far; a bus that fails shows as fetches that fail.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let state = Arc::clone(&self.desk.state);
        // Free unless the run before has not quite ended.
        let mut state = tokio::select! {
            state = self.heartbeat.during("taking over", state.lock()) => state,
            () = stop.cancelled() => return Ok(()),
        };
        let mut started = Started::new();
        // What was being opened when the run before ended is asked for again.
        state.table.restart(Instant::now());
        loop {
            self.heartbeat.beat("coordinating");
            match next_event(&mut state, &mut started, &stop).await {
                Event::Stop => return Ok(()),
                Event::Ordered(order) => state.table.record(order, Instant::now()),
                Event::Replied(reply) => {
                    self.heartbeat.beat_about("taking an answer", reply.answer.request());
                    // An answer that panics here is not confirmed, so its attempt has failed and it
                    // becomes a dead letter in the end; the panic's hook has reported it.
                    let taking = AssertUnwindSafe(|| self.replied(&mut state, &started, reply));
                    drop(catch_unwind(taking));
                }
                Event::Progress(progress) => self.progressed(&mut state, progress),
                Event::Tick => {}
            }
            self.ask_and_give_up(&mut state, &started);
            self.renew(&mut state, &started);
            self.metrics.fetch_pending.set(state.table.len() as i64);
            self.metrics.leased.set(state.renewals.len() as i64);
        }
    }

    /// Sends what is due, and deals with what is overdue.
    fn ask_and_give_up(&self, state: &mut State, started: &Started) {
        let now = Instant::now();
        for request in state.table.overdue(now) {
            self.failed(state, &request, FetchFailure::TimedOut);
        }
        for order in state.table.take_due(now) {
            if handling(&order.blueprint) == Handling::Confined {
                self.confine(state, started, order);
                continue;
            }
            let site = state.table.is_by_site(&order.request).then(|| site(&order.shape)).flatten();
            let site = site.map(|site| (attributes::KERNEL_SITE, site));
            let (request, blueprint) = (order.request, order.blueprint);
            self.ask(started, Ask { request, blueprint, attributes: site.into_iter().collect() });
        }
    }

    /// Asks again for what is held under a lease, so that it is kept; for this very artifact, since another may have
    /// taken its place. Nobody who waits for a kernel is served later for it.
    fn renew(&self, state: &mut State, started: &Started) {
        for Renewal { request, blueprint, digest } in state.renewals.take_due(Instant::now()) {
            let attributes = vec![
                (attributes::KERNEL_DIGEST, digest.to_hex()),
                (attributes::KERNEL_PRIORITY, "low".to_owned()),
            ];
            self.ask(started, Ask { request, blueprint, attributes });
        }
    }

    fn ask(&self, started: &Started, ask: Ask) {
        let (bus, run) = (self.bus.clone(), self.run.clone());
        started.push(Box::pin(async move {
            let sent = publish(&bus, &run, &ask).await;
            Progress::Published(ask.request, sent)
        }));
    }

    /// What no host may see is not asked for: it is built and tried in quarantine, and that is its end.
    fn confine(&self, state: &mut State, started: &Started, order: FetchOrder) {
        drop(state.table.opening(&order.request));
        let (trials, metrics) = (state.trials.clone(), self.metrics.clone());
        started.push(Box::pin(async move {
            let failure = trials.confined(&order, &metrics).await;
            Progress::Tried(order.request, failure)
        }));
    }

    fn replied(&self, state: &mut State, started: &Started, reply: Reply) {
        match reply.answer {
            Answer::Ready(ready, beside) => {
                self.ready(state, started, (ready, beside), reply.trace, reply.done);
            }
            Answer::Error(error, after) => self.error(state, &error, after, reply.done),
        }
    }

    fn error(
        &self,
        state: &mut State,
        error: &KernelArtifactError,
        retry_after: Option<Duration>,
        done: oneshot::Sender<()>,
    ) {
        let request = RequestId::new(error.request_id.clone());
        if state.renewals.awaits(&request, &error.blueprint_id) {
            let failure = FetchFailure::from_reason(&error.reason, retry_after);
            let renewed = state.renewals.refused(&request, &failure, Instant::now());
            self.renewed(renewed, &request, &error.blueprint_id, &error.reason);
        } else if self.is_awaited(state, &request, &error.blueprint_id) {
            self.failed(state, &request, FetchFailure::from_reason(&error.reason, retry_after));
        }
        // The consumer may have given up meanwhile; the answer then comes again, as a foreign one.
        let _ = done.send(());
    }

    fn ready(
        &self,
        state: &mut State,
        started: &Started,
        (ready, beside): (KernelArtifactReady, Beside),
        trace: Option<TraceContext>,
        done: oneshot::Sender<()>,
    ) {
        let request = RequestId::new(ready.request_id.clone());
        if state.renewals.awaits(&request, &ready.blueprint_id) {
            let (checksum, now) = (&ready.checksum, Instant::now());
            let renewed = state.renewals.answered(&request, checksum, beside.lease, now);
            self.renewed(renewed, &request, &ready.blueprint_id, "another artifact was offered");
            let _ = done.send(());
            return;
        }
        if !self.is_awaited(state, &request, &ready.blueprint_id) {
            let _ = done.send(());
            return;
        }
        let Some((order, ordered)) = state.table.opening(&request) else { return };
        let mut step = self.bus.tracer().follow("kasmina.attach", SpanKind::Internal, trace);
        if step.is_recorded() {
            step.set("kasmina.seed", order.seed.as_str());
            step.set("kasmina.blueprint", order.blueprint.as_str());
            step.set("messaging.message.conversation_id", request.as_str());
        }
        let source = self.desk.source.clone();
        let (trials, metrics) = (state.trials.clone(), self.metrics.clone());
        let lease = beside.lease;
        started.push(Box::pin(async move {
            let began = Instant::now();
            let opening = obtain(source, order, ready, beside, ordered);
            let opening = AssertUnwindSafe(opening).catch_unwind();
            let result = opening.await.unwrap_or_else(|panic| {
                let detail = format!("opening panicked: {}", oona::panic_text(panic.as_ref()));
                Err(FetchFailure::OpenFailed { detail })
            });
            let result = match result {
                Ok(kernel) => trials.passed(kernel, &metrics).await,
                Err(failure) => Err(failure),
            };
            step.set("kasmina.verify_ms", began.elapsed().as_secs_f64() * 1e3);
            Progress::Opened(Opened { request, result, lease, step, done })
        }));
    }

    /// Counts what became of a renewal. One that fails changes nothing here: the seed has its kernel.
    fn renewed(&self, renewed: Renewed, request: &RequestId, blueprint: &str, reason: &str) {
        self.metrics.renewed(match renewed {
            Renewed::Yes => RenewalOutcome::Renewed,
            Renewed::NoAndSaySo | Renewed::No => RenewalOutcome::Failed,
        });
        if renewed == Renewed::NoAndSaySo {
            tracing::warn!(
                %request,
                blueprint,
                reason,
                "lease of an attached kernel not renewed, the seed keeps what it has"
            );
        }
    }

    fn is_awaited(&self, state: &State, request: &RequestId, blueprint: &str) -> bool {
        match state.table.matches(request, &BlueprintId::new(blueprint)) {
            Match::Awaited => true,
            Match::Foreign => {
                self.metrics.ignored(Ignored::Foreign);
                false
            }
            Match::WrongBlueprint => {
                // Waiting goes on: a wrong answer must not be able to end a fetch.
                tracing::warn!(%request, blueprint, "answer is about another blueprint, ignored");
                self.metrics.ignored(Ignored::Other);
                false
            }
        }
    }

    fn progressed(&self, state: &mut State, progress: Progress) {
        match progress {
            Progress::Published(_, true) => {}
            // A renewal that was not sent is not in the table; it is due again as one without an answer.
            Progress::Published(request, false) => {
                self.failed(state, &request, FetchFailure::PublishRefused);
            }
            Progress::Tried(request, failure) => self.failed(state, &request, failure),
            Progress::Opened(opened) => self.opened(state, opened),
        }
    }

    fn opened(&self, state: &mut State, opened: Opened) {
        let Opened { request, result, lease, mut step, done } = opened;
        match result {
            Ok(kernel) => {
                if let Some(order) = state.table.finish(&request) {
                    if let Some(lease) = lease {
                        let FetchedKernel { blueprint, digest, in_use, .. } = &kernel;
                        state.renewals.hold(blueprint, *digest, in_use, lease, Instant::now());
                    }
                    self.metrics.fetched(FetchOutcome::Ready);
                    self.metrics.fetch_seconds.observe(kernel.latency.as_secs_f64());
                    self.metrics.fetch_last_ms.set(kernel.latency.as_secs_f64() * 1e3);
                    self.deliver(state, order, Ok(kernel), Some(step));
                }
            }
            Err(failure) => {
                step.fail(&failure.to_string());
                self.failed(state, &request, failure);
            }
        }
        let _ = done.send(());
    }

    fn failed(&self, state: &mut State, request: &RequestId, failure: FetchFailure) {
        match state.table.failed(request, failure, Instant::now()) {
            Verdict::Unknown => {}
            Verdict::Again => {
                self.metrics.fetch_retries.inc();
                tracing::debug!(%request, "kernel not fetched yet, asked for again");
            }
            Verdict::Over(order, failure) => {
                self.metrics.fetched(outcome(&failure));
                let detail = match &failure {
                    FetchFailure::OpenFailed { detail } => Some(detail.clone()),
                    FetchFailure::DownloadFailed { fault, .. } => Some(fault.clone()),
                    FetchFailure::IncompatibleInput(mismatch) => Some(mismatch.to_string()),
                    _ => None,
                };
                tracing::warn!(%request, seed = %order.seed, blueprint = %order.blueprint, %failure, detail, "kernel not fetched");
                self.deliver(state, order, Err(failure), None);
            }
        }
    }

    /// Puts a result where the training thread finds it. It holds more than a seed each; should it
    /// be full all the same, the seed manager's own deadline ends the wait.
    fn deliver(
        &self,
        state: &State,
        order: FetchOrder,
        result: Result<FetchedKernel, FetchFailure>,
        step: Option<Span>,
    ) {
        let fetched = Fetched { step, request: order.request, seed: order.seed, result };
        if state.results.try_send(fetched).is_err() {
            self.metrics.results_undelivered.inc();
            tracing::warn!("training thread does not take results, one dropped");
        }
    }
}

/// Waits for the next event. Only receives, so losing the race loses nothing.
async fn next_event(
    state: &mut MutexGuard<'_, State>,
    started: &mut Started,
    stop: &CancellationToken,
) -> Event {
    let latest = Instant::now() + Heartbeat::INTERVAL;
    let next = [state.table.next_deadline(), state.renewals.next_due()];
    let wake = next.into_iter().flatten().fold(latest, Instant::min);
    let State { orders, replies, .. } = &mut **state;
    tokio::select! {
        biased;
        () = stop.cancelled() => Event::Stop,
        Some(progress) = started.next() => Event::Progress(progress),
        Some(reply) = replies.recv() => Event::Replied(reply),
        Some(order) = orders.recv() => Event::Ordered(order),
        () = tokio::time::sleep_until(wake) => Event::Tick,
    }
}

/// How the builder spells a slot of this shape; `None` for a shape that no site has.
fn site(shape: &[usize]) -> Option<String> {
    match shape {
        [features] => Some(format!("vector[{features}]")),
        [length, width] => Some(format!("sequence[{length}x{width}]")),
        [channels, height, width] => Some(format!("image[{channels}x{height}x{width}]")),
        _ => None,
    }
}

/// A request to be published.
struct Ask {
    request: RequestId,
    blueprint: BlueprintId,
    /// In the order of their names.
    attributes: Vec<(&'static str, String)>,
}

/// Publishes one request; false when the bus did not take it.
async fn publish(bus: &Bus, run: &RunId, ask: &Ask) -> bool {
    let message = Message::PrefetchRequest(KernelPrefetchRequest {
        request_id: ask.request.to_string(),
        blueprint_id: ask.blueprint.to_string(),
        training_run_id: run.to_string(),
        issued_at: Some(timestamp(now_unix_ms())),
    });
    // What the service does for this request, and its answer, go on with this trace.
    let stream_name = bus.config().streams.name(Stream::KernelRequests);
    let step = bus.tracer().begin("prefetch.request", SpanKind::Producer);
    let mut step = step.about_sending(stream_name);
    step.set("messaging.message.conversation_id", ask.request.as_str());
    step.set("kasmina.blueprint", ask.blueprint.as_str());
    let trace_id = step.context().map(TraceContext::trace_id);
    tracing::debug!(request = %ask.request, trace_id, "kernel asked for");
    let traceparent = step.traceparent();
    let outgoing = Outgoing {
        stream: Stream::KernelRequests,
        priority: MessagePriority::High,
        source: SOURCE,
        message: &message,
        traceparent: traceparent.as_deref(),
    };
    let attributes: Vec<(&str, &str)> =
        ask.attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let publishing = bus.send_with(outgoing, &attributes);
    match tokio::time::timeout(PUBLISH_TIMEOUT, publishing).await {
        Ok(Ok(outcome)) if outcome.is_accepted() => true,
        Ok(Ok(outcome)) => {
            step.fail("refused");
            tracing::warn!(request = %ask.request, ?outcome, "request for a kernel refused");
            false
        }
        Ok(Err(error)) => {
            step.fail(&error.to_string());
            tracing::warn!(request = %ask.request, error = &error as &dyn std::error::Error, "request for a kernel not published");
            false
        }
        Err(_) => {
            step.fail("timed out");
            false
        }
    }
}

async fn obtain(
    source: Source,
    order: FetchOrder,
    ready: KernelArtifactReady,
    beside: Beside,
    ordered: Instant,
) -> Result<FetchedKernel, FetchFailure> {
    let (prewarm_p50_ms, prewarm_p95_ms) = (ready.prewarm_p50_ms, ready.prewarm_p95_ms);
    let execution = beside.execution();
    let obtained = source.obtain(&order, &ready, beside).await?;
    Ok(FetchedKernel {
        blueprint: order.blueprint,
        digest: obtained.kernel.digest(),
        path: obtained.path,
        latency: ordered.elapsed(),
        prewarm_p50_ms,
        prewarm_p95_ms,
        execution,
        kernel: Arc::new(obtained.kernel),
        in_use: InUse::default(),
    })
}

const fn outcome(failure: &FetchFailure) -> FetchOutcome {
    match failure {
        FetchFailure::TimedOut => FetchOutcome::TimedOut,
        FetchFailure::Quarantined(_) => FetchOutcome::Quarantined,
        FetchFailure::GuardMismatch
        | FetchFailure::IncompatibleSite
        | FetchFailure::IncompatibleInput(_)
        | FetchFailure::OpenFailed { .. }
        | FetchFailure::Untrusted { .. }
        | FetchFailure::BlueprintMismatch => FetchOutcome::Unfit,
        FetchFailure::MissingArtifact
        | FetchFailure::ArtifactNotFound
        | FetchFailure::Unreadable
        | FetchFailure::DownloadFailed { .. }
        | FetchFailure::ChecksumMismatch
        | FetchFailure::Unavailable
        | FetchFailure::Compiling { .. }
        | FetchFailure::Refused(_)
        | FetchFailure::PublishRefused
        | FetchFailure::Cancelled => FetchOutcome::Error,
    }
}

//! The worker `weatherlight.otlp`: collects spans into batches, reads the registry at intervals, and
//! sends both.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oona::{FinishedSpan, Heartbeat, SpanKind, SpanValue};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::exposition::{self, Moments};
use super::metrics::Signal;
use super::post::{PostError, post};
use super::{Otlp, wire};

/// Spans of one request.
const BATCH_LEN_MAX: usize = 512;
/// How long a span may wait for others.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// How often one batch is offered.
const ATTEMPTS_MAX: u32 = 6;
/// The pause after the first failure; doubled by each further one, with full jitter.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// What the end of the service gives the last requests.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The worker's state.
pub(super) struct Worker {
    otlp: Otlp,
    heartbeat: Heartbeat,
    batch: Vec<FinishedSpan>,
    /// When the batch is sent, however small it is.
    send_at: Instant,
    /// How often this batch has failed.
    attempts: u32,
    metrics_at: Instant,
    /// Told when it changes, and not for every request.
    is_failing: bool,
}

enum Event {
    Stop,
    Collected,
    SendSpans,
    SendMetrics,
    Tick,
}

impl Worker {
    pub(super) fn new(otlp: Otlp, heartbeat: Heartbeat) -> Self {
        let now = Instant::now();
        let metrics_at = now + otlp.config.metric_interval;
        Self {
            otlp,
            heartbeat,
            batch: Vec::new(),
            send_at: now,
            attempts: 0,
            metrics_at,
            is_failing: false,
        }
    }

    pub(super) async fn run(
        mut self,
        spans: &mut mpsc::Receiver<FinishedSpan>,
        stop: &CancellationToken,
    ) {
        loop {
            self.heartbeat.beat("collecting");
            match self.next_event(spans, stop).await {
                Event::Stop => break,
                Event::Collected | Event::Tick => {}
                // What is cut off by a stop is sent again below, as the same spans.
                Event::SendSpans => drop(stop.run_until_cancelled(self.send_spans()).await),
                Event::SendMetrics => drop(stop.run_until_cancelled(self.send_metrics()).await),
            }
        }
        self.flush(spans).await;
    }

    /// Waits for the next event. Only receives, so losing the race loses nothing.
    async fn next_event(
        &mut self,
        spans: &mut mpsc::Receiver<FinishedSpan>,
        stop: &CancellationToken,
    ) -> Event {
        let room = BATCH_LEN_MAX - self.batch.len();
        let was_empty = self.batch.is_empty();
        let send_at = match (self.attempts, room) {
            (0, 0) => Instant::now(),
            _ => self.send_at,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            () = tokio::time::sleep_until(send_at), if !was_empty => Event::SendSpans,
            () = tokio::time::sleep_until(self.metrics_at) => Event::SendMetrics,
            1.. = spans.recv_many(&mut self.batch, room), if room > 0 => {
                if was_empty {
                    self.send_at = Instant::now() + BATCH_DELAY;
                }
                Event::Collected
            }
            () = tokio::time::sleep(Heartbeat::INTERVAL) => Event::Tick,
        }
    }

    /// Sends the batch. It stays when the collector could not take it, until its attempts are used up.
    async fn send_spans(&mut self) {
        let body = traces(&self.otlp, &self.batch).encode_to_vec();
        let count = self.batch.len() as u64;
        let outcome = self.post(Signal::Traces, "/v1/traces", body, count).await;
        let Err(error) = outcome else {
            self.batch.clear();
            self.attempts = 0;
            return;
        };
        self.attempts += 1;
        if error.is_retryable() && self.attempts < ATTEMPTS_MAX {
            self.send_at = Instant::now() + pause(self.attempts, error.retry_after());
            return;
        }
        self.otlp.metrics.dropped(Signal::Traces).inc_by(count);
        self.batch.clear();
        self.attempts = 0;
    }

    /// Sends what the registry shows. A request that fails is not repeated: the next one has the same
    /// counters, further on.
    async fn send_metrics(&mut self) {
        self.metrics_at = Instant::now() + self.otlp.config.metric_interval;
        let (body, points) = metrics(&self.otlp);
        if points > 0 && self.post(Signal::Metrics, "/v1/metrics", body, points).await.is_err() {
            self.otlp.metrics.dropped(Signal::Metrics).inc_by(points);
        }
    }

    async fn post(
        &mut self,
        signal: Signal,
        path: &str,
        body: Vec<u8>,
        count: u64,
    ) -> Result<(), PostError> {
        let posting = post(&self.otlp.config, path, body);
        let outcome = self.heartbeat.during("sending", posting).await;
        let metrics = &self.otlp.metrics;
        match outcome {
            Ok(rejected) => {
                metrics.sent(signal).inc_by(count.saturating_sub(rejected));
                metrics.dropped(signal).inc_by(rejected);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the telemetry collector takes what is sent again");
                }
                Ok(())
            }
            Err(error) => {
                metrics.failures(signal).inc();
                if !std::mem::replace(&mut self.is_failing, true) {
                    let endpoint = &self.otlp.config.endpoint;
                    tracing::warn!(
                        host = endpoint.host,
                        port = endpoint.port,
                        error = &error as &dyn std::error::Error,
                        "telemetry does not reach the collector; it is tried again, and what finds no room is dropped"
                    );
                }
                Err(error)
            }
        }
    }

    /// Sends what is left, and the last state of the counters, without a second attempt.
    async fn flush(&mut self, spans: &mut mpsc::Receiver<FinishedSpan>) {
        self.heartbeat.beat("flushing");
        let heartbeat = self.heartbeat.clone();
        let flushing = async {
            loop {
                while self.batch.len() < BATCH_LEN_MAX
                    && let Ok(span) = spans.try_recv()
                {
                    self.batch.push(span);
                }
                if self.batch.is_empty() {
                    break;
                }
                self.attempts = ATTEMPTS_MAX;
                self.send_spans().await;
                if self.is_failing {
                    break;
                }
            }
            if !self.is_failing {
                self.send_metrics().await;
            }
        };
        let in_time = heartbeat.during("flushing", tokio::time::timeout(FLUSH_TIMEOUT, flushing));
        let in_time = in_time.await.is_ok();
        let mut left = self.batch.len() as u64;
        while spans.try_recv().is_ok() {
            left += 1;
        }
        self.otlp.metrics.dropped(Signal::Traces).inc_by(left);
        if left > 0 || !in_time {
            tracing::warn!(spans = left, "the collector did not take the last telemetry in time");
        }
    }
}

/// Full jitter over a doubling pause; never shorter than what the collector asked for.
fn pause(attempts: u32, asked: Option<Duration>) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(10));
    let pause = doubled.min(BACKOFF_MAX).mul_f64(rand::random_range(0.5..=1.0));
    pause.max(asked.unwrap_or_default())
}

pub(super) fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn scope() -> Option<wire::Scope> {
    let (name, version) = ("weatherlight".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Some(wire::Scope { name, version })
}

fn resource(otlp: &Otlp) -> Option<wire::Resource> {
    Some(wire::Resource { attributes: otlp.config.resource.clone() })
}

fn traces(otlp: &Otlp, spans: &[FinishedSpan]) -> wire::Traces {
    let spans = spans.iter().map(span).collect();
    let scope_spans = vec![wire::ScopeSpans { scope: scope(), spans }];
    wire::Traces {
        resource_spans: vec![wire::ResourceSpans { resource: resource(otlp), scope_spans }],
    }
}

fn span(span: &FinishedSpan) -> wire::Span {
    let attribute = |(name, value): &(&'static str, SpanValue)| {
        let value = match value {
            SpanValue::Text(text) => wire::Any::Text(text.clone()),
            SpanValue::Integer(number) => wire::Any::Integer(*number),
            SpanValue::Number(number) => wire::Any::Number(*number),
        };
        wire::KeyValue::new(*name, value)
    };
    wire::Span {
        trace_id: span.context.trace_bytes().to_vec(),
        span_id: span.context.span_bytes().to_vec(),
        parent_span_id: span.parent.map_or_else(Vec::new, |parent| parent.span_bytes().to_vec()),
        name: span.name.to_owned(),
        kind: match span.kind {
            SpanKind::Internal => 1,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
        start_time_unix_nano: span.began_unix_ns,
        end_time_unix_nano: span.ended_unix_ns,
        attributes: span.attributes.iter().map(attribute).collect(),
        status: span.failure.clone().map(|message| wire::Status { message, code: 2 }),
        flags: 1,
    }
}

/// The registry as a request, and how many points it has.
fn metrics(otlp: &Otlp) -> (Vec<u8>, u64) {
    let mut text = String::new();
    // It writes into memory; a metric that cannot be encoded is `/metrics`'s to report.
    let _ = prometheus_client::encoding::text::encode(&mut text, &otlp.registry);
    let moments = Moments { start_unix_ns: otlp.start_unix_ns, now_unix_ns: now_unix_ns() };
    let metrics = exposition::metrics(&text, moments);
    let points = exposition::points(&metrics);
    let scope_metrics = vec![wire::ScopeMetrics { scope: scope(), metrics }];
    let message = wire::Metrics {
        resource_metrics: vec![wire::ResourceMetrics { resource: resource(otlp), scope_metrics }],
    };
    (message.encode_to_vec(), points)
}

//! Traces and metrics to an OpenTelemetry collector, by OTLP over HTTP, when an endpoint is set;
//! when none is, nothing of this exists.
//!
//! Reading order: [`Otlp`] (what the service holds), `worker` (collects and sends), `exposition` (from
//! the registry's text to metrics), `post` (one request), `wire` (the messages), `config`.

#[cfg(test)]
mod collector;
mod config;
mod exposition;
mod metrics;
mod post;
#[cfg(test)]
mod tests;
pub mod wire;
mod worker;

use std::sync::Arc;

use oona::{FinishedSpan, Heartbeat, Tracer};
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

pub use config::OtlpFault;
pub use metrics::OtlpMetrics;

use config::Config;
use metrics::Signal;
use worker::Worker;

use crate::settings::EsperSettings;

/// Spans that may wait to be sent; some 500 bytes each.
const SPANS_LEN_MAX: usize = 4096;

/// The way to a collector. It outlives a run of the worker, so that a restart loses no span that
/// waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Otlp {
    config: Arc<Config>,
    tracer: Tracer,
    spans: Arc<Mutex<mpsc::Receiver<FinishedSpan>>>,
    registry: Arc<Registry>,
    metrics: OtlpMetrics,
    start_unix_ns: u64,
}

impl Otlp {
    /// Opens the way that the settings describe, if they do. Connects to nothing yet.
    ///
    /// # Errors
    /// [`OtlpFault`] when a setting cannot be used.
    pub fn open(
        settings: &EsperSettings,
        registry: &Arc<Registry>,
        metrics: &OtlpMetrics,
    ) -> Result<Option<Self>, OtlpFault> {
        let Some(config) = Config::read(settings)? else { return Ok(None) };
        let dropped = metrics.dropped(Signal::Traces);
        let (tracer, spans) = Tracer::recording(config.ratio, SPANS_LEN_MAX, dropped);
        Ok(Some(Self {
            config: Arc::new(config),
            tracer,
            spans: Arc::new(Mutex::new(spans)),
            registry: Arc::clone(registry),
            metrics: metrics.clone(),
            start_unix_ns: worker::now_unix_ns(),
        }))
    }

    /// Begins the spans that are sent.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends until `stop`, then what is left, within its share of the drain. An unreachable collector
    /// is no failure: it is tried again, and what finds no room meanwhile is dropped and counted.
    pub async fn run(self, stop: CancellationToken, heartbeat: Heartbeat) -> Result<(), OtlpFault> {
        let spans = Arc::clone(&self.spans);
        // Free unless the run before has not quite ended.
        let mut spans = tokio::select! {
            spans = heartbeat.during("taking over", spans.lock()) => spans,
            () = stop.cancelled() => return Ok(()),
        };
        Worker::new(self, heartbeat).run(&mut spans, &stop).await;
        Ok(())
    }
}

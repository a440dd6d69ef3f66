//! Every crate's metrics, registered before anything is built, and the foundation's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leyline::wire::MetricPoint;
use nissa::{Health, WorkerState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::logging::Logs;
use crate::otlp::OtlpMetrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    /// A name of the boot table, so there are as many values as rows.
    worker: String,
}

/// What the foundation shows of itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OwnMetrics {
    running: Family<WorkerLabels, Gauge>,
    restarts: Family<WorkerLabels, Counter>,
    backoff: Family<WorkerLabels, Gauge<f64, AtomicU64>>,
    uptime: Gauge<f64, AtomicU64>,
    ready: Gauge,
    /// The way to a collector.
    pub(super) otlp: OtlpMetrics,
}

impl OwnMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            running: Family::default(),
            restarts: Family::default(),
            backoff: Family::default(),
            uptime: Gauge::default(),
            ready: Gauge::default(),
            otlp: OtlpMetrics::default(),
        };
        let m = metrics.clone();
        let own = registry.sub_registry_with_prefix("weatherlight");
        own.register("worker_running", "Whether the worker runs", m.running);
        own.register("worker_restarts", "Starts of the worker after the first", m.restarts);
        own.register("worker_backoff_seconds", "Time until its next start", m.backoff);
        own.register("uptime_seconds", "Time since the service began", m.uptime);
        own.register("ready", "Whether the service is ready", m.ready);
        // A process without a log of its own (a test) counts nothing.
        Logs::current().map(|logs| logs.metrics()).unwrap_or_default().register(own);
        m.otlp.register(own);
        metrics
    }

    /// Copies the supervisor's picture.
    pub(super) fn show(&self, health: &Health) {
        self.uptime.set(health.uptime_s);
        self.ready.set(i64::from(health.ready));
        for worker in &health.workers {
            let labels = WorkerLabels { worker: worker.name.clone() };
            let runs = worker.state == WorkerState::Running;
            self.running.get_or_create(&labels).set(i64::from(runs));
            self.restarts.get_or_create(&labels).inner().store(worker.restarts, Ordering::Relaxed);
            self.backoff.get_or_create(&labels).set(worker.backoff_s);
        }
    }
}

/// Every crate's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AllMetrics {
    /// The foundation's own.
    pub own: OwnMetrics,
    /// The bus.
    pub oona: oona::Metrics,
    /// The library.
    pub urza: urza::Metrics,
    /// The forge.
    pub tezzeret: tezzeret::Metrics,
    /// The seed manager.
    pub kasmina: kasmina::Metrics,
    /// The policy.
    pub tamiyo: tamiyo::Metrics,
    /// Training in this process.
    pub tolaria: tolaria::Metrics,
    /// Observability.
    pub nissa: nissa::Metrics,
}

impl AllMetrics {
    /// Registers everything, in a registry that is read-only from then on.
    pub fn register() -> (Self, Arc<Registry>) {
        let mut registry = Registry::default();
        let metrics = Self {
            own: OwnMetrics::register(&mut registry),
            oona: oona::Metrics::register(&mut registry),
            urza: urza::Metrics::register(&mut registry),
            tezzeret: tezzeret::Metrics::register(&mut registry),
            kasmina: kasmina::Metrics::register(&mut registry),
            tamiyo: tamiyo::Metrics::register(&mut registry),
            tolaria: tolaria::Metrics::register(&mut registry),
            nissa: nissa::Metrics::register(&mut registry),
        };
        (metrics, Arc::new(registry))
    }

    /// What the subsystems of this process count, under the dotted names of the telemetry packet.
    pub(super) fn points(&self, bus: &oona::Bus) -> Vec<MetricPoint> {
        let mut points = self.urza.snapshot();
        points.extend(self.tezzeret.snapshot());
        points.extend(self.tamiyo.points());
        let counted = bus.points().into_iter();
        points.extend(counted.map(|(name, value)| {
            let unit = if name.ends_with("_state") { "state" } else { "count" };
            super::telemetry::point(name, value, unit)
        }));
        points
    }
}

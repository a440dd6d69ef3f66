//! What this crate counts. Registered before anything is built, and passed in.

use std::sync::atomic::AtomicU64;

use leyline::Stage;
use leyline::wire::MetricPoint;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum FetchOutcome {
    /// A kernel came.
    Ready,
    /// The library answered with an error.
    Error,
    /// Nothing came in time.
    TimedOut,
    /// Something came that may not be attached.
    Unfit,
    /// It was tried in quarantine and stays there.
    Quarantined,
}

/// What became of a lease's renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum RenewalOutcome {
    /// The library keeps the kernel.
    Renewed,
    /// It does not have it, or could not tell.
    Failed,
}

/// Why a message of the answer streams was not for a pending request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Ignored {
    /// An answer to somebody else's request, or to one that is done.
    Foreign,
    /// A catalogue update on the ready stream.
    CatalogUpdate,
    /// Something else.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: StageLabel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct StageLabel(Stage);

impl EncodeLabelValue for StageLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.name(), encoder)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FetchLabels {
    outcome: FetchOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RenewalLabels {
    outcome: RenewalOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: VerdictLabel,
}

/// `sound`, or one of [`kernel::quarantine::Finding::REASONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct VerdictLabel(&'static str);

impl EncodeLabelValue for VerdictLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IgnoredLabels {
    reason: Ignored,
}

/// The counters of this crate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    seeds: Family<StageLabels, Gauge>,
    fetches: Family<FetchLabels, Counter>,
    ignored: Family<IgnoredLabels, Counter>,
    verdicts: Family<VerdictLabels, Counter>,
    renewals: Family<RenewalLabels, Counter>,
    pub(crate) leased: Gauge,
    pub(crate) fetch_seconds: Histogram,
    pub(crate) fetch_last_ms: Gauge<f64, AtomicU64>,
    pub(crate) fetch_retries: Counter,
    pub(crate) fetch_pending: Gauge,
    pub(crate) commands: Counter,
    pub(crate) commands_rejected: Counter,
    pub(crate) violations: Counter,
    pub(crate) gate_failures: Counter,
    pub(crate) results_undelivered: Counter,
    pub(crate) interpreter_fallbacks: Counter,
}

impl Metrics {
    /// Registers every metric of this crate.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            seeds: Family::default(),
            fetches: Family::default(),
            ignored: Family::default(),
            verdicts: Family::default(),
            renewals: Family::default(),
            leased: Gauge::default(),
            fetch_seconds: Histogram::new(exponential_buckets(100e-6, 3.0, 12)),
            fetch_last_ms: Gauge::default(),
            fetch_retries: Counter::default(),
            fetch_pending: Gauge::default(),
            commands: Counter::default(),
            commands_rejected: Counter::default(),
            violations: Counter::default(),
            gate_failures: Counter::default(),
            results_undelivered: Counter::default(),
            interpreter_fallbacks: Counter::default(),
        };
        metrics.describe(registry.sub_registry_with_prefix("kasmina"));
        metrics
    }

    fn describe(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("seeds", "Seeds by stage", m.seeds);
        registry.register("prefetch", "Fetches of kernels that ended, by outcome", m.fetches);
        registry.register(
            "prefetch_ignored",
            "Answers that were for no pending request",
            m.ignored,
        );
        registry.register(
            "quarantine_verdicts",
            "Kernels tried in quarantine, by what was found first",
            m.verdicts,
        );
        registry.register(
            "lease_renewals",
            "Leases of held kernels asked for again, by outcome",
            m.renewals,
        );
        registry.register("leased", "Kernels held under a lease", m.leased);
        registry.register("kernel_fetch_seconds", "Order to kernel in hand", m.fetch_seconds);
        registry.register(
            "kernel_fetch_last_milliseconds",
            "The same, of the last",
            m.fetch_last_ms,
        );
        registry.register("prefetch_retries", "Requests sent again", m.fetch_retries);
        registry.register("prefetch_pending", "Requests without an answer yet", m.fetch_pending);
        registry.register("commands", "Commands received", m.commands);
        registry.register(
            "commands_rejected",
            "Commands that failed verification",
            m.commands_rejected,
        );
        registry.register(
            "isolation_violations",
            "Gradients of seeds that reached the host",
            m.violations,
        );
        registry.register("gate_failures", "Seeds that a gate turned back", m.gate_failures);
        registry.register(
            "prefetch_undelivered",
            "Results that the training thread did not take",
            m.results_undelivered,
        );
        registry.register(
            "interpreter_fallbacks",
            "Kernels attached whose forge found that their plan is not their graph: the interpreter runs them",
            m.interpreter_fallbacks,
        );
    }

    pub(crate) fn fetched(&self, outcome: FetchOutcome) {
        self.fetches.get_or_create(&FetchLabels { outcome }).inc();
    }

    pub(crate) fn renewed(&self, outcome: RenewalOutcome) {
        self.renewals.get_or_create(&RenewalLabels { outcome }).inc();
    }

    pub(crate) fn ignored(&self, reason: Ignored) {
        self.ignored.get_or_create(&IgnoredLabels { reason }).inc();
    }

    pub(crate) fn quarantined(&self, verdict: &'static str) {
        self.verdicts.get_or_create(&VerdictLabels { verdict: VerdictLabel(verdict) }).inc();
    }

    /// Kernels tried in quarantine with this verdict: `sound`, or the reason of a finding.
    pub fn quarantined_total(&self, verdict: &'static str) -> u64 {
        self.verdicts.get_or_create(&VerdictLabels { verdict: VerdictLabel(verdict) }).get()
    }

    /// Kernels attached that the interpreter runs.
    pub fn interpreted_total(&self) -> u64 {
        self.interpreter_fallbacks.get()
    }

    /// Leases that were renewed.
    pub fn renewed_total(&self) -> u64 {
        let outcome = RenewalOutcome::Renewed;
        self.renewals.get_or_create(&RenewalLabels { outcome }).get()
    }

    /// Kernels held under a lease.
    pub fn leased(&self) -> i64 {
        self.leased.get()
    }

    /// Answers that were not for this trainer's pending requests.
    pub fn foreign_total(&self) -> u64 {
        self.ignored.get_or_create(&IgnoredLabels { reason: Ignored::Foreign }).get()
    }

    pub(crate) fn stages(&self, count: impl Fn(Stage) -> usize) {
        for stage in Stage::ALL {
            let labels = StageLabels { stage: StageLabel(stage) };
            self.seeds.get_or_create(&labels).set(count(stage) as i64);
        }
    }
}

/// A point of a telemetry packet.
pub(crate) fn point(name: &str, value: f64, unit: &str) -> MetricPoint {
    MetricPoint { name: name.to_owned(), value, unit: unit.to_owned(), ..MetricPoint::default() }
}

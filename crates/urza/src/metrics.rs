//! What the library and its workers count. Registered before anything is built, and passed in.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use leyline::wire::MetricPoint;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::collect::RemovalReason;

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Lookup {
    /// Out of memory.
    Hit,
    /// Out of the catalogue, or not there.
    Miss,
    /// The cached record was older than the TTL.
    Expired,
    /// The store did not answer.
    Error,
    /// The store did not answer; the cached record stood in.
    Conservative,
}

/// How a request for a kernel was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Answered {
    /// With a kernel.
    Hit,
    /// With `missing_artifact`.
    Miss,
    /// With another error.
    Error,
    /// With `compiling`: the build goes on.
    Compiling,
    /// With `deadline_exceeded`.
    Late,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    outcome: Lookup,
}

/// Why an artifact was removed, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Removed {
    Quarantined,
    Superseded,
    Budget,
    Orphan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemovedLabels {
    reason: Removed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    outcome: Answered,
}

/// The counters of this crate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    lookups: Family<LookupLabels, Counter>,
    lookup_seconds: Histogram,
    lookup_last_ms: Gauge<f64, AtomicU64>,
    pub(crate) slow_queries: Counter,
    pub(crate) cache_records: Gauge,
    pub(crate) evictions: Counter,
    pub(crate) integrity_failures: Counter,
    pub(crate) verifications: Counter,
    pub(crate) stored: Counter,
    pub(crate) orphans: Counter,
    pub(crate) leased: Gauge,
    removals: Family<RemovedLabels, Counter>,
    removed_bytes: Family<RemovedLabels, Counter>,
    answers: Family<AnswerLabels, Counter>,
    answer_seconds: Histogram,
    answer_last_ms: Gauge<f64, AtomicU64>,
    pub(crate) unsent: Counter,
    pub(crate) foreign: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) queued: Gauge,
    pub(crate) coalesced: Counter,
    pub(crate) leases_written: Counter,
    pub(crate) leases_unwritten: Gauge,
}

impl Metrics {
    /// Registers every metric of this crate.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(50e-6, 3.0, 12));
        let metrics = Self {
            lookups: Family::default(),
            lookup_seconds: seconds(),
            lookup_last_ms: Gauge::default(),
            slow_queries: Counter::default(),
            cache_records: Gauge::default(),
            evictions: Counter::default(),
            integrity_failures: Counter::default(),
            verifications: Counter::default(),
            stored: Counter::default(),
            orphans: Counter::default(),
            leased: Gauge::default(),
            removals: Family::default(),
            removed_bytes: Family::default(),
            answers: Family::default(),
            answer_seconds: seconds(),
            answer_last_ms: Gauge::default(),
            unsent: Counter::default(),
            foreign: Counter::default(),
            waiting: Gauge::default(),
            queued: Gauge::default(),
            coalesced: Counter::default(),
            leases_written: Counter::default(),
            leases_unwritten: Gauge::default(),
        };
        metrics.describe(registry);
        metrics
    }

    fn describe(&self, registry: &mut Registry) {
        let m = self.clone();
        let library = registry.sub_registry_with_prefix("urza_library");
        library.register("lookups", "Lookups by outcome", m.lookups);
        library.register("lookup_seconds", "Time of a lookup", m.lookup_seconds);
        library.register("lookup_last_milliseconds", "Time of the last lookup", m.lookup_last_ms);
        library.register("slow_queries", "Queries slower than 250 ms", m.slow_queries);
        library.register("cache_records", "Records in memory", m.cache_records);
        library.register("evictions", "Records that left memory for want of room", m.evictions);
        library.register(
            "integrity_failures",
            "Artifacts found missing or corrupt, and quarantined",
            m.integrity_failures,
        );
        library.register("verifications", "Artifacts hashed", m.verifications);
        library.register("stored", "Artifacts stored", m.stored);
        library.register("orphans_removed", "Abandoned temporary files removed", m.orphans);
        library.register("leased", "Artifacts under a lease, looked at once a minute", m.leased);
        library.register("removed", "Artifacts removed, by reason", m.removals);
        library.register("removed_bytes", "Bytes of the artifacts removed", m.removed_bytes);
        let prefetch = registry.sub_registry_with_prefix("urza_prefetch");
        prefetch.register("answers", "Requests answered, by outcome", m.answers);
        prefetch.register("seconds", "Receipt of a request to its answer", m.answer_seconds);
        prefetch.register("last_milliseconds", "The same, of the last one", m.answer_last_ms);
        prefetch.register("unsent", "Answers that the bus refused; the request stays", m.unsent);
        prefetch.register("foreign", "Messages on the stream that are no request", m.foreign);
        prefetch.register("waiting", "Requests that wait for a look or a build", m.waiting);
        prefetch.register("queued", "Requests that wait for their turn", m.queued);
        prefetch.register(
            "coalesced",
            "Requests that shared the look or the build of an equal one",
            m.coalesced,
        );
        prefetch.register(
            "leases_written",
            "Leases of training runs taken or renewed",
            m.leases_written,
        );
        prefetch.register(
            "leases_unwritten",
            "Leases of training runs that wait to be written",
            m.leases_unwritten,
        );
    }

    /// Counts a lookup and how long it took.
    pub(crate) fn looked_up(&self, outcome: Lookup, took: Duration) {
        self.lookups.get_or_create(&LookupLabels { outcome }).inc();
        self.lookup_seconds.observe(took.as_secs_f64());
        self.lookup_last_ms.set(took.as_secs_f64() * 1e3);
    }

    /// Counts an artifact that was removed.
    pub(crate) fn removed(&self, reason: RemovalReason, bytes: u64) {
        let reason = match reason {
            RemovalReason::Quarantined => Removed::Quarantined,
            RemovalReason::Superseded => Removed::Superseded,
            RemovalReason::Budget => Removed::Budget,
            RemovalReason::Orphan => Removed::Orphan,
        };
        self.removals.get_or_create(&RemovedLabels { reason }).inc();
        self.removed_bytes.get_or_create(&RemovedLabels { reason }).inc_by(bytes);
    }

    /// Counts a request that was answered.
    pub(crate) fn answered(&self, outcome: Answered, took: Duration) {
        self.answers.get_or_create(&AnswerLabels { outcome }).inc();
        self.answer_seconds.observe(took.as_secs_f64());
        self.answer_last_ms.set(took.as_secs_f64() * 1e3);
    }

    fn lookups(&self, outcome: Lookup) -> f64 {
        self.lookups.get_or_create(&LookupLabels { outcome }).get() as f64
    }

    fn answers(&self, outcome: Answered) -> f64 {
        self.answers.get_or_create(&AnswerLabels { outcome }).get() as f64
    }

    /// The values under the names that telemetry packets carry.
    pub fn snapshot(&self) -> Vec<MetricPoint> {
        let point = |name: &str, value: f64, unit: &str| MetricPoint {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            ..MetricPoint::default()
        };
        let conservative = self.lookups(Lookup::Conservative);
        vec![
            point("urza.prefetch.hits", self.answers(Answered::Hit), "count"),
            point("urza.prefetch.misses", self.answers(Answered::Miss), "count"),
            point(
                "urza.prefetch.errors",
                self.answers(Answered::Error) + self.answers(Answered::Late),
                "count",
            ),
            point("urza.prefetch.compiling", self.answers(Answered::Compiling), "count"),
            point("urza.prefetch.latency_ms", self.answer_last_ms.get(), "ms"),
            point("urza.library.cache_hits", self.lookups(Lookup::Hit) + conservative, "count"),
            point("urza.library.cache_misses", self.lookups(Lookup::Miss), "count"),
            point("urza.library.cache_errors", self.lookups(Lookup::Error), "count"),
            point("urza.library.cache_expired", self.lookups(Lookup::Expired), "count"),
            point("urza.library.cache_size", self.cache_records.get() as f64, "count"),
            point("urza.library.lookup_latency_ms", self.lookup_last_ms.get(), "ms"),
            point("urza.library.evictions", self.evictions.get() as f64, "count"),
            point("urza.library.integrity_failures", self.integrity_failures.get() as f64, "count"),
            point("urza.library.slow_queries", self.slow_queries.get() as f64, "count"),
        ]
    }
}

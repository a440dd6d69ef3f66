//! What the policy and its workers count. Registered before anything is built, and passed in. Each
//! happening is counted and logged by one function here.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use leyline::wire::MetricPoint;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::annotate::point;
use crate::decision::Decision;
use crate::error::{Rejection, StoreError, UpdateRefused};
use crate::live::Identity;
use crate::reason::Reason;
use crate::risk::Action;

macro_rules! label {
    ($($kind:ty),+) => {
        $(impl EncodeLabelValue for $kind {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                encoder.write_str(self.name())
            }
        })+
    };
}

label!(Reason, Action, Rejection, Accepted, Dropped);

impl Action {
    /// Lower-case name, for labels and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Germinate => "germinate",
            Self::Fossilize => "fossilize",
            Self::Cull => "cull",
            Self::Optimizer => "optimizer",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// What an accepted update did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Accepted {
    /// Put a policy in force.
    Policy,
    /// Changed the label.
    Label,
    /// Nothing: it was in force already.
    Again,
}

impl Accepted {
    const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Label => "label",
            Self::Again => "again",
        }
    }
}

/// Why a field report left memory unpublished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dropped {
    /// The queue was full; it is lost.
    QueueFull,
    /// Every retry failed; it is on disk and is tried again after a restart.
    RetriesUsedUp,
    /// The bus will never take it; it is on disk.
    Unsendable,
}

impl Dropped {
    const ALL: [Self; 3] = [Self::QueueFull, Self::RetriesUsedUp, Self::Unsendable];

    const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::RetriesUsedUp => "retries_used_up",
            Self::Unsendable => "unsendable",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    action: Action,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AcceptedLabels {
    kind: Accepted,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    reason: Rejection,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DroppedLabels {
    reason: Dropped,
}

/// The counters of this crate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    decisions: Family<DecisionLabels, Counter>,
    decision_seconds: Histogram,
    conservative: Gauge,
    risk_score: Gauge<f64, AtomicU64>,
    accepted: Family<AcceptedLabels, Counter>,
    rejected: Family<RejectionLabels, Counter>,
    sequence: Gauge,
    stored: Counter,
    unsaved: Counter,
    published: Counter,
    retries: Counter,
    dropped: Family<DroppedLabels, Counter>,
    pending: Gauge,
    torn_bytes: Counter,
}

impl Metrics {
    /// Registers every metric under its full name.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            decisions: Family::default(),
            decision_seconds: Histogram::new(exponential_buckets(10e-6, 2.0, 14)),
            conservative: Gauge::default(),
            risk_score: Gauge::default(),
            accepted: Family::default(),
            rejected: Family::default(),
            sequence: Gauge::default(),
            stored: Counter::default(),
            unsaved: Counter::default(),
            published: Counter::default(),
            retries: Counter::default(),
            dropped: Family::default(),
            pending: Gauge::default(),
            torn_bytes: Counter::default(),
        };
        metrics.describe(registry.sub_registry_with_prefix("tamiyo"));
        metrics
    }

    fn describe(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("decisions", "Decisions by what they do and why", m.decisions);
        registry.register("decision_seconds", "Time of one decision", m.decision_seconds);
        registry.register("conservative_mode", "1 while nothing may grow", m.conservative);
        registry.register("risk_score", "Expected risk of the last decision, 0 to 1", m.risk_score);
        registry.register("policy_updates_accepted", "Policy updates taken", m.accepted);
        registry.register("policy_updates_rejected", "Policy updates refused", m.rejected);
        registry.register("policy_sequence", "Sequence of the policy in force", m.sequence);
        registry.register("field_reports_stored", "Field reports written to disk", m.stored);
        registry.register("field_reports_unsaved", "Field reports the disk refused", m.unsaved);
        registry.register("field_reports_published", "Field reports published", m.published);
        registry.register("field_reports_retries", "Publishes to be tried again", m.retries);
        registry.register("field_reports_dropped", "Field reports given up in memory", m.dropped);
        registry.register("field_reports_pending", "Field reports not yet published", m.pending);
        registry.register("field_reports_torn_bytes", "Bytes cut off after a crash", m.torn_bytes);
    }

    /// Metrics that nobody reads, for tests and one-shot commands.
    pub fn detached() -> Self {
        Self::register(&mut Registry::default())
    }

    /// Counts a decision and the time it took. The decision itself counts nothing.
    pub fn decided(&self, decision: &Decision, took: Duration) {
        let labels = DecisionLabels { action: decision.action, reason: decision.reason };
        self.decisions.get_or_create(&labels).inc();
        self.decision_seconds.observe(took.as_secs_f64());
        self.conservative.set(decision.conservative.into());
        self.risk_score.set(decision.risk_score.into());
    }

    /// Policy updates refused for a reason since the start.
    pub fn rejected_total(&self, reason: Rejection) -> u64 {
        self.rejected.get_or_create(&RejectionLabels { reason }).get()
    }

    /// Field reports published since the start.
    pub fn published_total(&self) -> u64 {
        self.published.get()
    }

    /// Figures of the field reports under the dotted names other programs read.
    pub fn points(&self) -> Vec<MetricPoint> {
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let number = |count: u64| count as f64;
        let count = |reason| self.dropped.get_or_create(&DroppedLabels { reason }).get();
        let dropped = Dropped::ALL.into_iter().map(count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a queue is far shorter than 2^52")]
        let pending = self.pending.get() as f64;
        vec![
            point("tamiyo.field_reports.published_total", number(self.published.get()), "count"),
            point("tamiyo.field_reports.retries_total", number(self.retries.get()), "count"),
            point("tamiyo.field_reports.dropped_total", number(dropped), "count"),
            point("tamiyo.field_reports.pending_total", pending, "count"),
        ]
    }

    pub(crate) fn policy_in_force(&self, identity: &Identity) {
        self.sequence.set(i64::try_from(identity.sequence).unwrap_or(i64::MAX));
    }

    pub(crate) fn update_accepted(&self, kind: Accepted, identity: &Identity) {
        self.accepted.get_or_create(&AcceptedLabels { kind }).inc();
        self.policy_in_force(identity);
        let Identity { version, policy_id, sequence, .. } = identity;
        tracing::info!(kind = kind.name(), version, policy_id, sequence, "policy update taken");
    }

    pub(crate) fn update_rejected(&self, refused: &UpdateRefused) {
        let reason = refused.rejection();
        self.rejected.get_or_create(&RejectionLabels { reason }).inc();
        tracing::warn!(reason = reason.name(), error = %refused, "policy_update_rejected");
    }

    pub(crate) fn reports_stored(&self, count: usize) {
        self.stored.inc_by(count as u64);
    }

    pub(crate) fn reports_unsaved(&self, count: usize, error: &StoreError) {
        self.unsaved.inc_by(count as u64);
        tracing::error!(
            count,
            error = error as &dyn std::error::Error,
            "field reports could not be stored; they are published all the same"
        );
    }

    pub(crate) fn report_published(&self) {
        self.published.inc();
    }

    pub(crate) fn report_retried(&self) {
        self.retries.inc();
    }

    pub(crate) fn report_dropped(&self, reason: Dropped, id: &str) {
        self.dropped.get_or_create(&DroppedLabels { reason }).inc();
        tracing::warn!(reason = reason.name(), report = id, "field report dropped");
    }

    pub(crate) fn reports_pending(&self, count: usize) {
        self.pending.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn reports_torn(&self, bytes: u64) {
        self.torn_bytes.inc_by(bytes);
        tracing::warn!(bytes, "the end of the field reports was torn by a crash and is cut off");
    }
}

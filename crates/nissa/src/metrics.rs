//! What nissa counts. Registered before anything is built, passed in, and the only place that
//! touches the registry. Counters are registered without `_total`; the encoder adds it.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::alerts::{Change, Route, RuleName};
use crate::labels::{Answer, Endpoint, Kind, Outcome, Provenance, Refusal, Source};

type Float = Gauge<f64, AtomicU64>;

/// One label set per label name: the value is an enum, or bounded by a setting.
macro_rules! label_sets {
    ($($name:ident { $($field:ident: $of:ty),+ })+) => {
        $(#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($field: $of),+ })+
    };
}

label_sets! {
    BySource { source: Source }
    ByPhase { phase: Source }
    ByOutcome { outcome: Outcome }
    ByFeature { feature: String }
    ByProvenance { provenance: Provenance }
    ByType { r#type: Kind }
    ByRule { rule: RuleName }
    ByChange { rule: RuleName, change: Change }
    ByRoute { route: Route }
    ByAnswer { endpoint: Endpoint, answer: Answer }
    ByRefusal { reason: Refusal }
}

/// Buckets of `nissa_ingest_latency_ms`, in milliseconds; older dashboards read these.
const INGEST_BUCKETS_MS: [f64; 9] = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0];

fn ingest_histogram() -> Histogram {
    Histogram::new(INGEST_BUCKETS_MS)
}

/// Handles of every metric of this crate. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    packets: Family<BySource, Counter>,
    states: Family<ByPhase, Counter>,
    runs: Counter,
    reports: Family<ByOutcome, Counter>,
    coverage: Float,
    coverage_by_type: Family<ByFeature, Float>,
    quarantine: Gauge,
    elevated_risk: Gauge,
    hazard_high: Family<ByProvenance, Counter>,
    hazard_critical: Family<ByProvenance, Counter>,
    reward: Float,
    iterations: Counter<f64, AtomicU64>,
    latency: Family<ByType, Histogram, fn() -> Histogram>,
    evicted: Gauge,
    alerts_active: Family<ByRule, Gauge>,
    alert_changes: Family<ByChange, Counter>,
    notifications: Family<ByRoute, Counter>,
    requests: Family<ByAnswer, Counter>,
    refused: Family<ByRefusal, Counter>,
    connections: Gauge,
    subscribers: Gauge,
}

impl Metrics {
    /// Registers every metric of this crate.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            packets: Family::default(),
            states: Family::default(),
            runs: Counter::default(),
            reports: Family::default(),
            coverage: Float::default(),
            coverage_by_type: Family::default(),
            quarantine: Gauge::default(),
            elevated_risk: Gauge::default(),
            hazard_high: Family::default(),
            hazard_critical: Family::default(),
            reward: Float::default(),
            iterations: Counter::default(),
            latency: Family::new_with_constructor(ingest_histogram),
            evicted: Gauge::default(),
            alerts_active: Family::default(),
            alert_changes: Family::default(),
            notifications: Family::default(),
            requests: Family::default(),
            refused: Family::default(),
            connections: Gauge::default(),
            subscribers: Gauge::default(),
        };
        metrics.register_contract(registry);
        metrics.register_own(registry);
        metrics
    }

    /// The names that existing dashboards read.
    fn register_contract(&self, to: &mut Registry) {
        to.register("esper_telemetry_packets", "Telemetry packets by sender", self.packets.clone());
        to.register(
            "esper_system_state_packets",
            "State packets of training runs by sender",
            self.states.clone(),
        );
        to.register(
            "esper_training_runs",
            "Training runs seen for the first time",
            self.runs.clone(),
        );
        to.register("esper_field_reports", "Field reports by outcome", self.reports.clone());
        to.register(
            "tamiyo_gnn_feature_coverage",
            "Share of its inputs that the policy last saw",
            self.coverage.clone(),
        );
        to.register(
            "tamiyo_gnn_feature_coverage_by_type",
            "The same, for the features named in the settings",
            self.coverage_by_type.clone(),
        );
        to.register(
            "tamiyo_bsds_quarantine_active",
            "Whether any policy reported a quarantined blueprint in the last 15 minutes",
            self.quarantine.clone(),
        );
        to.register(
            "tamiyo_bsds_elevated_risk",
            "Whether the blueprint last weighed is of elevated risk",
            self.elevated_risk.clone(),
        );
        to.register(
            "esper_tamiyo_bsds_hazard_high",
            "Hazard reports of the high band by provenance",
            self.hazard_high.clone(),
        );
        to.register(
            "esper_tamiyo_bsds_hazard_critical",
            "Hazard reports of the critical band by provenance",
            self.hazard_critical.clone(),
        );
        to.register(
            "esper_simic_training_reward",
            "Reward of the last offline policy iteration; may be negative",
            self.reward.clone(),
        );
        to.register(
            "esper_simic_training_iterations",
            "Offline policy iterations",
            self.iterations.clone(),
        );
        to.register(
            "nissa_ingest_latency_ms",
            "Milliseconds from receiving a message to having applied it",
            self.latency.clone(),
        );
    }

    /// What this crate adds.
    fn register_own(&self, to: &mut Registry) {
        to.register(
            "nissa_evicted_entries",
            "Entries pushed out of bounded state by newer ones so far",
            self.evicted.clone(),
        );
        to.register(
            "nissa_alerts_active",
            "Sources for which a rule is active",
            self.alerts_active.clone(),
        );
        to.register("nissa_alert_changes", "Alerts fired and resolved", self.alert_changes.clone());
        to.register("nissa_notifications", "Notifications by route", self.notifications.clone());
        to.register("nissa_http_requests", "Requests answered", self.requests.clone());
        to.register(
            "nissa_http_refused",
            "Requests refused before a handler",
            self.refused.clone(),
        );
        to.register("nissa_http_connections", "Open connections", self.connections.clone());
        to.register("nissa_http_subscribers", "Readers of live updates", self.subscribers.clone());
    }

    pub(crate) fn packet(&self, source: Source) {
        self.packets.get_or_create(&BySource { source }).inc();
    }

    pub(crate) fn state_packet(&self, source: Source) {
        self.states.get_or_create(&ByPhase { phase: source }).inc();
    }

    pub(crate) fn new_run(&self) {
        self.runs.inc();
    }

    pub(crate) fn report(&self, outcome: Outcome) {
        self.reports.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub(crate) fn coverage(&self, share: f64) {
        self.coverage.set(share);
    }

    pub(crate) fn coverage_of(&self, feature: &str, share: f64) {
        let labels = ByFeature { feature: feature.to_owned() };
        self.coverage_by_type.get_or_create(&labels).set(share);
    }

    pub(crate) fn quarantine(&self, sources: usize) {
        self.quarantine.set(i64::from(sources > 0));
    }

    pub(crate) fn elevated_risk(&self, elevated: Elevated) {
        self.elevated_risk.set(i64::from(elevated == Elevated::Yes));
    }

    pub(crate) fn hazard_high(&self, provenance: Provenance) {
        self.hazard_high.get_or_create(&ByProvenance { provenance }).inc();
    }

    pub(crate) fn hazard_critical(&self, provenance: Provenance) {
        self.hazard_critical.get_or_create(&ByProvenance { provenance }).inc();
    }

    pub(crate) fn reward(&self, reward: f64) {
        self.reward.set(reward);
    }

    /// A counter cannot fall: what is negative or not finite is no number of iterations.
    pub(crate) fn iterations(&self, count: f64) {
        if count.is_finite() && count > 0.0 {
            self.iterations.inc_by(count);
        }
    }

    pub(crate) fn ingested(&self, kind: Kind, took: Duration) {
        let labels = ByType { r#type: kind };
        self.latency.get_or_create(&labels).observe(took.as_secs_f64() * 1000.0);
    }

    pub(crate) fn evicted(&self, entries: u64) {
        self.evicted.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub(crate) fn alert_change(&self, rule: RuleName, change: Change) {
        self.alert_changes.get_or_create(&ByChange { rule, change }).inc();
    }

    pub(crate) fn alerts_active(&self, rule: RuleName, sources: usize) {
        let sources = i64::try_from(sources).unwrap_or(i64::MAX);
        self.alerts_active.get_or_create(&ByRule { rule }).set(sources);
    }

    pub(crate) fn notified(&self, route: Route) {
        self.notifications.get_or_create(&ByRoute { route }).inc();
    }

    pub(crate) fn answered(&self, endpoint: Endpoint, answer: Answer) {
        self.requests.get_or_create(&ByAnswer { endpoint, answer }).inc();
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        self.refused.get_or_create(&ByRefusal { reason }).inc();
    }

    pub(crate) fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    pub(crate) fn subscribed(&self) {
        self.subscribers.inc();
    }

    pub(crate) fn unsubscribed(&self) {
        self.subscribers.dec();
    }
}

/// Whether a blueprint's risk is elevated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elevated {
    Yes,
    No,
}

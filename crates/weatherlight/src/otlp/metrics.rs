//! What is counted of the way to the collector.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignalLabels {
    signal: &'static str,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    const fn label(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

/// Counters of the exporter. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct OtlpMetrics {
    sent: Family<SignalLabels, Counter>,
    dropped: Family<SignalLabels, Counter>,
    failures: Family<SignalLabels, Counter>,
}

impl OtlpMetrics {
    /// Shows them, below the prefix of `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let sent = "Spans and metric points that the collector took";
        registry.register("otlp_sent", sent, self.sent.clone());
        let dropped = "Spans without room, and spans and points the collector did not take";
        registry.register("otlp_dropped", dropped, self.dropped.clone());
        let failures = "Requests to the collector that failed";
        registry.register("otlp_failures", failures, self.failures.clone());
    }

    fn member(family: &Family<SignalLabels, Counter>, signal: Signal) -> Counter {
        family.get_or_create_owned(&SignalLabels { signal: signal.label() })
    }

    pub(super) fn sent(&self, signal: Signal) -> Counter {
        Self::member(&self.sent, signal)
    }

    pub(super) fn dropped(&self, signal: Signal) -> Counter {
        Self::member(&self.dropped, signal)
    }

    pub(super) fn failures(&self, signal: Signal) -> Counter {
        Self::member(&self.failures, signal)
    }
}

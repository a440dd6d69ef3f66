//! What is counted of the log itself.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::Level;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    level: &'static str,
}

/// Counters of the log. Cheap to clone; they count from before there is a registry.
#[derive(Debug, Clone, Default)]
pub struct LogMetrics {
    lines: Family<LevelLabels, Counter>,
    pub(super) dropped: Counter,
    pub(super) folded: Counter,
}

impl LogMetrics {
    /// Shows them, below the prefix of `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("log_lines", "Lines written to the log, by level", self.lines.clone());
        let dropped = "Lines without room: whoever reads the log is slow or gone";
        registry.register("log_dropped", dropped, self.dropped.clone());
        let folded = "Events that repeated another and became part of its count";
        registry.register("log_folded", folded, self.folded.clone());
    }

    pub(super) fn written(&self, level: Level) {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        self.lines.get_or_create(&LevelLabels { level }).inc();
    }
}

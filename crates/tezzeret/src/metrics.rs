//! What the forge counts. Registered before anything is built, and passed in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leyline::wire::{CircuitBreakerState, MetricPoint};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::strategy::Strategy;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Ended {
    /// Compiled and stored.
    Compiled,
    /// It was in the library already.
    Found,
    /// Given up.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    outcome: Ended,
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Fault {
    /// Not within the deadline.
    Timeout,
    /// A template or the engine panicked.
    Panic,
    /// The blueprint has no graph for this job.
    Build,
    /// The process ended while compiling it, several times in a row.
    Interrupted,
    /// Anything else while compiling.
    Compile,
    /// The library did not take it, or could not be asked.
    Library,
}

impl Fault {
    /// Its name in events: the contract's `timeout`, or the kind of error.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Panic => "panic",
            Self::Build => "build",
            Self::Interrupted => "interrupted",
            Self::Compile => "compile",
            Self::Library => "library",
        }
    }

    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Timeout, Self::Panic, Self::Build, Self::Interrupted, Self::Compile, Self::Library];
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    reason: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StrategyLabels {
    strategy: Strategy,
}

impl EncodeLabelValue for Strategy {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.name().encode(encoder)
    }
}

/// The counters of this crate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    started: Counter,
    ended: Family<EndedLabels, Counter>,
    failed_attempts: Family<FaultLabels, Counter>,
    retried: Counter,
    compile_seconds: Family<StrategyLabels, Histogram, fn() -> Histogram>,
    prewarm_seconds: Family<StrategyLabels, Histogram, fn() -> Histogram>,
    breaker_state: Gauge,
    breaker_opened: Counter,
    consecutive_failures: Gauge,
    conservative: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) parked: Gauge,
    pub(crate) unannounced: Counter,
    pub(crate) unwritten: Counter,
    pub(crate) set_aside: Counter,
    pub(crate) remeasured: Counter,
    fallbacks: Counter,
    last: Arc<Last>,
}

/// The last values, for telemetry packets, which know no histograms. Bits of `f64`.
#[derive(Debug, Default)]
struct Last {
    compile_ms: [AtomicU64; Strategy::ALL.len()],
    prewarm_ms: [AtomicU64; Strategy::ALL.len()],
    strategy: AtomicU64,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(100e-6, 3.0, 13))
}

impl Metrics {
    /// Registers every metric of this crate.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            started: Counter::default(),
            ended: Family::default(),
            failed_attempts: Family::default(),
            retried: Counter::default(),
            compile_seconds: Family::new_with_constructor(seconds),
            prewarm_seconds: Family::new_with_constructor(seconds),
            breaker_state: Gauge::default(),
            breaker_opened: Counter::default(),
            consecutive_failures: Gauge::default(),
            conservative: Gauge::default(),
            waiting: Gauge::default(),
            parked: Gauge::default(),
            unannounced: Counter::default(),
            unwritten: Counter::default(),
            set_aside: Counter::default(),
            remeasured: Counter::default(),
            fallbacks: Counter::default(),
            last: Arc::default(),
        };
        metrics.breaker_state.set(CircuitBreakerState::CircuitStateClosed as i64);
        metrics.describe(registry);
        metrics
    }

    fn describe(&self, registry: &mut Registry) {
        let m = self.clone();
        let forge = registry.sub_registry_with_prefix("tezzeret");
        forge.register("jobs_started", "Attempts at jobs", m.started);
        forge.register("jobs", "Jobs ended, by outcome", m.ended);
        forge.register("failed_attempts", "Attempts that failed, by reason", m.failed_attempts);
        forge.register("jobs_retried", "Jobs done after a failed attempt", m.retried);
        forge.register("compile_seconds", "Building, checking and writing", m.compile_seconds);
        forge.register("prewarm_seconds", "One timed run of a fresh kernel", m.prewarm_seconds);
        let state = "1 closed, 2 open, 3 half-open";
        forge.register("breaker_state", state, m.breaker_state);
        forge.register("breaker_opened", "Times the breaker opened", m.breaker_opened);
        let failures = "Different jobs failed since the last success";
        forge.register("consecutive_failures", failures, m.consecutive_failures);
        forge.register("conservative", "Whether in conservative mode", m.conservative);
        forge.register("jobs_waiting", "Jobs waiting or running", m.waiting);
        forge.register("jobs_parked", "Jobs given up and refused for a while", m.parked);
        let unannounced = "Times the bus did not take a catalogue update, which stays owed";
        forge.register("unannounced", unannounced, m.unannounced);
        let unwritten = "Jobs that could not be written to the durable queue";
        forge.register("queue_unwritten", unwritten, m.unwritten);
        let set_aside = "Files in the durable queue that were no tickets, and were set aside";
        forge.register("queue_set_aside", set_aside, m.set_aside);
        let remeasured = "Kernels of other machines that were timed on this one";
        forge.register("kernels_remeasured", remeasured, m.remeasured);
        let fallbacks = "Kernels compiled whose plan is not used: the interpreter runs them";
        forge.register("interpreter_fallbacks", fallbacks, m.fallbacks);
    }

    pub(crate) fn started(&self) {
        self.started.inc();
    }

    /// Counts a job that ended; `failures` are its failed attempts before.
    pub(crate) fn ended(&self, outcome: Ended, failures: u32) {
        self.ended.get_or_create(&EndedLabels { outcome }).inc();
        if outcome == Ended::Compiled && failures > 0 {
            self.retried.inc();
        }
    }

    pub(crate) fn fell_back(&self) {
        self.fallbacks.inc();
    }

    pub(crate) fn attempt_failed(&self, reason: Fault) {
        self.failed_attempts.get_or_create(&FaultLabels { reason }).inc();
    }

    /// Records how long a compiled job took, and each of its prewarm runs.
    pub(crate) fn compiled(&self, strategy: Strategy, compile: Duration, prewarm_ms: &[f64]) {
        let labels = StrategyLabels { strategy };
        self.compile_seconds.get_or_create(&labels).observe(compile.as_secs_f64());
        let histogram = self.prewarm_seconds.get_or_create(&labels).clone();
        prewarm_ms.iter().for_each(|ms| histogram.observe(ms / 1e3));
        let index = place(strategy);
        store(&self.last.compile_ms[index], compile.as_secs_f64() * 1e3);
        store(&self.last.prewarm_ms[index], urza::percentile(prewarm_ms, 0.5));
        self.last.strategy.store(index as u64, Ordering::Relaxed);
    }

    pub(crate) fn breaker(&self, state: CircuitBreakerState, failures: u32, conservative: bool) {
        self.breaker_state.set(state as i64);
        self.consecutive_failures.set(i64::from(failures));
        self.conservative.set(i64::from(conservative));
    }

    /// Where the forge's breaker stands.
    pub fn breaker_state(&self) -> CircuitBreakerState {
        let number = i32::try_from(self.breaker_state.get()).ok();
        let state = number.and_then(|number| CircuitBreakerState::try_from(number).ok());
        state.unwrap_or(CircuitBreakerState::CircuitStateUnknown)
    }

    pub(crate) fn breaker_opened(&self) {
        self.breaker_opened.inc();
    }

    fn ended_count(&self, outcome: Ended) -> f64 {
        self.ended.get_or_create(&EndedLabels { outcome }).get() as f64
    }

    fn failed_attempt_count(&self) -> f64 {
        use Fault as F;
        let count = |reason| self.failed_attempts.get_or_create(&FaultLabels { reason }).get();
        F::ALL.into_iter().map(count).sum::<u64>() as f64
    }

    /// The values under the names that telemetry packets carry.
    pub fn snapshot(&self) -> Vec<MetricPoint> {
        let (compiled, failed) =
            (self.ended_count(Ended::Compiled), self.ended_count(Ended::Failed));
        let last = self.last.strategy.load(Ordering::Relaxed) as usize;
        let consecutive = self.consecutive_failures.get() as f64;
        let count = [
            ("tezzeret.compilation.total", compiled + failed),
            ("tezzeret.compilation.failed", failed),
            ("tezzeret.compilation.failed_attempts", self.failed_attempt_count()),
            ("tezzeret.compilation.eager_fallback", self.fallbacks.get() as f64),
            ("tezzeret.jobs.total", compiled + failed + self.ended_count(Ended::Found)),
            ("tezzeret.jobs.failed", failed),
            ("tezzeret.jobs.retried", self.retried.get() as f64),
            ("tezzeret.jobs.started", self.started.get() as f64),
            ("tezzeret.jobs.completed", compiled + self.ended_count(Ended::Found)),
            ("tezzeret.breaker.open_total", self.breaker_opened.get() as f64),
            ("tezzeret.breaker.consecutive_failures", consecutive),
            ("tezzeret.compile.consecutive_failures", consecutive),
        ];
        let state = [
            ("tezzeret.breaker.state", self.breaker_state.get() as f64),
            ("tezzeret.mode.conservative", self.conservative.get() as f64),
        ];
        let last = [
            ("tezzeret.compilation.last_compile_ms", load(&self.last.compile_ms[last])),
            ("tezzeret.compilation.last_prewarm_ms", load(&self.last.prewarm_ms[last])),
        ];
        let mut points: Vec<_> = count.map(|(name, value)| point(name, value, "count")).into();
        points.extend(state.map(|(name, value)| point(name, value, "state")));
        points.extend(last.map(|(name, value)| point(name, value, "ms")));
        for strategy in Strategy::ALL {
            let (name, index) = (strategy.name(), place(strategy));
            let compile = load(&self.last.compile_ms[index]);
            let prewarm = load(&self.last.prewarm_ms[index]);
            points.push(point(&format!("tezzeret.compilation.duration_ms.{name}"), compile, "ms"));
            points.push(point(&format!("tezzeret.prewarm.ms.{name}"), prewarm, "ms"));
        }
        points
    }
}

/// Where a strategy's last values are kept.
fn place(strategy: Strategy) -> usize {
    Strategy::ALL.iter().position(|one| *one == strategy).unwrap_or_default()
}

fn point(name: &str, value: f64, unit: &str) -> MetricPoint {
    MetricPoint { name: name.to_owned(), value, unit: unit.to_owned(), ..MetricPoint::default() }
}

fn store(cell: &AtomicU64, value: f64) {
    cell.store(value.to_bits(), Ordering::Relaxed);
}

fn load(cell: &AtomicU64) -> f64 {
    f64::from_bits(cell.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &Metrics, name: &str) -> f64 {
        let found = metrics.snapshot().into_iter().find(|point| point.name == name);
        found.unwrap_or_else(|| panic!("{name} is in the snapshot")).value
    }

    #[test]
    fn telemetry_names_carry_what_was_counted() {
        let metrics = Metrics::register(&mut Registry::default());
        assert_eq!(value(&metrics, "tezzeret.breaker.state"), 1.0);
        metrics.started();
        metrics.attempt_failed(Fault::Timeout);
        metrics.started();
        metrics.compiled(Strategy::Conservative, Duration::from_millis(30), &[1.0, 2.0, 3.0]);
        metrics.ended(Ended::Compiled, 1);
        metrics.ended(Ended::Found, 0);
        metrics.ended(Ended::Failed, 2);
        metrics.fell_back();
        assert_eq!(metrics.breaker_state(), CircuitBreakerState::CircuitStateClosed);
        metrics.breaker(CircuitBreakerState::CircuitStateOpen, 3, true);
        assert_eq!(metrics.breaker_state(), CircuitBreakerState::CircuitStateOpen);
        for (name, expected) in [
            ("tezzeret.compilation.total", 2.0),
            ("tezzeret.compilation.failed_attempts", 1.0),
            ("tezzeret.compilation.eager_fallback", 1.0),
            ("tezzeret.jobs.total", 3.0),
            ("tezzeret.jobs.completed", 2.0),
            ("tezzeret.jobs.retried", 1.0),
            ("tezzeret.jobs.started", 2.0),
            ("tezzeret.compilation.last_compile_ms", 30.0),
            ("tezzeret.compilation.duration_ms.conservative", 30.0),
            ("tezzeret.compilation.duration_ms.standard", 0.0),
            ("tezzeret.prewarm.ms.conservative", 2.0),
            ("tezzeret.breaker.state", 2.0),
            ("tezzeret.breaker.consecutive_failures", 3.0),
            ("tezzeret.mode.conservative", 1.0),
        ] {
            assert_eq!(value(&metrics, name), expected, "{name}");
        }
    }

    #[test]
    fn names_are_unique() {
        let points = Metrics::register(&mut Registry::default()).snapshot();
        let names: std::collections::BTreeSet<_> = points.iter().map(|point| &point.name).collect();
        assert_eq!(names.len(), points.len());
    }
}

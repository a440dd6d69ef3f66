//! What Oona counts.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use leyline::sign::KeyId;

use crate::breaker::BreakerPosition;
use crate::check::Refusal;
use crate::stream::Stream;

impl EncodeLabelValue for Stream {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.label().encode(encoder)
    }
}

impl EncodeLabelValue for Refusal {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.label().encode(encoder)
    }
}

macro_rules! label_enum {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $name { $($variant),+ }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                let text = match self { $(Self::$variant => $text),+ };
                EncodeLabelValue::encode(&text, encoder)
            }
        }
    };
}

label_enum! {
    /// What became of a publish.
    Published {
        Sent = "published", Rerouted = "rerouted", Spooled = "spooled", Refused = "refused",
        Failed = "failed",
    }
}
label_enum! {
    /// What became of an entry that was read.
    Consumed {
        Delivered = "delivered", Handled = "handled", Retried = "retried",
        Dead = "dead_letter", Refused = "refused", Foreign = "foreign",
    }
}
/// Whose breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BreakerName {
    Publish,
    PublishUrgent,
    Consume(Stream),
}

impl EncodeLabelValue for BreakerName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Publish => "publish".encode(encoder),
            Self::PublishUrgent => "publish_emergency".encode(encoder),
            Self::Consume(stream) => format!("consume_{stream}").encode(encoder),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StreamLabel {
    pub(crate) stream: Stream,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PublishLabels {
    pub(crate) stream: Stream,
    pub(crate) outcome: Published,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConsumeLabels {
    pub(crate) stream: Stream,
    pub(crate) outcome: Consumed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusalLabels {
    pub(crate) stream: Stream,
    pub(crate) reason: Refusal,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct GroupLabels {
    pub(crate) stream: Stream,
    pub(crate) group: String,
}

/// A duty; there are as many as workers that share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct LeaseLabel {
    pub(crate) lease: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BreakerLabel {
    pub(crate) name: BreakerName,
}

/// There are as many values as secrets in force: one, and two during a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KeyLabel {
    pub(crate) key: String,
}

/// What is counted of one secret.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyUse {
    verified: Counter,
    last_used_s: Gauge,
}

impl KeyUse {
    /// An entry verified with it.
    pub(crate) fn count(&self) {
        self.verified.inc();
        let now_s = leyline::time::now_unix_ms() / 1000;
        self.last_used_s.set(i64::try_from(now_s).unwrap_or(i64::MAX));
    }

    pub(crate) fn verified(&self) -> u64 {
        self.verified.get()
    }

    /// `None` before the first time.
    pub(crate) fn last_used_s(&self) -> Option<u64> {
        u64::try_from(self.last_used_s.get()).ok().filter(|seconds| *seconds > 0)
    }
}

/// What every message counts, found once for each stream: a look-up by labels costs more than the
/// counting.
#[derive(Debug, Default)]
struct Hot([HotStream; Stream::ALL.len()]);

#[derive(Debug, Default)]
struct HotStream {
    published: OnceLock<Counter>,
    delivered: OnceLock<Counter>,
    handled: OnceLock<Counter>,
    delivery: OnceLock<Histogram>,
    handler: OnceLock<Histogram>,
}

impl Hot {
    fn of(&self, stream: Stream) -> &HotStream {
        // Declared in the order of `Stream::ALL`; a test of the streams holds them to it.
        &self.0[stream as usize]
    }
}

/// Every metric of the bus. Cheap to clone; registered once, before anything is built.
#[derive(Debug, Clone)]
pub struct Metrics {
    hot: Arc<Hot>,
    publish: Family<PublishLabels, Counter>,
    consume: Family<ConsumeLabels, Counter>,
    refused: Family<RefusalLabels, Counter>,
    retries: Family<StreamLabel, Counter>,
    dead_letter: Family<StreamLabel, Counter>,
    claimed: Family<StreamLabel, Counter>,
    legacy: Family<StreamLabel, Counter>,
    replayed: Family<StreamLabel, Counter>,
    key_verified: Family<KeyLabel, Counter>,
    key_last_used: Family<KeyLabel, Gauge>,
    groups_recreated: Family<StreamLabel, Counter>,
    trimmed: Family<StreamLabel, Counter>,
    trimmed_unread: Family<StreamLabel, Counter>,
    consumers_removed: Family<StreamLabel, Counter>,
    log_failures: Counter,
    pending: Family<GroupLabels, Gauge>,
    lag: Family<GroupLabels, Gauge>,
    breaker_state: Family<BreakerLabel, Gauge>,
    conservative_mode: Family<StreamLabel, Gauge>,
    lease_held: Family<LeaseLabel, Gauge>,
    lease_changes: Family<LeaseLabel, Counter>,
    released: Family<StreamLabel, Counter>,
    pub(crate) spool_messages: Gauge,
    pub(crate) spool_bytes: Gauge,
    pub(crate) spool_stored: Counter,
    pub(crate) spool_sent: Counter,
    pub(crate) spool_refused: Counter,
    pub(crate) spool_set_aside: Counter,
    pub(crate) emergency_limited: Counter,
    pub(crate) emergency_diverted: Counter,
    pub(crate) publish_seconds: Histogram,
    delivery_seconds: Family<StreamLabel, Histogram, fn() -> Histogram>,
    handler_seconds: Family<StreamLabel, Histogram, fn() -> Histogram>,
}

/// 50 microseconds to half a minute, doubling.
fn seconds() -> Histogram {
    Histogram::new((0..20).map(|power| 50e-6 * f64::from(1_u32 << power)))
}

impl Metrics {
    /// Registers every metric under its full name.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            hot: Arc::default(),
            publish: Family::default(),
            consume: Family::default(),
            refused: Family::default(),
            retries: Family::default(),
            dead_letter: Family::default(),
            claimed: Family::default(),
            legacy: Family::default(),
            replayed: Family::default(),
            key_verified: Family::default(),
            key_last_used: Family::default(),
            groups_recreated: Family::default(),
            trimmed: Family::default(),
            trimmed_unread: Family::default(),
            consumers_removed: Family::default(),
            log_failures: Counter::default(),
            pending: Family::default(),
            lag: Family::default(),
            breaker_state: Family::default(),
            conservative_mode: Family::default(),
            lease_held: Family::default(),
            lease_changes: Family::default(),
            released: Family::default(),
            spool_messages: Gauge::default(),
            spool_bytes: Gauge::default(),
            spool_stored: Counter::default(),
            spool_sent: Counter::default(),
            spool_refused: Counter::default(),
            spool_set_aside: Counter::default(),
            emergency_limited: Counter::default(),
            emergency_diverted: Counter::default(),
            publish_seconds: seconds(),
            delivery_seconds: Family::new_with_constructor(seconds),
            handler_seconds: Family::new_with_constructor(seconds),
        };
        let m = metrics.clone();
        registry.register("oona_publish", "Messages offered for publishing", m.publish);
        registry.register("oona_publish_seconds", "Time of one publish", m.publish_seconds);
        registry.register("oona_consume", "Entries read, by what became of them", m.consume);
        registry.register("oona_refused", "Entries refused before a handler saw them", m.refused);
        registry.register("oona_retries", "Handlers that failed and are retried", m.retries);
        registry.register("oona_dead_letter", "Entries given up", m.dead_letter);
        registry.register("oona_claimed", "Entries taken over from a lost consumer", m.claimed);
        registry.register("oona_legacy", "Messages admitted without attributes", m.legacy);
        registry.register("oona_replayed", "Dead letters replayed by this process", m.replayed);
        registry.register(
            "oona_key_verified",
            "Entries whose signature this secret made, by the first 8 hex digits of its SHA-256",
            m.key_verified,
        );
        registry.register(
            "oona_key_last_used_timestamp_seconds",
            "Unix time of the last of them, 0 for none",
            m.key_last_used,
        );
        registry.register(
            "oona_groups_recreated",
            "Groups that had vanished and were made again",
            m.groups_recreated,
        );
        registry.register("oona_trimmed", "Entries trimmed", m.trimmed);
        registry.register(
            "oona_trimmed_unread",
            "Entries trimmed before an abandoned group had read them",
            m.trimmed_unread,
        );
        registry.register("oona_consumers_removed", "Dead consumers removed", m.consumers_removed);
        registry.register("oona_log_failures", "Commands that the log failed", m.log_failures);
        registry.register("oona_pending", "Entries delivered, not yet acknowledged", m.pending);
        registry.register("oona_lag", "Entries not yet delivered", m.lag);
        registry.register("oona_breaker_state", "0 closed, 1 half-open, 2 open", m.breaker_state);
        registry.register(
            "oona_conservative_mode",
            "1 while NORMAL and LOW messages of the stream pause",
            m.conservative_mode,
        );
        registry.register(
            "oona_lease_held",
            "1 while this process has the lease of a duty that one of all processes does",
            m.lease_held,
        );
        registry.register(
            "oona_lease_changes",
            "How often this process took, gave back or lost that lease",
            m.lease_changes,
        );
        registry.register(
            "oona_released",
            "Entries that this process left for others to take at once",
            m.released,
        );
        registry.register(
            "oona_spool_messages",
            "Messages that wait on disk for the log",
            m.spool_messages,
        );
        registry.register("oona_spool_bytes", "Bytes of these messages", m.spool_bytes);
        registry.register(
            "oona_spool_stored",
            "Messages put on disk while the log was away",
            m.spool_stored,
        );
        registry.register("oona_spool_sent", "Messages sent from disk", m.spool_sent);
        registry.register(
            "oona_spool_refused",
            "Messages that the spool did not take: it was full, or its disk failed",
            m.spool_refused,
        );
        registry.register(
            "oona_spool_set_aside",
            "Messages on disk that could not be authenticated",
            m.spool_set_aside,
        );
        registry.register(
            "oona_emergency_limited",
            "Emergency messages not published there since their origin was beyond its rate",
            m.emergency_limited,
        );
        registry.register(
            "oona_emergency_diverted",
            "Signals passed on as ordinary messages since their origin was beyond its rate",
            m.emergency_diverted,
        );
        registry.register(
            "oona_delivery_seconds",
            "Time from append to the handler",
            m.delivery_seconds,
        );
        registry.register("oona_handler_seconds", "Time in the handler", m.handler_seconds);
        metrics.start_at_zero();
        metrics
    }

    /// What an alert watches is there from the start: a counter that appears at 1 has no increase.
    fn start_at_zero(&self) {
        for stream in Stream::ALL {
            let label = StreamLabel { stream };
            for family in [
                &self.retries,
                &self.dead_letter,
                &self.replayed,
                &self.groups_recreated,
                &self.trimmed,
                &self.trimmed_unread,
                &self.released,
            ] {
                drop(family.get_or_create(&label));
            }
        }
        for stream in Stream::ALL {
            self.show_conservative(stream, false);
        }
        self.show_breaker(BreakerName::Publish, BreakerPosition::Closed);
        self.show_breaker(BreakerName::PublishUrgent, BreakerPosition::Closed);
    }

    /// Metrics that nobody reads, for tests and one-shot commands.
    pub fn detached() -> Self {
        Self::register(&mut Registry::default())
    }

    /// Entries refused on a stream for a reason since the start.
    pub fn refused_total(&self, stream: Stream, reason: Refusal) -> u64 {
        self.refused.get_or_create(&RefusalLabels { stream, reason }).get()
    }

    /// Entries of a stream given up since the start.
    pub fn dead_letter_total(&self, stream: Stream) -> u64 {
        self.dead_letter.get_or_create(&StreamLabel { stream }).get()
    }

    /// Groups of a stream that had vanished and were made again since the start.
    pub fn groups_recreated_total(&self, stream: Stream) -> u64 {
        self.groups_recreated.get_or_create(&StreamLabel { stream }).get()
    }

    /// The same numbers under the dotted names that older programs read.
    pub(crate) fn points(&self) -> Vec<(String, f64)> {
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let number = |count: u64| count as f64;
        let all = |count: &dyn Fn(Stream) -> u64| number(Stream::ALL.into_iter().map(count).sum());
        let outcome =
            |stream, outcome| self.publish.get_or_create(&PublishLabels { stream, outcome }).get();
        let mut points = vec![
            ("oona.publish_total".to_owned(), all(&|s| outcome(s, Published::Sent))),
            ("oona.publish_rerouted".to_owned(), all(&|s| outcome(s, Published::Rerouted))),
            ("oona.publish_dropped".to_owned(), all(&|s| outcome(s, Published::Refused))),
            ("oona.publish_spooled".to_owned(), all(&|s| outcome(s, Published::Spooled))),
            ("oona.emergency_limited".to_owned(), number(self.emergency_limited.get())),
            ("oona.emergency_diverted".to_owned(), number(self.emergency_diverted.get())),
            ("oona.dead_letter_total".to_owned(), all(&|s| self.dead_letter_total(s))),
        ];
        let kernel = [Stream::KernelRequests, Stream::KernelReady, Stream::KernelErrors];
        for (name, reason) in [("stale", Refusal::Stale), ("replay", Refusal::Replay)] {
            let count = kernel.iter().map(|stream| self.refused_total(*stream, reason)).sum();
            points.push((format!("oona.kernel_{name}_dropped"), number(count)));
        }
        points
    }

    pub(crate) fn count_publish(&self, stream: Stream, outcome: Published) {
        if outcome == Published::Sent {
            let found = || self.publish.get_or_create(&PublishLabels { stream, outcome }).clone();
            self.hot.of(stream).published.get_or_init(found).inc();
            return;
        }
        self.publish.get_or_create(&PublishLabels { stream, outcome }).inc();
    }

    pub(crate) fn count_consume(&self, stream: Stream, outcome: Consumed) {
        self.count_consumed(stream, outcome, 1);
    }

    /// The same for many at once.
    pub(crate) fn count_consumed(&self, stream: Stream, outcome: Consumed, entries: u64) {
        let found = || self.consume.get_or_create(&ConsumeLabels { stream, outcome }).clone();
        match outcome {
            Consumed::Delivered => self.hot.of(stream).delivered.get_or_init(found).inc_by(entries),
            Consumed::Handled => self.hot.of(stream).handled.get_or_init(found).inc_by(entries),
            Consumed::Retried | Consumed::Dead | Consumed::Refused | Consumed::Foreign => {
                found().inc_by(entries)
            }
        };
    }

    pub(crate) fn count_refused(&self, stream: Stream, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabels { stream, reason }).inc();
        self.count_consume(stream, Consumed::Refused);
    }

    pub(crate) fn count_retry(&self, stream: Stream) {
        self.retries.get_or_create(&StreamLabel { stream }).inc();
        self.count_consume(stream, Consumed::Retried);
    }

    pub(crate) fn count_dead(&self, stream: Stream) {
        self.dead_letter.get_or_create(&StreamLabel { stream }).inc();
        self.count_consume(stream, Consumed::Dead);
    }

    pub(crate) fn count_claimed(&self, stream: Stream, entries: u64) {
        self.claimed.get_or_create(&StreamLabel { stream }).inc_by(entries);
    }

    pub(crate) fn count_legacy(&self, stream: Stream) {
        self.legacy.get_or_create(&StreamLabel { stream }).inc();
    }

    pub(crate) fn count_replayed(&self, stream: Stream) {
        self.replayed.get_or_create(&StreamLabel { stream }).inc();
    }

    /// The counters of one secret, to be kept by whoever verifies: a look-up for each entry would
    /// cost as much as the counting.
    pub(crate) fn key_use(&self, key: &KeyId) -> KeyUse {
        let label = KeyLabel { key: key.to_string() };
        KeyUse {
            verified: self.key_verified.get_or_create(&label).clone(),
            last_used_s: self.key_last_used.get_or_create(&label).clone(),
        }
    }

    pub(crate) fn count_group_recreated(&self, stream: Stream) {
        self.groups_recreated.get_or_create(&StreamLabel { stream }).inc();
    }

    pub(crate) fn count_trimmed(&self, stream: Stream, entries: u64, unread: u64) {
        self.trimmed.get_or_create(&StreamLabel { stream }).inc_by(entries);
        self.trimmed_unread.get_or_create(&StreamLabel { stream }).inc_by(unread);
    }

    pub(crate) fn count_consumer_removed(&self, stream: Stream) {
        self.consumers_removed.get_or_create(&StreamLabel { stream }).inc();
    }

    pub(crate) fn count_log_failure(&self) {
        self.log_failures.inc();
    }

    pub(crate) fn show_backlog(&self, stream: Stream, group: &str, pending: u64, lag: u64) {
        // Any program may name a group, and the exposition writes labels as they are.
        let labels = GroupLabels { stream, group: group.escape_default().to_string() };
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.pending.get_or_create(&labels).set(number(pending));
        self.lag.get_or_create(&labels).set(number(lag));
    }

    pub(crate) fn show_breaker(&self, name: BreakerName, position: BreakerPosition) {
        let number = match position {
            BreakerPosition::Closed => 0,
            BreakerPosition::HalfOpen => 1,
            BreakerPosition::Open => 2,
        };
        self.breaker_state.get_or_create(&BreakerLabel { name }).set(number);
    }

    pub(crate) fn show_lease(&self, lease: &'static str, is_held: bool) {
        self.lease_held.get_or_create(&LeaseLabel { lease }).set(i64::from(is_held));
        // There from the start: a counter that appears at 1 has no increase.
        drop(self.lease_changes.get_or_create(&LeaseLabel { lease }));
    }

    pub(crate) fn count_lease_change(&self, lease: &'static str) {
        self.lease_changes.get_or_create(&LeaseLabel { lease }).inc();
    }

    pub(crate) fn count_released(&self, stream: Stream, entries: u64) {
        self.released.get_or_create(&StreamLabel { stream }).inc_by(entries);
    }

    #[cfg(all(test, feature = "shuttle"))]
    pub(crate) fn is_conservative(&self, stream: Stream) -> bool {
        self.conservative_mode.get_or_create(&StreamLabel { stream }).get() == 1
    }

    pub(crate) fn show_conservative(&self, stream: Stream, is_so: bool) {
        // A gauge is no lock: the checks of `interleavings` let others come between here.
        #[cfg(feature = "shuttle")]
        shuttle::thread::yield_now();
        self.conservative_mode.get_or_create(&StreamLabel { stream }).set(i64::from(is_so));
    }

    pub(crate) fn observe_delivery(&self, stream: Stream, seconds: f64) {
        let found = || self.delivery_seconds.get_or_create(&StreamLabel { stream }).clone();
        self.hot.of(stream).delivery.get_or_init(found).observe(seconds);
    }

    pub(crate) fn observe_handler(&self, stream: Stream, seconds: f64) {
        let found = || self.handler_seconds.get_or_create(&StreamLabel { stream }).clone();
        self.hot.of(stream).handler.get_or_init(found).observe(seconds);
    }
}

//! The whole table is walked, then what the prototype got wrong is pinned down.

use std::time::Duration;

use tokio::time::Instant;

use super::{Alerts, Change, Condition, Hold, Rule, table};
use crate::board::Now;
use crate::config::Thresholds;

/// A clock that only moves when told to.
struct Clock {
    began: Instant,
    passed: Duration,
}

impl Clock {
    fn new() -> Self {
        Self { began: Instant::now(), passed: Duration::ZERO }
    }

    fn after(&mut self, pause: Duration) -> Now {
        self.passed += pause;
        Now { mono: self.began + self.passed, unix_ms: 1000 + self.passed.as_millis() as u64 }
    }

    fn second(&mut self) -> Now {
        self.after(Duration::from_secs(1))
    }
}

fn alerts() -> Alerts {
    Alerts::new(&Thresholds::default())
}

fn is_active(alerts: &Alerts, rule: &Rule, source: &str) -> bool {
    alerts.active().any(|alert| alert.rule == rule.name && alert.source == source)
}

/// Samples that must make a rule fire, with the pause before each; and one that must not.
fn breaching(rule: &Rule) -> (Vec<(Duration, f64)>, f64) {
    let (bad, fine) = match rule.condition {
        Condition::Above(limit) => (limit + 0.1, limit),
        Condition::AtLeast(limit) => (limit, limit - 0.1),
        Condition::Below(limit) => (limit - 0.1, limit),
        Condition::Rises { by, .. } => (by, by - 1.0),
        Condition::Happens { times, .. } => {
            return (vec![(Duration::from_secs(1), 1.0); times as usize], 0.0);
        }
    };
    let samples = match rule.hold {
        Hold::Samples(count) => vec![(Duration::from_secs(1), bad); count as usize],
        Hold::For(duration) => vec![(Duration::from_secs(1), bad), (duration, bad)],
    };
    (samples, fine)
}

#[test]
fn every_rule_fires_at_its_last_required_sample_and_not_before() {
    for rule in table(&Thresholds::default()) {
        let (mut alerts, mut clock) = (alerts(), Clock::new());
        let (samples, fine) = breaching(&rule);
        let now = clock.second();
        assert!(alerts.sample(now, "a", rule.metric, fine).is_empty(), "{} fired", rule.name);
        for (index, (pause, value)) in samples.iter().enumerate() {
            assert!(!is_active(&alerts, &rule, "a"), "{} fired early", rule.name);
            let sent = alerts.sample(clock.after(*pause), "a", rule.metric, *value);
            let last = index + 1 == samples.len();
            assert_eq!(sent.len(), usize::from(last), "{} at sample {index}", rule.name);
        }
        assert!(is_active(&alerts, &rule, "a"), "{} did not fire", rule.name);
        assert!(!is_active(&alerts, &rule, "b"));
    }
}

#[test]
fn every_rule_tells_once_and_resolves_once() {
    for rule in table(&Thresholds::default()) {
        let (mut alerts, mut clock) = (alerts(), Clock::new());
        let (samples, fine) = breaching(&rule);
        for (pause, value) in samples.iter().chain(samples.last()) {
            alerts.sample(clock.after(*pause), "a", rule.metric, *value);
        }
        let mut told: Vec<_> = alerts.recent().map(|note| note.change).collect();
        assert_eq!(told, [Change::Fired], "{}", rule.name);
        // An hour later a total has not grown since, and no happening is left in any window.
        let hour = Duration::from_secs(3600);
        match rule.condition {
            Condition::Happens { .. } => drop(alerts.tick(clock.after(hour))),
            Condition::Rises { by, .. } => {
                drop(alerts.sample(clock.after(hour), "a", rule.metric, by));
            }
            _ => drop(alerts.sample(clock.second(), "a", rule.metric, fine)),
        }
        told = alerts.recent().map(|note| note.change).collect();
        assert_eq!(told, [Change::Fired, Change::Resolved], "{}", rule.name);
        assert!(!is_active(&alerts, &rule, "a"));
    }
}

#[test]
fn other_sources_and_other_metrics_change_nothing() {
    for rule in table(&Thresholds::default()) {
        let (mut alerts, mut clock) = (alerts(), Clock::new());
        let (samples, fine) = breaching(&rule);
        for (pause, value) in samples {
            alerts.sample(clock.after(pause), "a", rule.metric, value);
            let now = Now { mono: clock.began + clock.passed, unix_ms: 0 };
            alerts.sample(now, "b", rule.metric, fine);
            alerts.sample(now, "a", "something.else", 0.0);
        }
        assert!(is_active(&alerts, &rule, "a"), "{}: interleaved breaches are lost", rule.name);
    }
}

#[test]
fn silence_is_not_recovery() {
    for rule in table(&Thresholds::default()) {
        if matches!(rule.condition, Condition::Happens { .. }) {
            continue;
        }
        let (mut alerts, mut clock) = (alerts(), Clock::new());
        for (pause, value) in breaching(&rule).0 {
            alerts.sample(clock.after(pause), "a", rule.metric, value);
        }
        assert!(alerts.tick(clock.after(Duration::from_secs(86_400))).is_empty());
        assert!(is_active(&alerts, &rule, "a"), "{} ended by silence", rule.name);
    }
}

#[test]
fn one_fine_sample_starts_the_count_anew() {
    let (mut alerts, mut clock) = (alerts(), Clock::new());
    let metric = "tolaria.epoch_hook.latency_ms";
    for value in [25.0, 25.0, 10.0, 25.0, 25.0] {
        assert!(alerts.sample(clock.second(), "a", metric, value).is_empty());
    }
    assert_eq!(alerts.sample(clock.second(), "a", metric, 25.0).len(), 1);
}

#[test]
fn what_is_not_finite_is_no_evidence() {
    let (mut alerts, mut clock) = (alerts(), Clock::new());
    let metric = "tolaria.epoch_hook.latency_ms";
    for value in [25.0, f64::NAN, 25.0, f64::INFINITY, 25.0] {
        alerts.sample(clock.second(), "a", metric, value);
    }
    assert_eq!(alerts.active().count(), 1);
    alerts.sample(clock.second(), "a", metric, f64::NEG_INFINITY);
    assert_eq!(alerts.active().count(), 1);
}

#[test]
fn a_total_counts_by_its_growth() {
    let (mut alerts, mut clock) = (alerts(), Clock::new());
    let metric = "kasmina.isolation.violations";
    let mut say = |pause, total| alerts.sample(clock.after(pause), "a", metric, total).len();
    let minute = Duration::from_secs(60);
    assert_eq!(say(minute, 2.0), 0);
    assert_eq!(say(10 * minute, 4.0), 0, "two more, long after");
    assert_eq!(say(minute, 4.0), 0);
    assert_eq!(say(minute, 7.0), 1, "three more within five minutes");
    assert_eq!(say(10 * minute, 7.0), 1, "none in the last five: resolved");
    assert_eq!(say(minute, 1.0), 0, "the sender began anew and counts from zero");
    assert_eq!(say(minute, 3.0), 1, "three since then");
}

#[test]
fn sources_are_bounded_and_active_ones_stay() {
    let (mut alerts, mut clock) = (alerts(), Clock::new());
    let metric = "tamiyo.blueprint.risk";
    alerts.sample(clock.second(), "grave", metric, 0.9);
    for number in 0..200 {
        alerts.sample(clock.second(), &format!("source {number}"), metric, 0.1);
    }
    assert_eq!(alerts.active().count(), 1);
    assert_eq!(alerts.evicted(), 200 + 1 - 64);
}

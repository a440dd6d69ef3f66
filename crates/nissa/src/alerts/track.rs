//! The state machine of one rule for one source.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Change;
use super::rules::{Condition, Hold, Rule};

/// Samples kept for a window. Beyond it the oldest is dropped: a window is then a little shorter,
/// and a total's growth understated, never invented.
const SAMPLES_MAX: usize = 256;

/// Where one (rule, source) stands.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Quiet,
    /// In breach, not yet for long enough.
    Pending {
        first: Instant,
        samples: u32,
    },
    Active,
}

/// One rule's view of one source.
#[derive(Debug, Clone)]
pub(super) struct Track {
    phase: Phase,
    window: VecDeque<(Instant, f64)>,
    pub(super) last_seen: Instant,
    pub(super) value: f64,
}

impl Track {
    pub(super) fn new(now: Instant) -> Self {
        Self { phase: Phase::Quiet, window: VecDeque::new(), last_seen: now, value: 0.0 }
    }

    pub(super) fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    /// Takes one sample. Only a sample can start an alert, and only a sample ends one of a value.
    pub(super) fn sample(&mut self, rule: &Rule, now: Instant, value: f64) -> Option<Change> {
        self.last_seen = now;
        let breach = match rule.condition {
            Condition::Above(limit) => self.level(value) > limit,
            Condition::AtLeast(limit) => self.level(value) >= limit,
            Condition::Below(limit) => self.level(value) < limit,
            Condition::Rises { by, within } => self.growth(now, within, value) >= by,
            Condition::Happens { times, within } => self.happenings(now, within, value) >= times,
        };
        self.judge(rule.hold, now, Breach::from(breach))
    }

    /// Ends the alert of a happening whose window is empty. Values do not end by themselves.
    pub(super) fn tick(&mut self, rule: &Rule, now: Instant) -> Option<Change> {
        let Condition::Happens { within, .. } = rule.condition else { return None };
        self.forget(now, within);
        if !self.window.is_empty() {
            return None;
        }
        self.value = 0.0;
        self.judge(rule.hold, now, Breach::No)
    }

    fn judge(&mut self, hold: Hold, now: Instant, breach: Breach) -> Option<Change> {
        let (next, change) = match (&self.phase, breach) {
            (Phase::Quiet | Phase::Pending { .. }, Breach::No) => (Phase::Quiet, None),
            (Phase::Active, Breach::No) => (Phase::Quiet, Some(Change::Resolved)),
            (Phase::Active, Breach::Yes) => (Phase::Active, None),
            (Phase::Quiet, Breach::Yes) => Self::lasted(hold, now, now, 1),
            (&Phase::Pending { first, samples }, Breach::Yes) => {
                Self::lasted(hold, now, first, samples.saturating_add(1))
            }
        };
        self.phase = next;
        change
    }

    fn lasted(hold: Hold, now: Instant, first: Instant, samples: u32) -> (Phase, Option<Change>) {
        let enough = match hold {
            Hold::Samples(required) => samples >= required,
            Hold::For(duration) => now.duration_since(first) >= duration,
        };
        if enough {
            (Phase::Active, Some(Change::Fired))
        } else {
            (Phase::Pending { first, samples }, None)
        }
    }

    fn level(&mut self, value: f64) -> f64 {
        self.value = value;
        value
    }

    /// Growth of a total within the window.
    fn growth(&mut self, now: Instant, within: Duration, total: f64) -> f64 {
        // One sample older than the window stays, as the value the window began with.
        while self.window.len() > 1
            && self.window.get(1).is_some_and(|(at, _)| now.duration_since(*at) > within)
        {
            self.window.pop_front();
        }
        // A source heard of for the first time, or one that began anew, counts from zero: what it
        // counted before its first packet is growth that nobody has judged yet.
        if self.window.back().is_none_or(|(_, before)| total < *before) {
            self.window.clear();
            self.push(now, 0.0);
        }
        self.push(now, total);
        self.value = self.window.front().map_or(0.0, |(_, before)| total - before);
        self.value
    }

    fn happenings(&mut self, now: Instant, within: Duration, times: f64) -> u32 {
        self.push(now, times);
        self.forget(now, within);
        self.value = self.window.iter().map(|(_, times)| times).sum();
        // A sum of small whole numbers; saturates.
        self.value as u32
    }

    fn forget(&mut self, now: Instant, within: Duration) {
        while self.window.front().is_some_and(|(at, _)| now.duration_since(*at) > within) {
            self.window.pop_front();
        }
    }

    fn push(&mut self, now: Instant, value: f64) {
        if self.window.len() == SAMPLES_MAX {
            self.window.pop_front();
        }
        self.window.push_back((now, value));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breach {
    Yes,
    No,
}

impl From<bool> for Breach {
    fn from(breach: bool) -> Self {
        if breach { Self::Yes } else { Self::No }
    }
}

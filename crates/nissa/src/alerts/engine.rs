//! All rules over all sources: samples in, notifications out.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use tokio::time::Instant;

use super::rules::{Rule, RuleName, table};
use super::track::Track;
use super::{Change, Route};
use crate::board::Now;
use crate::config::Thresholds;

/// Sources watched for one rule. Each is a subsystem, or one of its runs; more is a sender gone wild.
const SOURCES_MAX: usize = 64;
/// Notifications kept for the page.
const NOTIFICATIONS_MAX: usize = 100;

/// An alert that fired and has not been resolved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ActiveAlert {
    /// The rule.
    pub rule: RuleName,
    /// The source it is about.
    pub source: String,
    /// The metric or event.
    pub metric: &'static str,
    /// The newest value (of a total: its growth; of a happening: how often).
    pub value: f64,
    /// When it fired, Unix milliseconds.
    pub since_ms: u64,
    /// When the metric was last heard from this source, Unix milliseconds. Old means that the
    /// source fell silent, not that it recovered.
    pub seen_ms: u64,
    /// Who was told.
    pub routes: &'static [Route],
}

/// A change of an alert, as it was sent to its routes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notification {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub change: Change,
    /// The rule.
    pub rule: RuleName,
    /// The source it is about.
    pub source: String,
    /// The value that decided.
    pub value: f64,
    /// Who is told.
    pub routes: &'static [Route],
}

/// All rules with their state.
#[derive(Debug, Clone)]
pub struct Alerts {
    rules: Vec<Rule>,
    tracks: BTreeMap<(usize, String), Track>,
    active: BTreeMap<(usize, String), ActiveAlert>,
    recent: VecDeque<Notification>,
    evicted: u64,
}

impl Alerts {
    /// The table with these thresholds; nothing is active.
    pub fn new(thresholds: &Thresholds) -> Self {
        Self {
            rules: table(thresholds),
            tracks: BTreeMap::new(),
            active: BTreeMap::new(),
            recent: VecDeque::new(),
            evicted: 0,
        }
    }

    /// Judges by these thresholds from the next sample on. What is active stays so until then.
    pub fn adopt(&mut self, thresholds: &Thresholds) {
        self.rules = table(thresholds);
    }

    /// Whether any rule watches this metric or event.
    pub fn watches(&self, metric: &str) -> bool {
        self.rules.iter().any(|rule| rule.metric == metric)
    }

    /// Takes one value of a metric, or a number of happenings of an event, from one source. What is
    /// not finite is no evidence either way and is ignored.
    pub fn sample(
        &mut self,
        now: Now,
        source: &str,
        metric: &str,
        value: f64,
    ) -> Vec<Notification> {
        if !value.is_finite() {
            return Vec::new();
        }
        let watching: Vec<usize> = (0..self.rules.len())
            .filter(|index| self.rules.get(*index).is_some_and(|rule| rule.metric == metric))
            .collect();
        let mut sent = Vec::new();
        for index in watching {
            let key = (index, source.to_owned());
            self.make_room(&key);
            let Some(rule) = self.rules.get(index) else { continue };
            let track = self.tracks.entry(key.clone()).or_insert_with(|| Track::new(now.mono));
            let change = track.sample(rule, now.mono, value);
            let newest = track.value;
            if let Some(alert) = self.active.get_mut(&key) {
                (alert.value, alert.seen_ms) = (newest, now.unix_ms);
            }
            if let Some(change) = change {
                sent.push(self.change(now, key, change, newest));
            }
        }
        sent
    }

    /// Lets time pass: ends the alerts of happenings that stopped.
    pub fn tick(&mut self, now: Now) -> Vec<Notification> {
        let mut ended = Vec::new();
        for (key, track) in &mut self.tracks {
            let Some(rule) = self.rules.get(key.0) else { continue };
            if let Some(change) = track.tick(rule, now.mono) {
                ended.push((key.clone(), change, track.value));
            }
        }
        ended.into_iter().map(|(key, change, value)| self.change(now, key, change, value)).collect()
    }

    /// What is active, by rule, then source.
    pub fn active(&self) -> impl Iterator<Item = &ActiveAlert> {
        self.active.values()
    }

    /// For how many sources each rule is active.
    pub fn counts(&self) -> impl Iterator<Item = (RuleName, usize)> + '_ {
        self.rules.iter().enumerate().map(|(index, rule)| {
            (rule.name, self.active.keys().filter(|(active, _)| *active == index).count())
        })
    }

    /// The newest notifications, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Notification> {
        self.recent.iter()
    }

    /// The rules in force.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How often a quiet source was forgotten to make room for another.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn change(
        &mut self,
        now: Now,
        key: (usize, String),
        change: Change,
        value: f64,
    ) -> Notification {
        let rule = &self.rules[key.0];
        let note = Notification {
            at_ms: now.unix_ms,
            change,
            rule: rule.name,
            source: key.1.clone(),
            value,
            routes: rule.routes,
        };
        match change {
            Change::Fired => {
                let alert = ActiveAlert {
                    rule: rule.name,
                    source: key.1.clone(),
                    metric: rule.metric,
                    value,
                    since_ms: now.unix_ms,
                    seen_ms: now.unix_ms,
                    routes: rule.routes,
                };
                self.active.insert(key, alert);
            }
            Change::Resolved => {
                self.active.remove(&key);
            }
        }
        if self.recent.len() == NOTIFICATIONS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(note.clone());
        note
    }

    /// Forgets the source heard of longest ago when a new one would be one too many for its rule;
    /// a quiet one rather than an active one.
    fn make_room(&mut self, key: &(usize, String)) {
        if self.tracks.contains_key(key) {
            return;
        }
        let of_rule: Vec<(bool, Instant, (usize, String))> = self
            .tracks
            .iter()
            .filter(|((rule, _), _)| *rule == key.0)
            .map(|(key, track)| (track.is_active(), track.last_seen, key.clone()))
            .collect();
        if of_rule.len() < SOURCES_MAX {
            return;
        }
        if let Some((_, _, oldest)) =
            of_rule.into_iter().min_by_key(|(active, seen, _)| (*active, *seen))
        {
            self.tracks.remove(&oldest);
            self.active.remove(&oldest);
            self.evicted += 1;
        }
    }
}

//! Service levels: how fast each objective uses up its error budget.
//!
//! With a target T the budget is B = 1 - T of all samples. The burn rate over a window is
//! (bad / total in the window) / B: at 1 the budget lasts exactly its 30 days. What is left of it is
//! max(0, (B - bad / total over 30 days) / B).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::config::Objective;

/// Objectives followed at once; more is a sender gone wild, and its samples are counted as lost.
const OBJECTIVES_MAX: usize = 32;
/// Width of one bucket. A window therefore begins up to an hour early, never late.
const BUCKET: Duration = Duration::from_secs(3600);
/// Buckets of the budget's 30 days.
const BUCKETS_30D: u64 = 720;
/// Buckets of the alert's window.
const BUCKETS_24H: u64 = 24;
/// With fewer samples in 24 h a burn rate is noise, and does not alert.
pub const SAMPLES_MIN: u64 = 50;

/// Target and burn limit of an objective that no setting names.
const DEFAULT_TARGET: f64 = 0.999;
const DEFAULT_BURN_LIMIT: f64 = 12.0;

/// Burn rate of `bad` out of `total` for a target; 0 without samples.
pub fn burn_rate(bad: u64, total: u64, target: f64) -> f64 {
    error_share(bad, total) / (1.0 - target)
}

/// Share of the budget that is left, from 0 to 1.
pub fn budget_left(bad: u64, total: u64, target: f64) -> f64 {
    let budget = 1.0 - target;
    ((budget - error_share(bad, total)) / budget).max(0.0)
}

fn error_share(bad: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { bad as f64 / total as f64 }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Hours since the tracker began.
    hour: u64,
    bad: u64,
    total: u64,
}

#[derive(Debug, Clone)]
struct Track {
    target: f64,
    burn_limit: f64,
    /// Oldest first, at most [`BUCKETS_30D`]. Bounded by time, not by samples.
    buckets: VecDeque<Bucket>,
}

impl Track {
    fn sums(&self, hour: u64, width: u64) -> (u64, u64) {
        self.buckets
            .iter()
            .filter(|bucket| bucket.hour + width > hour)
            .fold((0, 0), |(bad, total), bucket| (bad + bucket.bad, total + bucket.total))
    }
}

/// Where one objective stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Level {
    /// Its name.
    pub name: String,
    /// Share of samples that must be good.
    pub target: f64,
    /// Samples of the last 30 days.
    pub total: u64,
    /// Bad ones among them.
    pub violations: u64,
    /// Burn rate over the last hour.
    pub burn_rate_1h: f64,
    /// Burn rate over the last 24 hours; alerts from `burn_limit`.
    pub burn_rate: f64,
    /// The limit.
    pub burn_limit: f64,
    /// Share of the 30-day budget that is left.
    pub budget_left: f64,
}

/// All objectives.
#[derive(Debug, Clone)]
pub struct Levels {
    began: Instant,
    settings: Vec<Objective>,
    tracks: BTreeMap<String, Track>,
    lost: u64,
}

impl Levels {
    /// No samples yet.
    pub fn new(now: Instant, settings: Vec<Objective>) -> Self {
        Self { began: now, settings, tracks: BTreeMap::new(), lost: 0 }
    }

    /// Takes one sample and returns its objective's burn rate over 24 h divided by its limit, once
    /// there are [`SAMPLES_MIN`] samples; from 1 on it alerts.
    pub fn sample(&mut self, now: Instant, name: &str, verdict: Verdict) -> Option<f64> {
        let hour = self.hour(now);
        if !self.tracks.contains_key(name) {
            if self.tracks.len() >= OBJECTIVES_MAX {
                self.lost += 1;
                return None;
            }
            let track = self.begin(name);
            self.tracks.insert(name.to_owned(), track);
        }
        let track = self.tracks.get_mut(name)?;
        track.buckets.retain(|bucket| bucket.hour + BUCKETS_30D > hour);
        if track.buckets.back().is_none_or(|bucket| bucket.hour != hour) {
            track.buckets.push_back(Bucket { hour, bad: 0, total: 0 });
        }
        let bucket = track.buckets.back_mut()?;
        bucket.total += 1;
        bucket.bad += u64::from(verdict == Verdict::Bad);
        let (bad, total) = track.sums(hour, BUCKETS_24H);
        (total >= SAMPLES_MIN).then(|| burn_rate(bad, total, track.target) / track.burn_limit)
    }

    /// Where every objective stands, by name.
    pub fn levels(&self, now: Instant) -> Vec<Level> {
        let hour = self.hour(now);
        self.tracks
            .iter()
            .map(|(name, track)| {
                let (violations, total) = track.sums(hour, BUCKETS_30D);
                let (bad_day, day) = track.sums(hour, BUCKETS_24H);
                let (bad_hour, in_hour) = track.sums(hour, 1);
                Level {
                    name: name.clone(),
                    target: track.target,
                    total,
                    violations,
                    burn_rate_1h: burn_rate(bad_hour, in_hour, track.target),
                    burn_rate: burn_rate(bad_day, day, track.target),
                    burn_limit: track.burn_limit,
                    budget_left: budget_left(violations, total, track.target),
                }
            })
            .collect()
    }

    /// Samples of objectives beyond the bound.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn begin(&self, name: &str) -> Track {
        let set = self.settings.iter().find(|objective| objective.name == name);
        Track {
            target: set.map_or(DEFAULT_TARGET, |objective| objective.target),
            burn_limit: set.map_or(DEFAULT_BURN_LIMIT, |objective| objective.burn_limit),
            buckets: VecDeque::new(),
        }
    }

    fn hour(&self, now: Instant) -> u64 {
        now.duration_since(self.began).as_secs() / BUCKET.as_secs()
    }
}

/// Whether a sample met its objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It did.
    Good,
    /// It did not.
    Bad,
}

impl Verdict {
    /// Good if the value is at most the objective. A value that is not a number is bad.
    pub fn of(actual: f64, objective: f64) -> Self {
        if actual <= objective { Self::Good } else { Self::Bad }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    /// The vectors of the specification.
    #[test]
    fn burn_rate_is_errors_over_budget() {
        close(burn_rate(1, 1000, 0.999), 1.0);
        close(burn_rate(12, 1000, 0.999), 12.0);
        close(burn_rate(0, 0, 0.999), 0.0);
        close(budget_left(1, 2000, 0.999), 0.5);
        close(budget_left(0, 10, 0.999), 1.0);
        close(budget_left(9, 10, 0.999), 0.0);
    }

    fn feed(levels: &mut Levels, at: Instant, bad: u64, total: u64) -> Option<f64> {
        let mut last = None;
        for number in 0..total {
            let verdict = if number < bad { Verdict::Bad } else { Verdict::Good };
            last = levels.sample(at, "x", verdict);
        }
        last
    }

    #[test]
    fn twelve_bad_in_a_thousand_reach_the_limit_and_one_does_not() {
        let now = Instant::now();
        close(feed(&mut Levels::new(now, Vec::new()), now, 12, 1000).unwrap(), 1.0);
        close(feed(&mut Levels::new(now, Vec::new()), now, 1, 1000).unwrap(), 1.0 / 12.0);
    }

    #[test]
    fn a_few_samples_are_no_rate() {
        let now = Instant::now();
        assert_eq!(feed(&mut Levels::new(now, Vec::new()), now, 1, SAMPLES_MIN - 1), None);
    }

    #[test]
    fn what_is_older_than_its_window_no_longer_counts() {
        let began = Instant::now();
        let mut levels = Levels::new(began, Vec::new());
        feed(&mut levels, began, 12, 1000);
        let next_day = began + Duration::from_secs(25 * 3600);
        close(feed(&mut levels, next_day, 0, 1000).unwrap(), 0.0);
        let level = &levels.levels(next_day)[0];
        assert_eq!((level.total, level.violations), (2000, 12));
        close(level.budget_left, 0.0);
        let next_month = began + Duration::from_secs(31 * 24 * 3600);
        let level = &levels.levels(next_month)[0];
        assert_eq!((level.total, level.violations), (1000, 0), "only the second day is left");
    }

    #[test]
    fn memory_is_bounded_by_time_and_by_name() {
        let began = Instant::now();
        let mut levels = Levels::new(began, Vec::new());
        for hour in 0..2000 {
            levels.sample(began + BUCKET * hour, "x", Verdict::Good);
        }
        assert!(levels.tracks["x"].buckets.len() as u64 <= BUCKETS_30D);
        for number in 0..100 {
            levels.sample(began, &number.to_string(), Verdict::Good);
        }
        assert_eq!((levels.tracks.len(), levels.lost()), (OBJECTIVES_MAX, 100 - 31));
    }

    #[test]
    fn an_objective_is_met_up_to_and_including_it() {
        assert_eq!(Verdict::of(18.0, 18.0), Verdict::Good);
        assert_eq!(Verdict::of(18.1, 18.0), Verdict::Bad);
        assert_eq!(Verdict::of(f64::NAN, 18.0), Verdict::Bad);
    }
}

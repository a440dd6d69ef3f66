//! What a measurement says.

use std::time::Duration;

/// One thing that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Publishing, many at once and one at a time.
    Publish,
    /// Reading, verifying, claiming, acknowledging.
    Consume,
    /// Publishing and consuming together, at a rate and in a burst.
    Sustained,
    /// The emergency lane while the normal lane is saturated.
    Emergency,
    /// What a consumer costs that has nothing to do.
    Idle,
    /// The embedded log, every publish on disk before it is answered.
    Durable,
    /// Memory over many messages.
    Memory,
}

impl Part {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 7] = [
        Self::Publish,
        Self::Consume,
        Self::Sustained,
        Self::Emergency,
        Self::Idle,
        Self::Durable,
        Self::Memory,
    ];

    /// How it is called on the command line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
            Self::Sustained => "sustained",
            Self::Emergency => "emergency",
            Self::Idle => "idle",
            Self::Durable => "durable",
            Self::Memory => "memory",
        }
    }

    /// The others count commands of a server or compare with its bare client.
    pub(super) fn applies_to_the_embedded_log(self) -> bool {
        match self {
            Self::Consume | Self::Sustained | Self::Emergency | Self::Durable | Self::Memory => {
                true
            }
            Self::Publish | Self::Idle => false,
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Ours, a median where slices were compared.
    pub ours: f64,
    /// The baseline of the same run.
    pub raw: Option<f64>,
    /// What is asked for, in words.
    pub target: String,
    /// Whether it is met; `None` where nothing is asked for.
    pub met: Option<bool>,
    /// Under which conditions.
    pub conditions: String,
}

impl Row {
    /// Ours over the baseline.
    pub fn ratio(&self) -> Option<f64> {
        self.raw.filter(|raw| *raw > 0.0).map(|raw| self.ours / raw)
    }

    pub(super) fn new(name: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            ours,
            raw: None,
            target: String::new(),
            met: None,
            conditions: String::new(),
        }
    }

    pub(super) fn beside(mut self, raw: f64) -> Self {
        self.raw = Some(raw);
        self
    }

    /// Met when ours is at least this part of the baseline.
    pub(super) fn at_least_ratio(mut self, ratio: f64) -> Self {
        self.target = format!("at least {ratio} of raw");
        self.met = Some(self.ratio().is_some_and(|found| found >= ratio));
        self
    }

    /// Met when ours is at most so much above the baseline.
    pub(super) fn at_most_above(mut self, more: f64) -> Self {
        self.target = format!("at most raw + {more} {}", self.unit);
        self.met = self.raw.map(|raw| self.ours <= raw + more);
        self
    }

    pub(super) fn at_least(mut self, least: f64) -> Self {
        self.target = format!("at least {least} {}", self.unit);
        self.met = Some(self.ours >= least);
        self
    }

    pub(super) fn at_most(mut self, most: f64) -> Self {
        self.target = format!("at most {most} {}", self.unit);
        self.met = Some(self.ours <= most);
        self
    }

    pub(super) fn under(mut self, conditions: impl Into<String>) -> Self {
        self.conditions = conditions.into();
        self
    }
}

/// The middle one; of an even number the upper.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Messages per second.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(super) fn rate(messages: usize, took: Duration) -> f64 {
    messages as f64 / took.as_secs_f64()
}

/// The value below which this part of all lies; sorts them.
pub(super) fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = (times.len() as f64 * part) as usize;
    times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Microseconds.
pub(super) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Milliseconds.
pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_judged_by_what_it_says() {
        let row = Row::new("x", "us", 85.0).beside(100.0);
        assert_eq!(row.clone().at_least_ratio(0.85).met, Some(true));
        assert_eq!(row.clone().at_least_ratio(0.86).met, Some(false));
        assert_eq!(row.clone().at_most_above(15.0).met, Some(true));
        assert_eq!(row.clone().at_most(84.0).met, Some(false));
        assert_eq!(row.at_least(85.0).met, Some(true));
        assert_eq!(Row::new("x", "us", 1.0).at_least_ratio(0.1).met, Some(false), "no baseline");
    }

    #[test]
    fn quantiles_lie_inside() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut times, 0.5), Duration::from_millis(51));
        assert_eq!(quantile(&mut times, 0.99), Duration::from_millis(100));
        assert_eq!(quantile(&mut times, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}

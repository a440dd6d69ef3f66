//! What comes out of a measurement.

use std::time::Duration;

use serde::Serialize;

/// One figure, beside the baseline that was measured with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Unit of value and baseline.
    pub unit: &'static str,
    /// The measured value.
    pub value: f64,
    /// The baseline of the same run, in the same unit.
    pub baseline: Option<f64>,
    /// Value over baseline.
    pub ratio: Option<f64>,
    /// What is aimed at, in words.
    pub target: String,
    /// Whether it was reached; absent without a target.
    pub met: Option<bool>,
    /// What the value and the baseline are of.
    pub conditions: String,
}

impl Figure {
    pub(super) fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        let (name, target, conditions) = (name.into(), String::new(), String::new());
        Self { name, unit, value, baseline: None, ratio: None, target, met: None, conditions }
    }

    /// Beside a baseline in the same unit.
    pub(super) fn beside(self, baseline: f64) -> Self {
        Self { baseline: Some(baseline), ratio: Some(self.value / baseline), ..self }
    }

    /// The value is to be at most this.
    pub(super) fn at_most(self, bound: f64) -> Self {
        let met = self.value <= bound;
        let text = format!("at most {bound} {}", self.unit);
        self.judged(text, met)
    }

    /// The value is to be at least this.
    pub(super) fn at_least(self, bound: f64) -> Self {
        let met = self.value >= bound;
        let text = format!("at least {bound} {}", self.unit);
        self.judged(text, met)
    }

    /// Value over baseline is to be at most this.
    pub(super) fn ratio_at_most(self, bound: f64) -> Self {
        let met = self.ratio.is_some_and(|ratio| ratio <= bound);
        self.judged(format!("at most {bound} of the baseline"), met)
    }

    /// Value over baseline is to be at least this.
    pub(super) fn ratio_at_least(self, bound: f64) -> Self {
        let met = self.ratio.is_some_and(|ratio| ratio >= bound);
        self.judged(format!("at least {bound} of the baseline"), met)
    }

    fn judged(self, text: String, met: bool) -> Self {
        let target = match self.target.is_empty() {
            true => text,
            false => format!("{}, {text}", self.target),
        };
        Self { target, met: Some(met && self.met != Some(false)), ..self }
    }

    /// Says what was done.
    pub(super) fn under(self, conditions: impl Into<String>) -> Self {
        Self { conditions: conditions.into(), ..self }
    }
}

pub(super) fn microseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1e6
}

/// The value below which this part (0 to 1) of the spans lies; zero for none.
pub(super) fn quantile(spans: &mut [Duration], part: f64) -> Duration {
    spans.sort_unstable();
    let last = spans.len().saturating_sub(1);
    let index = (last as f64 * part).round() as usize;
    spans.get(index).copied().unwrap_or_default()
}

pub(super) fn median(spans: &mut [Duration]) -> Duration {
    quantile(spans, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_misses_one_of_its_targets_misses() {
        let figure = || Figure::new("x", "us", 20.0).beside(10.0);
        assert_eq!(figure().met, None);
        assert_eq!(figure().at_most(20.0).ratio_at_most(2.0).met, Some(true));
        assert_eq!(figure().at_most(19.0).ratio_at_most(2.0).met, Some(false));
        assert_eq!(figure().at_least(20.0).ratio_at_least(2.1).met, Some(false));
        let judged = figure().at_most(30.0).ratio_at_most(1.5);
        assert_eq!(judged.target, "at most 30 us, at most 1.5 of the baseline");
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut spans: Vec<Duration> = (1..=101).rev().map(Duration::from_micros).collect();
        assert_eq!(median(&mut spans), Duration::from_micros(51));
        assert_eq!(quantile(&mut spans, 0.99), Duration::from_micros(100));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}

//! Moving figures of the training loop, for state packets and the report.

use std::collections::VecDeque;

/// Epochs over which the volatility of the loss is taken.
const WINDOW: usize = 10;
/// Weight of the newest value in a moving average, as the contract's older programs have it.
const FACTOR: f32 = 0.2;

/// Figures of one epoch's steps.
#[derive(Debug, Default)]
pub(crate) struct EpochFigures {
    count: u32,
    loss: f64,
    norm: f64,
    norm_squares: f64,
}

impl EpochFigures {
    pub(crate) fn add(&mut self, loss: f32, norm: f32) {
        self.count += 1;
        self.loss += f64::from(loss);
        self.norm += f64::from(norm);
        self.norm_squares += f64::from(norm).powi(2);
    }

    pub(crate) fn loss(&self) -> f32 {
        (self.loss / f64::from(self.count.max(1))) as f32
    }

    pub(crate) fn gradient_norm(&self) -> f32 {
        (self.norm / f64::from(self.count.max(1))) as f32
    }

    pub(crate) fn gradient_variance(&self) -> f32 {
        let count = f64::from(self.count.max(1));
        (self.norm_squares / count - (self.norm / count).powi(2)).max(0.0) as f32
    }
}

/// A moving average.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Average(Option<f32>);

impl Average {
    pub(crate) fn add(&mut self, value: f32) -> f32 {
        let average = self.0.map_or(value, |before| before + FACTOR * (value - before));
        self.0 = Some(average);
        average
    }
}

/// Standard deviation of the last losses about their straight line: a loss that falls steadily is not volatile.
#[derive(Debug, Default)]
pub(crate) struct Volatility(VecDeque<f32>);

impl Volatility {
    pub(crate) fn add(&mut self, loss: f32) -> f32 {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(loss);
        let count = self.0.len() as f64;
        if self.0.len() < 3 {
            return 0.0;
        }
        let mean = self.0.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let middle = (count - 1.0) / 2.0;
        let centred = || {
            self.0
                .iter()
                .enumerate()
                .map(|(at, value)| (at as f64 - middle, f64::from(*value) - mean))
        };
        let slope =
            centred().map(|(x, y)| x * y).sum::<f64>() / centred().map(|(x, _)| x * x).sum::<f64>();
        let rest = centred().map(|(x, y)| (y - slope * x).powi(2)).sum::<f64>();
        (rest / count).sqrt() as f32
    }
}

/// The median; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_fall_is_not_volatile_and_a_zigzag_is() {
        let mut steady = Volatility::default();
        let mut zigzag = Volatility::default();
        let (mut calm, mut wild) = (1.0, 0.0);
        for epoch in 0..20 {
            calm = steady.add(2.0 - 0.1 * epoch as f32);
            wild = zigzag.add(if epoch % 2 == 0 { 1.0 } else { 0.5 });
        }
        assert!(calm < 1e-5, "{calm}");
        assert!((0.2..0.3).contains(&wild), "{wild}");
    }

    #[test]
    fn the_variance_is_of_the_norms() {
        let mut figures = EpochFigures::default();
        for norm in [1.0, 3.0] {
            figures.add(0.5, norm);
        }
        assert_eq!(
            (figures.loss(), figures.gradient_norm(), figures.gradient_variance()),
            (0.5, 2.0, 1.0)
        );
    }
}

//! When training is stuck: no clock, only epochs.

use crate::config::PolicyConfig;

/// Watches the validation loss of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plateau {
    smoothed: Option<f32>,
    best: f32,
    waited_epochs: u32,
}

/// What the loss has been doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trend {
    /// It fell lately, or too little was seen yet.
    Improving,
    /// It has stood still for the patience, above what is fine.
    Stuck,
    /// It is as low as wanted.
    Fine,
}

impl Plateau {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { smoothed: None, best: f32::INFINITY, waited_epochs: 0 }
    }

    /// Takes one epoch's validation loss. A loss that is not finite counts as no improvement and
    /// does not enter the average.
    pub fn observe(&mut self, config: &PolicyConfig, loss: f32) -> Trend {
        if !loss.is_finite() {
            self.waited_epochs = self.waited_epochs.saturating_add(1);
            return self.trend(config);
        }
        let smoothed = match self.smoothed {
            Some(before) => before + config.smoothing * (loss - before),
            None => loss,
        };
        self.smoothed = Some(smoothed);
        if smoothed < self.best - config.improvement_min {
            self.best = smoothed;
            self.waited_epochs = 0;
        } else {
            self.waited_epochs = self.waited_epochs.saturating_add(1);
        }
        self.trend(config)
    }

    /// Starts the wait anew, as after the network has changed.
    pub fn reset(&mut self) {
        *self = Self { smoothed: self.smoothed, ..Self::new() };
    }

    /// The smoothed loss, once there is one.
    pub fn smoothed(&self) -> Option<f32> {
        self.smoothed
    }

    /// Epochs since the last improvement.
    pub fn waited_epochs(&self) -> u32 {
        self.waited_epochs
    }

    fn trend(&self, config: &PolicyConfig) -> Trend {
        if self.smoothed.is_some_and(|smoothed| smoothed <= config.loss_fine) {
            Trend::Fine
        } else if self.waited_epochs >= config.patience_epochs {
            Trend::Stuck
        } else {
            Trend::Improving
        }
    }
}

impl Default for Plateau {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PolicyConfig {
        PolicyConfig {
            smoothing: 1.0,
            patience_epochs: 3,
            improvement_min: 0.1,
            ..PolicyConfig::default()
        }
    }

    #[track_caller]
    fn check(losses: &[f32], expected: Trend) {
        let mut plateau = Plateau::new();
        let mut last = Trend::Improving;
        for loss in losses {
            last = plateau.observe(&config(), *loss);
        }
        assert_eq!(last, expected, "{losses:?}");
    }

    #[test]
    fn the_table_of_trends() {
        check(&[1.0], Trend::Improving);
        check(&[1.0, 1.0, 1.0], Trend::Improving);
        check(&[1.0, 1.0, 1.0, 1.0], Trend::Stuck);
        check(&[1.0, 0.95, 0.91, 0.9], Trend::Stuck);
        check(&[1.0, 0.8, 0.6, 0.4], Trend::Improving);
        check(&[1.0, 1.0, 0.5, 0.5], Trend::Improving);
        check(&[1.0, 1.0, 1.0, 0.04], Trend::Fine);
        check(&[1.0, f32::NAN, f32::NAN, f32::INFINITY], Trend::Stuck);
    }

    #[test]
    fn smoothing_delays_and_a_reset_starts_the_wait_anew() {
        let config = PolicyConfig { smoothing: 0.5, ..config() };
        let mut plateau = Plateau::new();
        for loss in [1.0, 0.5, 0.5] {
            plateau.observe(&config, loss);
        }
        assert_eq!(plateau.smoothed(), Some(0.625));
        for _ in 0..8 {
            plateau.observe(&config, 0.5);
        }
        assert_eq!(plateau.observe(&config, 0.5), Trend::Stuck);
        plateau.reset();
        assert_eq!(plateau.waited_epochs(), 0);
        assert_eq!(plateau.observe(&config, 0.5), Trend::Improving);
    }
}

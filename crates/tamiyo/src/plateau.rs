//! When a run has stopped improving, judged on its validation loss. Pure.

use crate::weights::PlateauNumbers;

/// How a run is getting on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing can be said yet.
    WarmingUp,
    /// The loss falls, or has fallen lately.
    Improving,
    /// The loss has not improved for the patience.
    Flat,
    /// The loss is as low as it needs to be.
    TargetReached,
}

/// What is remembered of one run's validation loss.
#[derive(Debug, Clone, Default)]
pub struct Plateau {
    smoothed: Option<f64>,
    best: Option<(f64, u32)>,
    first_epoch: Option<u32>,
    last_epoch: Option<u32>,
}

impl Plateau {
    /// Takes in the loss of an epoch.
    ///
    /// An epoch seen before and a loss that is no number change nothing; an epoch earlier than the
    /// last one means that the run went back to a checkpoint, and everything starts anew. The
    /// smoothed loss is `s·loss + (1−s)·previous`; an improvement is one below the best by more
    /// than the larger of the absolute and the relative minimum.
    pub fn observe(&mut self, epoch: u32, loss: f32, numbers: &PlateauNumbers) {
        match self.last_epoch {
            Some(last) if epoch < last => *self = Self::default(),
            Some(last) if epoch == last => return,
            _ => {}
        }
        if !loss.is_finite() {
            return;
        }
        self.last_epoch = Some(epoch);
        self.first_epoch.get_or_insert(epoch);
        let (loss, weight) = (f64::from(loss), f64::from(numbers.smoothing));
        let smoothed = self.smoothed.map_or(loss, |old| weight * loss + (1.0 - weight) * old);
        self.smoothed = Some(smoothed);
        let improved = self.best.is_none_or(|(best, _)| {
            let relative = f64::from(numbers.min_delta_relative) * best.abs();
            best - smoothed > relative.max(f64::from(numbers.min_delta_absolute))
        });
        if improved {
            self.best = Some((smoothed, epoch));
        }
    }

    /// How the run is getting on after the last epoch taken in.
    pub fn progress(&self, numbers: &PlateauNumbers) -> Progress {
        let (Some(smoothed), Some((_, best_epoch))) = (self.smoothed, self.best) else {
            return Progress::WarmingUp;
        };
        let (first, last) = (self.first_epoch.unwrap_or(0), self.last_epoch.unwrap_or(0));
        if numbers.target_loss > 0.0 && smoothed <= f64::from(numbers.target_loss) {
            Progress::TargetReached
        } else if last - first < numbers.warm_up_epochs {
            Progress::WarmingUp
        } else if last - best_epoch >= numbers.patience_epochs {
            Progress::Flat
        } else {
            Progress::Improving
        }
    }

    /// Forgets the best loss: what grew changes what can be expected, so patience begins again.
    pub fn restart(&mut self) {
        self.best = self.smoothed.zip(self.last_epoch);
    }

    /// The smoothed loss, once there is one.
    pub fn smoothed(&self) -> Option<f64> {
        self.smoothed
    }

    /// Epochs since the last improvement.
    pub fn flat_epochs(&self) -> u32 {
        let last = self.last_epoch.unwrap_or(0);
        self.best.map_or(0, |(_, epoch)| last.saturating_sub(epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: PlateauNumbers = PlateauNumbers {
        patience_epochs: 3,
        min_delta_absolute: 0.01,
        min_delta_relative: 0.1,
        smoothing: 1.0,
        warm_up_epochs: 2,
        target_loss: 0.05,
    };

    #[track_caller]
    fn check(losses: &[f32], numbers: &PlateauNumbers, expected: Progress) {
        let mut plateau = Plateau::default();
        for (epoch, loss) in (0..).zip(losses) {
            plateau.observe(epoch, *loss, numbers);
        }
        assert_eq!(plateau.progress(numbers), expected, "{losses:?}");
    }

    #[test]
    fn the_table() {
        use Progress::*;
        let smooth = PlateauNumbers { smoothing: 0.1, ..NUMBERS };
        for (losses, numbers, expected) in [
            (&[][..], &NUMBERS, WarmingUp),
            (&[1.0, 1.0], &NUMBERS, WarmingUp),
            (&[1.0, 0.5, 0.2], &NUMBERS, Improving),
            (&[1.0, 1.0, 1.0], &NUMBERS, Improving),
            (&[1.0, 1.0, 1.0, 1.0], &NUMBERS, Flat),
            // 5 % is below the relative minimum, 15 % is not.
            (&[1.0, 0.95, 0.95, 0.95], &NUMBERS, Flat),
            (&[1.0, 0.95, 0.85, 0.85], &NUMBERS, Improving),
            // 20 % of a small loss, but below the absolute minimum.
            (&[0.06, 0.052, 0.052, 0.052], &NUMBERS, Flat),
            (&[1.0, 0.05], &NUMBERS, TargetReached),
            (&[1.0, 0.04, 0.04, 0.04, 0.04], &NUMBERS, TargetReached),
            // One lucky epoch counts without smoothing, and not with it.
            (&[1.0, 1.0, 0.6, 1.0, 1.0], &NUMBERS, Improving),
            (&[1.0, 1.0, 0.6, 1.0, 1.0], &smooth, Flat),
            (&[1.0, f32::NAN, f32::INFINITY, 1.0], &NUMBERS, Flat),
        ] {
            check(losses, numbers, expected);
        }
    }

    #[test]
    fn patience_counts_epochs_not_calls() {
        let mut plateau = Plateau::default();
        for _ in 0..100 {
            plateau.observe(0, 1.0, &NUMBERS);
        }
        assert_eq!(plateau.progress(&NUMBERS), Progress::WarmingUp);
        plateau.observe(30, 1.0, &NUMBERS);
        assert_eq!(plateau.progress(&NUMBERS), Progress::Flat, "epochs that sent no packet count");
        assert_eq!(plateau.flat_epochs(), 30);
    }

    #[test]
    fn growth_and_rollback_start_patience_anew() {
        let mut plateau = Plateau::default();
        for epoch in 0..10 {
            plateau.observe(epoch, 1.0, &NUMBERS);
        }
        plateau.restart();
        assert_eq!(plateau.progress(&NUMBERS), Progress::Improving);
        for epoch in 10..13 {
            plateau.observe(epoch, 1.0, &NUMBERS);
        }
        assert_eq!(plateau.progress(&NUMBERS), Progress::Flat);
        plateau.observe(5, 1.0, &NUMBERS);
        assert_eq!(plateau.progress(&NUMBERS), Progress::WarmingUp);
    }
}

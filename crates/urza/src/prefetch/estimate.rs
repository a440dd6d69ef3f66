//! How long a build will still take, from those that have ended.

use std::time::Duration;

/// Taken while none has ended.
const FIRST: Duration = Duration::from_secs(2);
/// Weight of the latest build.
const WEIGHT: f64 = 0.3;
/// Asking again sooner than this is no use,
const MIN: Duration = Duration::from_millis(250);
/// and later than this nobody has to.
const MAX: Duration = Duration::from_secs(30);

/// A moving mean of the time from order to artifact, waiting included.
#[derive(Debug, Default)]
pub(crate) struct Estimate {
    mean: Option<Duration>,
}

impl Estimate {
    /// A build took so long.
    pub(crate) fn observe(&mut self, took: Duration) {
        let took = took.min(MAX);
        let mean = self.mean.unwrap_or(took);
        self.mean = Some(mean.mul_f64(1.0 - WEIGHT) + took.mul_f64(WEIGHT));
    }

    /// What is left of a build that was ordered so long ago. One that has taken longer than usual
    /// is asked for at growing intervals.
    pub(crate) fn left(&self, ordered: Duration) -> Duration {
        let mean = self.mean.unwrap_or(FIRST);
        let left = mean.checked_sub(ordered).unwrap_or(ordered / 2);
        left.clamp(MIN, MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_builds_take() {
        let mut estimate = Estimate::default();
        assert_eq!(estimate.left(Duration::ZERO), FIRST);
        estimate.observe(Duration::from_secs(10));
        assert_eq!(estimate.left(Duration::from_secs(4)), Duration::from_secs(6));
        assert_eq!(estimate.left(Duration::from_secs(10)), MIN);
        assert_eq!(estimate.left(Duration::from_secs(20)), Duration::from_secs(10));
        estimate.observe(Duration::from_secs(20));
        assert_eq!(estimate.left(Duration::ZERO), Duration::from_secs(13));
        assert_eq!(estimate.left(Duration::from_hours(1)), MAX);
    }
}

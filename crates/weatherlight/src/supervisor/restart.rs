//! When a failed worker starts again, and when it has failed too often. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// How a worker is brought back. Times are since the service began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The first restart after a quiet time comes within this.
    pub first_delay_max: Duration,
    /// Upper end of the jitter of the second restart; it doubles with every further one.
    pub delay_min: Duration,
    /// Upper end of the jitter never grows beyond this.
    pub delay_max: Duration,
    /// A worker that ran for so long starts over with the first delay.
    pub settled_after: Duration,
    /// More restarts than this within `window` is giving up.
    pub restarts_max: usize,
    /// The time over which restarts are counted.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            first_delay_max: Duration::from_millis(100),
            delay_min: Duration::from_secs(1),
            delay_max: Duration::from_secs(30),
            settled_after: Duration::from_secs(60),
            restarts_max: 5,
            window: Duration::from_secs(60),
        }
    }
}

impl RestartPolicy {
    /// The delay before the next start after `streak` failures in a row (at least 1), with full
    /// jitter: a share `jitter`, in 0 to 1, of an upper end that doubles.
    pub fn delay(&self, streak: u32, jitter: f64) -> Duration {
        let upper_end = match streak {
            0 | 1 => self.first_delay_max,
            _ => {
                let doublings = (streak - 2).min(16);
                self.delay_min.saturating_mul(1 << doublings).min(self.delay_max)
            }
        };
        upper_end.mul_f64(jitter.clamp(0.0, 1.0))
    }
}

/// What to do about a worker that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this time.
    Restart(Duration),
    /// It failed too often.
    GiveUp,
}

/// The failures of one worker.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Failures since it last ran long enough to be settled.
    streak: u32,
    /// When its latest restarts happen, oldest first; at most `restarts_max` of them.
    restarts: VecDeque<Duration>,
}

impl History {
    /// Decides about a failure at `at` of a worker that ran for `ran`.
    pub fn failed(
        &mut self,
        policy: &RestartPolicy,
        at: Duration,
        ran: Duration,
        jitter: f64,
    ) -> Verdict {
        self.streak = if ran >= policy.settled_after { 1 } else { self.streak.saturating_add(1) };
        let delay = policy.delay(self.streak, jitter);
        let start = at + delay;
        while self.restarts.front().is_some_and(|past| *past + policy.window <= start) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= policy.restarts_max {
            return Verdict::GiveUp;
        }
        self.restarts.push_back(start);
        Verdict::Restart(delay)
    }

    /// Starts over, as an operator's restart does.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_upper_end_doubles_to_its_limit() {
        let policy = RestartPolicy::default();
        let full: Vec<u128> = (1..9).map(|n| policy.delay(n, 1.0).as_millis()).collect();
        assert_eq!(full, [100, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(policy.delay(u32::MAX, 1.0), policy.delay_max);
        assert_eq!(policy.delay(5, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_settled_worker_starts_over() {
        let policy = RestartPolicy::default();
        let mut history = History::default();
        let at = |seconds| SECOND * seconds;
        assert_eq!(history.failed(&policy, at(1), SECOND, 1.0), Verdict::Restart(at(1) / 10));
        assert_eq!(history.failed(&policy, at(2), SECOND, 1.0), Verdict::Restart(at(1)));
        assert_eq!(history.failed(&policy, at(90), at(70), 1.0), Verdict::Restart(at(1) / 10));
    }

    #[test]
    fn the_sixth_restart_within_a_minute_is_refused() {
        let policy = RestartPolicy::default();
        let mut history = History::default();
        for _ in 0..5 {
            assert_ne!(history.failed(&policy, SECOND, SECOND, 0.0), Verdict::GiveUp);
        }
        assert_eq!(history.failed(&policy, SECOND, SECOND, 0.0), Verdict::GiveUp);
        history.forget();
        assert_ne!(history.failed(&policy, SECOND, SECOND, 0.0), Verdict::GiveUp);
    }

    proptest! {
        /// However a worker fails, no window ever holds more restarts than allowed.
        #[test]
        fn the_intensity_is_never_exceeded(
            failures in prop::collection::vec((0_u64..90_000, 0.0_f64..=1.0), 1..60),
        ) {
            let policy = RestartPolicy::default();
            let mut history = History::default();
            let (mut now, mut starts) = (Duration::ZERO, Vec::new());
            for (ran_ms, jitter) in failures {
                let ran = Duration::from_millis(ran_ms);
                now += ran;
                match history.failed(&policy, now, ran, jitter) {
                    Verdict::Restart(delay) => {
                        prop_assert!(delay <= policy.delay_max);
                        now += delay;
                        starts.push(now);
                    }
                    Verdict::GiveUp => now += policy.window,
                }
            }
            for start in &starts {
                let inside = starts.iter().filter(|s| *s >= start && **s < *start + policy.window);
                prop_assert!(inside.count() <= policy.restarts_max);
            }
        }
    }
}

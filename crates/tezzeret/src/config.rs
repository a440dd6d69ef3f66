//! Settings of the forge.

use std::sync::Arc;
use std::time::Duration;

use karn::{Catalogue, Site};
use kernel::Digest;
use kernel::signature::SigningKey;

use crate::strategy::{Budget, Strategy};

/// Fewest prewarm samples: the contract's percentiles are taken over twenty.
pub const PREWARM_SAMPLES_MIN: usize = 20;

/// Settings of one forge. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `vector[32]`: the activation at the host's slots, for which default artifacts are built. With another one every
    /// default artifact is built anew.
    pub site: Site,
    /// Ours alone: the blueprints that are compiled and may be ordered. Whoever reads users' manifests adds theirs.
    pub catalogue: Catalogue,
    /// 0: number from which all starting weights follow. Another one gives other artifacts.
    pub seed: u64,
    /// 2: jobs at a time (one in conservative mode). Each keeps one core busy that training could use.
    pub jobs_max: usize,
    /// 60 s, at least 1 s: how long one attempt at compiling may take, whatever its strategy. Afterwards it is ended and
    /// counted as failed.
    pub deadline: Duration,
    /// 2: attempts at one job before it is parked.
    pub attempts_max: u32,
    /// 1 s: wait before the second attempt; it doubles with each further one.
    pub retry_delay: Duration,
    /// 30 s: the longest such wait.
    pub retry_delay_max: Duration,
    /// 5 min: how long a job that failed for good is refused at once before somebody may order it again.
    pub parked_for: Duration,
    /// 256 jobs waiting, running or parked. The catalogue has 50; the rest is for orders of other parameters.
    pub queue_len_max: usize,
    /// 3 different jobs that fail one after another open the breaker.
    pub breaker_failures: u32,
    /// 60 s: how long the breaker stays open before one job is let through. Never more than twice `deadline`.
    pub breaker_open: Duration,
    /// 3 successes in a row end conservative mode,
    pub calm_successes: u32,
    /// if it was not called for in the last 30 s.
    pub calm_time: Duration,
    /// 2 different jobs that time out
    pub conservative_timeouts: u32,
    /// within 5 min begin conservative mode, as does the breaker's opening.
    pub timeout_window: Duration,
    /// [`Strategy::Standard`]: how much time a job is given. Trouble makes it less, never more.
    pub strategy: Strategy,
    /// 20 timed runs of a fresh kernel, at least [`PREWARM_SAMPLES_MIN`].
    pub prewarm_samples: usize,
    /// None: the key with which artifacts are signed. What this key did not sign is compiled again, which gives the same
    /// bytes if it was honest; nothing is signed that was not made here. Forges on one library should share a key.
    pub signer: Option<Arc<SigningKey>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            site: Site::Vector { features: 32 },
            catalogue: Catalogue::built_in(),
            seed: 0,
            jobs_max: 2,
            deadline: Duration::from_secs(60),
            attempts_max: 2,
            retry_delay: Duration::from_secs(1),
            retry_delay_max: Duration::from_secs(30),
            parked_for: Duration::from_secs(300),
            queue_len_max: 256,
            breaker_failures: 3,
            breaker_open: Duration::from_secs(60),
            calm_successes: 3,
            calm_time: Duration::from_secs(30),
            conservative_timeouts: 2,
            timeout_window: Duration::from_secs(300),
            strategy: Strategy::Standard,
            prewarm_samples: PREWARM_SAMPLES_MIN,
            signer: None,
        }
    }
}

/// A setting out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {found}; it must be {expected}")]
pub struct ConfigFault {
    /// The field.
    pub setting: &'static str,
    /// Its value.
    pub found: String,
    /// What is accepted.
    pub expected: &'static str,
}

impl Config {
    /// Checks every setting.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(&self) -> Result<(), Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, setting, found: String, expected| {
            if !holds {
                faults.push(ConfigFault { setting, found, expected });
            }
        };
        let (jobs, attempts) = (self.jobs_max, self.attempts_max);
        require((1..=64).contains(&jobs), "jobs_max", jobs.to_string(), "1 to 64");
        require((1..=10).contains(&attempts), "attempts_max", attempts.to_string(), "1 to 10");
        let deadline = format!("{:?}", self.deadline);
        require(self.deadline >= Duration::from_secs(1), "deadline", deadline, "at least 1 s");
        let delays = format!("{:?}, {:?}", self.retry_delay, self.retry_delay_max);
        let delays_hold = !self.retry_delay.is_zero() && self.retry_delay <= self.retry_delay_max;
        require(delays_hold, "retry_delay, retry_delay_max", delays, "above 0 and in this order");
        let len = self.queue_len_max;
        require((50..=65_536).contains(&len), "queue_len_max", len.to_string(), "50 to 65536");
        let failures = self.breaker_failures;
        require(failures >= 1, "breaker_failures", failures.to_string(), "at least 1");
        let open = format!("{:?}", self.breaker_open);
        require(!self.breaker_open.is_zero(), "breaker_open", open, "above 0");
        let calm = self.calm_successes;
        require(calm >= 1, "calm_successes", calm.to_string(), "at least 1");
        let timeouts = self.conservative_timeouts;
        require(timeouts >= 2, "conservative_timeouts", timeouts.to_string(), "at least 2");
        let samples = self.prewarm_samples;
        let samples_hold = (PREWARM_SAMPLES_MIN..=10_000).contains(&samples);
        require(samples_hold, "prewarm_samples", samples.to_string(), "20 to 10000");
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// How long the breaker stays open.
    pub(crate) fn breaker_pause(&self) -> Duration {
        self.breaker_open.min(self.deadline * 2)
    }

    /// Wait before the attempt after `failures` failed ones: it doubles, and up to a quarter is added, another quarter
    /// for each job and process, so that what failed at once is not tried again at once.
    pub(crate) fn retry_after(&self, key: &Digest, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let delay = self.retry_delay.saturating_mul(1 << doublings).min(self.retry_delay_max);
        let salt = format!("{} {failures} {}", key.to_hex(), std::process::id());
        let [byte, ..] = *Digest::of(salt).as_bytes();
        delay + delay / 4 * u32::from(byte) / 255
    }

    /// What an attempt may do.
    pub(crate) fn budget(&self, strategy: Strategy) -> Budget {
        Budget::new(strategy, self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_every_fault_is_reported() {
        assert_eq!(Config::default().check(), Ok(()));
        let wrong = Config {
            jobs_max: 0,
            attempts_max: 0,
            deadline: Duration::from_millis(999),
            retry_delay: Duration::from_secs(31),
            queue_len_max: 1,
            breaker_failures: 0,
            breaker_open: Duration::ZERO,
            calm_successes: 0,
            conservative_timeouts: 1,
            prewarm_samples: 19,
            ..Config::default()
        };
        let faults = wrong.check().unwrap_err();
        assert_eq!(faults.len(), 10, "{faults:?}");
        assert_eq!(faults[2].to_string(), "deadline is 999ms; it must be at least 1 s");
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        let config = Config::default();
        let key = Digest::of("job");
        for (failures, seconds) in [(1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (99, 30.0)] {
            let delay = config.retry_after(&key, failures).as_secs_f64();
            assert!((seconds..=seconds * 1.25).contains(&delay), "{failures}: {delay}");
        }
        let others: std::collections::BTreeSet<_> =
            (0..32_u8).map(|job| config.retry_after(&Digest::of([job]), 1)).collect();
        assert!(others.len() > 8, "jobs that fail together do not come back together: {others:?}");
        let hasty = Config { deadline: Duration::from_secs(5), ..config };
        assert_eq!(hasty.breaker_pause(), Duration::from_secs(10));
    }
}

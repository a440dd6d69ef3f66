//! The breaker and the conservative mode: two small machines that see only how jobs end. No clock of their own.
//!
//! The mode has hysteresis: what begins it (the breaker opening, or several jobs that time out) is not what ends it
//! (successes in a row, and a while since it was last called for), and what called for it counts once.

use kernel::Digest;
use leyline::wire::CircuitBreakerState;
use tokio::time::Instant;

use crate::config::Config;
use crate::strategy::Strategy;

/// Failed jobs told apart; far more than open the breaker.
const REMEMBERED_MAX: usize = 64;

/// Whether jobs may start, and how carefully. Learns from every attempt that ends.
#[derive(Debug)]
pub(crate) struct Health {
    position: Position,
    /// Different jobs that failed since the last success, newest last. One poisoned blueprint, however often it is
    /// tried, is one of them: it must not stop the others.
    failed_in_a_row: Vec<Digest>,
    /// Jobs that timed out, with when, newest last.
    timed_out: Vec<(Digest, Instant)>,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Normal,
    Conservative {
        /// When it was last called for.
        since: Instant,
        /// Successes in a row.
        calm: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Position {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            position: Position::Closed,
            failed_in_a_row: Vec::new(),
            timed_out: Vec::new(),
            mode: Mode::Normal,
        }
    }

    /// Whether a job may start now; the half-open breaker lets one through at a time.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        if let Position::Open { until } = self.position
            && until <= now
        {
            self.position = Position::HalfOpen { probing: false };
        }
        match &mut self.position {
            Position::Closed => true,
            Position::Open { .. } => false,
            Position::HalfOpen { probing } => !std::mem::replace(probing, true),
        }
    }

    /// Takes back an admission that was not used.
    pub(crate) fn unused(&mut self) {
        if let Position::HalfOpen { probing } = &mut self.position {
            *probing = false;
        }
    }

    /// When [`Health::admit`] will next say yes; `None` while only the end of a running job can tell.
    pub(crate) fn next_admission(&self, now: Instant) -> Option<Instant> {
        match self.position {
            Position::Closed | Position::HalfOpen { probing: false } => Some(now),
            Position::Open { until } => Some(until),
            Position::HalfOpen { probing: true } => None,
        }
    }

    pub(crate) fn succeeded(&mut self, now: Instant, config: &Config) {
        self.failed_in_a_row.clear();
        // A job that was running when the breaker opened says nothing about now.
        if let Position::HalfOpen { .. } = self.position {
            self.position = Position::Closed;
        }
        if let Mode::Conservative { calm, .. } = &mut self.mode {
            *calm = calm.saturating_add(1);
        }
        self.relax(now, config);
    }

    /// Ends conservative mode where nothing calls for it any longer.
    pub(crate) fn relax(&mut self, now: Instant, config: &Config) {
        let Mode::Conservative { since, calm } = self.mode else { return };
        let is_calm = calm >= config.calm_successes && since + config.calm_time <= now;
        if is_calm && self.position == Position::Closed {
            self.mode = Mode::Normal;
            // What called for it has been answered: it takes new trouble to begin it again.
            self.timed_out.clear();
        }
    }

    /// When [`Health::relax`] may end conservative mode by time alone.
    pub(crate) fn next_relaxation(&self, config: &Config) -> Option<Instant> {
        match self.mode {
            Mode::Conservative { since, calm } if calm >= config.calm_successes => {
                (self.position == Position::Closed).then(|| since + config.calm_time)
            }
            Mode::Normal | Mode::Conservative { .. } => None,
        }
    }

    /// Takes note of a job that was not done in time; to be told before [`Health::failed`].
    pub(crate) fn timed_out(&mut self, job: Digest, now: Instant, config: &Config) {
        let window = config.timeout_window;
        self.timed_out.retain(|(other, at)| *other != job && now < *at + window);
        self.timed_out.push((job, now));
        let excess = self.timed_out.len().saturating_sub(REMEMBERED_MAX);
        self.timed_out.drain(..excess);
        if self.timed_out.len() >= config.conservative_timeouts as usize {
            self.begin_conservative(now);
        }
    }

    fn begin_conservative(&mut self, now: Instant) {
        self.mode = Mode::Conservative { since: now, calm: 0 };
    }

    /// Returns whether this failure opened the breaker.
    pub(crate) fn failed(&mut self, job: Digest, now: Instant, config: &Config) -> bool {
        self.failed_in_a_row.retain(|other| *other != job);
        self.failed_in_a_row.push(job);
        let excess = self.failed_in_a_row.len().saturating_sub(REMEMBERED_MAX);
        self.failed_in_a_row.drain(..excess);
        if let Mode::Conservative { calm, .. } = &mut self.mode {
            *calm = 0;
        }
        let opens = match self.position {
            Position::Closed => self.consecutive_failures() >= config.breaker_failures,
            Position::HalfOpen { .. } => true,
            Position::Open { .. } => false,
        };
        if opens {
            self.position = Position::Open { until: now + config.breaker_pause() };
            self.begin_conservative(now);
        }
        opens
    }

    pub(crate) fn is_conservative(&self) -> bool {
        self.mode != Mode::Normal
    }

    /// The strategy of the next job: the one that is set, or a quicker one where trouble calls for it.
    pub(crate) fn strategy(&self, set: Strategy) -> Strategy {
        match (self.mode, self.position) {
            (Mode::Normal, Position::Closed) => set,
            (Mode::Conservative { .. }, _)
            | (_, Position::Open { .. } | Position::HalfOpen { .. }) => {
                set.min(Strategy::Conservative)
            }
        }
    }

    pub(crate) fn consecutive_failures(&self) -> u32 {
        u32::try_from(self.failed_in_a_row.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn state(&self) -> CircuitBreakerState {
        match self.position {
            Position::Closed => CircuitBreakerState::CircuitStateClosed,
            Position::Open { .. } => CircuitBreakerState::CircuitStateOpen,
            Position::HalfOpen { .. } => CircuitBreakerState::CircuitStateHalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{
        Just, Strategy as Strategies, prop, prop_assert, prop_oneof, proptest,
    };

    use super::*;

    fn job(number: u8) -> Digest {
        Digest::of([number])
    }

    fn opened(config: &Config, now: Instant) -> Health {
        let mut health = Health::new();
        for number in 0..3 {
            assert!(health.admit(now));
            assert_eq!(health.failed(job(number), now, config), number == 2);
        }
        health
    }

    #[test]
    fn one_poisoned_job_never_opens_it() {
        let (config, now, mut health) = (Config::default(), Instant::now(), Health::new());
        for _ in 0..10 {
            assert!(health.admit(now));
            assert!(!health.failed(job(1), now, &config));
        }
        assert_eq!(health.consecutive_failures(), 1);
        assert!(!health.is_conservative());
    }

    #[test]
    fn half_open_lets_one_through_and_follows_its_end() {
        let (config, now) = (Config::default(), Instant::now());
        let mut health = opened(&config, now);
        assert!(!health.admit(now));
        let later = now + config.breaker_pause();
        assert_eq!(health.next_admission(now), Some(later));
        assert!(health.admit(later));
        assert_eq!(health.next_admission(later), None);
        assert!(!health.admit(later), "one at a time");
        assert!(health.failed(job(7), later, &config), "a failed probe opens it again");
        assert!(!health.admit(later + config.breaker_pause() - Duration::from_millis(1)));
        let much_later = later + config.breaker_pause();
        assert!(health.admit(much_later));
        health.unused();
        assert!(health.admit(much_later), "an admission that was handed back is there again");
        assert_eq!(health.strategy(Strategy::Standard), Strategy::Conservative);
        assert_eq!(health.strategy(Strategy::Emergency), Strategy::Emergency);
        health.succeeded(much_later, &config);
        assert!(health.admit(much_later) && health.admit(much_later));
    }

    #[test]
    fn conservative_mode_ends_after_calm_not_at_the_first_success() {
        let (config, now) = (Config::default(), Instant::now());
        let mut health = opened(&config, now);
        assert!(health.is_conservative());
        let now = now + config.breaker_pause();
        assert!(health.admit(now));
        health.succeeded(now, &config);
        health.succeeded(now, &config);
        assert!(health.is_conservative());
        health.failed(job(9), now, &config);
        health.succeeded(now, &config);
        health.succeeded(now, &config);
        assert!(health.is_conservative(), "a failure starts the count anew");
        health.succeeded(now, &config);
        assert!(!health.is_conservative());
        assert_eq!(health.strategy(Strategy::Standard), Strategy::Standard);
    }

    #[test]
    fn two_jobs_that_time_out_call_for_it_and_time_must_pass_before_it_ends() {
        let (config, now, mut health) = (Config::default(), Instant::now(), Health::new());
        health.timed_out(job(1), now, &config);
        health.timed_out(job(1), now, &config);
        assert!(!health.is_conservative(), "the same job twice is one");
        let later = now + config.timeout_window;
        health.timed_out(job(2), later, &config);
        assert!(!health.is_conservative(), "the first is long ago");
        health.timed_out(job(3), later, &config);
        assert!(health.is_conservative());
        for _ in 0..10 {
            health.succeeded(later, &config);
        }
        assert!(health.is_conservative(), "calm for no time at all");
        assert_eq!(health.next_relaxation(&config), Some(later + config.calm_time));
        health.relax(later + config.calm_time, &config);
        assert!(!health.is_conservative());
    }

    /// What a forge may see, in any order.
    #[derive(Debug, Clone)]
    enum Seen {
        Success,
        Failure(u8),
        Timeout(u8),
        Later(u64),
    }

    fn seen() -> impl Strategies<Value = Seen> {
        prop_oneof![
            4 => Just(Seen::Success),
            2 => (0..6_u8).prop_map(Seen::Failure),
            2 => (0..6_u8).prop_map(Seen::Timeout),
            2 => (1..40_u64).prop_map(Seen::Later),
        ]
    }

    proptest! {
        /// It never flaps: it lasts a while and ends in calm, and begins again only by two new failures at least.
        #[test]
        fn conservative_mode_has_hysteresis(all in prop::collection::vec(seen(), 1..300)) {
            let (config, mut now, mut health) = (Config::default(), Instant::now(), Health::new());
            let (mut is, mut changed, mut successes, mut failures) = (false, now, 0, 2);
            for one in all {
                match one {
                    Seen::Later(seconds) => now += Duration::from_secs(seconds),
                    // Nothing ends that was not admitted.
                    Seen::Success if health.admit(now) => {
                        health.succeeded(now, &config);
                        successes += 1;
                    }
                    Seen::Failure(number) if health.admit(now) => {
                        health.failed(job(number), now, &config);
                        (successes, failures) = (0, failures + 1);
                    }
                    Seen::Timeout(number) if health.admit(now) => {
                        health.timed_out(job(number), now, &config);
                        health.failed(job(number), now, &config);
                        (successes, failures) = (0, failures + 1);
                    }
                    Seen::Success | Seen::Failure(_) | Seen::Timeout(_) => {}
                }
                health.relax(now, &config);
                if health.is_conservative() == is {
                    continue;
                }
                is = !is;
                if is {
                    prop_assert!(failures >= 2, "it began again after {failures} failures");
                } else {
                    prop_assert!(changed + config.calm_time <= now, "it lasted {:?}", now - changed);
                    prop_assert!(successes >= config.calm_successes, "it ended in trouble");
                    failures = 0;
                }
                changed = now;
            }
        }
    }

    #[test]
    fn a_late_success_does_not_close_an_open_breaker() {
        let (config, now) = (Config::default(), Instant::now());
        let mut health = opened(&config, now);
        health.succeeded(now, &config);
        assert!(!health.admit(now));
    }
}

//! The breaker and the conservative mode: two small machines that see only how jobs end. No clock of their own.

use kernel::Digest;
use leyline::wire::CircuitBreakerState;
use tokio::time::Instant;

use crate::config::Config;

/// Failed jobs told apart; far more than open the breaker.
const REMEMBERED_MAX: usize = 64;

/// Whether jobs may start, and how carefully. Learns from every attempt that ends.
#[derive(Debug)]
pub(crate) struct Health {
    position: Position,
    /// Different jobs that failed since the last success, newest last. One poisoned blueprint, however often it is
    /// tried, is one of them: it must not stop the others.
    failed_in_a_row: Vec<Digest>,
    conservative: bool,
    /// Successes since conservative mode began.
    calm: u32,
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
            conservative: false,
            calm: 0,
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

    pub(crate) fn succeeded(&mut self, config: &Config) {
        self.failed_in_a_row.clear();
        // A job that was running when the breaker opened says nothing about now.
        if let Position::HalfOpen { .. } = self.position {
            self.position = Position::Closed;
        }
        if self.conservative {
            self.calm += 1;
            self.conservative = self.calm < config.calm_successes;
        }
    }

    /// Returns whether this failure opened the breaker.
    pub(crate) fn failed(&mut self, job: Digest, now: Instant, config: &Config) -> bool {
        self.failed_in_a_row.retain(|other| *other != job);
        self.failed_in_a_row.push(job);
        let excess = self.failed_in_a_row.len().saturating_sub(REMEMBERED_MAX);
        self.failed_in_a_row.drain(..excess);
        self.calm = 0;
        let opens = match self.position {
            Position::Closed => self.consecutive_failures() >= config.breaker_failures,
            Position::HalfOpen { .. } => true,
            Position::Open { .. } => false,
        };
        if opens {
            self.position = Position::Open { until: now + config.breaker_pause() };
            self.conservative = true;
        }
        opens
    }

    pub(crate) fn is_conservative(&self) -> bool {
        self.conservative
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
        health.succeeded(&config);
        assert!(health.admit(much_later) && health.admit(much_later));
    }

    #[test]
    fn conservative_mode_ends_after_calm_not_at_the_first_success() {
        let (config, now) = (Config::default(), Instant::now());
        let mut health = opened(&config, now);
        assert!(health.is_conservative());
        assert!(health.admit(now + config.breaker_pause()));
        health.succeeded(&config);
        health.succeeded(&config);
        assert!(health.is_conservative());
        health.failed(job(9), now, &config);
        health.succeeded(&config);
        health.succeeded(&config);
        assert!(health.is_conservative(), "a failure starts the count anew");
        health.succeeded(&config);
        assert!(!health.is_conservative());
    }

    #[test]
    fn a_late_success_does_not_close_an_open_breaker() {
        let (config, now) = (Config::default(), Instant::now());
        let mut health = opened(&config, now);
        health.succeeded(&config);
        assert!(!health.admit(now));
    }
}

//! A circuit breaker that counts failures of the log, and nothing else.

use std::time::Duration;

use tokio::time::Instant;

/// Limits of a breaker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Failures in a row that open it.
    pub(crate) failures: u32,
    /// How long it stays open.
    pub(crate) open: Duration,
    /// Calls in flight that half-open lets through.
    pub(crate) probes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { probes_left: u32, until: Instant },
}

/// Where a breaker stands, the worse the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakerPosition {
    /// Calls pass.
    Closed,
    /// A few probes pass.
    HalfOpen,
    /// Calls are refused.
    Open,
}

impl BreakerPosition {
    /// The wire contract's number: 1 closed, 2 open, 3 half-open.
    pub const fn number(self) -> u8 {
        match self {
            Self::Closed => 1,
            Self::Open => 2,
            Self::HalfOpen => 3,
        }
    }
}

/// One breaker of a bus, as health reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerStanding {
    /// `publish`, `publish_emergency`, or `consume_<stream>.<group>`.
    pub name: String,
    /// Where it stands.
    pub position: BreakerPosition,
}

/// Closed, open, half-open. Time is passed in; there is no I/O and no clock here.
#[derive(Debug)]
pub(crate) struct Breaker {
    limits: Limits,
    state: State,
}

impl Breaker {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: State::Closed { failures: 0 } }
    }

    /// Lets a call through, or says how long to wait before asking again.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed { .. } => return Ok(()),
            State::Open { until } if now < until => return Err(until - now),
            State::Open { .. } => self.half_open(now),
            // Probes that never came back (their caller was cancelled) do not block for ever.
            State::HalfOpen { until, .. } if until <= now => self.half_open(now),
            State::HalfOpen { .. } => {}
        }
        let State::HalfOpen { probes_left, until } = &mut self.state else { return Ok(()) };
        if *probes_left == 0 {
            return Err(*until - now);
        }
        *probes_left -= 1;
        Ok(())
    }

    /// A call was answered: the log works.
    pub(crate) fn succeeded(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// A call failed for a fault of the log.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.state = match self.state {
            State::Closed { failures } if failures + 1 < self.limits.failures => {
                State::Closed { failures: failures + 1 }
            }
            State::Closed { .. } | State::HalfOpen { .. } => {
                State::Open { until: now + self.limits.open }
            }
            open @ State::Open { .. } => open,
        };
    }

    /// Something else showed that the log answers: no need to sit out the rest of the time.
    pub(crate) fn log_is_alive(&mut self, now: Instant) {
        if let State::Open { .. } = self.state {
            self.half_open(now);
        }
    }

    pub(crate) fn position(&self) -> BreakerPosition {
        match self.state {
            State::Closed { .. } => BreakerPosition::Closed,
            State::Open { .. } => BreakerPosition::Open,
            State::HalfOpen { .. } => BreakerPosition::HalfOpen,
        }
    }

    fn half_open(&mut self, now: Instant) {
        self.state = State::HalfOpen {
            probes_left: self.limits.probes.max(1),
            until: now + self.limits.open,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { failures: 3, open: Duration::from_secs(30), probes: 5 };

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(LIMITS);
        for _ in 0..3 {
            breaker.failed(now);
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn three_failures_in_a_row_open_it_and_a_success_between_starts_over() {
        let now = Instant::now();
        let mut breaker = Breaker::new(LIMITS);
        breaker.failed(now);
        breaker.failed(now);
        breaker.succeeded();
        breaker.failed(now);
        breaker.failed(now);
        assert_eq!(breaker.admit(now), Ok(()));
        breaker.failed(now);
        assert_eq!(breaker.admit(now), Err(LIMITS.open));
        assert_eq!(breaker.position(), BreakerPosition::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_admits_five_and_the_first_failure_reopens() {
        let now = Instant::now();
        let later = now + LIMITS.open;
        let mut breaker = opened(now);
        for _ in 0..5 {
            assert_eq!(breaker.admit(later), Ok(()));
        }
        assert!(breaker.admit(later).is_err());
        breaker.failed(later);
        assert_eq!(breaker.admit(later), Err(LIMITS.open));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_succeeds_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + LIMITS.open), Ok(()));
        breaker.succeeded();
        assert_eq!(breaker.position(), BreakerPosition::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_ends_the_wait() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.log_is_alive(now);
        assert_eq!(breaker.position(), BreakerPosition::HalfOpen);
        assert_eq!(breaker.admit(now), Ok(()));
    }
}

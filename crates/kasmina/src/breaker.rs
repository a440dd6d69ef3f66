//! A circuit breaker: closed, open for a time, then half-open. Decides without a clock.

use std::time::Duration;

use leyline::wire::CircuitBreakerState;

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open.
    pub open_for: Duration,
    /// Successes in a row that close it again.
    pub successes: u32,
}

impl BreakerConfig {
    /// For fetching kernels: 3 failures, 60 s, 2 successes.
    pub const KERNEL: Self = Self { failures: 3, open_for: Duration::from_secs(60), successes: 2 };
    /// For gradient isolation: 3 failures, 30 s, 2 successes.
    pub const ISOLATION: Self =
        Self { failures: 3, open_for: Duration::from_secs(30), successes: 2 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Closed { failures: u32 },
    Open { until: Duration },
    HalfOpen { successes: u32 },
}

/// What a happening did to a breaker, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Counted, nothing changed.
    Count,
    /// It changed its state.
    Transition,
    /// It let nothing through.
    Denied,
    /// A failure while open: it stays open longer.
    Extend,
    /// Somebody set it.
    Forced,
}

impl Action {
    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Transition => "transition",
            Self::Denied => "denied",
            Self::Extend => "extend",
            Self::Forced => "forced",
        }
    }
}

/// One breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    position: Position,
}

impl Breaker {
    /// A closed breaker.
    pub const fn new(config: BreakerConfig) -> Self {
        Self { config, position: Position::Closed { failures: 0 } }
    }

    /// Asks to pass. An open breaker whose time has come becomes half-open and admits.
    ///
    /// # Errors
    /// [`Action::Denied`] while it is open.
    pub fn admit(&mut self, now: Duration) -> Result<Action, Action> {
        match self.position {
            Position::Open { until } if now < until => Err(Action::Denied),
            Position::Open { .. } => {
                self.position = Position::HalfOpen { successes: 0 };
                Ok(Action::Transition)
            }
            Position::Closed { .. } | Position::HalfOpen { .. } => Ok(Action::Count),
        }
    }

    /// Counts a success. In the closed state it forgets earlier failures.
    pub fn succeeded(&mut self) -> Action {
        match &mut self.position {
            Position::Closed { failures } => *failures = 0,
            Position::Open { .. } => {}
            Position::HalfOpen { successes } => {
                *successes += 1;
                if *successes >= self.config.successes {
                    self.position = Position::Closed { failures: 0 };
                    return Action::Transition;
                }
            }
        }
        Action::Count
    }

    /// Counts a failure. One is enough to open a half-open breaker again.
    pub fn failed(&mut self, now: Duration) -> Action {
        let open = Position::Open { until: now + self.config.open_for };
        match &mut self.position {
            Position::Closed { failures } => {
                *failures += 1;
                if *failures < self.config.failures {
                    return Action::Count;
                }
                self.position = open;
                Action::Transition
            }
            Position::Open { .. } => {
                self.position = open;
                Action::Extend
            }
            Position::HalfOpen { .. } => {
                self.position = open;
                Action::Transition
            }
        }
    }

    /// Sets the state by command; `None` for a state that cannot be set.
    pub fn force(&mut self, state: CircuitBreakerState, now: Duration) -> Option<Action> {
        self.position = match state {
            CircuitBreakerState::CircuitStateUnknown => return None,
            CircuitBreakerState::CircuitStateClosed => Position::Closed { failures: 0 },
            CircuitBreakerState::CircuitStateOpen => {
                Position::Open { until: now + self.config.open_for }
            }
            CircuitBreakerState::CircuitStateHalfOpen => Position::HalfOpen { successes: 0 },
        };
        Some(Action::Forced)
    }

    /// The contract's number for the state.
    pub const fn state(&self) -> CircuitBreakerState {
        match self.position {
            Position::Closed { .. } => CircuitBreakerState::CircuitStateClosed,
            Position::Open { .. } => CircuitBreakerState::CircuitStateOpen,
            Position::HalfOpen { .. } => CircuitBreakerState::CircuitStateHalfOpen,
        }
    }

    /// Failures in a row, counted towards opening.
    pub const fn failures(&self) -> u32 {
        match self.position {
            Position::Closed { failures } => failures,
            Position::Open { .. } | Position::HalfOpen { .. } => self.config.failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn opens_waits_probes_and_closes() {
        let mut breaker = Breaker::new(BreakerConfig::KERNEL);
        assert_eq!(breaker.failed(s(0)), Action::Count);
        assert_eq!(breaker.succeeded(), Action::Count);
        assert_eq!([breaker.failed(s(1)), breaker.failed(s(1))], [Action::Count; 2]);
        assert_eq!(breaker.failed(s(2)), Action::Transition);
        assert_eq!(breaker.admit(s(61)), Err(Action::Denied));
        assert_eq!(breaker.failed(s(10)), Action::Extend);
        assert_eq!(breaker.admit(s(69)), Err(Action::Denied));
        assert_eq!(breaker.admit(s(70)), Ok(Action::Transition));
        assert_eq!(breaker.succeeded(), Action::Count);
        assert_eq!(breaker.succeeded(), Action::Transition);
        assert_eq!(breaker.state(), CircuitBreakerState::CircuitStateClosed);
    }

    #[test]
    fn one_failure_opens_a_half_open_breaker() {
        let mut breaker = Breaker::new(BreakerConfig::KERNEL);
        let half_open = CircuitBreakerState::CircuitStateHalfOpen;
        assert_eq!(breaker.force(half_open, s(0)), Some(Action::Forced));
        assert_eq!(breaker.failed(s(0)), Action::Transition);
        assert_eq!(breaker.admit(s(1)), Err(Action::Denied));
        assert_eq!(breaker.force(CircuitBreakerState::CircuitStateUnknown, s(0)), None);
    }
}

//! Strategies: how much time one attempt may take, and what is left out when there is less.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How much time a job is given. Its artifact's bytes do not depend on it; what was left out is recorded beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Strategy {
    /// At most 10 s: one probe, no measured choice of algorithms, and the interpreter where the plan is not checked in
    /// time.
    Emergency,
    /// At most 65 s: one probe. What the forge takes to by itself when compiling fails (conservative mode).
    Conservative,
    /// At most 250 s.
    #[default]
    Standard,
}

impl Strategy {
    /// All, in the order in which they are reported.
    pub const ALL: [Self; 3] = [Self::Standard, Self::Conservative, Self::Emergency];

    /// What is recorded instead when the interpreter runs the kernel.
    pub const EAGER: &str = "eager";

    /// Its name in records, metrics and settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Conservative => "conservative",
            Self::Emergency => "emergency",
        }
    }

    /// Most that one attempt may take under it.
    pub const fn limit(self) -> Duration {
        match self {
            Self::Standard => Duration::from_secs(250),
            Self::Conservative => Duration::from_secs(65),
            Self::Emergency => Duration::from_secs(10),
        }
    }

    /// How many sets of random numbers plan and graph are compared on.
    const fn probes(self) -> u64 {
        match self {
            Self::Standard => 2,
            Self::Conservative | Self::Emergency => 1,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No strategy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no strategy; they are standard, conservative and emergency")]
pub struct UnknownStrategy(pub String);

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.name() == text);
        found.ok_or_else(|| UnknownStrategy(text.chars().take(64).collect()))
    }
}

/// A step that a budget may leave out, in the order in which that happens: the first is given up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Comparing plan and graph on more than one set of numbers.
    FurtherProbes,
    /// Choosing among algorithms by measuring them on this machine; a rule chooses instead.
    Choice,
    /// Timing the finished kernel. It is done later, before the kernel is offered.
    Prewarm,
    /// The only comparison of plan and graph: the interpreter runs the kernel instead.
    Check,
}

impl Step {
    /// All, first given up first.
    pub const ALL: [Self; 4] = [Self::FurtherProbes, Self::Choice, Self::Prewarm, Self::Check];

    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FurtherProbes => "further_probes",
            Self::Choice => "algorithm_choice",
            Self::Prewarm => "prewarm",
            Self::Check => "check",
        }
    }

    /// Percent of the limit after which the step is not begun, or is broken off.
    const fn share(self) -> u32 {
        match self {
            Self::FurtherProbes => 30,
            Self::Choice => 50,
            Self::Prewarm => 80,
            Self::Check => 60,
        }
    }
}

/// What one attempt may do. Decides without a clock: it is told how much time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    strategy: Strategy,
    limit: Duration,
}

impl Budget {
    /// The budget of a strategy where no attempt may take longer than `deadline`.
    pub fn new(strategy: Strategy, deadline: Duration) -> Self {
        Self { strategy, limit: strategy.limit().min(deadline) }
    }

    /// The strategy.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// After this the attempt is ended.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How many sets of random numbers plan and graph are compared on, if time allows.
    pub fn probes(&self) -> u64 {
        self.strategy.probes()
    }

    /// Whether a step may begin, or go on, when so much time has passed.
    pub fn allows(&self, step: Step, elapsed: Duration) -> bool {
        let in_time = elapsed < self.limit * step.share() / 100;
        match step {
            Step::FurtherProbes => in_time && self.probes() > 1,
            Step::Choice => in_time && self.strategy != Strategy::Emergency,
            Step::Prewarm => in_time,
            // Without its check a plan is not used, and only an emergency has the interpreter take its place.
            Step::Check => in_time || self.strategy != Strategy::Emergency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        let fault = "fast".parse::<Strategy>().unwrap_err();
        assert!(fault.to_string().contains("emergency"), "{fault}");
    }

    #[test]
    fn the_deadline_of_an_attempt_goes_before_the_strategys_limit() {
        let limit = |strategy, deadline| {
            Budget::new(strategy, Duration::from_secs(deadline)).limit().as_secs()
        };
        assert_eq!(Strategy::ALL.map(|one| limit(one, 3600)), [250, 65, 10]);
        assert_eq!(Strategy::ALL.map(|one| limit(one, 60)), [60, 60, 10]);
        assert_eq!(Strategy::ALL.map(|one| limit(one, 1)), [1, 1, 1]);
        assert!(Strategy::Emergency < Strategy::Conservative);
    }

    #[test]
    fn what_time_runs_short_for_is_left_out_in_the_stated_order() {
        let left_out = |strategy, seconds| {
            let budget = Budget::new(strategy, Duration::from_secs(100));
            let elapsed = budget.limit() * seconds / 100;
            Step::ALL.into_iter().filter(|step| !budget.allows(*step, elapsed)).collect::<Vec<_>>()
        };
        use Step::*;
        assert_eq!(left_out(Strategy::Standard, 0), []);
        assert_eq!(left_out(Strategy::Standard, 30), [FurtherProbes]);
        assert_eq!(left_out(Strategy::Standard, 50), [FurtherProbes, Choice]);
        assert_eq!(left_out(Strategy::Standard, 80), [FurtherProbes, Choice, Prewarm]);
        assert_eq!(left_out(Strategy::Conservative, 0), [FurtherProbes]);
        assert_eq!(left_out(Strategy::Emergency, 0), [FurtherProbes, Choice]);
        assert_eq!(left_out(Strategy::Emergency, 60), [FurtherProbes, Choice, Check]);
    }
}

//! Conservative mode, and the breakers that keep it on. In conservative mode nothing grows.

use crate::config::{Limits, Operator};
use crate::reason::Reason;
use crate::risk::{Assessment, Punctual};

/// Conservative mode: entered by a risk rule or by an operator.
///
/// The two are kept apart. What a rule began ends by itself, after the cool-down and a row of
/// decisions without a cause, and not while a breaker is open. What an operator began ends when the
/// operator says so, and not before. The cool-down counts epochs, not seconds, so that the same run
/// decides alike on any machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    operator: Operator,
    automatic: Option<Automatic>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Automatic {
    since_epoch: u32,
    good_decisions: u32,
    cause: Reason,
}

/// How the mode changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeChange {
    /// It did not.
    Same,
    /// Conservative mode began.
    Entered(Reason),
    /// Conservative mode ended.
    Exited,
}

impl Mode {
    /// The mode at the start.
    pub fn new(operator: Operator) -> Self {
        Self { operator, automatic: None }
    }

    /// Whether nothing may grow.
    pub fn is_conservative(&self) -> bool {
        self.operator == Operator::Conservative || self.automatic.is_some()
    }

    /// What an operator asks for from now on.
    pub fn set_operator(&mut self, operator: Operator) {
        self.operator = operator;
    }

    /// Takes in what the rules found in one decision.
    pub fn after(
        &mut self,
        assessment: &Assessment,
        epoch: u32,
        breakers_closed: bool,
        limits: &Limits,
    ) -> ModeChange {
        let was = self.is_conservative();
        if let Some(cause) = assessment.enters {
            self.automatic = Some(Automatic { since_epoch: epoch, good_decisions: 0, cause });
        } else if let Some(mode) = &mut self.automatic {
            mode.good_decisions = if assessment.troubled { 0 } else { mode.good_decisions + 1 };
            // A run that went back to a checkpoint counts its cool-down from there.
            mode.since_epoch = mode.since_epoch.min(epoch);
            let cooled = epoch - mode.since_epoch >= limits.cool_down_epochs;
            if cooled && mode.good_decisions >= limits.good_decisions && breakers_closed {
                self.automatic = None;
            }
        }
        match (was, self.is_conservative(), self.automatic) {
            (false, true, Some(mode)) => ModeChange::Entered(mode.cause),
            (true, false, _) => ModeChange::Exited,
            _ => ModeChange::Same,
        }
    }
}

/// Failures in a row that open a breaker.
const FAILURES_MAX: u32 = 3;
/// How long a breaker stays open at least, in milliseconds.
const OPEN_MS: u64 = 100;

/// Counts what came too late. It never refuses a call; while it is open, conservative mode stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    open_since_ms: Option<u64>,
}

/// What a breaker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerStep {
    /// Nothing worth a word.
    Quiet,
    /// Counted a failure.
    Count,
    /// Opened.
    Open,
    /// Closed.
    Close,
}

impl BreakerStep {
    /// The contract's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Count => "count",
            Self::Open => "open",
            Self::Close => "close",
        }
    }
}

impl Breaker {
    /// Takes in one outcome at a time given in Unix milliseconds.
    pub fn observe(&mut self, punctual: Punctual, now_ms: u64) -> BreakerStep {
        match (punctual, self.open_since_ms) {
            (Punctual::Late, Some(_)) => {
                self.open_since_ms = Some(now_ms);
                BreakerStep::Count
            }
            (Punctual::Late, None) => {
                self.failures += 1;
                if self.failures < FAILURES_MAX {
                    return BreakerStep::Count;
                }
                self.open_since_ms = Some(now_ms);
                BreakerStep::Open
            }
            (Punctual::InTime, Some(since)) if now_ms.saturating_sub(since) >= OPEN_MS => {
                *self = Self::default();
                BreakerStep::Close
            }
            (Punctual::InTime, Some(_)) => BreakerStep::Quiet,
            (Punctual::InTime, None) => {
                self.failures = self.failures.saturating_sub(1);
                BreakerStep::Quiet
            }
        }
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        self.open_since_ms.is_none()
    }

    /// Failures counted.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::risk::Action;

    fn assessment(enters: Option<Reason>, troubled: bool) -> Assessment {
        Assessment { action: Action::Nothing, reason: None, enters, troubled, events: Vec::new() }
    }

    const CALM: fn() -> Assessment = || assessment(None, false);

    fn limits() -> Limits {
        Limits { cool_down_epochs: 5, good_decisions: 3, ..Limits::default() }
    }

    #[test]
    fn it_outlives_the_decision_that_began_it() {
        let mut mode = Mode::new(Operator::Normal);
        let spike = assessment(Some(Reason::LossSpike), true);
        assert_eq!(mode.after(&spike, 10, true, &limits()), ModeChange::Entered(Reason::LossSpike));
        for epoch in 11..15 {
            assert_eq!(mode.after(&CALM(), epoch, true, &limits()), ModeChange::Same);
            assert!(mode.is_conservative(), "epoch {epoch}");
        }
        assert_eq!(mode.after(&CALM(), 15, true, &limits()), ModeChange::Exited);
        assert!(!mode.is_conservative());
    }

    #[test]
    fn trouble_starts_the_row_of_good_decisions_anew() {
        let mut mode = Mode::new(Operator::Normal);
        mode.after(&assessment(Some(Reason::LossSpike), true), 0, true, &limits());
        for epoch in 1..=6 {
            mode.after(&assessment(None, epoch == 5), epoch, true, &limits());
        }
        assert!(mode.is_conservative(), "one good decision since the trouble");
        mode.after(&CALM(), 7, true, &limits());
        assert_eq!(mode.after(&CALM(), 8, true, &limits()), ModeChange::Exited);
    }

    #[test]
    fn an_open_breaker_holds_it() {
        let mut mode = Mode::new(Operator::Normal);
        mode.after(&assessment(Some(Reason::TimeoutInference), true), 0, true, &limits());
        for epoch in 1..50 {
            mode.after(&CALM(), epoch, false, &limits());
        }
        assert!(mode.is_conservative());
        assert_eq!(mode.after(&CALM(), 50, true, &limits()), ModeChange::Exited);
    }

    #[test]
    fn only_the_operator_ends_what_the_operator_began() {
        let mut mode = Mode::new(Operator::Conservative);
        mode.after(&assessment(Some(Reason::LossSpike), true), 0, true, &limits());
        for epoch in 1..100 {
            assert_eq!(mode.after(&CALM(), epoch, true, &limits()), ModeChange::Same);
        }
        assert!(mode.is_conservative());
        mode.set_operator(Operator::Normal);
        assert!(!mode.is_conservative());
    }

    #[test]
    fn a_breaker_opens_after_three_and_closes_after_its_time() {
        use Punctual::{InTime, Late};
        let mut breaker = Breaker::default();
        assert_eq!(breaker.observe(Late, 0), BreakerStep::Count);
        assert_eq!(breaker.observe(InTime, 1), BreakerStep::Quiet);
        for (now, expected) in
            [(2, BreakerStep::Count), (3, BreakerStep::Count), (4, BreakerStep::Open)]
        {
            assert_eq!(breaker.observe(Late, now), expected, "at {now}");
        }
        assert_eq!(breaker.observe(InTime, 103), BreakerStep::Quiet);
        assert!(!breaker.is_closed());
        assert_eq!(breaker.observe(InTime, 104), BreakerStep::Close);
        assert_eq!((breaker.is_closed(), breaker.failures()), (true, 0));
    }
}

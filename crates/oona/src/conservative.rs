//! Conservative mode: when a stream stops taking NORMAL and LOW messages, and when it begins again.
//!
//! One [`Lane`] stands for one stream. It is entered at one backlog and left at a lower one that has
//! held for a while (hysteresis), so that it does not flap; and it is entered while the log is away.
//! Pure: depths and times are passed in, there is no I/O and no clock here.

use std::time::Duration;

use leyline::wire::MessagePriority;
use tokio::time::Instant;

use crate::stream::Stream;
use crate::{admission, live};

/// When to enter and when to leave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The backlog from which NORMAL is refused: the mode begins here.
    pub(crate) enter_depth: u64,
    /// The backlog below which it may end.
    pub(crate) recovery_depth: u64,
    /// How long the backlog must stay below that.
    pub(crate) recovery_window: Duration,
}

impl Limits {
    /// The mode's part of the limits in force.
    pub(crate) fn of(limits: &live::Limits) -> Self {
        let enter_depth = admission::normal(limits);
        Self {
            enter_depth,
            // A limit above the beginning of the mode would end it as it begins.
            recovery_depth: limits.recovery_depth.min(enter_depth),
            recovery_window: limits.recovery_window,
        }
    }
}

/// Why a stream takes only HIGH, CRITICAL and emergency messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConservativeBecause {
    /// Its backlog has passed the limit and has not been low for long enough since.
    Backlog,
    /// The breaker of publishing is not closed.
    LogAway,
}

impl ConservativeBecause {
    /// How the reason is called in logs and health reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::LogAway => "log away",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ordinary,
    /// Since when every look has found the backlog low; `None` when the last one did not.
    Backlog {
        low_since: Option<Instant>,
    },
    LogAway,
}

/// What happened, as far as this mode is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The backlog was looked at.
    Depth(u64),
    /// The breaker of publishing opened.
    LogLeft,
    /// The breaker of publishing closed.
    LogReturned,
}

/// One stream's mode, and the backlog last seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    mode: Mode,
    depth: u64,
}

impl Default for Lane {
    fn default() -> Self {
        Self { mode: Mode::Ordinary, depth: 0 }
    }
}

impl Lane {
    /// Takes note of what happened. The only place where the mode changes.
    pub(crate) fn note(&mut self, event: Event, now: Instant, limits: &Limits) {
        if let Event::Depth(depth) = event {
            self.depth = depth;
        }
        let low = self.depth < limits.recovery_depth;
        self.mode = match (self.mode, event) {
            (_, Event::LogLeft) => Mode::LogAway,
            // What piled up before or during the outage has to be worked off first.
            (Mode::LogAway, Event::LogReturned) if !low => Mode::Backlog { low_since: None },
            (Mode::LogAway, Event::LogReturned) => Mode::Ordinary,
            (Mode::Ordinary, Event::Depth(depth)) if depth >= limits.enter_depth => {
                Mode::Backlog { low_since: None }
            }
            (Mode::Backlog { .. }, Event::Depth(_)) if !low => Mode::Backlog { low_since: None },
            (Mode::Backlog { low_since }, Event::Depth(_)) => {
                let since = low_since.unwrap_or(now);
                match now.saturating_duration_since(since) >= limits.recovery_window {
                    true => Mode::Ordinary,
                    false => Mode::Backlog { low_since: Some(since) },
                }
            }
            (mode, Event::Depth(_) | Event::LogReturned) => mode,
        };
    }

    /// The backlog as last seen.
    pub(crate) fn depth(&self) -> u64 {
        self.depth
    }

    /// Why the stream is conservative, if it is.
    pub(crate) fn because(&self) -> Option<ConservativeBecause> {
        match self.mode {
            Mode::Ordinary => None,
            Mode::Backlog { .. } => Some(ConservativeBecause::Backlog),
            Mode::LogAway => Some(ConservativeBecause::LogAway),
        }
    }

    /// Why a message has to wait, if it has to.
    pub(crate) fn pauses(
        &self,
        stream: Stream,
        priority: MessagePriority,
    ) -> Option<ConservativeBecause> {
        let urgent = matches!(priority, MessagePriority::High | MessagePriority::Critical);
        let goes_on = urgent || matches!(stream, Stream::Emergency | Stream::DeadLetter);
        if goes_on { None } else { self.because() }
    }

    /// When the mode can end at the earliest, for a backlog that stays low from now on.
    pub(crate) fn retry_after(&self, now: Instant, limits: &Limits) -> Duration {
        match self.mode {
            Mode::Backlog { low_since: Some(since) } => {
                limits.recovery_window.saturating_sub(now.saturating_duration_since(since))
            }
            Mode::Ordinary | Mode::Backlog { low_since: None } | Mode::LogAway => {
                limits.recovery_window
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MessagePriority::{Critical, High, Low, Normal};
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        enter_depth: 8_500,
        recovery_depth: 5_000,
        recovery_window: Duration::from_millis(2_000),
    };

    fn lane(events: &[(Event, u64)]) -> Lane {
        let start = Instant::now();
        let mut lane = Lane::default();
        for (event, at_ms) in events {
            lane.note(*event, start + Duration::from_millis(*at_ms), &LIMITS);
        }
        lane
    }

    #[test]
    fn it_begins_at_one_depth_and_ends_at_another_that_has_held() {
        use Event::Depth;
        let entered = [(Depth(8_499), 0), (Depth(8_500), 1)];
        assert_eq!(lane(&entered[..1]).because(), None);
        assert_eq!(lane(&entered).because(), Some(ConservativeBecause::Backlog));
        // Low, but not for long enough; and one look above starts the window again.
        for (then, because) in [
            (vec![(Depth(5_000), 10), (Depth(5_000), 9_000)], Some(ConservativeBecause::Backlog)),
            (vec![(Depth(4_999), 10), (Depth(0), 2_009)], Some(ConservativeBecause::Backlog)),
            (vec![(Depth(4_999), 10), (Depth(0), 2_010)], None),
            (
                vec![(Depth(0), 10), (Depth(5_000), 1_000), (Depth(0), 1_100), (Depth(0), 3_000)],
                Some(ConservativeBecause::Backlog),
            ),
        ] {
            let events = [entered.to_vec(), then].concat();
            assert_eq!(lane(&events).because(), because, "{events:?}");
        }
    }

    #[test]
    fn it_lasts_as_long_as_the_log_is_away_and_then_until_the_backlog_is_worked_off() {
        use Event::{Depth, LogLeft, LogReturned};
        assert_eq!(lane(&[(LogLeft, 0)]).because(), Some(ConservativeBecause::LogAway));
        assert_eq!(lane(&[(LogLeft, 0), (LogReturned, 1)]).because(), None);
        let piled_up = [(LogLeft, 0), (Depth(5_000), 1), (LogReturned, 2)];
        assert_eq!(lane(&piled_up).because(), Some(ConservativeBecause::Backlog));
        assert_eq!(lane(&[(LogReturned, 0)]).because(), None);
    }

    #[test]
    fn only_normal_and_low_pause_and_emergency_never_does() {
        let lane = lane(&[(Event::Depth(u64::MAX), 0)]);
        for stream in Stream::ALL {
            for priority in [Low, Normal, High, Critical] {
                let pauses = lane.pauses(stream, priority).is_some();
                let may_pause = !matches!(stream, Stream::Emergency | Stream::DeadLetter);
                assert_eq!(pauses, may_pause && matches!(priority, Low | Normal), "{stream}");
            }
        }
    }

    proptest! {
        /// Compared with the rule in words, over any series of looks.
        #[test]
        fn it_follows_the_rule(looks in prop::collection::vec((0_u64..12_000, 0_u64..1_500), 1..200)) {
            let start = Instant::now();
            let (mut lane, mut at_ms) = (Lane::default(), 0);
            let mut seen: Vec<(u64, u64)> = Vec::new();
            let mut expected = false;
            for (depth, gap) in looks {
                at_ms += gap;
                seen.push((at_ms, depth));
                lane.note(Event::Depth(depth), start + Duration::from_millis(at_ms), &LIMITS);
                // Low at every look of an unbroken series that spans the window.
                let low = seen.iter().rev().take_while(|(_, depth)| *depth < 5_000).last();
                let recovered = low.is_some_and(|(since, _)| at_ms - since >= 2_000);
                expected = match expected {
                    false => depth >= 8_500,
                    true => !recovered,
                };
                prop_assert_eq!(lane.because().is_some(), expected, "{:?}", seen);
                prop_assert!(lane.retry_after(start, &LIMITS) <= LIMITS.recovery_window);
                prop_assert_eq!(lane.depth(), depth);
            }
        }
    }
}

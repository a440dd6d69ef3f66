//! Who may publish under pressure, and where to. Pure.
//!
//! The bands, in per cent of `depth_max`: from 50 HIGH and CRITICAL are rerouted, from 75 LOW is
//! refused, from 85 NORMAL (where conservative mode begins as well), from 95 HIGH; CRITICAL never.

use leyline::wire::MessagePriority;

use crate::live::Limits;
use crate::stream::Stream;

/// What becomes of a message at the present backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// To the stream it was meant for.
    Publish,
    /// To the emergency stream.
    Reroute,
    /// Not now.
    Refuse,
}

/// The backlogs at which each priority is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bands {
    emergency: u64,
    low: u64,
    normal: u64,
    high: u64,
}

impl Bands {
    pub(crate) fn of(limits: &Limits) -> Self {
        let high = limits.depth_max.saturating_mul(95) / 100;
        let low = limits.backpressure_threshold;
        let normal = normal(limits);
        Self { emergency: limits.emergency_threshold, low, normal, high: high.max(normal) }
    }

    /// Decides for one message. `depth` is the unacknowledged backlog of the stream's group.
    pub(crate) fn admit(&self, stream: Stream, priority: MessagePriority, depth: u64) -> Admission {
        use MessagePriority as P;
        let urgent = matches!(priority, P::High | P::Critical);
        if urgent && stream.may_reroute() && depth >= self.emergency {
            return Admission::Reroute;
        }
        self.admit_at_home(priority, depth)
    }

    /// Decides for a message that stays on its own stream.
    pub(crate) fn admit_at_home(&self, priority: MessagePriority, depth: u64) -> Admission {
        use MessagePriority as P;
        let limit = match priority {
            P::Low => self.low,
            P::Unspecified | P::Normal => self.normal,
            P::High => self.high,
            P::Critical => return Admission::Publish,
        };
        if depth >= limit { Admission::Refuse } else { Admission::Publish }
    }
}

/// From here on NORMAL is refused: half-way between LOW and HIGH, 85 % of `depth_max` by default.
pub(crate) fn normal(limits: &Limits) -> u64 {
    let (low, high) = (limits.backpressure_threshold, limits.depth_max.saturating_mul(95) / 100);
    low.max(low.midpoint(high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use Admission::{Publish, Refuse, Reroute};
    use MessagePriority::{Critical, High, Low, Normal};

    #[test]
    fn low_goes_first_then_normal_then_high_and_critical_never() {
        let bands = Bands::of(&Config::default().limits());
        let table = [
            (0, [Publish; 4]),
            (7_499, [Publish; 4]),
            (7_500, [Refuse, Publish, Publish, Publish]),
            (8_500, [Refuse, Refuse, Publish, Publish]),
            (9_500, [Refuse, Refuse, Refuse, Publish]),
            (u64::MAX, [Refuse, Refuse, Refuse, Publish]),
        ];
        for (depth, expected) in table {
            let found = [Low, Normal, High, Critical]
                .map(|priority| bands.admit(Stream::KernelRequests, priority, depth));
            assert_eq!(found, expected, "at {depth}");
        }
    }

    /// The table of the specification: per cent of the limit, and who is turned away from there on.
    #[test]
    fn the_bands_are_per_cent_of_any_limit() {
        for depth_max in [20, 100, 1_000, 10_000, 1_000_000] {
            let config = Config { depth_max, ..Config::default() }.with_bands_of_depth();
            assert_eq!(config.check(), []);
            let bands = Bands::of(&config.limits());
            let at = |percent: u64| depth_max * percent / 100;
            for (percent, priority) in [(75, Low), (85, Normal), (95, High)] {
                let verdict = |depth| bands.admit(Stream::KernelRequests, priority, depth);
                // Half a step of rounding where the limit is small.
                assert_eq!(verdict(at(percent) + 1), Refuse, "{priority:?} of {depth_max}");
                assert_eq!(verdict(at(percent) - 2), Publish, "{priority:?} of {depth_max}");
            }
            assert_eq!(bands.admit(Stream::Normal, High, at(50)), Reroute);
            assert_eq!(bands.admit(Stream::Normal, High, at(50) - 1), Publish);
            assert_eq!(bands.admit(Stream::KernelRequests, Critical, at(100) + 1), Publish);
        }
    }

    #[test]
    fn only_urgent_untyped_traffic_is_rerouted() {
        let bands = Bands::of(&Config::default().limits());
        for stream in Stream::ALL {
            for priority in [Low, Normal, High, Critical] {
                let rerouted = bands.admit(stream, priority, 5_000) == Reroute;
                let may = [Stream::Normal, Stream::Telemetry, Stream::Policy].contains(&stream);
                assert_eq!(rerouted, may && matches!(priority, High | Critical), "{stream}");
            }
        }
    }
}

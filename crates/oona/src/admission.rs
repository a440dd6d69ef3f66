//! Who may publish under pressure, and where to. Pure.

use leyline::wire::MessagePriority;

use crate::config::Config;
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
    pub(crate) fn of(config: &Config) -> Self {
        let high = config.depth_max.saturating_mul(95) / 100;
        let low = config.backpressure_threshold;
        let normal = low.max(low / 2 + high / 2);
        Self { emergency: config.emergency_threshold, low, normal, high: high.max(normal) }
    }

    /// Decides for one message. `depth` is the unacknowledged backlog of the stream's group.
    pub(crate) fn admit(&self, stream: Stream, priority: MessagePriority, depth: u64) -> Admission {
        use MessagePriority as P;
        let urgent = matches!(priority, P::High | P::Critical);
        if urgent && stream.may_reroute() && depth >= self.emergency {
            return Admission::Reroute;
        }
        let limit = match priority {
            P::Low => self.low,
            P::Unspecified | P::Normal => self.normal,
            P::High => self.high,
            P::Critical => return Admission::Publish,
        };
        if depth >= limit { Admission::Refuse } else { Admission::Publish }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Admission::{Publish, Refuse, Reroute};
    use MessagePriority::{Critical, High, Low, Normal};

    #[test]
    fn low_goes_first_then_normal_then_high_and_critical_never() {
        let bands = Bands::of(&Config::default());
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

    #[test]
    fn only_urgent_untyped_traffic_is_rerouted() {
        let bands = Bands::of(&Config::default());
        for stream in Stream::ALL {
            for priority in [Low, Normal, High, Critical] {
                let rerouted = bands.admit(stream, priority, 5_000) == Reroute;
                let may = [Stream::Normal, Stream::Telemetry, Stream::Policy].contains(&stream);
                assert_eq!(rerouted, may && matches!(priority, High | Critical), "{stream}");
            }
        }
    }
}

//! The streams, and which message types each of them carries.

use leyline::wire::BusMessageType;

/// A stream by its purpose. The name it has in the log comes from [`StreamNames`](crate::StreamNames).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// State packets, commands, field reports, safety sheets, benchmarks.
    Normal,
    /// Emergency signals, and what is rerouted under pressure.
    Emergency,
    /// Telemetry packets.
    Telemetry,
    /// Policy updates.
    Policy,
    /// Requests for kernels.
    KernelRequests,
    /// Kernels that are ready, and catalogue updates.
    KernelReady,
    /// Kernels that cannot be had.
    KernelErrors,
    /// What could not be handled, with the reason beside it.
    DeadLetter,
}

impl Stream {
    /// Every stream, in the order in which they are reported.
    pub const ALL: [Self; 8] = [
        Self::Normal,
        Self::Emergency,
        Self::Telemetry,
        Self::Policy,
        Self::KernelRequests,
        Self::KernelReady,
        Self::KernelErrors,
        Self::DeadLetter,
    ];

    /// How the stream is called in metrics and logs, whatever its name in the log is.
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Emergency => "emergency",
            Self::Telemetry => "telemetry",
            Self::Policy => "policy",
            Self::KernelRequests => "kernel_requests",
            Self::KernelReady => "kernel_ready",
            Self::KernelErrors => "kernel_errors",
            Self::DeadLetter => "dead_letter",
        }
    }

    /// The stream on which this project publishes a type; `None` for the unspecified type.
    pub fn home(kind: BusMessageType) -> Option<Self> {
        use BusMessageType as T;
        Some(match kind {
            T::Unspecified => return None,
            T::SystemState
            | T::AdaptationCommand
            | T::FieldReport
            | T::BsdsIssued
            | T::BsdsFailed
            | T::BenchmarkReport => Self::Normal,
            T::EmergencySignal => Self::Emergency,
            T::Telemetry => Self::Telemetry,
            T::PolicyUpdate => Self::Policy,
            T::KernelPrefetchRequest => Self::KernelRequests,
            T::KernelPrefetchReady | T::KernelCatalogUpdate => Self::KernelReady,
            T::KernelPrefetchError => Self::KernelErrors,
        })
    }

    /// Whether entries of this type may stand on this stream. The emergency stream takes, beside
    /// its signals, what pressure reroutes; the dead-letter stream takes whatever died.
    pub fn carries(self, kind: BusMessageType) -> bool {
        match Self::home(kind) {
            None => false,
            Some(home) => {
                home == self
                    || self == Self::DeadLetter
                    || (self == Self::Emergency && home.may_reroute())
            }
        }
    }

    /// Whether pressure may move its HIGH and CRITICAL messages to the emergency stream. Kernel
    /// traffic never changes its stream: its consumers read no other.
    pub fn may_reroute(self) -> bool {
        match self {
            Self::Normal | Self::Telemetry | Self::Policy => true,
            Self::Emergency
            | Self::KernelRequests
            | Self::KernelReady
            | Self::KernelErrors
            | Self::DeadLetter => false,
        }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_declaration() {
        let numbers = Stream::ALL.map(|stream| stream as usize);
        assert_eq!(numbers, std::array::from_fn(|index| index));
    }

    #[test]
    fn every_type_is_carried_at_home_and_nowhere_else_but_by_the_rule() {
        for number in 0..=22 {
            let Ok(kind) = BusMessageType::try_from(number) else { continue };
            let home = Stream::home(kind);
            for stream in Stream::ALL {
                let expected = match home {
                    None => false,
                    Some(home) => {
                        stream == home
                            || stream == Stream::DeadLetter
                            || stream == Stream::Emergency
                                && [Stream::Normal, Stream::Telemetry, Stream::Policy]
                                    .contains(&home)
                    }
                };
                assert_eq!(stream.carries(kind), expected, "{kind:?} on {stream}");
            }
        }
    }
}

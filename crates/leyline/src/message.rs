//! Every payload that may stand in a `BusEnvelope`, as one closed type.

use prost::Message as _;

use crate::time;
use crate::wire::{self, BusMessageType};

/// Why a payload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The number is none of the contract's message types.
    #[error("message type {number} is not part of the contract")]
    UnknownType {
        /// The number found in the envelope.
        number: i32,
    },
    /// The bytes are no message of the declared type.
    #[error("the payload is no valid {kind}")]
    Malformed {
        /// The declared type.
        kind: &'static str,
        /// What the decoder objected to.
        source: prost::DecodeError,
    },
}

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident($payload:ty) = $kind:ident),+ $(,)?) => {
        /// The payload of a bus message. One variant for each message type of the contract.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message {
            $($(#[$doc])* $variant($payload)),+
        }

        impl Message {
            /// The type under which an envelope carries this payload.
            pub fn message_type(&self) -> BusMessageType {
                match self {
                    $(Self::$variant(_) => BusMessageType::$kind),+
                }
            }

            /// The payload's bytes. The same message always gives the same bytes.
            pub fn encode_payload(&self) -> Vec<u8> {
                match self {
                    $(Self::$variant(payload) => payload.encode_to_vec()),+
                }
            }

            /// Reads the payload of an envelope.
            ///
            /// # Errors
            /// [`DecodeError::UnknownType`] for a number outside the contract,
            /// [`DecodeError::Malformed`] for bytes that are no such message.
            pub fn decode(message_type: i32, payload: &[u8]) -> Result<Self, DecodeError> {
                let kind = BusMessageType::try_from(message_type)
                    .map_err(|_| DecodeError::UnknownType { number: message_type })?;
                match kind {
                    BusMessageType::Unspecified => {
                        Err(DecodeError::UnknownType { number: message_type })
                    }
                    $(BusMessageType::$kind => <$payload>::decode(payload)
                        .map(Self::$variant)
                        .map_err(|source| DecodeError::Malformed { kind: stringify!($variant), source })),+
                }
            }
        }

        $(impl From<$payload> for Message {
            fn from(payload: $payload) -> Self {
                Self::$variant(payload)
            }
        })+
    };
}

messages! {
    /// State of a training run.
    SystemState(wire::SystemStatePacket) = SystemState,
    /// A decision of the policy.
    Command(wire::AdaptationCommand) = AdaptationCommand,
    /// What a command was observed to have done.
    FieldReport(wire::FieldReport) = FieldReport,
    /// Metrics, events and health of a subsystem.
    Telemetry(wire::TelemetryPacket) = Telemetry,
    /// A new policy.
    PolicyUpdate(wire::PolicyUpdate) = PolicyUpdate,
    /// Asks for a kernel.
    PrefetchRequest(wire::KernelPrefetchRequest) = KernelPrefetchRequest,
    /// A kernel is ready.
    PrefetchReady(wire::KernelArtifactReady) = KernelPrefetchReady,
    /// A kernel cannot be had.
    PrefetchError(wire::KernelArtifactError) = KernelPrefetchError,
    /// A kernel was compiled and stored.
    CatalogUpdate(wire::KernelCatalogUpdate) = KernelCatalogUpdate,
    /// A signal on the emergency lane.
    Emergency(wire::EmergencySignal) = EmergencySignal,
    /// A safety data sheet was issued.
    BsdsIssued(wire::BsdsIssued) = BsdsIssued,
    /// A safety data sheet could not be issued.
    BsdsFailed(wire::BsdsFailed) = BsdsFailed,
    /// A benchmark was taken.
    Benchmark(wire::BenchmarkReport) = BenchmarkReport,
}

impl Message {
    /// The nonce inside the payload, for the three prefetch messages and the command; `None` for
    /// the others and for an empty one. An envelope's `oona-id` takes precedence.
    pub fn nonce(&self) -> Option<&str> {
        let nonce = match self {
            Self::PrefetchRequest(request) => &request.request_id,
            Self::PrefetchReady(ready) => &ready.request_id,
            Self::PrefetchError(error) => &error.request_id,
            Self::Command(command) => &command.command_id,
            Self::SystemState(_)
            | Self::FieldReport(_)
            | Self::Telemetry(_)
            | Self::PolicyUpdate(_)
            | Self::CatalogUpdate(_)
            | Self::Emergency(_)
            | Self::BsdsIssued(_)
            | Self::BsdsFailed(_)
            | Self::Benchmark(_) => return None,
        };
        (!nonce.is_empty()).then_some(nonce.as_str())
    }

    /// When the payload says it was issued, in Unix milliseconds; `None` where the type carries no
    /// time or the time is absent or impossible.
    pub fn issued_at_ms(&self) -> Option<u64> {
        let issued = match self {
            Self::PrefetchRequest(request) => request.issued_at.as_ref(),
            Self::Command(command) => command.issued_at.as_ref(),
            Self::FieldReport(report) => report.issued_at.as_ref(),
            Self::PolicyUpdate(update) => update.issued_at.as_ref(),
            Self::Telemetry(packet) => packet.timestamp.as_ref(),
            Self::Emergency(signal) => signal.triggered_at.as_ref(),
            Self::BsdsIssued(issued) => {
                issued.bsds.as_ref().and_then(|sheet| sheet.issued_at.as_ref())
            }
            Self::SystemState(packet) => {
                return (packet.timestamp_ns != 0).then_some(packet.timestamp_ns / 1_000_000);
            }
            Self::PrefetchReady(_)
            | Self::PrefetchError(_)
            | Self::CatalogUpdate(_)
            | Self::BsdsFailed(_)
            | Self::Benchmark(_) => None,
        };
        issued.and_then(time::unix_ms)
    }
}

//! Label values. Each is a closed list, so that no sender can grow the registry.

use axum::http::StatusCode;
use leyline::Message;
use leyline::wire::FieldReportOutcome;

/// An enum of label values: variant, its text, and reading it from a text.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
            #[allow(missing_docs, reason = "each variant is its text")]
            pub enum $name { $($variant),+ }

            impl $name {
                /// Every value.
                #[allow(dead_code, reason = "not every label is enumerated")]
                pub const ALL: &[Self] = &[$(Self::$variant),+];

                /// The text on the wire of the metrics endpoint and in JSON.
                pub const fn as_str(self) -> &'static str {
                    match self { $(Self::$variant => $text),+ }
                }
            }

            impl prometheus_client::encoding::EncodeLabelValue for $name {
                fn encode(
                    &self,
                    encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
                ) -> Result<(), std::fmt::Error> {
                    prometheus_client::encoding::EncodeLabelValue::encode(&self.as_str(), encoder)
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str(self.as_str())
                }
            }

            impl serde::Serialize for $name {
                fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    to.serialize_str(self.as_str())
                }
            }
        )+
    };
}
pub(crate) use labels;

labels! {
    /// Which subsystem sent a packet. What is none of ours counts as `other`.
    Source {
        Weatherlight = "weatherlight", Oona = "oona", Urza = "urza", Tezzeret = "tezzeret",
        Kasmina = "kasmina", Tamiyo = "tamiyo", Tolaria = "tolaria", Simic = "simic",
        Urabrask = "urabrask", Karn = "karn", Nissa = "nissa", Other = "other",
    }
    /// Which message was ingested.
    Kind {
        Telemetry = "telemetry", SystemState = "system_state", FieldReport = "field_report",
        Command = "command", Emergency = "emergency", Kernel = "kernel", SafetySheet = "safety_sheet",
        Ignored = "ignored",
    }
    /// Outcome of a field report.
    Outcome {
        Success = "success", Neutral = "neutral", Regression = "regression", Aborted = "aborted",
        Unspecified = "unspecified",
    }
    /// Who issued a safety data sheet.
    Provenance {
        Urabrask = "urabrask", Curated = "curated", Heuristic = "heuristic", External = "external",
        Unspecified = "unspecified",
    }
    /// What was asked for over HTTP.
    Endpoint {
        Page = "page", Live = "livez", Ready = "readyz", Health = "healthz", Metrics = "metrics",
        Summary = "summary", State = "state", Sources = "sources", Events = "events",
        Logs = "logs", Restart = "restart", Reload = "reload", Bus = "bus",
        DeadLetters = "dead_letters", Kernels = "kernels", Unknown = "unknown",
    }
    /// How it was answered.
    Answer {
        Success = "success", Refused = "refused", Failed = "failed",
    }
    /// Why a request was refused before its handler saw it.
    Refusal {
        Host = "host", CrossSite = "cross_site", NoToken = "no_token", BadToken = "bad_token",
        ChangesOff = "changes_off", TimedOut = "timed_out", Subscribers = "subscribers",
        Body = "body", Downloads = "downloads",
    }
}

impl Outcome {
    /// In the order in which the board counts them.
    pub(crate) const BY_PLACE: [Self; 5] =
        [Self::Success, Self::Neutral, Self::Regression, Self::Aborted, Self::Unspecified];

    /// Where the board counts it.
    pub(crate) fn place(self) -> usize {
        self as usize
    }
}

impl Source {
    /// Reads the sender of a packet.
    pub(crate) fn read(text: &str) -> Self {
        Self::ALL.iter().copied().find(|source| source.as_str() == text).unwrap_or(Self::Other)
    }
}

impl Provenance {
    /// Reads the `provenance` attribute of a hazard event.
    pub(crate) fn read(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        let text = text.trim_start_matches("provenance_");
        Self::ALL.iter().copied().find(|known| known.as_str() == text).unwrap_or(Self::Unspecified)
    }
}

impl From<FieldReportOutcome> for Outcome {
    fn from(outcome: FieldReportOutcome) -> Self {
        match outcome {
            FieldReportOutcome::Unspecified => Self::Unspecified,
            FieldReportOutcome::Success => Self::Success,
            FieldReportOutcome::Neutral => Self::Neutral,
            FieldReportOutcome::Regression => Self::Regression,
            FieldReportOutcome::Aborted => Self::Aborted,
        }
    }
}

impl From<&Message> for Kind {
    fn from(message: &Message) -> Self {
        match message {
            Message::Telemetry(_) => Self::Telemetry,
            Message::SystemState(_) => Self::SystemState,
            Message::FieldReport(_) => Self::FieldReport,
            Message::Command(_) => Self::Command,
            Message::Emergency(_) => Self::Emergency,
            Message::PrefetchRequest(_)
            | Message::PrefetchReady(_)
            | Message::PrefetchError(_)
            | Message::CatalogUpdate(_) => Self::Kernel,
            Message::BsdsIssued(_) | Message::BsdsFailed(_) => Self::SafetySheet,
            Message::PolicyUpdate(_) | Message::Benchmark(_) => Self::Ignored,
        }
    }
}

impl From<StatusCode> for Answer {
    fn from(status: StatusCode) -> Self {
        if status.is_success() {
            Self::Success
        } else if status.is_server_error() {
            Self::Failed
        } else {
            Self::Refused
        }
    }
}

//! Which exposed metric each message moves. The board keeps the rest; here is only what existing
//! dashboards read by name.

use leyline::Message;
use leyline::wire::{TelemetryEvent, TelemetryPacket};

use crate::labels::{Outcome, Provenance, Source};
use crate::metrics::{Elevated, Metrics};

/// Prefixes under which the policy reports coverage feature by feature.
const FEATURE_PREFIXES: [&str; 2] = ["tamiyo.gnn.feature_coverage.", "tamiyo.gnn.coverage."];

/// Moves the metrics of one message.
pub(crate) fn observe(metrics: &Metrics, message: &Message, settings: &Settings<'_>) {
    match message {
        Message::Telemetry(packet) => telemetry(metrics, packet, settings),
        Message::SystemState(packet) => {
            metrics.state_packet(Source::read(&packet.source_subsystem));
        }
        Message::FieldReport(report) => metrics.report(Outcome::from(report.outcome())),
        Message::Command(_)
        | Message::PolicyUpdate(_)
        | Message::PrefetchRequest(_)
        | Message::PrefetchReady(_)
        | Message::PrefetchError(_)
        | Message::CatalogUpdate(_)
        | Message::Emergency(_)
        | Message::BsdsIssued(_)
        | Message::BsdsFailed(_)
        | Message::Benchmark(_) => {}
    }
}

/// What the mapping needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    /// Features exposed one by one.
    pub(crate) features: &'a [String],
    /// Risk from which a blueprint counts as elevated.
    pub(crate) elevated_risk: f64,
}

fn telemetry(metrics: &Metrics, packet: &TelemetryPacket, settings: &Settings<'_>) {
    let source = Source::read(&packet.source_subsystem);
    metrics.packet(source);
    for point in packet.metrics.iter().filter(|point| point.value.is_finite()) {
        match point.name.as_str() {
            "tamiyo.gnn.feature_coverage" => metrics.coverage(point.value),
            "tamiyo.blueprint.risk" => {
                let elevated = point.value >= settings.elevated_risk;
                metrics.elevated_risk(if elevated { Elevated::Yes } else { Elevated::No });
            }
            "simic.training.reward" => metrics.reward(point.value),
            "simic.training.iterations" => metrics.iterations(point.value),
            name => {
                let feature = FEATURE_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
                if let Some(feature) = feature
                    && settings.features.iter().any(|known| known == feature)
                {
                    metrics.coverage_of(feature, point.value);
                }
            }
        }
    }
    let counted = packet.metrics.iter().any(|point| point.name == "simic.training.iterations");
    if source == Source::Simic && !counted {
        metrics.iterations(1.0);
    }
    for event in &packet.events {
        match event.description.as_str() {
            "bsds_hazard_high" => metrics.hazard_high(provenance(event)),
            "bsds_hazard_critical" => metrics.hazard_critical(provenance(event)),
            _ => {}
        }
    }
}

fn provenance(event: &TelemetryEvent) -> Provenance {
    event
        .attributes
        .get("provenance")
        .map_or(Provenance::Unspecified, |text| Provenance::read(text))
}

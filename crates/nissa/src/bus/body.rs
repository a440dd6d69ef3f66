//! What a message says, as JSON.

use leyline::Message;
use leyline::time::unix_ms;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, BenchmarkReport, Bsds, BusMessageType, FieldReport, KernelArtifactReady,
    SeedState, SystemStatePacket, TelemetryPacket,
};
use serde_json::{Value, json};

/// How every type's name begins on the wire.
const PREFIX: &str = "BUS_MESSAGE_TYPE_";

/// The short name of a type: `kernel_prefetch_request`.
pub fn kind_name(kind: BusMessageType) -> String {
    kind.as_str_name().trim_start_matches(PREFIX).to_ascii_lowercase()
}

/// The type with that short name.
pub fn kind_named(name: &str) -> Option<BusMessageType> {
    let name = name.to_ascii_uppercase().replace('-', "_");
    BusMessageType::from_str_name(&format!("{PREFIX}{name}"))
        .filter(|kind| *kind != BusMessageType::Unspecified)
}

/// What an operator looks a message up by: its request, its run, or its own id.
pub(super) fn key(message: &Message) -> &str {
    match message {
        Message::SystemState(packet) => &packet.training_run_id,
        Message::Command(command) => &command.command_id,
        Message::FieldReport(report) => &report.report_id,
        Message::Telemetry(packet) => &packet.packet_id,
        Message::PolicyUpdate(update) => &update.policy_id,
        Message::PrefetchRequest(request) => &request.request_id,
        Message::PrefetchReady(ready) => &ready.request_id,
        Message::PrefetchError(error) => &error.request_id,
        Message::CatalogUpdate(update) => &update.blueprint_id,
        Message::Emergency(signal) => &signal.run_id,
        Message::BsdsIssued(issued) => issued.bsds.as_ref().map_or("", |sheet| &sheet.blueprint_id),
        Message::BsdsFailed(failed) => &failed.blueprint_id,
        Message::Benchmark(report) => {
            report.benchmark.as_ref().map_or("", |benchmark| &benchmark.blueprint_id)
        }
    }
}

/// The payload. Bytes that only their reader understands are told by their length.
pub(super) fn body(message: &Message) -> Value {
    match message {
        Message::SystemState(packet) => system_state(packet),
        Message::Command(command) => self::command(command),
        Message::FieldReport(report) => field_report(report),
        Message::Telemetry(packet) => telemetry(packet),
        Message::PolicyUpdate(update) => json!({
            "policy_id": update.policy_id,
            "training_run_id": update.training_run_id,
            "tamiyo_policy_version": update.tamiyo_policy_version,
            "issued_at_ms": update.issued_at.as_ref().and_then(unix_ms),
            "payload_bytes": update.payload.len(),
        }),
        Message::PrefetchRequest(request) => json!({
            "request_id": request.request_id,
            "blueprint_id": request.blueprint_id,
            "training_run_id": request.training_run_id,
            "issued_at_ms": request.issued_at.as_ref().and_then(unix_ms),
        }),
        Message::PrefetchReady(ready) => prefetch_ready(ready),
        Message::PrefetchError(error) => json!({
            "request_id": error.request_id,
            "blueprint_id": error.blueprint_id,
            "reason": error.reason,
        }),
        Message::CatalogUpdate(update) => json!({
            "blueprint_id": update.blueprint_id,
            "artifact_ref": update.artifact_ref,
            "checksum": update.checksum,
            "guard_digest": update.guard_digest,
            "compile_ms": update.compile_ms,
            "prewarm_ms": update.prewarm_ms,
        }),
        Message::Emergency(signal) => json!({
            "level": signal.level().as_str_name(),
            "reason": signal.reason,
            "origin": signal.origin,
            "run_id": signal.run_id,
            "triggered_at_ms": signal.triggered_at.as_ref().and_then(unix_ms),
            "attributes": signal.attributes,
        }),
        Message::BsdsIssued(issued) => json!({ "bsds": issued.bsds.as_ref().map(sheet) }),
        Message::BsdsFailed(failed) => {
            json!({ "blueprint_id": failed.blueprint_id, "reason": failed.reason })
        }
        Message::Benchmark(report) => benchmark(report),
    }
}

fn system_state(packet: &SystemStatePacket) -> Value {
    let seed = |seed: &SeedState| {
        json!({
            "seed_id": seed.seed_id,
            "stage": seed.stage().as_str_name(),
            "gradient_norm": seed.gradient_norm,
            "learning_rate": seed.learning_rate,
            "age_epochs": seed.age_epochs,
            "risk_score": seed.risk_score,
            "metrics": seed.metrics,
        })
    };
    json!({
        "packet_id": packet.packet_id,
        "training_run_id": packet.training_run_id,
        "experiment_name": packet.experiment_name,
        "source_subsystem": packet.source_subsystem,
        "current_epoch": packet.current_epoch,
        "global_step": packet.global_step,
        "training_loss": packet.training_loss,
        "validation_loss": packet.validation_loss,
        "validation_accuracy": packet.validation_accuracy,
        "timestamp_ns": packet.timestamp_ns,
        "training_metrics": packet.training_metrics,
        "seed_states": packet.seed_states.iter().map(seed).collect::<Vec<_>>(),
    })
}

fn command(command: &AdaptationCommand) -> Value {
    let payload = command.payload.as_ref().map(|payload| match payload {
        Payload::SeedOperation(seed) => json!({
            "seed_operation": seed.operation().as_str_name(),
            "blueprint_id": seed.blueprint_id,
            "parameters": seed.parameters,
        }),
        Payload::OptimizerAdjustment(adjustment) => json!({
            "optimizer_id": adjustment.optimizer_id,
            "hyperparameters": adjustment.hyperparameters,
        }),
        Payload::CircuitBreaker(breaker) => json!({
            "desired_state": breaker.desired_state().as_str_name(),
            "rationale": breaker.rationale,
        }),
        Payload::RollbackPayload(fields) => {
            json!({ "rollback": fields.fields.keys().collect::<Vec<_>>() })
        }
    });
    // A signature says nothing to a reader and is long.
    let shown = |(name, _): &(&String, &String)| name.as_str() != "signature";
    let annotations: std::collections::BTreeMap<_, _> =
        command.annotations.iter().filter(shown).collect();
    json!({
        "command_id": command.command_id,
        "command_type": command.command_type().as_str_name(),
        "target_seed_id": command.target_seed_id,
        "execution_deadline_ms": command.execution_deadline_ms,
        "issued_at_ms": command.issued_at.as_ref().and_then(unix_ms),
        "issued_by": command.issued_by,
        "payload": payload,
        "annotations": annotations,
    })
}

fn field_report(report: &FieldReport) -> Value {
    let actions = report.follow_up_actions.iter();
    let action = |action: &leyline::wire::MitigationAction| json!({ "action_type": action.action_type, "rationale": action.rationale });
    json!({
        "report_id": report.report_id,
        "command_id": report.command_id,
        "training_run_id": report.training_run_id,
        "seed_id": report.seed_id,
        "blueprint_id": report.blueprint_id,
        "outcome": report.outcome().as_str_name(),
        "observation_window_epochs": report.observation_window_epochs,
        "issued_at_ms": report.issued_at.as_ref().and_then(unix_ms),
        "tamiyo_policy_version": report.tamiyo_policy_version,
        "metrics": report.metrics,
        "follow_up_actions": actions.map(action).collect::<Vec<_>>(),
        "notes": report.notes,
    })
}

fn telemetry(packet: &TelemetryPacket) -> Value {
    let metrics = packet.metrics.iter();
    let events = packet.events.iter();
    json!({
        "packet_id": packet.packet_id,
        "source_subsystem": packet.source_subsystem,
        "level": packet.level().as_str_name(),
        "timestamp_ms": packet.timestamp.as_ref().and_then(unix_ms),
        "health": packet.system_health.as_ref().map(|health| json!({
            "status": health.status().as_str_name(),
            "summary": health.summary,
            "indicators": health.indicators,
        })),
        "events": events.map(|event| json!({
            "description": event.description,
            "level": event.level().as_str_name(),
            "attributes": event.attributes,
        })).collect::<Vec<_>>(),
        "metrics": metrics.map(|point| json!({
            "name": point.name,
            "value": point.value,
            "unit": point.unit,
            "attributes": point.attributes,
        })).collect::<Vec<_>>(),
        "spans": packet.spans.len(),
    })
}

fn prefetch_ready(ready: &KernelArtifactReady) -> Value {
    json!({
        "request_id": ready.request_id,
        "blueprint_id": ready.blueprint_id,
        "artifact_ref": ready.artifact_ref,
        "checksum": ready.checksum,
        "guard_digest": ready.guard_digest,
        "prewarm_p50_ms": ready.prewarm_p50_ms,
        "prewarm_p95_ms": ready.prewarm_p95_ms,
    })
}

fn sheet(sheet: &Bsds) -> Value {
    json!({
        "blueprint_id": sheet.blueprint_id,
        "risk_score": sheet.risk_score,
        "hazard_band": sheet.hazard_band().as_str_name(),
        "handling_class": sheet.handling_class().as_str_name(),
        "resource_profile": sheet.resource_profile().as_str_name(),
        "recommendation": sheet.recommendation,
        "issued_at_ms": sheet.issued_at.as_ref().and_then(unix_ms),
        "provenance": sheet.provenance().as_str_name(),
    })
}

fn benchmark(report: &BenchmarkReport) -> Value {
    let Some(benchmark) = &report.benchmark else { return Value::Null };
    let profiles = benchmark.profiles.iter();
    json!({
        "blueprint_id": benchmark.blueprint_id,
        "device": benchmark.device,
        "profiles": profiles.map(|profile| json!({
            "name": profile.name,
            "p50_latency_ms": profile.p50_latency_ms,
            "p95_latency_ms": profile.p95_latency_ms,
            "throughput_samples_per_s": profile.throughput_samples_per_s,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_name_that_finds_it() {
        for number in 1..=22 {
            let Ok(kind) = BusMessageType::try_from(number) else { continue };
            assert_eq!(kind_named(&kind_name(kind)), Some(kind));
            let empty = Message::decode(number, &[]).unwrap();
            assert!(body(&empty).is_object() || matches!(empty, Message::Benchmark(_)), "{kind:?}");
            assert_eq!(key(&empty), "");
        }
        assert_eq!(
            kind_named("kernel-prefetch-request"),
            Some(BusMessageType::KernelPrefetchRequest)
        );
        assert_eq!(kind_named("unspecified"), None);
        assert_eq!(kind_named("nonsense"), None);
    }

    #[test]
    fn a_signature_is_not_shown() {
        let mut command = AdaptationCommand { command_id: "c-1".to_owned(), ..Default::default() };
        command.annotations.insert("signature".to_owned(), "c2VjcmV0".to_owned());
        command.annotations.insert("why".to_owned(), "plateau".to_owned());
        let shown = body(&Message::Command(command)).to_string();
        assert!(shown.contains("plateau") && !shown.contains("c2VjcmV0"), "{shown}");
    }
}

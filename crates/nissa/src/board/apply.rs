//! What each message changes on the board. Each is one transition: message and time in, notifications
//! out.

use std::collections::BTreeMap;

use leyline::Message;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, BsdsIssued, EmergencyLevel, EmergencySignal, FieldReport, HazardBand,
    SystemStatePacket, TelemetryPacket,
};

use oona::Stream;

use super::events::{Event, Severity};
use super::runs::Novelty;
use super::{Board, Now, sources};
use crate::alerts::{BUDGET_METRIC, EMERGENCY_EVENT, Notification};
use crate::labels::Outcome;
use crate::slo::Verdict;

/// Pairs of one packet that are read as service levels.
const LEVELS_MAX: usize = 16;

/// A message as it came from the bus.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The message.
    pub message: &'a Message,
    /// The attributes of its envelope.
    pub attributes: &'a BTreeMap<String, String>,
}

/// What a message led to, beside the change of the board.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether it was the first packet of a training run.
    pub new_run: bool,
    /// Alerts that fired or were resolved.
    pub notifications: Vec<Notification>,
}

impl Board {
    /// Applies one message.
    pub fn apply(&mut self, now: Now, received: Received<'_>) -> Applied {
        self.revision += 1;
        self.messages += 1;
        let sent_ms = sent_ms(received).unwrap_or(now.unix_ms);
        match received.message {
            Message::Telemetry(packet) => self.telemetry(now, packet),
            Message::SystemState(packet) => self.system_state(now, packet),
            Message::FieldReport(report) => self.field_report(sent_ms, report),
            Message::Command(command) => self.command(sent_ms, command),
            Message::Emergency(signal) => self.emergency(now, sent_ms, signal),
            Message::BsdsIssued(issued) => self.safety_sheet(now, sent_ms, issued),
            Message::BsdsFailed(failed) => {
                let text = format!("{}: {}", failed.blueprint_id, failed.reason);
                self.note(sent_ms, Severity::Warning, "urabrask", "bsds_failed", text)
            }
            Message::PrefetchRequest(request) => {
                self.kernels.asked(request, sent_ms);
                Applied::default()
            }
            Message::PrefetchReady(ready) => {
                self.kernels.is_ready(ready, sent_ms);
                Applied::default()
            }
            Message::PrefetchError(error) => {
                self.kernels.failed(error, sent_ms);
                let text = format!("{}: {}", error.blueprint_id, error.reason);
                self.note(sent_ms, Severity::Warning, "urza", "kernel_error", text)
            }
            Message::CatalogUpdate(update) => {
                self.kernels.was_compiled(update);
                Applied::default()
            }
            Message::PolicyUpdate(_) | Message::Benchmark(_) => Applied::default(),
        }
    }

    /// Lets time pass: ends alerts of happenings that stopped.
    pub fn tick(&mut self, now: Now) -> Vec<Notification> {
        let ended = self.alerts.tick(now);
        if !ended.is_empty() {
            self.revision += 1;
        }
        ended
    }

    /// Takes one sample of a service level.
    pub fn level(&mut self, now: Now, name: &str, verdict: Verdict) -> Vec<Notification> {
        match self.levels.sample(now.mono, name, verdict) {
            Some(burn) => self.alerts.sample(now, name, BUDGET_METRIC, burn),
            None => Vec::new(),
        }
    }

    /// Takes the backlog of one stream for the group that keeps this board.
    pub fn backlog(
        &mut self,
        now: Now,
        group: &str,
        stream: (Stream, &str),
        depth: u64,
    ) -> Vec<Notification> {
        let (stream, name) = stream;
        if self.backlog.insert(name.to_owned(), depth) != Some(depth) {
            self.revision += 1;
        }
        let metric = format!("oona.queue_depth_{}", stream.label());
        self.alerts.sample(now, group, &metric, depth as f64)
    }

    fn telemetry(&mut self, now: Now, packet: &TelemetryPacket) -> Applied {
        let source = sources::name(packet);
        let at_ms = packet.timestamp.as_ref().and_then(leyline::time::unix_ms);
        let at_ms = at_ms.unwrap_or(now.unix_ms);
        self.sources.report(now, &source, packet);
        let mut notifications = Vec::new();
        for point in worst(packet, |name| self.alerts.watches(name)) {
            notifications.extend(self.alerts.sample(now, &source, point.0, point.1));
        }
        for event in &packet.events {
            let name = event.description.as_str();
            if self.alerts.watches(name) {
                notifications.extend(self.alerts.sample(now, &source, name, 1.0));
            }
            let severity = event.level().into();
            // The policy tells its risk at every decision; a row for each would push out what happened.
            if name == "policy_risk_signal" && severity == Severity::Info {
                continue;
            }
            self.events.push(Event {
                at_ms,
                severity,
                source: source.clone(),
                name: name.to_owned(),
                text: in_words(&event.attributes),
            });
        }
        for (name, verdict) in service_levels(packet) {
            notifications.extend(self.level(now, name, verdict));
        }
        Applied { new_run: false, notifications }
    }

    fn system_state(&mut self, now: Now, packet: &SystemStatePacket) -> Applied {
        let novelty = self.runs.report(now, self.revision, packet);
        Applied { new_run: novelty == Novelty::NewRun, notifications: Vec::new() }
    }

    fn field_report(&mut self, at_ms: u64, report: &FieldReport) -> Applied {
        let outcome = Outcome::from(report.outcome());
        let severity = match outcome {
            Outcome::Success | Outcome::Neutral | Outcome::Unspecified => Severity::Info,
            Outcome::Regression | Outcome::Aborted => Severity::Warning,
        };
        self.reports[outcome.place()] += 1;
        let text = format!("{} {} {outcome} {}", report.seed_id, report.blueprint_id, report.notes);
        self.note(at_ms, severity, "tamiyo", "field_report", text.trim_end().to_owned())
    }

    fn command(&mut self, at_ms: u64, command: &AdaptationCommand) -> Applied {
        let kind = plain(command.command_type().as_str_name(), "COMMAND_");
        let mut text = command.target_seed_id.clone();
        if let Some(Payload::SeedOperation(operation)) = &command.payload {
            self.runs.blueprint(&command.target_seed_id, &operation.blueprint_id);
            let verb = plain(operation.operation().as_str_name(), "SEED_OP_");
            text = format!("{verb} {text} {}", operation.blueprint_id);
        }
        if let Some(reason) = command.annotations.get("reason") {
            text = format!("{} ({reason})", text.trim_end());
        }
        let source = match command.issued_by.as_str() {
            "" => "tamiyo",
            issuer => issuer,
        };
        let name = format!("command_{kind}");
        self.note(at_ms, Severity::Info, source, &name, text.trim().to_owned())
    }

    fn emergency(&mut self, now: Now, at_ms: u64, signal: &EmergencySignal) -> Applied {
        let (severity, grave) = match signal.level() {
            EmergencyLevel::Unspecified | EmergencyLevel::Notice => (Severity::Info, false),
            EmergencyLevel::Elevated => (Severity::Warning, false),
            EmergencyLevel::Conservative => (Severity::Error, true),
            EmergencyLevel::Halt => (Severity::Critical, true),
        };
        let level = plain(signal.level().as_str_name(), "EMERGENCY_LEVEL_");
        let text = format!("{level}: {}", signal.reason);
        let mut applied = self.note(at_ms, severity, &signal.origin, EMERGENCY_EVENT, text);
        if grave {
            applied.notifications = self.alerts.sample(now, &signal.origin, EMERGENCY_EVENT, 1.0);
        }
        applied
    }

    fn safety_sheet(&mut self, now: Now, at_ms: u64, issued: &BsdsIssued) -> Applied {
        let Some(sheet) = &issued.bsds else { return Applied::default() };
        let (severity, event) = match sheet.hazard_band() {
            HazardBand::Unspecified | HazardBand::Low | HazardBand::Medium => {
                (Severity::Info, None)
            }
            HazardBand::High => (Severity::Warning, Some("bsds_hazard_high")),
            HazardBand::Critical => (Severity::Critical, Some("bsds_hazard_critical")),
        };
        let band = plain(sheet.hazard_band().as_str_name(), "HAZARD_BAND_");
        let text = format!("{} {band}: {}", sheet.blueprint_id, sheet.recommendation);
        let mut applied = self.note(at_ms, severity, "urabrask", "bsds_issued", text);
        if let Some(event) = event {
            applied.notifications = self.alerts.sample(now, "urabrask", event, 1.0);
        }
        applied
    }

    fn note(
        &mut self,
        at_ms: u64,
        severity: Severity,
        source: &str,
        name: &str,
        text: String,
    ) -> Applied {
        let (source, name) = (source.to_owned(), name.to_owned());
        self.events.push(Event { at_ms, severity, source, name, text });
        Applied::default()
    }
}

/// When the sender signed it, by its envelope, else by the message itself.
fn sent_ms(received: Received<'_>) -> Option<u64> {
    let signed = received.attributes.get("oona-issued-at-ms").and_then(|text| text.parse().ok());
    signed.or_else(|| received.message.issued_at_ms())
}

/// One value for each watched metric of a packet. A packet may carry a name several times (once
/// for each seed); the greatest counts, and for coverage, which is bad when small, the least.
fn worst(packet: &TelemetryPacket, watched: impl Fn(&str) -> bool) -> BTreeMap<&str, f64> {
    let mut found = BTreeMap::new();
    for point in packet.metrics.iter().filter(|point| watched(&point.name)) {
        let pick = if point.name.ends_with("coverage") { f64::min } else { f64::max };
        found
            .entry(point.name.as_str())
            .and_modify(|held| *held = pick(*held, point.value))
            .or_insert(point.value);
    }
    found
}

/// Service levels of a packet: pairs of `slo.<name>_objective` and `slo.<name>_actual`.
fn service_levels(packet: &TelemetryPacket) -> Vec<(&str, Verdict)> {
    let named = |suffix: &'static str| {
        packet.metrics.iter().filter_map(move |point| {
            let name = point.name.strip_prefix("slo.")?.strip_suffix(suffix)?;
            Some((name, point.value))
        })
    };
    let actual: BTreeMap<&str, f64> = named("_actual").collect();
    named("_objective")
        .filter_map(|(name, objective)| Some((name, Verdict::of(*actual.get(name)?, objective))))
        .take(LEVELS_MAX)
        .collect()
}

/// Attributes as `key value, key value`.
fn in_words(attributes: &BTreeMap<String, String>) -> String {
    let parts: Vec<String> =
        attributes.iter().map(|(key, value)| format!("{key} {value}")).collect();
    parts.join(", ")
}

/// The contract's name of a value without its prefix, in lower case.
fn plain(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

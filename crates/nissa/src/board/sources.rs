//! The newest telemetry packet of every sender.

use std::collections::BTreeMap;
use std::time::Duration;

use leyline::wire::{HealthStatus, TelemetryPacket};
use serde::Serialize;
use tokio::time::Instant;

use super::Now;

/// Senders kept; the one heard of longest ago goes first.
const SOURCES_MAX: usize = 64;
/// Metrics and indicators kept of one packet.
const VALUES_MAX: usize = 512;
/// How long a reported quarantine counts as active. It has no end of its own.
const QUARANTINE: Duration = Duration::from_secs(15 * 60);

/// One sender.
#[derive(Debug, Clone, Serialize)]
pub struct SourceState {
    /// Packets so far.
    pub packets: u64,
    /// When the newest was handled, Unix milliseconds.
    pub last_ms: u64,
    /// The health it reported.
    pub status: &'static str,
    /// Its summary.
    pub summary: String,
    /// Its indicators.
    pub indicators: BTreeMap<String, String>,
    /// Its metrics. Of several points of one name the last.
    pub metrics: BTreeMap<String, f64>,
    #[serde(skip)]
    seen: Instant,
    #[serde(skip)]
    quarantine: Option<Instant>,
}

/// All senders, by name.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    by_name: BTreeMap<String, SourceState>,
    evicted: u64,
}

fn status_label(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Unknown => "unknown",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Degraded => "degraded",
        HealthStatus::Unhealthy => "unhealthy",
        HealthStatus::Critical => "critical",
    }
}

/// The sender's name: its subsystem, and its run where it says so, because two trainers are two
/// sources.
pub(super) fn name(packet: &TelemetryPacket) -> String {
    let indicators = packet.system_health.as_ref().map(|health| &health.indicators);
    match indicators.and_then(|given| given.get("training_run_id").or_else(|| given.get("run_id")))
    {
        Some(run) => format!("{}@{run}", packet.source_subsystem),
        None => packet.source_subsystem.clone(),
    }
}

impl Sources {
    pub(super) fn report(&mut self, now: Now, name: &str, packet: &TelemetryPacket) {
        if !self.by_name.contains_key(name) && self.by_name.len() >= SOURCES_MAX {
            self.forget_oldest();
        }
        let health = packet.system_health.clone().unwrap_or_default();
        let before = self.by_name.get(name);
        let quarantined = packet.events.iter().any(|event| event.description == "bp_quarantine");
        let state = SourceState {
            packets: before.map_or(0, |state| state.packets) + 1,
            last_ms: now.unix_ms,
            status: status_label(health.status()),
            summary: health.summary,
            indicators: health.indicators.into_iter().take(VALUES_MAX).collect(),
            metrics: packet
                .metrics
                .iter()
                .take(VALUES_MAX)
                .map(|point| (point.name.clone(), point.value))
                .collect(),
            seen: now.mono,
            quarantine: match quarantined {
                true => Some(now.mono),
                false => before.and_then(|state| state.quarantine),
            },
        };
        self.by_name.insert(name.to_owned(), state);
    }

    /// How many senders reported a quarantine lately.
    pub fn quarantines(&self, now: Instant) -> usize {
        self.by_name
            .values()
            .filter_map(|state| state.quarantine)
            .filter(|since| now.duration_since(*since) <= QUARANTINE)
            .count()
    }

    /// Every sender, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &SourceState)> {
        self.by_name.iter()
    }

    /// Senders forgotten for newer ones.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn forget_oldest(&mut self) {
        let oldest = self.by_name.iter().min_by_key(|(_, state)| state.seen);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.by_name.remove(&name);
            self.evicted += 1;
        }
    }
}

//! What the seed manager tells the world: one packet for each seed that lives or has news.

use std::collections::BTreeMap;

use leyline::Stage;
use leyline::ids::SeedId;
use leyline::time::timestamp;
use leyline::wire::{HealthStatus, MessagePriority, MetricPoint, SystemHealth, TelemetryPacket};

use crate::event::{self, Event};
use crate::manager::SeedManager;
use crate::metrics::point;
use crate::moment::Now;
use crate::seed::{Life, Seed};

/// The name under which packets are sent.
pub const SOURCE: &str = "kasmina";

/// A packet with the priority it is to be sent with.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// The packet.
    pub packet: TelemetryPacket,
    /// CRITICAL, HIGH or NORMAL by its worst event.
    pub priority: MessagePriority,
}

impl SeedManager {
    /// Takes what there is to tell since the last time: a packet for each seed that is not dormant
    /// or has events, and one for what concerns no single seed when there is something.
    pub fn drain_telemetry(&mut self, now: Now) -> Vec<Packet> {
        let ids: Vec<SeedId> = self.seeds.keys().cloned().collect();
        let mut packets: Vec<Packet> =
            ids.iter().filter_map(|id| self.seed_packet(id, now)).collect();
        let events = self.global_events.drain();
        if !events.is_empty() {
            packets.push(self.global_packet(events, now));
        }
        packets
    }

    fn seed_packet(&mut self, id: &SeedId, now: Now) -> Option<Packet> {
        let events = self.events.get_mut(id).map(crate::event::Events::drain).unwrap_or_default();
        let seed = self.seeds.get(id)?;
        if events.is_empty() && seed.stage() == Stage::Dormant {
            return None;
        }
        let (metrics, health) = (seed_metrics(seed), self.seed_health(seed));
        let indicators = BTreeMap::from([
            ("seed_id".to_owned(), id.to_string()),
            ("step_index".to_owned(), now.step.to_string()),
        ]);
        Some(self.packet(events, metrics, health, indicators, now))
    }

    fn global_packet(&mut self, events: Vec<Event>, now: Now) -> Packet {
        let active = self.seeds.values().filter(|seed| seed.life().graft().is_some()).count();
        let violations: u32 = self.seeds.values().map(|seed| seed.evidence().violations).sum();
        let metrics = vec![
            point("kasmina.seeds.active", active as f64, "count"),
            point("kasmina.isolation.violations", f64::from(violations), "count"),
            point("kasmina.kernel.fetch_latency_ms", self.fetch_last_ms, "ms"),
            point("kasmina.breaker.state", f64::from(self.kernel_breaker.state() as i32), "state"),
            point("kasmina.breaker.failures", f64::from(self.kernel_breaker.failures()), "count"),
        ];
        let indicators = BTreeMap::from([("seeds".to_owned(), self.seeds.len().to_string())]);
        self.packet(events, metrics, (HealthStatus::Healthy, "nominal"), indicators, now)
    }

    fn packet(
        &mut self,
        events: Vec<Event>,
        metrics: Vec<MetricPoint>,
        (status, summary): (HealthStatus, &str),
        mut indicators: BTreeMap<String, String>,
        now: Now,
    ) -> Packet {
        self.packets += 1;
        let packet_id = format!("{}-{SOURCE}-{}", self.run, self.packets);
        let (level, priority) = (event::worst(&events), event::priority(&events));
        indicators.insert("priority".to_owned(), priority.as_str_name().to_owned());
        let events = events
            .into_iter()
            .enumerate()
            .map(|(n, event)| event::to_wire(event, format!("{packet_id}-{n}")))
            .collect();
        let packet = TelemetryPacket {
            packet_id,
            timestamp: Some(timestamp(now.unix_ms)),
            source_subsystem: SOURCE.to_owned(),
            level: level as i32,
            metrics,
            events,
            spans: Vec::new(),
            system_health: Some(SystemHealth {
                status: status as i32,
                summary: summary.to_owned(),
                indicators,
            }),
        };
        Packet { packet, priority }
    }

    fn seed_health(&self, seed: &Seed) -> (HealthStatus, &'static str) {
        let evidence = seed.evidence();
        let budget = self.config.limits.latency_budget_ms;
        if evidence.violations > 0 {
            (HealthStatus::Unhealthy, "violations")
        } else if evidence.latency_ms.is_some_and(|latency| latency.last > budget) {
            (HealthStatus::Degraded, "latency_high")
        } else {
            (HealthStatus::Healthy, "nominal")
        }
    }
}

fn seed_metrics(seed: &Seed) -> Vec<MetricPoint> {
    let (life, evidence) = (seed.life(), seed.evidence());
    let fetch_ms = life.kernel().map_or(0.0, |kernel| kernel.fetch_ms);
    let mut metrics = vec![
        point("kasmina.seed.stage", f64::from(seed.stage().wire() as i32), "state"),
        point("kasmina.seed.alpha", f64::from(life.alpha()), "ratio"),
        point("kasmina.seed.kernel_attached", f64::from(u8::from(life.kernel().is_some())), "bool"),
        point("kasmina.seed.kernel_latency_ms", fetch_ms, "ms"),
        point("kasmina.seed.isolation_violations", f64::from(evidence.violations), "count"),
        point("kasmina.seed.isolation.seed_norm", seed.gradient_norm, "grad"),
        // No kernel is ever put in another's place, so this stays 0; readers of the older name know it.
        point("kasmina.seed.fallback_used", 0.0, "bool"),
    ];
    if let Some(latency) = evidence.latency_ms {
        metrics.push(point("kasmina.seed.last_kernel_latency_ms", latency.last, "ms"));
    }
    if let Life::Blending { step, .. } = life {
        metrics.push(point("kasmina.seed.alpha_steps", f64::from(*step), "count"));
    }
    metrics
}

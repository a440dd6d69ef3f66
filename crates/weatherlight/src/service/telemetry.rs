//! The foundation's own telemetry packet.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leyline::Message;
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{
    CircuitBreakerState, HealthStatus, MessagePriority, MetricPoint, SystemHealth, TelemetryLevel,
    TelemetryPacket,
};
use nissa::{BreakerState, Health, HealthSource, SystemMode, WorkerState};
use oona::{Bus, Heartbeat, PublishError, Stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::emergency::EmergencyPicture;
use super::metrics::AllMetrics;

/// Who sends.
const SOURCE: &str = "weatherlight";
/// For how long an error keeps the health at DEGRADED / "`recent_error`".
const RECENT: Duration = Duration::from_secs(60);

/// When a worker last failed, and how often workers have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: Option<SystemTime>,
    restarts: u64,
    down: usize,
}

impl LastError {
    /// Takes note of a failure that shows in the picture.
    fn look(&mut self, health: &Health, now: SystemTime) {
        let restarts = restarts(health);
        let down = count(health, WorkerState::BackingOff) + count(health, WorkerState::Parked);
        if restarts > self.restarts || down > self.down {
            self.at = Some(now);
        }
        (self.restarts, self.down) = (restarts, down);
    }
}

/// The worker `weatherlight.telemetry`.
#[derive(Debug)]
pub struct Telemetry {
    /// Where packets are published.
    pub bus: Bus,
    /// The supervisor's picture.
    pub health: HealthSource,
    /// Emergencies.
    pub emergency: watch::Receiver<EmergencyPicture>,
    /// What the other crates count.
    pub metrics: AllMetrics,
    /// Between two packets.
    pub interval: watch::Receiver<Duration>,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    HealthChanged,
    IntervalChanged,
    Due,
    Stop,
}

impl Telemetry {
    /// Publishes until told to stop; the last packet is sent while stopping.
    ///
    /// # Errors
    /// [`PublishError`] for a packet that may never be published. A silent log is not one: the
    /// next packet has newer values.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PublishError> {
        let mut last_error = LastError::default();
        let mut due = Instant::now();
        loop {
            match self.next_event(due, &stop).await {
                Event::HealthChanged => {
                    let health = self.health.borrow_and_update();
                    last_error.look(&health, SystemTime::now());
                }
                Event::Due => {
                    due = Instant::now() + *self.interval.borrow_and_update();
                    self.publish(&last_error).await?;
                }
                // Another interval counts from now on.
                Event::IntervalChanged => {
                    due = Instant::now() + *self.interval.borrow_and_update();
                }
                Event::Stop => return self.publish(&last_error).await,
            }
        }
    }

    async fn next_event(&mut self, due: Instant, stop: &CancellationToken) -> Event {
        let heartbeat = self.heartbeat.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            () = heartbeat.during("wait", tokio::time::sleep_until(due)) => Event::Due,
            Ok(()) = self.interval.changed() => Event::IntervalChanged,
            Ok(()) = self.health.changed() => Event::HealthChanged,
        }
    }

    async fn publish(&self, last_error: &LastError) -> Result<(), PublishError> {
        self.heartbeat.beat("publish");
        let packet = packet(
            &self.health.borrow(),
            self.metrics.points(&self.bus),
            &self.emergency.borrow(),
            last_error,
            SystemTime::now(),
        );
        let priority = priority(&packet);
        match self.bus.publish(Stream::Telemetry, priority, SOURCE, &Message::from(packet)).await {
            Ok(outcome) if outcome.is_accepted() => Ok(()),
            Ok(outcome) => {
                tracing::debug!(?outcome, "telemetry packet refused under pressure");
                Ok(())
            }
            Err(PublishError::Log(error)) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "telemetry packet not published"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// The packet for one moment. Pure.
pub fn packet(
    health: &Health,
    of_subsystems: Vec<MetricPoint>,
    emergency: &EmergencyPicture,
    last_error: &LastError,
    now: SystemTime,
) -> TelemetryPacket {
    let running = count(health, WorkerState::Running);
    let backing_off = count(health, WorkerState::BackingOff);
    let is_recent = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < RECENT);
    let (status, summary) = if backing_off > 0 {
        (HealthStatus::Degraded, "backoff")
    } else if last_error.at.is_some_and(is_recent) || health.system_mode == SystemMode::Degraded {
        (HealthStatus::Degraded, "recent_error")
    } else {
        (HealthStatus::Healthy, "steady")
    };
    let level = match status {
        HealthStatus::Healthy => TelemetryLevel::Info,
        _ => TelemetryLevel::Warning,
    };
    let mode = match health.system_mode {
        SystemMode::Operational => "operational",
        SystemMode::Degraded => "degraded",
    };
    let mut metrics = own_points(health, running, backing_off, last_error);
    metrics.extend(of_subsystems);
    metrics.extend(emergency_points(emergency, now));
    TelemetryPacket {
        packet_id: uuid::Uuid::now_v7().to_string(),
        timestamp: Some(timestamp(now_unix_ms())),
        source_subsystem: SOURCE.to_owned(),
        level: level.into(),
        metrics,
        system_health: Some(SystemHealth {
            status: status.into(),
            summary: summary.to_owned(),
            indicators: BTreeMap::from([
                ("workers_running".to_owned(), running.to_string()),
                ("workers_backing_off".to_owned(), backing_off.to_string()),
                ("system_mode".to_owned(), mode.to_owned()),
            ]),
        }),
        ..TelemetryPacket::default()
    }
}

/// The priority of a packet on the bus: its `priority` indicator where it has one, else HIGH from
/// WARNING on.
pub fn priority(packet: &TelemetryPacket) -> MessagePriority {
    let indicators = packet.system_health.as_ref().map(|health| &health.indicators);
    let named = indicators.and_then(|indicators| indicators.get("priority"));
    let named = named.and_then(|name| MessagePriority::from_str_name(name));
    let by_level = match packet.level() {
        TelemetryLevel::Unspecified | TelemetryLevel::Info => MessagePriority::Normal,
        TelemetryLevel::Warning | TelemetryLevel::Error | TelemetryLevel::Critical => {
            MessagePriority::High
        }
    };
    named.unwrap_or(by_level)
}

pub(super) fn point(name: impl Into<String>, value: f64, unit: &str) -> MetricPoint {
    MetricPoint { name: name.into(), value, unit: unit.to_owned(), ..MetricPoint::default() }
}

fn own_points(
    health: &Health,
    running: usize,
    backing_off: usize,
    last_error: &LastError,
) -> Vec<MetricPoint> {
    let last_error_s = last_error.at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let mut points = vec![
        point("weatherlight.tasks.running", running as f64, "count"),
        point("weatherlight.tasks.backing_off", backing_off as f64, "count"),
        point("weatherlight.uptime_s", health.uptime_s, "s"),
        point("weatherlight.restarts_total", restarts(health) as f64, "count"),
        point("weatherlight.last_error_ts", last_error_s.unwrap_or_default().as_secs_f64(), "s"),
    ];
    for worker in &health.workers {
        let name = |what| format!("weatherlight.worker.{}.{what}", worker.name);
        let runs = worker.state == WorkerState::Running;
        points.push(point(name("running"), f64::from(u8::from(runs)), "bool"));
        points.push(point(name("restarts"), worker.restarts as f64, "count"));
        points.push(point(name("backoff_seconds"), worker.backoff_s, "s"));
    }
    for breaker in &health.breakers {
        let state = match breaker.state {
            BreakerState::Closed => CircuitBreakerState::CircuitStateClosed,
            BreakerState::Open => CircuitBreakerState::CircuitStateOpen,
            BreakerState::HalfOpen => CircuitBreakerState::CircuitStateHalfOpen,
        };
        let name = format!("weatherlight.breaker.{}.state", breaker.name);
        points.push(point(name, f64::from(state as i32), "state"));
    }
    points
}

/// Rollbacks travel as emergency signals here, so their own counters stay at zero; they are sent
/// for the readers that know them.
fn emergency_points(emergency: &EmergencyPicture, now: SystemTime) -> Vec<MetricPoint> {
    let ago = emergency.last.and_then(|at| now.duration_since(at).ok());
    let ago_ms = ago.map_or(-1.0, |ago| ago.as_secs_f64() * 1e3);
    vec![
        point("weatherlight.emergency.detections_total", emergency.detections as f64, "count"),
        point("weatherlight.emergency.skipped_total", emergency.others as f64, "count"),
        point("weatherlight.emergency.last_detect_ms_ago", ago_ms, "ms"),
        point("weatherlight.emergency.last_level", f64::from(emergency.last_level), "level"),
        point("weatherlight.rollback.detections_total", 0.0, "count"),
        point("weatherlight.rollback.skipped_total", 0.0, "count"),
        point("weatherlight.rollback.last_detect_ms_ago", -1.0, "ms"),
    ]
}

fn count(health: &Health, state: WorkerState) -> usize {
    health.workers.iter().filter(|worker| worker.state == state).count()
}

fn restarts(health: &Health) -> u64 {
    health.workers.iter().map(|worker| worker.restarts).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nissa::{BreakerHealth, WorkerHealth};

    fn health(state: WorkerState) -> Health {
        let worker = WorkerHealth {
            critical: true,
            restarts: 2,
            backoff_s: 0.5,
            ..WorkerHealth::new("urza.prefetch", state)
        };
        let forge = BreakerHealth { name: "tezzeret.forge".into(), state: BreakerState::HalfOpen };
        let breakers = vec![forge];
        Health { workers: vec![worker], breakers, ..Health::booting("1", "embedded") }
    }

    fn value(packet: &TelemetryPacket, name: &str) -> f64 {
        packet.metrics.iter().find(|metric| metric.name == name).unwrap().value
    }

    fn packet_of(health: &Health, last_error: &LastError, now: SystemTime) -> TelemetryPacket {
        packet(health, vec![], &EmergencyPicture::default(), last_error, now)
    }

    #[test]
    fn a_steady_service_says_so_at_normal_priority() {
        let now = SystemTime::now();
        let packet = packet_of(&health(WorkerState::Running), &LastError::default(), now);
        assert_eq!(packet.source_subsystem, "weatherlight");
        assert_eq!(value(&packet, "weatherlight.tasks.running"), 1.0);
        assert_eq!(value(&packet, "weatherlight.restarts_total"), 2.0);
        assert_eq!(value(&packet, "weatherlight.worker.urza.prefetch.running"), 1.0);
        assert_eq!(value(&packet, "weatherlight.breaker.tezzeret.forge.state"), 3.0);
        assert_eq!(value(&packet, "weatherlight.emergency.last_detect_ms_ago"), -1.0);
        assert_eq!(packet.system_health.as_ref().unwrap().summary, "steady");
        assert_eq!(priority(&packet), MessagePriority::Normal);
    }

    #[test]
    fn a_worker_that_backs_off_degrades_and_raises_the_priority() {
        let now = SystemTime::now();
        let packet = packet_of(&health(WorkerState::BackingOff), &LastError::default(), now);
        let found = packet.system_health.as_ref().unwrap();
        assert_eq!((found.status(), found.summary.as_str()), (HealthStatus::Degraded, "backoff"));
        assert_eq!(found.indicators["workers_backing_off"], "1");
        assert_eq!(priority(&packet), MessagePriority::High);
    }

    #[test]
    fn an_error_is_recent_for_a_minute() {
        let begin = SystemTime::now();
        let mut last_error = LastError::default();
        last_error.look(&health(WorkerState::BackingOff), begin);
        last_error.look(&health(WorkerState::Running), begin + Duration::from_secs(5));
        for (later, summary) in [(30, "recent_error"), (90, "steady")] {
            let now = begin + Duration::from_secs(later);
            let packet = packet_of(&health(WorkerState::Running), &last_error, now);
            assert_eq!(packet.system_health.unwrap().summary, summary, "after {later} s");
        }
    }

    #[test]
    fn the_priority_indicator_goes_before_the_level() {
        let now = SystemTime::now();
        let mut packet = packet_of(&health(WorkerState::Running), &LastError::default(), now);
        let indicators = &mut packet.system_health.as_mut().unwrap().indicators;
        indicators.insert("priority".into(), "MESSAGE_PRIORITY_CRITICAL".into());
        assert_eq!(priority(&packet), MessagePriority::Critical);
    }
}

//! What happened to jobs, for telemetry: a bounded queue of named events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{TelemetryEvent, TelemetryLevel, TelemetryPacket};

/// Events that may wait; the oldest give way, and a marker says so.
const WAITING_MAX: usize = 128;

/// One happening, under its contract name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    name: &'static str,
    level: TelemetryLevel,
    attributes: BTreeMap<String, String>,
}

impl Event {
    pub(crate) fn info(name: &'static str) -> Self {
        Self { name, level: TelemetryLevel::Info, attributes: BTreeMap::new() }
    }

    pub(crate) fn warning(name: &'static str) -> Self {
        Self { level: TelemetryLevel::Warning, ..Self::info(name) }
    }

    pub(crate) fn error(name: &'static str) -> Self {
        Self { level: TelemetryLevel::Error, ..Self::info(name) }
    }

    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.attributes.insert(key.to_owned(), value.to_string());
        self
    }
}

/// Where events are put until the forge sends them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reporter(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    dropped: u64,
    sent: u64,
}

impl Reporter {
    pub(crate) fn push(&self, event: Event) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.events.len() >= WAITING_MAX {
            waiting.events.pop_front();
            waiting.dropped += 1;
        }
        waiting.events.push_back(event);
    }

    /// Whether something waits that people should hear of at once.
    pub(crate) fn is_pressing(&self) -> bool {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.events.iter().any(|event| event.level > TelemetryLevel::Info)
    }

    /// Takes all that waits as one packet; none when nothing does. WARNING while the forge is in trouble, else ERROR
    /// with an error among the events, else INFO, as the contract has it.
    pub(crate) fn packet(&self, in_trouble: InTrouble) -> Option<TelemetryPacket> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.events.is_empty() {
            return None;
        }
        let mut events: Vec<Event> = waiting.events.drain(..).collect();
        let dropped = std::mem::take(&mut waiting.dropped);
        if dropped > 0 {
            events.push(Event::warning("tezzeret.events_dropped").with("dropped", dropped));
        }
        waiting.sent += 1;
        let now = now_unix_ms();
        let packet_id = format!("tezzeret-{}-{now}-{}", std::process::id(), waiting.sent);
        drop(waiting);
        let has_error = events.iter().any(|event| event.level == TelemetryLevel::Error);
        let level = match in_trouble {
            InTrouble::Yes => TelemetryLevel::Warning,
            InTrouble::No if has_error => TelemetryLevel::Error,
            InTrouble::No => TelemetryLevel::Info,
        };
        let message = |(number, event): (usize, Event)| TelemetryEvent {
            event_id: format!("{packet_id}-{number}"),
            description: event.name.to_owned(),
            level: event.level.into(),
            attributes: event.attributes,
        };
        let events = events.into_iter().enumerate().map(message).collect();
        Some(TelemetryPacket {
            timestamp: Some(timestamp(now)),
            source_subsystem: "tezzeret".to_owned(),
            level: level.into(),
            events,
            packet_id,
            ..TelemetryPacket::default()
        })
    }
}

/// Whether the breaker is open or the forge is in conservative mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InTrouble {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_all_events_and_the_contracts_level() {
        let reporter = Reporter::default();
        assert_eq!(reporter.packet(InTrouble::No), None);
        reporter.push(Event::info("tezzeret.compile_started").with("blueprint_id", "BP001"));
        assert!(!reporter.is_pressing());
        assert_eq!(reporter.packet(InTrouble::No).unwrap().level(), TelemetryLevel::Info);
        reporter.push(Event::error("tezzeret.breaker_open").with("failures", 3));
        assert!(reporter.is_pressing());
        let packet = reporter.packet(InTrouble::No).unwrap();
        assert_eq!(packet.level(), TelemetryLevel::Error);
        assert_eq!(packet.events[0].attributes["failures"], "3");
        for _ in 0..WAITING_MAX + 2 {
            reporter.push(Event::error("tezzeret.breaker_open"));
        }
        let packet = reporter.packet(InTrouble::Yes).unwrap();
        assert_eq!(packet.level(), TelemetryLevel::Warning);
        assert_eq!(packet.events.len(), WAITING_MAX + 1);
        assert_eq!(packet.events[WAITING_MAX].attributes["dropped"], "2");
    }
}

//! What happened, for telemetry: bounded queues of named events.

use std::collections::{BTreeMap, VecDeque};

use leyline::wire::{MessagePriority, TelemetryEvent, TelemetryLevel};

/// Events that may wait for one seed; the oldest give way, and a marker says so.
pub const PENDING_MAX: usize = 64;

/// One happening, under its contract name.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Contract name.
    pub name: &'static str,
    /// How serious.
    pub level: TelemetryLevel,
    /// Details.
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// An event without details.
    pub fn new(name: &'static str, level: TelemetryLevel) -> Self {
        Self { name, level, attributes: BTreeMap::new() }
    }

    /// `INFO`
    pub fn info(name: &'static str) -> Self {
        Self::new(name, TelemetryLevel::Info)
    }

    /// `WARNING`
    pub fn warning(name: &'static str) -> Self {
        Self::new(name, TelemetryLevel::Warning)
    }

    /// With a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.attributes.insert(key.to_owned(), value.to_string());
        self
    }
}

/// Events of one seed, or of no seed, that wait to be sent.
#[derive(Debug, Clone, Default)]
pub struct Events {
    waiting: VecDeque<Event>,
    dropped: u64,
}

impl Events {
    /// Adds an event. When full, the oldest goes.
    pub fn push(&mut self, event: Event) {
        // One place is kept for the marker that says how many went.
        if self.waiting.len() >= PENDING_MAX - 1 {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back(event);
    }

    /// Takes all, with a marker when some were lost.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events: Vec<Event> = self.waiting.drain(..).collect();
        if self.dropped > 0 {
            events.push(Event::warning("seed_queue_dropped").with("dropped", self.dropped));
            self.dropped = 0;
        }
        events
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// The priority of a packet: CRITICAL for a critical event, HIGH for a warning or error.
pub fn priority(events: &[Event]) -> MessagePriority {
    match worst(events) {
        TelemetryLevel::Critical => MessagePriority::Critical,
        TelemetryLevel::Error | TelemetryLevel::Warning => MessagePriority::High,
        TelemetryLevel::Info | TelemetryLevel::Unspecified => MessagePriority::Normal,
    }
}

/// The most serious level; INFO without events.
pub fn worst(events: &[Event]) -> TelemetryLevel {
    let levels = events.iter().map(|event| event.level);
    levels.max_by_key(|level| *level as i32).unwrap_or(TelemetryLevel::Info)
}

/// The wire's form; `id` must be unique.
pub fn to_wire(event: Event, id: String) -> TelemetryEvent {
    TelemetryEvent {
        event_id: id,
        description: event.name.to_owned(),
        level: event.level as i32,
        attributes: event.attributes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_keeps_the_newest_and_says_so() {
        let mut events = Events::default();
        for n in 0..100 {
            events.push(Event::info("seed_stage").with("n", n));
        }
        let drained = events.drain();
        assert_eq!(drained.len(), PENDING_MAX);
        assert_eq!(drained[0].attributes["n"], "37");
        assert_eq!(drained[63], Event::warning("seed_queue_dropped").with("dropped", 37));
        assert!(events.drain().is_empty());
    }

    #[test]
    fn priority_follows_the_worst_event() {
        let with = |level| [Event::info("a"), Event::new("b", level)];
        assert_eq!(priority(&[]), MessagePriority::Normal);
        assert_eq!(priority(&with(TelemetryLevel::Info)), MessagePriority::Normal);
        assert_eq!(priority(&with(TelemetryLevel::Warning)), MessagePriority::High);
        assert_eq!(priority(&with(TelemetryLevel::Error)), MessagePriority::High);
        assert_eq!(priority(&with(TelemetryLevel::Critical)), MessagePriority::Critical);
    }
}

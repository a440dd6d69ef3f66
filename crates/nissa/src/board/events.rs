//! What happened, newest last, as lines a person reads.

use std::collections::VecDeque;

use leyline::wire::TelemetryLevel;
use serde::Serialize;

/// Events kept.
const EVENTS_MAX: usize = 200;
/// Longest text of an event; a sender's longer one is cut.
const TEXT_CHARS_MAX: usize = 400;

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Somebody coped.
    Warning,
    /// Something failed.
    Error,
    /// A person must look.
    Critical,
}

impl From<TelemetryLevel> for Severity {
    fn from(level: TelemetryLevel) -> Self {
        match level {
            TelemetryLevel::Unspecified | TelemetryLevel::Info => Self::Info,
            TelemetryLevel::Warning => Self::Warning,
            TelemetryLevel::Error => Self::Error,
            TelemetryLevel::Critical => Self::Critical,
        }
    }
}

/// One happening.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// How serious.
    pub severity: Severity,
    /// Who reported it.
    pub source: String,
    /// What it is called.
    pub name: String,
    /// What it was about.
    pub text: String,
}

/// The newest events.
#[derive(Debug, Clone, Default)]
pub struct Events(VecDeque<Event>);

impl Events {
    pub(super) fn push(&mut self, mut event: Event) {
        if let Some((end, _)) = event.text.char_indices().nth(TEXT_CHARS_MAX) {
            event.text.truncate(end);
            event.text.push('…');
        }
        if self.0.len() == EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.0.iter()
    }
}

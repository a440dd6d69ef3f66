//! One event, taken apart: what every line shows, whatever its form.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher};

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};

use super::fold::Repeated;

/// Longer values are cut off: a backtrace has some 10 KiB.
const TEXT_BYTES_MAX: usize = 32 << 10;

/// Fields that differ from one repetition of an event to the next; two events that differ in nothing
/// else are the same. They are ids, counts and times, never what went wrong.
const VOLATILE: [&str; 17] = [
    "age",
    "attempt",
    "attempts",
    "backtrace",
    "dead_letter",
    "delay",
    "depth",
    "elapsed",
    "entries",
    "entry",
    "message_id",
    "messages",
    "request",
    "request_id",
    "span_id",
    "trace_id",
    "waiting",
];

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    /// An error and its causes, outermost first.
    Error(Vec<String>),
}

/// Fields in the order in which they were first recorded; a later value replaces the one before.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fields(pub(super) Vec<(&'static str, Value)>);

impl Fields {
    pub(super) fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let place = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(place).1)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), Value::Text(bounded(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), Value::Text(bounded(value.to_owned())));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), Value::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), Value::Float(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut chain = vec![bounded(value.to_string())];
        let mut source = value.source();
        while let Some(cause) = source {
            let text = bounded(cause.to_string());
            // Some errors end with the text of their cause; it is told once.
            if !chain.last().is_some_and(|above| above.ends_with(&text)) {
                chain.push(text);
            }
            source = cause.source();
        }
        self.set(field.name(), Value::Error(chain));
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let cut = text.len() - TEXT_BYTES_MAX;
        let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push_str(&format!("... ({cut} bytes more)"));
    }
    text
}

/// How often an event was repeated, in the line that tells so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repetition {
    /// This event and others like it, none of them told before.
    pub(super) count: u64,
    /// Since when, in Unix milliseconds.
    pub(super) since_unix_ms: u64,
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub(super) unix_ms: u64,
    pub(super) level: Level,
    pub(super) target: &'static str,
    pub(super) message: String,
    /// Name of the innermost span.
    pub(super) span: Option<&'static str>,
    /// What the spans say, the outermost first.
    pub(super) context: Fields,
    /// What the event says.
    pub(super) fields: Fields,
    pub(super) repetition: Option<Repetition>,
}

impl Record {
    pub(super) fn new(
        metadata: &'static Metadata<'static>,
        unix_ms: u64,
        span: Option<&'static str>,
        mut context: Fields,
        mut fields: Fields,
    ) -> Self {
        let message = match fields.take("message") {
            Some(Value::Text(text)) => text,
            _ => String::new(),
        };
        // The event knows best.
        context.0.retain(|(name, _)| fields.get(name).is_none());
        Self {
            unix_ms,
            level: *metadata.level(),
            target: metadata.target(),
            message,
            span,
            context,
            fields,
            repetition: None,
        }
    }

    /// A line of the log about itself.
    pub(super) fn own(unix_ms: u64, level: Level, message: String) -> Self {
        Self {
            unix_ms,
            level,
            target: "weatherlight::logging",
            message,
            span: None,
            context: Fields::default(),
            fields: Fields::default(),
            repetition: None,
        }
    }

    /// What makes two events the same: where they come from, the worker, and every field that is
    /// not volatile. 128 bits, so that different ones do not meet.
    pub(super) fn key(&self, callsite: &impl std::hash::Hash, seeds: &[RandomState; 2]) -> u128 {
        let half = |seed: &RandomState| {
            let mut hasher = seed.build_hasher();
            callsite.hash(&mut hasher);
            self.message.hash(&mut hasher);
            for (name, value) in self.context.0.iter().chain(&self.fields.0) {
                if !VOLATILE.contains(name) {
                    name.hash(&mut hasher);
                    hash_value(value, &mut hasher);
                }
            }
            u128::from(hasher.finish())
        };
        half(&seeds[0]) << 64 | half(&seeds[1])
    }

    /// The line that tells of repetitions.
    pub(super) fn of_repeated(repeated: Repeated<Self>, since_unix_ms: u64) -> Self {
        let repetition = Some(Repetition { count: repeated.count, since_unix_ms });
        Self { repetition, ..repeated.record }
    }
}

fn hash_value(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::Bool(value) => value.hash(hasher),
        Value::Signed(value) => value.hash(hasher),
        Value::Unsigned(value) => value.hash(hasher),
        Value::Float(value) => value.to_bits().hash(hasher),
        Value::Text(text) => text.hash(hasher),
        Value::Error(chain) => chain.hash(hasher),
    }
}

/// A moment as RFC 3339 in UTC, with milliseconds.
pub(super) fn time(unix_ms: u64) -> String {
    let mut text = leyline::time::timestamp(unix_ms).to_string();
    if unix_ms.is_multiple_of(1000) {
        text.truncate(text.trim_end_matches('Z').len());
        text.push_str(".000Z");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339_with_milliseconds() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_700_000_000_120), "2023-11-14T22:13:20.120Z");
        assert_eq!(time(1_709_210_096_001), "2024-02-29T12:34:56.001Z");
    }

    #[test]
    fn what_is_too_long_is_cut_off_between_characters() {
        let text = bounded("\u{e4}".repeat(TEXT_BYTES_MAX));
        assert!(
            text.ends_with(&format!("\u{e4}... ({TEXT_BYTES_MAX} bytes more)")),
            "{}",
            text.len()
        );
    }
}

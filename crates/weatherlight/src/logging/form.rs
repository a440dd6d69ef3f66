//! A record as one line: JSON for programs, text for people.

use std::fmt::Write as _;

use tracing::Level;

use super::escape::{push_json, push_text, push_value};
use super::record::{Record, Value, time};

/// Names that every JSON line uses in one sense only; a field of the same name gets `field_` before
/// it.
const RESERVED: [&str; 8] =
    ["time", "level", "target", "message", "span", "error_chain", "repeated", "since"];

/// One JSON object. Always: `time`, `level`, `target`, `message`. Where they are known: `worker`,
/// `message_id`, `request_id`, `trace_id`, `span`, the event's own fields, `error` and the
/// `error_chain` of its causes. On a line that stands for several events: `repeated` and `since`.
pub(super) fn json(record: &Record) -> String {
    let mut line = String::with_capacity(256);
    line.push_str("{\"time\":\"");
    line.push_str(&time(record.unix_ms));
    line.push_str("\",\"level\":\"");
    line.push_str(record.level.as_str());
    line.push_str("\",\"target\":");
    push_json(&mut line, record.target);
    line.push_str(",\"message\":");
    push_json(&mut line, &record.message);
    if let Some(span) = record.span {
        line.push_str(",\"span\":");
        push_json(&mut line, span);
    }
    for (name, value) in record.context.0.iter().chain(&record.fields.0) {
        line.push(',');
        let reserved = if RESERVED.contains(name) { "field_" } else { "" };
        push_json(&mut line, &format!("{reserved}{name}"));
        line.push(':');
        match value {
            Value::Text(text) => push_json(&mut line, text),
            Value::Error(chain) => push_error(&mut line, chain),
            Value::Float(value) if !value.is_finite() => push_json(&mut line, &value.to_string()),
            plain => push_plain(&mut line, plain),
        }
    }
    if let Some(repetition) = record.repetition {
        let since = time(repetition.since_unix_ms);
        let _ = write!(line, ",\"repeated\":{},\"since\":\"{since}\"", repetition.count);
    }
    line.push('}');
    line
}

fn push_error(line: &mut String, chain: &[String]) {
    push_json(line, chain.first().map_or("", String::as_str));
    line.push_str(",\"error_chain\":[");
    for (place, cause) in chain.iter().skip(1).enumerate() {
        if place > 0 {
            line.push(',');
        }
        push_json(line, cause);
    }
    line.push(']');
}

fn push_plain(line: &mut String, value: &Value) {
    // A String takes everything.
    let _ = match value {
        Value::Bool(value) => write!(line, "{value}"),
        Value::Signed(value) => write!(line, "{value}"),
        Value::Unsigned(value) => write!(line, "{value}"),
        Value::Float(value) => write!(line, "{value}"),
        Value::Text(_) | Value::Error(_) => Ok(()),
    };
}

/// Colours of a terminal that has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    On,
    Off,
}

/// One line of text: time, level, where from, what, and `name=value` for the rest.
pub(super) fn text(record: &Record, colours: Colours) -> String {
    let mut line = String::with_capacity(256);
    let dim = |line: &mut String, text: &str| paint(line, colours, "2", text);
    dim(&mut line, &time(record.unix_ms));
    line.push(' ');
    let colour = match record.level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "35",
    };
    paint(&mut line, colours, colour, &format!("{:>5}", record.level.as_str()));
    line.push(' ');
    dim(&mut line, &format!("{}:", record.target));
    line.push(' ');
    push_text(&mut line, &record.message);
    for (name, value) in record.context.0.iter().chain(&record.fields.0) {
        line.push(' ');
        dim(&mut line, &format!("{name}="));
        match value {
            Value::Text(text) => push_value(&mut line, text),
            Value::Error(chain) => push_value(&mut line, &chain.join(": ")),
            plain => push_plain(&mut line, plain),
        }
    }
    if let Some(repetition) = record.repetition {
        let since = time(repetition.since_unix_ms);
        dim(&mut line, &format!(" repeated={} since={since}", repetition.count));
    }
    line
}

fn paint(line: &mut String, colours: Colours, code: &str, text: &str) {
    match colours {
        Colours::On => {
            let _ = write!(line, "\u{1b}[{code}m{text}\u{1b}[0m");
        }
        Colours::Off => line.push_str(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::record::{Fields, Repetition};

    fn record() -> Record {
        let fields = Fields(vec![
            ("level", Value::Signed(-3)),
            ("ratio", Value::Float(f64::NAN)),
            ("error", Value::Error(vec!["not sent".to_owned(), "timed \"out\"".to_owned()])),
        ]);
        let context = Fields(vec![
            ("worker", Value::Text("urza.prefetch".to_owned())),
            ("message_id", Value::Text("x\n\u{1b}[31mforged".to_owned())),
        ]);
        Record {
            unix_ms: 1_700_000_000_000,
            level: Level::WARN,
            target: "urza::prefetch",
            message: "first\nsecond".to_owned(),
            span: Some("message"),
            context,
            fields,
            repetition: Some(Repetition { count: 7, since_unix_ms: 1_699_999_990_500 }),
        }
    }

    #[test]
    fn json_has_stable_names() {
        let line = json(&record());
        assert!(!line.contains('\n'), "{line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2023-11-14T22:13:20.000Z",
            "level": "WARN",
            "target": "urza::prefetch",
            "message": "first\nsecond",
            "span": "message",
            "worker": "urza.prefetch",
            "message_id": "x\n\u{1b}[31mforged",
            "field_level": -3,
            "ratio": "NaN",
            "error": "not sent",
            "error_chain": ["timed \"out\""],
            "repeated": 7,
            "since": "2023-11-14T22:13:10.500Z",
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn text_is_one_line() {
        assert_eq!(
            text(&record(), Colours::Off),
            "2023-11-14T22:13:20.000Z  WARN urza::prefetch: first\\nsecond worker=urza.prefetch \
             message_id=\"x\\n\\u{1b}[31mforged\" level=-3 ratio=NaN \
             error=\"not sent: timed \\\"out\\\"\" repeated=7 since=2023-11-14T22:13:10.500Z"
        );
        let coloured = text(&record(), Colours::On);
        assert!(coloured.contains("\u{1b}[33m WARN\u{1b}[0m"), "{coloured:?}");
    }
}

//! From the events and spans of `tracing` to records.

use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::Logs;
use super::record::{Fields, Record};

/// What a span says, kept with it.
struct Said(Fields);

/// Hands every event to the log.
pub(super) struct LogLayer(pub(super) Logs);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(Said(fields));
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(said) = span.extensions_mut().get_mut::<Said>() {
            values.record(&mut said.0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let (mut name, mut said) = (None, Fields::default());
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            name = Some(span.name());
            if let Some(more) = span.extensions().get::<Said>() {
                more.0.0.iter().for_each(|(field, value)| said.set(field, value.clone()));
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let now = leyline::time::now_unix_ms();
        let record = Record::new(metadata, now, name, said, fields);
        self.0.desk.put(record, &metadata.callsite());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::desk::{Desk, Form};
    use crate::logging::metrics::LogMetrics;
    use nissa::LogTail;
    use std::sync::Arc;
    use std::time::Duration;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Debug, thiserror::Error)]
    #[error("not sent")]
    struct NotSent(#[source] std::num::ParseIntError);

    /// Logs like the service, into memory.
    fn lines(work: impl FnOnce()) -> Vec<serde_json::Value> {
        let desk = Arc::new(Desk::new(Form::Json, LogMetrics::default(), LogTail::default()));
        let logs = Logs { desk: Arc::clone(&desk) };
        let subscriber = tracing_subscriber::registry().with(LogLayer(logs));
        tracing::subscriber::with_default(subscriber, work);
        // The writer is a thread of this process that ends with it.
        let writer = Arc::clone(&desk);
        std::thread::spawn(move || writer.write_all(&mut std::io::sink()));
        desk.flush(Duration::from_secs(10));
        let lines = desk.tail().after(0, 100).lines;
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_has_the_ids_of_its_spans_and_the_chain_of_its_error() {
        let lines = lines(|| {
            let _task = tracing::info_span!("task", worker = "urza.prefetch").entered();
            let id = "7\nforged";
            let _message =
                tracing::info_span!("message", message_id = %id, trace_id = tracing::field::Empty)
                    .entered();
            tracing::Span::current().record("trace_id", "abc");
            let error = NotSent("x".parse::<u8>().unwrap_err());
            tracing::warn!(error = &error as &dyn std::error::Error, "answer {}", 1);
        });
        let line = &lines[0];
        for (name, value) in [
            ("worker", "urza.prefetch"),
            ("span", "message"),
            ("message_id", "7\nforged"),
            ("trace_id", "abc"),
            ("message", "answer 1"),
            ("error", "not sent"),
            ("level", "WARN"),
        ] {
            assert_eq!(line[name], value, "{line}");
        }
        assert_eq!(line["error_chain"], serde_json::json!(["invalid digit found in string"]));
    }

    #[test]
    fn only_what_differs_in_ids_and_counts_is_the_same() {
        let lines = lines(|| {
            let report = |worker: &'static str, entry: u64, reason: &str| {
                let _task = tracing::info_span!("task", worker).entered();
                tracing::error!(entry, reason, "refused");
            };
            for entry in 0..10 {
                report("one", entry, "stale");
                report("two", entry, "stale");
            }
            report("one", 11, "forged");
        });
        let told = |line: &serde_json::Value| {
            let text = |name: &str| line[name].as_str().unwrap().to_owned();
            (text("worker"), text("reason"), line["repeated"].as_u64())
        };
        let told: Vec<_> = lines.iter().map(told).collect();
        let line =
            |worker: &str, reason: &str, count| (worker.to_owned(), reason.to_owned(), count);
        assert_eq!(told.len(), 5, "{told:?}");
        for expected in [
            line("one", "stale", None),
            line("two", "stale", None),
            line("one", "forged", None),
            line("one", "stale", Some(9)),
            line("two", "stale", Some(9)),
        ] {
            assert!(told.contains(&expected), "{told:?}");
        }
    }
}

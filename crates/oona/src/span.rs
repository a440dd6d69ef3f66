//! Spans: how long each step of a trace took, for whoever collects them.
//!
//! A step is begun with a [`Tracer`] and recorded when its [`Span`] is dropped. Without a collector
//! (the default) a span is nothing but its place in the trace, which messages carry on all the same.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use crate::trace::TraceContext;

/// What a step is to a message (the span kinds of OpenTelemetry that occur here).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work inside this process.
    Internal,
    /// Publishes a message.
    Producer,
    /// Handles a message.
    Consumer,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum SpanValue {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
}

impl From<&str> for SpanValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for SpanValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for SpanValue {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for SpanValue {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

/// A step that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedSpan {
    /// Its place in its trace.
    pub context: TraceContext,
    /// The step before, in this process or another.
    pub parent: Option<TraceContext>,
    /// `crate.deed`.
    pub name: &'static str,
    /// What it is to a message.
    pub kind: SpanKind,
    /// When it began, in nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When it ended, in the same.
    pub ended_unix_ns: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, SpanValue)>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Begins spans. Cheap to clone; [`Tracer::default`] records nothing and costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    finished: mpsc::Sender<FinishedSpan>,
    ratio: f64,
    dropped: Counter,
}

impl Tracer {
    /// A tracer, and the spans that were recorded with it: at most so many wait, more are dropped and
    /// counted. Of the traces that begin here, `ratio` (0 to 1) are recorded; of those that began
    /// elsewhere, the ones that are recorded there.
    pub fn recording(
        ratio: f64,
        len_max: usize,
        dropped: Counter,
    ) -> (Self, mpsc::Receiver<FinishedSpan>) {
        let (finished, receiver) = mpsc::channel(len_max.max(1));
        (Self(Some(Arc::new(Recorder { finished, ratio, dropped }))), receiver)
    }

    /// Begins a trace with its first step.
    pub fn begin(&self, name: &'static str, kind: SpanKind) -> Span {
        let context = TraceContext::begin();
        let context = match &self.0 {
            Some(recorder) => context.sampled(recorder.ratio),
            None => context,
        };
        self.span(name, kind, Some(context), None)
    }

    /// Begins a step after `parent`. Without one, a trace begins here when traces are recorded; when
    /// they are not, none does.
    pub fn follow(&self, name: &'static str, kind: SpanKind, parent: Option<TraceContext>) -> Span {
        match (parent, &self.0) {
            (Some(parent), _) => self.span(name, kind, Some(parent.child()), Some(parent)),
            (None, Some(_)) => self.begin(name, kind),
            (None, None) => self.span(name, kind, None, None),
        }
    }

    /// Begins the step of publishing to the stream of this name, after `parent`.
    pub fn publish(
        &self,
        name: &'static str,
        parent: Option<TraceContext>,
        stream_name: &str,
    ) -> Span {
        self.follow(name, SpanKind::Producer, parent).about_sending(stream_name)
    }

    fn span(
        &self,
        name: &'static str,
        kind: SpanKind,
        context: Option<TraceContext>,
        parent: Option<TraceContext>,
    ) -> Span {
        let recorded = context.filter(|context| context.is_sampled());
        let open = recorded.zip(self.0.as_ref()).map(|(context, recorder)| {
            let began_unix_ns = nanoseconds(SystemTime::now());
            let finished = FinishedSpan {
                context,
                parent,
                name,
                kind,
                began_unix_ns,
                ended_unix_ns: began_unix_ns,
                attributes: Vec::new(),
                failure: None,
            };
            Box::new(Open { span: finished, clock: Instant::now(), recorder: recorder.clone() })
        });
        Span { context, open }
    }
}

#[derive(Debug)]
struct Open {
    span: FinishedSpan,
    clock: Instant,
    recorder: Arc<Recorder>,
}

/// A step of a trace. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    context: Option<TraceContext>,
    open: Option<Box<Open>>,
}

impl Span {
    /// Its place in the trace, for what is sent because of it; `None` outside a trace.
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// The same as the attribute of a message has it.
    pub fn traceparent(&self) -> Option<String> {
        self.context.map(|context| context.to_string())
    }

    /// Whether it is recorded; what would be set otherwise need not be made.
    pub fn is_recorded(&self) -> bool {
        self.open.is_some()
    }

    /// Says something about it.
    pub fn set(&mut self, name: &'static str, value: impl Into<SpanValue>) {
        if let Some(open) = &mut self.open {
            open.span.attributes.push((name, value.into()));
        }
    }

    /// Says that it sends a message to the stream of this name.
    #[must_use]
    pub fn about_sending(mut self, stream_name: &str) -> Self {
        if self.is_recorded() {
            self.set("messaging.system", "oona");
            self.set("messaging.operation.type", "send");
            self.set("messaging.destination.name", stream_name);
        }
        self
    }

    /// Lets it begin earlier, by as much as the work behind it had taken already.
    pub fn began_before(&mut self, earlier: Duration) {
        if let Some(open) = &mut self.open {
            let earlier = u64::try_from(earlier.as_nanos()).unwrap_or(u64::MAX);
            open.span.began_unix_ns = open.span.began_unix_ns.saturating_sub(earlier);
        }
    }

    /// Says why it failed.
    pub fn fail(&mut self, reason: &str) {
        if let Some(open) = &mut self.open {
            open.span.failure = Some(reason.to_owned());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let Open { mut span, clock, recorder } = *open;
        let took = u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Its beginning may have been moved back; its end is counted from when it was made.
        span.ended_unix_ns = span.ended_unix_ns.saturating_add(took);
        if recorder.finished.try_send(span).is_err() {
            recorder.dropped.inc();
        }
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_recorded_when_it_ends() {
        let (tracer, mut finished) = Tracer::recording(1.0, 8, Counter::default());
        let root = tracer.begin("request", SpanKind::Producer);
        let mut child = tracer.follow("attach", SpanKind::Internal, root.context());
        child.set("attempt", 2_u32);
        child.began_before(Duration::from_secs(1));
        child.fail("refused");
        assert!(finished.try_recv().is_err(), "it has not ended");
        drop(child);
        let child = finished.try_recv().unwrap();
        assert_eq!((child.name, child.parent), ("attach", root.context()));
        assert_eq!(child.attributes, [("attempt", SpanValue::Integer(2))]);
        assert_eq!(child.failure.as_deref(), Some("refused"));
        assert!(child.ended_unix_ns - child.began_unix_ns >= 1_000_000_000);
        drop(root);
        let root = finished.try_recv().unwrap();
        assert_eq!(root.parent, None);
        assert_eq!(root.context.trace_id(), child.context.trace_id());
    }

    #[test]
    fn the_flag_of_whoever_began_decides() {
        let (tracer, mut finished) = Tracer::recording(0.0, 8, Counter::default());
        let unsampled = tracer.begin("request", SpanKind::Producer);
        assert!(!unsampled.context().unwrap().is_sampled() && !unsampled.is_recorded());
        drop(tracer.follow("attach", SpanKind::Internal, unsampled.context()));
        assert!(finished.try_recv().is_err());
        let sampled = TraceContext::begin();
        drop(tracer.follow("attach", SpanKind::Internal, Some(sampled)));
        assert_eq!(finished.try_recv().unwrap().parent, Some(sampled));
    }

    #[test]
    fn half_of_the_traces_is_about_half() {
        let (tracer, _finished) = Tracer::recording(0.5, 1, Counter::default());
        let span = || tracer.begin("request", SpanKind::Producer);
        let recorded = (0..2000).filter(|_| span().is_recorded()).count();
        assert!((800..1200).contains(&recorded), "{recorded}");
    }

    #[test]
    fn without_a_collector_the_trace_goes_on_and_none_begins() {
        let tracer = Tracer::default();
        let parent = TraceContext::begin();
        let step = tracer.follow("attach", SpanKind::Internal, Some(parent));
        assert_eq!(step.context().unwrap().trace_id(), parent.trace_id());
        assert_ne!(step.context(), Some(parent));
        assert!(!step.is_recorded());
        assert_eq!(tracer.follow("attach", SpanKind::Internal, None).context(), None);
        assert!(tracer.begin("request", SpanKind::Producer).context().unwrap().is_sampled());
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let dropped = Counter::default();
        let (tracer, _finished) = Tracer::recording(1.0, 1, dropped.clone());
        for _ in 0..3 {
            drop(tracer.begin("request", SpanKind::Producer));
        }
        assert_eq!(dropped.get(), 2);
    }
}

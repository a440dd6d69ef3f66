//! One trace from the request to the attachment, and the counters, as a collector receives them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use kasmina::FetchOrder;
use leyline::ids::{BlueprintId, RequestId, RunId, SeedId};
use prost::Message as _;
use weatherlight::otlp::wire::{Any, Data, Metrics, Number, Span, Traces};
use weatherlight::service::reload::Source;
use weatherlight::service::{self, Starting};
use weatherlight::settings::{Sources, resolve};
use weatherlight::supervisor::Exit;

use crate::bed::{Bed, SECRET};
use crate::collector::{Collector, Reply};

/// What a collector has received.
#[derive(Default)]
struct Seen {
    spans: Vec<Span>,
    metrics: Option<Metrics>,
}

impl Seen {
    /// Everything that came until now; the metrics are the newest.
    fn of(collector: &Collector) -> Self {
        let mut seen = Self::default();
        for received in collector.received.try_iter() {
            match &*received.path {
                "/v1/traces" => {
                    let traces = Traces::decode(&received.body[..]).unwrap();
                    let scopes = traces.resource_spans.into_iter().flat_map(|one| one.scope_spans);
                    seen.spans.extend(scopes.flat_map(|scope| scope.spans));
                }
                "/v1/metrics" => seen.metrics = Some(Metrics::decode(&received.body[..]).unwrap()),
                other => panic!("nothing is sent to {other}"),
            }
        }
        seen
    }

    /// The spans of one trace by name.
    fn trace(&self, of: &Span) -> BTreeMap<&str, &Span> {
        let same = self.spans.iter().filter(|span| span.trace_id == of.trace_id);
        same.map(|span| (&*span.name, span)).collect()
    }

    /// The value of a counter, over all its labels.
    fn counter(&self, name: &str) -> i64 {
        let metrics = self.metrics.as_ref().expect("metrics came");
        let scopes = metrics.resource_metrics.iter().flat_map(|one| &one.scope_metrics);
        let mut found = scopes.flat_map(|scope| &scope.metrics).filter(|one| one.name == name);
        let metric = found.next().unwrap_or_else(|| panic!("{name} came"));
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{name} is a counter: {metric:?}") };
        let value = |number| match number {
            Some(Number::Integer(value)) => value,
            other => panic!("{name} is whole: {other:?}"),
        };
        sum.data_points.iter().map(|point| value(point.value)).sum()
    }
}

#[track_caller]
fn follows(trace: &BTreeMap<&str, &Span>, name: &str, parent: &str) {
    let (span, parent) = (trace[name], trace[parent]);
    assert_eq!(span.parent_span_id, parent.span_id, "{name} follows {}", parent.name);
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    assert!(span.status.is_none(), "{span:?}");
}

fn text<'a>(span: &'a Span, name: &str) -> &'a str {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Any::Text(text)) => text,
        other => panic!("{name} of {}: {other:?}", span.name),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_spans_request_compile_ready_and_attach() {
    const PATIENCE: Duration = Duration::from_secs(120);
    let collector = Collector::start(|_| Reply::Status(200));
    let directory = tempfile::tempdir().unwrap();
    let var = directory.path().display();
    let overrides = vec![
        format!("ESPER_LEYLINE_SECRET={SECRET}"),
        format!("WEATHERLIGHT_STATE_DIR={var}"),
        format!("URZA_DATABASE_URL=sqlite://{var}/catalog.db"),
        format!("URZA_ARTIFACT_DIR={var}/artifacts"),
        format!("TAMIYO_POLICY_DIR={var}/policies"),
        format!("TAMIYO_FIELD_REPORT_DIR={var}/reports"),
        format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{}", collector.address),
    ];
    let resolved = resolve(&Sources { overrides, ..Sources::default() }).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let trainer = Some(RunId::new("run-traced"));
    let same = resolved.clone();
    let source = Source {
        read: Arc::new(move || Ok(same.clone())),
        paths: Vec::new(),
        set_log_filter: Box::new(|_| Ok(())),
    };
    let service = service::start(Starting { resolved, listener, source, trainer }).unwrap();
    let (handle, opened) = (service.handle.clone(), service.opened);
    let story = async move {
        let opened = opened.await.unwrap();
        let mut kernels = opened.trainer.unwrap().kernels;
        let (library, forge) = (opened.parts.library, opened.parts.forge.handle);
        forge.progress().wait_for(|progress| progress.finished).await.unwrap();
        // What is asked for now has to be compiled on behalf of who asks.
        let blueprint = BlueprintId::new("BP002");
        let record = library.find(&blueprint).await.unwrap().unwrap();
        std::fs::remove_file(&record.path).unwrap();
        let gone = urza::FetchError::NotFound { path: record.path.clone() };
        library.quarantine(&record, &gone).await.unwrap();
        let digits = record.job.site.split(|character: char| !character.is_ascii_digit());
        let shape = digits.filter_map(|digits| digits.parse().ok()).collect();
        let order = FetchOrder {
            request: RequestId::new("request-traced"),
            seed: SeedId::new("seed-traced"),
            blueprint,
            shape,
            parameters: [].into(),
        };
        kernels.orders.send(order).await.unwrap();
        let fetched = kernels.results.recv().await.unwrap();
        assert!(fetched.result.is_ok(), "{:?}", fetched.result);
        drop(fetched);
        handle.stop(Exit::Clean);
    };
    let (exit, told) = tokio::join!(service.run, tokio::time::timeout(PATIENCE, story));
    told.expect("a kernel in time");
    assert_eq!(exit, Exit::Clean);

    let seen = Seen::of(&collector);
    let is_request = |span: &&Span| span.name == "prefetch.request";
    let request = seen.spans.iter().find(is_request).expect("a request was recorded");
    let trace = seen.trace(request);
    assert!(request.parent_span_id.is_empty(), "the trace begins with it");
    follows(&trace, "urza.prefetch", "prefetch.request");
    follows(&trace, "tezzeret.compile", "urza.prefetch");
    follows(&trace, "urza.ready", "urza.prefetch");
    follows(&trace, "kasmina.ready", "urza.ready");
    follows(&trace, "kasmina.attach", "kasmina.ready");
    for (name, kind) in [("prefetch.request", 4), ("urza.prefetch", 5), ("tezzeret.compile", 1)] {
        assert_eq!(trace[name].kind, kind, "{name}");
    }
    let served = trace["urza.prefetch"];
    assert_eq!(text(served, "messaging.system"), "oona");
    assert_eq!(text(served, "messaging.operation.type"), "process");
    assert_eq!(text(served, "messaging.destination.name"), "oona.kernels.requests");
    assert_eq!(text(served, "messaging.message.conversation_id"), "request-traced");
    assert!(!text(served, "messaging.message.id").is_empty());
    assert_eq!(text(trace["tezzeret.compile"], "tezzeret.blueprint"), "BP002");
    assert_eq!(text(trace["tezzeret.compile"], "tezzeret.outcome"), "compiled");
    assert_eq!(text(trace["kasmina.attach"], "kasmina.seed"), "seed-traced");
}

#[test]
fn a_run_sends_its_steps_and_its_counters_before_it_ends() {
    let collector = Collector::start(|_| Reply::Status(200));
    let bed = Bed::new();
    let output = bed
        .command(&["demo", "--task", "xor", "--no-compare"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{log}");
    let seen = Seen::of(&collector);
    let is_attached = |span: &&Span| span.name == "kasmina.attach";
    let attached = seen.spans.iter().find(is_attached).expect("a kernel was attached");
    let trace = seen.trace(attached);
    follows(&trace, "urza.prefetch", "prefetch.request");
    follows(&trace, "urza.ready", "urza.prefetch");
    follows(&trace, "kasmina.ready", "urza.ready");
    follows(&trace, "kasmina.attach", "kasmina.ready");
    let steps = seen.spans.iter().filter(|span| span.name == "tezzeret.compile").count();
    let served = karn::catalogue().iter().filter(|blueprint| blueprint.graftable()).count();
    assert_eq!(steps, served, "the catalogue");
    assert_eq!(seen.counter("tezzeret_jobs"), served as i64);
}

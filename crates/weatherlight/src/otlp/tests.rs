//! The exporter against collectors of every temper.

use std::time::{Duration, Instant};

use oona::SpanKind;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;

use super::collector::{Collector, Reply};
use super::*;
use crate::settings::{Sources, resolve};

/// An exporter to this address, with a counter that stands at 7 in its registry.
fn exporter(address: std::net::SocketAddr, interval_ms: u32) -> Otlp {
    let overrides = vec![
        format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{address}"),
        "OTEL_EXPORTER_OTLP_HEADERS=x-tenant=seven".to_owned(),
        format!("OTEL_METRIC_EXPORT_INTERVAL={interval_ms}"),
    ];
    let settings = resolve(&Sources { overrides, ..Sources::default() }).unwrap().settings;
    let mut registry = Registry::default();
    let counter = Counter::<u64>::default();
    counter.inc_by(7);
    registry.register("tested", "Tests", counter);
    let metrics = OtlpMetrics::default();
    Otlp::open(&settings, &Arc::new(registry), &metrics).unwrap().unwrap()
}

/// An hour: metrics are sent at the end only.
const RARELY: u32 = 3_600_000;

fn span_names(received: &collector::Received) -> Vec<String> {
    let traces = wire::Traces::decode(&received.body[..]).unwrap();
    let spans = traces.resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
    spans.flat_map(|scope| scope.spans).map(|span| span.name).collect()
}

/// Runs the worker beside `story`, then stops it; returns how long the end took.
async fn beside(otlp: &Otlp, story: impl Future<Output = ()>) -> Duration {
    let stop = CancellationToken::new();
    let running = otlp.clone().run(stop.clone(), Heartbeat::new());
    let story = async {
        story.await;
        stop.cancel();
        Instant::now()
    };
    let (ran, stopped) = tokio::join!(running, story);
    ran.unwrap();
    stopped.elapsed()
}

/// Waits without blocking the worker beside.
async fn next(collector: &mut Option<Collector>) -> collector::Received {
    let taken = collector.take().unwrap();
    let (taken, received) = tokio::task::spawn_blocking(move || {
        let received = taken.next();
        (taken, received)
    })
    .await
    .unwrap();
    *collector = Some(taken);
    received
}

#[tokio::test]
async fn what_a_busy_collector_refused_is_sent_again() {
    let collector = Collector::start(|number| Reply::Status(if number == 0 { 503 } else { 200 }));
    let otlp = exporter(collector.address, RARELY);
    let mut collector = Some(collector);
    beside(&otlp, async {
        drop(otlp.tracer().begin("prefetch.request", SpanKind::Producer));
        for _ in 0..2 {
            let received = next(&mut collector).await;
            assert_eq!(received.path, "/v1/traces");
            assert_eq!(span_names(&received), ["prefetch.request"]);
            assert!(received.headers.iter().any(|line| line == "x-tenant: seven"), "{received:?}");
        }
    })
    .await;
    let metrics = &otlp.metrics;
    assert_eq!(metrics.sent(Signal::Traces).get(), 1);
    assert_eq!(metrics.dropped(Signal::Traces).get(), 0);
    assert_eq!(metrics.failures(Signal::Traces).get(), 1);
    // The end sends the counters a last time.
    let last = next(&mut collector).await;
    assert_eq!(last.path, "/v1/metrics");
}

#[tokio::test]
async fn metrics_arrive_with_their_values() {
    let collector = Collector::start(|_| Reply::Status(200));
    let otlp = exporter(collector.address, 1000);
    let mut collector = Some(collector);
    beside(&otlp, async {
        let received = next(&mut collector).await;
        assert_eq!(received.path, "/v1/metrics");
        let mut metrics = wire::Metrics::decode(&received.body[..]).unwrap();
        let mut metrics = metrics.resource_metrics.remove(0);
        let resource = metrics.resource.unwrap().attributes;
        assert!(resource.contains(&wire::KeyValue::text("service.name", "weatherlight")));
        let metric = metrics.scope_metrics.remove(0).metrics.remove(0);
        assert_eq!((&*metric.name, &*metric.description), ("tested", "Tests"));
        let Some(wire::Data::Sum(sum)) = metric.data else { panic!("{metric:?}") };
        assert_eq!(sum.data_points[0].value, Some(wire::Number::Integer(7)));
        assert_eq!(sum.data_points[0].start_time_unix_nano, otlp.start_unix_ns);
    })
    .await;
    assert!(otlp.metrics.sent(Signal::Metrics).get() >= 1);
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_neither_work_nor_the_end() {
    let collector = Collector::start(|_| Reply::Never);
    let otlp = exporter(collector.address, RARELY);
    let mut collector = Some(collector);
    let all = SPANS_LEN_MAX + 5000;
    let end = beside(&otlp, async {
        drop(otlp.tracer().begin("first", SpanKind::Internal));
        next(&mut collector).await;
        // The worker waits for an answer now; spans go on, into the queue and beyond it.
        for _ in 0..all {
            drop(otlp.tracer().begin("next", SpanKind::Internal));
        }
        assert_eq!(otlp.metrics.dropped(Signal::Traces).get(), 5000);
    })
    .await;
    assert!(end < Duration::from_secs(5), "{end:?}");
    // Every span was sent or counted.
    assert_eq!(otlp.metrics.sent(Signal::Traces).get(), 0);
    assert_eq!(otlp.metrics.dropped(Signal::Traces).get(), all as u64 + 1);
}

#[tokio::test]
async fn no_collector_at_all_is_no_failure_of_the_service() {
    let address = Collector::start(|_| Reply::Never).address;
    let otlp = exporter(address, RARELY);
    let end = beside(&otlp, async {
        drop(otlp.tracer().begin("lost", SpanKind::Internal));
    })
    .await;
    assert!(end < Duration::from_secs(5), "{end:?}");
    assert_eq!(otlp.metrics.dropped(Signal::Traces).get(), 1);
    assert_eq!(otlp.metrics.failures(Signal::Traces).get(), 1);
}

#[tokio::test]
async fn what_the_collector_refuses_for_good_is_not_offered_again() {
    let collector = Collector::start(|number| Reply::Status(if number == 0 { 400 } else { 200 }));
    let otlp = exporter(collector.address, RARELY);
    let mut collector = Some(collector);
    beside(&otlp, async {
        drop(otlp.tracer().begin("bad", SpanKind::Internal));
        next(&mut collector).await;
        drop(otlp.tracer().begin("good", SpanKind::Internal));
        assert_eq!(span_names(&next(&mut collector).await), ["good"]);
    })
    .await;
    assert_eq!(otlp.metrics.dropped(Signal::Traces).get(), 1);
    assert_eq!(otlp.metrics.sent(Signal::Traces).get(), 1);
}

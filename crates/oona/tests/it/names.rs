//! The names of the metrics are an interface.

use oona::{Metrics, Stream};

use crate::rig::*;

#[tokio::test]
async fn every_metric_is_there_under_its_name() {
    let rig = Rig::embedded();
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let bus = oona::Bus::open(rig.config.clone(), keyring(), metrics).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    recv(&mut reader).await.fail("on purpose").await.unwrap();
    recv(&mut reader).await.ack().await.unwrap();
    let mut forged = Envelope::of(&state("run", 2), "oona.normal");
    forged.secret = "some other secret".to_owned();
    forged.append(&bus, Stream::Normal).await;
    publish(&bus, &state("run", 3)).await;
    recv(&mut reader).await.ack().await.unwrap();
    bus.sweep(Stream::Normal).await.unwrap();

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"oona_publish_total{stream="normal",outcome="published"} 2"#,
        "oona_publish_seconds_count 2",
        r#"oona_consume_total{stream="normal",outcome="handled"} 2"#,
        r#"oona_refused_total{stream="normal",reason="bad_signature"} 1"#,
        r#"oona_retries_total{stream="normal"} 1"#,
        r#"oona_delivery_seconds_count{stream="normal"} 2"#,
        r#"oona_handler_seconds_count{stream="normal"} 3"#,
        r#"oona_pending{stream="normal",group="weatherlight"} 0"#,
        r#"oona_lag{stream="normal",group="weatherlight"} 0"#,
        "# TYPE oona_dead_letter counter",
        "# TYPE oona_trimmed counter",
        "# TYPE oona_breaker_state gauge",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let points = bus.points();
    for (name, expected) in [
        ("oona.publish_total", 2.0),
        ("oona.queue_depth_normal", 0.0),
        ("oona.kernel_stale_dropped", 0.0),
        ("oona.kernel_replay_dropped", 0.0),
    ] {
        let found = points.iter().find(|(point, _)| point == name).map(|(_, value)| *value);
        assert_eq!(found, Some(expected), "{name}");
    }
}

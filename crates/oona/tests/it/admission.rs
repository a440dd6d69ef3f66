//! Typed outcomes: who is refused, who is rerouted, what is too large.

use leyline::wire::{EmergencySignal, MessagePriority as P};
use oona::{Config, EmergencyLane, Heartbeat, Outcome, PublishError, RefusedBecause, Stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::rig::*;

crate::on_both_logs!(
    a_full_queue_refuses_the_lowest_first,
    pressure_reroutes_the_urgent,
    kernel_traffic_never_changes_its_stream,
    oversize_is_refused_with_a_typed_error,
    a_stream_takes_only_its_types,
    the_emergency_lane_sorts,
    round_trips_are_measured,
);

fn small(config: &mut Config) {
    (config.emergency_threshold, config.backpressure_threshold, config.depth_max) = (5, 10, 20);
}

async fn fill(bus: &oona::Bus, stream: Stream, entries: u32) {
    bus.ensure_groups(&[(stream, GROUP)]).await.unwrap();
    for number in 0..entries {
        bus.append_raw(stream, &[("filler", &number.to_le_bytes())]).await.unwrap();
    }
    // The backlog is looked at on the way; this look is older than the sampling interval when the
    // next publish asks.
    let seen = bus.depth(stream, GROUP).await.unwrap();
    assert_eq!(seen, u64::from(entries));
    let start = std::time::Instant::now();
    while start.elapsed() < bus.config().depth_sample_interval {
        tokio::task::yield_now().await;
    }
}

fn refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { reason: RefusedBecause::Backlog, .. })
}

async fn a_full_queue_refuses_the_lowest_first(rig: Rig) {
    for (depth, expected) in [
        (4, [false; 4]),
        (10, [true, false, false, false]),
        (15, [true, true, false, false]),
        (25, [true, true, true, false]),
    ] {
        let bus = rig
            .bus_with(|config| {
                small(config);
                config.streams.kernel_requests = format!("requests-{depth}");
            })
            .await;
        fill(&bus, Stream::KernelRequests, depth).await;
        let message = request("r", now_ms());
        let mut found = Vec::new();
        for priority in [P::Low, P::Normal, P::High, P::Critical] {
            // The first publish after a while looks at the backlog, the next one knows it.
            for _ in 0..2 {
                let outcome =
                    bus.publish(Stream::KernelRequests, priority, "test", &message).await.unwrap();
                found.push(refused(&outcome));
            }
        }
        let settled: Vec<bool> = found.chunks(2).map(|pair| pair[1]).collect();
        // What was let through adds to the backlog: only the bands below may have moved up.
        for (found, expected) in settled.iter().zip(expected) {
            assert!(*found || !expected, "at {depth}: {settled:?}");
        }
        assert!(!settled[3], "CRITICAL is never refused");
        if depth == 4 {
            assert_eq!(settled, expected);
        }
    }
}

async fn pressure_reroutes_the_urgent(rig: Rig) {
    let bus = rig.bus_with(small).await;
    fill(&bus, Stream::Normal, 6).await;
    let message = state("run", 1);
    let mut last = None;
    for _ in 0..2 {
        last = Some(bus.publish(Stream::Normal, P::High, "test", &message).await.unwrap());
    }
    let Some(Outcome::Rerouted { from: Stream::Normal, .. }) = last else { panic!("{last:?}") };
    let normal = bus.publish(Stream::Normal, P::Normal, "test", &message).await.unwrap();
    assert!(matches!(normal, Outcome::Published { stream: Stream::Normal, .. }), "{normal:?}");
    let delivery = recv(&mut consumer(&bus, Stream::Emergency)).await;
    assert_eq!(delivery.message, message);
    delivery.ack().await.unwrap();
}

async fn kernel_traffic_never_changes_its_stream(rig: Rig) {
    let bus = rig.bus_with(small).await;
    fill(&bus, Stream::KernelRequests, 30).await;
    for _ in 0..3 {
        let message = request("r", now_ms());
        let outcome =
            bus.publish(Stream::KernelRequests, P::Critical, "test", &message).await.unwrap();
        assert!(
            matches!(outcome, Outcome::Published { stream: Stream::KernelRequests, .. }),
            "{outcome:?}"
        );
    }
    assert_eq!(bus.len(Stream::Emergency).await.unwrap(), 0);
}

async fn oversize_is_refused_with_a_typed_error(rig: Rig) {
    let bus = rig.bus().await;
    let message = state(&"x".repeat(300 * 1024), 1);
    let error = bus.publish(Stream::Normal, P::Critical, "test", &message).await.unwrap_err();
    let PublishError::Oversize { bytes, bytes_max } = error else { panic!("{error}") };
    assert!(bytes > 300 * 1024 && bytes_max == 256 * 1024);
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 0);
}

async fn a_stream_takes_only_its_types(rig: Rig) {
    let bus = rig.bus().await;
    let error = bus.publish(Stream::Policy, P::High, "test", &state("run", 1)).await.unwrap_err();
    assert!(matches!(error, PublishError::WrongStream { stream: Stream::Policy, .. }), "{error}");
}

async fn the_emergency_lane_sorts(rig: Rig) {
    let bus = rig.bus_with(small).await;
    let signal = EmergencySignal { reason: "halt".to_owned(), ..Default::default() }.into();
    publish_on(&bus, Stream::Emergency, &signal).await;
    publish_on(&bus, Stream::Emergency, &state("run", 1)).await;
    let (signals, mut signals_seen) = mpsc::channel(8);
    let (rerouted, mut rerouted_seen) = mpsc::channel(8);
    let lane = EmergencyLane {
        bus: bus.clone(),
        group: GROUP.to_owned(),
        signals,
        rerouted,
        heartbeat: Heartbeat::detached(),
    };
    let stop = CancellationToken::new();
    let watch = async {
        let delivery = signals_seen.recv().await.unwrap();
        assert_eq!(delivery.message, signal);
        delivery.ack().await.unwrap();
        let delivery = rerouted_seen.recv().await.unwrap();
        assert_eq!(epoch(&delivery), 1);
        delivery.ack().await.unwrap();
        stop.cancel();
    };
    let both = async { tokio::join!(lane.run(stop.clone()), watch) };
    let (ended, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    ended.unwrap();
    assert_eq!(bus.depth(Stream::Emergency, GROUP).await.unwrap(), 0);
}

async fn round_trips_are_measured(rig: Rig) {
    let bus = rig.bus().await;
    let found = oona::bench::round_trips(&bus, 5, 512).await.unwrap();
    assert_eq!(found.rounds, 5);
    assert!(found.entry_bytes > 512, "{found:?}");
    assert!(found.round_trip >= found.publish && !found.publish_baseline.is_zero(), "{found:?}");
    assert_eq!(bus.depth(Stream::Telemetry, "oona-bench").await.unwrap(), 0);
}

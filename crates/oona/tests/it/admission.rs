//! Typed outcomes: who is refused, who is rerouted, what is too large.

use leyline::wire::{EmergencySignal, MessagePriority as P};
use oona::{
    Bus, Config, EmergencyLane, Heartbeat, Live, Metrics, Outcome, PublishError, RefusedBecause,
    Stream,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::rig::*;

crate::on_both_logs!(
    a_full_queue_refuses_the_lowest_first,
    other_limits_hold_for_the_next_message,
    pressure_reroutes_the_urgent,
    kernel_traffic_never_changes_its_stream,
    oversize_is_refused_with_a_typed_error,
    a_stream_takes_only_its_types,
    the_emergency_lane_sorts,
    an_origin_has_its_share_of_the_emergency_lane,
    a_flood_of_one_origin_does_not_hold_up_another,
    conservative_mode_ends_once_the_backlog_has_stayed_low,
    breakers_count_only_failures_of_the_log,
    round_trips_are_measured,
);

fn small(config: &mut Config) {
    (config.emergency_threshold, config.backpressure_threshold, config.depth_max) = (5, 10, 20);
    config.recovery_depth = 5;
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
    use RefusedBecause::{Backlog, Conservative};
    matches!(outcome, Outcome::Refused { reason: Backlog | Conservative, .. })
}

/// The limits change under a bus that works.
async fn other_limits_hold_for_the_next_message(rig: Rig) {
    let mut config = rig.config.clone();
    small(&mut config);
    let (tuning, limits) = watch::channel(config.limits());
    let live = Live { limits, ..Live::fixed(keyring(), config.limits()) };
    let bus = Bus::open_live(config.clone(), live, Metrics::detached()).await.unwrap();
    fill(&bus, Stream::KernelRequests, 12).await;
    let low = async || {
        let message = request(&now_ms().to_string(), now_ms());
        let sent = bus.publish(Stream::KernelRequests, P::Low, "test", &message).await;
        refused(&sent.unwrap())
    };
    // The first publish after a while looks at the backlog, the next one knows it.
    low().await;
    assert!(low().await, "12 or 13 of 10");
    config.backpressure_threshold = 15;
    tuning.send_replace(config.limits());
    assert!(!low().await, "12 or 13 of 15");
    assert_eq!(bus.limits().backpressure_threshold, 15);
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

fn signal(run: &str) -> leyline::Message {
    EmergencySignal { run_id: run.to_owned(), origin: "test".to_owned(), ..Default::default() }
        .into()
}

async fn an_origin_has_its_share_of_the_emergency_lane(rig: Rig) {
    let few = |config: &mut Config| {
        small(config);
        config.emergency_per_min = 2;
    };
    let bus = rig.bus_with(few).await;
    fill(&bus, Stream::Normal, 6).await;
    let mut outcomes = Vec::new();
    for run in ["one", "one", "one", "two"] {
        let sent = bus.publish(Stream::Emergency, P::Critical, "test", &signal(run)).await.unwrap();
        outcomes.push(sent);
    }
    let [first, second, third, another] = outcomes.try_into().unwrap();
    assert!(first.is_sent() && second.is_sent() && another.is_sent());
    let Outcome::Refused { reason: RefusedBecause::RateLimited, retry_after } = third else {
        panic!("{third:?}")
    };
    // Two a minute: the next token comes within half a minute.
    assert!(retry_after > std::time::Duration::from_secs(20), "{retry_after:?}");
    // What pressure would move there stays at home, and is not refused for it.
    let message = state("one", 1);
    let sent = bus.publish(Stream::Normal, P::High, "test", &message).await.unwrap();
    assert!(matches!(sent, Outcome::Published { stream: Stream::Normal, .. }), "{sent:?}");
    let sent = bus.publish(Stream::Normal, P::High, "test", &state("two", 1)).await.unwrap();
    assert!(matches!(sent, Outcome::Rerouted { from: Stream::Normal, .. }), "{sent:?}");
}

/// The flood comes from a program that does not keep to the rate. Its receiver does not take any of
/// it, and still the other's signal comes through.
async fn a_flood_of_one_origin_does_not_hold_up_another(rig: Rig) {
    let bus = rig.bus_with(|config| config.emergency_per_min = 20).await;
    let name = "oona.emergency";
    for _ in 0..400 {
        Envelope::of(&signal("wild"), name).append(&bus, Stream::Emergency).await;
    }
    Envelope::of(&signal("calm"), name).append(&bus, Stream::Emergency).await;
    let (signals, mut signals_seen) = mpsc::channel(64);
    let (rerouted, mut rerouted_seen) = mpsc::channel(8);
    let heartbeat = Heartbeat::detached();
    let lane =
        EmergencyLane { bus: bus.clone(), group: GROUP.to_owned(), signals, rerouted, heartbeat };
    let stop = CancellationToken::new();
    let watch = async {
        for run in std::iter::repeat_n("wild", 20).chain(["calm"]) {
            let delivery = signals_seen.recv().await.unwrap();
            assert_eq!(delivery.message, signal(run));
            delivery.ack().await.unwrap();
        }
        // Nothing of the flood is lost: it was kept back.
        for _ in 0..380 {
            let delivery = rerouted_seen.recv().await.unwrap();
            assert_eq!((&delivery.message, delivery.attempt), (&signal("wild"), 1));
            delivery.ack().await.unwrap();
        }
        stop.cancel();
    };
    let both = async { tokio::join!(lane.run(stop.clone()), watch) };
    let (ended, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    ended.unwrap();
    assert_eq!(bus.depth(Stream::Emergency, GROUP).await.unwrap(), 0);
    let points = std::collections::BTreeMap::from_iter(bus.points());
    assert_eq!(points["oona.emergency_diverted"], 380.0);
}

async fn conservative_mode_ends_once_the_backlog_has_stayed_low(rig: Rig) {
    let window = std::time::Duration::from_millis(300);
    let bus = rig
        .bus_with(|config| {
            // Far apart: some publishes pass between two looks.
            config.depth_max = 200;
            *config = config.clone().with_bands_of_depth();
            config.recovery_window = window;
        })
        .await;
    let stream = Stream::KernelRequests;
    bus.ensure_groups(&[(stream, GROUP)]).await.unwrap();
    for number in 0..120 {
        publish_on(&bus, stream, &request(&format!("r-{number}"), now_ms())).await;
    }
    let message = request("r", now_ms());
    let publish = async |priority| bus.publish(stream, priority, "test", &message).await.unwrap();
    while !refused(&publish(P::Normal).await) {}
    assert_eq!(bus.conservative(), [(stream, oona::ConservativeBecause::Backlog)]);
    assert!(publish(P::High).await.is_sent(), "HIGH goes on");

    let mut reader = consumer(&bus, stream);
    let mut emptied = std::time::Instant::now();
    while bus.depth(stream, GROUP).await.unwrap() > 0 {
        emptied = std::time::Instant::now();
        recv(&mut reader).await.ack().await.unwrap();
    }
    loop {
        match publish(P::Normal).await {
            Outcome::Refused { reason: RefusedBecause::Conservative, retry_after } => {
                assert!(retry_after >= window);
                tokio::task::yield_now().await;
            }
            outcome => break assert!(outcome.is_sent(), "{outcome:?}"),
        }
    }
    assert!(emptied.elapsed() >= window, "left after {:?}", emptied.elapsed());
    assert_eq!(bus.conservative(), []);
}

/// Failed handlers, refusals, bad messages: more of each than a breaker forgives.
async fn breakers_count_only_failures_of_the_log(rig: Rig) {
    let bus = rig.bus_with(small).await;
    let stream = Stream::KernelRequests;
    publish_on(&bus, stream, &request("r", now_ms())).await;
    let mut reader = consumer(&bus, stream);
    for _ in 0..5 {
        recv(&mut reader).await.fail("a handler's own fault").await.unwrap();
    }
    fill(&bus, stream, 30).await;
    let message = request("r", now_ms());
    // The first publish after a while looks at the backlog on its way.
    assert!(bus.publish(stream, P::Normal, "test", &message).await.is_ok());
    for _ in 0..5 {
        let outcome = bus.publish(stream, P::Normal, "test", &message).await.unwrap();
        assert!(refused(&outcome), "{outcome:?}");
        let large = state(&"x".repeat(300 * 1024), 1);
        assert!(bus.publish(Stream::Normal, P::High, "test", &large).await.is_err());
        assert!(bus.publish(Stream::Policy, P::High, "test", &state("run", 1)).await.is_err());
    }
    for breaker in bus.breakers() {
        assert_eq!(breaker.position, oona::BreakerPosition::Closed, "{}", breaker.name);
    }
    assert_eq!(bus.breakers().len(), 3);
}

async fn round_trips_are_measured(rig: Rig) {
    let bus = rig.bus().await;
    let found = oona::bench::round_trips(&bus, 5, 512).await.unwrap();
    assert_eq!(found.rounds, 5);
    assert!(found.entry_bytes > 512, "{found:?}");
    assert!(found.round_trip >= found.publish && !found.publish_baseline.is_zero(), "{found:?}");
    assert_eq!(bus.depth(Stream::Telemetry, "oona-bench").await.unwrap(), 0);
}

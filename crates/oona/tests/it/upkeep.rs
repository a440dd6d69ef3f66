//! Streams stay small and lose nothing that somebody still needs.

use std::time::Duration;

use oona::{Bus, ConsumerSpec, EntryId, Heartbeat, Housekeeping, Stream};
use tokio_util::sync::CancellationToken;

use crate::rig::*;

crate::on_both_logs!(
    streams_that_do_not_exist_are_no_fault,
    what_everybody_acknowledged_is_trimmed_by_length,
    what_somebody_needs_is_never_trimmed,
    an_abandoned_group_does_not_hold_for_ever,
    dead_consumers_are_removed_once_empty,
    housekeeping_speaks_for_a_busy_handler,
);

async fn ids(bus: &Bus) -> Vec<EntryId> {
    bus.peek(Stream::Normal, EntryId::ZERO, 1000).await.unwrap().iter().map(|e| e.id).collect()
}

async fn streams_that_do_not_exist_are_no_fault(rig: Rig) {
    let bus = rig.bus().await;
    for stream in Stream::ALL {
        bus.sweep(stream).await.unwrap();
        assert_eq!(bus.len(stream).await.unwrap(), 0);
        assert_eq!(bus.depth(stream, GROUP).await.unwrap(), 0);
        assert_eq!(bus.peek(stream, EntryId::ZERO, 10).await.unwrap(), []);
        bus.remove_group(stream, GROUP).await.unwrap();
    }
}

async fn what_everybody_acknowledged_is_trimmed_by_length(rig: Rig) {
    let bus = rig.bus_with(|config| config.stream_len_max = 4).await;
    let mut reader = consumer(&bus, Stream::Normal);
    let mut published = Vec::new();
    for number in 0..10 {
        published.push(publish(&bus, &state("run", number)).await);
        recv(&mut reader).await.ack().await.unwrap();
    }
    bus.sweep(Stream::Normal).await.unwrap();
    assert_eq!(ids(&bus).await, published[6..]);
}

async fn what_somebody_needs_is_never_trimmed(rig: Rig) {
    let bus = rig.bus_with(|config| config.stream_len_max = 1).await;
    let mut quick = consumer(&bus, Stream::Normal);
    let mut slow = bus.consumer(ConsumerSpec::new(Stream::Normal, "slow"));
    let mut published = Vec::new();
    for number in 0..6 {
        published.push(publish(&bus, &state("run", number)).await);
    }
    for _ in 0..6 {
        recv(&mut quick).await.ack().await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(recv(&mut slow).await);
    }
    // The slow group has acknowledged all but the third: that one and what follows stay.
    let third = held.remove(2);
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    bus.sweep(Stream::Normal).await.unwrap();
    assert_eq!(ids(&bus).await, published[2..]);
    third.ack().await.unwrap();
    bus.sweep(Stream::Normal).await.unwrap();
    assert_eq!(ids(&bus).await, published[5..]);
}

async fn an_abandoned_group_does_not_hold_for_ever(rig: Rig) {
    let ttl = Duration::from_millis(300);
    let bus = rig.bus_with(|config| config.message_ttl = ttl).await;
    bus.ensure_groups(&[(Stream::Normal, "abandoned")]).await.unwrap();
    let last = publish(&bus, &state("run", 1)).await;
    bus.sweep(Stream::Normal).await.unwrap();
    assert_eq!(ids(&bus).await, [last], "the group was just made");
    while !ids(&bus).await.is_empty() {
        bus.sweep(Stream::Normal).await.unwrap();
        assert!(now_ms() < last.ms + 20_000, "never trimmed");
    }
    assert!(now_ms() >= last.ms + 300);
}

async fn dead_consumers_are_removed_once_empty(rig: Rig) {
    let registry = &mut prometheus_client::registry::Registry::default();
    let metrics = oona::Metrics::register(registry);
    let bus = Bus::open(rig.config.clone(), keyring(), metrics).await.unwrap();
    let mut keeper = consumer(&bus, Stream::Normal);
    {
        let mut gone = consumer(&bus, Stream::Normal);
        let waits = tokio::time::timeout(Duration::from_millis(50), gone.recv());
        assert!(waits.await.is_err());
    }
    let text = |registry: &prometheus_client::registry::Registry| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    };
    let start = std::time::Instant::now();
    while !text(registry).contains("oona_consumers_removed_total{stream=\"normal\"} 1") {
        // The keeper lives: it reads on.
        let _ = tokio::time::timeout(Duration::from_millis(50), keeper.recv()).await;
        bus.sweep(Stream::Normal).await.unwrap();
        assert!(start.elapsed() < PATIENCE, "{}", text(registry));
    }
}

/// The handler takes longer than consumer_ttl and claim_idle and does not call `recv`.
async fn housekeeping_speaks_for_a_busy_handler(rig: Rig) {
    let bus = rig
        .bus_with(|config| {
            config.consumer_ttl = Duration::from_millis(2_500);
            config.claim_idle = Duration::from_millis(2_500);
        })
        .await;
    publish(&bus, &state("run", 1)).await;
    let mut busy = consumer(&bus, Stream::Normal);
    let mut other = consumer(&bus, Stream::Normal);
    let slow = recv(&mut busy).await;
    let stop = CancellationToken::new();
    let keeper = Housekeeping { bus: bus.clone(), heartbeat: Heartbeat::detached() };
    let watch = async {
        let silence = Duration::from_millis(4_000);
        let taken = tokio::time::timeout(silence, other.recv()).await;
        stop.cancel();
        taken.is_err()
    };
    let (ended, kept) = tokio::join!(keeper.run(stop.clone()), watch);
    ended.unwrap();
    assert!(kept, "taken away from a handler that is still at work");
    slow.ack().await.unwrap();
}

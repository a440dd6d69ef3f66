//! What is removed, what is kept, what is counted.

use std::time::{Duration, Instant};

use leyline::wire::MessagePriority;
use oona::{Bus, ConsumerSpec, EntryId, Outcome, Stream};

use crate::rig::*;

crate::on_both_logs!(
    deleted_entries_do_not_stay_pending,
    names_of_dead_consumers_do_not_pile_up,
    what_somebody_needs_is_never_trimmed,
    depth_is_what_nobody_acknowledged,
);

/// Pitfall: a claim meets entries that were deleted.
/// Elsewhere: the claim answers with an empty entry; some crash on it, some claim it again for ever, and it is never acknowledged.
/// Oona: it is acknowledged and forgotten; what comes after it is handled.
async fn deleted_entries_do_not_stay_pending(rig: Rig) {
    let bus = rig.bus().await;
    // The one stream from which single entries can be deleted.
    let stream = Stream::DeadLetter;
    let mut gone = consumer(&bus, stream);
    let deleted = Envelope::of(&state("run", 1), "oona.deadletter").append(&bus, stream).await;
    let held = recv(&mut gone).await;
    assert_eq!(held.entry, deleted);
    Envelope::of(&state("run", 2), "oona.deadletter").append(&bus, stream).await;
    assert!(bus.remove_dead_letter(deleted).await.unwrap());
    drop((held, gone));
    let mut reader = consumer(&bus, stream);
    let delivery = recv(&mut reader).await;
    assert_eq!(epoch(&delivery), 2);
    delivery.ack().await.unwrap();
    let start = Instant::now();
    while bus.depth(stream, GROUP).await.unwrap() > 0 {
        let nothing = tokio::time::timeout(Duration::from_millis(50), reader.recv()).await;
        assert!(nothing.is_err(), "a deleted entry was handed out");
        assert!(start.elapsed() < PATIENCE, "still pending");
    }
}

/// Pitfall: consumer names are leaked.
/// Elsewhere: every process start makes a new name, none is ever removed, and each look at the group takes longer.
/// Oona: housekeeping removes a name whose heartbeat is long gone and under which nothing is pending.
async fn names_of_dead_consumers_do_not_pile_up(rig: Rig) {
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
    let start = Instant::now();
    while !text(registry).contains("oona_consumers_removed_total{stream=\"normal\"} 1") {
        // The keeper lives: it reads on.
        let _ = tokio::time::timeout(Duration::from_millis(50), keeper.recv()).await;
        bus.sweep(Stream::Normal).await.unwrap();
        assert!(start.elapsed() < PATIENCE, "{}", text(registry));
    }
}

/// Pitfall: trimming removes entries that are unread or pending.
/// Elsewhere: `MAXLEN` at every append cuts off what a slow group has not read, and nobody is told.
/// Oona: a stream is trimmed by age and length, but never past the oldest entry that some live group has not acknowledged; what an abandoned group loses is counted.
async fn what_somebody_needs_is_never_trimmed(rig: Rig) {
    let bus = rig.bus_with(|config| config.stream_len_max = 1).await;
    let mut quick = consumer(&bus, Stream::Normal);
    let mut slow = bus.consumer(ConsumerSpec::new(Stream::Normal, "slow"));
    let mut published = Vec::new();
    for number in 0..6 {
        published.push(publish(&bus, &state("run", number)).await);
    }
    bus.ensure_groups(&[(Stream::Normal, "slow")]).await.unwrap();
    for _ in 0..6 {
        recv(&mut quick).await.ack().await.unwrap();
    }
    bus.sweep(Stream::Normal).await.unwrap();
    assert_eq!(ids(&bus).await, published, "unread by the slow group");
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

async fn ids(bus: &Bus) -> Vec<EntryId> {
    bus.peek(Stream::Normal, EntryId::ZERO, 1000).await.unwrap().iter().map(|e| e.id).collect()
}

/// Pitfall: depth is measured as history.
/// Elsewhere: the length of the stream is taken for the backlog, so a stream that keeps what was handled looks full, and publishers are refused with nothing to do.
/// Oona: depth is what the group has not acknowledged, delivered or not.
async fn depth_is_what_nobody_acknowledged(rig: Rig) {
    let bus = rig
        .bus_with(|config| {
            (config.emergency_threshold, config.backpressure_threshold) = (4, 6);
            config.depth_max = 10;
        })
        .await;
    let mut reader = consumer(&bus, Stream::Normal);
    for number in 0..30 {
        let message = state("run", number);
        let low = MessagePriority::Low;
        let outcome = bus.publish(Stream::Normal, low, "test", &message).await.unwrap();
        assert!(matches!(outcome, Outcome::Published { .. }), "{number}: {outcome:?}");
        recv(&mut reader).await.ack().await.unwrap();
    }
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 30);
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

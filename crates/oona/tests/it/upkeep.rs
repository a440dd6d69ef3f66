//! Streams stay small and lose nothing that somebody still needs.

use std::time::Duration;

use oona::{Bus, EntryId, Heartbeat, Housekeeping, Stream};
use tokio_util::sync::CancellationToken;

use crate::rig::*;

crate::on_both_logs!(
    streams_that_do_not_exist_are_no_fault,
    what_everybody_acknowledged_is_trimmed_by_length,
    an_abandoned_group_does_not_hold_for_ever,
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

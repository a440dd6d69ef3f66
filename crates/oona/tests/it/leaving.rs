//! What a consumer has not finished when it ends is others' at once, and no attempt of it counts.

use std::time::Duration;

use oona::{Consumer, ConsumerSpec, Heartbeat, Housekeeping, LeaseKeeper, Stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::rig::*;

crate::on_both_logs!(
    what_an_ended_consumer_held_is_taken_at_once_and_counts_as_new,
    an_attempt_that_failed_still_counts,
    what_was_settled_is_not_left,
    a_successor_of_the_same_name_keeps_what_it_has,
    nothing_is_lost_or_doubled_when_one_of_two_leaves_under_load,
);

/// No consumer is taken for dead within this test.
async fn patient(rig: &Rig) -> oona::Bus {
    rig.bus_with(|config| {
        config.consumer_ttl = Duration::from_secs(60);
        config.claim_idle = Duration::from_secs(60);
    })
    .await
}

async fn epochs(consumer: &mut Consumer, count: usize) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for _ in 0..count {
        let delivery = recv(consumer).await;
        found.push((epoch(&delivery), delivery.attempt));
        delivery.ack().await.unwrap();
    }
    found
}

async fn what_an_ended_consumer_held_is_taken_at_once_and_counts_as_new(rig: Rig) {
    let bus = patient(&rig).await;
    for number in 0..4 {
        publish(&bus, &state("run", number)).await;
    }
    let mut leaving = consumer(&bus, Stream::Normal);
    let name = leaving.name().to_owned();
    // One in the hands of its handler, the others read and waiting.
    let in_hand = recv(&mut leaving).await;
    let mut other = consumer(&bus, Stream::Normal);
    assert_ne!(other.name(), name);
    let nothing = tokio::time::timeout(Duration::from_millis(300), other.recv()).await;
    assert!(nothing.is_err(), "it lives, and keeps what it has");
    drop(leaving);
    let nothing = bus.release_left().await.unwrap();
    assert_eq!(nothing, 0, "a delivery in hand keeps its consumer alive");
    drop(in_hand);
    assert_eq!(bus.release_left().await.unwrap(), 4);
    assert_eq!(bus.release_left().await.unwrap(), 0);
    let began = Instant::now();
    let found = epochs(&mut other, 4).await;
    assert_eq!(found, [(0, 1), (1, 1), (2, 1), (3, 1)], "in order, each for the first time");
    assert!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    assert_eq!(bus.metrics().refused_total(Stream::Normal, oona::Refusal::Replay), 0);
}

async fn an_attempt_that_failed_still_counts(rig: Rig) {
    let bus = rig
        .bus_with(|config| {
            config.consumer_ttl = Duration::from_secs(60);
            config.claim_idle = Duration::from_secs(60);
            config.retry_delay_min = Duration::from_secs(60);
            config.retry_delay_max = Duration::from_secs(60);
        })
        .await;
    publish(&bus, &state("run", 1)).await;
    publish(&bus, &state("run", 2)).await;
    let mut leaving = consumer(&bus, Stream::Normal);
    recv(&mut leaving).await.fail("on purpose").await.unwrap();
    let dropped = recv(&mut leaving).await;
    let mut other = consumer(&bus, Stream::Normal);
    drop((leaving, dropped));
    assert_eq!(bus.release_left().await.unwrap(), 2);
    assert_eq!(epochs(&mut other, 2).await, [(1, 2), (2, 1)]);
}

async fn what_was_settled_is_not_left(rig: Rig) {
    let bus = patient(&rig).await;
    publish(&bus, &state("run", 1)).await;
    let mut leaving = consumer(&bus, Stream::Normal);
    epochs(&mut leaving, 1).await;
    drop(leaving);
    assert_eq!(bus.release_left().await.unwrap(), 0);
    assert_eq!(bus.release_all().await.unwrap(), 0);
    // Its name is free again, and its successor is none of the dead.
    let mut successor = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 2)).await;
    assert_eq!(epochs(&mut successor, 1).await, [(2, 1)]);
    bus.remove_group(Stream::Normal, GROUP).await.unwrap();
    drop(successor);
    assert_eq!(bus.release_left().await.unwrap(), 0, "without its group there is nothing to leave");
}

async fn a_successor_of_the_same_name_keeps_what_it_has(rig: Rig) {
    let bus = patient(&rig).await;
    publish(&bus, &state("run", 1)).await;
    let mut first = consumer(&bus, Stream::Normal);
    let name = first.name().to_owned();
    drop(recv(&mut first).await);
    drop(first);
    let mut successor = consumer(&bus, Stream::Normal);
    assert_eq!(successor.name(), name);
    let in_hand = recv(&mut successor).await;
    assert_eq!(bus.release_left().await.unwrap(), 0, "taken from a handler at work");
    in_hand.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

/// Two processes with housekeeping on Redis; one on the embedded log, which has no second.
async fn nothing_is_lost_or_doubled_when_one_of_two_leaves_under_load(rig: Rig) {
    const COUNT: u32 = 400;
    let bus = patient(&rig).await;
    let (staying, leaving) = match rig.server {
        Some(_) => (patient(&rig).await, patient(&rig).await),
        None => (bus.clone(), bus.clone()),
    };
    let stop = CancellationToken::new();
    let mut workers = tokio::task::JoinSet::new();
    for bus in [&staying, &leaving] {
        let heartbeat = Heartbeat::detached;
        let keeper = LeaseKeeper { bus: bus.clone(), heartbeat: heartbeat() };
        workers.spawn(keeper.run(stop.clone()));
        let keeper = Housekeeping { bus: bus.clone(), heartbeat: heartbeat() };
        workers.spawn(keeper.run(stop.clone()));
    }
    // Takes little at a time, so that something is left for the other.
    let few = ConsumerSpec { batch_max: 4, ..ConsumerSpec::new(Stream::Normal, GROUP) };
    let mut stays = staying.consumer(few);
    let mut leaves = consumer(&leaving, Stream::Normal);
    let mut handled = vec![0_u32; COUNT as usize];
    let mut note = |number: u32| handled[number as usize] += 1;
    let mut ended = None;
    let mut published = 0;
    let mut done = 0;
    while done < COUNT {
        if published < COUNT {
            publish(&bus, &state("run", published)).await;
            published += 1;
        }
        if published == COUNT / 2 && ended.is_none() {
            // It has read some, holds one, and goes.
            for _ in 0..COUNT / 4 {
                publish(&bus, &state("run", published)).await;
                published += 1;
            }
            let held = recv(&mut leaves).await;
            drop(held);
            drop(leaves);
            ended = Some(Instant::now());
            leaves = consumer(&leaving, Stream::Emergency);
        } else if ended.is_none() {
            let in_time = tokio::time::timeout(Duration::from_millis(1), leaves.recv()).await;
            if let Ok(delivery) = in_time {
                let delivery = delivery.unwrap();
                note(epoch(&delivery));
                delivery.ack().await.unwrap();
                done += 1;
            }
        }
        let patience = if published < COUNT { Duration::from_millis(1) } else { PATIENCE };
        if let Ok(delivery) = tokio::time::timeout(patience, stays.recv()).await {
            let delivery = delivery.unwrap();
            assert_eq!(delivery.attempt, 1, "an attempt that was broken off counts");
            note(epoch(&delivery));
            delivery.ack().await.unwrap();
            done += 1;
        } else {
            assert!(published < COUNT, "{done} of {COUNT} handled, the rest is lost");
        }
    }
    assert!(handled.iter().all(|times| *times == 1), "{handled:?}");
    let took = ended.unwrap().elapsed();
    assert!(took < Duration::from_secs(20), "handled {took:?} after the other had left");
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    stop.cancel();
    while let Some(ended) = workers.join_next().await {
        ended.unwrap().unwrap();
    }
}

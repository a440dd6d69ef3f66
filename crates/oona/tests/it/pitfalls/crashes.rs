//! What a handler or a process had when it crashed.

use oona::{EntryId, Refusal, Stream};

use crate::rig::*;

crate::on_both_logs!(
    pending_entries_are_read_again_after_a_crash,
    what_is_claimed_is_handled,
    a_dead_consumer_stays_until_its_entries_are_taken_over,
    poison_that_crashes_its_handler_becomes_a_dead_letter,
    a_retry_is_not_refused_as_a_replay,
    a_retry_never_leaves_the_log,
);

/// Pitfall: pending entries are never read again after a crash.
/// Elsewhere: the consumer reads only what is new (`>`), and what it had before the crash stays pending for ever.
/// Oona: every consumer looks for what stands under its own name, and under those of the dead, before it first reads and once a second from then on.
async fn pending_entries_are_read_again_after_a_crash(rig: Rig) {
    {
        let bus = rig.bus().await;
        publish(&bus, &state("run", 1)).await;
        let mut reader = consumer(&bus, Stream::Normal);
        let delivery = recv(&mut reader).await;
        bus.flush().await.unwrap();
        drop((delivery, reader));
    }
    let bus = rig.bus().await;
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!((epoch(&delivery), delivery.attempt), (1, 2));
    delivery.ack().await.unwrap();
}

/// Pitfall: the result of a claim is discarded.
/// Elsewhere: entries of a dead consumer are claimed, and then the next read asks for new ones only: the claimed ones belong to a consumer that never looks at them.
/// Oona: what a claim returns goes through the same checks and to the same handler as what is read, in the stream's order.
async fn what_is_claimed_is_handled(rig: Rig) {
    let bus = rig.bus().await;
    let mut first = consumer(&bus, Stream::Normal);
    let mut second = consumer(&bus, Stream::Normal);
    for number in 0..10 {
        publish(&bus, &state("run", number)).await;
    }
    let lost = recv(&mut first).await;
    assert_eq!((epoch(&lost), lost.attempt), (0, 1));
    // It crashes: no settling, no more heartbeats.
    drop((first, lost));
    for number in 0..10 {
        let delivery = recv(&mut second).await;
        assert_eq!((epoch(&delivery), delivery.attempt), (number, 2));
        delivery.ack().await.unwrap();
    }
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    assert_eq!(bus.metrics().refused_total(Stream::Normal, Refusal::Replay), 0);
}

/// Pitfall: a consumer is deleted while entries are pending under its name.
/// Elsewhere: deleting the name deletes its list of pending entries: they were delivered, and nobody will ever claim them.
/// Oona: a name is removed only when it is dead and nothing is pending under it, in one atomic step.
async fn a_dead_consumer_stays_until_its_entries_are_taken_over(rig: Rig) {
    let bus = rig.bus_with(|config| config.consumer_ttl = std::time::Duration::from_millis(150));
    let bus = bus.await;
    publish(&bus, &state("run", 1)).await;
    let mut gone = consumer(&bus, Stream::Normal);
    let held = recv(&mut gone).await;
    drop((held, gone));
    // It counts as dead for good after 600 ms of silence; nobody reads meanwhile.
    let crashed = std::time::Instant::now();
    while crashed.elapsed().as_millis() < 1_200 {
        bus.sweep(Stream::Normal).await.unwrap();
    }
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!((epoch(&delivery), delivery.attempt), (1, 2));
    delivery.ack().await.unwrap();
}

/// Pitfall: a poison entry crashes its handler each time.
/// Elsewhere: attempts are counted in the process that crashes, so the count starts over with every restart and the entry goes round for ever.
/// Oona: the log counts the deliveries; after `OONA_MAX_ATTEMPTS` the entry moves to the dead-letter stream in one atomic step with its acknowledgement, and what comes after it is handled.
async fn poison_that_crashes_its_handler_becomes_a_dead_letter(rig: Rig) {
    let bus = rig.bus_with(|config| config.attempts_max = 2).await;
    publish(&bus, &state("run", 1)).await;
    for attempt in 1..=2 {
        let mut reader = consumer(&bus, Stream::Normal);
        let delivery = recv(&mut reader).await;
        assert_eq!(delivery.attempt, attempt);
        drop((delivery, reader));
    }
    publish(&bus, &state("run", 2)).await;
    let mut reader = consumer(&bus, Stream::Normal);
    let delivery = recv(&mut reader).await;
    assert_eq!(epoch(&delivery), 2);
    delivery.ack().await.unwrap();
    let letters = bus.dead_letters(EntryId::ZERO, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].attempts, 2);
}

/// Pitfall: a retry is refused as a replay.
/// Elsewhere: nonces are remembered as used when they are first seen, so the second attempt of a failed handler looks like an attack and is dropped.
/// Oona: a nonce is claimed for an entry: the same entry may come again, another entry with that nonce is refused.
async fn a_retry_is_not_refused_as_a_replay(rig: Rig) {
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::KernelRequests);
    publish_on(&bus, Stream::KernelRequests, &request("r-1", now_ms())).await;
    Envelope::legacy(&request("r-2", now_ms())).append(&bus, Stream::KernelRequests).await;
    for attempt in 1..=3 {
        for _ in 0..2 {
            let delivery = recv(&mut reader).await;
            assert_eq!(delivery.attempt, attempt);
            match attempt {
                3 => delivery.ack().await.unwrap(),
                _ => delivery.fail("not yet").await.unwrap(),
            }
        }
    }
    assert_eq!(bus.metrics().refused_total(Stream::KernelRequests, Refusal::Replay), 0);
    assert_eq!(bus.depth(Stream::KernelRequests, GROUP).await.unwrap(), 0);
}

/// Pitfall: a retry acknowledges before it adds the message again.
/// Elsewhere: a failed message is acknowledged and appended anew; a crash between the two loses it, and the copy has lost its place, its count of attempts and its nonce.
/// Oona: a failed entry stays where it is, pending, and is delivered again under the same id; a crash before the retry changes nothing.
async fn a_retry_never_leaves_the_log(rig: Rig) {
    let bus = rig
        .bus_with(|config| {
            config.retry_delay_min = PATIENCE;
            config.retry_delay_max = PATIENCE;
        })
        .await;
    let id = publish(&bus, &state("run", 1)).await;
    let mut reader = consumer(&bus, Stream::Normal);
    recv(&mut reader).await.fail("not yet").await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 1, "it is still pending");
    drop(reader);
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!((delivery.entry, delivery.attempt), (id, 2));
    delivery.ack().await.unwrap();
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 1, "never appended again");
}

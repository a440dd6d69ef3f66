//! Every message is handled, and a failed handler is neither an attack nor the end.

use std::time::Duration;

use oona::{ConsumerSpec, Delivery, EntryId, Heartbeat, Order, Outgoing, Stream, attributes};

use crate::rig::*;

crate::on_both_logs!(
    what_is_published_arrives,
    poison_becomes_a_dead_letter,
    a_panic_is_a_failed_attempt_of_its_message_only,
    cancelled_recv_loses_nothing,
    order_is_kept_per_key,
    batches_are_settled_at_once,
    an_unsettled_message_is_not_handed_out_twice_at_a_time,
    a_desk_full_of_retries_goes_on,
);

async fn what_is_published_arrives(rig: Rig) {
    let bus = rig.bus().await;
    let message = state("run", 7);
    let outgoing = Outgoing {
        stream: Stream::Normal,
        priority: leyline::wire::MessagePriority::Normal,
        source: "tolaria",
        message: &message,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    };
    assert!(bus.send(outgoing).await.unwrap().is_sent());
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!(delivery.message, message);
    assert_eq!(delivery.attempt, 1);
    assert_eq!(delivery.attributes[attributes::SOURCE], "tolaria");
    assert_eq!(delivery.attributes[attributes::STREAM], "oona.normal");
    assert_eq!(delivery.attributes[attributes::KEY_ID], keyring().current_id().as_str());
    assert!(delivery.attributes[attributes::TRACEPARENT].starts_with("00-0af7"));
    assert_eq!(delivery.attributes[attributes::ID].len(), 36);
    delivery.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

async fn poison_becomes_a_dead_letter(rig: Rig) {
    let bus = rig.bus_with(|config| config.attempts_max = 3).await;
    let mut reader = consumer(&bus, Stream::Normal);
    let id = publish(&bus, &state("run", 1)).await;
    for attempt in 1..=3 {
        let delivery = recv(&mut reader).await;
        assert_eq!(delivery.attempt, attempt);
        delivery.fail(&format!("reason {attempt}")).await.unwrap();
    }
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    let letters = bus.dead_letters(EntryId::ZERO, 10).await.unwrap();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.reason.as_str(), letter.attempts), ("reason 3", 3));
    assert_eq!((letter.origin_stream.as_str(), letter.origin_entry), ("oona.normal", Some(id)));
    assert_eq!(letter.group, GROUP);
    assert!(letter.entry.mark.is_verified(), "it still carries what was sent, signature included");
    assert_eq!(bus.metrics().dead_letter_total(Stream::Normal), 1);
    assert!(bus.remove_dead_letter(letter.entry.id).await.unwrap());
    assert_eq!(bus.len(Stream::DeadLetter).await.unwrap(), 0);
}

/// Every third message panics its handler, one after it had settled it; the reader goes on.
async fn a_panic_is_a_failed_attempt_of_its_message_only(rig: Rig) {
    let bus = rig.bus_with(|config| config.attempts_max = 3).await;
    let mut reader = consumer(&bus, Stream::Normal);
    let heartbeat = Heartbeat::detached();
    for number in 1..=6 {
        publish(&bus, &state("run", number)).await;
    }
    let handle = |delivery: Delivery| async {
        let number = epoch(&delivery);
        assert_ne!(number, 3, "poison");
        delivery.ack().await.unwrap();
        assert_ne!(number, 6, "too late to matter");
        number
    };
    let mut handled = Vec::new();
    // Six messages, and two further attempts at the third.
    for _ in 0..8 {
        let delivery = recv(&mut reader).await;
        let entry = delivery.entry.to_string();
        handled.extend(delivery.attempt(&heartbeat, "handling", handle).await);
        let seen = heartbeat.sighting();
        assert_eq!((seen.phase, seen.about), ("handling", Some(entry)));
    }
    handled.sort_unstable();
    assert_eq!(handled, [1, 2, 4, 5]);
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    let letters = bus.dead_letters(EntryId::ZERO, 10).await.unwrap();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!(letter.attempts, 3);
    assert!(
        letter.reason.starts_with("its handler panicked: ") && letter.reason.contains("poison")
    );
}

async fn cancelled_recv_loses_nothing(rig: Rig) {
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    let mut received = 0;
    for number in 0..50 {
        publish(&bus, &state("run", number)).await;
        // Cancelled at whatever point one poll, or a moment, gets it to.
        let patience = Duration::from_micros(u64::from(number) * 40);
        if let Ok(delivery) = tokio::time::timeout(patience, reader.recv()).await {
            let delivery = delivery.unwrap();
            assert_eq!((epoch(&delivery), delivery.attempt), (received, 1));
            received += 1;
            delivery.ack().await.unwrap();
        }
    }
    for number in received..50 {
        let delivery = recv(&mut reader).await;
        assert_eq!((epoch(&delivery), delivery.attempt), (number, 1));
        delivery.ack().await.unwrap();
    }
}

async fn order_is_kept_per_key(rig: Rig) {
    let bus = rig.bus().await;
    let spec = ConsumerSpec::new(Stream::Normal, GROUP);
    let mut reader = bus.consumer(ConsumerSpec { order: Order::PerKey, ..spec });
    for (run, number) in [("a", 1), ("a", 2), ("b", 1), ("b", 2)] {
        publish(&bus, &state(run, number)).await;
    }
    let key = |delivery: &Delivery| match &delivery.message {
        leyline::Message::SystemState(packet) => {
            (packet.training_run_id.clone(), packet.current_epoch)
        }
        other => panic!("{other:?}"),
    };
    let first = recv(&mut reader).await;
    assert_eq!(key(&first), ("a".to_owned(), 1));
    // While the first of "a" is in work, the second waits and "b" goes on.
    let other = recv(&mut reader).await;
    assert_eq!(key(&other), ("b".to_owned(), 1));
    // A retry keeps its place before what came later.
    first.fail("once more").await.unwrap();
    other.ack().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = recv(&mut reader).await;
        seen.push(key(&delivery));
        delivery.ack().await.unwrap();
    }
    seen.retain(|(run, _)| run == "a");
    assert_eq!(seen, [("a".to_owned(), 1), ("a".to_owned(), 2)]);
}

async fn batches_are_settled_at_once(rig: Rig) {
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    for number in 0..300 {
        publish(&bus, &state("run", number)).await;
    }
    let mut handled = 0;
    while handled < 300 {
        let batch = tokio::time::timeout(PATIENCE, reader.recv_batch(100)).await.unwrap().unwrap();
        assert!(batch.len() <= 100);
        for delivery in &batch {
            assert_eq!(epoch(delivery), handled);
            handled += 1;
        }
        Delivery::ack_all(batch).await.unwrap();
    }
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

/// Its handler is slow, but its consumer lives: nobody takes the message away.
async fn an_unsettled_message_is_not_handed_out_twice_at_a_time(rig: Rig) {
    let bus = rig.bus().await;
    let mut first = consumer(&bus, Stream::Normal);
    let mut second = consumer(&bus, Stream::Normal);
    publish(&bus, &state("run", 1)).await;
    let slow = recv(&mut first).await;
    // Longer than claim_idle; both go on reading meanwhile.
    let silence = Duration::from_millis(2_500);
    let waits =
        (tokio::time::timeout(silence, first.recv()), tokio::time::timeout(silence, second.recv()));
    let (first_got, second_got) = tokio::join!(waits.0, waits.1);
    assert!(first_got.is_err() && second_got.is_err(), "handed out again");
    slow.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

/// As many messages as a consumer may hold have failed, and there is no handler to settle any.
async fn a_desk_full_of_retries_goes_on(rig: Rig) {
    let bus = rig.bus().await;
    let spec = ConsumerSpec::new(Stream::Normal, GROUP);
    let mut reader = bus.consumer(ConsumerSpec { batch_max: 2, in_work_max: 2, ..spec });
    for number in 0..3 {
        publish(&bus, &state("run", number)).await;
    }
    let (first, second) = (recv(&mut reader).await, recv(&mut reader).await);
    first.fail("not yet").await.unwrap();
    second.fail("not yet").await.unwrap();
    for _ in 0..3 {
        recv(&mut reader).await.ack().await.unwrap();
    }
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

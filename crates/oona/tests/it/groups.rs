//! Groups share, groups see everything, groups come back.

use std::collections::BTreeSet;

use oona::{ConsumerSpec, Stream};

use crate::rig::*;

crate::on_both_logs!(
    a_new_group_starts_at_the_beginning,
    two_groups_both_see_everything,
    two_consumers_share,
    groups_are_ensured_once,
);

async fn a_new_group_starts_at_the_beginning(rig: Rig) {
    let bus = rig.bus().await;
    publish(&bus, &state("run", 1)).await;
    bus.ensure_groups(&[(Stream::Normal, GROUP)]).await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 1);
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!(epoch(&delivery), 1);
    delivery.ack().await.unwrap();
}

async fn two_groups_both_see_everything(rig: Rig) {
    let bus = rig.bus().await;
    let mut readers =
        ["a", "b"].map(|group| bus.consumer(ConsumerSpec::new(Stream::Normal, group)));
    for number in 0..20 {
        publish(&bus, &state("run", number)).await;
    }
    for reader in &mut readers {
        for number in 0..20 {
            let delivery = recv(reader).await;
            assert_eq!(epoch(&delivery), number);
            delivery.ack().await.unwrap();
        }
    }
}

async fn two_consumers_share(rig: Rig) {
    let bus = rig.bus().await;
    let small = || ConsumerSpec { batch_max: 1, ..ConsumerSpec::new(Stream::Normal, GROUP) };
    let (mut first, mut second) = (bus.consumer(small()), bus.consumer(small()));
    assert_ne!(first.name(), second.name());
    for number in 0..40 {
        publish(&bus, &state("run", number)).await;
    }
    // Both hold one at the same time; who gets the rest is a matter of which is quicker.
    let held = [first.recv().await.unwrap(), second.recv().await.unwrap()];
    let mut seen = BTreeSet::new();
    for delivery in held {
        assert_eq!(delivery.attempt, 1);
        assert!(seen.insert(epoch(&delivery)), "handed out twice");
        delivery.ack().await.unwrap();
    }
    while seen.len() < 40 {
        let delivery = tokio::select! {
            delivery = first.recv() => delivery.unwrap(),
            delivery = second.recv() => delivery.unwrap(),
        };
        assert_eq!(delivery.attempt, 1);
        assert!(seen.insert(epoch(&delivery)), "handed out twice");
        delivery.ack().await.unwrap();
    }
}

async fn groups_are_ensured_once(rig: Rig) {
    let bus = rig.bus().await;
    for _ in 0..2 {
        bus.ensure_groups(&[(Stream::Policy, "a"), (Stream::Policy, "b")]).await.unwrap();
    }
    assert_eq!(bus.depth(Stream::Policy, "a").await.unwrap(), 0);
    assert_eq!(bus.metrics().groups_recreated_total(Stream::Policy), 0);
}
